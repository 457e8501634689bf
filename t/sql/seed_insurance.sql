-- Copyright (C) The nginx referral module authors
--
-- Insurance leads: partners refer leads and earn a commission (the first of
-- the five specifications, "Partner-driven growth").
--
-- requirement -> test
--   partner: user link, names, e-mail unique, phone, company, code unique
--                                          -> "a partner applies", "e-mail"
--   partner: ACTIVE INACTIVE SUSPENDED TERMINATED    -> "status"
--   partner: commission rate, 0.1 by default         -> "10 % by default"
--   partner: totals, successful, earnings (no float) -> "his totals"
--   application, review, approved: ACTIVE and a code -> "approved"
--   application rejected                             -> "rejected"
--   referral: partner, lead, code, source, status, dates, value, notes
--                                          -> "referred", "the lead's row"
--   source WEBSITE MOBILE_APP EMAIL PHONE IN_PERSON SOCIAL_MEDIA OTHER
--                                          -> "sources"
--   PENDING ACCEPTED REJECTED CONVERTED PAID EXPIRED -> "lifecycle: ..."
--   lead validation: valid ACCEPTED, invalid REJECTED
--                                          -> "lifecycle: accepted", "invalid"
--   not converted after a period: EXPIRED            -> "expired"
--   code generation and validation         -> "approved", "a code is checked"
--   created by API and by webhook, once    -> "referred", "the webhook again"
--   status follows the lead by itself      -> "lifecycle: converted", "paid"
--   reward on conversion, rate applied     -> "the commission"
--   reward PENDING CALCULATED APPROVED PAID CANCELLED, method, transaction id
--                                          -> "reward: ..."
--   payout processing                      -> "paid out"
--   partners see their history and earnings, and no other's -> "portal: ..."
--   roles partner, admin, system           -> "portal: ...", t/sql/schema.sql
--   input validation                       -> "input: ..."
--   audit of all referral actions          -> "audit"
--   privacy (GDPR, CCPA) of partner data   -> "privacy: ..."
--   referral volume, conversion rate, revenue     -> "metrics: program"
--   cost per lead (CAC), ROI, lifetime value      -> "metrics: money"
--   active partners, referrals, conversion rate and earnings per partner
--                                          -> "metrics: partners"
--   conversion rates by source             -> "metrics: sources"
--   partner retention, churn               -> "metrics: retention"
--   payout accuracy                        -> "metrics: payout accuracy"
--   refund of a policy after the payout    -> "refunded"
--   A/B of incentives                      -> "A/B"
--   feature flag: a program is draft until it is active -> "gradual rollout"
--   e-mail on status changes, real-time updates
--                             -> outside: hook is the event, "events"
--   agent assignment by source  -> outside: hook is the view, "routing"
--   JWT, portal, dashboards     -> outside: hooks are SET LOCAL
--                                  referral.referrer, and the views
--   rate limiting               -> the edge, t/limit.t
--   1000 referrals a day under 500 ms      -> make bench-sql
--   monitoring                             -> t/worker_metrics.t
--   backup                      -> outside: pg_dump

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('insurance', 'Insurance Leads') AS org
    \gset
SELECT referral.program_create(:org, 'partners', 'Partners',
           '{"type": "partner", "landing_url": "https://leads.example/quote",
             "referral_validity": "30 days"}') AS program \gset
SELECT referral.reward_rules_set(:program,
           '[{"kind": "cash", "rate_bp": 1000, "approval": "manual"}]')
    \g /dev/null

-- onboarding

SELECT referral.referrer_apply(:org, 'partner', '{"external_id": "user-1"}',
           '{"first_name": "Pat", "last_name": "Ner", "company": "Brokers",
             "email": "pat@brokers.example", "phone": "+1 415 555 0100"}')
           AS pat \gset
SELECT is((SELECT status FROM referral.referrers WHERE id = :pat), 'applied',
          'a partner applies');
SELECT is((SELECT concat_ws(' ', first_name, last_name, company, phone)
               FROM referral.referrer_contact(:pat)),
          'Pat Ner Brokers +1 415 555 0100', 'a partner applies: his profile');
SELECT throws_ok(format('SELECT referral.referrer_apply(%s, ''partner'',
                     ''{}'', ''{"email": "PAT@brokers.example"}'')', :org),
                 'RF018',
                 NULL, 'e-mail is unique');
SELECT referral.program_set_status(:program, 'active') \g /dev/null
SELECT referral.referrer_approve(:pat, jsonb_build_object('program',
                                                          :program))
    \g /dev/null
