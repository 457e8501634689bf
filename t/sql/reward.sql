-- Copyright (C) The nginx referral module authors
--
-- Reward rules, conversions, refunds and rewards.

BEGIN;

SET LOCAL client_min_messages = warning;

SELECT no_plan();

SELECT referral.organisation_create('acme', 'Acme',
           '{"max_active_programs": 1000}') AS acme,
       referral.organisation_create('other', 'Other') AS other \gset
SELECT set_config('test.acme', :'acme', true) \g /dev/null

-- An active program with these rules, and a referrer "NAME" with a code
-- "NAME-CODE" in it.

CREATE FUNCTION pg_temp.program(name text, rules text,
                                options jsonb DEFAULT '{}',
                                program jsonb DEFAULT '{}') RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    id   bigint;
    who  bigint;
BEGIN
    id := referral.program_create(current_setting('test.acme')::bigint,
              lower(name), name,
              '{"landing_url": "https://example.com/"}' || program);
    PERFORM referral.reward_rules_set(id, rules::jsonb, options);
    PERFORM referral.program_set_status(id, 'active');
    who := referral.referrer_create(current_setting('test.acme')::bigint,
               'customer', jsonb_build_object('external_id', name));
    PERFORM referral.code_create(id, who, name || '-CODE');
    RETURN id;
END
$$;

-- Records an order of a customer who came by NAME's code.

CREATE FUNCTION pg_temp.buy(name text, customer text, amount bigint,
                            options jsonb DEFAULT '{}') RETURNS jsonb
    LANGUAGE sql
    RETURN referral.conversion_record(current_setting('test.acme')::bigint,
               jsonb_build_object('order_ref', name || '/' || customer,
                   'external_id', name || '/' || customer,
                   'code', name || '-CODE', 'amount', amount) || options);

-- Its rewards, as "beneficiary kind amount unit status", in order.

CREATE FUNCTION pg_temp.given(answer jsonb) RETURNS text
    LANGUAGE sql
    RETURN coalesce((SELECT string_agg(concat_ws(' ', r ->> 'beneficiary',
                                                 r ->> 'kind', r ->> 'amount',
                                                 r ->> 'unit', r ->> 'status'),
                                       ', ' ORDER BY n)
                         FROM jsonb_array_elements(answer -> 'rewards')
                                  WITH ORDINALITY e (r, n)), '-');

CREATE FUNCTION pg_temp.skipped(answer jsonb) RETURNS text
    LANGUAGE sql
    RETURN coalesce((SELECT string_agg(concat_ws(' ', r ->> 'beneficiary',
                                                 r ->> 'slot',
                                                 r ->> 'reason'), ', '
                                       ORDER BY n)
                         FROM jsonb_array_elements(answer -> 'skipped')
                                  WITH ORDINALITY e (r, n)), '-');

-- The referrer's balances, as "kind amount", those that are zero left away.

CREATE FUNCTION pg_temp.balances(name text) RETURNS text
    LANGUAGE sql
    RETURN coalesce((SELECT string_agg(b.kind || ' ' || b.balance_text, ', '
                                       ORDER BY b.unit, b.kind)
                         FROM referral.balances b
                              JOIN referral.referrer f ON f.id = b.referrer_id
                         WHERE f.external_id = balances.name
                               AND b.balance <> 0), '-');

CREATE FUNCTION pg_temp.reward(answer jsonb, n int DEFAULT 0) RETURNS bigint
    LANGUAGE sql
    RETURN (answer -> 'rewards' -> n ->> 'reward_id')::bigint;

CREATE FUNCTION pg_temp.status(answer jsonb, n int DEFAULT 0) RETURNS text
    LANGUAGE sql
    RETURN (SELECT status FROM referral.rewards
                WHERE id = pg_temp.reward(answer, n));

-- A payout, as a later file makes it, of all there is; null: nothing is.

CREATE FUNCTION pg_temp.pay(name text) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    a     bigint;
    paid  bigint;
    had   bigint;
    who   bigint := (SELECT id FROM referral.referrer f
                         WHERE f.external_id = name);
    list  referral.posting[];
BEGIN
    a := referral.account_get(current_setting('test.acme')::bigint, 'payable',
                              'USD', who);
    paid := referral.account_get(current_setting('test.acme')::bigint, 'paid',
                                 'USD', who);
    PERFORM referral.account_lock(ARRAY[a, paid]);
    had := referral.account_balance(a);
    list := referral.accounts_take(ARRAY[a], ARRAY[paid], had, now());

    IF list IS NULL THEN
        RETURN NULL;
    END IF;

    PERFORM referral.transfer_post(current_setting('test.acme')::bigint,
        'payout', 'payout:' || name || gen_random_uuid(), list);
    PERFORM referral.reward_refresh((SELECT array_agg(l.reward_id)
                                         FROM unnest(list) l));
    RETURN had;
END
$$;


-- rules are checked, with the number of the rule and the name of the key

SELECT pg_temp.program('RULES', '[]') AS program \gset
SELECT set_config('test.program', :'program', true) \g /dev/null

CREATE FUNCTION pg_temp.refused(rule text, sqlstate text, message text)
    RETURNS text
    LANGUAGE sql
    RETURN throws_like(format('SELECT referral.reward_rules_set(%s, %L)',
                              current_setting('test.program'),
                              '[{"kind": "cash", "amount": 5}, '
                              || rule || ']'),
                       message, 'refused: ' || rule)
           || E'\n'
           || throws_ok(format('SELECT referral.reward_rules_set(%s, %L)',
                               current_setting('test.program'),
                               '[' || rule || ']'), sqlstate, NULL,
                        'with ' || sqlstate);

SELECT pg_temp.refused(rule, sqlstate, message)
    FROM (VALUES
        ('{"kind": "cash", "amount": 5, "sum": 1}', 'RF011',
         'rule 2 of %no option "sum"%'),
        ('{"amount": 5}', 'RF010', 'rule 2 of %"kind" must not be null'),
        ('{"kind": "gold", "amount": 5}', 'RF010', '%"kind" is not%'),
        ('{"kind": "cash"}', 'RF010', '%amount%'),
        ('{"kind": "cash", "amount": 5, "rate_bp": 5}', 'RF010', '%amount%'),
        ('{"kind": "cash", "amount": 0}', 'RF010', '%"amount" is not%'),
        ('{"kind": "cash", "amount": -5}', 'RF010', '%"amount" is not%'),
        ('{"kind": "cash", "amount": 5.5}', 'RF010', '%"amount"%'),
        ('{"kind": "cash", "amount": "five"}', 'RF010', '%"amount"%'),
        ('{"kind": "cash", "rate_bp": 1000001}', 'RF010', '%"rate_bp" is%'),
        ('{"kind": "cash", "amount": 5, "unit": "XXX"}', 'RF010', '%"unit"%'),
        ('{"kind": "cash", "amount": 5, "unit": "points"}', 'RF010',
         '%kind cash is not counted in points'),
        ('{"kind": "points", "amount": 5, "unit": "USD"}', 'RF010',
         '%kind points is not counted in USD'),
        ('{"kind": "free_item", "amount": 1}', 'RF010', '%"item"%'),
        ('{"kind": "cash", "amount": 5, "coupon_bp": 5}', 'RF010', '%'),
        ('{"kind": "cash", "rate_bp": 5, "trigger": "registration"}', 'RF010',
         '%rate_bp%'),
        ('{"kind": "cash", "tiers": [{"from": 1, "rate_bp": 5}],'
         ' "trigger": "registration"}', 'RF010', '%'),
        ('{"kind": "cash", "tiers": []}', 'RF010', '%"tiers" is not%'),
        ('{"kind": "cash", "tiers": [{"from": 5, "amount": 1},'
         ' {"from": 5, "amount": 2}]}', 'RF010', '%"tiers" is not%'),
        ('{"kind": "cash", "tiers": [{"from": 0, "amount": 1}]}', 'RF010',
         '%"tiers" is not%'),
        ('{"kind": "cash", "tiers": [{"from": 1}]}', 'RF010', '%"tiers"%'),
        ('{"kind": "cash", "tiers": [{"from": 1, "amount": 1,'
         ' "rate_bp": 1}]}', 'RF010', '%"tiers" is not%'),
        ('{"kind": "cash", "tiers": [{"from": 1.5, "amount": 1}]}', 'RF010',
         '%"tiers" is not%'),
        ('{"kind": "cash", "amount": 5, "seasons": [{"from": "2026-06-31",'
         ' "until": "2026-07-01", "multiplier_bp": 20000}]}', 'RF010',
         '%"seasons" is not%'),
        ('{"kind": "cash", "amount": 5, "seasons": [{"from": "2026-07-02",'
         ' "until": "2026-07-01", "multiplier_bp": 20000}]}', 'RF010',
         '%"seasons" is not%'),
        ('{"kind": "cash", "amount": 5, "seasons": [{"from": "2026-07-02",'
         ' "until": "2026-07-03"}]}', 'RF010', '%"seasons" is not%'),
        ('{"kind": "cash", "amount": 5, "valid_for": "-1 day"}', 'RF010',
         '%"valid_for" is not%'),
        ('{"kind": "cash", "amount": 5, "hold": "soon"}', 'RF010',
         '%"hold"%'),
        ('{"kind": "cash", "amount": 5, "slot": "Big one"}', 'RF010',
         '%"slot" is not%'),
        ('{"kind": "cash", "amount": 5, "times": 0}', 'RF010',
         '%"times" is not%'),
        ('7', 'RF011', 'rule 2 of %not number')) v (rule, sqlstate, message);

