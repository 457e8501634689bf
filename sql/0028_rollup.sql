-- Copyright (C) The nginx referral module authors
--
-- Rollups: what dashboards read instead of ten million interactions, by the
-- program's own days.  They are recomputed for the days that were marked, not
-- added to: running the refresh again, late clicks and corrections never
-- count twice.
--
-- Counted as a click: type click, verdict valid (or unverified at the edge,
-- where the code is one of ours), by a person as far as the edge could tell,
-- no head, prefetch, preview or duplicate.  All others are "noise".

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

CREATE TABLE referral.rollup (
    program_id   bigint  NOT NULL,
    day          date    NOT NULL,
    part         text    NOT NULL CHECK (part IN ('edge', 'ledger')),
    country      text,
    source       text,
    campaign     text,
    variant_id   bigint,
    shared       bigint  NOT NULL DEFAULT 0,
    clicks       bigint  NOT NULL DEFAULT 0,
    noise        bigint  NOT NULL DEFAULT 0,
    created      bigint  NOT NULL DEFAULT 0,
    registered   bigint  NOT NULL DEFAULT 0,
    converted    bigint  NOT NULL DEFAULT 0,
    conversions  bigint  NOT NULL DEFAULT 0,
    revenue      bigint  NOT NULL DEFAULT 0,
    refunds      bigint  NOT NULL DEFAULT 0,
    cost         bigint  NOT NULL DEFAULT 0,
    UNIQUE NULLS NOT DISTINCT
        (program_id, day, part, country, source, campaign, variant_id)
);

COMMENT ON TABLE referral.rollup IS
    'By program and its own day; revenue, refunds and cost in minor units of'
    ' the program''s currency';
COMMENT ON COLUMN referral.rollup.part IS
    'edge: from interactions; ledger: from referrals, conversions, rewards';
COMMENT ON COLUMN referral.rollup.cost IS
    'rewards in money that were earned that day, less what was taken back or'
    ' has expired since';

CREATE TABLE referral.rollup_referrer (
    program_id   bigint  NOT NULL,
    day          date    NOT NULL,
    part         text    NOT NULL CHECK (part IN ('edge', 'ledger')),
    referrer_id  bigint  NOT NULL,
    clicks       bigint  NOT NULL DEFAULT 0,
    created      bigint  NOT NULL DEFAULT 0,
    registered   bigint  NOT NULL DEFAULT 0,
    converted    bigint  NOT NULL DEFAULT 0,
    conversions  bigint  NOT NULL DEFAULT 0,
    revenue      bigint  NOT NULL DEFAULT 0,
    refunds      bigint  NOT NULL DEFAULT 0,
    earned       bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (program_id, day, part, referrer_id)
);

CREATE INDEX rollup_referrer_referrer
    ON referral.rollup_referrer (referrer_id, day);

-- few rows of many: what a leaderboard begins with

CREATE INDEX rollup_referrer_converted
    ON referral.rollup_referrer (program_id, day) WHERE converted <> 0;
CREATE INDEX rollup_referrer_earned
    ON referral.rollup_referrer (program_id, day) WHERE earned <> 0;

CREATE TABLE referral.rollup_unique (
    program_id  bigint  NOT NULL,
    day         date    NOT NULL,
    visitors    bigint  NOT NULL,
    PRIMARY KEY (program_id, day)
);

COMMENT ON TABLE referral.rollup_unique IS
    'Different visitors of a day: by visitor id, else its hash, else address'
    ' and user agent';

-- Days to compute again, appended by whoever touched one: a row that all
-- sessions would update is a row that they all would wait for.

CREATE TABLE referral.rollup_mark (
    program_id  bigint       NOT NULL,
    day         date         NOT NULL,
    part        text         NOT NULL,
    at          timestamptz  NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_threshold = 20000);

CREATE TABLE referral.rollup_state (
    program_id    bigint       NOT NULL,
    day           date         NOT NULL,
    part          text         NOT NULL,
    refreshed_at  timestamptz  NOT NULL,
    PRIMARY KEY (program_id, day, part)
);


