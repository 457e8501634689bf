-- Copyright (C) The nginx referral module authors
--
-- Education: students refer students (the second of the five specifications,
-- "Referral Program Management").
--
-- requirement -> test
--   types student, parent, affiliate, partner      -> "types"
--   percentage, fixed amount, course credits, discount, merchandise
--                                                  -> "rewards: ..."
--   duration, eligibility, terms             -> "early", "ended", "terms",
--                                               "rule: active students"
--   tiers, bonus for several, seasonal, per course, referrer and referee
--                                                  -> "tier", "bonus",
--                                                     "season", "course"
--   templates, cloning and modification; pre-built ones with their reward
--     structure, to be customized                  -> "template: ..."
--   best practice recommendations                  -> outside: documentation
--   automatic and custom codes                     -> "codes"
--   QR codes           -> "happy path: a QR code", and the edge, which marks
--                         scans
--   link tracking, several channels                -> "edge case: channels"
--   journey, milestones, time to conversion        -> "journey: ..."
--   quality score; 80 % of referrals are good      -> "figures: quality"
--   conversion rates, cost per acquisition, ROI    -> "figures: program"
--   top referrers, scorecards, leaderboards, success rates
--                                                  -> "figures: leaderboard",
--                                                     "figures: scorecard"
--   sources, volume trends, seasons                -> "figures: sources",
--                                                     "figures: trend"
--   redemption patterns                            -> "figures: redemption"
--   referrer lifetime value                        -> "figures: lifetime"
--   programs compared                              -> "figures: programs"
--   first, last, multi-touch attribution           -> "attribution: ..."
--   conflict resolution                            -> "edge case: several"
--   manual override                                -> "attribution: by hand"
--   attribution reporting                          -> "attribution: shares"
--   automatic calculation, scheduling, approval    -> "rule: approval",
--                                                     "schedule"
--   a fee is given back after its reward was paid  -> "refunded"
--   payment of cash                  -> outside: hook is payout.approved,
--                                                     "payment"
--   course credit, redemption, expiry, transfer, statements
--                                                  -> "credit: ..."
--   notifications, reminders         -> outside: hooks are events, "events"
--   milestone celebrations           -> outside: hook is the event of a bonus,
--                                       "milestone"
--   CRM, lead source, contacts       -> outside: hooks are events and views
--   onboarding, training, community, campaigns     -> outside: portal
--   Rule: referrers are active students or alumni  -> "rule: active students"
--   Rule: at most 500 USD per referral             -> "rule: 500"
--   Rule: valid for 90 days after sharing          -> "rule: 90 days"
--   Rule: one reward per unique referee            -> "rule: one reward"
--   Rule: above 100 USD manual approval            -> "rule: approval"
--   Rule: at most 5 active programs                -> "rule: five programs"
--   happy path                                     -> "happy path: ..."
--   Edge cases: several channels, expired code, several referrals for one
--     prospect, ineligible referrer, promotional discount
--                                                  -> "edge case: ..."
--   Errors: gateway fails                          -> "error: gateway"
--     tracking unavailable           -> t/redis.t: the edge fails open
--     notification fails                           -> "error: notification"
--     code conflict                                -> "error: code conflict"
--     late synchronization           -> "error: late" (the same twice)
--   data model: pending converted rewarded expired; rewards pending approved
--     paid cancelled                               -> "words: ..."
--   attribution 500 ms, reward 1 s, code 100 ms    -> make bench-sql
--   1000 at once                     -> t/money_races.t
--   5 years' retention               -> worker's retention_interactions
--   a student is forgotten                         -> "erasure"
--   encryption, PCI, OAuth           -> outside: TLS and disks
--   access by role, audit            -> t/sql/schema.sql, "audit"
--   fraud                                          -> "fraud"

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('school', 'School',
           '{"settings": {"calling_code": "1"}}') AS org \gset
SELECT set_config('t.org', :'org', true) \g /dev/null

-- templates and types