SELECT throws_ok(format('SELECT referral.reward_rules_set(%s, %L)', :program,
                        '{}'), 'RF010', NULL, 'rules are an array');
SELECT throws_ok(format('SELECT referral.reward_rules_set(%s, %L, %L)',
                        :program, '[]', '{"cap": -1}'), 'RF010', NULL,
                 'a cap below zero');
SELECT throws_ok(format('SELECT referral.reward_rules_set(%s, %L, %L)',
                        :program, '[]', '{"unit": "XXX"}'), 'RF010', NULL,
                 'no such unit');
SELECT throws_ok(format('SELECT referral.reward_rules_set(%s, %L, %L)',
                        :program, '[]', '{"code_id": -1}'), 'RF067', NULL,
                 'no code of the program');
SELECT throws_ok($$ UPDATE referral.reward_rule SET amount = 1 $$, 'RF061',
                 NULL, 'rules are not changed');
SELECT throws_ok($$ DELETE FROM referral.reward_rule_set $$, 'RF061', NULL,
                 'nor deleted');
SELECT is((SELECT count(*) FROM referral.reward_rules
               WHERE program_id = :program), 1::bigint,
          'what was refused left no version');

-- versions: a referral keeps the rules of its making

SELECT pg_temp.program('FROZEN', '[{"kind": "cash", "amount": 1000}]')
    AS program \gset
SELECT referral.referral_register(:program, '{"code": "FROZEN-CODE",
           "external_id": "FROZEN/before"}') \g /dev/null
SELECT is(referral.reward_rules_set(:program,
              '[{"kind": "cash", "amount": 300}]'), 2, 'a second version');
SELECT is(pg_temp.given(pg_temp.buy('FROZEN', 'before', 5)),
          'referrer cash 1000 USD approved', 'the version of its making');
SELECT is(pg_temp.given(pg_temp.buy('FROZEN', 'after', 5)),
          'referrer cash 300 USD approved', 'who comes later, has the next');
SELECT results_eq($$ SELECT version, amount, current
                         FROM referral.reward_rules
                         WHERE program_id = (SELECT id FROM referral.program
                                                 WHERE slug = 'frozen')
                         ORDER BY version $$,
                  $$ VALUES (1, 1000::bigint, false), (2, 300, true) $$,
                  'the view shows both');

SELECT referral.program_clone(:program, 'frozen-too') AS clone \gset
SELECT results_eq(format('SELECT version, amount FROM referral.reward_rules
                              WHERE program_id = %s', :clone),
                  $$ VALUES (1, 300::bigint) $$,
                  'a clone has the newest rules');

-- what is given: fixed or rate, of the price before or after the discount

SELECT pg_temp.program('RATE', '[
    {"kind": "cash", "rate_bp": 1000},
    {"kind": "credit", "rate_bp": 1000, "base": "before",
     "beneficiary": "referee"},
    {"kind": "points", "rate_bp": 100, "slot": "points"}]') \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('RATE', '1', 8005, '{"discount": 2000}')),
          'referrer cash 800 USD approved, referee credit 1000 USD approved,'
          ' referrer points 80 points approved',
          '10 % after, and before a discount; a point for each dollar');
SELECT is(pg_temp.given(pg_temp.buy('RATE', '2', 15)),
          'referrer cash 2 USD approved, referee credit 2 USD approved',
          'halves go to the even number; nothing is no reward');
SELECT is(pg_temp.skipped(pg_temp.buy('RATE', '3', 0)),
          'referrer reward nothing, referee reward nothing,'
          ' referrer points nothing', 'of a free order');
SELECT is(pg_temp.given(pg_temp.buy('RATE', '4', 8005,
                                    '{"currency": "JPY"}')),
          'referrer cash 800 JPY approved, referee credit 800 JPY approved,'
          ' referrer points 80 points approved',
          'in the currency of the order');
SELECT is(pg_temp.given(pg_temp.buy('RATE', '5', 12345,
                                    '{"currency": "KWD"}')),
          'referrer cash 1234 KWD approved, referee credit 1234 KWD approved,'
          ' referrer points 123 points approved', 'and of three digits');
SELECT is(pg_temp.balances('RATE'),
          'expense -800 JPY, payable 800 JPY, expense -1.234 KWD,'
          ' payable 1.234 KWD, expense -8.02 USD, payable 8.02 USD,'
          ' credit 283 points, expense -283 points',
          'each unit has accounts of its own');

SELECT pg_temp.program('KINDS', '[
    {"kind": "credit", "amount": 1000, "slot": "a"},
    {"kind": "discount", "amount": 1500, "slot": "b"},
    {"kind": "discount", "amount": 1, "coupon_bp": 2000, "slot": "c"},
    {"kind": "points", "amount": 50, "slot": "d"},
    {"kind": "free_item", "amount": 1, "item": "grooming", "slot": "e"},
    {"kind": "merchandise", "amount": 2, "item": "mug", "slot": "f"},
    {"kind": "messages", "amount": 10, "valid_for": "1 month", "slot": "g"},
    {"kind": "requests", "amount": 5, "slot": "h"},
    {"kind": "feature_days", "amount": 7, "item": "pro", "slot": "i"}]')
    \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('KINDS', '1', 100)),
          'referrer credit 1000 USD approved,'
          ' referrer discount 1500 USD approved,'
          ' referrer discount 1 coupons approved,'
          ' referrer points 50 points approved,'
          ' referrer free_item 1 items approved,'
          ' referrer merchandise 2 items approved,'
          ' referrer messages 10 messages approved,'
          ' referrer requests 5 requests approved,'
          ' referrer feature_days 7 feature_days approved',
          'every kind has its unit');
SELECT is(pg_temp.balances('KINDS'),
          'credit 10.00 USD, discount 15.00 USD, expense -25.00 USD,'
          ' discount 1 coupons, expense -1 coupons, credit 7 feature_days,'
          ' expense -7 feature_days, credit 3 items, expense -3 items,'
          ' credit 10 messages, expense -10 messages, credit 50 points,'
          ' expense -50 points, credit 5 requests, expense -5 requests',
          'and its account');