-- The program's own day of a moment, and the moment when such a day begins.

CREATE FUNCTION referral.program_day(program_id bigint, at timestamptz)
    RETURNS date
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT (at AT TIME ZONE p.time_zone)::date
                FROM referral.program p WHERE p.id = program_day.program_id);

REVOKE ALL ON FUNCTION referral.program_day(bigint, timestamptz) FROM PUBLIC;


-- What the rollups of a day look up, beside the indexes that are there.

CREATE INDEX referral_registered
    ON referral.referral (program_id, registered_at)
    WHERE registered_at IS NOT NULL;
CREATE INDEX referral_converted
    ON referral.referral (program_id, converted_at)
    WHERE converted_at IS NOT NULL;
CREATE INDEX reward_earned ON referral.reward (program_id, earned_at);
CREATE INDEX refund_occurred ON referral.refund (occurred_at);


-- Marks days of the ledger's part.  Statement triggers: a bulk operation
-- leaves a mark for each program and day, not for each row.

CREATE FUNCTION referral.rollup_mark_referral() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO referral.rollup_mark (program_id, day, part)
        SELECT DISTINCT r.program_id, (t.at AT TIME ZONE p.time_zone)::date,
                        'ledger'
            FROM fresh r
                 JOIN referral.program p ON p.id = r.program_id,
                 LATERAL (VALUES (r.created_at), (r.registered_at),
                                 (r.converted_at)) t (at)
            WHERE t.at IS NOT NULL;
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_mark_referral() FROM PUBLIC;

CREATE TRIGGER rollup_mark_insert AFTER INSERT ON referral.referral
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION referral.rollup_mark_referral();
CREATE TRIGGER rollup_mark_update AFTER UPDATE ON referral.referral
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION referral.rollup_mark_referral();


CREATE FUNCTION referral.rollup_mark_conversion() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO referral.rollup_mark (program_id, day, part)
        SELECT DISTINCT f.program_id,
                        (f.occurred_at AT TIME ZONE p.time_zone)::date,
                        'ledger'
            FROM fresh f JOIN referral.program p ON p.id = f.program_id;
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_mark_conversion() FROM PUBLIC;

CREATE TRIGGER rollup_mark_insert AFTER INSERT ON referral.conversion
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION referral.rollup_mark_conversion();


CREATE FUNCTION referral.rollup_mark_refund() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO referral.rollup_mark (program_id, day, part)
        SELECT DISTINCT c.program_id,
                        (f.occurred_at AT TIME ZONE p.time_zone)::date,
                        'ledger'
            FROM fresh f
                 JOIN referral.conversion c ON c.id = f.conversion_id
                 JOIN referral.program p ON p.id = c.program_id;
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_mark_refund() FROM PUBLIC;

CREATE TRIGGER rollup_mark_insert AFTER INSERT ON referral.refund
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION referral.rollup_mark_refund();


CREATE FUNCTION referral.rollup_mark_reward() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO referral.rollup_mark (program_id, day, part)
        SELECT DISTINCT f.program_id,
                        (f.earned_at AT TIME ZONE p.time_zone)::date,
                        'ledger'
            FROM fresh f JOIN referral.program p ON p.id = f.program_id;
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_mark_reward() FROM PUBLIC;

CREATE TRIGGER rollup_mark_insert AFTER INSERT ON referral.reward
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION referral.rollup_mark_reward();
CREATE TRIGGER rollup_mark_update AFTER UPDATE ON referral.reward
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION referral.rollup_mark_reward();


-- Marks of the edge's part are made where its counters are folded: whatever is
-- folded is committed, and so are its interactions.  A day of UTC touches two
-- days of a program.

