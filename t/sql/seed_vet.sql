-- Copyright (C) The nginx referral module authors
--
-- Pet-Friendly, a veterinary clinic: customers refer customers, and vets each
-- other (S-025b, "Customer Referral Program"), in the words of its models
-- (the views seed_vet_*).
--
-- requirement -> test
--   Referrer: customer, partner, influencer, employee, professional
--                                                  -> "referrer: ..."
--   referrers who are no users: name, email, phone -> "referrer: no user"
--   unique code per referrer, JUAN2025             -> "code: JUAN2025",
--                                                     "code: taken"
--   commission percent, fixed, credit, of each     -> "commission: ..."
--   total and successful referrals, total earned, pending payout, active
--                                                  -> "statistics: ..."
--   ReferralCode: campaign code SUMMER25, rewards of both sides per code
--                                                  -> "code: SUMMER25"
--   expires_at, max_uses, times_used, is_active    -> "code: expired",
--                       "code: max uses", "code: times used", "code: off"
--   an ineligible referrer                         -> "referrer: inactive"
--   code -> referrer -> new customer               -> "lifecycle: pending"
--   CustomerReferral: pending, converted, paid, expired, cancelled
--                                                  -> "lifecycle: ..."
--   code used at, first purchase, both rewards, paid at, notes
--                                                  -> "lifecycle: ..."
--   a new customer uses a code for a discount on the first visit
--                                                  -> "two-sided"
--   cash, credit, discount on the next service, free item, points
--                                                  -> "reward: ..."
--   tiers: 1st = X, 5th = Y, 10th = Z              -> "tiers: ..."
--   promotion in the price                         -> "commission: percent"
--   ReferralPayout: bank_transfer, cash, account_credit, check; pending,
--     approved, paid, cancelled; many referrals in one; approved by; notes;
--     request and approval                         -> "payout: ..."
--   request a payout or apply it as credit         -> "payout: as credit"
--   a purchase is given back after the payout      -> "payout: given back"
--   portal: log in, codes, generate, statistics (sent, converted, pending),
--     earned, payouts, request                     -> "portal: ..."
--   funnel: shared, used, converted                -> "figures: funnel"
--   conversion rate and revenue by referrer, leaderboard, badges
--                                                  -> "figures: leaderboard"
--   campaign performance                           -> "figures: campaign"
--   tracking of sources                            -> "figures: source"
--   clinic's dashboard                             -> "figures: dashboard"
--   billing, loyalty points, accounts              -> "events: ...",
--                                 "reward: points"; outside: their receivers
--   professional balance: "You gave me 3, I gave you 2, I owe you 1"
--                                                  -> "professional: ..."
--     (the model's code says the contrary of this example: it calls received
--     less sent what they owe us.  The example holds)
--   inbound and outbound patients, specialists     -> "professional: ..."
--   professional and customer referrals are apart  -> "professional: apart"
--   a customer is forgotten                        -> "erasure: ..."
--   QR code of /register/?ref=CODE, printable card -> outside: hooks are the
--     link in code_published ("code: link"), ?utm_medium=qr, which the edge
--     and referrals call source qr, and share_record()
--   pages of portal and admin        -> outside: hooks are views and my_page()

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('pets', 'Pet-Friendly',
           '{"currency": "MXN", "time_zone": "America/Mexico_City"}') AS org
    \gset
SELECT set_config('t.org', :'org', true) \g /dev/null
SELECT referral.program_create(:org, 'customers', 'Bring a friend',
           '{"type": "customer", "landing_url":
             "https://pets.example/register/?ref={code}"}') AS program \gset

-- The commission is fixed, 50.00, from the 5th on 100.00, from the 10th on
-- 200.00; every fifth brings a bag of food.  The friend has 100.00 off.

