-- Copyright (C) The nginx referral module authors
--
-- Pet-Friendly: customers refer customers, and vets each other (the fourth of
-- the five specifications, "S-025b").
--
-- requirement -> test
--   referrers: customer, partner, influencer, employee, professional
--                                                  -> "referrer: ..."
--   referrers who are no users                     -> "referrer: no user"
--   one code per referrer, JUAN2025                -> "code: JUAN2025"
--   commission percent, fixed, credit              -> "reward: ..."
--   total, successful, earned, pending payout      -> "figures: ..."
--   campaign codes, SUMMER25, rewards per code     -> "code: SUMMER25"
--   expiry, usage limits, off                      -> "code: expired",
--                                                     "code: max uses",
--                                                     "code: off"
--   code -> referrer -> new customer               -> "tracking"
--   pending converted paid expired cancelled       -> "lifecycle: ..."
--   first purchase, both rewards, dates, notes     -> "lifecycle: ..."
--   cash, credit, next discount, free item, points -> "reward: ..."
--   tiers: 1st, 5th, 10th                          -> "tiers: ..."
--   two-sided                                      -> "two-sided"
--   payout: bank, cash, credit, check; pending, approved, paid, cancelled;
--     several referrals in one; who approved       -> "payout: ..."
--   request a payout or apply as credit            -> "payout: credit"
--   portal: log in, codes, statistics, rewards     -> "portal: ..."
--   funnel, rates, revenue, leaderboard, campaigns -> t/sql/report.sql
--   "shared" of the funnel: an interaction of type share -> the edge
--   QR with the signup link, printable card  -> outside: hook is the view
--                                               codes; the edge marks scans
--   billing, loyalty, accounts   -> outside: hooks are events, "events"
--   badges                       -> outside: hook is the leaderboard
--   professional balance: "You gave me 3, I gave you 2, I owe you 1"
--                                                  -> "professional: ..."
--     (the document's code says the contrary of its example: the example
--     holds)
--   professional and customer referrals are apart  -> "professional: apart"

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('pets', 'Pet-Friendly',
           '{"currency": "MXN"}') AS org \gset
SELECT set_config('t.org', :'org', true) \g /dev/null
SELECT referral.program_create(:org, 'customers', 'Bring a friend', '{
           "type": "customer",
           "landing_url": "https://pets.example/register/"}') AS program
    \gset
SELECT referral.reward_rules_set(:program, '[
           {"slot": "commission", "kind": "cash",
            "tiers": [{"from": 1, "amount": 5000}, {"from": 5,
                       "amount": 10000}, {"from": 10, "amount": 20000}]},
           {"slot": "points", "kind": "points", "unit": "points",
            "amount": 50},
           {"slot": "food", "kind": "free_item", "unit": "items", "amount": 1,
            "item": "bag of food", "every": 5},
           {"slot": "welcome", "beneficiary": "referee", "kind": "discount",
            "amount": 10000, "trigger": "registration"}]') \g /dev/null
SELECT referral.program_set_status(:program, 'active') \g /dev/null

-- referrers

SELECT lives_ok(format('SELECT referral.referrer_create(%s, %L)', :org, t),
                'referrer: ' || t)
    FROM unnest(ARRAY['customer', 'partner', 'influencer', 'employee',
                      'professional']) t;
SELECT referral.referrer_create(:org, 'customer', '{}',
           '{"name": "Juan", "email": "juan@example.com",
             "phone": "+52 55 5555 0100"}') AS juan \gset
SELECT is((SELECT external_id FROM referral.referrers WHERE id = :juan), NULL,
          'referrer: no user');

-- codes

SELECT is((referral.code_create(:program, :juan, 'juan2025')).code,
          'JUAN2025', 'code: JUAN2025');
SELECT id AS summer FROM referral.code_create(:program, :juan, 'SUMMER25',
           '{"campaign": "Summer 2025", "max_uses": 2}') \gset
SELECT referral.reward_rules_set(:program, '[
           {"slot": "commission", "kind": "credit", "rate_bp": 500},
           {"slot": "welcome", "beneficiary": "referee", "kind": "discount",
            "amount": 25000, "trigger": "registration"}]',
           jsonb_build_object('code_id', :summer)) \g /dev/null

CREATE FUNCTION pg_temp.joins(customer text, code text) RETURNS bigint
    LANGUAGE sql
    RETURN (referral.referral_register(NULL, jsonb_build_object('code', code,
                'external_id', customer)) ->> 'referral_id')::bigint;
