-- Copyright (C) The nginx referral module authors
--
-- Rollups and figures, compared with what is counted from the rows.

BEGIN;

SELECT no_plan();

CREATE FUNCTION pg_temp.id(key text) RETURNS bigint LANGUAGE sql
    AS $$ SELECT current_setting('t.' || key)::bigint $$;
CREATE FUNCTION pg_temp.keep(key text, id bigint) RETURNS bigint LANGUAGE sql
    AS $$ SELECT set_config('t.' || key, id::text, true)::bigint $$;

-- a click as the worker writes it: the row and its counter

CREATE FUNCTION pg_temp.click(at timestamptz, code text,
                              verdict text DEFAULT 'valid',
                              kind text DEFAULT 'unknown',
                              signals text[] DEFAULT NULL,
                              country text DEFAULT 'DE',
                              source text DEFAULT 'mail',
                              agent text DEFAULT 'x',
                              known boolean DEFAULT true) RETURNS uuid
    LANGUAGE plpgsql AS $$
DECLARE
    id  uuid := (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
                 || '7' || substr(gen_random_uuid()::text, 16))::uuid;
    c   referral.code;
BEGIN
    SELECT * INTO c FROM referral.code k WHERE k.code = click.code AND known;
    PERFORM referral.partition_ensure((at AT TIME ZONE 'UTC')::date);
    INSERT INTO referral.interaction (id, occurred_at, stream, seq, type,
                                      verdict, via, kind, code, program_id,
                                      referrer_id, country, source, ip,
                                      user_agent, signals)
        VALUES (id, referral.uuid_time(id), 1, 1, 'click', verdict,
                'redirect', kind, code, c.program_id, c.referrer_id, country,
                source, '192.0.2.0/24', agent, signals);
    INSERT INTO referral.counter_delta (program_id, referrer_id, code, day,
                                        type, verdict, kind, n)
        VALUES (c.program_id, c.referrer_id, code,
                (at AT TIME ZONE 'UTC')::date, 'click', verdict, kind, 1);
    RETURN id;
END $$;

SELECT pg_temp.keep('o', referral.organisation_create('o', 'O')) \g /dev/null
SELECT pg_temp.keep('la', referral.program_create(pg_temp.id('o'), 'la', 'LA',
           '{"landing_url": "https://example.com/",'
           ' "time_zone": "America/Los_Angeles"}')) \g /dev/null
SELECT pg_temp.keep('kt', referral.program_create(pg_temp.id('o'), 'kt', 'KT',
           '{"landing_url": "https://example.com/",'
           ' "time_zone": "Asia/Kathmandu"}')) \g /dev/null
SELECT referral.program_set_status(pg_temp.id('la'), 'active'),
       referral.program_set_status(pg_temp.id('kt'), 'active') \g /dev/null
SELECT pg_temp.keep('anna', referral.referrer_create(pg_temp.id('o'),
           'customer', '{"external_id": "anna"}')) \g /dev/null
SELECT pg_temp.keep('ben', referral.referrer_create(pg_temp.id('o'),
           'customer', '{"external_id": "ben"}')) \g /dev/null
SELECT referral.code_create(pg_temp.id('la'), pg_temp.id('anna'), 'LA-ANNA',
                            '{"campaign": "spring"}'),
       referral.code_create(pg_temp.id('la'), pg_temp.id('ben'), 'LA-BEN'),
       referral.code_create(pg_temp.id('kt'), pg_temp.id('anna'), 'KT-ANNA')
    \g /dev/null

-- a day of the program is not a day of UTC

SELECT set_config('t.day', ((now() AT TIME ZONE 'UTC')::date - 10)::text, true)
    \g /dev/null
CREATE FUNCTION pg_temp.at(hours numeric) RETURNS timestamptz LANGUAGE sql
    AS $$ SELECT (current_setting('t.day')::date::timestamp AT TIME ZONE 'UTC')
                 + hours * interval '1 hour' $$;
CREATE FUNCTION pg_temp.day(days int DEFAULT 0) RETURNS date LANGUAGE sql
    AS $$ SELECT current_setting('t.day')::date + days $$;