SELECT referral.program_create(:org, 'student-template', 'Students',
           '{"type": "student", "template": true,
             "landing_url": "https://school.example/enrol",
             "eligibility": {"types": ["student", "alumni"],
                             "attributes": {"enrolled": true}},
             "terms": "Be kind.", "description": "Bring a friend"}')
           AS template \gset
SELECT referral.program_clone(:template, 'students', '{"name": "Autumn"}')
           AS program \gset
SELECT is((SELECT concat_ws(' ', name, type, status, terms)
               FROM referral.programs WHERE id = :program),
          'Autumn student draft Be kind.', 'template: cloned, modified');
SELECT referral.program_create(:org, 'built-in', 'Students',
           '{"template": "student", "landing_url":
             "https://school.example/enrol"}') AS built_in \gset
SELECT results_eq(format($$ SELECT beneficiary, kind, coalesce(rate_bp,
                                   coupon_bp, (tiers #>> '{0,rate_bp}')::int)
                                FROM referral.reward_rules
                                WHERE program_id = %s ORDER BY position $$,
                         :built_in),
                  $$ VALUES ('referrer', 'cash', 500),
                            ('referee', 'discount', 500) $$,
                  'template: built in, with a reward structure');
SELECT is(referral.reward_rules_set(:built_in, '[{"kind": "cash",
              "rate_bp": 700}]'), 2, 'template: built in, customized');
SELECT lives_ok(format('SELECT referral.program_create(%s, %L, ''P'', %L)',
                       :org, t, jsonb_build_object('type', t)), 'types: ' || t)
    FROM unnest(ARRAY['parent', 'affiliate', 'partner']) t;

-- 10 % of the fee (before the promotion's discount), 20 % from the 3rd on, at
-- most 500; a bonus of 50 at the 3rd; a course with its own; twice in season

SELECT referral.reward_rules_set(:program, '[
           {"slot": "fee", "kind": "cash", "base": "before",
            "tiers": [{"from": 1, "rate_bp": 1000},
                      {"from": 3, "rate_bp": 2000}]},
           {"slot": "fee", "kind": "cash", "amount": 2500,
            "products": ["ART-1"]},
           {"slot": "fee", "kind": "cash", "rate_bp": 1000,
            "products": ["MUSIC-1"],
            "seasons": [{"from": "2026-01-01", "until": "2099-12-31",
                         "multiplier_bp": 20000}]},
           {"slot": "fee", "kind": "cash", "rate_bp": 1000,
            "products": ["DANCE-1"],
            "seasons": [{"from": "2025-06-01", "until": "2025-08-31",
                         "multiplier_bp": 20000}]},
           {"slot": "bonus", "kind": "credit", "amount": 5000, "nth": 3},
           {"slot": "gift", "kind": "merchandise", "unit": "items",
            "amount": 1, "item": "mug", "products": ["ART-1"]},
           {"slot": "welcome", "beneficiary": "referee", "kind": "credit",
            "trigger": "registration", "amount": 3000,
            "valid_for": "60 days"},
           {"slot": "coupon", "beneficiary": "referee", "kind": "discount",
            "unit": "coupons", "amount": 1, "coupon_bp": 1500,
            "trigger": "registration"}]',
           '{"cap": 50000, "approval_above": 10000}') \g /dev/null
SELECT referral.program_set_status(:program, 'active') \g /dev/null

-- the referrer, and the rule for him

SELECT referral.referrer_create(:org, 'student', '{"external_id": "sam",
           "attributes": {"enrolled": true}}',
           '{"email": "sam@school.example"}')
           AS sam \gset
SELECT referral.referrer_create(:org, 'alumni', '{"external_id": "alma",
           "attributes": {"enrolled": true}}') AS alma \gset
SELECT referral.terms_accept(:program, f)
    FROM unnest(ARRAY[:sam, :alma]) f \g /dev/null
SELECT is((SELECT count(*) FROM referral.terms_acceptance
               WHERE program_id = :program AND terms_version = 1), 2::bigint,
          'terms: accepted, of version 1');
SELECT referral.code_create(:program, :sam, 'SAM-2026'),
       referral.code_create(:program, :alma, 'ALMA') \g /dev/null
SELECT matches((referral.code_create(:program, :sam)).code,
               '^[2-9A-HJ-NP-Z]{8,}$', 'codes: automatic');
SELECT is((SELECT count(*) FROM referral.codes
               WHERE code IN ('SAM-2026', 'ALMA')), 2::bigint,
          'codes: custom');
SELECT throws_ok(format('SELECT referral.code_create(%s, %s, ''ALMA'')',
                        :program, :sam), 'RF029', NULL,
                 'error: code conflict, and free ones are named');
SAVEPOINT conflict;
CREATE OR REPLACE FUNCTION referral.code_random(wanted int) RETURNS text
    LANGUAGE sql RETURN repeat('8', wanted);
SELECT is(array_agg(length((referral.code_create(:program, f)).code)
                    ORDER BY n), '{8,9,10}',
          'error: code conflict of automatic ones, until one is free')
    FROM unnest(ARRAY[:sam, :alma, :sam]) WITH ORDINALITY t (f, n);
ROLLBACK TO conflict;

CREATE FUNCTION pg_temp.buy(customer text, given jsonb) RETURNS jsonb
    LANGUAGE sql
    RETURN referral.conversion_record(current_setting('t.org')::bigint,
               jsonb_build_object('order_ref', customer || '/1',
                                  'external_id', customer) || given);
CREATE FUNCTION pg_temp.given(answer jsonb) RETURNS text LANGUAGE sql
    RETURN (SELECT string_agg(concat_ws(' ', r ->> 'slot', r ->> 'amount',
                                        r ->> 'status'), ', ' ORDER BY n)
                FROM jsonb_array_elements(answer -> 'rewards')
                         WITH ORDINALITY e (r, n));

-- clicks as the edge records them, two days ago

CREATE FUNCTION pg_temp.click(code text, via text, medium text) RETURNS uuid
    LANGUAGE plpgsql AS $$
DECLARE
    at    timestamptz := now() - interval '2 days';
    made  uuid := (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12,
                        '0')
                   || '7' || substr(gen_random_uuid()::text, 16))::uuid;