SELECT is(valid_until, valid_from + interval '1 month', 'and validity')
    FROM referral.rewards WHERE kind = 'messages';

-- by product, by kind of conversion, by order value: the most specific rule

SELECT pg_temp.program('PRODUCT', '[
    {"kind": "cash", "amount": 100},
    {"kind": "cash", "amount": 500, "products": ["course-7", "course-8"]},
    {"kind": "cash", "amount": 200, "min_amount": 10000},
    {"kind": "cash", "amount": 300, "min_amount": 20000},
    {"kind": "cash", "amount": 900, "conversion_kinds": ["upgrade"]}]')
    \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('PRODUCT', v.n, v.amount, v.options)),
          v.wanted, v.wanted || ' of ' || v.amount || ' ' || v.options)
    FROM (VALUES
        ('1', 500::bigint, '{}'::jsonb, 'referrer cash 100 USD approved'),
        ('2', 500, '{"product": "course-7"}',
         'referrer cash 500 USD approved'),
        ('3', 500, '{"product": "course-9"}',
         'referrer cash 100 USD approved'),
        ('4', 10000, '{}', 'referrer cash 200 USD approved'),
        ('5', 20000, '{}', 'referrer cash 300 USD approved'),
        ('6', 20000, '{"currency": "EUR"}', 'referrer cash 100 USD approved'),
        ('7', 20000, '{"kind": "upgrade"}',
         'referrer cash 900 USD approved'),
        ('8', 20000, '{"kind": "upgrade", "product": "course-8"}',
         'referrer cash 500 USD approved')) v (n, amount, options, wanted);

-- tiers, bonuses and thresholds count the referrer's referrals

SELECT pg_temp.program('TIERS', '[
    {"kind": "cash", "tiers": [{"from": 1, "amount": 100},
                               {"from": 3, "amount": 250},
                               {"from": 5, "rate_bp": 1000}]},
    {"kind": "points", "amount": 7, "nth": 2},
    {"kind": "points", "amount": 9, "every": 4}]') \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('TIERS', n::text, 50000)), wanted,
          'referral ' || n)
    FROM (VALUES (1, 'referrer cash 100 USD approved'),
                 (2, 'referrer cash 100 USD approved,'
                     ' referrer points 7 points approved'),
                 (3, 'referrer cash 250 USD approved'),
                 (4, 'referrer cash 250 USD approved,'
                     ' referrer points 9 points approved'),
                 (5, 'referrer cash 5000 USD approved')) v (n, wanted);
SELECT is(pg_temp.buy('TIERS', '3', 50000, '{"order_ref": "again"}') -> 'nth',
          '3', 'a second order of a referee has his number');
SELECT is(referral.refund_record(:acme, '{"order_ref": "TIERS/1",
              "refund_ref": "TIERS/1"}') ->> 'left', '0', 'one is refunded');
SELECT is(pg_temp.given(pg_temp.buy('TIERS', '6', 100)),
          'referrer cash 10 USD approved', 'which moves no other''s tier');
SELECT is(pg_temp.buy('TIERS', '7', 100) -> 'nth', '7',
          'and numbers go on');

SELECT pg_temp.program('THRESHOLD', '[{"kind": "cash", "amount": 100},
    {"kind": "cash", "amount": 1, "beneficiary": "referee"},
    {"kind": "points", "amount": 3, "slot": "p", "threshold": 2}]', '{}',
    '{"reward_threshold": 3}') \g /dev/null
SELECT is(pg_temp.skipped(pg_temp.buy('THRESHOLD', '1', 100)),
          'referrer reward below the threshold,'
          ' referrer p below the threshold', 'the first');
SELECT is(pg_temp.given(pg_temp.buy('THRESHOLD', '2', 100)),
          'referee cash 1 USD approved, referrer points 3 points approved',
          'the second, with a threshold of its own');
SELECT is(pg_temp.given(pg_temp.buy('THRESHOLD', '3', 100)),
          'referrer cash 100 USD approved, referee cash 1 USD approved,'
          ' referrer points 3 points approved', 'the third');

-- once for a referral, or each time

SELECT pg_temp.program('TIMES', '[{"kind": "cash", "amount": 100},
    {"kind": "points", "amount": 3, "slot": "p", "times": 2},
    {"kind": "credit", "rate_bp": 500, "slot": "r", "times": null}]')
    \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('TIMES', '1', 1000,
              jsonb_build_object('order_ref', 'times ' || n))), wanted,
          'order ' || n)
    FROM (VALUES (1, 'referrer cash 100 USD approved,'
                     ' referrer points 3 points approved,'
                     ' referrer credit 50 USD approved'),
                 (2, 'referrer points 3 points approved,'
                     ' referrer credit 50 USD approved'),
                 (3, 'referrer credit 50 USD approved')) v (n, wanted);
SELECT referral.refund_record(:acme, '{"order_ref": "times 1",
           "refund_ref": "times 1"}') \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('TIMES', '1', 1000,
                                    '{"order_ref": "times 4"}')),
          'referrer cash 100 USD approved, referrer points 3 points approved,'
          ' referrer credit 50 USD approved',
          'what was taken back as a whole, was not given');

-- seasons, in the program's own days, both days included

SELECT pg_temp.program('SEASON', '[{"kind": "cash", "rate_bp": 1000,
    "times": null, "seasons": [
        {"from": "2026-06-01", "until": "2026-06-30", "multiplier_bp": 20000},
        {"from": "2026-06-15", "until": "2026-06-15", "multiplier_bp": 30000}
    ]}]', '{}', '{"time_zone": "America/New_York",
                  "referral_validity": "10 years"}') AS program \gset
SELECT is(pg_temp.given(referral.conversion_record(:acme, jsonb_build_object(
              'order_ref', v.at, 'amount', 1005, 'occurred_at', v.at,
              'referral_id', referral.referral_create(:program,
                  jsonb_build_object('code', 'SEASON-CODE', 'external_id',
                                     'season' || v.at)),
              'external_id', 'season' || v.at))), v.wanted, v.at)
    FROM (VALUES ('2026-06-01 03:59:59Z', 'referrer cash 100 USD approved'),
                 ('2026-06-01 04:00:00Z', 'referrer cash 201 USD approved'),
                 ('2026-06-15 12:00:00Z', 'referrer cash 302 USD approved'),
                 ('2026-07-01 03:59:59Z', 'referrer cash 201 USD approved'),
                 ('2026-07-01 04:00:00Z', 'referrer cash 100 USD approved'))
             v (at, wanted);

-- the cap, over all rewards of a referral; approval above an amount

SELECT pg_temp.program('CAP', '[
    {"kind": "cash", "rate_bp": 2000, "times": null},
    {"kind": "credit", "amount": 10000, "beneficiary": "referee"},
    {"kind": "points", "amount": 1000000, "slot": "p"}]',
    '{"cap": 50000, "approval_above": 10000}') \g /dev/null
SELECT pg_temp.buy('CAP', '1', 240000) AS capped \gset
SELECT is(pg_temp.given(:'capped'),
          'referrer cash 48000 USD pending, referee credit 2000 USD approved,'
          ' referrer points 1000000 points approved',
          'the last is cut to 500.00 in all; points do not count');
SELECT is(:'capped'::jsonb #>> '{rewards,1,capped}', 'true',
          'and says so');
SELECT is(pg_temp.skipped(pg_temp.buy('CAP', '1', 500,
                                      '{"order_ref": "cap 2"}')),
          'referrer reward the cap of the referral is reached,'
          ' referee reward given before, referrer p given before',
          'then nothing is left');
SELECT referral.refund_record(:acme, '{"order_ref": "CAP/1",
           "refund_ref": "CAP/1", "amount": 120000}') \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('CAP', '1', 500,
                                    '{"order_ref": "cap 3"}')),
          'referrer cash 100 USD approved', 'a refund makes room');
