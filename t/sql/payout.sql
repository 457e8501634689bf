-- Copyright (C) The nginx referral module authors
--
-- Payouts, statements, redemption, transfer, bulk operations, professionals.

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('acme', 'Acme',
           '{"time_zone": "America/New_York"}') AS acme,
       referral.organisation_create('other', 'Other') AS other \gset
SELECT set_config('t.acme', :'acme', true),
       set_config('t.other', :'other', true) \g /dev/null

CREATE FUNCTION pg_temp.who(name text) RETURNS bigint LANGUAGE sql
    RETURN (SELECT id FROM referral.referrer WHERE external_id = name);

-- A cash program of 10 % for referrers, and 5.00 credit, valid for 30 days,
-- and a coupon of 20 % for referees.

SELECT referral.program_create(:acme, 'p', 'P',
           '{"landing_url": "https://example.com/"}') AS p \gset
SELECT referral.reward_rules_set(:p, '[
           {"beneficiary": "referrer", "trigger": "conversion",
            "kind": "cash", "rate_bp": 1000, "times": null},
           {"beneficiary": "referrer", "trigger": "registration",
            "slot": "thanks", "kind": "credit", "amount": 100},
           {"beneficiary": "referee", "trigger": "registration",
            "slot": "welcome", "kind": "credit", "amount": 500,
            "valid_for": "30 days"},
           {"beneficiary": "referee", "trigger": "registration",
            "slot": "coupon", "kind": "discount", "unit": "coupons",
            "amount": 1, "coupon_bp": 2000}]')
    \g /dev/null
SELECT referral.program_set_status(:p, 'active') \g /dev/null
SELECT referral.code_create(:p, referral.referrer_create(:acme, 'customer',
           jsonb_build_object('external_id', name)), name || '-CODE')
    FROM unnest(ARRAY['ann', 'bob', 'cid', 'dan']) name \g /dev/null

-- An order by somebody who came by NAME's code.

CREATE FUNCTION pg_temp.buy(name text, customer text, amount bigint)
    RETURNS jsonb LANGUAGE sql
    RETURN referral.conversion_record(current_setting('t.acme')::bigint,
               jsonb_build_object('order_ref', customer || '/' || amount,
                   'external_id', customer, 'code', upper(name) || '-CODE',
                   'amount', amount));

CREATE FUNCTION pg_temp.balances(name text) RETURNS text LANGUAGE sql
    RETURN coalesce((SELECT string_agg(b.kind || ' ' || b.balance, ', '
                                       ORDER BY b.kind)
                         FROM referral.balances b
                         WHERE b.referrer_id = pg_temp.who(name)
                               AND b.unit = 'USD' AND b.balance <> 0
                               AND b.kind <> 'expense'), '-');

CREATE FUNCTION pg_temp.status(payout bigint) RETURNS text LANGUAGE sql
    RETURN (SELECT o.status FROM referral.payouts o WHERE o.id = payout);

-- many rewards in one payout

SELECT pg_temp.buy('ann', 'a1', 10000), pg_temp.buy('ann', 'a2', 20000),
       pg_temp.buy('ann', 'a3', 33333) \g /dev/null
SELECT is(pg_temp.balances('ann'), 'payable 6333', 'earned');
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('ann'),
                        '{"method": "barter"}') $$, 'RF010', NULL,
                 'no such method');
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('ann'),
                        '{"amount": 6334}') $$, 'RF110', NULL, 'too much');
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('ann'),
                        '{"amount": 0}') $$, 'RF108', NULL, 'nothing');
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('bob')) $$,
                 'RF108', NULL, 'nothing there');
SELECT throws_ok('SELECT referral.payout_request(-1)', 'RF025', NULL,
                 'nobody');
SELECT referral.payout_request(pg_temp.who('ann'),
           '{"idempotency_key": "one"}') AS one \gset