BEGIN
    PERFORM referral.partition_ensure((at AT TIME ZONE 'UTC')::date);
    INSERT INTO referral.interaction (id, occurred_at, stream, seq, type,
                                      verdict, via, kind, code, source)
        VALUES (made, referral.uuid_time(made), 1, 1, 'click', 'valid',
                click.via, 'person', click.code, click.medium);
    INSERT INTO referral.counter_delta (program_id, code, day, type, verdict,
                                        kind, n)
        SELECT c.program_id, c.code, (at AT TIME ZONE 'UTC')::date, 'click',
               'valid', 'person', 1
            FROM referral.codes c WHERE c.code = click.code;
    RETURN made;
END $$;

-- happy path

SELECT is(referral.referral_register(NULL, jsonb_build_object('external_id',
              'friend', 'click_id', pg_temp.click('SAM-2026', 'scan', NULL)),
              '{"email": "friend@example.com"}') ->> 'status', 'registered',
          'happy path: the friend uses the code');
SELECT is((SELECT code || ' ' || source FROM referral.referrals
               ORDER BY id DESC LIMIT 1),
          'SAM-2026 qr', 'happy path: a QR code');
SELECT pg_temp.buy('friend', '{"amount": 90000}') AS first \gset
SELECT is(pg_temp.given(:'first'), 'fee 9000 approved',
          'happy path: 10 % of 900.00, at once as it is not above 100');
SELECT referral.payout_request(:sam) AS payout \gset
SELECT referral.payout_approve(:payout) \g /dev/null
SELECT is((SELECT count(*) FROM referral.event
               WHERE type = 'payout.approved'), 1::bigint,
          'payment: the hook');
SELECT throws_ok(format('SELECT referral.payout_pay(%s)', :payout), 'RF010',
                 NULL, 'error: gateway fails, there is no reference');
SELECT is((SELECT status FROM referral.payouts WHERE id = :payout),
          'approved', 'error: gateway, it can be tried again');