SELECT is(pg_temp.given(pg_temp.buy('CAP', '2', 50000)),
          'referrer cash 10000 USD approved,'
          ' referee credit 10000 USD approved,'
          ' referrer points 1000000 points approved',
          '100.00 is not above 100.00');
SELECT is(pg_temp.given(pg_temp.buy('CAP', '3', 50005)),
          'referrer cash 10001 USD pending,'
          ' referee credit 10000 USD approved,'
          ' referrer points 1000000 points approved', '100.01 is');
SELECT is(pg_temp.given(pg_temp.buy('CAP', '4', 100, '{"currency": "EUR"}')),
          'referrer cash 20 EUR pending, referee credit 10000 USD approved,'
          ' referrer points 1000000 points approved',
          'what can not be compared is looked at');

SELECT pg_temp.program('MANUAL', '[
    {"kind": "cash", "amount": 900, "approval": "manual"},
    {"kind": "cash", "amount": 900, "approval": "auto", "slot": "b"},
    {"kind": "points", "amount": 9, "approval_above": 8, "slot": "c"},
    {"kind": "cash", "amount": 900, "max_amount": 300, "slot": "d"}]',
    '{"approval_above": 500}') \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('MANUAL', '1', 100)),
          'referrer cash 900 USD pending, referrer cash 900 USD approved,'
          ' referrer points 9 points pending, referrer cash 300 USD approved',
          'a rule may decide otherwise, and has a limit of its own');

-- commission of the referrer over the program's rate

SELECT pg_temp.program('COMMISSION', '[{"kind": "cash", "rate_bp": 1000},
    {"kind": "credit", "rate_bp": 1000, "beneficiary": "referee"},
    {"kind": "points", "rate_bp": 1000, "slot": "p", "commission": false}]')
    \g /dev/null
SELECT referral.referrer_update(id, '{"commission_bp": 1250}')
    FROM referral.referrer WHERE external_id = 'COMMISSION' \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('COMMISSION', '1', 10000)),
          'referrer cash 1250 USD approved, referee credit 1000 USD approved,'
          ' referrer points 1000 points approved', '12.5 % of his own');

-- rules of a code, before those of the program; rules of a variant

SELECT pg_temp.program('CODED', '[{"kind": "cash", "amount": 100},
    {"kind": "points", "amount": 5, "slot": "p"}]') AS program \gset
SELECT referral.reward_rules_set(:program, '[{"kind": "credit",
               "amount": 2500}, {"kind": "discount", "amount": 1000,
               "beneficiary": "referee"}]',
           jsonb_build_object('code_id', id))
    FROM referral.code_create(:program, NULL, 'SUMMER-CODE') \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('CODED', '1', 10)),
          'referrer cash 100 USD approved, referrer points 5 points approved',
          'another code');
SELECT is(pg_temp.skipped(pg_temp.buy('SUMMER', '1', 10)),
          'referrer reward no referrer, referrer p no referrer',
          'a campaign''s code rewards no referrer');
SELECT is(pg_temp.given(pg_temp.buy('SUMMER', '2', 10)),
          'referee discount 1000 USD approved', 'but the referee');

SELECT pg_temp.program('VARIANT', '[{"kind": "cash", "amount": 100}]')
    AS program \gset
SELECT referral.program_variant_set(:program, 'b', 1, '{}') AS variant \gset
SELECT referral.reward_rules_set(:program, jsonb_build_array(
           '{"kind": "cash", "amount": 100}'::jsonb,
           jsonb_build_object('kind', 'cash', 'amount', 700, 'variant_id',
                              :variant))) \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('VARIANT', '1', 10)),
          'referrer cash 700 USD approved', 'the rule of his variant');

-- registration

SELECT pg_temp.program('SIGNUP', '[
    {"kind": "messages", "amount": 10, "trigger": "registration"},
    {"kind": "messages", "amount": 5, "trigger": "registration",
     "beneficiary": "referee", "valid_for": "30 days"},
    {"kind": "requests", "tiers": [{"from": 2, "amount": 3}], "slot": "r",
     "trigger": "registration"},
    {"kind": "credit", "amount": 1000}]') AS program \gset
SELECT referral.referral_register(:program, '{"code": "SIGNUP-CODE",
           "external_id": "SIGNUP/1"}') \g /dev/null
SELECT referral.referral_register(:program, '{"code": "SIGNUP-CODE",
           "external_id": "SIGNUP/1"}') \g /dev/null
SELECT is(pg_temp.balances('SIGNUP'),
          'credit 10 messages, expense -10 messages',
          'registered, twice: rewarded once');
SELECT referral.referral_register(:program, '{"code": "SIGNUP-CODE",
           "external_id": "SIGNUP/2"}') \g /dev/null
SELECT is(pg_temp.balances('SIGNUP'),
          'credit 20 messages, expense -20 messages, credit 3 requests,'
          ' expense -3 requests', 'the second registration, by its tier');
SELECT is(pg_temp.given(pg_temp.buy('SIGNUP', '1', 900)),
          'referrer credit 1000 USD approved', 'and then the conversion');
SELECT is((SELECT status FROM referral.referral
               WHERE referee_external_id = 'SIGNUP/1'), 'rewarded',
          'the referral is rewarded');
SELECT is((SELECT status FROM referral.referral
               WHERE referee_external_id = 'SIGNUP/2'), 'registered',
          'by a conversion, not by a registration');

-- conversions: once, by order and by key

SELECT pg_temp.program('ORDER', '[{"kind": "cash", "rate_bp": 1000}]')
    \g /dev/null
SELECT pg_temp.buy('ORDER', '1', 5000, '{"idempotency_key": "k1"}') AS answer
    \gset
SELECT is(pg_temp.buy('ORDER', '1', 5000, '{"idempotency_key": "k1"}'),
          :'answer'::jsonb, 'the first answer again');
SELECT throws_ok($$ SELECT pg_temp.buy('ORDER', '1', 5001,
                                       '{"idempotency_key": "k1"}') $$,
                 'RF068', NULL, 'the order with another amount');
SELECT throws_ok($$ SELECT pg_temp.buy('ORDER', '2', 5000,
                                       '{"idempotency_key": "k1"}') $$,
                 'RF068', NULL, 'the key with another order');
SELECT throws_ok($$ SELECT pg_temp.buy('ORDER', '1', 5000) $$, 'RF068', NULL,
                 'the order without its key');
SELECT is(pg_temp.buy('ORDER', '2', 5000,
                      '{"idempotency_key": "k2", "order_ref": null}')
              ->> 'outcome', 'credited', 'a key alone is enough');
SELECT throws_ok($$ SELECT pg_temp.buy('ORDER', '3', 5000,
                                       '{"order_ref": null}') $$,
                 'RF069', NULL, 'neither is not');
SELECT is((SELECT count(*) FROM referral.conversions c
               JOIN referral.program p ON p.id = c.program_id
               WHERE p.slug = 'order'), 2::bigint, 'two were recorded');

SELECT throws_ok(format('SELECT pg_temp.buy(%L, %L, 5, %L)', 'ORDER', '9',
                        options), sqlstate, NULL, 'refused: ' || options)
    FROM (VALUES ('{"amount": -1}', 'RF010'), ('{"amount": 1.5}', 'RF010'),
                 ('{"external_id": ""}', 'RF010'),
                 ('{"amount": "12,34"}', 'RF010'),
                 ('{"amount": 1000000000000001}', 'RF010'),
                 ('{"amount": 99999999999999999999}', 'RF010'),
                 ('{"discount": -1}', 'RF010'), ('{"currency": "XXX"}', 'RF010'),
                 ('{"currency": "points"}', 'RF010'),
                 ('{"kind": "Big Sale"}', 'RF010'),
                 ('{"order_ref": ""}', 'RF010'),
                 ('{"occurred_at": "soon"}', 'RF010'),
                 ('{"occurred_at": "2999-01-01"}', 'RF010'),
                 ('{"price": 5}', 'RF011')) v (options, sqlstate);