CREATE OR REPLACE FUNCTION referral.counter_fold() RETURNS bigint
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
    ), mark AS (
        INSERT INTO referral.rollup_mark (program_id, day, part)
            SELECT DISTINCT p.id, (m.at AT TIME ZONE p.time_zone)::date, 'edge'
                FROM (SELECT DISTINCT d.day,
                             coalesce(d.program_id, k.program_id) AS program_id
                          FROM delta d
                               LEFT JOIN referral.code k
                                   ON k.code = d.code COLLATE "C"
                                      AND d.program_id IS NULL) t
                     JOIN referral.program p ON p.id = t.program_id,
                     LATERAL (VALUES
                         (t.day::timestamp AT TIME ZONE 'UTC'),
                         ((t.day + 1)::timestamp AT TIME ZONE 'UTC'
                          - interval '1 microsecond')) m (at)
    )
    SELECT count(*) INTO folded FROM delta;

    RETURN folded;
END
$$;


-- Computes one day of the programs given again, the edge's part.  One pass
-- over the partitions that the day touches in any of their time zones.

CREATE FUNCTION referral.rollup_edge(of_day date, programs bigint[])
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    begins  timestamptz;
    ends    timestamptz;
BEGIN
    SELECT min(referral.day_begins(of_day, p.time_zone)),
           max(referral.day_begins(of_day + 1, p.time_zone))
        INTO begins, ends
        FROM referral.program p WHERE p.id = ANY (programs);

    DELETE FROM referral.rollup r
        WHERE r.program_id = ANY (programs) AND r.day = of_day
              AND r.part = 'edge';
    DELETE FROM referral.rollup_referrer r
        WHERE r.program_id = ANY (programs) AND r.day = of_day
              AND r.part = 'edge';
    DELETE FROM referral.rollup_unique u
        WHERE u.program_id = ANY (programs) AND u.day = of_day;

    -- a join with constants, so that the partitions are chosen by the bounds

    WITH program AS MATERIALIZED (
        SELECT p.id,
               referral.day_begins(of_day, p.time_zone) AS low,
               referral.day_begins(of_day + 1, p.time_zone) AS high
            FROM referral.program p WHERE p.id = ANY (programs)
    ), fine AS MATERIALIZED (
        SELECT p.id AS program_id, i.country, i.source,
               coalesce(i.metadata ->> 'campaign', k.campaign) AS campaign,
               coalesce(i.referrer_id, k.referrer_id) AS referrer_id,
               k.variant_id,
               coalesce(i.visitor::text, encode(i.visitor_hash, 'hex'),
                        md5(host(i.ip) || coalesce(i.user_agent, '')))
                   AS visitor,
               count(*) FILTER (WHERE i.type IN ('share', 'email_sent',
                                                 'sms_sent')) AS shared,
               count(*) FILTER (WHERE i.type = 'click' AND c.counted)
                   AS clicks,
               count(*) FILTER (WHERE i.type = 'click' AND NOT c.counted)
                   AS noise
            FROM referral.interaction i
                 LEFT JOIN referral.code k ON k.code = i.code COLLATE "C"
                 JOIN program p
                     ON p.id = coalesce(i.program_id, k.program_id)
                        AND i.occurred_at >= p.low AND i.occurred_at < p.high,
                 LATERAL (SELECT i.verdict IN ('valid', 'unverified')
                                 AND i.kind IN ('person', 'unknown')
                                 AND NOT coalesce(i.signals
                                     && '{head,prefetch,preview,duplicate}',
                                     false) AS counted) c
            WHERE i.occurred_at >= begins AND i.occurred_at < ends
            GROUP BY 1, 2, 3, 4, 5, 6, 7
    ), total AS (
        INSERT INTO referral.rollup (program_id, day, part, country, source,
                                     campaign, variant_id, shared, clicks,
                                     noise)
            SELECT f.program_id, of_day, 'edge', f.country, f.source,
                   f.campaign, f.variant_id, sum(f.shared), sum(f.clicks),
                   sum(f.noise)
                FROM fine f
                GROUP BY 1, 4, 5, 6, 7
    ), referrer AS (
        INSERT INTO referral.rollup_referrer (program_id, day, part,
                                              referrer_id, clicks)
            SELECT f.program_id, of_day, 'edge', f.referrer_id, sum(f.clicks)
                FROM fine f
                WHERE f.referrer_id IS NOT NULL AND f.clicks > 0
                GROUP BY 1, 4
    )
    INSERT INTO referral.rollup_unique (program_id, day, visitors)
        SELECT f.program_id, of_day, count(DISTINCT f.visitor)
            FROM fine f
            WHERE f.clicks > 0
            GROUP BY 1;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_edge(date, bigint[]) FROM PUBLIC;


