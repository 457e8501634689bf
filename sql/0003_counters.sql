-- Copyright (C) The nginx referral module authors
--
-- Counters.  Writers append deltas, aggregated from their own batch, and
-- housekeeping folds them: a counter row shared by writers would make them
-- queue for it.  Readers use the view, which adds both.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

CREATE TABLE referral.counter (
    program_id   bigint,
    referrer_id  bigint,
    code         text,
    day          date    NOT NULL,
    type         text    NOT NULL,
    verdict      text,
    kind         text    NOT NULL,
    n            bigint  NOT NULL,
    UNIQUE NULLS NOT DISTINCT
        (code, day, type, verdict, kind, program_id, referrer_id)
) WITH (fillfactor = 70);

CREATE INDEX counter_day ON referral.counter (day);

CREATE TABLE referral.counter_delta (
    program_id   bigint,
    referrer_id  bigint,
    code         text,
    day          date         NOT NULL,
    type         text         NOT NULL,
    verdict      text,
    kind         text         NOT NULL,
    n            bigint       NOT NULL,
    at           timestamptz  NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_threshold = 20000);

COMMENT ON COLUMN referral.counter.day IS 'UTC day of occurred_at';

CREATE VIEW referral.counters AS
    SELECT program_id, referrer_id, code, day, type, verdict, kind,
           sum(n)::bigint AS n
        FROM (SELECT program_id, referrer_id, code, day, type, verdict, kind, n
                  FROM referral.counter
              UNION ALL
              SELECT program_id, referrer_id, code, day, type, verdict, kind, n
                  FROM referral.counter_delta) c
        GROUP BY program_id, referrer_id, code, day, type, verdict, kind;

GRANT INSERT ON referral.counter_delta TO referral_worker;
GRANT SELECT ON referral.counters TO referral_analyst;


-- Folds up to 100,000 deltas; how many, or null when another session is at
-- it.  One statement: at no moment does the view count a click twice or not
-- at all.  A join, as an array of places is compared with each row one by one
-- where the plan was made while the table was small.

CREATE FUNCTION referral.counter_fold() RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    folded  bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(
               hashtextextended('referral.counter_fold', 0))
    THEN
        RETURN NULL;
    END IF;

    WITH delta AS (
        DELETE FROM referral.counter_delta d
            USING (SELECT ctid AS place FROM referral.counter_delta
                       LIMIT 100000) chosen
            WHERE d.ctid = chosen.place
            RETURNING d.*
    ), fold AS (
        INSERT INTO referral.counter AS c (program_id, referrer_id, code, day,
                                           type, verdict, kind, n)
            SELECT program_id, referrer_id, code, day, type, verdict, kind,
                   sum(n)
                FROM delta
                GROUP BY code, day, type, verdict, kind, program_id,
                         referrer_id
                ORDER BY code, day, type, verdict, kind, program_id,
                         referrer_id
            ON CONFLICT (code, day, type, verdict, kind, program_id,
                         referrer_id)
                DO UPDATE SET n = c.n + excluded.n
    )
    SELECT count(*) INTO folded FROM delta;

    RETURN folded;
END
$$;

REVOKE ALL ON FUNCTION referral.counter_fold() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.counter_fold() TO referral_worker;

INSERT INTO referral.schema_migration (version, name) VALUES (3, 'counters');

COMMIT;