SELECT throws_ok(format('SELECT referral.conversion_record(%s, %L)', :other,
                        '{"order_ref": "x", "referral_id": 1}'), 'RF090',
                 NULL, 'a referral of another organisation');
SELECT throws_ok('SELECT referral.conversion_record(-1, ''{}'')', 'RF012',
                 NULL, 'no organisation');

SELECT is(referral.conversion_record(:acme, '{"order_ref": "organic",
              "external_id": "nobody", "amount": 5}') ->> 'outcome',
          'unattributed', 'a customer whom nobody referred');
SELECT is(referral.conversion_record(:acme, '{"order_ref": "organic",
              "external_id": "nobody", "amount": 5, "token": "v1.broken"}')
              ->> 'outcome', 'unattributed', 'a broken token says nothing');
SELECT is(pg_temp.buy('ORDER', '3', 5000, '{"token": "v1.broken"}')
              ->> 'outcome', 'credited', 'and spoils nothing');
SELECT is(pg_temp.buy('ORDER', 'late', 5000, '{"code": "NO-SUCH-CODE"}')
              ->> 'outcome', 'unattributed', 'an unknown code');
SELECT is(pg_temp.buy('ORDER', 'late', 5000) ->> 'outcome', 'credited',
          'the order is good when its referral is known');
SELECT referral.referral_register(NULL, '{"code": "ORDER-CODE"}',
           '{"email": "Anna@Example.com", "phone": "+49 170 1234567"}')
    \g /dev/null
SELECT is(referral.conversion_record(:acme, '{"order_ref": "by mail",
              "email": " anna@example.COM ", "amount": 5}') ->> 'outcome',
          'credited', 'by e-mail');
SELECT is(referral.conversion_record(:acme, '{"order_ref": "by phone",
              "phone": "0049 170-1234567", "amount": 5}') ->> 'outcome',
          'credited', 'by phone');
SELECT is((SELECT array_agg(DISTINCT referral_id) = array_agg(referral_id)
                  OR count(DISTINCT referral_id) = 1
               FROM referral.conversions WHERE order_ref LIKE 'by %'), true,
          'which is one customer');
SELECT is((SELECT count(*) FROM referral.conversion
               WHERE answer::text ILIKE '%anna%'), 0::bigint,
          'nothing personal is kept');
SELECT is((SELECT value FROM referral.referral
               WHERE referee_external_id = 'ORDER/1'), 5000::bigint,
          'the referral has its value');

-- validity: judged at the time of the order

SELECT pg_temp.program('VALID', '[{"kind": "cash", "amount": 100}]', '{}',
                       '{"referral_validity": "90 days"}') AS program \gset
SELECT referral.referral_register(:program, jsonb_build_object('code',
           'VALID-CODE', 'external_id', 'VALID/' || n))
    FROM generate_series(1, 2) n \g /dev/null
UPDATE referral.referral SET expires_at = now() - interval '1 hour'
    WHERE program_id = :program;
SELECT is(pg_temp.buy('VALID', '1', 5) ->> 'sqlstate', 'RF105',
          'an order after the end');
SELECT is(pg_temp.buy('VALID', '1', 5, jsonb_build_object('occurred_at',
              now() - interval '2 hours')) ->> 'outcome', 'credited',
          'an order before it, told later');
SELECT referral.referral_expire() \g /dev/null
SELECT is((SELECT status FROM referral.referral
               WHERE referee_external_id = 'VALID/2'), 'expired',
          'housekeeping has found the other');
SELECT is(pg_temp.buy('VALID', '2', 5) ->> 'sqlstate', 'RF105',
          'an order after the end of an expired one');
SELECT is(pg_temp.buy('VALID', '2', 5, jsonb_build_object('occurred_at',
              now() - interval '2 hours')) ->> 'outcome', 'credited',
          'and one before it');

-- who refers: suspended, terminated

SELECT pg_temp.program('SUSPEND', '[{"kind": "cash", "amount": 100},
    {"kind": "cash", "amount": 5, "beneficiary": "referee"}]') AS program
    \gset
SELECT referral.referral_register(:program, jsonb_build_object('code',
           'SUSPEND-CODE', 'external_id', 'SUSPEND/' || n))
    FROM generate_series(1, 3) n \g /dev/null
SELECT referral.referrer_set_status(id, 'suspended')
    FROM referral.referrer WHERE external_id = 'SUSPEND' \g /dev/null
SELECT pg_temp.buy('SUSPEND', '1', 5) AS held \gset
SELECT is(pg_temp.given(:'held'),
          'referrer cash 100 USD held, referee cash 5 USD approved',
          'a suspended referrer''s reward is held');
SELECT is(pg_temp.balances('SUSPEND'), 'expense -1.00 USD, pending 1.00 USD',
          'in the pending account');
SELECT referral.reward_release(now() + interval '1 year') \g /dev/null
SELECT is(pg_temp.status(:'held'), 'held', 'time does not release it');
SELECT referral.reward_approve(pg_temp.reward(:'held')) \g /dev/null
SELECT is(pg_temp.status(:'held'), 'approved', 'somebody does');
SELECT referral.referrer_set_status(id, 'terminated')
    FROM referral.referrer WHERE external_id = 'SUSPEND' \g /dev/null
SELECT is(pg_temp.skipped(pg_temp.buy('SUSPEND', '2', 5)),
          'referrer reward the referrer is terminated', 'one terminated');
SELECT is(pg_temp.buy('SUSPEND', '3', 5) ->> 'nth', '3',
          'has his referrals counted');

-- hold, release, approval

SELECT pg_temp.program('HOLD', '[{"kind": "cash", "amount": 20000,
    "hold": "14 days"}]', '{"approval_above": 10000}') AS program \gset
SELECT referral.reward_rules_set(:program, '[{"kind": "cash",
           "amount": 20000, "hold": "14 days", "approval": "auto"}]')
    \g /dev/null
SELECT pg_temp.buy('HOLD', '1', 5) AS first,
       pg_temp.buy('HOLD', '2', 5) AS second \gset
SELECT referral.reward_rules_set(:program, '[{"kind": "cash",
           "amount": 20000, "hold": "14 days"}]', '{"approval_above": 10000}')
    \g /dev/null
SELECT pg_temp.buy('HOLD', '3', 5) AS third, pg_temp.buy('HOLD', '4', 5)
    AS fourth \gset
SELECT referral.reward_release(now() + interval '13 days') \g /dev/null
SELECT is(pg_temp.status(:'first'), 'pending', 'held for 14 days');
SELECT referral.reward_hold(pg_temp.reward(:'second'), 'looks odd')
    \g /dev/null
SELECT referral.reward_approve(pg_temp.reward(:'third'), 'fine') \g /dev/null
SELECT referral.reward_approve(pg_temp.reward(:'third')) \g /dev/null
SELECT is(pg_temp.status(:'third'), 'pending',
          'approved before the hold is over: it goes on');
SELECT is(referral.reward_release(now() + interval '14 days'), 2,
          'two are released');
SELECT is(referral.reward_release(now() + interval '14 days'), 0, 'once');
SELECT is(pg_temp.status(answer), wanted, wanted)
    FROM (VALUES (:'first'::jsonb, 'approved'), (:'second', 'held'),
                 (:'third', 'approved'), (:'fourth', 'pending'))
             v (answer, wanted);
SELECT is(pg_temp.balances('HOLD'),
          'expense -800.00 USD, payable 400.00 USD, pending 400.00 USD',
          'half of it can be paid');
