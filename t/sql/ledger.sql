-- Copyright (C) The nginx referral module authors
--
-- The ledger: units, rounding, splitting, transfers, what is refused.

BEGIN;

SET LOCAL client_min_messages = warning;

SELECT no_plan();

-- units

SELECT results_eq($$ SELECT exponent::int FROM referral.unit
                         WHERE code IN ('USD', 'JPY', 'KWD', 'points')
                         ORDER BY code $$, ARRAY[0, 3, 2, 0],
                  'exponents of JPY, KWD, USD and points');
SELECT cmp_ok((SELECT count(*) FROM referral.unit WHERE kind = 'money'), '>',
              150::bigint, 'the currencies of ISO 4217');
SELECT is(referral.money_text(amount, unit), text, text)
    FROM (VALUES (1234::bigint, 'USD', '12.34 USD'), (5, 'USD', '0.05 USD'),
                 (-5, 'USD', '-0.05 USD'), (0, 'KWD', '0.000 KWD'),
                 (-1234567, 'KWD', '-1234.567 KWD'), (1234, 'JPY', '1234 JPY'),
                 (3, 'points', '3 points'),
                 (-9223372036854775808, 'USD', '-92233720368547758.08 USD'))
             v (amount, unit, text);

-- rounding: halves to even, on both sides of zero

SELECT is(referral.round_money(amount), wanted, 'round ' || amount)
    FROM (VALUES (0.5, 0::bigint), (1.5, 2), (2.5, 2), (3.5, 4), (-0.5, 0),
                 (-1.5, -2), (-2.5, -2), (0.4999999999, 0), (0.5000000001, 1),
                 (2.5000000001, 3), (-2.5000000001, -3), (7, 7),
                 (4503599627370496.5, 4503599627370496),
                 (4503599627370497.5, 4503599627370498),
                 (9223372036854775807, 9223372036854775807)) v (amount, wanted);
SELECT is(referral.round_money(NULL), NULL, 'round null');
SELECT throws_ok(format('SELECT referral.round_money(%L)', amount), 'RF060',
                 NULL, 'out of range: ' || amount)
    FROM unnest(ARRAY['9223372036854775808', '-9223372036854775808', 'NaN',
                      'Infinity', '-Infinity']) amount;

SELECT is(referral.rate_of(amount, bp), wanted, amount || ' at ' || bp)
    FROM (VALUES (9999::bigint, 1000::bigint, 1000::bigint), (5, 1000, 0),
                 (15, 1000, 2), (25, 1000, 2), (35, 1000, 4), (1, 5000, 0),
                 (3, 5000, 2), (-25, 1000, -2), (12345, 0, 0),
                 (123456789012345678, 1, 12345678901235),
                 (900000000000000005, 9999, 899910000000000005))
             v (amount, bp, wanted);

-- splitting: exact, and the remainder to the largest fractions

SELECT is(referral.split_money(amount, weights::bigint[]), wanted::bigint[],
          amount || ' by ' || weights)
    FROM (VALUES (100::bigint, '{1,1,1}', '{34,33,33}'),
                 (101, '{1,1,1}', '{34,34,33}'),
                 (100, '{4000,2000,4000}', '{40,20,40}'),
                 (1, '{3333,3333,3334}', '{0,0,1}'),
                 (-100, '{1,1,1}', '{-34,-33,-33}'), (0, '{1,2}', '{0,0}'),
                 (7, '{0,1,0}', '{0,7,0}'),
                 (9223372036854775807, '{1,1}',
                  '{4611686018427387904,4611686018427387903}'))
             v (amount, weights, wanted);
SELECT is_empty($$ SELECT amount, weights
                       FROM (SELECT (random() * 100000 - 50000)::bigint,
                                    ARRAY[(random() * 9)::bigint,
                                          (random() * 999)::bigint,
                                          (random() * 9999)::bigint, 1]
                                 FROM generate_series(1, 500))
                                r (amount, weights)
                       WHERE (SELECT sum(s) FROM unnest(
                                  referral.split_money(amount, weights)) s)
                             <> amount $$, 'splits add up');