SELECT referral.reward_rules_set(:program, '[
           {"slot": "commission", "kind": "cash",
            "tiers": [{"from": 1, "amount": 5000}, {"from": 5,
                       "amount": 10000}, {"from": 10, "amount": 20000}]},
           {"slot": "points", "kind": "points", "amount": 50},
           {"slot": "food", "kind": "free_item", "amount": 1,
            "item": "bag of food", "every": 5},
           {"slot": "welcome", "beneficiary": "referee", "kind": "discount",
            "amount": 10000, "trigger": "registration"}]') \g /dev/null
SELECT referral.program_set_status(:program, 'active') \g /dev/null

CREATE FUNCTION pg_temp.joins(customer text, code text) RETURNS bigint
    LANGUAGE sql
    RETURN (referral.referral_register(NULL, jsonb_build_object('code', code,
                'external_id', customer, 'notes', 'friend ' || customer),
                jsonb_build_object('email', customer || '@example.com'))
                ->> 'referral_id')::bigint;
CREATE FUNCTION pg_temp.buys(customer text, amount bigint,
                             discount bigint DEFAULT 0) RETURNS text
    LANGUAGE sql
    RETURN (SELECT string_agg(concat_ws(' ', r ->> 'kind', r ->> 'amount',
                                        r ->> 'item'), ', ' ORDER BY n)
                FROM jsonb_array_elements(referral.conversion_record(
                         current_setting('t.org')::bigint,
                         jsonb_build_object('order_ref', customer || '/1',
                             'external_id', customer, 'amount', amount,
                             'discount', discount))
                         -> 'rewards') WITH ORDINALITY e (r, n));
CREATE FUNCTION pg_temp.word(referral bigint) RETURNS text LANGUAGE sql
    RETURN (SELECT status FROM referral.seed_vet_referral WHERE id = referral);
CREATE FUNCTION pg_temp.clicks(code text, n int, source text) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM referral.partition_ensure((now() AT TIME ZONE 'UTC')::date);
    INSERT INTO referral.interaction (id, occurred_at, stream, seq, type,
                                      verdict, via, kind, code, source)
        SELECT i.id, referral.uuid_time(i.id), 1, i.k, 'click', 'valid',
               'redirect', 'person', clicks.code, clicks.source
            FROM (SELECT k, (lpad(to_hex((extract(epoch FROM now())
                                          * 1000)::bigint), 12, '0') || '7'
                             || substr(gen_random_uuid()::text, 16))::uuid
                             AS id
                      FROM generate_series(1, clicks.n) k) i;
    INSERT INTO referral.counter_delta (program_id, code, day, type, verdict,
                                        kind, n)
        SELECT c.program_id, c.code, (now() AT TIME ZONE 'UTC')::date,
               'click', 'valid', 'person', clicks.n
            FROM referral.codes c WHERE c.code = clicks.code;
END $$;

-- referrers, and their codes

SELECT lives_ok(format('SELECT referral.referrer_create(%s, %L)', :org, t),
                'referrer: ' || t)
    FROM unnest(ARRAY['customer', 'employee', 'professional']) t;
SELECT referral.referrer_create(:org, 'customer', '{}',
           '{"name": "Juan", "email": "juan@example.com",
             "phone": "+52 55 5555 0100"}') AS juan \gset
SELECT referral.referrer_create(:org, 'influencer', '{"external_id": "paws",
           "commission_bp": 1000}') AS paws \gset
SELECT referral.referrer_create(:org, 'partner', '{"external_id": "salon"}')
           AS salon \gset
SELECT is((SELECT external_id FROM referral.referrers WHERE id = :juan), NULL,
          'referrer: no user');
SELECT is((SELECT name || ' ' || phone FROM referral.referrer_contact(:juan)),
          'Juan +52 55 5555 0100', 'referrer: no user, but a name');
SELECT is((referral.code_create(:program, :juan, 'juan2025')).code,
          'JUAN2025', 'code: JUAN2025');
SELECT throws_ok(format('SELECT referral.code_create(%s, %s, ''Juan2025'')',
                        :program, :paws), 'RF029', NULL, 'code: taken');
SELECT is((SELECT url FROM referral.code_published WHERE code = 'JUAN2025'),
          'https://pets.example/register/?ref={code}', 'code: link');