SELECT referral.reward_reject(pg_temp.reward(:'fourth'), 'not a customer')
    \g /dev/null
SELECT referral.reward_reject(pg_temp.reward(:'fourth'), 'again') \g /dev/null
SELECT is((SELECT concat_ws(' ', status, reason, returned)
               FROM referral.rewards WHERE id = pg_temp.reward(:'fourth')),
          'rejected not a customer 20000', 'rejected, once');
SELECT results_eq(format($$ SELECT type, data ->> 'status',
                                   (data ->> 'amount')::bigint
                                FROM referral.event
                                WHERE data ->> 'reward_id' = '%s'
                                      AND type NOT IN ('reward.earned') $$,
                         pg_temp.reward(:'fourth')),
                  $$ VALUES ('reward.rejected', 'rejected', 20000::bigint) $$,
                  'and told so, once');
SELECT throws_ok(format('SELECT referral.reward_approve(%s)',
                        pg_temp.reward(:'fourth')), 'RF073', NULL,
                 'and not approved any more');
SELECT throws_ok(format('SELECT referral.reward_reject(%s, NULL)',
                        pg_temp.reward(:'first')), 'RF073', NULL,
                 'what is released is not rejected');
SELECT referral.reward_cancel(pg_temp.reward(:'first'), 'a mistake')
    \g /dev/null
SELECT is(pg_temp.status(:'first'), 'cancelled', 'but cancelled');
SELECT is(pg_temp.balances('HOLD'),
          'expense -400.00 USD, payable 200.00 USD, pending 200.00 USD',
          'both came back');
SELECT is((SELECT string_agg(action, ' ' ORDER BY id)
               FROM referral.audit_trail
               WHERE object = 'reward' AND object_id IN
                     (pg_temp.reward(:'first'), pg_temp.reward(:'second'),
                      pg_temp.reward(:'third'), pg_temp.reward(:'fourth'))),
          'hold approve reject cancel', 'the audit knows who decided what');
SELECT throws_ok('SELECT referral.reward_approve(-1)', 'RF070', NULL,
                 'no such reward');

-- refunds: partial, several, whole; pro rata with one rounding

SELECT pg_temp.program('REFUND', '[{"kind": "cash", "amount": 100},
    {"kind": "points", "amount": 7, "beneficiary": "referee"}]') \g /dev/null
SELECT pg_temp.buy('REFUND', '1', 3000) AS bought \gset

CREATE FUNCTION pg_temp.refund(order_ref text, ref text, amount bigint)
    RETURNS text
    LANGUAGE sql
    RETURN (SELECT string_agg(concat_ws(' ', r ->> 'amount', r ->> 'unit'),
                              ', ' ORDER BY n)
                FROM jsonb_array_elements(referral.refund_record(
                         current_setting('test.acme')::bigint,
                         jsonb_build_object('order_ref', order_ref,
                             'refund_ref', ref, 'amount', amount))
                     -> 'reversed') WITH ORDINALITY e (r, n));

SELECT is(pg_temp.refund('REFUND/1', 'f1', 1000), '33 USD, 2 points',
          'a third');
SELECT is(pg_temp.refund('REFUND/1', 'f1', 1000), '33 USD, 2 points',
          'is taken back once');
SELECT is(pg_temp.refund('REFUND/1', 'f2', 1000), '34 USD, 3 points',
          'two thirds are 67 and 5');
SELECT throws_ok($$ SELECT pg_temp.refund('REFUND/1', 'f3', 1001) $$, 'RF072',
                 NULL, 'more than the amount');
SELECT throws_ok($$ SELECT pg_temp.refund('REFUND/1', 'f2', 999) $$, 'RF068',
                 NULL, 'a reference with another amount');
SELECT throws_ok($$ SELECT pg_temp.refund('REFUND/1', 'f3', 0) $$, 'RF072',
                 NULL, 'a refund of nothing');
SELECT throws_ok($$ SELECT pg_temp.refund('REFUND/1', 'f3', -5) $$, 'RF072',
                 NULL, 'less than nothing');
SELECT throws_ok($$ SELECT pg_temp.refund('REFUND/9', 'f3', 1) $$, 'RF071',
                 NULL, 'no such order');
SELECT throws_ok(format('SELECT referral.refund_record(%s, %L)', :acme,
                        '{"order_ref": "REFUND/1"}'), 'RF010', NULL,
                 'without a reference');
SELECT throws_ok(format('SELECT referral.refund_record(%s, %L)', :other,
                        '{"order_ref": "REFUND/1", "refund_ref": "x"}'),
                 'RF071', NULL, 'an order of another organisation');
SELECT is(pg_temp.refund('REFUND/1', 'f3', NULL), '33 USD, 2 points',
          'the rest');
SELECT throws_ok($$ SELECT pg_temp.refund('REFUND/1', 'f4', NULL) $$, 'RF072',
                 NULL, 'nothing is left');
SELECT is(pg_temp.balances('REFUND'), '-', 'all came back');
SELECT is(pg_temp.status(:'bought', n), 'reversed', 'reversed')
    FROM generate_series(0, 1) n;
SELECT is((SELECT value FROM referral.referral
               WHERE referee_external_id = 'REFUND/1'), 0::bigint,
          'and the referral has no value');
SELECT results_eq($$ SELECT transfer, reverses IS NOT NULL
                         FROM referral.ledger l
                              JOIN referral.rewards r ON r.id = l.reward_id
                         WHERE r.kind = 'cash' AND l.account = 'payable'
                               AND r.referral_id = (SELECT id
                                   FROM referral.referral WHERE
                                   referee_external_id = 'REFUND/1')
                         ORDER BY seq $$,
                  $$ VALUES ('reward', false), ('reversal', true),
                            ('reversal', true), ('reversal', true) $$,
                  'by transfers of their own');
SELECT pg_temp.buy('REFUND', 'free', 0) AS free \gset
SELECT is(pg_temp.refund('REFUND/free', 'f5', NULL), '100 USD, 7 points',
          'a free order is cancelled as a whole');
SELECT throws_ok($$ SELECT pg_temp.refund('REFUND/free', 'f6', NULL) $$,
                 'RF072', NULL, 'once');

-- a refund while it is pending, and after it was paid

SELECT pg_temp.program('CLAW', '[{"kind": "cash", "rate_bp": 1000}]',
                       '{"approval_above": 5000}') \g /dev/null
SELECT pg_temp.buy('CLAW', 'big', 60000) AS big,
       pg_temp.buy('CLAW', 'one', 10000) AS one \gset
SELECT is(pg_temp.refund('CLAW/big', 'c1', 30000), '3000 USD',
          'half of a pending one');
SELECT is(pg_temp.balances('CLAW'),
          'expense -40.00 USD, payable 10.00 USD, pending 30.00 USD',
          'out of pending');
SELECT is(pg_temp.pay('CLAW'), 1000::bigint, 'the other is paid');
SELECT is(pg_temp.status(:'one'), 'paid', 'and says so');
SELECT is(pg_temp.refund('CLAW/one', 'c2', 4000), '400 USD',
          'then refunded in part');
SELECT is(pg_temp.balances('CLAW'),
          'expense -36.00 USD, paid 10.00 USD, payable -4.00 USD,'
          ' pending 30.00 USD', 'which he owes');
SELECT is(pg_temp.pay('CLAW'), NULL, 'a debt is not paid out');
SELECT referral.reward_approve(pg_temp.reward(:'big')) \g /dev/null
SELECT is(pg_temp.balances('CLAW'),
          'expense -36.00 USD, paid 10.00 USD, payable 26.00 USD',
          'the next reward pays it');
SELECT is((SELECT available FROM referral.rewards
               WHERE id = pg_temp.reward(:'big')), 2600::bigint,
          'with a part of itself');