SELECT pg_temp.click(pg_temp.at(1), 'LA-ANNA', agent => 'a'),
       pg_temp.click(pg_temp.at(12), 'LA-ANNA', agent => 'a'),
       pg_temp.click(pg_temp.at(12.1), 'LA-ANNA', agent => 'a'),
       pg_temp.click(pg_temp.at(13), 'LA-BEN', agent => 'b', country => 'US'),
       pg_temp.click(pg_temp.at(25), 'LA-BEN', agent => 'c', source => NULL),
       pg_temp.click(pg_temp.at(12), 'KT-ANNA'),
       pg_temp.click(pg_temp.at(19), 'KT-ANNA') \g /dev/null

-- what does not count

SELECT pg_temp.click(pg_temp.at(13), 'LA-BEN', 'valid', 'preview'),
       pg_temp.click(pg_temp.at(13), 'LA-BEN', 'valid', 'unknown', '{head}'),
       pg_temp.click(pg_temp.at(13), 'LA-BEN', 'valid', 'person',
                     '{gpc,duplicate}'),
       pg_temp.click(pg_temp.at(13), 'LA-BEN', 'expired'),
       pg_temp.click(pg_temp.at(13), 'NO-SUCH', 'unknown') \g /dev/null

-- and what the edge could not judge, but we can

SELECT pg_temp.click(pg_temp.at(14), 'LA-BEN', 'unverified', agent => 'd',
                     known => false) \g /dev/null

SELECT is(referral.counter_fold(), 13::bigint, 'counters are folded');
SELECT cmp_ok(referral.rollup_refresh('1 minute', '0'), '>', 3::bigint,
              'days are computed');
SELECT is(referral.rollup_refresh('1 minute', '0'), 0::bigint,
          'and nothing is left');

SELECT results_eq(
    $$ SELECT day, clicks, noise, visitors
           FROM referral.trend(pg_temp.id('la'), pg_temp.day(-1),
                               pg_temp.day(1)) $$,
    $$ VALUES (pg_temp.day(-1), 1::bigint, 0::bigint, 1::bigint),
              (pg_temp.day(0), 5, 4, 4), (pg_temp.day(1), 0, 0, 0) $$,
    'days of Los Angeles');
SELECT results_eq(
    $$ SELECT day, clicks
           FROM referral.trend(pg_temp.id('kt'), pg_temp.day(-1),
                               pg_temp.day(1)) $$,
    $$ VALUES (pg_temp.day(-1), 0::bigint), (pg_temp.day(0), 1),
              (pg_temp.day(1), 1) $$, 'and of Kathmandu');

SELECT results_eq(
    $$ SELECT name, clicks, noise
           FROM referral.breakdown(pg_temp.id('la'), 'campaign',
                                   pg_temp.day(-1), pg_temp.day(1)) $$,
    $$ VALUES ('spring', 3::bigint, 0::bigint), (NULL, 3, 4) $$,
    'by campaign');
SELECT results_eq(
    $$ SELECT name, clicks
           FROM referral.breakdown(pg_temp.id('la'), 'country',
                                   pg_temp.day(-1), pg_temp.day(1)) $$,
    $$ VALUES ('DE', 5::bigint), ('US', 1) $$, 'by country');
SELECT results_eq(
    $$ SELECT name, clicks
           FROM referral.breakdown(pg_temp.id('la'), 'source',
                                   pg_temp.day(-1), pg_temp.day(1)) $$,
    $$ VALUES ('mail', 5::bigint), (NULL, 1) $$, 'by source');
SELECT results_eq(
    $$ SELECT rank, external_id, clicks
           FROM referral.leaderboard(pg_temp.id('la'), 'clicks',
                                     pg_temp.day(-1), pg_temp.day(1)) $$,
    $$ VALUES (1::bigint, 'anna', 3::bigint), (1, 'ben', 3) $$,
    'the same figure, the same rank');

-- late clicks: the day is computed again, nothing is counted twice

SELECT pg_temp.click(pg_temp.at(15), 'LA-ANNA', agent => 'e') \g /dev/null
SELECT referral.counter_fold(), referral.rollup_refresh('1 minute', '0')
    \g /dev/null
SELECT is((referral.program_figures(pg_temp.id('la'), pg_temp.day(-1),
                                    pg_temp.day(1))).clicks, 7::bigint,
          'a late click is one more');