SELECT throws_ok(format('SELECT referral.split_money(5, %L)', weights),
                 'RF060', NULL, 'no weights: ' || weights)
    FROM unnest(ARRAY['{}', '{0,0}', '{1,-1}', '{1,NULL}']) weights;

-- accounts

SELECT referral.organisation_create('one', 'One') AS one,
       referral.organisation_create('two', 'Two') AS two \gset
SELECT set_config('test.one', :'one', true),
       set_config('test.two', :'two', true) \g /dev/null

CREATE FUNCTION pg_temp.account(kind text, unit text DEFAULT 'USD',
                                owner_id bigint DEFAULT 1,
                                organisation text DEFAULT 'one')
    RETURNS bigint
    LANGUAGE sql
    RETURN referral.account_get(
        current_setting('test.' || organisation)::bigint, kind, unit, NULL,
        NULL, owner_id);

CREATE FUNCTION pg_temp.post(kind text, key text, VARIADIC list text[])
    RETURNS bigint
    LANGUAGE sql
AS $$
    SELECT referral.transfer_post(current_setting('test.one')::bigint, kind,
               key, array_agg(ROW(pg_temp.account(split_part(p, ' ', 1),
                                     coalesce(nullif(split_part(p, ' ', 3),
                                                     ''), 'USD')),
                                  split_part(p, ' ', 2)::bigint,
                                  NULL)::referral.posting))
        FROM unnest(list) p
$$;

CREATE FUNCTION pg_temp.balance(kind text, unit text DEFAULT 'USD')
    RETURNS bigint
    LANGUAGE sql
    RETURN (SELECT balance FROM referral.balances
                WHERE account_id = pg_temp.account($1, $2));

SELECT is(pg_temp.account('pending'), pg_temp.account('pending'),
          'an account is made once');
SELECT isnt(pg_temp.account('pending'), pg_temp.account('payable'),
            'for each kind');
SELECT isnt(pg_temp.account('pending'), pg_temp.account('pending', 'EUR'),
            'for each unit');
SELECT isnt(pg_temp.account('pending'), pg_temp.account('pending', 'USD', 2),
            'for each counterparty');
SELECT isnt(pg_temp.account('pending'),
            pg_temp.account('pending', 'USD', 1, 'two'),
            'for each organisation');
SELECT throws_ok($$ SELECT pg_temp.account('pending', 'XXX') $$, 'RF063',
                 NULL, 'no such unit');
SELECT throws_ok($$ SELECT pg_temp.account('purse') $$, '23514', NULL,
                 'no such kind');
SELECT is((SELECT array_agg(kind ORDER BY kind) FROM referral.account
               WHERE owed AND organisation_id = :one),
          '{payable,pending,pending,pending}', 'what is owed');

-- transfers

SELECT pg_temp.post('reward', 'r1', 'expense -1000', 'pending 1000') AS r1
    \gset
SELECT is(pg_temp.balance('pending'), 1000::bigint, 'pending has it');
SELECT is(pg_temp.balance('expense'), -1000::bigint, 'expense paid for it');
SELECT is(pg_temp.post('reward', 'r1', 'expense -1000', 'pending 1000'),
          :r1::bigint, 'the same key is the same transfer');
SELECT is(pg_temp.post('reward', 'r1', 'pending 1000', 'expense -1000'),
          :r1::bigint, 'in any order');
SELECT is(pg_temp.balance('pending'), 1000::bigint, 'and nothing moved');
SELECT throws_ok($$ SELECT pg_temp.post('reward', 'r1', 'expense -1001',
                                        'pending 1001') $$, 'RF065', NULL,
                 'the key with another amount');
SELECT throws_ok($$ SELECT pg_temp.post('expiry', 'r1', 'expense -1000',
                                        'pending 1000') $$, 'RF065', NULL,
                 'the key with another kind');
SELECT lives_ok($$ SELECT referral.transfer_post(
                       current_setting('test.two')::bigint, 'reward', 'r1',
                       ARRAY[ROW(pg_temp.account('expense', 'USD', 1, 'two'),
                                 -5, NULL),
                             ROW(pg_temp.account('pending', 'USD', 1, 'two'),
                                 5, NULL)]::referral.posting[]) $$,
                'keys are of an organisation');

