-- Copyright (C) The nginx referral module authors
--
-- Tokens: the vectors of t/core/token_test.c and of the README.

BEGIN;

SELECT no_plan();

INSERT INTO referral.token_key (id, secret)
    VALUES ('k1', decode('AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=',
                         'base64'));

-- the primitive against RFC 4231, test case 2 ("Jefe") and 1, by its pads

SELECT is(encode(sha256(referral.hmac_pad('Jefe', 92)
                 || sha256(referral.hmac_pad('Jefe', 54)
                           || 'what do ya want for nothing?'::bytea)), 'hex'),
          '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843',
          'RFC 4231 test case 2');
SELECT is(encode(sha256(referral.hmac_pad(decode(repeat('0b', 20), 'hex'), 92)
                 || sha256(referral.hmac_pad(decode(repeat('0b', 20), 'hex'),
                                             54) || 'Hi There'::bytea)),
                 'hex'),
          'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7',
          'RFC 4231 test case 1');

CREATE TEMPORARY TABLE vector (name text, token text);
INSERT INTO vector VALUES
    ('one', 'v1.k1.SUMMER25.0197f3c2a4007abc8def0123456789ab'
            '.SUMMER25.0197f3c2a4007abc8def0123456789ab..'
            'V3n2uifp6Au0ENxbxpcTBg'),
    ('two', 'v1.k1.SUMMER25.0197f3c2a4007abc8def0123456789ab'
            '.JUAN2025.0197f3c2b7887abc8def0123456789ac'
            '.6f1a2b3c4d5e4f708192a3b4c5d6e7f8'
            '.e4ep018vCpj-RGFH9Sdgrw');

SELECT results_eq($$ SELECT v.valid, v.reason, v.key_id, v.first_code,
                            v.first_click, v.last_code, v.last_click,
                            v.visitor, v.last_at
                         FROM vector,
                              referral.verify_token(token, NULL) v
                         WHERE name = 'one' $$,
                  $$ VALUES (true, 'valid', 'k1', 'SUMMER25',
                             '0197f3c2a4007abc8def0123456789ab'::uuid,
                             'SUMMER25',
                             '0197f3c2a4007abc8def0123456789ab'::uuid,
                             NULL::uuid,
                             to_timestamp(1752141308.928)) $$,
                  'the first vector');
SELECT results_eq($$ SELECT v.valid, v.first_code, v.last_code, v.last_click,
                            v.visitor
                         FROM vector,
                              referral.verify_token(token, NULL) v
                         WHERE name = 'two' $$,
                  $$ VALUES (true, 'SUMMER25', 'JUAN2025',
                             '0197f3c2b7887abc8def0123456789ac'::uuid,
                             '6f1a2b3c4d5e4f708192a3b4c5d6e7f8'::uuid) $$,
                  'the second vector');

SELECT is(v.reason, 'expired', 'expired by the default of 90 days')
    FROM vector, referral.verify_token(token) v
    WHERE name = 'two' AND now() > '2025-12-01';

-- a first touch beyond the age is replaced: the clicks are 5 s apart

SELECT results_eq($$ SELECT v.reason, v.first_code, v.first_click
                         FROM vector, referral.verify_token(token,
                             now() - to_timestamp(1752141311)) v
                         WHERE name = 'two' $$,
                  $$ VALUES ('valid', 'JUAN2025',
                             '0197f3c2b7887abc8def0123456789ac'::uuid) $$,
                  'an old first touch');

-- every change of a byte is noticed

SELECT is_empty($$ SELECT i, v.reason
                       FROM vector, generate_series(1, length(token)) i,
                            referral.verify_token(overlay(token
                                PLACING CASE substr(token, i, 1) WHEN '1'
                                        THEN '2' ELSE '1' END
                                FROM i FOR 1), NULL) v
                       WHERE name = 'two' AND v.valid $$,
                'no altered token passes');
SELECT is(v.reason, 'forged', 'an altered code')
    FROM vector, referral.verify_token(replace(token, 'JUAN', 'JOAN'), NULL) v
    WHERE name = 'two';
SELECT is(v.reason, 'unknown-key', 'an unknown key')
    FROM vector, referral.verify_token(replace(token, '.k1.', '.k9.'), NULL) v
    WHERE name = 'two';

SELECT is(v.reason, 'malformed', 'malformed: ' || coalesce(bad, 'null'))
    FROM (SELECT unnest(ARRAY['', 'v1', 'v2' || substr(token, 3),
                              token || '.', token || E'\n', ' ' || token,
                              left(token, -1), upper(token),
                              replace(token, '7abc8', '4abc8'),
                              replace(token, '7abc8', '7abcc'),
                              left(token, -1) || 'x',
                              replace(token, 'SUMMER25', 'summer25'),
                              replace(token, 'SUMMER25', repeat('A', 65)),
                              repeat('A', 500), NULL]) AS bad
              FROM vector WHERE name = 'two') b,
         referral.verify_token(bad, NULL) v;

-- rotation: the old key still verifies, a removed one does not

INSERT INTO referral.token_key (id, secret)
    VALUES ('k2', repeat('x', 64)::bytea);
SELECT is(v.reason, 'valid', 'with another key beside')
    FROM vector, referral.verify_token(token, NULL) v WHERE name = 'one';
DELETE FROM referral.token_key WHERE id = 'k1';
SELECT is(v.reason, 'unknown-key', 'its key removed')
    FROM vector, referral.verify_token(token, NULL) v WHERE name = 'one';

SELECT throws_ok($$ INSERT INTO referral.token_key (id, secret)
                        VALUES ('k3', '\x00') $$, '23514', NULL,
                 'too short a secret');
SELECT throws_ok($$ INSERT INTO referral.token_key (id, secret)
                        VALUES ('k.3', repeat('x', 32)::bytea) $$, '23514',
                 NULL, 'an id that tokens can not carry');

SET LOCAL ROLE referral_app;
SELECT is((SELECT valid FROM referral.verify_token('nonsense')), false,
          'the application may ask');
SELECT throws_ok('SELECT * FROM referral.token_key', '42501', NULL,
                 'and not see keys');
RESET ROLE;

SELECT * FROM finish();

ROLLBACK;
