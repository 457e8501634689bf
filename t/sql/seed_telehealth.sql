-- Copyright (C) The nginx referral module authors
--
-- Telehealth: patients refer friends and family (the third of the five
-- specifications, "Referral Management System Architecture").
--
-- requirement -> test
--   programs: standard, specialty, seasonal        -> "program: types"
--   rewards of both sides: credit, discount, cash, free consultation
--                                                  -> "rewards: ..."
--   max referrals per patient                      -> "program: at most"
--   threshold: referrals needed for a reward       -> "program: threshold"
--   expiry days                                    -> "program: 30 days"
--   active, paused, ended; start and end           -> "program: paused"
--   target conditions, demographics                -> "program: targets"
--   code, 20 characters, random, crypto-secure     -> "code"
--   referee's e-mail, phone, name; patient id once registered
--                                                  -> "referee: ..."
--   source email sms social direct_link, message   -> "referral: source",
--                                                     "referral: message"
--   pending registered converted expired declined  -> "lifecycle: ..."
--   first consultation and order, converted at     -> "lifecycle: converted"
--   reward of each side: pending earned redeemed expired -> "rewards: ..."
--   clicks, last clicked, expires at               -> "tracking: ..."
--   interactions: click, email_sent, sms_sent, registration, conversion,
--     inet, user agent, source, metadata           -> "tracking: interactions"
--   ledger of rewards: available used expired cancelled, used on which order
--                                                  -> "credit: ..."
--   GET /referrals/:code                           -> "api: by code"
--   POST /referrals/:code/register                 -> "lifecycle: registered"
--   GET /referrals/:code/click                     -> the edge, t/redirect.t
--   my referrals, my rewards                       -> "api: mine"
--   approve reward                                 -> "api: approve"
--   bulk operations                                -> "api: bulk"
--   audit trail (HIPAA): all tracking, who and when, append-only
--                                                  -> "audit: ..."
--   e-mail hashed for privacy, found again         -> "privacy: ..."
--     (bcrypt with a random salt, as the document has it, finds nothing)
--   anonymized for analytics                       -> "privacy: analysts"
--   referral data is PHI: access by role           -> "privacy: partner",
--                                                     t/sql/schema.sql
--   erasure                                        -> t/sql/privacy.sql
--   ?ref= on the registration page   -> the edge: $referral_code, t/variables.t
--   orders use available rewards                   -> "credit: used"
--   totals, rates, trends, funnel, ROI, top referrers, lifetime value
--                                                  -> t/sql/report.sql
--   e-mail and SMS texts             -> outside: hooks are events, "events"
--   portals                          -> outside: hooks are the views
--   A/B of programs                                -> t/sql/seed_insurance.sql

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('clinic', 'Clinic', '{"settings":
           {"referee_contact": "hash", "calling_code": "1"}}') AS org \gset
SELECT set_config('t.org', :'org', true) \g /dev/null

-- the program

SELECT lives_ok(format('SELECT referral.program_create(%s, %L, ''P'', %L)',
                       :org, t, jsonb_build_object('type', t)),
                'program: types, ' || t)
    FROM unnest(ARRAY['standard', 'specialty', 'seasonal']) t;
SELECT referral.program_create(:org, 'friends', 'Refer a Friend', '{
           "landing_url": "https://clinic.example/register",
           "referral_validity": "30 days", "max_referrals_per_referrer": 5,
           "targeting": {"conditions": ["migraine"], "age": [18, 65]}}')
           AS program \gset
SELECT is((SELECT targeting #>> '{conditions,0}' FROM referral.programs
               WHERE id = :program), 'migraine', 'program: targets');