-- SUMMER25 has rewards of its own: 5 %, for Paws 10 %, and 250.00 off; the
-- salon's code gives the salon a credit of 30.00

SELECT id AS summer FROM referral.code_create(:program, :paws, 'SUMMER25',
           '{"campaign": "Summer 2025", "max_uses": 2}') \gset
SELECT referral.reward_rules_set(:program, '[
           {"slot": "commission", "kind": "cash", "rate_bp": 500},
           {"slot": "welcome", "beneficiary": "referee", "kind": "discount",
            "amount": 25000, "trigger": "registration"}]',
           jsonb_build_object('code_id', :summer)) \g /dev/null
SELECT id AS salons FROM referral.code_create(:program, :salon, 'SALON')
    \gset
SELECT referral.reward_rules_set(:program, '[
           {"slot": "commission", "kind": "credit", "amount": 3000}]',
           jsonb_build_object('code_id', :salons)) \g /dev/null

-- they are shared and seen

SELECT referral.share_record('JUAN2025', '{"source": "card",
                                           "channel": "qr"}')
    FROM generate_series(1, 3) \g /dev/null
SELECT referral.share_record('SUMMER25', '{"source": "instagram"}')
    \g /dev/null
SELECT pg_temp.clicks('JUAN2025', 20, 'card'),
       pg_temp.clicks('SUMMER25', 5, 'instagram'),
       pg_temp.clicks('SALON', 2, 'salon') \g /dev/null

-- the lifecycle of one referral

SELECT pg_temp.joins('maria', 'juan2025') AS maria \gset
SELECT is((SELECT concat_ws(' ', code_used, new_customer, status)
               FROM referral.seed_vet_referral
               WHERE id = :maria AND referrer_id = :juan
                     AND code_used_at IS NOT NULL),
          'JUAN2025 maria pending', 'lifecycle: pending');
SELECT is((SELECT notes || ' ' || email
               FROM referral.referral_contact(:maria)),
          'friend maria maria@example.com', 'lifecycle: notes');
SELECT is((referral.redeem(:org, 'visit-1', '{"external_id": "maria",
               "kind": "discount", "order_amount": 8000}')
               ->> 'amount')::int, 8000,
          'two-sided: the new customer''s discount, no more than the visit');
SELECT is(pg_temp.buys('maria', 60000), 'cash 5000, points 50',
          'commission: fixed; reward: cash, points; tiers: the 1st');
SELECT is((SELECT concat_ws(' ', status, first_purchase_amount,
                            referrer_reward_amount,
                            new_customer_discount_applied, currency)
               FROM referral.seed_vet_referral WHERE id = :maria),
          'converted 60000 5000 8000 MXN', 'lifecycle: converted');
SELECT pg_temp.joins('pedro', 'JUAN2025') AS pedro \gset
SELECT referral.referral_cancel(:pedro, 'moved away') \g /dev/null
SELECT is(pg_temp.word(:pedro), 'cancelled', 'lifecycle: cancelled');
SELECT pg_temp.joins('late', 'JUAN2025') AS late \gset

-- the 2nd to the 10th

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
SELECT is((SELECT sum(balance) FROM referral.balances
               WHERE referrer_id = :juan AND unit = 'points'
                     AND kind = 'credit'), 500::numeric,
          'reward: points, 50 of each');

-- the campaign, and the salon

SELECT pg_temp.joins('s1', 'SUMMER25') AS s1 \gset
SELECT is((SELECT sum(balance) FROM referral.balances
               WHERE person_id = (SELECT person_id FROM referral.referral
                                      WHERE id = :s1)
                     AND kind = 'discount'), 25000::numeric,
          'code: SUMMER25, what the new customer has');
SELECT is(pg_temp.buys('s1', 30000), 'cash 3000, points 50',
          'commission: percent, Paws'' own; what the code does not name is'
          ' the program''s');