SELECT referral.rollup_again(pg_temp.day(-2)),
       referral.rollup_refresh('1 minute', '0') \g /dev/null
SELECT is((referral.program_figures(pg_temp.id('la'), pg_temp.day(-1),
                                    pg_temp.day(1))).clicks, 7::bigint,
          'computing everything again changes nothing');

-- pausing: a day that was computed a moment ago waits

SELECT pg_temp.click(pg_temp.at(16), 'LA-ANNA', agent => 'e') \g /dev/null
SELECT referral.counter_fold() \g /dev/null
SELECT is(referral.rollup_refresh('1 minute', '1 hour'), 0::bigint,
          'computed a moment ago');
SELECT is((referral.program_figures(pg_temp.id('la'), pg_temp.day(-1),
                                    pg_temp.day(1))).clicks, 7::bigint,
          'so it waits');
SELECT referral.rollup_refresh('1 minute', '0') \g /dev/null
SELECT is((referral.program_figures(pg_temp.id('la'), pg_temp.day(-1),
                                    pg_temp.day(1))).clicks, 8::bigint,
          'and is not forgotten');

-- another time zone, other days

SELECT referral.program_update(pg_temp.id('la'),
                               '{"time_zone": "UTC"}') \g /dev/null
SELECT referral.rollup_refresh('1 minute', '0') \g /dev/null
SELECT results_eq(
    $$ SELECT day, clicks
           FROM referral.trend(pg_temp.id('la'), pg_temp.day(-1),
                               pg_temp.day(1)) $$,
    $$ VALUES (pg_temp.day(-1), 0::bigint), (pg_temp.day(0), 7),
              (pg_temp.day(1), 1) $$, 'the days of another time zone');

-- steps

SELECT results_eq(
    $$ SELECT day, clicks
           FROM referral.trend(pg_temp.id('la'), '2024-02-10', '2024-04-02',
                               'month') $$,
    $$ VALUES (DATE '2024-02-01', 0::bigint), ('2024-03-01', 0),
              ('2024-04-01', 0) $$, 'months, none left out');
SELECT throws_ok(
    $$ SELECT referral.trend(pg_temp.id('la'), step => 'hour') $$, 'RF122',
    NULL, 'no such step');
SELECT throws_ok(
    $$ SELECT referral.funnel(pg_temp.id('la'), '2026-01-02', '2026-01-01') $$,
    'RF121', NULL, 'a period that ends before it begins');
SELECT throws_ok($$ SELECT referral.program_figures(0) $$, NULL, NULL,
                 'no such program');
SELECT throws_ok(
    $$ SELECT * FROM referral.breakdown(pg_temp.id('la'), 'colour') $$,
    'RF122', NULL, 'no such breakdown');
SELECT throws_ok(
    $$ SELECT * FROM referral.leaderboard(pg_temp.id('la'), 'charm') $$,
    'RF122', NULL, 'no such leaderboard');

-- costs

SELECT is(referral.program_cost_record(pg_temp.id('la'), pg_temp.day(), 5000,
                                       'ad 1'),
          referral.program_cost_record(pg_temp.id('la'), pg_temp.day(), 5000,
                                       'ad 1'), 'a cost is recorded once');
SELECT throws_ok(
    $$ SELECT referral.program_cost_record(pg_temp.id('la'), pg_temp.day(),
                                           6000, 'ad 1') $$,
    'RF120', NULL, 'and not with another amount');

-- the ledger's part: two referrals of one click each, one conversion of 100,
-- 40 of it refunded, a reward of 10 percent

SELECT referral.reward_rules_set(pg_temp.id('la'),
    '[{"slot": "share", "kind": "cash", "rate_bp": 1000}]') \g /dev/null
SELECT set_config('t.today', (now() AT TIME ZONE 'UTC')::date::text, true)
    \g /dev/null
SELECT referral.referral_create(pg_temp.id('la'),
           '{"code": "LA-ANNA", "external_id": "u1", "source": "sms"}'),
       referral.referral_create(pg_temp.id('la'),
           '{"code": "LA-BEN", "external_id": "u2"}') \g /dev/null