CREATE FUNCTION pg_temp.buys(customer text, amount bigint) RETURNS text
    LANGUAGE sql
    RETURN (SELECT string_agg(concat_ws(' ', r ->> 'kind', r ->> 'amount',
                                        r ->> 'item'), ', ' ORDER BY n)
                FROM jsonb_array_elements(referral.conversion_record(
                         current_setting('t.org')::bigint,
                         jsonb_build_object('order_ref', customer || '/1',
                             'external_id', customer, 'amount', amount))
                         -> 'rewards') WITH ORDINALITY e (r, n));
CREATE FUNCTION pg_temp.word(referral bigint) RETURNS text LANGUAGE sql
    RETURN (SELECT status FROM referral.seed_vet_referral WHERE id = referral);

-- the lifecycle

SELECT pg_temp.joins('maria', 'juan2025') AS maria \gset
SELECT is((SELECT concat_ws(' ', code_used, new_customer, status)
               FROM referral.seed_vet_referral WHERE id = :maria),
          'JUAN2025 maria pending', 'lifecycle: pending; tracking');
SELECT is((referral.redeem(:org, 'visit-1', '{"external_id": "maria",
               "kind": "discount", "order_amount": 8000}')
               ->> 'amount')::int, 8000,
          'two-sided: the new customer''s discount, no more than the visit');
SELECT is(pg_temp.buys('maria', 60000), 'cash 5000, points 50',
          'reward: cash and points; tiers: the 1st');
SELECT is((SELECT concat_ws(' ', status, first_purchase_amount,
                            referrer_reward_amount,
                            new_customer_discount_applied, currency)
               FROM referral.seed_vet_referral WHERE id = :maria),
          'converted 60000 5000 8000 MXN', 'lifecycle: converted');
SELECT pg_temp.joins('old', 'JUAN2025') AS old \gset
SELECT referral.referral_cancel(:old, 'moved away') \g /dev/null
SELECT is(pg_temp.word(:old), 'cancelled', 'lifecycle: cancelled');

-- tiers and every fifth

SELECT pg_temp.joins('c' || n, 'JUAN2025') FROM generate_series(2, 10) n
    \g /dev/null
CREATE TEMP TABLE bought (n int, given text);
DO $$
BEGIN
    FOR n IN 2 .. 10 LOOP
        INSERT INTO bought VALUES (n, pg_temp.buys('c' || n, 40000));
    END LOOP;
END $$;
SELECT is(given, want, name)
    FROM bought JOIN (VALUES
        (4, 'cash 5000, points 50', 'tiers: the 4th'),
        (5, 'cash 10000, points 50, free_item 1 bag of food',
         'tiers: the 5th; reward: a free item'),
        (9, 'cash 10000, points 50', 'tiers: the 9th'),
        (10, 'cash 20000, points 50, free_item 1 bag of food',
         'tiers: the 10th')) v (n, want, name) USING (n);

-- the campaign's code

SELECT pg_temp.joins('s1', 'SUMMER25') \g /dev/null
SELECT is((SELECT amount FROM referral.rewards
               WHERE slot = 'welcome' ORDER BY id DESC LIMIT 1),
          25000::bigint, 'code: SUMMER25, rewards of its own');
SELECT is(pg_temp.buys('s1', 30000), 'credit 1500, points 50',
          'reward: percent, as credit; what it does not name is the'
          ' program''s');
SELECT is((SELECT campaign FROM referral.referrals ORDER BY id DESC LIMIT 1),
          'Summer 2025', 'code: SUMMER25, its campaign');
SELECT pg_temp.joins('s2', 'SUMMER25') \g /dev/null
SELECT throws_ok('SELECT pg_temp.joins(''s3'', ''SUMMER25'')', 'RF095', NULL,
                 'code: max uses');
SELECT is((SELECT uses FROM referral.codes WHERE code = 'SUMMER25'), 2,
          'code: times used');
SELECT referral.code_create(:program, :juan, 'SPRING24') \g /dev/null
UPDATE referral.code SET expires_at = now() - interval '1 day'
    WHERE code = 'SPRING24';
SELECT throws_ok('SELECT pg_temp.joins(''s3'', ''SPRING24'')', 'RF093', NULL,
                 'code: expired');
SELECT id AS off FROM referral.code_create(:program, :juan, 'OFF') \gset
SELECT referral.code_set_status(:off, 'disabled') \g /dev/null
SELECT throws_ok('SELECT pg_temp.joins(''s3'', ''OFF'')', 'RF093', NULL,
                 'code: off');

-- payouts

