-- Copyright (C) The nginx referral module authors
--
-- Zappy Health, telehealth: patients refer friends and family ("Referral
-- Management System Architecture"), in the words of its tables (the views
-- seed_telehealth_*).
--
-- requirement -> test
--   referral_programs: name, description, standard, specialty, seasonal
--                                                  -> "program: types"
--   rewards of both sides: credit, discount %, cash, free consultation
--                                                  -> "rewards: ..."
--   max_referrals_per_patient                      -> "program: at most"
--   reward_threshold: referrals needed for a reward
--                                                  -> "program: threshold"
--   expiry_days: for the referee to redeem         -> "program: 30 days"
--   active, paused, ended; start and end dates; created by
--                           -> "program: paused", "ended", "starts", "by whom"
--   target_conditions, target_demographics         -> "program: targets"
--   list, create, read, update, delete programs    -> "program: ..."
--   referrals: unique code, 20 characters, crypto-secure
--                                                  -> "code: ..."
--   the referrer; the referee's e-mail, phone, name; patient id once
--     registered                                   -> "referee: ..."
--   source email, sms, social, direct_link; message
--                                 -> "referral: source", "referral: message"
--   one friend referred by several patients        -> "referee: by two"
--   pending, registered, converted, expired, declined
--                                                  -> "lifecycle: ..."
--   registered at, first consultation, first order, converted at
--                                                  -> "lifecycle: ..."
--   reward of each side: pending, earned, redeemed, expired; when; amount
--                                                  -> "rewards: ..."
--   clicks, last clicked, expires at               -> "tracking: ..."
--   referral_interactions: click, email_sent, sms_sent with inet, user agent,
--     source, metadata                             -> "tracking: interactions"
--     registration, conversion                     -> "tracking: steps"
--   referral_rewards: available, used, expired, cancelled; used on which
--     order, when; expires at; description         -> "credit: ..."
--   GET /referrals/:code; the invitation's bonus and days
--                                                  -> "api: by code, ..."
--   POST /referrals/:code/register                 -> "lifecycle: registered"
--   GET /referrals/:code/click                     -> the edge, t/redirect.t
--   my referrals, one of them, my rewards          -> "api: mine"
--   all referrals, with filters                    -> "api: by status"
--   approve reward                                 -> "api: approve"
--   bulk operations                                -> "api: bulk"
--   audit trail (HIPAA): all tracking, who and when, append-only
--                                                  -> "audit: ..."
--   referral data is PHI: access by role           -> "privacy: partner",
--                                       "privacy: analysts", t/sql/rights.sql
--   e-mail hashed for privacy, found again         -> "privacy: ..."
--     (bcrypt with a random salt, as the document has it, finds nothing)
--   anonymized for analytics                       -> "privacy: analysts"
--   a patient is forgotten                         -> "erasure: ..."
--   orders are created with available rewards      -> "credit: used"
--   cash rewards are paid; a consultation is refunded after that
--                                                  -> "cash: ..."
--   total referrals, conversion rate, average reward cost, lifetime value,
--     trends, funnel, ROI, rewards paid            -> "analytics: ..."
--   active programs, program performance           -> "analytics: programs"
--   top referrers                                  -> "analytics: top"
--   A/B testing of programs                        -> "program: A/B"
--   ?ref= on the registration page, its banner and hidden field
--                            -> the edge: $referral_code, t/variables.t
--   e-mail and SMS: invitation (name, bonus, days), reward earned
--          -> "events: ..."; outside: sending them, by webhooks or t/webhook.t
--   portals, navigation      -> outside: hooks are these views and my_page()
--   Stripe, SendGrid, Twilio -> outside: hooks are webhooks

BEGIN;

SET LOCAL timezone = 'UTC';

SELECT no_plan();

SELECT referral.organisation_create('zappy', 'Zappy Health', '{"settings":
           {"referee_contact": "hash", "calling_code": "1"}}') AS org \gset
SELECT set_config('t.org', :'org', true) \g /dev/null

-- the program