SELECT referral.payout_pay(:payout, 'stripe-1') \g /dev/null
SELECT results_eq($$ SELECT status, payment_reference
                         FROM referral.seed_education_reward
                         WHERE reward_type = 'cash' $$,
                  $$ VALUES ('paid', 'stripe-1') $$, 'words: a paid reward');
SELECT results_eq($$ SELECT status, reward_amount
                         FROM referral.seed_education_referral $$,
                  $$ VALUES ('rewarded', 9000::bigint) $$,
                  'words: a rewarded referral');
SELECT results_eq($$ SELECT type FROM referral.event
                         WHERE order_key LIKE 'referral:%' ORDER BY seq $$,
                  $$ VALUES ('referral.created'), ('referral.registered'),
                            ('reward.earned'), ('reward.approved'),
                            ('reward.earned'), ('reward.approved'),
                            ('referral.converted'), ('reward.earned'),
                            ('reward.approved') $$, 'events');
SELECT is((SELECT string_agg(to_status, ' ' ORDER BY id)
               FROM referral.referral_steps),
          'pending registered converted rewarded paid',
          'journey: its milestones');
SELECT is((SELECT converted || ' ' || round(extract(epoch FROM median) / 3600)
               FROM referral.time_to_conversion(:program, current_date - 3,
                                                current_date + 3)), '1 48',
          'journey: two days to the conversion');

-- credit of the friend