SELECT is(pg_temp.pay('CLAW'), 2600::bigint, 'what is left is paid');
SELECT is(pg_temp.refund('CLAW/one', 'c3', NULL), '600 USD', 'the rest of it');
SELECT is(pg_temp.status(:'one'), 'reversed', 'all of it is taken back');
SELECT is(pg_temp.balances('CLAW'),
          'expense -30.00 USD, paid 36.00 USD, payable -6.00 USD',
          'the debt is carried on');
SELECT is(pg_temp.given(pg_temp.buy('CLAW', 'two', 2000)),
          'referrer cash 200 USD approved', 'a small one');
SELECT is(pg_temp.balances('CLAW'),
          'expense -32.00 USD, paid 36.00 USD, payable -4.00 USD',
          'makes it smaller');
SELECT is((SELECT status FROM referral.rewards r
               WHERE r.amount = 200
                     AND r.program_id = (SELECT id FROM referral.program
                                             WHERE slug = 'claw')), 'paid',
          'and is used up');

-- expiry, told before

SELECT pg_temp.program('EXPIRE', '[{"kind": "credit", "amount": 500,
    "valid_for": "10 days"}, {"kind": "cash", "amount": 300, "slot": "c"}]')
    \g /dev/null
SELECT pg_temp.buy('EXPIRE', '1', 100) AS bought \gset
SELECT is(referral.reward_expiring(now() + interval '2 days'), 0,
          'not yet said');
SELECT is(referral.reward_expiring(now() + interval '3 days'), 1,
          'seven days before');
SELECT is(referral.reward_expiring(now() + interval '4 days'), 0, 'once');
SELECT is(referral.reward_expire(now() + interval '9 days'), 0,
          'valid on the last day');
SELECT set_config('referral.organisation', referral.organisation_create(
           'stranger', 'Stranger')::text, true) \g /dev/null
SELECT is(array[referral.reward_release('2099-01-01'),
                referral.reward_expiring('2099-01-01'),
                referral.reward_expire('2099-01-01')], '{0,0,0}',
          'another organisation''s time is not passed');
SELECT set_config('referral.organisation', '', true) \g /dev/null
SELECT is(referral.reward_expire(now() + interval '10 days'), 1, 'then not');
SELECT is(referral.reward_expire(now() + interval '11 days'), 0, 'once');
SELECT is(pg_temp.status(:'bought'), 'expired', 'expired');
SELECT is(pg_temp.balances('EXPIRE'),
          'expense -8.00 USD, expired 5.00 USD, payable 3.00 USD',
          'what has no end does not expire');
SELECT is(pg_temp.refund('EXPIRE/1', 'e1', NULL), '300 USD',
          'and what has expired is not taken back again');
SELECT is((SELECT array_agg(type::text ORDER BY seq) FROM referral.event
               WHERE (data ->> 'reward_id')::bigint
                     = pg_temp.reward(:'bought')),
          '{reward.earned,reward.approved,reward.expiring,reward.expired}',
          'all of its life was told');

-- a referral that is given up

SELECT pg_temp.program('GIVEUP', '[{"kind": "cash", "amount": 500},
    {"kind": "cash", "amount": 20000, "slot": "b"},
    {"kind": "points", "amount": 5, "trigger": "registration"}]',
    '{"approval_above": 10000}') \g /dev/null
SELECT pg_temp.buy('GIVEUP', '1', 100) AS bought \gset
SELECT pg_temp.pay('GIVEUP') \g /dev/null
SELECT referral.referral_register(NULL, '{"code": "GIVEUP-CODE",
           "external_id": "GIVEUP/2"}') ->> 'referral_id' AS second \gset
SELECT referral.referral_cancel((:'bought'::jsonb ->> 'referral_id')::bigint,
                                'fraud'),
       referral.referral_cancel(:second, 'fraud') \g /dev/null
SELECT is(pg_temp.status(:'bought', 0), 'paid', 'what was paid stays so');
SELECT is(pg_temp.status(:'bought', 1), 'rejected', 'the rest goes');
SELECT is(pg_temp.balances('GIVEUP'), 'expense -5.00 USD, paid 5.00 USD',
          'with what the registration gave');
SELECT is(pg_temp.refund('GIVEUP/1', 'g1', 50), '250 USD',
          'and refunds still count');

-- several who share a referral

SELECT pg_temp.program('SHARE', '[{"kind": "cash", "amount": 1001},
    {"kind": "points", "amount": 10, "beneficiary": "referee"}]', '{}',
    '{"attribution": "linear"}') AS program \gset
SELECT referral.code_create(:program, referral.referrer_create(:acme,
           'customer', jsonb_build_object('external_id', 'SHARE' || n)),
           'SHARE' || n || '-CODE')
    FROM generate_series(2, 3) n \g /dev/null
SELECT referral.referral_create(:program, jsonb_build_object('code',
           'SHARE' || n || '-CODE', 'external_id', 'SHARE/1'))
    FROM generate_series(2, 3) n \g /dev/null
SELECT pg_temp.buy('SHARE', '1', 100) AS shared \gset
SELECT is((SELECT string_agg(f.external_id || ' ' || (r ->> 'amount'), ', '
                             ORDER BY f.external_id)
               FROM jsonb_array_elements(:'shared'::jsonb -> 'rewards') r
                    JOIN referral.referrer f
                        ON f.id = (r ->> 'referrer_id')::bigint),
          'SHARE 334, SHARE2 333, SHARE3 334',
          'linear: equal shares that add up');
SELECT is((SELECT sum((r ->> 'amount')::bigint)
               FROM jsonb_array_elements(:'shared'::jsonb -> 'rewards') r
               WHERE r ->> 'unit' = 'points'), 10::numeric,
          'the referee''s is not shared');