SELECT referral.payout_request(:juan, '{"method": "cash", "amount": 60000}')
           AS payout \gset
SELECT is((SELECT status || ' ' || cardinality(referrals)
               FROM referral.seed_vet_payout WHERE id = :payout), 'pending 8',
          'payout: pending, of several referrals');
SET LOCAL referral.actor = 'owner@pets.example';
SELECT referral.payout_approve(:payout) \g /dev/null
RESET referral.actor;
SELECT is((SELECT status || ' ' || approved_by FROM referral.seed_vet_payout
               WHERE id = :payout), 'approved owner@pets.example',
          'payout: approved, by whom');
SELECT referral.payout_pay(:payout) \g /dev/null
SELECT is((SELECT status FROM referral.seed_vet_payout WHERE id = :payout),
          'paid', 'payout: paid in cash');
SELECT is(pg_temp.word(:maria), 'paid', 'lifecycle: paid out');
SELECT is((SELECT count(*) FROM referral.seed_vet_referral
               WHERE status = 'paid' AND referrer_reward_paid_at IS NOT NULL),
          (SELECT count(*) FROM referral.seed_vet_referral
               WHERE status = 'paid'), 'lifecycle: and when');
SELECT referral.payout_request(:juan, '{"method": "check"}') AS second \gset
SELECT referral.payout_cancel(:second) \g /dev/null
SELECT is((SELECT status FROM referral.seed_vet_payout WHERE id = :second),
          'cancelled', 'payout: cancelled');
SELECT referral.payout_request(:juan, '{"method": "account_credit"}')
           AS third \gset
SELECT referral.payout_approve(:third), referral.payout_pay(:third)
    \g /dev/null
SELECT is((SELECT balance FROM referral.balances
               WHERE referrer_id = :juan AND kind = 'credit'
                     AND unit = 'MXN'), 31500::bigint,
          'payout: credit, 30000 and what SUMMER25 gave');
SELECT is((referral.redeem(:org, 'visit-9', jsonb_build_object('referrer_id',
               :juan, 'order_amount', 7000)) ->> 'remaining')::int, 24500,
          'payout: credit, used on the next service');

SELECT results_eq(format('SELECT total_referrals, successful_referrals,
                                 total_earnings, currency
                              FROM referral.seed_insurance_partner
                              WHERE id = %s', :juan),
                  $$ VALUES (13::bigint, 11::bigint, 91500::bigint, 'MXN') $$,
                  'figures: total, successful, earned');

-- never converted

SELECT is(referral.referral_expire(now() + interval '91 days'), 1::bigint,
          'lifecycle: expired');

SELECT is((SELECT count(*) > 0 FROM referral.event
               WHERE type = 'payout.paid'), true, 'events');

-- the portal

SELECT set_config('referral.referrer', :'juan', true) \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT is((SELECT count(*) FROM referral.my_codes), 4::bigint,
          'portal: codes');
SELECT is((SELECT count(*) FILTER (WHERE status = 'paid') || ' of '
                  || count(*) FROM referral.my_referrals), '10 of 13',
          'portal: statistics');
SELECT is((SELECT sum(amount) FROM referral.my_payouts
               WHERE status = 'paid'), 90000::numeric, 'portal: payouts');
SELECT throws_ok('SELECT referral.my_payout_request()', 'RF108', NULL,
                 'portal: payout request, nothing is left');
RESET ROLE;
SELECT set_config('referral.referrer', '', true) \g /dev/null

-- vets

SELECT referral.professional_partner_ensure(:org, 'Dr. Onco',
           '{"specialty": "oncology"}') AS vet \gset
SELECT is((SELECT balance_text FROM referral.professional_balance),
          'You gave me 0, I gave you 0, we are even', 'professional: even');
SELECT referral.professional_referral_record(:vet, 'received',
           jsonb_build_object('subject', 'dog-' || n))
    FROM generate_series(1, 3) n \g /dev/null
SELECT referral.professional_referral_record(:vet, 'sent',
           jsonb_build_object('subject', 'cat-' || n))
    FROM generate_series(1, 2) n \g /dev/null
SELECT is((SELECT balance_text || '.' FROM referral.professional_balance),
          'You gave me 3, I gave you 2, I owe you 1.',
          'professional: in the words of the example');
SELECT is((SELECT we_owe FROM referral.professional_balance), 1::bigint,
          'professional: received less sent is what we owe');
SELECT is((SELECT count(*) FROM referral.referrals
               WHERE program_id <> :program), 0::bigint,
          'professional: apart from customers');

SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');

SELECT * FROM finish();

ROLLBACK;