SELECT is(pg_temp.balances('ann'), 'reserved 6333', 'reserved');
SELECT is(referral.payout_request(pg_temp.who('ann'),
              '{"idempotency_key": "one"}'), :one::bigint, 'once more');
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('ann'),
                        '{"idempotency_key": "one", "method": "cash"}') $$,
                 'RF101', NULL, 'another one with its key');
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('ann')) $$,
                 'RF108', NULL, 'the money is asked for once');
SELECT results_eq(format('SELECT amount FROM referral.payout_items
                              WHERE payout_id = %s ORDER BY amount', :one),
                  $$ VALUES (1000::bigint), (2000), (3333) $$,
                  'three rewards in it');
SELECT throws_ok(format('SELECT referral.payout_pay(%s, ''x'')', :one),
                 'RF111', NULL, 'not paid before it is approved');
SELECT referral.payout_approve(:one) \g /dev/null
SELECT lives_ok(format('SELECT referral.payout_approve(%s)', :one),
                'approved again');
SELECT throws_ok(format('SELECT referral.payout_pay(%s)', :one), 'RF010',
                 NULL, 'a bank transfer has a reference');
SELECT throws_ok(format('SELECT referral.payout_pay(%s, ''x'', ''barter'')',
                        :one), 'RF010', NULL, 'and a method');
SELECT referral.payout_pay(:one, 'TX-1') \g /dev/null
SELECT lives_ok(format('SELECT referral.payout_pay(%s, ''TX-1'')', :one),
                'paid again');
SELECT throws_ok(format('SELECT referral.payout_pay(%s, ''TX-2'')', :one),
                 'RF111', NULL, 'but not by another transfer');
SELECT throws_ok(format('SELECT referral.payout_reject(%s, ''no'')', :one),
                 'RF111', NULL, 'what is paid is not rejected');
SELECT is(pg_temp.balances('ann'), 'paid 6333', 'paid');
SELECT is((SELECT array_agg(DISTINCT status) FROM referral.rewards
               WHERE referrer_id = pg_temp.who('ann') AND kind = 'cash'),
          '{paid}', 'its rewards are');
SELECT is((SELECT array_agg(DISTINCT status) FROM referral.referrals
               WHERE referrer_id = pg_temp.who('ann')), '{paid}',
          'and its referrals');
SELECT results_eq(format('SELECT type FROM referral.event
                              WHERE order_key = ''payout:%s'' ORDER BY seq',
                         :one),
                  $$ VALUES ('payout.requested'), ('payout.approved'),
                            ('payout.paid') $$, 'with its events');
SELECT throws_ok('SELECT referral.payout_approve(-1)', 'RF107', NULL,
                 'no payout');

-- what is rejected or cancelled goes back

SELECT pg_temp.buy('bob', 'b1', 50000) \g /dev/null
SELECT referral.payout_request(pg_temp.who('bob'), '{"method": "cash",
           "amount": 3000}') AS two \gset
SELECT is(pg_temp.balances('bob'), 'payable 2000, reserved 3000', 'a part');
SELECT referral.payout_reject(:two, 'papers are missing') \g /dev/null
SELECT is(pg_temp.balances('bob'), 'payable 5000', 'back');
SELECT is((SELECT reason FROM referral.payouts WHERE id = :two),
          'papers are missing', 'and why');
SELECT referral.payout_request(pg_temp.who('bob'), '{"method": "cash"}')
           AS three \gset
SELECT referral.payout_approve(:three) \g /dev/null
SELECT referral.payout_cancel(:three) \g /dev/null
SELECT is(pg_temp.balances('bob'), 'payable 5000', 'approved and cancelled');
SELECT throws_ok(format('SELECT referral.payout_pay(%s)', :three), 'RF111',
                 NULL, 'and not paid');

-- as credit: it stays here, for orders

SELECT referral.payout_request(pg_temp.who('bob'),
           '{"method": "account_credit", "amount": 1000}') AS four \gset
SELECT referral.payout_approve(:four), referral.payout_pay(:four) \g /dev/null
SELECT is(pg_temp.balances('bob'), 'credit 1000, payable 4000',
          'paid as credit');

-- a refund after payment is carried to the next payout

SELECT pg_temp.buy('cid', 'c1', 30000) \g /dev/null
SELECT referral.payout_request(pg_temp.who('cid'), '{"method": "check"}')
           AS five \gset
SELECT referral.payout_approve(:five), referral.payout_pay(:five, 'CHECK 7')
    \g /dev/null
SELECT referral.refund_record(:acme, '{"order_ref": "c1/30000",
           "refund_ref": "r1", "amount": 10000}') \g /dev/null
SELECT is(pg_temp.balances('cid'), 'paid 3000, payable -1000', 'a debt');
SELECT results_eq('SELECT slot, status FROM referral.reward WHERE owing',
                  $$ VALUES ('reward', 'paid') $$, 'one reward owes it');
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('cid')) $$,
                 'RF108', NULL, 'nothing is paid beside it');
