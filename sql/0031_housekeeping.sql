-- Copyright (C) The nginx referral module authors
--
-- Regular work: referral.housekeeping(), safe from anywhere, any number of
-- times at once.  Each part does a slice and says how much it did.  The worker
-- calls part by part, each in a transaction of its own, again and again while
-- slices are full.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

DROP FUNCTION referral.housekeeping();


-- Dead letters live 30 days, records in quarantine 90.

CREATE FUNCTION referral.ingest_prune(at timestamptz DEFAULT now())
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    letters  bigint;
    records  bigint;
BEGIN
    DELETE FROM referral.dead_letter d
        WHERE d.at < ingest_prune.at - interval '30 days';
    GET DIAGNOSTICS letters = ROW_COUNT;

    DELETE FROM referral.quarantine q
        WHERE q.at < ingest_prune.at - interval '90 days';
    GET DIAGNOSTICS records = ROW_COUNT;

    RETURN letters + records;
END
$$;

REVOKE ALL ON FUNCTION referral.ingest_prune(timestamptz) FROM PUBLIC;


-- The parts in the order they are done.  A part that did "slice" has more.

CREATE TABLE referral.housekeeping_part (
    place  int   PRIMARY KEY,
    part   text  NOT NULL UNIQUE,
    call   text  NOT NULL,
    slice  int
);

COMMENT ON COLUMN referral.housekeeping_part.call IS
    'an expression; $1 is the time it is done for';

INSERT INTO referral.housekeeping_part (place, part, call, slice)
    VALUES (1, 'counters', 'coalesce(referral.counter_fold(), 0)', 100000),
           (2, 'referrals_expire', 'referral.referral_expire($1)', 1000),
           (3, 'rewards_release', 'referral.reward_release($1)', 200),
           (4, 'rewards_expiring', 'referral.reward_expiring($1)', 200),
           (5, 'rewards_expire', 'referral.reward_expire($1)', 200),
           (6, 'payouts', 'referral.payout_scheduled($1)', 500),
           (7, 'rollups', 'coalesce(referral.rollup_refresh(), 0)', NULL),
           (8, 'outbox', 'referral.webhook_prune($1)', NULL),
           (9, 'publishing', 'referral.publish_prune($1)', NULL),
           (10, 'ingest', 'referral.ingest_prune($1)', NULL);

GRANT SELECT ON referral.housekeeping_part TO referral_worker;


-- One part, or all of them.  All in one call are one transaction: other
-- sessions wait until its end, and a part that met a deadlock or a lock that
-- it did not get is left for the next time, done is null then.

CREATE FUNCTION referral.housekeeping(at timestamptz DEFAULT now(),
                                      only_part text DEFAULT NULL)
    RETURNS TABLE (part text, done bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.housekeeping_part;
BEGIN
    IF only_part IS NOT NULL
       AND NOT EXISTS (SELECT FROM referral.housekeeping_part h
                           WHERE h.part = only_part)
    THEN
        RAISE EXCEPTION 'no part "%" of housekeeping', only_part
            USING ERRCODE = 'RF127',
                  HINT = 'Parts: SELECT part FROM'
                         ' referral.housekeeping_part.';
    END IF;

    FOR p IN
        SELECT h.* FROM referral.housekeeping_part h
            WHERE only_part IS NULL OR h.part = only_part
            ORDER BY h.place
    LOOP
        part := p.part;

        IF only_part IS NOT NULL THEN
            EXECUTE 'SELECT ' || p.call INTO done USING at;

        ELSE
            BEGIN
                EXECUTE 'SELECT ' || p.call INTO done USING at;
            EXCEPTION WHEN deadlock_detected OR lock_not_available THEN
                done := NULL;
            END;
        END IF;

        RETURN NEXT;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION referral.housekeeping(timestamptz, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.housekeeping(timestamptz, text)
    TO referral_worker;

INSERT INTO referral.schema_migration (version, name)
    VALUES (31, 'housekeeping');

COMMIT;