SELECT referral.reward_rules_set(:program, '[
           {"kind": "credit", "amount": 2000, "valid_for": "90 days"},
           {"slot": "second", "kind": "cash", "amount": 5000, "threshold": 2,
            "approval": "manual"},
           {"slot": "bonus", "beneficiary": "referee", "kind": "discount",
            "unit": "coupons", "amount": 1, "coupon_bp": 2000,
            "trigger": "registration", "valid_for": "30 days"},
           {"slot": "consultation", "beneficiary": "referee",
            "kind": "free_item", "unit": "items", "amount": 1,
            "item": "consultation"}]') \g /dev/null
SELECT referral.program_set_status(:program, 'active') \g /dev/null

-- the patient, and his code

SELECT referral.ensure_code(:program, 'patient-1', '{"type": "patient"}')
           AS code \gset
SELECT is(length(:'code') <= 20 AND :'code' ~ '^[2-9A-HJ-NP-Z]+$', true,
          'code: random, 20 characters at most');
SELECT is(referral.ensure_code(:program, 'patient-1'), :'code',
          'code: one for a patient');
SELECT id AS patient FROM referral.referrers WHERE external_id = 'patient-1'
    \gset
SELECT is(referral.attribute(:program, jsonb_build_object('code', :'code'))
              #>> '{candidates,0,referrer_id}', :'patient', 'api: by code');

-- he refers a friend

SELECT referral.referral_create(:program, jsonb_build_object('code', :'code',
           'source', 'sms', 'message', 'They are good'),
           '{"email": "Fred@Example.com", "phone": "(415) 555-0123",
             "name": "Fred"}') AS fred \gset
CREATE FUNCTION pg_temp.word(referral bigint) RETURNS text LANGUAGE sql
    RETURN (SELECT status FROM referral.seed_telehealth_referral
                WHERE id = referral);
SELECT is(pg_temp.word(:fred), 'pending', 'lifecycle: pending');
SELECT is((SELECT referral_source FROM referral.seed_telehealth_referral
               WHERE id = :fred), 'sms', 'referral: source');
SELECT is((SELECT message FROM referral.referral_contact(:fred)),
          'They are good', 'referral: message');
SELECT is((SELECT expires_at::date - created_at::date
               FROM referral.seed_telehealth_referral WHERE id = :fred), 30,
          'program: 30 days');
SELECT is((SELECT count(*) FROM referral.person
               WHERE organisation_id = :org), 0::bigint,
          'privacy: nothing personal is kept of a referee');
SELECT is((SELECT count(*) FROM referral.referral_find(:org, NULL,
               '{"email": "fred@example.com"}')), 1::bigint,
          'privacy: and he is found by the hash of his e-mail');
SELECT is((SELECT count(*) FROM referral.referral_find(:org, NULL,
               '{"phone": "+1 415 555 0123"}')), 1::bigint,
          'privacy: or phone');
SELECT is((SELECT count(*) FROM referral.referral_find(:org, NULL,
               '{"email": "frida@example.com"}')), 0::bigint,
          'privacy: nobody else is');

-- interactions as the edge records them

INSERT INTO referral.interaction (id, occurred_at, stream, seq, type, verdict,
                                  via, kind, code, ip, user_agent, source,
                                  metadata)
    SELECT id, referral.uuid_time(id), 1, n, type, 'valid', 'redirect',
           'person', :'code', '203.0.113.0/24', 'Mozilla/5.0', 'sms',
           '{"campaign": "x"}'
        FROM (SELECT n, type, (lpad(to_hex((extract(epoch FROM now())
                                   * 1000)::bigint + n), 12, '0') || '7'
                               || substr(gen_random_uuid()::text, 16))::uuid
                                  AS id
                  FROM unnest(ARRAY['click', 'click', 'email_sent',
                                    'sms_sent'])
                           WITH ORDINALITY t (type, n)) i;
INSERT INTO referral.counter_delta (code, day, type, verdict, kind, n)
    SELECT code, current_date, type, verdict, kind, 1
        FROM referral.interaction WHERE code = :'code';
SELECT is((SELECT string_agg(type, ' ' ORDER BY seq)
               FROM referral.interaction WHERE code = :'code'),
          'click click email_sent sms_sent', 'tracking: interactions');
SELECT is((SELECT clicks FROM referral.seed_telehealth_referral
               WHERE id = :fred), 2::bigint, 'tracking: clicks');
SELECT id AS click FROM referral.interaction
    WHERE code = :'code' AND type = 'click' ORDER BY seq DESC LIMIT 1 \gset

-- he registers, and has his first consultation

SELECT is((referral.referral_register(:program, jsonb_build_object(
               'external_id', 'patient-2', 'click_id', :'click'),
               '{"email": "fred@example.com"}')
               ->> 'referral_id')::bigint, :fred::bigint,
          'referee: known by his e-mail');
SELECT is(pg_temp.word(:fred), 'registered', 'lifecycle: registered');
SELECT results_eq(format('SELECT referee_patient_id, referee_reward_status,
                                 referee_registered_at IS NOT NULL
                              FROM referral.seed_telehealth_referral
                              WHERE id = %s', :fred),
                  $$ VALUES ('patient-2', 'earned', true) $$,
                  'referee: a patient now, with a bonus');
SELECT is((referral.redeem(:org, 'consultation-1', '{"external_id":
               "patient-2", "kind": "discount", "unit": "coupons",
               "order_amount": 8000}') ->> 'discount')::int, 1600,
          'rewards: 20 % off the first consultation');
SELECT results_eq(format('SELECT status, used_on_order_id
                              FROM referral.seed_telehealth_reward
                              WHERE referral_id = %s
                                    AND reward_type = ''discount''', :fred),
                  $$ VALUES ('used', 'consultation-1') $$,
                  'credit: used, on which order');
SELECT referral.conversion_record(:org, '{"order_ref": "consultation-1",
           "external_id": "patient-2", "kind": "consultation",
           "amount": 6400, "discount": 1600}') \g /dev/null
SELECT results_eq(format('SELECT status, first_consultation_id,
                                 referrer_reward_status,
                                 referrer_reward_amount
                              FROM referral.seed_telehealth_referral
                              WHERE id = %s', :fred),
                  $$ VALUES ('converted', 'consultation-1', 'earned',
                             2000::bigint) $$, 'lifecycle: converted');
SELECT is((SELECT string_agg(reward_type || ' ' || reward_description, ', ')
               FROM referral.seed_telehealth_reward
               WHERE reward_type = 'free_item'), 'free_item consultation',
          'rewards: a free consultation');
SELECT is((SELECT status FROM referral.seed_telehealth_reward
               WHERE patient_id = 'patient-1'), 'available',
          'credit: available');

-- he uses his credit on orders; it is given back with one that is cancelled

SELECT referral.redeem(:org, 'order-1', jsonb_build_object('referrer_id',
           :patient, 'order_amount', 1500)) ->> 'redemption_id' AS redemption
    \gset
SELECT is((referral.redeem(:org, 'order-2', jsonb_build_object('referrer_id',
               :patient, 'order_amount', 9000)) ->> 'amount')::int, 500,
          'credit: used, what is left');
SELECT is((SELECT referrer_reward_status
               FROM referral.seed_telehealth_referral WHERE id = :fred),
          'redeemed', 'rewards: redeemed');
SELECT referral.redemption_reverse(:redemption, 'cancelled') \g /dev/null
SELECT is((SELECT available FROM referral.rewards
               WHERE referrer_id = :patient), 1500::bigint,
          'credit: back from a cancelled order');
SELECT referral.reward_expire(now() + interval '91 days') \g /dev/null
SELECT is((SELECT sum(balance) FROM referral.balances
               WHERE referrer_id = :patient AND kind = 'credit'), 0::numeric,
          'credit: the rest expires');

-- the second referral reaches the threshold; its reward waits for somebody

SELECT is((SELECT count(*) FROM referral.rewards WHERE slot = 'second'),
          0::bigint, 'program: threshold, not at the first');
SELECT referral.conversion_record(:org, jsonb_build_object('order_ref',
           'consultation-2', 'external_id', 'patient-3', 'code', :'code',
           'amount', 8000)) \g /dev/null
SELECT id AS second FROM referral.rewards WHERE slot = 'second' \gset
SELECT is((SELECT status FROM referral.rewards WHERE id = :second), 'pending',
          'program: threshold, at the second');
SELECT referral.reward_approve(:second) \g /dev/null
SELECT is((SELECT status FROM referral.rewards WHERE id = :second),
          'approved', 'api: approve');

-- declined, expired, in bulk; and no more than five

SELECT referral.referral_create(:program, jsonb_build_object('code', :'code'),
           jsonb_build_object('email', n || '@example.com')) AS id
    FROM generate_series(1, 3) n \g /dev/null
SELECT throws_ok(format('SELECT referral.referral_create(%s, %L, %L)',
                        :program, jsonb_build_object('code', :'code'),
                        '{"email": "sixth@example.com"}'), 'RF098', NULL,
                 'program: at most five');
SELECT max(id) AS last FROM referral.referrals \gset
SELECT referral.referral_decline(:last, 'not interested') \g /dev/null
SELECT is(pg_temp.word(:last), 'declined', 'lifecycle: declined');
SELECT is((SELECT string_agg(outcome, ' ') FROM referral.bulk(
               'referral_expire', ARRAY[:last - 1, :last - 2, :last])),
          'done done error', 'api: bulk, each for itself');
SELECT is(pg_temp.word(:last - 1), 'expired', 'lifecycle: expired');

SELECT referral.program_set_status(:program, 'paused') \g /dev/null
SELECT throws_ok(format('SELECT referral.referral_create(%s, %L)', :program,
                        jsonb_build_object('code', :'code')), 'RF103', NULL,
                 'program: paused');

-- who sees what, and who is seen

SELECT is((SELECT count(*) FROM referral.audit_trail
               WHERE action = 'read' AND object = 'referral'
                     AND object_id = :fred), 1::bigint,
          'audit: who read a contact');
SELECT is((SELECT count(*) FROM referral.audit_trail
               WHERE action = 'find' AND object = 'referral'), 3::bigint,
          'audit: who looked somebody up');
SELECT is((SELECT string_agg(to_status, ' ' ORDER BY id)
               FROM referral.referral_steps WHERE referral_id = :fred),
          'pending registered converted rewarded', 'audit: the steps');
SELECT throws_ok('DELETE FROM referral.audit', 'RF014', NULL,
                 'audit: append-only');
SELECT set_config('referral.referrer', :'patient', true) \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT is((SELECT count(*) FROM referral.my_referrals), 5::bigint,
          'api: mine');
SELECT is((SELECT count(*) FROM referral.my_rewards), 3::bigint,
          'api: my rewards');
SELECT throws_ok('SELECT message FROM referral.referral', '42501', NULL,
                 'privacy: partner, nothing of the friend');
RESET ROLE;
SET LOCAL ROLE referral_analyst;
SELECT lives_ok('SELECT * FROM referral.referrals', 'privacy: analysts');
SELECT throws_ok(format('SELECT referral.referral_contact(%s)', :fred),
                 '42501', NULL, 'privacy: analysts read no contact');
SELECT throws_ok('SELECT * FROM referral.person', '42501', NULL,
                 'privacy: analysts read no person');
RESET ROLE;
SELECT is((SELECT count(*) FROM referral.event
               WHERE data::text ~* 'fred|555'), 0::bigint,
          'events: nothing of him in them');
SELECT is((SELECT count(*) > 0 FROM referral.event
               WHERE type = 'reward.earned'), true, 'events: for the texts');
SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');

SELECT * FROM finish();

ROLLBACK;