SELECT is(referral.refund_record(:acme, '{"order_ref": "SHARE/1",
              "refund_ref": "s1"}') ->> 'left', '0', 'and all come back');
SELECT is(pg_temp.balances('SHARE' || n), '-', 'all')
    FROM unnest('{"",2,3}'::text[]) n;

-- self-referrals that the program lets pass are looked at

SELECT pg_temp.program('SELF', '[{"kind": "cash", "amount": 100}]', '{}',
                       '{"settings": {"self_referral": "flag"}}') \g /dev/null
SELECT is(pg_temp.given(pg_temp.buy('SELF', '1', 5,
                                    '{"external_id": "SELF"}')),
          'referrer cash 100 USD pending', 'a flagged referral');

-- exact arithmetic

SELECT is(referral.pro_rata(a, p, w), wanted, a || ' * ' || p || ' / ' || w)
    FROM (VALUES (1::bigint, 1::bigint, 2::bigint, 0::bigint), (3, 1, 2, 2),
                 (5, 1, 2, 2), (7, 1, 2, 4), (1, 2, 3, 1), (1, 1, 3, 0),
                 (100, 0, 7, 0), (100, 7, 7, 100),
                 (999999999999999, 500000000000001, 1000000000000001,
                  500000000000000),
                 (1000000000000000, 999999999999999, 1000000000000000,
                  999999999999999)) v (a, p, w, wanted);

-- rights

SET LOCAL ROLE referral_app;
SELECT throws_ok('SELECT * FROM referral.' || name, '42501', NULL,
                 'an application does not read the table ' || name)
    FROM unnest('{conversion,reward,reward_rule,refund}'::text[]) name;
SELECT lives_ok('SELECT * FROM referral.' || name, 'but the view ' || name)
    FROM unnest('{conversions,rewards,reward_rules,refunds}'::text[]) name;
SET LOCAL referral.organisation = :'other';
SELECT is_empty('SELECT * FROM referral.' || name, name || ' of its own')
    FROM unnest('{conversions,rewards,reward_rules,refunds}'::text[]) name;
SELECT throws_ok(format('SELECT referral.conversion_record(%s, %L)', :acme,
                        '{}'), 'RF012', NULL, 'outside the scope');
SELECT throws_ok(format('SELECT referral.reward_approve(%s)',
                        pg_temp.reward(:'big')), 'RF070', NULL,
                 'nor rewards');
SELECT throws_ok(format('SELECT referral.refund_record(%s, %L)', :acme,
                        '{}'), 'RF012', NULL, 'nor refunds');
RESET referral.organisation;
RESET ROLE;
SELECT set_config('referral.referrer', id::text, true)
    FROM referral.referrer WHERE external_id = 'CLAW' \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT throws_ok('SELECT * FROM referral.rewards', '42501', NULL,
                 'a partner reads no others'' rewards');
SELECT is((SELECT count(*) FROM referral.my_rewards), 3::bigint,
          'his own, though');
SELECT is((SELECT string_agg(kind || ' ' || balance_text, ', ' ORDER BY kind)
               FROM referral.my_balances),
          'paid 36.00 USD, payable -4.00 USD, pending 0.00 USD',
          'and his balances');
SELECT throws_ok($$ SELECT referral.conversion_record(1, '{}') $$, '42501',
                 NULL, 'and records nothing');
RESET ROLE;

-- What most conversions are: a registered customer's first order.  Its steps,
-- events and value come with one update of the referral: a second one would
-- check its foreign keys, and lock rows that all conversions have in common.

SELECT pg_temp.program('ONCE',
    '[{"kind": "cash", "amount": 1000},
      {"slot": "welcome", "beneficiary": "referee", "kind": "credit",
       "unit": "USD", "amount": 500, "hold": "1 day"}]') AS once \gset
SELECT referral.referral_register(:once, '{"code": "ONCE-CODE",
           "external_id": "ONCE/c1"}') ->> 'referral_id' AS once_id \gset

CREATE TEMP TABLE updated (id bigint);
GRANT INSERT ON updated TO referral_owner;

CREATE FUNCTION pg_temp.updated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
AS $$
BEGIN
    INSERT INTO pg_temp.updated VALUES (NEW.id);
    RETURN NULL;
END
$$;

CREATE TRIGGER updated AFTER UPDATE ON referral.referral
    FOR EACH ROW EXECUTE FUNCTION pg_temp.updated();

SELECT pg_temp.buy('ONCE', 'c1', 9900) \g /dev/null

SELECT is((SELECT count(*) FROM updated), 1::bigint,
          'a conversion updates its referral once');
SELECT results_eq(format('SELECT status, value, currency,
        converted_at IS NOT NULL, rewarded_at IS NOT NULL
    FROM referral.referral WHERE id = %s', :'once_id'),
    $$ VALUES ('rewarded', 9900::bigint, 'USD', true, true) $$,
    'with all that became of it');
SELECT results_eq(format('SELECT from_status, to_status
    FROM referral.referral_step WHERE referral_id = %s ORDER BY id DESC
    LIMIT 2', :'once_id'),
    $$ VALUES ('converted', 'rewarded'), ('registered', 'converted') $$,
    'two steps');
SELECT results_eq(format('SELECT type, data ->> ''status''
    FROM referral.event WHERE order_key = ''referral:%s'' ORDER BY seq',
    :'once_id'),
    $$ VALUES ('referral.created', 'pending'),
              ('referral.registered', 'registered'),
              ('referral.converted', 'converted'),
              ('reward.earned', 'approved'), ('reward.approved', 'approved'),
              ('reward.earned', 'pending') $$,
    'and its events in order');

SELECT pg_temp.buy('ONCE', 'c1', 100, '{"order_ref": "ONCE/again"}')
    \g /dev/null
SELECT is((SELECT value FROM referral.referral WHERE id = :once_id),
          10000::bigint, 'another order adds to its value');
DROP TRIGGER updated ON referral.referral;

-- the checker

SELECT is_empty('SELECT * FROM referral.ledger_check()', 'all is well');
SET CONSTRAINTS ALL IMMEDIATE;
SET CONSTRAINTS ALL DEFERRED;
SET LOCAL session_replication_role = replica;

CREATE FUNCTION pg_temp.finds(damage text, wanted text) RETURNS SETOF text
    LANGUAGE plpgsql
AS $$
DECLARE
    found  text[];
BEGIN
    BEGIN
        EXECUTE damage;
        SELECT array_agg(DISTINCT problem) INTO found
            FROM referral.ledger_check();
        RAISE EXCEPTION 'undo' USING ERRCODE = 'XX999';
    EXCEPTION WHEN SQLSTATE 'XX999' THEN
        NULL;
    END;

    RETURN NEXT ok(coalesce(wanted = ANY (found), false),
                   'the checker finds: ' || wanted);
END
$$;

SELECT pg_temp.finds(damage, wanted)
    FROM (VALUES
        ('UPDATE referral.reward SET amount = amount + 1,'
         ' uncapped = uncapped + 1 WHERE unit = ''points''',
         'the entries are not those of its amount'),
        ('UPDATE referral.reward SET status = ''rejected'', release_at = NULL'
         ' WHERE status = ''pending''',
         'the pending account has not what is pending'),
        ('UPDATE referral.reward SET expired = 0',
         'the entries are not those of its expiry'),
        ('UPDATE referral.reward SET status = ''paid'''
         ' WHERE status = ''approved''', 'is closed, and something is left'),
        ('UPDATE referral.reward SET status = ''approved'''
         ' WHERE status = ''paid''', 'is open, and nothing is left'),
        ('UPDATE referral.conversion SET refunded = refunded + 1'
         ' WHERE refunded < amount', 'the refunds add up to something else'),
        ('UPDATE referral.conversion SET refunded = amount, cancelled = true'
         ' WHERE refunded = 0', 'was not taken back pro rata'),
        ('UPDATE referral.reward_progress SET converted = converted + 1',
         'the numbers of referrals have gaps'),
        ('UPDATE referral.conversion SET nth = nth + 1 WHERE nth > 1',
         'the numbers of referrals have gaps'),
        ('UPDATE referral.reward SET nth = 1 WHERE nth = 3',
         'the rule gives another amount'),
        ('UPDATE referral.reward SET owing = NULL WHERE owing',
         'owes, and is not marked, or is marked and does not'),
        ('UPDATE referral.reward SET owing = true WHERE status = ''paid''',
         'owes, and is not marked, or is marked and does not'),
        ('UPDATE referral.reward SET status = ''expired'''
         ' WHERE status = ''reversed''',
         'its status is not what its entries say'),
        ('UPDATE referral.reward SET status = ''reversed'''
         ' WHERE status = ''rejected''',
         'its status is not what its entries say'),
        ('UPDATE referral.reward SET referrer_id = -1'
         ' WHERE beneficiary = ''referrer''', 'its account is not its own'),
        ('UPDATE referral.reward SET unit = ''CHF'' WHERE unit = ''USD''',
         'its account is not its own'),
        ('UPDATE referral.account SET kind = ''discount'''
         ' WHERE kind = ''payable'' AND unit = ''USD''',
         'its account is not its own'),
        ('DELETE FROM referral.reward WHERE kind = ''points''',
         'is not there, and has entries'),
        ('DELETE FROM referral.reward WHERE kind = ''points''',
         'has not the rewards of its answer'),
        ('DELETE FROM referral.transfer WHERE kind = ''reward''',
         'has no transfer, or no account'),
        ('UPDATE referral.referral SET value = value + 1'
         ' WHERE status = ''rewarded''', 'its value is not what was bought'),
        ('UPDATE referral.reward SET amount = amount + 50000,'
         ' uncapped = uncapped + 50000 WHERE unit = ''USD''',
         'the rewards are above the cap')) v (damage, wanted);

SET LOCAL session_replication_role = origin;

SELECT * FROM finish();

ROLLBACK;