-- The ledger's part of one day of one program: referrals by the day of each
-- step, conversions and refunds by the day they happened, rewards in money by
-- the day they were earned.  Money of other currencies than the program's is
-- not added to it: it stands in the ledger.

CREATE FUNCTION referral.rollup_ledger(of_day date, program bigint)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    p       referral.program;
    money   text;
    begins  timestamptz;
    ends    timestamptz;
BEGIN
    SELECT * INTO p FROM referral.program g WHERE g.id = program;
    money := coalesce(p.currency, (SELECT o.currency
                                      FROM referral.organisation o
                                      WHERE o.id = p.organisation_id));
    begins := referral.day_begins(of_day, p.time_zone);
    ends := referral.day_begins(of_day + 1, p.time_zone);

    DELETE FROM referral.rollup r
        WHERE r.program_id = program AND r.day = of_day
              AND r.part = 'ledger';
    DELETE FROM referral.rollup_referrer r
        WHERE r.program_id = program AND r.day = of_day
              AND r.part = 'ledger';

    WITH step AS (
        SELECT r.id, 1 AS created, 0 AS registered, 0 AS converted,
               0 AS conversions, 0::bigint AS revenue, 0::bigint AS refunds,
               0::bigint AS cost
            FROM referral.referral r
            WHERE r.program_id = program AND r.created_at >= begins
                  AND r.created_at < ends
        UNION ALL
        SELECT r.id, 0, 1, 0, 0, 0, 0, 0
            FROM referral.referral r
            WHERE r.program_id = program AND r.registered_at >= begins
                  AND r.registered_at < ends
        UNION ALL
        SELECT r.id, 0, 0, 1, 0, 0, 0, 0
            FROM referral.referral r
            WHERE r.program_id = program AND r.converted_at >= begins
                  AND r.converted_at < ends
        UNION ALL
        SELECT c.referral_id, 0, 0, 0, 1,
               CASE WHEN c.currency = money THEN c.amount ELSE 0 END, 0, 0
            FROM referral.conversion c
            WHERE c.program_id = program AND c.occurred_at >= begins
                  AND c.occurred_at < ends
        UNION ALL
        SELECT c.referral_id, 0, 0, 0, 0, 0, f.amount, 0
            FROM referral.refund f
                 JOIN referral.conversion c ON c.id = f.conversion_id
            WHERE c.program_id = program AND c.currency = money
                  AND f.occurred_at >= begins AND f.occurred_at < ends
        UNION ALL
        SELECT w.referral_id, 0, 0, 0, 0, 0, 0,
               greatest(w.amount - w.reversed - w.returned - w.expired, 0)
            FROM referral.reward w
            WHERE w.program_id = program AND w.unit = money
                  AND w.earned_at >= begins AND w.earned_at < ends
    ), fine AS MATERIALIZED (
        SELECT r.country, r.source,
               coalesce(k.campaign, r.campaign) AS campaign, r.variant_id,
               r.referrer_id, sum(s.created) AS created,
               sum(s.registered) AS registered,
               sum(s.converted) AS converted,
               sum(s.conversions) AS conversions, sum(s.revenue) AS revenue,
               sum(s.refunds) AS refunds, sum(s.cost) AS cost
            FROM step s
                 JOIN referral.referral r ON r.id = s.id
                 LEFT JOIN referral.code k ON k.id = r.code_id
            GROUP BY 1, 2, 3, 4, 5
    ), total AS (
        INSERT INTO referral.rollup (program_id, day, part, country, source,
                                     campaign, variant_id, created,
                                     registered, converted, conversions,
                                     revenue, refunds, cost)
            SELECT program, of_day, 'ledger', f.country, f.source, f.campaign,
                   f.variant_id, sum(f.created), sum(f.registered),
                   sum(f.converted), sum(f.conversions), sum(f.revenue),
                   sum(f.refunds), sum(f.cost)
                FROM fine f
                GROUP BY 4, 5, 6, 7
    )
    INSERT INTO referral.rollup_referrer (program_id, day, part, referrer_id,
                                          created, registered, converted,
                                          conversions, revenue, refunds,
                                          earned)
        SELECT program, of_day, 'ledger', f.referrer_id, sum(f.created),
               sum(f.registered), sum(f.converted), sum(f.conversions),
               sum(f.revenue), sum(f.refunds), sum(f.cost)
            FROM fine f
            WHERE f.referrer_id IS NOT NULL
            GROUP BY 4;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_ledger(date, bigint) FROM PUBLIC;