SELECT lives_ok($$ SELECT pg_temp.post('approval', 'a1', 'pending -1000',
                                       'payable 600', 'payable 400') $$,
                'an account twice in a transfer');
SELECT results_eq($$ SELECT seq, amount, balance FROM referral.ledger
                         WHERE account_id = pg_temp.account('payable')
                         ORDER BY seq $$,
                  $$ VALUES (1::bigint, 600::bigint, 600::bigint),
                            (2, 400, 1000) $$,
                  'entries are numbered and have their balance');

SELECT lives_ok($$ SELECT pg_temp.post('transfer', 'two units',
                       'payable -100', 'paid 100', 'expense -7 points',
                       'credit 7 points') $$, 'two units in a transfer');

-- below zero

SELECT throws_ok($$ SELECT pg_temp.post('payout', 'p1', 'payable -901',
                                        'paid 901') $$, 'RF066',
                 'account ' || pg_temp.account('payable')
                 || ' (payable) has 9.00 USD, not 9.01 USD',
                 'no more than there is');
SELECT throws_ok($$ SELECT pg_temp.post('clawback', 'p2', 'pending -1',
                                        'expense 1') $$, 'RF066', NULL,
                 'nor from pending, by a clawback either');
SELECT lives_ok($$ SELECT pg_temp.post('payout', 'p3', 'payable -900',
                                       'paid 900') $$, 'all there is');
SELECT lives_ok($$ SELECT pg_temp.post('clawback', 'c1', 'payable -300',
                                       'expense 300') $$,
                'a clawback may');
SELECT is(pg_temp.balance('payable'), -300::bigint, 'the debt is carried');
SELECT lives_ok($$ SELECT pg_temp.post('reward', 'r2', 'expense -200',
                                       'payable 200') $$,
                'and may be made smaller');
SELECT throws_ok($$ SELECT pg_temp.post('payout', 'p4', 'payable -1',
                                        'paid 1') $$, 'RF066', NULL,
                 'nothing is paid out of a debt');
SELECT throws_ok($$ SELECT pg_temp.post('reward', 'big',
                       'expense -9223372036854775807',
                       'payable 9223372036854775807') $$, 'RF060', NULL,
                 'out of range');

-- what does not add up

SELECT throws_ok($$ SELECT pg_temp.post('reward', 'x', 'expense -10',
                                        'pending 9');
                    SET CONSTRAINTS ALL IMMEDIATE $$, 'RF062', NULL,
                 'not zero');
SELECT throws_ok($$ SELECT pg_temp.post('reward', 'x', 'expense -10 EUR',
                                        'pending 10 USD');
                    SET CONSTRAINTS ALL IMMEDIATE $$, 'RF062', NULL,
                 'not zero in each unit');
SELECT throws_ok($$ INSERT INTO referral.transfer
                        (organisation_id, kind, idempotency_key, entries)
                        VALUES (1, 'reward', 'none', 2);
                    SET CONSTRAINTS ALL IMMEDIATE $$, 'RF062', NULL,
                 'no entries');
SELECT throws_ok($$ SELECT pg_temp.post('reward', 'x', VARIADIC '{}') $$,
                 '23514', NULL, 'no postings');
SELECT throws_ok(format($$ INSERT INTO referral.entry (account_id, seq,
                               transfer_id, n, of, amount, balance)
                               SELECT account_id, max(seq) + 1, %s, %s, %s,
                                      5, 5
                                   FROM referral.entry GROUP BY 1 LIMIT 1 $$,
                        :r1, n, many), sqlstate, NULL,
                 format('entry %s of %s for an old transfer', n, many))
    FROM (VALUES (2, 2, '23505'), (3, 2, '23514'), (3, 3, '23503'))
             v (n, many, sqlstate);
SELECT throws_ok($$ SELECT pg_temp.post('reward', 'x', 'expense 0',
                                        'pending 0') $$, '23514', NULL,
                 'entries of nothing');