SELECT is((SELECT status || ' ' || (referral_code ~ '^[A-Z0-9]{8,}$')
               FROM referral.seed_insurance_partner WHERE id = :pat),
          'ACTIVE true', 'approved: active, with a code');
SELECT referral_code AS code FROM referral.seed_insurance_partner
    WHERE id = :pat \gset
SELECT referral.referrer_apply(:org, 'affiliate') AS quick \gset
SELECT referral.referrer_reject(:quick, 'no licence') \g /dev/null
SELECT is((SELECT status FROM referral.seed_insurance_partner
               WHERE id = :quick), 'REJECTED', 'rejected');
SELECT is((SELECT reject_reason FROM referral.referrers WHERE id = :quick),
          'no licence', 'rejected: why');
SELECT is(referral.attribute(:program, jsonb_build_object('code', :'code'))
              #>> '{candidates,0,why}', NULL, 'a code is checked: good');
SELECT is(referral.attribute(:program, '{"code": "WRONG"}')
              #>> '{candidates,0,why}', 'unknown', 'a code is checked: wrong');

-- a lead, by the API and by its webhook

SELECT referral.referral_create(:program,
           jsonb_build_object('code', :'code', 'external_id', 'lead-1',
               'source', 'phone', 'notes', 'wants a call', 'value', 250000,
               'idempotency_key', 'hook-1'),
           '{"name": "Lea D.", "email": "lea@example.com"}') AS lead \gset
SELECT is(referral.referral_create(:program,
              jsonb_build_object('code', :'code', 'external_id', 'lead-1',
                  'source', 'phone', 'notes', 'wants a call', 'value', 250000,
                  'idempotency_key', 'hook-1'),
              '{"name": "Lea D.", "email": "lea@example.com"}'),
          :lead::bigint, 'the webhook again: the same referral');
SELECT is((SELECT concat_ws(' ', partner_id, lead_id, referral_code, source,
                            status, conversion_value)
               FROM referral.seed_insurance_referral WHERE id = :lead),
          concat_ws(' ', :pat, 'lead-1', :'code', 'PHONE', 'PENDING', 250000),
          'referred: the lead''s row');
SELECT is((SELECT notes || ', ' || name
               FROM referral.referral_contact(:lead)),
          'wants a call, Lea D.', 'the lead''s row: contact and notes');

-- the lifecycle

CREATE FUNCTION pg_temp.word(lead bigint) RETURNS text LANGUAGE sql
    RETURN (SELECT status FROM referral.seed_insurance_referral
                WHERE id = lead);

SELECT referral.referral_accept(:lead, 'valid') \g /dev/null
SELECT is(pg_temp.word(:lead), 'ACCEPTED', 'lifecycle: accepted');
SELECT referral.conversion_record(:org, '{"order_ref": "policy-1",
           "external_id": "lead-1", "amount": 120000}') \g /dev/null
SELECT is(pg_temp.word(:lead), 'CONVERTED', 'lifecycle: converted');
SELECT results_eq(format('SELECT id, amount, currency, status
                              FROM referral.seed_insurance_reward
                              WHERE referral_id = %s', :lead),
                  format('SELECT max(id), 12000::bigint, ''USD'',
                                 ''CALCULATED'' FROM referral.reward'),
                  'the commission: 10 % by default, calculated');
SELECT id AS reward FROM referral.seed_insurance_reward
    WHERE referral_id = :lead \gset
SELECT referral.reward_hold(:reward, 'papers') \g /dev/null
SELECT is((SELECT status FROM referral.seed_insurance_reward
               WHERE id = :reward), 'PENDING', 'reward: pending');
SELECT referral.reward_approve(:reward) \g /dev/null
SELECT is((SELECT status FROM referral.seed_insurance_reward
               WHERE id = :reward), 'APPROVED', 'reward: approved');
SELECT referral.payout_request(:pat) AS payout \gset
SELECT referral.payout_approve(:payout), referral.payout_pay(:payout, 'TX-77')
    \g /dev/null
SELECT results_eq(format('SELECT status, payment_method, transaction_id,
                                 paid_at IS NOT NULL
                              FROM referral.seed_insurance_reward
                              WHERE id = %s', :reward),
                  $$ VALUES ('PAID', 'bank_transfer', 'TX-77', true) $$,
                  'reward: paid out');
SELECT is(pg_temp.word(:lead), 'PAID', 'lifecycle: paid');

SELECT referral.referral_create(:program,
           jsonb_build_object('code', :'code', 'external_id', 'lead-2'))
           AS bad \gset
SELECT referral.referral_reject(:bad, 'invalid') \g /dev/null
SELECT is(pg_temp.word(:bad), 'REJECTED', 'an invalid lead');
SELECT referral.referral_create(:program,
           jsonb_build_object('code', :'code', 'external_id', 'lead-3'))
           AS old \gset
SELECT is(referral.referral_expire(now() + interval '29 days'), 0::bigint,
          'valid for 30 days');
SELECT is(referral.referral_expire(now() + interval '31 days'), 1::bigint,
          'and no longer');
SELECT is(pg_temp.word(:old), 'EXPIRED', 'lifecycle: expired');
SELECT throws_ok(format('SELECT referral.referral_accept(%s)', :old), 'RF091',
                 NULL, 'lifecycle: the end');

CREATE TEMP TABLE source AS
    SELECT referral.referral_create(:program, jsonb_build_object('code',
               :'code', 'external_id', 'source-' || s, 'source', s)) AS id,
           upper(s) AS want
        FROM unnest(ARRAY['website', 'mobile_app', 'email', 'phone',
                          'in_person', 'social_media', 'other']) s;
SELECT is(r.source, s.want, 'sources: ' || s.want)
    FROM source s JOIN referral.seed_insurance_referral r USING (id);
SELECT is((SELECT count(*) FROM referral.seed_insurance_referral
               WHERE source = 'PHONE'), 2::bigint, 'routing: by source');

-- a partner of his own rate, suspended, inactive, terminated

SELECT referral.referrer_create(:org, 'partner', '{"external_id": "user-2",
           "commission_bp": 1500}') AS best \gset
SELECT referral.code_create(:program, :best, 'BEST') \g /dev/null
SELECT referral.conversion_record(:org, '{"order_ref": "policy-2",
           "external_id": "lead-9", "code": "BEST", "amount": 33335}')
           #>> '{rewards,0,amount}' AS amount \gset
SELECT is(:amount, 5000, 'the commission: 15 %, 5000.25 rounded');
SELECT referral.reward_reject((SELECT max(id) FROM referral.rewards), 'fraud')
    \g /dev/null
SELECT is((SELECT status FROM referral.seed_insurance_reward
               ORDER BY id DESC LIMIT 1), 'CANCELLED', 'reward: cancelled');
SELECT is((SELECT data ->> 'reason' FROM referral.events
               WHERE type = 'reward.rejected'), 'fraud',
          'events: a rejected reward');

CREATE FUNCTION pg_temp.refused(partner bigint, word text) RETURNS text
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM referral.referrer_set_status(partner, word);
    PERFORM referral.referral_create(NULL, '{"code": "BEST"}');
    RETURN 'taken';
EXCEPTION WHEN SQLSTATE 'RF094' THEN
    RETURN 'refused';
END $$;
SELECT is(pg_temp.refused(:best, word), want, 'status: ' || word)
    FROM (VALUES ('active', 'taken'), ('suspended', 'refused'),
                 ('inactive', 'refused'), ('terminated', 'refused'))
             v (word, want);

SELECT results_eq(format('SELECT total_referrals, successful_referrals,
                                 total_earnings, commission_rate
                              FROM referral.seed_insurance_partner
                              WHERE id = %s', :pat),
                  $$ VALUES (10::bigint, 1::bigint, 12000::bigint,
                             0.1000) $$, 'his totals');
SELECT is((SELECT commission_rate FROM referral.seed_insurance_partner
               WHERE id = :best), 0.1500, 'his own rate');

-- input

SELECT throws_ok(format('SELECT referral.referral_create(%s, %L, %L)',
                        :program, jsonb_build_object('code', :'code') || o, c),
                 code, NULL, 'input: ' || coalesce(c, o::text))
    FROM (VALUES ('{"source": "rumour"}'::jsonb, NULL, 'RF010'),
                 ('{"value": "many"}', NULL, 'RF010'),
                 ('{"sorce": "email"}', NULL, 'RF011'),
                 ('{}', '{"email": "nobody"}', 'RF100'),
                 ('{}', '{"shoe_size": 44}', 'RF011')) v (o, c, code);

-- incentives compared, and a program that is not there for everybody yet

SELECT referral.program_create(:org, 'test', 'Test',
           '{"landing_url": "https://leads.example/"}') AS test \gset
SELECT referral.program_variant_set(:test, 'A', 50),
       referral.program_variant_set(:test, 'B', 50) \g /dev/null
SELECT id AS a FROM referral.program_variant
    WHERE program_id = :test AND name = 'A' \gset
SELECT id AS b FROM referral.program_variant
    WHERE program_id = :test AND name = 'B' \gset
SELECT referral.reward_rules_set(:test, jsonb_build_array(
           jsonb_build_object('kind', 'cash', 'amount', 1000,
                              'variant_id', :a),
           jsonb_build_object('kind', 'cash', 'amount', 2000,
                              'variant_id', :b))) \g /dev/null
SELECT referral.code_create(:test, referral.referrer_create(:org, 'partner'),
                            'SPLIT') \g /dev/null
SELECT throws_ok(format('SELECT referral.referral_create(%s,
                             ''{"code": "SPLIT"}'')', :test), 'RF103', NULL,
                 'gradual rollout: a draft takes no referrals');
SELECT referral.program_set_status(:test, 'active') \g /dev/null
SELECT referral.conversion_record(:org, jsonb_build_object('order_ref',
           'split-' || n, 'external_id', 'split-' || n, 'code', 'SPLIT',
           'amount', 100)) FROM generate_series(1, 40) n \g /dev/null
SELECT is((SELECT count(DISTINCT w.amount) FROM referral.rewards w
               WHERE w.program_id = :test), 2::bigint, 'A/B: both are given');
SELECT is_empty(format('SELECT w.id FROM referral.rewards w
                            JOIN referral.referrals r ON r.id = w.referral_id
                            WHERE w.program_id = %s AND w.amount
                                  <> CASE r.variant_id WHEN %s THEN 1000
                                                       ELSE 2000 END',
                       :test, :a), 'A/B: each by the referral''s variant');

-- what others hang on

SELECT results_eq(format('SELECT type FROM referral.event WHERE order_key
                              = ''referral:%s'' ORDER BY seq', :lead),
                  $$ VALUES ('referral.created'), ('referral.converted'),
                            ('reward.earned'), ('reward.approved') $$,
                  'events');
SELECT results_eq(format('SELECT to_status FROM referral.referral_steps
                              WHERE referral_id = %s ORDER BY id', :lead),
                  $$ VALUES ('pending'), ('accepted'), ('converted'),
                            ('rewarded'), ('paid') $$, 'audit: the steps');
SELECT is((SELECT count(*) > 0 FROM referral.audit
               WHERE object = 'payout' AND object_id = :payout), true,
          'audit: the payout');

SELECT set_config('referral.referrer', :'pat', true) \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT is((SELECT count(*) FROM referral.my_referrals
               WHERE status = 'paid'), 1::bigint, 'portal: his history');
SELECT is((SELECT sum(balance) FROM referral.my_balances
               WHERE kind = 'paid'), 12000::numeric, 'portal: his earnings');
SELECT is((SELECT count(*) FROM referral.my_codes WHERE code = 'BEST'),
          0::bigint, 'portal: no other''s');
SELECT throws_ok('SELECT * FROM referral.seed_insurance_referral', '42501',
                 NULL, 'portal: nor the admin''s');
RESET ROLE;

SELECT set_config('referral.referrer', '', true) \g /dev/null

-- Metrics.  Five followed Pat's link, four from web sites, one from an e-mail.
-- By his code ten leads came, and one bought, for 1,200.00, of which he got
-- 120.00; by BEST two, of whom one bought, for 333.35, and the 50.00 for it
-- were refused.  Advertising was 80.00.

SELECT referral.partition_ensure((now() AT TIME ZONE 'UTC')::date)
    \g /dev/null
INSERT INTO referral.interaction (id, occurred_at, stream, seq, type, verdict,
                                  via, kind, code, source)
    SELECT i.id, referral.uuid_time(i.id), 1, n, 'click', 'valid', 'redirect',
           'person', :'code', CASE WHEN n < 5 THEN 'website' ELSE 'email' END
        FROM (SELECT n, (lpad(to_hex((extract(epoch FROM now())
                                      * 1000)::bigint), 12, '0') || '7'
                         || substr(gen_random_uuid()::text, 16))::uuid AS id
                  FROM generate_series(1, 5) n) i;
INSERT INTO referral.counter_delta (program_id, code, day, type, verdict, kind,
                                    n)
    VALUES (:program, :'code', (now() AT TIME ZONE 'UTC')::date, 'click',
            'valid', 'person', 5);
SELECT referral.program_cost_record(:program, (now() AT TIME ZONE 'UTC')::date,
                                    8000, 'advertising') \g /dev/null
SELECT referral.counter_fold(), referral.rollup_refresh('1 minute', '0')
    \g /dev/null
SELECT is((SELECT concat_ws(' ', clicks, created, converted, revenue)
               FROM referral.program_figures(:program, current_date - 3,
                                             current_date + 3)),
          '5 12 2 153335', 'metrics: program, volume and revenue');
SELECT is((SELECT concat_ws(' ', cost, spend, cost_per_acquisition, roi)
               FROM referral.program_figures(:program, current_date - 3,
                                             current_date + 3)),
          -- (120 + 80) / 2 = 100.00; (1533.35 - 200) / 200 = 6.6668
          '12000 8000 10000 6.6668', 'metrics: money');
SELECT is((SELECT concat_ws(' ', customers, value, average)
               FROM referral.lifetime_value(:program)),
          '2 153335 76668', 'metrics: money, lifetime value');
SELECT is((SELECT string_agg(concat_ws(' ', rank, external_id, created,
                             converted, conversion_rate, earned), ', ')
               FROM referral.leaderboard(:program, 'earned', current_date - 3,
                                         current_date + 3)),
          '1 user-1 10 1 0.2000 12000',
          'metrics: partners');
SELECT is((SELECT string_agg(concat_ws(' ', name, clicks, created), ', ')
               FROM referral.breakdown(:program, 'source', current_date - 3,
                                       current_date + 3)
               WHERE name IN ('website', 'email')),
          'website 4 1, email 1 1', 'metrics: sources');
SELECT is((SELECT string_agg(concat_ws(' ', active, first_time), ', ')
               FROM referral.referrer_retention(:program, current_date - 3,
                        current_date + 3)
               WHERE active > 0), '2 2', 'metrics: retention');
SELECT is((SELECT concat_ws(' ', rewards, correct, accuracy, paid, overpaid,
                            paid_accuracy)
               FROM referral.payout_accuracy(:program, current_date - 3,
                                             current_date + 3)),
          '2 2 1.0000 12000 0 1.0000', 'metrics: payout accuracy');
SELECT is((SELECT concat_ws(' ', kind, rewards, earned, paid, taken_back,
                            remaining)
               FROM referral.reward_outcomes(:program, current_date - 3,
                                             current_date + 3)),
          'cash 2 17000 12000 5000 0', 'metrics: what became of rewards');

-- the policy is given back, a quarter of it, when Pat has his commission

SELECT referral.refund_record(:org, '{"refund_ref": "policy-1-back",
           "order_ref": "policy-1", "amount": 30000}') \g /dev/null
SELECT is((SELECT string_agg(kind || ' ' || balance, ', ' ORDER BY kind)
               FROM referral.balances
               WHERE referrer_id = :pat AND unit = 'USD'
                     AND kind IN ('payable', 'paid')),
          'paid 12000, payable -3000', 'refunded: Pat owes a quarter of it');
SELECT is((SELECT overpaid || ' ' || paid_accuracy
               FROM referral.payout_accuracy(:program, current_date - 3,
                                             current_date + 3)),
          '3000 0.7500', 'refunded: the accuracy of what was paid');
SAVEPOINT wrong;
UPDATE referral.reward SET uncapped = uncapped + 1 WHERE id = :reward;
SELECT is((SELECT correct || ' ' || accuracy
               FROM referral.payout_accuracy(:program, current_date - 3,
                                             current_date + 3)),
          '1 0.5000', 'metrics: payout accuracy sees what no rule gives');
ROLLBACK TO wrong;

-- Pat reads what is kept of him, and has it erased

SELECT is(referral.customer_export(:org, 'user-1') #>> '{person,0,company}',
          'Brokers', 'privacy: what is kept of a partner');
SELECT referral.customer_erase(:org, 'user-1', NULL, 'asked') \g /dev/null
SELECT is_empty(format('SELECT FROM referral.referrer_contact(%s) c
                            WHERE c::text ~* ''pat|ner|brokers|555''', :pat),
                'privacy: erased');
SELECT is((SELECT total_earnings FROM referral.seed_insurance_partner
               WHERE id = :pat AND user_id IS NULL), 9000::bigint,
          'privacy: his earnings are what they were');

SET CONSTRAINTS ALL IMMEDIATE;
SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');

SELECT * FROM finish();

ROLLBACK;
