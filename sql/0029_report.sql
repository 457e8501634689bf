-- Copyright (C) The nginx referral module authors
--
-- Figures.  Periods are days of the program's own time zone, both ends
-- included; by default the last 30.  Money is in minor units of the program's
-- currency.  Rates are shares of 1, null where nothing can be divided by.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;


-- What was spent on a program besides rewards: advertising, print, salaries.

CREATE TABLE referral.program_cost (
    id          bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    program_id  bigint       NOT NULL REFERENCES referral.program,
    day         date         NOT NULL,
    amount      bigint       NOT NULL,
    reference   text         NOT NULL
                             CHECK (length(reference) BETWEEN 1 AND 200),
    created_by  text         NOT NULL DEFAULT referral.actor(),
    created_at  timestamptz  NOT NULL DEFAULT now(),
    UNIQUE (program_id, reference)
);

CREATE INDEX program_cost_day ON referral.program_cost (program_id, day);

COMMENT ON COLUMN referral.program_cost.amount IS
    'minor units of the program''s currency; negative takes back';


-- Records a cost once: the same reference again with the same amount and day
-- changes nothing, with others it is RF120.

CREATE FUNCTION referral.program_cost_record(program_id bigint, day date,
                                             amount bigint, reference text)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    given  referral.program_cost;
    new    bigint;
BEGIN
    PERFORM referral.program_row(program_cost_record.program_id);

    INSERT INTO referral.program_cost (program_id, day, amount, reference)
        VALUES (program_cost_record.program_id, program_cost_record.day,
                program_cost_record.amount, program_cost_record.reference)
        ON CONFLICT (program_id, reference) DO NOTHING
        RETURNING id INTO new;

    IF new IS NOT NULL THEN
        RETURN new;
    END IF;

    SELECT * INTO given FROM referral.program_cost c
        WHERE c.program_id = program_cost_record.program_id
              AND c.reference = program_cost_record.reference;

    IF given.day IS DISTINCT FROM program_cost_record.day
       OR given.amount IS DISTINCT FROM program_cost_record.amount
    THEN
        RAISE EXCEPTION 'cost "%" of program % is already there with another'
                        ' amount or day', program_cost_record.reference,
                        program_cost_record.program_id
            USING ERRCODE = 'RF120',
                  HINT = 'Record the difference under a reference of its own.';
    END IF;

    RETURN given.id;
END
$$;

REVOKE ALL ON FUNCTION referral.program_cost_record(bigint, date, bigint, text)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    referral.program_cost_record(bigint, date, bigint, text) TO referral_app;


-- The program, if it may be read, with the period filled in.

CREATE FUNCTION referral.period(program_id bigint, from_day date,
                                until_day date, OUT low date, OUT high date)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program := referral.program_row(program_id);
BEGIN
    high := coalesce(until_day, (now() AT TIME ZONE p.time_zone)::date);
    low := coalesce(from_day, high - 29);

    IF low > high OR high - low > 3700 THEN
        RAISE EXCEPTION 'the period % to % is no period of at most 10 years',
                        low, high
            USING ERRCODE = 'RF121',
                  HINT = 'The first day is not behind the last.';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.period(bigint, date, date) FROM PUBLIC;


CREATE FUNCTION referral.share(part numeric, whole numeric, places int
                               DEFAULT 4) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN round(part / nullif(whole, 0), places);

REVOKE ALL ON FUNCTION referral.share(numeric, numeric, int) FROM PUBLIC;


-- The figures of a program in a period, one row.
--
--   visitors             different visitors of each day, added up
--   revenue              of conversions, before refunds
--   net                  revenue - refunds
--   cost                 rewards in the program's currency, less reversals
--   spend                program_cost
--   cost_per_acquisition (cost + spend) / converted
--   average_reward       cost / converted
--   roi                  (net - cost - spend) / (cost + spend)