SELECT pg_temp.buy('cid', 'c2', 40000) \g /dev/null
SELECT is(pg_temp.balances('cid'), 'paid 3000, payable 3000', 'carried');
SELECT is_empty('SELECT id FROM referral.reward WHERE owing',
                'and owes nothing any more');
SELECT referral.payout_request(pg_temp.who('cid'), '{"method": "cash"}')
           AS six \gset
SELECT referral.payout_approve(:six), referral.payout_pay(:six) \g /dev/null
SELECT is(pg_temp.balances('cid'), 'paid 6000', 'settled');
SELECT is_empty('SELECT * FROM referral.ledger_check()', 'the ledger agrees');

-- minimum and schedule

SELECT lives_ok(format('SELECT referral.payout_policy_set(%s, ''USD'',
                    ''{"minimum": 5000, "every": "month"}'')', :acme),
                'a policy');
SELECT throws_ok(format('SELECT referral.payout_policy_set(%s, ''USD'', %L)',
                        :acme, given), code, NULL, given)
    FROM (VALUES ('{"minimum": 0}', 'RF010'), ('{"every": "day"}', 'RF010'),
                 ('{"colour": 1}', 'RF011'), ('{"program_id": 0}', 'RF012'))
             v (given, code);
SELECT throws_ok(format('SELECT referral.payout_policy_set(%s, ''GOLD'')',
                        :acme), 'RF063', NULL, 'no such unit');
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('bob')) $$,
                 'RF108', NULL, 'below the minimum');
SELECT is((SELECT next_at > now() AND next_at AT TIME ZONE 'America/New_York'
                  = date_trunc('month', next_at AT TIME ZONE
                               'America/New_York')
               FROM referral.payout_policies), true,
          'due at the start of a month, where they live');
SELECT is(referral.payout_scheduled(), 0, 'not yet');
SELECT pg_temp.buy('bob', 'b2', 20000), pg_temp.buy('dan', 'd1', 5000)
    \g /dev/null
SELECT is(referral.payout_scheduled(now() + interval '32 days', 2), 1,
          'a slice: bob has enough');
SELECT is(referral.payout_scheduled(now() + interval '32 days', 2), 0,
          'the rest: dan has not');
SELECT is(referral.payout_scheduled(now() + interval '32 days'), 0, 'once');
SELECT is(pg_temp.balances('bob'), 'credit 1000, reserved 6000', 'reserved');
SELECT is(pg_temp.balances('dan'), 'payable 500', 'kept');
SELECT lives_ok(format('SELECT referral.payout_policy_set(%s, ''USD'', %L)',
                       :acme, jsonb_build_object('program_id', :p, 'minimum',
                                                 500)),
                'a smaller minimum for those of a program');
SELECT lives_ok($$ SELECT referral.payout_request(pg_temp.who('dan')) $$,
                'which is enough');
SELECT referral.referrer_set_status(pg_temp.who('ann'), 'suspended')
    \g /dev/null
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('ann')) $$,
                 'RF109', NULL, 'a suspended referrer waits');
SELECT referral.referrer_set_status(pg_temp.who('ann'), 'active') \g /dev/null

-- the statement: opening, movements, closing, in days of the organisation