SELECT pg_temp.joins('s2', 'SUMMER25') \g /dev/null
SELECT is(pg_temp.buys('s2', 40000, 10000), 'cash 4000, points 50',
          'commission: percent of 500.00 with 100.00 off in a promotion');
SELECT throws_ok($$ SELECT pg_temp.joins('s3', 'SUMMER25') $$, 'RF095', NULL,
                 'code: max uses');
SELECT is((SELECT concat_ws(' ', uses, max_uses, verdict, campaign)
               FROM referral.codes WHERE code = 'SUMMER25'),
          '2 2 exhausted Summer 2025', 'code: times used');
SELECT pg_temp.joins('g1', 'SALON') \g /dev/null
SELECT is(pg_temp.buys('g1', 20000), 'credit 3000, points 50',
          'commission: credit; reward: credit');

-- codes and referrers that are not good any more

SELECT referral.code_create(:program, :juan, 'SPRING24', jsonb_build_object(
           'expires_at', now() - interval '1 day')) \g /dev/null
SELECT throws_ok($$ SELECT pg_temp.joins('s3', 'SPRING24') $$, 'RF093', NULL,
                 'code: expired');
SELECT id AS off FROM referral.code_create(:program, :juan, 'OFF') \gset
SELECT referral.code_set_status(:off, 'disabled') \g /dev/null
SELECT throws_ok($$ SELECT pg_temp.joins('s3', 'OFF') $$, 'RF093', NULL,
                 'code: off');
SELECT referral.referrer_set_status(:salon, 'inactive') \g /dev/null
SELECT throws_ok($$ SELECT pg_temp.joins('s3', 'SALON') $$, 'RF094', NULL,
                 'referrer: inactive');
SELECT is((SELECT is_active FROM referral.seed_vet_referrer
               WHERE id = :salon), false, 'statistics: active');

-- Payouts.  Juan has 4 * 50 + 5 * 100 + 200 = 900.00, and asks for 600.00:
-- four referrals of 50.00, four of 100.00.

SELECT referral.payout_policy_set(:org, 'MXN', '{"minimum": 5000}')
    \g /dev/null
SELECT is((SELECT concat_ws(' ', referrer_type, referral_code,
                            total_referrals, successful_referrals,
                            total_earned, pending_payout, is_active)
               FROM referral.seed_vet_referrer WHERE id = :juan),
          'customer JUAN2025 12 10 90000 90000 t',
          'statistics: Maria, Pedro, nine others, one who is late');
SELECT referral.payout_request(:juan, '{"method": "cash", "amount": 60000,
           "notes": "at the desk"}') AS payout \gset
SELECT is((SELECT concat_ws(' ', status, method, amount,
                            cardinality(referrals), notes)
               FROM referral.seed_vet_payout WHERE id = :payout),
          'pending cash 60000 8 at the desk',
          'payout: pending, of several referrals');
SET LOCAL referral.actor = 'owner@pets.example';
SELECT referral.payout_approve(:payout) \g /dev/null
RESET referral.actor;
SELECT is((SELECT status || ' ' || approved_by FROM referral.seed_vet_payout
               WHERE id = :payout), 'approved owner@pets.example',
          'payout: approved, by whom');
SELECT referral.payout_pay(:payout) \g /dev/null
SELECT is((SELECT status FROM referral.seed_vet_payout
               WHERE id = :payout AND paid_at IS NOT NULL), 'paid',
          'payout: paid in cash');
SELECT is((SELECT status FROM referral.seed_vet_referral
               WHERE id = :maria AND referrer_reward_paid_at IS NOT NULL),
          'paid', 'lifecycle: paid out');

-- Maria gives back half: of the 50.00 that Juan has got he owes 25.00, which
-- his next payout is less

SELECT referral.refund_record(:org, '{"refund_ref": "credit-note-1",
           "order_ref": "maria/1", "amount": 30000}') \g /dev/null
SELECT is((SELECT total_earned || ' ' || pending_payout
               FROM referral.seed_vet_referrer WHERE id = :juan),
          '87500 27500', 'payout: given back');