CREATE FUNCTION referral.program_figures(program_id bigint,
                                         from_day date DEFAULT NULL,
                                         until_day date DEFAULT NULL,
                                         OUT first_day date,
                                         OUT last_day date,
                                         OUT shared bigint,
                                         OUT clicks bigint, OUT noise bigint,
                                         OUT visitors bigint,
                                         OUT created bigint,
                                         OUT registered bigint,
                                         OUT converted bigint,
                                         OUT conversions bigint,
                                         OUT revenue bigint,
                                         OUT refunds bigint, OUT net bigint,
                                         OUT cost bigint, OUT spend bigint,
                                         OUT registration_rate numeric,
                                         OUT conversion_rate numeric,
                                         OUT average_reward bigint,
                                         OUT cost_per_acquisition bigint,
                                         OUT roi numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT p.low, p.high INTO first_day, last_day
        FROM referral.period(program_figures.program_id, from_day,
                             until_day) p;

    SELECT coalesce(sum(r.shared), 0), coalesce(sum(r.clicks), 0),
           coalesce(sum(r.noise), 0), coalesce(sum(r.created), 0),
           coalesce(sum(r.registered), 0), coalesce(sum(r.converted), 0),
           coalesce(sum(r.conversions), 0), coalesce(sum(r.revenue), 0),
           coalesce(sum(r.refunds), 0), coalesce(sum(r.cost), 0)
        INTO shared, clicks, noise, created, registered, converted,
             conversions, revenue, refunds, cost
        FROM referral.rollup r
        WHERE r.program_id = program_figures.program_id
              AND r.day BETWEEN first_day AND last_day;

    SELECT coalesce(sum(u.visitors), 0) INTO visitors
        FROM referral.rollup_unique u
        WHERE u.program_id = program_figures.program_id
              AND u.day BETWEEN first_day AND last_day;

    SELECT coalesce(sum(c.amount), 0) INTO spend
        FROM referral.program_cost c
        WHERE c.program_id = program_figures.program_id
              AND c.day BETWEEN first_day AND last_day;

    net := revenue - refunds;
    registration_rate := referral.share(registered, clicks);
    conversion_rate := referral.share(converted, clicks);
    average_reward := referral.round_money(referral.share(cost, converted,
                                                          10));
    cost_per_acquisition :=
        referral.round_money(referral.share(cost + spend, converted, 10));
    roi := referral.share(net - cost - spend, cost + spend);
END
$$;


-- Shared, clicked, registered, converted: how many, and which share of the
-- step before and of the first.  A referral that is made without a click (a
-- partner names a lead) is a step of its own.

CREATE FUNCTION referral.funnel_steps(shared bigint, clicked bigint,
                                      referred bigint, registered bigint,
                                      converted bigint)
    RETURNS TABLE (step text, n bigint, of_previous numeric, of_first numeric)
    LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.step, s.n,
           referral.share(s.n, lag(s.n) OVER (ORDER BY s.place)),
           referral.share(s.n, first_value(s.n) OVER (ORDER BY s.place))
        FROM (VALUES (1, 'shared', $1), (2, 'clicked', $2),
                     (3, 'referred', $3), (4, 'registered', $4),
                     (5, 'converted', $5)) s (place, step, n)
        ORDER BY s.place
$$;

REVOKE ALL ON FUNCTION referral.funnel_steps(bigint, bigint, bigint, bigint,
                                             bigint) FROM PUBLIC;


CREATE FUNCTION referral.funnel(program_id bigint,
                                from_day date DEFAULT NULL,
                                until_day date DEFAULT NULL)
    RETURNS TABLE (step text, n bigint, of_previous numeric, of_first numeric)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.*
        FROM referral.program_figures($1, $2, $3) f,
             LATERAL referral.funnel_steps(f.shared, f.clicks, f.created,
                                           f.registered, f.converted) s
$$;


-- The same figures by day, week, month, quarter or year of the program, none
-- left out: trends, and seasons side by side.

CREATE FUNCTION referral.trend(program_id bigint, from_day date DEFAULT NULL,
                               until_day date DEFAULT NULL,
                               step text DEFAULT 'day')
    RETURNS TABLE (day date, shared bigint, clicks bigint, noise bigint,
                   visitors bigint, created bigint, registered bigint,
                   converted bigint, conversions bigint, revenue bigint,
                   refunds bigint, cost bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    low   date;
    high  date;
BEGIN
    IF step IS NULL OR step <> ALL ('{day,week,month,quarter,year}'::text[])
    THEN
        RAISE EXCEPTION 'no step "%"', step
            USING ERRCODE = 'RF122',
                  HINT = 'Steps: day, week, month, quarter, year.';
    END IF;

    SELECT p.low, p.high INTO low, high
        FROM referral.period(trend.program_id, from_day, until_day) p;

    RETURN QUERY
        SELECT s.day, coalesce(r.shared, 0)::bigint,
               coalesce(r.clicks, 0)::bigint, coalesce(r.noise, 0)::bigint,
               coalesce(u.visitors, 0)::bigint,
               coalesce(r.created, 0)::bigint,
               coalesce(r.registered, 0)::bigint,
               coalesce(r.converted, 0)::bigint,
               coalesce(r.conversions, 0)::bigint,
               coalesce(r.revenue, 0)::bigint,
               coalesce(r.refunds, 0)::bigint, coalesce(r.cost, 0)::bigint
            FROM (SELECT generate_series(
                             date_trunc(trend.step, low::timestamp),
                             high::timestamp,
                             CASE trend.step WHEN 'quarter'
                                  THEN interval '3 months'
                                  ELSE ('1 ' || trend.step)::interval
                                  END)::date AS day) s
                 LEFT JOIN (
                     SELECT date_trunc(trend.step, r.day::timestamp)::date
                                AS day,
                            sum(r.shared) AS shared, sum(r.clicks) AS clicks,
                            sum(r.noise) AS noise, sum(r.created) AS created,
                            sum(r.registered) AS registered,
                            sum(r.converted) AS converted,
                            sum(r.conversions) AS conversions,
                            sum(r.revenue) AS revenue,
                            sum(r.refunds) AS refunds, sum(r.cost) AS cost
                         FROM referral.rollup r
                         WHERE r.program_id = trend.program_id
                               AND r.day BETWEEN low AND high
                         GROUP BY 1) r USING (day)
                 LEFT JOIN (
                     SELECT date_trunc(trend.step, u.day::timestamp)::date
                                AS day,
                            sum(u.visitors) AS visitors
                         FROM referral.rollup_unique u
                         WHERE u.program_id = trend.program_id
                               AND u.day BETWEEN low AND high
                         GROUP BY 1) u USING (day)
            ORDER BY s.day;
END
$$;


-- The figures by source, campaign, country or variant, most clicks first; the
-- name is null for what has none.

CREATE FUNCTION referral.breakdown(program_id bigint, by text,
                                   from_day date DEFAULT NULL,
                                   until_day date DEFAULT NULL,
                                   max_rows int DEFAULT 100)
    RETURNS TABLE (name text, clicks bigint, noise bigint, created bigint,
                   registered bigint, converted bigint, revenue bigint,
                   refunds bigint, cost bigint, conversion_rate numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    low   date;
    high  date;
BEGIN
    IF by IS NULL OR by <> ALL ('{source,campaign,country,variant}'::text[])
    THEN
        RAISE EXCEPTION 'no breakdown by "%"', by
            USING ERRCODE = 'RF122',
                  HINT = 'By source, campaign, country or variant; by'
                         ' referrer: leaderboard().';
    END IF;

    SELECT p.low, p.high INTO low, high
        FROM referral.period(breakdown.program_id, from_day, until_day) p;

    RETURN QUERY
        SELECT CASE breakdown.by
                    WHEN 'source' THEN r.source
                    WHEN 'campaign' THEN r.campaign
                    WHEN 'country' THEN r.country
                    ELSE v.name END,
               sum(r.clicks)::bigint, sum(r.noise)::bigint,
               sum(r.created)::bigint, sum(r.registered)::bigint,
               sum(r.converted)::bigint, sum(r.revenue)::bigint,
               sum(r.refunds)::bigint, sum(r.cost)::bigint,
               referral.share(sum(r.converted), sum(r.clicks))
            FROM referral.rollup r
                 LEFT JOIN referral.program_variant v ON v.id = r.variant_id
            WHERE r.program_id = breakdown.program_id
                  AND r.day BETWEEN low AND high
            GROUP BY 1
            ORDER BY sum(r.clicks) DESC, sum(r.created) DESC, 1
            LIMIT breakdown.max_rows;
END
$$;


-- Referrers of a program in order of clicks, created, registered, converted,
-- conversions, revenue (net of refunds) or earned.  Who has the same figure
-- has the same rank, who has none is not listed.

CREATE FUNCTION referral.leaderboard(program_id bigint,
                                     by text DEFAULT 'converted',
                                     from_day date DEFAULT NULL,
                                     until_day date DEFAULT NULL,
                                     max_rows int DEFAULT 10)
    RETURNS TABLE (rank bigint, referrer_id bigint, external_id text,
                   clicks bigint, created bigint, registered bigint,
                   converted bigint, conversions bigint, revenue bigint,
                   earned bigint, conversion_rate numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    low   date;
    high  date;
BEGIN
    IF by IS NULL OR by <> ALL ('{clicks,created,registered,converted,'
           'conversions,revenue,earned}'::text[])
    THEN
        RAISE EXCEPTION 'no leaderboard by "%"', by
            USING ERRCODE = 'RF122',
                  HINT = 'By clicks, created, registered, converted,'
                         ' conversions, revenue or earned.';
    END IF;

    SELECT p.low, p.high INTO low, high
        FROM referral.period(leaderboard.program_id, from_day, until_day) p;

    -- who leads is found by the one figure, and then the others of these few

    RETURN QUERY EXECUTE format($q$
        SELECT t.rank, t.referrer_id, f.external_id, s.clicks, s.created,
               s.registered, s.converted, s.conversions, s.revenue, s.earned,
               referral.share(s.converted, s.clicks)
            FROM (SELECT rank() OVER (ORDER BY sum(%1$s) DESC) AS rank,
                         r.referrer_id
                      FROM referral.rollup_referrer r
                      WHERE r.program_id = $1 AND r.day BETWEEN $2 AND $3
                            AND %2$s
                      GROUP BY r.referrer_id
                      ORDER BY 1, 2
                      LIMIT $4) t
                 JOIN referral.referrer f ON f.id = t.referrer_id,
                 LATERAL (SELECT sum(r.clicks)::bigint AS clicks,
                                 sum(r.created)::bigint AS created,
                                 sum(r.registered)::bigint AS registered,
                                 sum(r.converted)::bigint AS converted,
                                 sum(r.conversions)::bigint AS conversions,
                                 sum(r.revenue - r.refunds)::bigint
                                     AS revenue,
                                 sum(r.earned)::bigint AS earned
                              FROM referral.rollup_referrer r
                              WHERE r.referrer_id = t.referrer_id
                                    AND r.program_id = $1
                                    AND r.day BETWEEN $2 AND $3) s
            ORDER BY t.rank, t.referrer_id $q$,
        CASE by WHEN 'revenue' THEN 'r.revenue - r.refunds'
                ELSE 'r.' || by END,
        CASE by WHEN 'revenue' THEN '(r.revenue <> 0 OR r.refunds <> 0)'
                ELSE 'r.' || by || ' <> 0' END)
        USING leaderboard.program_id, low, high, max_rows;
END
$$;


-- From the click (or the making of the referral, where there was none) to the
-- first conversion, of referrals that converted in the period.

CREATE FUNCTION referral.time_to_conversion(program_id bigint,
                                            from_day date DEFAULT NULL,
                                            until_day date DEFAULT NULL,
                                            OUT converted bigint,
                                            OUT average interval,
                                            OUT median interval,
                                            OUT p90 interval,
                                            OUT longest interval)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    zone  text := (referral.program_row(program_id)).time_zone;
    low   date;
    high  date;
BEGIN
    SELECT p.low, p.high INTO low, high
        FROM referral.period(time_to_conversion.program_id, from_day,
                             until_day) p;

    SELECT count(*), avg(t.took),
           percentile_cont(0.5) WITHIN GROUP (ORDER BY t.took),
           percentile_cont(0.9) WITHIN GROUP (ORDER BY t.took), max(t.took)
        INTO converted, average, median, p90, longest
        FROM (SELECT r.converted_at
                     - least(r.clicked_at, r.created_at, r.converted_at)
                         AS took
                  FROM referral.referral r
                  WHERE r.program_id = time_to_conversion.program_id
                        AND r.converted_at
                            >= referral.day_begins(low, zone)
                        AND r.converted_at
                            < referral.day_begins(high + 1, zone)) t;
END
$$;


-- Referrals by the week or month they were made in, and how many of them had
-- registered, and had converted within 7, 30 and 90 days and at all.

CREATE FUNCTION referral.cohorts(program_id bigint,
                                 from_day date DEFAULT NULL,
                                 until_day date DEFAULT NULL,
                                 step text DEFAULT 'month')
    RETURNS TABLE (cohort date, created bigint, registered bigint,
                   converted_7d bigint, converted_30d bigint,
                   converted_90d bigint, converted bigint, net bigint,
                   conversion_rate numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    zone  text := (referral.program_row(cohorts.program_id)).time_zone;
    low   date;
    high  date;
BEGIN
    IF step IS NULL OR step <> ALL ('{week,month,quarter,year}'::text[]) THEN
        RAISE EXCEPTION 'no step "%"', step
            USING ERRCODE = 'RF122',
                  HINT = 'Steps: week, month, quarter, year.';
    END IF;

    SELECT p.low, p.high INTO low, high
        FROM referral.period(cohorts.program_id, from_day, until_day) p;

    RETURN QUERY
        SELECT date_trunc(cohorts.step, r.created_at AT TIME ZONE zone)::date,
               count(*), count(r.registered_at),
               count(*) FILTER (WHERE r.converted_at
                                      < r.created_at + interval '7 days'),
               count(*) FILTER (WHERE r.converted_at
                                      < r.created_at + interval '30 days'),
               count(*) FILTER (WHERE r.converted_at
                                      < r.created_at + interval '90 days'),
               count(r.converted_at), coalesce(sum(r.value), 0)::bigint,
               referral.share(count(r.converted_at), count(*))
            FROM referral.referral r
            WHERE r.program_id = cohorts.program_id
                  AND r.created_at >= referral.day_begins(low, zone)
                  AND r.created_at < referral.day_begins(high + 1, zone)
            GROUP BY 1
            ORDER BY 1;
END
$$;


-- What referred customers are worth so far: those of a program, or of one of
-- its referrers.  value: conversions less refunds, in the program's currency.

CREATE FUNCTION referral.lifetime_value(program_id bigint,
                                        referrer_id bigint DEFAULT NULL,
                                        OUT customers bigint,
                                        OUT value bigint, OUT average bigint,
                                        OUT conversions bigint,
                                        OUT repeat_rate numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.program_row(program_id);

    SELECT count(*), coalesce(sum(t.value), 0), coalesce(sum(t.n), 0),
           referral.share(count(*) FILTER (WHERE t.n > 1), count(*))
        INTO customers, value, conversions, repeat_rate
        FROM (SELECT r.id, r.value,
                     (SELECT count(*) FROM referral.conversion c
                          WHERE c.referral_id = r.id) AS n
                  FROM referral.referral r
                  WHERE r.program_id = lifetime_value.program_id
                        AND r.converted_at IS NOT NULL AND r.credited
                        AND (lifetime_value.referrer_id IS NULL
                             OR r.referrer_id = lifetime_value.referrer_id)
             ) t;

    average := referral.round_money(referral.share(value, customers, 10));
END
$$;


-- Referrers with at least one click that counts, or a referral, in a month
-- (week, quarter); how many of them had one in the step before (kept), how
-- many of that step's had none (lost), and who came for the first time.

CREATE FUNCTION referral.referrer_retention(program_id bigint,
                                            from_day date DEFAULT NULL,
                                            until_day date DEFAULT NULL,
                                            step text DEFAULT 'month')
    RETURNS TABLE (day date, active bigint, kept bigint, lost bigint,
                   first_time bigint, retention numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    low   date;
    high  date;
    one   interval;
BEGIN
    IF step IS NULL OR step <> ALL ('{week,month,quarter}'::text[]) THEN
        RAISE EXCEPTION 'no step "%"', step
            USING ERRCODE = 'RF122', HINT = 'Steps: week, month, quarter.';
    END IF;

    SELECT p.low, p.high INTO low, high
        FROM referral.period(referrer_retention.program_id, from_day,
                             until_day) p;
    one := CASE step WHEN 'quarter' THEN interval '3 months'
                     ELSE ('1 ' || step)::interval END;

    RETURN QUERY
        WITH seen AS MATERIALIZED (
            SELECT DISTINCT
                   date_trunc(referrer_retention.step,
                              r.day::timestamp)::date AS day,
                   r.referrer_id
                FROM referral.rollup_referrer r
                WHERE r.program_id = referrer_retention.program_id
                      AND r.day <= high
                      AND (r.clicks > 0 OR r.created > 0)
        ), first_seen AS (
            SELECT s.referrer_id, min(s.day) AS day FROM seen s GROUP BY 1
        )
        SELECT d.day,
               (SELECT count(*) FROM seen s WHERE s.day = d.day),
               k.kept, b.before - k.kept,
               (SELECT count(*) FROM first_seen f WHERE f.day = d.day),
               referral.share(k.kept, b.before)
            FROM (SELECT generate_series(
                             date_trunc(referrer_retention.step,
                                        low::timestamp),
                             high::timestamp, one)::date AS day) d,
                 LATERAL (SELECT count(*) AS kept
                              FROM seen s JOIN seen e USING (referrer_id)
                              WHERE s.day = d.day
                                    AND e.day = (d.day - one)::date) k,
                 LATERAL (SELECT count(*) AS before FROM seen s
                              WHERE s.day = (d.day - one)::date) b
            ORDER BY 1;
END
$$;


-- 0 to 100: how good the referrals of a program, or of one referrer, turn out.
-- Of those decided (converted, or final, or older than the program's validity)
-- the share that was not rejected, declined or cancelled weighs 30, the share
-- that converted 50, and the share of their value that was not refunded 20.
-- Null while nothing is decided.

CREATE FUNCTION referral.quality_score(program_id bigint,
                                       referrer_id bigint DEFAULT NULL)
    RETURNS numeric
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p      referral.program := referral.program_row(program_id);
    score  numeric;
BEGIN
    SELECT round(30 * referral.share(count(*) FILTER (WHERE r.status NOT IN
                         ('rejected', 'declined', 'cancelled')), count(*), 10)
                 + 50 * referral.share(count(r.converted_at), count(*), 10)
                 + 20 * coalesce(referral.share(sum(v.sold - v.refunded),
                                                sum(v.sold), 10),
                                 CASE WHEN count(r.converted_at) > 0
                                      THEN 1 ELSE 0 END), 1)
        INTO score
        FROM referral.referral r,
             LATERAL (SELECT coalesce(sum(c.amount), 0) AS sold,
                             coalesce(sum(c.refunded), 0) AS refunded
                          FROM referral.conversion c
                          WHERE c.referral_id = r.id) v
        WHERE r.program_id = quality_score.program_id
              AND (quality_score.referrer_id IS NULL
                   OR r.referrer_id = quality_score.referrer_id)
              AND r.status <> 'superseded'
              AND (r.converted_at IS NOT NULL
                   OR r.status IN ('rejected', 'declined', 'cancelled',
                                   'expired')
                   OR r.created_at < now() - p.referral_validity);

    RETURN score;
END
$$;


-- What became of the rewards of a period, by kind and unit: earned = paid +
-- redeemed + expired + taken_back + left.  taken_back: after refunds, or
-- rejected; what is left can be pending, to be used, or owed (below zero).

CREATE FUNCTION referral.reward_outcomes(program_id bigint,
                                         from_day date DEFAULT NULL,
                                         until_day date DEFAULT NULL)
    RETURNS TABLE (beneficiary text, kind text, unit text, rewards bigint,
                   earned bigint, paid bigint, redeemed bigint, expired bigint,
                   taken_back bigint, remaining bigint, used_rate numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    zone  text := (referral.program_row(reward_outcomes.program_id)).time_zone;
    low   date;
    high  date;
BEGIN
    SELECT p.low, p.high INTO low, high
        FROM referral.period(reward_outcomes.program_id, from_day,
                             until_day) p;

    RETURN QUERY
        SELECT t.beneficiary, t.kind, t.unit, t.rewards, t.earned, t.paid,
               t.redeemed, t.expired, t.taken_back,
               t.earned - t.paid - t.redeemed - t.expired - t.taken_back,
               referral.share(t.paid + t.redeemed, t.earned)
            FROM (SELECT w.beneficiary, w.kind, w.unit, count(*) AS rewards,
                         sum(w.amount)::bigint AS earned,
                         coalesce(sum(e.paid), 0)::bigint AS paid,
                         coalesce(sum(e.redeemed), 0)::bigint AS redeemed,
                         sum(w.expired)::bigint AS expired,
                         sum(w.reversed + w.returned)::bigint AS taken_back
                      FROM referral.reward w,
                           LATERAL (SELECT sum(n.amount) FILTER (WHERE
                                               a.kind = 'paid') AS paid,
                                           sum(n.amount) FILTER (WHERE
                                               a.kind = 'redeemed') AS redeemed
                                        FROM referral.entry n
                                             JOIN referral.account a
                                                 ON a.id = n.account_id
                                        WHERE n.reward_id = w.id) e
                      WHERE w.program_id = reward_outcomes.program_id
                            AND w.earned_at
                                >= referral.day_begins(low, zone)
                            AND w.earned_at
                                < referral.day_begins(high + 1, zone)
                      GROUP BY 1, 2, 3) t
            ORDER BY 1 DESC, 2, 3;
END
$$;


-- How accurate rewards and payouts of a period are.  correct: the rule, which
-- is computed again, gives what was given, and the ledger has it.  paid: what
-- of them was paid out, in the program's currency; overpaid: what of that is
-- owed back after refunds.

CREATE FUNCTION referral.payout_accuracy(program_id bigint,
                                         from_day date DEFAULT NULL,
                                         until_day date DEFAULT NULL,
                                         OUT rewards bigint,
                                         OUT correct bigint,
                                         OUT accuracy numeric,
                                         OUT paid bigint,
                                         OUT overpaid bigint,
                                         OUT paid_accuracy numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p     referral.program := referral.program_row(program_id);
    low   date;
    high  date;
BEGIN
    SELECT q.low, q.high INTO low, high
        FROM referral.period(p.id, from_day, until_day) q;

    SELECT count(*),
           count(*) FILTER (WHERE v.amount = w.uncapped
                                  AND e.given = w.amount),
           coalesce(sum(e.paid) FILTER (WHERE w.unit = p.currency), 0),
           coalesce(sum(least(e.paid, w.reversed))
                        FILTER (WHERE w.unit = p.currency), 0)
        INTO rewards, correct, paid, overpaid
        FROM referral.reward w
             JOIN referral.reward_rule u ON u.id = w.rule_id,
             LATERAL referral.reward_amount(u, w.nth,
                 (w.earned_at AT TIME ZONE p.time_zone)::date, w.base_amount,
                 w.rate_bp) v,
             LATERAL (SELECT coalesce(sum(n.amount) FILTER (WHERE
                                 a.kind = 'paid'), 0) AS paid,
                             sum(n.amount) FILTER (WHERE t.kind = 'reward'
                                 AND a.kind <> 'expense') AS given
                          FROM referral.entry n
                               JOIN referral.account a ON a.id = n.account_id
                               JOIN referral.transfer t
                                   ON t.id = n.transfer_id
                          WHERE n.reward_id = w.id) e
        WHERE w.program_id = p.id
              AND w.earned_at >= referral.day_begins(low, p.time_zone)
              AND w.earned_at < referral.day_begins(high + 1, p.time_zone);

    accuracy := referral.share(correct, rewards);
    paid_accuracy := referral.share(paid - overpaid, paid);
END
$$;


-- All that a program's dashboard shows, in one call: the same as the functions
-- above say, from one pass over the rollups.

CREATE FUNCTION referral.program_dashboard(program_id bigint,
                                           from_day date DEFAULT NULL,
                                           until_day date DEFAULT NULL)
    RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f       record;
    result  jsonb;
BEGIN
    SELECT * INTO f
        FROM referral.program_figures(program_dashboard.program_id, from_day,
                                      until_day);

    WITH sums AS MATERIALIZED (
        SELECT grouping(r.day, r.source, r.campaign, r.country, r.variant_id)
                   AS lacks,
               r.day, r.source, r.campaign, r.country, v.name AS variant,
               sum(r.shared)::bigint AS shared,
               sum(r.clicks)::bigint AS clicks,
               sum(r.noise)::bigint AS noise,
               sum(r.created)::bigint AS created,
               sum(r.registered)::bigint AS registered,
               sum(r.converted)::bigint AS converted,
               sum(r.conversions)::bigint AS conversions,
               sum(r.revenue)::bigint AS revenue,
               sum(r.refunds)::bigint AS refunds,
               sum(r.cost)::bigint AS cost
            FROM referral.rollup r
                 LEFT JOIN referral.program_variant v ON v.id = r.variant_id
            WHERE r.program_id = program_dashboard.program_id
                  AND r.day BETWEEN f.first_day AND f.last_day
            GROUP BY GROUPING SETS ((r.day), (r.source), (r.campaign),
                                    (r.country), (r.variant_id, v.name))
    ), part AS (
        SELECT CASE s.lacks WHEN 23 THEN 'sources' WHEN 27 THEN 'campaigns'
                            WHEN 29 THEN 'countries' ELSE 'variants' END
                   AS part,
               row_number() OVER (PARTITION BY s.lacks
                                  ORDER BY s.clicks DESC, s.created DESC,
                                  coalesce(s.source, s.campaign, s.country,
                                           s.variant)) AS place,
               jsonb_build_object(
                   'name', coalesce(s.source, s.campaign, s.country,
                                    s.variant),
                   'clicks', s.clicks, 'noise', s.noise,
                   'created', s.created, 'registered', s.registered,
                   'converted', s.converted, 'revenue', s.revenue,
                   'refunds', s.refunds, 'cost', s.cost,
                   'conversion_rate', referral.share(s.converted, s.clicks))
                   AS line
            FROM sums s
            WHERE s.lacks <> 15
    )
    SELECT '{"sources": [], "campaigns": [], "countries": [],'
           ' "variants": []}'::jsonb
           || coalesce((SELECT jsonb_object_agg(p.part, p.lines)
                            FROM (SELECT part.part,
                                         jsonb_agg(line ORDER BY place)
                                             AS lines
                                      FROM part
                                      WHERE place <= 20
                                      GROUP BY 1) p), '{}')
           || jsonb_build_object('trend', (
                  SELECT jsonb_agg(jsonb_build_object(
                             'day', d.day,
                             'shared', coalesce(s.shared, 0),
                             'clicks', coalesce(s.clicks, 0),
                             'noise', coalesce(s.noise, 0),
                             'visitors', coalesce(u.visitors, 0),
                             'created', coalesce(s.created, 0),
                             'registered', coalesce(s.registered, 0),
                             'converted', coalesce(s.converted, 0),
                             'conversions', coalesce(s.conversions, 0),
                             'revenue', coalesce(s.revenue, 0),
                             'refunds', coalesce(s.refunds, 0),
                             'cost', coalesce(s.cost, 0)) ORDER BY d.day)
                      FROM (SELECT f.first_day + n AS day
                                FROM generate_series(0, f.last_day
                                                        - f.first_day) n) d
                           LEFT JOIN sums s ON s.lacks = 15 AND s.day = d.day
                           LEFT JOIN referral.rollup_unique u
                               ON u.program_id = program_dashboard.program_id
                                  AND u.day = d.day))
        INTO result;

    RETURN jsonb_build_object(
               'program_id', program_dashboard.program_id,
               'figures', to_jsonb(f),
               'funnel', (SELECT jsonb_agg(to_jsonb(s))
                              FROM referral.funnel_steps(f.shared, f.clicks,
                                       f.created, f.registered, f.converted)
                                   s),
               'top_referrers', (SELECT coalesce(jsonb_agg(to_jsonb(l)), '[]')
                                     FROM referral.leaderboard(
                                              program_dashboard.program_id,
                                              'converted', f.first_day,
                                              f.last_day, 10) l))
           || result;
END
$$;


-- All that a partner's own page shows: codes with their clicks and uses,
-- referrals by status, figures of the period, balances, the last rewards.

CREATE FUNCTION referral.partner_page(referrer_id bigint,
                                      from_day date DEFAULT NULL,
                                      until_day date DEFAULT NULL)
    RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f     referral.referrer;
    zone  text;
    low   date;
    high  date;
BEGIN
    SELECT r.* INTO f
        FROM referral.referrer r
        WHERE r.id = partner_page.referrer_id
              AND (referral.organisation_scope() IS NULL
                   OR r.organisation_id = referral.organisation_scope());

    IF f.id IS NULL THEN
        RAISE EXCEPTION 'no referrer %',
                        coalesce(partner_page.referrer_id::text, '(null)')
            USING ERRCODE = 'RF123',
                  HINT = 'It does not exist, or belongs to somebody else.';
    END IF;

    SELECT o.time_zone INTO zone FROM referral.organisation o
        WHERE o.id = f.organisation_id;
    high := coalesce(until_day, (now() AT TIME ZONE zone)::date);
    low := coalesce(from_day, high - 29);

    RETURN jsonb_build_object(
        'referrer_id', f.id,
        'status', f.status,
        'first_day', low,
        'last_day', high,
        'codes', (
            SELECT coalesce(jsonb_agg(to_jsonb(t) ORDER BY t.clicks DESC,
                                      t.code), '[]')
                FROM (SELECT c.code, c.program_id, c.campaign, c.status,
                             c.expires_at, c.uses, c.max_uses,
                             (SELECT coalesce(sum(n.n), 0)::bigint
                                  FROM referral.counters n
                                  WHERE n.code = c.code COLLATE "default"
                                        AND n.type = 'click'
                                        AND n.verdict = 'valid'
                                        AND n.kind IN ('person', 'unknown'))
                                 AS clicks
                          FROM referral.code c
                          WHERE c.referrer_id = f.id
                          ORDER BY c.id DESC LIMIT 100) t),
        'referrals', (
            SELECT coalesce(jsonb_object_agg(t.status, t.n), '{}')
                FROM (SELECT r.status, count(*) AS n
                          FROM referral.referral r
                          WHERE r.referrer_id = f.id GROUP BY 1) t),
        'figures', (
            SELECT to_jsonb(t)
                FROM (SELECT coalesce(sum(r.clicks), 0) AS clicks,
                             coalesce(sum(r.created), 0) AS created,
                             coalesce(sum(r.registered), 0) AS registered,
                             coalesce(sum(r.converted), 0) AS converted,
                             coalesce(sum(r.conversions), 0) AS conversions,
                             referral.share(sum(r.converted), sum(r.clicks))
                                 AS conversion_rate
                          FROM referral.rollup_referrer r
                          WHERE r.referrer_id = f.id
                                AND r.day BETWEEN low AND high) t),
        'trend', (
            SELECT coalesce(jsonb_agg(to_jsonb(t) ORDER BY t.day), '[]')
                FROM (SELECT r.day, sum(r.clicks) AS clicks,
                             sum(r.created) AS created,
                             sum(r.converted) AS converted
                          FROM referral.rollup_referrer r
                          WHERE r.referrer_id = f.id
                                AND r.day BETWEEN low AND high
                          GROUP BY 1) t),
        'earnings', (
            SELECT coalesce(jsonb_agg(to_jsonb(t) ORDER BY t.unit), '[]')
                FROM (SELECT w.unit, count(*) AS rewards,
                             sum(w.net) FILTER (WHERE
                                 w.status IN ('pending', 'held')) AS pending,
                             sum(w.net) FILTER (WHERE
                                 w.status = 'approved') AS approved,
                             sum(w.net) FILTER (WHERE
                                 w.status IN ('paid', 'redeemed')) AS paid
                          FROM (SELECT r.*, greatest(r.amount - r.reversed
                                               - r.returned - r.expired, 0)
                                           AS net
                                    FROM referral.reward r) w
                          WHERE w.referrer_id = f.id
                                AND w.beneficiary = 'referrer'
                          GROUP BY 1) t),
        'balances', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                       'kind', a.kind, 'unit', a.unit,
                       'balance', referral.account_balance(a.id))
                       ORDER BY a.unit, a.kind), '[]')
                FROM referral.account a
                WHERE a.referrer_id = f.id AND a.owed),
        'rewards', (
            SELECT coalesce(jsonb_agg(to_jsonb(t) ORDER BY t.id DESC), '[]')
                FROM (SELECT w.id, w.kind, w.unit, w.amount, w.reversed,
                             w.status, w.earned_at, w.valid_until
                          FROM referral.reward w
                          WHERE w.referrer_id = f.id
                                AND w.beneficiary = 'referrer'
                          ORDER BY w.id DESC LIMIT 20) t));
END
$$;


-- The same for a partner: its own page, and no other.

CREATE FUNCTION referral.my_page(from_day date DEFAULT NULL,
                                 until_day date DEFAULT NULL) RETURNS jsonb
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN referral.partner_page(referral.current_referrer(), from_day,
                                 until_day);

REVOKE ALL ON FUNCTION referral.my_page(date, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.my_page(date, date) TO referral_partner;


DO $$
DECLARE
    f  regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid::regprocedure FROM pg_proc p
            WHERE p.pronamespace = 'referral'::regnamespace
                  AND p.proname IN ('program_figures', 'funnel', 'trend',
                      'breakdown', 'leaderboard', 'time_to_conversion',
                      'cohorts', 'lifetime_value', 'referrer_retention',
                      'quality_score', 'reward_outcomes', 'payout_accuracy',
                      'program_dashboard', 'partner_page')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO referral_app,'
                       ' referral_analyst', f);
    END LOOP;
END
$$;

INSERT INTO referral.schema_migration (version, name) VALUES (29, 'report');

COMMIT;