SELECT is((SELECT string_agg(concat_ws(' ', line, what, amount, balance),
                             ', ' ORDER BY n)
               FROM (SELECT *, row_number() OVER () AS n
                         FROM referral.statement(pg_temp.who('cid'),
                             (now() AT TIME ZONE 'America/New_York')::date,
                             (now() AT TIME ZONE 'America/New_York')::date)) s
               WHERE account = 'payable'),
          'opening 0, movement reward 3000 3000,'
          ' movement payout_request -3000 0, movement clawback -1000 -1000,'
          ' movement reward 4000 3000, movement settlement 1000 4000,'
          ' movement settlement -1000 3000,'
          ' movement payout_request -3000 0, closing 0', 'of today');
SELECT is((SELECT string_agg(concat_ws(' ', line, balance), ', ')
               FROM referral.statement(pg_temp.who('cid'), '2020-01-01',
                                       '2020-01-31')
               WHERE account = 'payable'), 'opening 0, closing 0', 'before');
SELECT is_empty($$ SELECT s.account, s.unit
                       FROM referral.referrer f,
                            referral.statement(f.id, '2020-01-01',
                                '2099-01-01') s
                       GROUP BY f.id, s.account, s.unit
                       HAVING sum(s.balance) FILTER (WHERE line = 'opening')
                              + coalesce(sum(s.amount), 0)
                              <> sum(s.balance) FILTER (WHERE line
                                                        = 'closing') $$,
                'opening and movements are the closing');

SELECT referral.transfer_post(:acme, 'adjustment', 'late',
           array_agg(ROW(a.id, v.amount, NULL)::referral.posting),
           at => '2026-03-08 04:30+00')
    FROM (VALUES ('payable', 7), ('expense', -7)) v (kind, amount)
         JOIN referral.account a ON a.kind = v.kind AND a.unit = 'USD'
              AND a.referrer_id = pg_temp.who('dan') \g /dev/null
SELECT is((SELECT sum(amount) FROM referral.statement(pg_temp.who('dan'), day,
                                                      day)
               WHERE account = 'payable'), want, day || ' in New York')
    FROM (VALUES (date '2026-03-07', 7::numeric),
                 (date '2026-03-08', NULL::numeric)) v (day, want);

-- redemption

SELECT (referral.referral_register(NULL, '{"code": "ANN-CODE",
           "external_id": "shopper"}') ->> 'referral_id')::bigint AS shopper
    \gset
SELECT is(referral.redeem(:acme, 'order 1', '{"external_id": "shopper",
              "order_amount": 300}') - 'redemption_id',
          '{"amount": 300, "status": "used", "remaining": 200}',
          'no more than the order costs');
SELECT is(referral.redeem(:acme, 'order 1', '{"external_id": "shopper",
              "order_amount": 300}') - 'redemption_id',
          '{"amount": 300, "status": "used"}', 'the same order: once');
SELECT throws_ok(format('SELECT referral.redeem(%s, ''order 1'',
                     ''{"external_id": "shopper", "order_amount": 200}'')',
                        :acme), 'RF101', NULL, 'the order changed');
SELECT throws_ok(format('SELECT referral.redeem(%s, ''order 2'',
                     ''{"external_id": "shopper", "amount": 201,
                        "partial": false}'')', :acme), 'RF110', NULL,
                 'all or nothing');
SELECT referral.redeem(:acme, 'order 2', '{"external_id": "shopper",
           "amount": 201}') ->> 'redemption_id' AS second \gset
SELECT is((SELECT amount FROM referral.redemptions WHERE id = :second),
          200::bigint, 'what there is');
SELECT throws_ok(format('SELECT referral.redeem(%s, ''order 3'',
                     ''{"external_id": "shopper"}'')', :acme), 'RF110', NULL,
                 'nothing is left');
SELECT is((SELECT string_agg(status, ' ') FROM referral.rewards
               WHERE referral_id = :shopper AND slot = 'welcome'), 'redeemed',
          'used up');