SELECT referral.conversion_record(pg_temp.id('o'), jsonb_build_object(
           'program_id', pg_temp.id('la'), 'external_id', 'u1',
           'order_ref', 'A1', 'amount', 10000, 'currency', 'USD'))
    \g /dev/null
SELECT referral.refund_record(pg_temp.id('o'), jsonb_build_object(
           'order_ref', 'A1', 'refund_ref', 'F1', 'amount', 4000))
    \g /dev/null
SELECT referral.rollup_refresh('1 minute', '0') \g /dev/null

SELECT results_eq(
    $$ SELECT created, converted, conversions, revenue, refunds, net, cost
           FROM referral.program_figures(pg_temp.id('la'),
                    current_setting('t.today')::date,
                    current_setting('t.today')::date) $$,
    $$ VALUES (2::bigint, 1::bigint, 1::bigint, 10000::bigint, 4000::bigint,
               6000::bigint, 600::bigint) $$, 'money of the day');
SELECT results_eq(
    $$ SELECT name, created, converted, revenue, refunds
           FROM referral.breakdown(pg_temp.id('la'), 'source',
                    current_setting('t.today')::date,
                    current_setting('t.today')::date) WHERE name = 'sms' $$,
    $$ VALUES ('sms', 1::bigint, 1::bigint, 10000::bigint, 4000::bigint) $$,
    'by the source of the referral');
SELECT results_eq(
    $$ SELECT rank, external_id, converted, revenue, earned
           FROM referral.leaderboard(pg_temp.id('la'), 'earned',
                    current_setting('t.today')::date,
                    current_setting('t.today')::date) $$,
    $$ VALUES (1::bigint, 'anna', 1::bigint, 6000::bigint, 600::bigint) $$,
    'who earned most');
SELECT is(referral.lifetime_value(pg_temp.id('la'))::text,
          '(1,6000,6000,1,0.0000)', 'lifetime value');
SELECT is((referral.time_to_conversion(pg_temp.id('la'))).converted, 1::bigint,
          'time to conversion');
SELECT is((SELECT sum(c.created) || ' ' || sum(c.converted) || ' '
                  || sum(c.net)
               FROM referral.cohorts(pg_temp.id('la')) c), '2 1 6000',
          'cohorts');
SELECT is(referral.quality_score(pg_temp.id('la')), 92.0,
          'quality: all kept 30, all decided converted 50, 60 % kept 12');
SELECT is((SELECT active || ' ' || first_time
               FROM referral.referrer_retention(pg_temp.id('la'),
                        pg_temp.day(-40), current_setting('t.today')::date)
               ORDER BY active DESC, day LIMIT 1), '2 2', 'referrers stay');

-- return on what was spent

SELECT results_eq(
    $$ SELECT spend, cost_per_acquisition, roi
           FROM referral.program_figures(pg_temp.id('la'), pg_temp.day(),
                    current_setting('t.today')::date) $$,
    $$ VALUES (5000::bigint, 5600::bigint, 0.0714) $$, 'return on investment');

-- pages

SELECT is(referral.program_dashboard(pg_temp.id('la'), pg_temp.day(-1),
              current_setting('t.today')::date) #>> '{figures,clicks}', '8',
          'the dashboard');
-- the dashboard is made in one pass, and says what the functions say

SELECT is(d -> 'funnel', (SELECT jsonb_agg(to_jsonb(f)) FROM referral.funnel(
              pg_temp.id('la'), pg_temp.day(-1),
              current_setting('t.today')::date) f), 'its funnel'),
       is(d -> 'trend', (SELECT jsonb_agg(to_jsonb(f)) FROM referral.trend(
              pg_temp.id('la'), pg_temp.day(-1),
              current_setting('t.today')::date) f), 'its trend'),
       is(d -> 'sources', (SELECT jsonb_agg(to_jsonb(f)) FROM
              referral.breakdown(pg_temp.id('la'), 'source', pg_temp.day(-1),
              current_setting('t.today')::date) f), 'its sources'),
       is(d -> 'campaigns', (SELECT jsonb_agg(to_jsonb(f)) FROM
              referral.breakdown(pg_temp.id('la'), 'campaign',
              pg_temp.day(-1), current_setting('t.today')::date) f),
          'its campaigns'),
       is(d -> 'countries', (SELECT jsonb_agg(to_jsonb(f)) FROM
              referral.breakdown(pg_temp.id('la'), 'country', pg_temp.day(-1),
              current_setting('t.today')::date) f), 'its countries'),
       is(d -> 'variants', (SELECT jsonb_agg(to_jsonb(f)) FROM
              referral.breakdown(pg_temp.id('la'), 'variant', pg_temp.day(-1),
              current_setting('t.today')::date) f), 'its variants')
    FROM referral.program_dashboard(pg_temp.id('la'), pg_temp.day(-1),
             current_setting('t.today')::date) d;