SELECT throws_ok($$ SELECT referral.transfer_post(
                       current_setting('test.one')::bigint, 'reward', 'x',
                       ARRAY[ROW(pg_temp.account('expense'), -5, NULL),
                             ROW(pg_temp.account('pending', 'USD', 1, 'two'),
                                 5, NULL)]::referral.posting[]);
                    SET CONSTRAINTS ALL IMMEDIATE $$, 'RF062', NULL,
                 'an account of another organisation');

SET CONSTRAINTS ALL IMMEDIATE;
SET CONSTRAINTS ALL DEFERRED;

-- append-only, for the owner and for a superuser by mistake

SELECT throws_ok(command, 'RF061', NULL, command)
    FROM unnest(ARRAY['UPDATE referral.entry SET amount = 1',
                      'DELETE FROM referral.entry',
                      'TRUNCATE referral.entry',
                      'UPDATE referral.transfer SET memo = NULL',
                      'DELETE FROM referral.transfer',
                      'TRUNCATE referral.transfer CASCADE',
                      'UPDATE referral.account SET unit = unit',
                      'DELETE FROM referral.account',
                      'TRUNCATE referral.account CASCADE']) command;
SET LOCAL ROLE referral_owner;
SELECT throws_ok('UPDATE referral.entry SET amount = 1', 'RF061', NULL,
                 'nor the owner');
SELECT throws_ok('SET session_replication_role = replica', '42501', NULL,
                 'who can not put the trigger out of work');
RESET ROLE;
SET LOCAL ROLE referral_app;
SELECT throws_ok($$ SELECT referral.transfer_post(1, 'reward', 'x', NULL) $$,
                 '42501', NULL, 'an application posts no transfers');
SELECT throws_ok('SELECT * FROM referral.entry', '42501', NULL,
                 'and reads no tables');
SELECT lives_ok('SELECT * FROM referral.balances, referral.ledger',
                'but the views');
SET LOCAL referral.organisation = '999999';
SELECT is_empty('SELECT * FROM referral.balances', 'of its organisation');
SELECT is_empty('SELECT * FROM referral.ledger', 'only');
RESET referral.organisation;
RESET ROLE;

-- the checker says nothing, and can speak

SELECT is_empty('SELECT * FROM referral.ledger_check()', 'all is well');

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

    RETURN NEXT ok(wanted = ANY (found), 'the checker finds: ' || wanted);
END
$$;

SELECT pg_temp.finds($$ UPDATE referral.entry SET amount = amount + 1
                            WHERE transfer_id = (SELECT min(transfer_id)
                                                     FROM referral.entry)
                                  AND amount > 0 $$,
                     'does not add up to zero');
SELECT pg_temp.finds($$ UPDATE referral.entry SET balance = balance + 1
                            WHERE seq = 1 $$,
                     'the balance is not the sum of the entries');
SELECT pg_temp.finds($$ DELETE FROM referral.entry WHERE amount < 0 $$,
                     'entries are missing');
SELECT pg_temp.finds($$ DELETE FROM referral.entry WHERE seq = 1
                            AND account_id = pg_temp.account('payable') $$,
                     'a number is missing');
SELECT pg_temp.finds($$ UPDATE referral.transfer SET kind = 'reversal'
                            WHERE kind = 'clawback' $$, 'was overdrawn');
SELECT pg_temp.finds($$ UPDATE referral.transfer SET organisation_id = 0
                            WHERE kind = 'clawback' $$,
                     'has an account of another organisation');

SET LOCAL session_replication_role = origin;

SELECT is_empty('SELECT * FROM referral.ledger_check()',
                'and all is as it was');

SELECT throws_ok($$ SET LOCAL TRANSACTION ISOLATION LEVEL SERIALIZABLE $$,
                 '25001', NULL, 'isolation is chosen before the first query');

SELECT * FROM finish();

ROLLBACK;

BEGIN ISOLATION LEVEL REPEATABLE READ;

SELECT no_plan();
SELECT throws_ok('SELECT referral.account_lock(ARRAY[1])', 'RF064', NULL,
                 'a snapshot that may be old does not write');
SELECT * FROM finish();

ROLLBACK;