SELECT referral.redemption_reverse(:second, 'order cancelled') \g /dev/null
SELECT lives_ok(format('SELECT referral.redemption_reverse(%s)', :second),
                'reversed again');
SELECT is((SELECT string_agg(status || ' ' || available, ' ')
               FROM referral.rewards
               WHERE referral_id = :shopper AND slot = 'welcome'),
          'approved 200', 'the order was cancelled: it is back');
SELECT throws_ok('SELECT referral.redemption_reverse(-1)', 'RF112', NULL,
                 'no redemption');
SELECT is(referral.redeem(:acme, 'order 4', '{"external_id": "shopper",
              "kind": "discount", "unit": "coupons", "order_amount": 1255}')
              - 'redemption_id',
          '{"amount": 1, "discount": 251, "status": "used", "remaining": 0}',
          'a coupon of 20 %');
SELECT is(referral.redeem(:acme, 'order 5', jsonb_build_object('referrer_id',
              pg_temp.who('bob'), 'amount', 400)) ->> 'remaining', '600',
          'the credit that a payout became');
SELECT throws_ok(format('SELECT referral.redeem(%s, ''order 6'', %L)', :acme,
                        given), code, NULL, given)
    FROM (VALUES ('{}', 'RF102'), ('{"external_id": "nobody"}', 'RF102'),
                 ('{"referrer_id": -1}', 'RF102'),
                 ('{"external_id": "shopper", "kind": "cash"}', 'RF010'),
                 ('{"external_id": "shopper", "amount": -1}', 'RF010'),
                 ('{"external_id": "shopper", "amount": 0}', 'RF010'),
                 ('{"external_id": "shopper", "amount": "x"}', 'RF010'),
                 ('{"external_id": "shopper", "partial": 7}', 'RF010'),
                 ('{"external_id": "shopper", "unit": "gold"}', 'RF010'),
                 ('{"colour": 1}', 'RF011')) v (given, code);
SELECT throws_ok(format('SELECT referral.redeem(%s, ''order 6'',
                     ''{"external_id": "shopper"}'')', :other), 'RF102', NULL,
                 'not in another organisation');

-- what has ended is not used, though housekeeping has not come by yet

UPDATE referral.reward SET valid_until = now() - interval '1 second'
    WHERE referral_id = :shopper AND slot = 'welcome';
SELECT throws_ok(format('SELECT referral.redeem(%s, ''order 7'',
                     ''{"external_id": "shopper"}'')', :acme), 'RF110', NULL,
                 'too late');

-- one gives to another

SELECT throws_ok($$ SELECT referral.reward_transfer(pg_temp.who('ann'),
                        pg_temp.who('dan'), '{}') $$, 'RF010', NULL,
                 'without a key');
SELECT throws_ok($$ SELECT referral.reward_transfer(pg_temp.who('ann'),
                        pg_temp.who('ann'), '{"idempotency_key": "k"}') $$,
                 'RF113', NULL, 'to oneself');
SELECT throws_ok($$ SELECT referral.reward_transfer(pg_temp.who('ann'),
                        pg_temp.who('dan'), '{"idempotency_key": "k"}') $$,
                 'RF110', NULL, 'nothing');
SELECT pg_temp.buy('ann', 'a9', 10000) \g /dev/null
SELECT referral.reward_transfer(pg_temp.who('ann'), pg_temp.who('dan'),
           '{"idempotency_key": "k", "amount": 400}', 'a favour') AS given
    \gset
SELECT is(referral.reward_transfer(pg_temp.who('ann'), pg_temp.who('dan'),
              '{"idempotency_key": "k", "amount": 400}'), :given::bigint,
          'once');
SELECT is(pg_temp.balances('ann') || '; ' || pg_temp.balances('dan'),
          'credit 100, paid 6333, payable 600; payable 407, reserved 500',
          'given');
SELECT throws_ok($$ SELECT referral.reward_transfer(pg_temp.who('ann'),
                        pg_temp.who('dan'), '{"idempotency_key": "l",
                                              "unit": "points"}') $$,
                 'RF110', NULL, 'the same unit');