SELECT lives_ok(format('SELECT referral.program_create(%s, %L, ''P'', %L)',
                       :org, t, jsonb_build_object('type', t)),
                'program: types, ' || t)
    FROM unnest(ARRAY['standard', 'specialty', 'seasonal']) t;
SET LOCAL referral.actor = 'provider-7';
SELECT referral.program_create(:org, 'friends', 'Refer a Friend', '{
           "description": "Family and friends",
           "landing_url": "https://zappy.example/register",
           "referral_validity": "30 days", "max_referrals_per_referrer": 5,
           "targeting": {"conditions": ["migraine"], "age": [18, 65]}}')
           AS program \gset
RESET referral.actor;
SELECT is((SELECT created_by FROM referral.programs WHERE id = :program),
          'provider-7', 'program: by whom');
SELECT is((SELECT targeting FROM referral.programs WHERE id = :program),
          '{"conditions": ["migraine"], "age": [18, 65]}'::jsonb,
          'program: targets');
SELECT referral.program_update(:program, '{"targeting": {"conditions":
           ["migraine", "acne"], "age": [18, 65], "states": ["CA"]}}')
    \g /dev/null
SELECT is((SELECT targeting #>> '{conditions,1}' FROM referral.programs
               WHERE id = :program), 'acne', 'program: updated');
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

SELECT id AS season FROM referral.programs WHERE slug = 'seasonal' \gset
SELECT referral.program_update(:season, jsonb_build_object('landing_url',
           'https://zappy.example/flu', 'starts_at', now() + interval '1 day'))
    \g /dev/null
SELECT referral.program_variant_set(:season, 'a', 1),
       referral.program_variant_set(:season, 'b', 1),
       referral.program_set_status(:season, 'active') \g /dev/null
SELECT is((SELECT count(DISTINCT referral.variant_pick(:season, 'p' || n))
               FROM generate_series(1, 64) n), 2::bigint,
          'program: A/B, both are picked');
SELECT is((SELECT count(*) FROM generate_series(1, 64) n
               WHERE referral.variant_pick(:season, 'p' || n)
                     <> referral.variant_pick(:season, 'p' || n)), 0::bigint,
          'program: A/B, the same for the same patient');
SELECT referral.ensure_code(:season, 'patient-1', '{"type": "patient"}')
           AS early \gset
SELECT throws_ok(format('SELECT referral.referral_create(%s, %L)', :season,
                        jsonb_build_object('code', :'early')), 'RF093', NULL,
                 'program: starts tomorrow');
SELECT referral.program_set_status(:season, 'ended') \g /dev/null
SELECT is((SELECT verdict FROM referral.codes WHERE code = :'early'),
          'inactive', 'program: ended, and its codes with it');
SELECT referral.program_set_status(id, 'archived') FROM referral.programs
    WHERE slug = 'specialty' \g /dev/null
SELECT is((SELECT string_agg(slug || ' ' || status, ', ' ORDER BY slug)
               FROM referral.programs),
          'friends active, seasonal ended, specialty archived,'
          ' standard draft', 'program: deleted is archived');

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
              #>> '{candidates,0,referrer_id}', :'patient',
          'api: by code, whose it is');
SELECT results_eq(format($$ SELECT u.coupon_bp, p.referral_validity
                                FROM referral.codes c
                                     JOIN referral.programs p
                                         ON p.id = c.program_id
                                     JOIN referral.reward_rules u
                                         ON u.program_id = p.id
                                WHERE c.code = %L AND u.coupon_bp > 0 $$,
                         :'code'),
                  $$ VALUES (2000, interval '30 days') $$,
                  'api: by code, its bonus and for how long');

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

-- another patient refers him too

SELECT referral.ensure_code(:program, 'patient-9', '{"type": "patient"}')
           AS other \gset
SELECT referral.referral_create(:program, jsonb_build_object('code', :'other',
           'source', 'email'), '{"email": "fred@example.com"}') AS again \gset
SELECT is((SELECT count(*) FROM referral.referral_find(:org, NULL,
               '{"email": "FRED@example.com"}')), 2::bigint,
          'referee: by two, both are pending');