-- Computes marked days, oldest first, until the budget is spent; how many
-- days of programs, or null when another session is at it.  The edge's part of
-- a day is not computed more often than every "pause": it reads that day's
-- clicks as a whole.

CREATE FUNCTION referral.rollup_refresh(budget interval DEFAULT '5 seconds',
                                        pause interval DEFAULT '2 minutes')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    done      bigint := 0;
    finish    timestamptz := clock_timestamp() + budget;
    mark      record;
    programs  bigint[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(
               hashtextextended('referral.rollup', 0))
    THEN
        RETURN NULL;
    END IF;

    -- marks go before what they mark is read: whoever marks meanwhile leaves
    -- a mark that is still there

    FOR mark IN
        SELECT DISTINCT m.day, m.program_id FROM referral.rollup_mark m
            WHERE m.part = 'ledger' ORDER BY 1, 2
    LOOP
        EXIT WHEN clock_timestamp() > finish;

        DELETE FROM referral.rollup_mark m
            WHERE m.part = 'ledger' AND m.day = mark.day
                  AND m.program_id = mark.program_id;
        PERFORM referral.rollup_ledger(mark.day, mark.program_id);
        done := done + 1;
    END LOOP;

    FOR mark IN
        SELECT DISTINCT m.day FROM referral.rollup_mark m
            WHERE m.part = 'edge' ORDER BY 1
    LOOP
        EXIT WHEN clock_timestamp() > finish;

        WITH due AS (
            DELETE FROM referral.rollup_mark m
                WHERE m.part = 'edge' AND m.day = mark.day
                      AND NOT EXISTS (
                          SELECT FROM referral.rollup_state s
                              WHERE s.program_id = m.program_id
                                    AND s.day = m.day AND s.part = 'edge'
                                    AND s.refreshed_at
                                        > clock_timestamp() - pause)
                RETURNING m.program_id
        )
        SELECT array_agg(DISTINCT program_id) INTO programs FROM due;

        IF programs IS NOT NULL THEN
            PERFORM referral.rollup_edge(mark.day, programs);

            INSERT INTO referral.rollup_state AS s (program_id, day, part,
                                                    refreshed_at)
                SELECT id, mark.day, 'edge', clock_timestamp()
                    FROM unnest(programs) id
                ON CONFLICT (program_id, day, part)
                    DO UPDATE SET refreshed_at = excluded.refreshed_at;
            done := done + cardinality(programs);
        END IF;
    END LOOP;

    RETURN done;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_refresh(interval, interval)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.rollup_refresh(interval, interval)
    TO referral_worker;


-- Marks every day from "since" on, of one program or of all: after a change
-- of a program's time zone, or by hand.

CREATE FUNCTION referral.rollup_again(since date,
                                      only_program bigint DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    marked  bigint;
BEGIN
    DELETE FROM referral.rollup_state s
        WHERE s.day >= since
              AND (only_program IS NULL OR s.program_id = only_program);

    INSERT INTO referral.rollup_mark (program_id, day, part)
        SELECT p.id, since + n, part
            FROM referral.program p,
                 generate_series(0, (now() AT TIME ZONE 'UTC')::date + 1
                                    - since) n,
                 unnest('{edge,ledger}'::text[]) part
            WHERE (only_program IS NULL OR p.id = only_program)
                  AND (referral.organisation_scope() IS NULL
                       OR p.organisation_id = referral.organisation_scope());
    GET DIAGNOSTICS marked = ROW_COUNT;

    RETURN marked;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_again(date, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.rollup_again(date, bigint)
    TO referral_app;


CREATE FUNCTION referral.rollup_time_zone() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.rollup_again(
                (SELECT min(r.day) FROM referral.rollup r
                     WHERE r.program_id = NEW.id), NEW.id);
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.rollup_time_zone() FROM PUBLIC;

CREATE TRIGGER rollup_time_zone AFTER UPDATE OF time_zone ON referral.program
    FOR EACH ROW WHEN (NEW.time_zone IS DISTINCT FROM OLD.time_zone)
    EXECUTE FUNCTION referral.rollup_time_zone();


-- Notes that a code was given on: by an application that sent it in an e-mail
-- or a text message, or whose button was pressed.  Funnels begin with it.
-- Options: type (share; email_sent, sms_sent), source (such as twitter),
-- channel, campaign.  Nothing about who got it.

CREATE FUNCTION referral.share_record(code text, options jsonb DEFAULT '{}')
    RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made  timestamptz := date_trunc('milliseconds', clock_timestamp());
    id    uuid := (lpad(to_hex((extract(epoch FROM made) * 1000)::bigint), 12,
                        '0')
                   || '7' || substr(gen_random_uuid()::text, 16))::uuid;
    c     referral.code;
    what  text;
BEGIN
    options := referral.options_check('share_record', options,
                                      '{type,source,channel,campaign}');
    what := coalesce(options ->> 'type', 'share');
    SELECT * INTO c FROM referral.code k
        WHERE k.id = referral.code_find(share_record.code);

    IF NOT FOUND THEN
        RAISE EXCEPTION 'code "%": there is none, or it is not yours',
                        coalesce(left(share_record.code, 64), '(null)')
            USING ERRCODE = 'RF031',
                  HINT = 'The view referral.codes lists them.';
    END IF;

    IF what NOT IN ('share', 'email_sent', 'sms_sent') THEN
        RAISE EXCEPTION 'share_record(): "type" is not acceptable'
            USING ERRCODE = 'RF010',
                  HINT = 'Accepted: share, email_sent, sms_sent.';
    END IF;

    IF EXISTS (SELECT FROM jsonb_each(options) o
                   WHERE jsonb_typeof(o.value) NOT IN ('string', 'null')
                         OR length(o.value #>> '{}') > 128)
    THEN
        RAISE EXCEPTION 'share_record(): the options can not be read'
            USING ERRCODE = 'RF010',
                  HINT = 'Each is a text of at most 128 characters.';
    END IF;

    -- which locks until the end of the transaction: the worker makes them
    -- ahead

    IF to_regclass('referral.interaction_'
                   || to_char(made AT TIME ZONE 'UTC', 'YYYYMMDD')) IS NULL
    THEN
        PERFORM referral.partition_ensure((made AT TIME ZONE 'UTC')::date);
    END IF;

    -- stream 0: of no journal

    INSERT INTO referral.interaction (id, occurred_at, stream, seq, type, code,
                                      code_id, program_id, referrer_id, source,
                                      channel, metadata)
        VALUES (id, made, 0, 0, what, c.code, c.id, c.program_id,
                c.referrer_id, options ->> 'source', options ->> 'channel',
                jsonb_strip_nulls(jsonb_build_object('campaign',
                    coalesce(options ->> 'campaign', c.campaign))));
    INSERT INTO referral.counter_delta (program_id, referrer_id, code, day,
                                        type, verdict, kind, n)
        VALUES (c.program_id, c.referrer_id, c.code,
                (made AT TIME ZONE 'UTC')::date, what, NULL, 'unknown', 1);

    RETURN id;
END
$$;

REVOKE ALL ON FUNCTION referral.share_record(text, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.share_record(text, jsonb) TO referral_app;

INSERT INTO referral.schema_migration (version, name) VALUES (28, 'rollup');

COMMIT;