SELECT referral.payout_policy_set(:acme, 'USD', '{"minimum": 1}') \g /dev/null
SELECT referral.payout_request(pg_temp.who('dan')) AS seven \gset
SELECT is((SELECT amount FROM referral.payouts WHERE id = :seven),
          407::bigint, 'and paid to the other');
SELECT is((SELECT count(*) FROM referral.audit
               WHERE action = 'transfer' AND reason = 'a favour'), 1::bigint,
          'the audit has it');

-- bulk

SELECT results_eq(format($$ SELECT outcome, error
                                FROM referral.bulk('payout_approve',
                                         ARRAY[%s, %s, -1]) ORDER BY id $$,
                         :seven, :three),
                  $$ VALUES ('error', 'RF107'), ('error', 'RF111'),
                            ('done', NULL) $$, 'each for itself');
SELECT referral.referral_create(:p, '{"code": "ANN-CODE"}',
           jsonb_build_object('email', n || '@example.com')) AS made
    FROM generate_series(1, 3) n \g /dev/null
CREATE FUNCTION pg_temp.bulk(action text, n int) RETURNS text
    LANGUAGE sql AS $$
    SELECT string_agg(outcome, ' ' ORDER BY b.id)
        FROM referral.bulk(action, ARRAY(
                 SELECT id FROM referral.referrals
                     WHERE status IN ('pending', 'accepted')
                     ORDER BY id LIMIT n), 'many') b $$;
SELECT is(pg_temp.bulk('referral_accept', 3), 'done done done', 'accept');
SELECT is(pg_temp.bulk('referral_reject', 1), 'done', 'reject');
SELECT is(pg_temp.bulk('referral_expire', 1), 'done', 'expire');
SELECT is(pg_temp.bulk('referral_cancel', 1), 'done', 'cancel');
SELECT is((SELECT string_agg(status, ' ' ORDER BY id) FROM referral.referrals
               WHERE accepted_at IS NOT NULL), 'rejected expired cancelled',
          'as they were told');
SELECT throws_ok($$ SELECT * FROM referral.bulk('drop', '{1}') $$, 'RF010',
                 NULL, 'no such action');
SELECT throws_ok($$ SELECT * FROM referral.bulk('referral_accept', '{}') $$,
                 'RF010', NULL, 'of nothing');
SELECT throws_ok($$ SELECT * FROM referral.bulk('referral_accept',
                        ARRAY(SELECT generate_series(1, 1001))) $$, 'RF010',
                 NULL, 'of too many');

-- a referral that is given up takes its rewards with it

SELECT referral.referral_cancel(:shopper, 'fraud') \g /dev/null
SELECT is((SELECT count(*) FROM referral.rewards
               WHERE referral_id = :shopper AND available > 0), 0::bigint,
          'nothing is left to use');

-- professionals: "You gave me 3, I gave you 2, I owe you 1"

SELECT referral.professional_partner_ensure(:acme, 'Dr. Vet',
           '{"specialty": "oncology"}') AS vet \gset
SELECT is(referral.professional_partner_ensure(:acme, ' Dr. Vet'),
          :vet::bigint,
          'the same partner');
SELECT referral.professional_referral_record(:vet, 'received')
    FROM generate_series(1, 3) \g /dev/null
SELECT referral.professional_referral_record(:vet, 'sent') AS sent1,
       referral.professional_referral_record(:vet, 'sent',
           '{"subject": "patient 12", "idempotency_key": "s2"}') AS sent2
    \gset
SELECT is(referral.professional_referral_record(:vet, 'sent',
              '{"subject": "patient 12", "idempotency_key": "s2"}'),
          :sent2::bigint, 'once');
SELECT throws_ok(format('SELECT referral.professional_referral_record(%s,
                     ''received'', ''{"idempotency_key": "s2"}'')', :vet),
                 'RF101', NULL, 'its key again');
SELECT results_eq('SELECT we_owe, balance_text
                       FROM referral.professional_balance',
                  $$ VALUES (1::bigint,
                      'You gave me 3, I gave you 2, I owe you 1') $$,
                  'the words of the example');