-- invitations that were sent, and clicks as the edge records them

SELECT referral.share_record(:'code', '{"type": "email_sent",
                                        "campaign": "x"}'),
       referral.share_record(:'code', '{"type": "sms_sent",
                                        "source": "twilio"}') \g /dev/null
SELECT referral.partition_ensure((now() AT TIME ZONE 'UTC')::date)
    \g /dev/null
INSERT INTO referral.interaction (id, occurred_at, stream, seq, type, verdict,
                                  via, kind, code, ip, user_agent, source,
                                  metadata)
    SELECT id, referral.uuid_time(id), 1, n, 'click', 'valid', 'redirect',
           'person', :'code', '203.0.113.0/24', 'Mozilla/5.0', 'sms',
           '{"campaign": "x"}'
        FROM (SELECT n, (lpad(to_hex((extract(epoch FROM now())
                                      * 1000)::bigint + n), 12, '0') || '7'
                         || substr(gen_random_uuid()::text, 16))::uuid AS id
                  FROM generate_series(1, 2) n) i;
INSERT INTO referral.counter_delta (program_id, code, day, type, verdict, kind,
                                    n)
    SELECT :program, code, (occurred_at AT TIME ZONE 'UTC')::date, type,
           verdict, kind, 1
        FROM referral.interaction WHERE code = :'code' AND type = 'click';
SELECT is((SELECT string_agg(concat_ws(' ', type, host(ip), user_agent,
                                       source, metadata ->> 'campaign'), ', '
                             ORDER BY type)
               FROM (SELECT DISTINCT type, ip, user_agent, source, metadata
                         FROM referral.interaction
                         WHERE code = :'code') i),
          'click 203.0.113.0 Mozilla/5.0 sms x, email_sent x,'
          ' sms_sent twilio', 'tracking: interactions');
SELECT throws_ok(format('SELECT referral.share_record(%L, %L)', :'code',
                        '{"type": "click"}'), 'RF010', NULL,
                 'tracking: clicks are the edge''s');
SELECT throws_ok($$ SELECT referral.share_record('NOBODY') $$, 'RF031', NULL,
                 'tracking: an unknown code is not shared');
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
SELECT is(pg_temp.word(:again), 'declined',
          'referee: by two, one is credited');
SELECT is((SELECT last_clicked_at > created_at
               FROM referral.seed_telehealth_referral WHERE id = :fred), true,
          'tracking: last clicked');
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
SELECT referral.conversion_record(:org, '{"order_ref": "rx-1",
           "external_id": "patient-2", "kind": "order", "amount": 3000}')
    \g /dev/null
SELECT is((SELECT first_order_id FROM referral.seed_telehealth_referral
               WHERE id = :fred), 'rx-1',
          'lifecycle: converted, and the first order');
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
SELECT is((SELECT referrer_reward_redeemed_at = now()
                  AND referrer_reward_earned_at = now()
               FROM referral.seed_telehealth_referral WHERE id = :fred), true,
          'rewards: earned and redeemed, when');
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

-- it is paid; then that consultation is refunded: the cash is owed, what the
-- patient has not used of the credit is taken back

SELECT referral.payout_request(:patient) AS payout \gset
SELECT referral.payout_approve(:payout), referral.payout_pay(:payout, 'po-1')
    \g /dev/null
SELECT is((SELECT status FROM referral.seed_telehealth_reward
               WHERE id = :second), 'used', 'cash: paid');
SELECT referral.refund_record(:org, '{"refund_ref": "re-1",
           "order_ref": "consultation-2"}') \g /dev/null
SELECT is((SELECT string_agg(kind || ' ' || balance, ', ' ORDER BY kind)
               FROM referral.balances
               WHERE referrer_id = :patient AND unit = 'USD'
                     AND kind IN ('payable', 'paid', 'credit')),
          'credit 0, paid 5000, payable -5000',
          'cash: a consultation is refunded after that');

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
SELECT throws_ok(format('SELECT referral.referral_register(%s, %L, %L)',
                        :program, jsonb_build_object('external_id',
                        'patient-8', 'referral_id', :last - 1), '{}'),
                 'RF102', NULL, 'lifecycle: expired, it is of no use');