SELECT is((referral.redeem(:org, 'course-1', '{"external_id": "friend",
               "order_amount": 2000}') ->> 'remaining')::int, 1000,
          'credit: used on a course, in part');
SELECT is((referral.redeem(:org, 'course-2', '{"external_id": "friend",
               "kind": "discount", "unit": "coupons",
               "order_amount": 20000}') ->> 'discount')::int, 3000,
          'rewards: 15 % discount');
SELECT cmp_ok(referral.reward_expire(now() + interval '61 days'), '>', 0,
              'credit: the rest expires');
SELECT is((SELECT status FROM referral.rewards WHERE slot = 'welcome'),
          'redeemed', 'credit: what was used stays used');
SELECT is((SELECT count(*) FROM referral.event
               WHERE type = 'reward.expired'), 1::bigint, 'credit: the event');

-- the rules

SELECT is(pg_temp.given(pg_temp.buy('second', '{"amount": 300000,
              "code": "SAM-2026"}')), 'fee 30000 pending',
          'rule: approval by hand above 100');
SELECT referral.reward_approve((SELECT max(id) FROM referral.rewards))
    \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('third', '{"amount": 400000,
              "code": "SAM-2026"}')), 'fee 50000 pending',
          'rule: 500 for a referral at most; tier: 20 %, capped; bonus: no'
          ' room is left for it');
SELECT is(pg_temp.given(pg_temp.buy('alma-' || n, '{"amount": 20000,
              "code": "ALMA"}')), want, name)
    FROM (VALUES (1, 'fee 2000 approved', 'tier: the 1st'),
                 (2, 'fee 2000 approved', 'tier: the 2nd'),
                 (3, 'fee 4000 approved, bonus 5000 approved',
                  'tier: the 3rd, and the bonus for several'))
             v (n, want, name);
SELECT is((SELECT data ->> 'nth' FROM referral.events
               WHERE type = 'reward.earned' AND data ->> 'slot' = 'bonus'),
          '3', 'milestone: the event of the bonus says which');
SELECT is(pg_temp.given(pg_temp.buy('artist', '{"amount": 80000,
              "code": "ALMA", "product": "ART-1"}')),
          'fee 2500 approved, gift 1 approved',
          'course: its own reward, and merchandise');
SELECT is(pg_temp.given(pg_temp.buy('singer', '{"amount": 30000,
              "code": "ALMA", "product": "MUSIC-1"}')), 'fee 6000 approved',
          'season: twice');
SELECT is(pg_temp.given(referral.conversion_record(:org, '{"code": "ALMA",
              "order_ref": "summer/1", "external_id": "summer",
              "amount": 30000, "product": "DANCE-1"}')), 'fee 3000 approved',
          'season: and once when it is over');
SELECT is((referral.referral_register(NULL, '{"code": "ALMA",
               "external_id": "friend-2"}', '{"email": "FRIEND@example.com"}')
               ->> 'outcome'), 'existing',
          'rule: one reward for a referee, by e-mail');
SELECT is(pg_temp.buy('friend', '{"amount": 90000}'), :'first'::jsonb,
          'error: late, the same order again is the same');
SELECT is(referral.referral_create(:program, '{"code": "ALMA",
              "external_id": "slow"}') > 0, true, 'rule: 90 days, shared');
SELECT is(referral.referral_expire(now() + interval '89 days'), 0::bigint,
          'rule: 90 days, valid');
SELECT is(referral.referral_expire(now() + interval '91 days'), 1::bigint,
          'rule: 90 days, over');
SELECT is((SELECT status FROM referral.seed_education_referral
               WHERE referee_id = 'slow'), 'expired', 'words: expired');

SELECT referral.referrer_update(:alma, '{"attributes": {"enrolled": false}}')
    \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_register(NULL, '{"code": "ALMA",
                        "external_id": "x"}') $$, 'RF094', NULL,
                 'rule: active students; edge case: ineligible referrer');
SELECT throws_ok(format('SELECT referral.ensure_code(%s, ''alma'')',
                        :program), 'RF027', NULL,
                 'edge case: an ineligible referrer gets no code to share');
SELECT referral.referrer_update(:alma, '{"attributes": {"enrolled": true}}')
    \g /dev/null

SELECT throws_ok($$
    DO $do$
    DECLARE
        p  bigint;
    BEGIN
        FOR n IN 2 .. 6 LOOP
            p := referral.program_create(current_setting('t.org')::bigint,
                     'p' || n, 'P');
            PERFORM referral.program_set_status(p, 'active');
        END LOOP;
    END $do$ $$, 'RF019', NULL, 'rule: five programs are active at most');

-- edge cases

SELECT is(pg_temp.given(pg_temp.buy('saver', '{"amount": 15000,
              "discount": 5000, "code": "ALMA"}')), 'fee 4000 approved',
          'edge case: promotional discount, the base is before it');

SELECT referral.code_create(:program, :alma, 'OLD', jsonb_build_object(
           'expires_at', now() - interval '1 hour')) \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_register(NULL, '{"code": "OLD",
                        "external_id": "late"}') $$, 'RF093', NULL,
                 'edge case: expired code');

SELECT referral.referral_create(:program, jsonb_build_object('code', 'ALMA',
           'source', s), jsonb_build_object('email', s || '@example.com'))
    FROM unnest(ARRAY['email', 'sms', 'social_media', 'in_person']) s
    \g /dev/null
SELECT is((SELECT count(DISTINCT source) FROM referral.referrals r
               JOIN referral.codes c ON c.id = r.code_id
               WHERE c.code = 'ALMA' AND r.status = 'pending'), 4::bigint,
          'edge case: channels, one code through several');

CREATE FUNCTION pg_temp.prospect(model text, email text) RETURNS text
    LANGUAGE plpgsql AS $$
DECLARE
    contact  jsonb := jsonb_build_object('email', email);
    r        bigint;
    p        bigint := (SELECT id FROM referral.program
                            WHERE slug = 'students');
BEGIN
    PERFORM referral.program_update(p, jsonb_build_object('attribution',
                                                          model));
    r := referral.referral_create(p, '{"code": "SAM-2026"}', contact);
    UPDATE referral.referral SET created_at = created_at - interval '1 day'
        WHERE id = r;
    PERFORM referral.referral_create(p, '{"code": "ALMA"}', contact);
    RETURN referral.referral_register(p, '{}', contact) ->> 'code';
END $$;
SELECT is(pg_temp.prospect('first', 'p1@example.com'), 'SAM-2026',
          'attribution: first touch');
SELECT is(pg_temp.prospect('last', 'p2@example.com'), 'ALMA',
          'attribution: last touch');
SELECT is(pg_temp.prospect('linear', 'p3@example.com'), 'ALMA',
          'attribution: multi-touch');
SELECT results_eq($$ SELECT weight_bp, winner
                         FROM referral.attribution_shares
                         WHERE model = 'linear' ORDER BY touched_at $$,
                  $$ VALUES (5000, false), (5000, true) $$,
                  'attribution: shares');
SELECT is((SELECT count(*) FROM referral.referrals
               WHERE status = 'superseded'), 3::bigint,
          'edge case: several referrals for one prospect, one is credited');
SELECT lives_ok($$ SELECT referral.attribution_override((SELECT max(id)
                       FROM referral.referrals WHERE status = 'superseded'),
                       'he met him first') $$, 'attribution: by hand');
SELECT is((SELECT reason FROM referral.audit WHERE action = 'override'),
          'he met him first', 'audit: of the override');

SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "SAM-2026"}',
                        '{"email": "Sam@School.example"}') $$, 'RF097', NULL,
                 'fraud: nobody refers himself');

SELECT referral.program_update(:program, jsonb_build_object('starts_at',
           now() + interval '1 day')) \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_register(NULL, '{"code": "ALMA",
                        "external_id": "early"}') $$, 'RF093', NULL, 'early');
SELECT referral.program_update(:program, jsonb_build_object('starts_at', NULL))
    \g /dev/null
SELECT referral.program_set_status(:program, 'ended') \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_register(NULL, '{"code": "ALMA",
                        "external_id": "after"}') $$, 'RF103', NULL,
                 'ended');

SELECT referral.reward_reject((SELECT min(id) FROM referral.rewards
                                   WHERE status = 'pending'), 'not a student')
    \g /dev/null
SELECT is_empty($$ SELECT status FROM referral.seed_education_reward
                       WHERE status NOT IN ('pending', 'approved', 'paid',
                                            'cancelled') $$,
                'words: of rewards');
SELECT isnt_empty($$ SELECT * FROM referral.seed_education_reward
                         WHERE status = 'cancelled' $$,
                  'words: a cancelled reward');
SELECT isnt_empty(format($$ SELECT * FROM referral.statement(%s,
                      '2020-01-01', '2099-01-01') $$, :sam),
                  'credit: statements');
SELECT is(referral.reward_transfer(:alma, :sam, '{"account": "credit",
              "amount": 1000, "idempotency_key": "gift"}') > 0, true,
          'credit: given to another');

-- Half of the friend's fee is given back when Sam has his 90.00: of it he owes
-- 45.00, which the next payout is less.  Payouts are planned for each month:
-- Sam 300 - 45, Alma 20 + 20 + 40 + 25 + 60 + 30 + 40.

SELECT referral.refund_record(:org, '{"refund_ref": "half",
           "order_ref": "friend/1", "amount": 45000}') \g /dev/null
SELECT id AS hook FROM referral.webhook_add(:org,
    'https://mail.school.example/', '{payout.requested}') \gset
SELECT referral.payout_policy_set(:org, 'USD', '{"every": "month",
           "minimum": 1000}') \g /dev/null
SELECT is((SELECT done FROM referral.housekeeping(now() + interval '32 days',
                                                  'payouts')), 2::bigint,
          'schedule: both get a payout');
SELECT is((SELECT string_agg(f.external_id || ' ' || o.amount, ', '
                             ORDER BY f.external_id)
               FROM referral.payouts o
                    JOIN referral.referrers f ON f.id = o.referrer_id
               WHERE o.status = 'requested'), 'alma 23500, sam 25500',
          'schedule: all of it; refunded: less what Sam owes');
CREATE TEMP TABLE claim AS
    SELECT * FROM referral.webhook_claim(10, '1 minute');
SELECT is((SELECT string_agg(d.outcome, ' ')
               FROM referral.webhook_done((SELECT jsonb_agg(
                        jsonb_build_object('delivery', c.delivery_id,
                            'attempt', c.attempt, 'status', 503))
                        FROM claim c)) d), 'retry retry',
          'error: notification fails, and is tried again');

-- Figures.  The orders: Sam's friend 900, second 3,000, third 4,000; Alma's
-- three of 200, artist 800, singer 300, summer 300, saver 150: 10,050.00 of
-- ten, of which 450.00 were given back.  Fees: 90 - 45 + 300 (third's 500 were
-- refused) and 20 + 20 + 40 + 50 + 25 + 60 + 30 + 40 are 630.00; welcome to
-- four who registered 120.00, of which 10.00 expired: 740.00.  Spent: 250.00.

SELECT pg_temp.click('ALMA', 'redirect', 'facebook')
    FROM generate_series(1, 19) \g /dev/null
SELECT referral.program_cost_record(:program, (now() AT TIME ZONE 'UTC')::date,
                                    25000, 'posters') \g /dev/null
SELECT referral.counter_fold(), referral.rollup_refresh('1 minute', '0')
    \g /dev/null
SELECT is((SELECT concat_ws(' ', clicks, converted, conversion_rate, revenue,
                            net, cost, cost_per_acquisition, roi)
               FROM referral.program_figures(:program, current_date - 5,
                                             current_date + 5)),
          -- 990 / 10 = 99.00; (9600 - 990) / 990 = 8.697
          '20 10 0.5000 1005000 960000 74000 9900 8.6970',
          'figures: program');
SELECT is((SELECT string_agg(concat_ws(' ', rank, external_id, clicks,
                             converted, conversion_rate, revenue), ', ')
               FROM referral.leaderboard(:program, 'revenue',
                        current_date - 5, current_date + 5)),
          '1 sam 1 3 3.0000 745000, 2 alma 19 7 0.3684 215000',
          'figures: leaderboard');
SELECT is((SELECT concat_ws(' ', page #> '{figures,clicks}',
                            page #> '{figures,converted}',
                            page #> '{referrals,paid}')
               FROM referral.partner_page(:sam, current_date - 5,
                                          current_date + 5) page),
          '1 3 1', 'figures: scorecard');

-- of 11 decided (ten, and slow, who was too late) none was bad, 10 converted,
-- and 955.2 of 1000 was kept: 30 + 50 * 10 / 11 + 20 * 9600 / 10050

SELECT is(referral.quality_score(:program), 94.6, 'figures: quality');
SELECT is((SELECT string_agg(concat_ws(' ', coalesce(name, 'scan'), clicks),
                             ', ')
               FROM referral.breakdown(:program, 'source', current_date - 5,
                                       current_date + 5)
               WHERE clicks > 0), 'facebook 19, scan 1', 'figures: sources');
SELECT is((SELECT sum(revenue) || ' ' || sum(converted)
               FROM referral.trend(:program, current_date - 5,
                                   current_date + 5, 'quarter')),
          '1005000 10', 'figures: trend, by quarter');
SELECT is((SELECT concat_ws(' ', customers, value, average)
               FROM referral.lifetime_value(:program, :sam)),
          '3 745000 248333', 'figures: lifetime value by referrer');
SELECT is((SELECT concat_ws(' ', rewards, earned, redeemed, expired,
                            taken_back, used_rate)
               FROM referral.reward_outcomes(:program, current_date - 5,
                                             current_date + 5)
               WHERE beneficiary = 'referee' AND kind = 'credit'),
          -- five, as the override took one back and gave it anew
          '5 15000 2000 1000 3000 0.1333', 'figures: redemption');
SELECT is((SELECT string_agg(concat_ws(' ', p.slug, f.revenue), ', '
                             ORDER BY p.slug)
               FROM referral.programs p,
                    referral.program_figures(p.id) f
               WHERE NOT p.template),
          'affiliate 0, built-in 0, parent 0, partner 0, students 1005000',
          'figures: programs');

SELECT referral.customer_erase(:org, 'friend', NULL, 'asked') \g /dev/null
SELECT is((SELECT concat_ws(' ', count(*), count(referee_id))
               FROM referral.seed_education_referral
               WHERE conversion_value = 45000), '1 0',
          'erasure: the fee stays, the friend does not');

SET CONSTRAINTS ALL IMMEDIATE;
SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');

SELECT * FROM finish();

ROLLBACK;