SELECT is(referral.partner_page(pg_temp.id('anna')) #>> '{earnings,0,approved}',
          '600', 'the page of a partner');
SELECT throws_ok($$ SELECT referral.partner_page(0) $$, 'RF123', NULL,
                 'no such partner');

SELECT set_config('referral.referrer', current_setting('t.ben'), true)
    \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT is(referral.my_page() ->> 'referrer_id', current_setting('t.ben'),
          'a partner reads its own page');
SELECT throws_ok($$ SELECT referral.partner_page(pg_temp.id('anna')) $$,
                 '42501', NULL, 'and not by number');
RESET ROLE;

SELECT set_config('referral.organisation', (SELECT
           referral.organisation_create('other', 'Other'))::text, true)
    \g /dev/null
SELECT throws_ok($$ SELECT referral.program_dashboard(pg_temp.id('la')) $$,
                 NULL, NULL, 'another organisation reads nothing');
SELECT throws_ok($$ SELECT referral.partner_page(pg_temp.id('anna')) $$,
                 'RF123', NULL, 'nor a page of a partner');

-- where the hour after midnight comes twice, and what was taken back in part

SELECT set_config('referral.organisation', '', true) \g /dev/null
SELECT pg_temp.keep('az', referral.program_create(pg_temp.id('o'), 'az', 'AZ',
           '{"landing_url": "https://example.com/",'
           ' "time_zone": "Atlantic/Azores"}')) \g /dev/null
SELECT referral.reward_rules_set(pg_temp.id('az'),
           '[{"kind": "cash", "rate_bp": 1000, "times": null}]'),
       referral.program_set_status(pg_temp.id('az'), 'active'),
       referral.code_create(pg_temp.id('az'), pg_temp.id('ben'), 'AZ-BEN')
    \g /dev/null
SELECT referral.conversion_record(pg_temp.id('o'), jsonb_build_object(
           'order_ref', 'az' || n, 'external_id', 'az' || n,
           'code', 'AZ-BEN', 'amount', (10 ^ n)::bigint * 100,
           'occurred_at', '2025-10-25 22:10Z'::timestamptz
                          + n * interval '50 minutes'))
    FROM generate_series(0, 5) n \g /dev/null
SELECT referral.payout_request(pg_temp.id('ben'), '{"amount": 40}'),
       referral.reward_cancel(w.id, 'no') FROM referral.reward w
    WHERE w.program_id = pg_temp.id('az') AND w.amount = 100 \g /dev/null
SELECT referral.rollup_refresh('1 minute', '0') \g /dev/null
SELECT results_eq(
    $$ SELECT r.day, sum(r.revenue)::bigint, sum(r.cost)::bigint
           FROM referral.rollup r
           WHERE r.program_id = pg_temp.id('az') AND r.conversions > 0
           GROUP BY 1 ORDER BY 1 $$,
    $$ SELECT (c.occurred_at AT TIME ZONE 'Atlantic/Azores')::date,
              sum(c.amount)::bigint, sum(-x.spent)::bigint
           FROM referral.conversion c,
                LATERAL (SELECT sum(e.amount) AS spent
                             FROM referral.reward w
                                  JOIN referral.entry e ON e.reward_id = w.id
                                  JOIN referral.account a
                                      ON a.id = e.account_id
                             WHERE w.conversion_id = c.id
                                   AND a.kind = 'expense') x
           WHERE c.program_id = pg_temp.id('az')
           GROUP BY 1 ORDER BY 1 $$, 'each hour is of its day');

SELECT * FROM finish();
ROLLBACK;