SELECT is((SELECT string_agg(status || ' ' || n, ', ' ORDER BY status)
               FROM (SELECT status, count(*) AS n
                         FROM referral.seed_telehealth_referral
                         GROUP BY 1) r),
          'converted 2, declined 2, expired 2', 'api: by status');

-- Analytics.  Two were invited by mail and SMS, two clicked; six referrals,
-- Fred registered, he and patient-3 converted: 64 + 30 + 80 dollars, 80 given
-- back.  Rewards: 20 + 20 + 50, of which 70 were taken back and 15 expired.

SELECT referral.program_cost_record(:program, (now() AT TIME ZONE 'UTC')::date,
                                    1800, 'leaflets') \g /dev/null
SELECT referral.counter_fold(), referral.rollup_refresh('1 minute', '0')
    \g /dev/null
SELECT is((SELECT string_agg(step || ' ' || n, ', ')
               FROM referral.funnel(:program, current_date - 3,
                                    current_date + 3)),
          'shared 2, clicked 2, referred 6, registered 1, converted 2',
          'analytics: funnel');
SELECT is((SELECT concat_ws(' ', revenue, net, cost, average_reward, spend,
                            roi)
               FROM referral.program_figures(:program, current_date - 3,
                                             current_date + 3)),
          -- (94 - 5 - 18) / (5 + 18) = 3.0870
          '17400 9400 500 250 1800 3.0870',
          'analytics: average reward cost, ROI');
SELECT is((SELECT concat_ws(' ', customers, value, average, repeat_rate)
               FROM referral.lifetime_value(:program)),
          '2 9400 4700 0.5000', 'analytics: lifetime value');
SELECT is((SELECT string_agg(concat_ws(' ', clicks, created, converted), ', ')
               FROM referral.trend(:program, current_date - 3,
                                   current_date + 3)
               WHERE created > 0), '2 6 2', 'analytics: trends');
SELECT is((SELECT string_agg(concat_ws(' ', rank, external_id, created,
                                       converted), ', ')
               FROM referral.leaderboard(:program, 'converted',
                        current_date - 3, current_date + 3)),
          '1 patient-1 5 2', 'analytics: top referrers');
SELECT is((SELECT string_agg(concat_ws(' ', p.slug, f.created, f.converted),
                             ', ' ORDER BY p.slug)
               FROM referral.programs p,
                    referral.program_figures(p.id, current_date - 3,
                                             current_date + 3) f
               WHERE p.status IN ('active', 'ended')),
          'friends 6 2, seasonal 0 0', 'analytics: programs');

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
               WHERE action = 'find' AND object = 'referral'), 4::bigint,
          'audit: who looked somebody up');
SELECT is((SELECT string_agg(to_status, ' ' ORDER BY id)
               FROM referral.referral_steps WHERE referral_id = :fred),
          'pending registered converted rewarded', 'tracking: steps');
SELECT is((SELECT string_agg(DISTINCT action, ' ')
               FROM referral.audit_trail
               WHERE object = 'program' AND object_id = :program),
          'insert update', 'audit: changes of a program');
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

-- Fred wants to be forgotten

SELECT referral.customer_erase(:org, 'patient-2', NULL, 'asked') \g /dev/null
SELECT is((SELECT coalesce(referee_patient_id, '-') || ' ' || status
               FROM referral.seed_telehealth_referral WHERE id = :fred),
          '- converted', 'erasure: the referral stays, without him');
SELECT is((SELECT count(*) FROM referral.referral_find(:org, NULL,
               '{"email": "fred@example.com"}')), 0::bigint,
          'erasure: his hashes are gone');
SELECT is((SELECT count(*) FROM referral.interaction
               WHERE code = :'code' AND ip IS NOT NULL), 1::bigint,
          'erasure: and the address of his click');

SET CONSTRAINTS ALL IMMEDIATE;
SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');

SELECT * FROM finish();

ROLLBACK;