SELECT referral.payout_request(:juan, '{"method": "check"}') AS second \gset
SELECT referral.payout_cancel(:second) \g /dev/null
SELECT is((SELECT status || ' ' || amount FROM referral.seed_vet_payout
               WHERE id = :second), 'cancelled 27500', 'payout: cancelled');
SELECT referral.payout_request(:juan, '{"method": "account_credit"}')
           AS third \gset
SELECT referral.payout_approve(:third), referral.payout_pay(:third)
    \g /dev/null
SELECT is((referral.redeem(:org, 'visit-9', jsonb_build_object('referrer_id',
               :juan, 'order_amount', 7000)) ->> 'remaining')::int, 20500,
          'payout: as credit, used on the next service');
SELECT referral.payout_request(:paws) AS fourth \gset
SELECT referral.payout_approve(:fourth),
       referral.payout_pay(:fourth, 'SPEI 4711') \g /dev/null
SELECT is((SELECT concat_ws(' ', status, method, amount)
               FROM referral.seed_vet_payout WHERE id = :fourth),
          'paid bank_transfer 7000', 'payout: 30.00 + 40.00 by bank');
SELECT throws_ok(format('SELECT referral.payout_request(%s)', :salon),
                 'RF108', NULL, 'payout: the salon has credit only');

-- never converted

SELECT referral.housekeeping(now() + interval '91 days', 'referrals_expire')
    \g /dev/null
SELECT is(pg_temp.word(:late), 'expired', 'lifecycle: expired');

SELECT is((SELECT string_agg(type || ' ' || n, ', ' ORDER BY type)
               FROM (SELECT type, count(*) AS n FROM referral.events
                         WHERE type IN ('code.exhausted', 'payout.paid',
                             'payout.requested', 'referral.converted',
                             'referral.expired', 'reward.reversed')
                         GROUP BY 1) e),
          'code.exhausted 1, payout.paid 3, payout.requested 4,'
          ' referral.converted 13, referral.expired 1, reward.reversed 3',
          'events: for billing, accounts, loyalty (cash and points of Maria,'
          ' the welcome of Pedro)');

-- Figures.  Juan: 600 + 9 * 400 - 300 = 3,900.00 of 20 clicks; Paws 300 + 400;
-- the salon 200.  15 came: 12 by Juan, 2 by Paws, 1 by the salon; 13 bought.

SELECT referral.counter_fold(), referral.rollup_refresh('1 minute', '0')
    \g /dev/null
SELECT is((SELECT string_agg(step || ' ' || n, ', ') FROM referral.funnel(
               :program, current_date - 5, current_date + 5)),
          'shared 4, clicked 27, referred 15, registered 15, converted 13',
          'figures: funnel');
SELECT is((SELECT string_agg(concat_ws(' ', rank, referrer_id, clicks,
                             converted, conversion_rate, revenue), ', ')
               FROM referral.leaderboard(:program, 'revenue',
                        current_date - 5, current_date + 5)),
          format('1 %s 20 10 0.5000 390000, 2 %s 5 2 0.4000 70000,'
                 ' 3 %s 2 1 0.5000 20000', :juan, :paws, :salon),
          'figures: leaderboard, with rates and revenue');
SELECT is((SELECT concat_ws(' ', clicks, registered, converted, revenue)
               FROM referral.breakdown(:program, 'campaign',
                        current_date - 5, current_date + 5)
               WHERE name = 'Summer 2025'), '5 2 2 70000',
          'figures: campaign');
SELECT is((SELECT string_agg(name || ' ' || clicks, ', ')
               FROM referral.breakdown(:program, 'source', current_date - 5,
                                       current_date + 5)
               WHERE clicks > 0), 'card 20, instagram 5, salon 2',
          'figures: source');