SELECT referral.professional_referral_record(:vet, 'sent') AS sent3 \gset
SELECT is((SELECT balance_text FROM referral.professional_balance),
          'You gave me 3, I gave you 3, we are even', 'even');
SELECT referral.professional_referral_record(:vet, 'sent') \g /dev/null
SELECT results_eq('SELECT we_owe, balance_text
                       FROM referral.professional_balance',
                  $$ VALUES (-1::bigint,
                      'You gave me 3, I gave you 4, you owe me 1') $$,
                  'the other way round');
SELECT referral.professional_referral_set_status(:sent1, 'declined')
    \g /dev/null
SELECT is((SELECT sent FROM referral.professional_balance), 3::bigint,
          'a declined one counts for nobody');
SELECT throws_ok(format('SELECT referral.professional_referral_set_status(%s,
                     ''accepted'')', :sent1), 'RF091', NULL, 'it stays so');
SELECT throws_ok('SELECT referral.professional_referral_record(-1, ''sent'')',
                 'RF114', NULL, 'no partner');
SELECT throws_ok(format('SELECT referral.professional_referral_record(%s,
                     ''lost'')', :vet), 'RF010', NULL, 'no direction');
SELECT is((SELECT count(*) FROM referral.referrals r
               JOIN referral.professional_referrals p
                   ON p.id = r.id AND p.direction = r.source), 0::bigint,
          'apart from those of customers');

-- a reward ends where it was earned: given away, or paid as credit, it stays

SELECT referral.conversion_record(:acme, '{"order_ref": "chf", "code":
           "CID-CODE", "external_id": "swiss", "amount": 10000,
           "currency": "CHF"}') \g /dev/null
SELECT referral.reward_transfer(pg_temp.who('cid'), pg_temp.who('dan'),
           '{"unit": "CHF", "amount": 300, "idempotency_key": "chf"}')
    \g /dev/null
SELECT referral.payout_request(pg_temp.who('cid'),
           '{"unit": "CHF", "amount": 200, "method": "account_credit"}')
           AS chf \gset
SELECT referral.payout_approve(:chf), referral.payout_pay(:chf) \g /dev/null
UPDATE referral.reward SET valid_until = now() WHERE unit = 'CHF';
SELECT throws_ok($$ SELECT referral.payout_request(pg_temp.who('cid'),
                        '{"unit": "CHF"}') $$, 'RF108', NULL,
                 'what has ended is not paid out');
SELECT referral.reward_expire(now()) \g /dev/null
SELECT is((SELECT string_agg(f.external_id || ' ' || b.kind || ' '
                             || b.balance, ', ' ORDER BY 1, b.kind)
               FROM (SELECT * FROM referral.balances WHERE unit = 'CHF'
                         AND balance > 0) b
                    JOIN referral.referrer f ON f.id = b.referrer_id
               GROUP BY b.unit),
          'cid credit 200, cid expired 500, dan payable 300', 'it expires');
SELECT lives_ok($$ SELECT referral.payout_request(pg_temp.who('dan'),
                       '{"unit": "CHF", "amount": 300}') $$,
                'the one who was given it has it');
SELECT is(referral.redeem(:acme, 'chf-2', jsonb_build_object('unit', 'CHF',
              'referrer_id', pg_temp.who('cid'))) ->> 'amount', '200',
          'and credit that was paid is used');

-- tenants

SET LOCAL ROLE referral_app;
SELECT set_config('referral.organisation', :'other', true) \g /dev/null
SELECT throws_ok(format('SELECT referral.payout_approve(%s)', :seven),
                 'RF107', NULL, 'not another tenant''s payout');
SELECT is_empty('SELECT * FROM referral.payouts', 'sees none');
SELECT is_empty('SELECT * FROM referral.redemptions', 'nor what was used');
SELECT is_empty('SELECT * FROM referral.professional_balance', 'nor balances');
SELECT throws_ok(format('SELECT referral.redeem(%s, ''o'', ''{}'')', :acme),
                 'RF012', NULL, 'uses nothing');
SELECT is(referral.payout_scheduled('2099-01-01'), 0,
          'nor asks for others'' scheduled payouts');
RESET ROLE;
SELECT set_config('referral.organisation', '', true) \g /dev/null

-- partners

SELECT set_config('referral.referrer', pg_temp.who('bob')::text, true)
    \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT isnt_empty('SELECT * FROM referral.my_payouts', 'his own');
SELECT is((SELECT count(*) FROM referral.my_payouts WHERE id = 1), 0::bigint,
          'not another''s');
SELECT isnt_empty($$ SELECT * FROM referral.my_statement('2020-01-01',
                         '2099-01-01') $$, 'his statement');
SELECT throws_ok('SELECT referral.my_payout_request()', 'RF108', NULL,
                 'he asks for himself');
SELECT throws_ok(format('SELECT referral.my_payout_cancel(%s)', :one),
                 'RF107', NULL, 'and leaves others'' alone');
SELECT throws_ok('SELECT referral.payout_request(1)', '42501', NULL,
                 'asks for no other');
SELECT throws_ok('SELECT notes FROM referral.payout', '42501', NULL,
                 'nor reads notes');
RESET ROLE;
SELECT set_config('referral.referrer', '', true) \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT is_empty('SELECT * FROM referral.my_payouts', 'nobody sees nothing');
SELECT throws_ok('SELECT referral.my_payout_request()', 'RF025', NULL,
                 'and gets nothing');
RESET ROLE;

-- the ledger, after all that

SELECT set_config('referral.organisation', '', true) \g /dev/null
SELECT is_empty('SELECT * FROM referral.ledger_check()', 'it adds up');
SELECT is((SELECT coalesce(sum(balance), 0) FROM referral.balances
               WHERE kind = 'paid'),
          (SELECT sum(amount) FROM referral.payouts
               WHERE status = 'paid' AND method <> 'account_credit'),
          'what was paid is the sum of payouts');
UPDATE referral.payout SET amount = amount + 1 WHERE id = :one;
SELECT is((SELECT string_agg(DISTINCT object || ' ' || object_id, ', ')
               FROM referral.ledger_check()), 'payout ' || :one,
          'and the check can fail');
UPDATE referral.payout SET amount = amount - 1 WHERE id = :one;

CREATE FUNCTION pg_temp.finds(damage text, wanted text) RETURNS SETOF text
    LANGUAGE plpgsql
AS $$
DECLARE
    found  text[];
BEGIN
    BEGIN
        EXECUTE damage;
        SELECT array_agg(DISTINCT object || ' ' || problem) INTO found
            FROM referral.ledger_check();
        RAISE EXCEPTION 'undo' USING ERRCODE = 'XX999';
    EXCEPTION WHEN SQLSTATE 'XX999' THEN
        NULL;
    END;

    RETURN NEXT is(array_to_string(found, ', '), wanted,
                   'the check finds: ' || damage);
END
$$;

SET CONSTRAINTS ALL IMMEDIATE;
SET CONSTRAINTS ALL DEFERRED;
SET LOCAL session_replication_role = replica;

SELECT pg_temp.finds(damage, wanted)
    FROM (VALUES
        ('UPDATE referral.payout SET amount = amount + 1'
         ' WHERE status = ''cancelled''',
         'payout its entries are not what was asked for'),
        ('UPDATE referral.payout SET unit = ''JPY'' WHERE status = ''paid''',
         'payout its entries are not what was asked for'),
        ('UPDATE referral.payout SET referrer_id = -1'
         ' WHERE status = ''rejected''',
         'payout its entries are not what was asked for'),
        ('DELETE FROM referral.payout WHERE status = ''paid''',
         'payout is not there, and has transfers'),
        ('DELETE FROM referral.redemption WHERE status = ''used''',
         'redemption is not there, and has transfers')) v (damage, wanted);

SET LOCAL session_replication_role = origin;

SELECT * FROM finish();

ROLLBACK;