SELECT is((referral.program_dashboard(:program, current_date - 5,
               current_date + 5) #> '{figures}')
              @> '{"revenue": 510000, "refunds": 30000, "net": 480000}', true,
          'figures: dashboard');

-- the portal

SELECT set_config('referral.referrer', :'juan', true) \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT is((SELECT string_agg(code, ' ' ORDER BY code)
               FROM referral.my_codes), 'JUAN2025 OFF SPRING24',
          'portal: codes');
SELECT is((SELECT concat_ws(' ', count(*), count(converted_at),
                            count(*) FILTER (WHERE status = 'expired'))
               FROM referral.my_referrals), '12 10 1',
          'portal: statistics: sent, converted, expired');
SELECT is((SELECT string_agg(kind || ' ' || balance_text, ', ' ORDER BY kind)
               FROM referral.my_balances
               WHERE unit = 'MXN' AND balance <> 0),
          'credit 205.00 MXN, paid 600.00 MXN, redeemed 70.00 MXN',
          'portal: earned');
SELECT is((SELECT sum(amount) FROM referral.my_payouts
               WHERE status = 'paid'), 87500::numeric, 'portal: payouts');
SELECT throws_ok('SELECT referral.my_payout_request()', 'RF108', NULL,
                 'portal: payout request, nothing is left');
SELECT is(jsonb_array_length(referral.my_page() -> 'codes'), 3,
          'portal: all on one page');
RESET ROLE;
SELECT set_config('referral.referrer', '', true) \g /dev/null

-- vets

SELECT referral.professional_partner_ensure(:org, 'Dr. Onco',
           '{"specialty": "oncology"}') AS vet \gset
SELECT referral.professional_partner_ensure(:org, 'Dr. Cor',
           '{"specialty": "cardiology"}') AS cor \gset
SELECT is((SELECT balance_text FROM referral.professional_balance
               WHERE partner_id = :vet),
          'You gave me 0, I gave you 0, we are even', 'professional: even');
SELECT referral.professional_referral_record(:vet, 'received',
           jsonb_build_object('subject', 'dog-' || n))
    FROM generate_series(1, 3) n \g /dev/null
SELECT referral.professional_referral_record(:vet, 'sent',
           jsonb_build_object('subject', 'cat-' || n))
    FROM generate_series(1, 2) n \g /dev/null
SELECT is((SELECT balance_text FROM referral.professional_balance
               WHERE partner_id = :vet),
          'You gave me 3, I gave you 2, I owe you 1',
          'professional: in the words of the example');
SELECT is((SELECT we_owe FROM referral.professional_balance
               WHERE partner_id = :vet), 1::bigint,
          'professional: received less sent is what we owe');
SELECT referral.professional_referral_record(:cor, 'sent',
           '{"subject": "dog-9"}') AS accepted,
       referral.professional_referral_record(:cor, 'sent',
           '{"subject": "dog-10"}') AS declined \gset
SELECT referral.professional_referral_set_status(:accepted, 'accepted'),
       referral.professional_referral_set_status(:declined, 'declined')
    \g /dev/null
SELECT is((SELECT balance_text FROM referral.professional_balance
               WHERE partner_id = :cor),
          'You gave me 0, I gave you 1, you owe me 1',
          'professional: what was declined counts for nobody');
SELECT is((SELECT count(*) FROM referral.seed_vet_referral), 15::bigint,
          'professional: apart from customers');

-- Maria moves, and wants to be forgotten

SELECT referral.customer_erase(:org, 'maria', NULL, 'asked at the desk')
    \g /dev/null
SELECT is((SELECT concat_ws(' ', coalesce(new_customer, '-'), status,
                            first_purchase_amount)
               FROM referral.seed_vet_referral WHERE id = :maria),
          '- paid 60000', 'erasure: the referral names nobody');
SELECT is((SELECT coalesce(notes, email) FROM referral.referral_contact(
               :maria)), NULL, 'erasure: nor do its notes');
SELECT is((SELECT total_earned FROM referral.seed_vet_referrer
               WHERE id = :juan), 87500::bigint,
          'erasure: what Juan earned is what it was');

SET CONSTRAINTS ALL IMMEDIATE;
SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');

SELECT * FROM finish();

ROLLBACK;
