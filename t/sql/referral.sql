-- Copyright (C) The nginx referral module authors
--
-- Referrals: identities, steps, limits, attribution, rights.

BEGIN;

SELECT no_plan();

CREATE FUNCTION pg_temp.id(key text) RETURNS bigint LANGUAGE sql
    AS $$ SELECT current_setting('t.' || key)::bigint $$;
CREATE FUNCTION pg_temp.keep(key text, id bigint) RETURNS bigint LANGUAGE sql
    AS $$ SELECT set_config('t.' || key, id::text, true)::bigint $$;

-- the state of a referral in a line: status, whether credited, code

CREATE FUNCTION pg_temp.state(id bigint) RETURNS text LANGUAGE sql AS $$
    SELECT r.status || CASE WHEN r.credited THEN ' credited' ELSE '' END
           || coalesce(' ' || c.code, '')
        FROM referral.referral r
             LEFT JOIN referral.code c ON c.id = r.code_id
        WHERE r.id = state.id $$;

-- a click at some time, as the edge would have recorded it

CREATE FUNCTION pg_temp.click(at timestamptz, code text,
                              verdict text DEFAULT 'valid',
                              via text DEFAULT 'redirect',
                              host text DEFAULT NULL,
                              args jsonb DEFAULT NULL) RETURNS uuid
    LANGUAGE plpgsql AS $$
DECLARE
    id  uuid := (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
                 || '7' || substr(gen_random_uuid()::text, 16))::uuid;
BEGIN
    PERFORM referral.partition_ensure((at AT TIME ZONE 'UTC')::date);
    INSERT INTO referral.interaction (id, occurred_at, stream, seq, type,
                                      verdict, via, code, referer_host, args,
                                      country)
        VALUES (id, referral.uuid_time(id), 1, 1, 'click', verdict, via, code,
                host, args, 'DE');
    RETURN id;
END $$;

-- a token, signed as the edge signs it

CREATE FUNCTION pg_temp.token(first_code text, first_click uuid,
                              last_code text, last_click uuid) RETURNS text
    LANGUAGE sql AS $$
    SELECT t.body || '.' || rtrim(translate(encode(substr(sha256(k.outer_pad
               || sha256(k.inner_pad || convert_to(t.body, 'UTF8'))), 1, 16),
               'base64'), '+/', '-_'), '=')
        FROM referral.token_key k,
             (SELECT concat_ws('.', 'v1', 't1', first_code,
                               replace(first_click::text, '-', ''), last_code,
                               replace(last_click::text, '-', ''), '') AS body)
                 t
        WHERE k.id = 't1' $$;

INSERT INTO referral.token_key (id, secret)
    VALUES ('t1', convert_to(repeat('k', 32), 'UTF8'));

SELECT pg_temp.keep('o', referral.organisation_create('o', 'O',
           '{"settings": {"calling_code": "49"}}')) \g /dev/null
SELECT pg_temp.keep('p', referral.program_create(pg_temp.id('o'), 'p', 'P',
           '{"landing_url": "https://example.com/"}')) \g /dev/null
SELECT referral.program_set_status(pg_temp.id('p'), 'active') \g /dev/null
SELECT pg_temp.keep('anna', referral.referrer_create(pg_temp.id('o'),
           'customer', '{"external_id": "anna"}',
           '{"email": "Anna@Example.com", "phone": "030 111222"}'))
    \g /dev/null
SELECT pg_temp.keep('ben', referral.referrer_create(pg_temp.id('o'),
           'customer', '{"external_id": "ben"}')) \g /dev/null
SELECT pg_temp.keep('cleo', referral.referrer_create(pg_temp.id('o'),
           'customer', '{"external_id": "cleo"}')) \g /dev/null
SELECT referral.code_create(pg_temp.id('p'), pg_temp.id('anna'), 'ANNA'),
       referral.code_create(pg_temp.id('p'), pg_temp.id('ben'), 'BEN'),
       referral.code_create(pg_temp.id('p'), pg_temp.id('cleo'), 'CLEO')
    \g /dev/null

-- what is compared

SELECT is(referral.email_normal(given), want, coalesce(given, '(null)'))
    FROM (VALUES (' Max@Example.COM ', 'max@example.com'),
                 ('m.a.x+tag@gmail.com', 'm.a.x+tag@gmail.com'),
                 (E'u\u0308@example.com', E'\u00fc@example.com'),
                 ('no address', NULL), ('a@b@c', NULL), ('@x', NULL),
                 ('', NULL), (NULL, NULL), (repeat('a', 320) || '@x', NULL))
             v (given, want);
SELECT is(referral.email_normal(given, true), want, given || ' by provider')
    FROM (VALUES ('M.a.x+tag@Googlemail.com', 'max@gmail.com'),
                 ('max+x@outlook.com', 'max@outlook.com'),
                 ('m.ax@outlook.com', 'm.ax@outlook.com'),
                 ('+x@gmail.com', '+x@gmail.com'),
                 ('max+x@example.com', 'max+x@example.com')) v (given, want);
SELECT is(referral.phone_normal(given, '49'), want,
          'phone ' || coalesce(given, '(null)'))
    FROM (VALUES ('030 / 123 456', '+4930123456'),
                 ('+49 (0)30 123456', '+4930123456'),
                 ('0049-30-123456', '+4930123456'),
                 ('tel:+49.30.123456;ext=5', '+4930123456'),
                 ('+1 (415) 555-2671 ext. 9', '+14155552671'),
                 ('12345', '+4912345'), ('none', NULL), ('1', NULL),
                 ('+1234567890123456', NULL), (NULL, NULL)) v (given, want);
SELECT is(referral.phone_normal('030 123456'), '030123456',
          'without a calling code the digits alone');

-- hashes are HMAC-SHA256 (RFC 4231, test case 2: key "Jefe" is too short for
-- a key here, so a vector of our own, made by openssl)

INSERT INTO referral.hash_key (id, secret, added_at)
    VALUES ('vector', convert_to('0123456789abcdef', 'UTF8'),
            now() - interval '1 day');
SELECT is((SELECT encode(h.hash, 'hex')
               FROM referral.program p,
                    referral.referee_hashes(p, NULL, 'Max@example.com', NULL) h
               WHERE p.id = pg_temp.id('p') AND h.key_id = 'vector'),
          'af7bc6a1089dc250cdbe4621c6db9843cab552d513128f44bd88a0f5f292e6dd',
          'keyed hash of email:max@example.com');
DELETE FROM referral.hash_key WHERE id = 'vector';

-- steps

SELECT pg_temp.keep('r', referral.referral_create(pg_temp.id('p'),
           jsonb_build_object('referrer_id', pg_temp.id('anna'),
                              'source', 'phone', 'notes', 'called'),
           '{"email": "lead@example.com", "name": "A Lead"}')) \g /dev/null
SELECT is(pg_temp.state(pg_temp.id('r')), 'pending', 'a lead, named');
SELECT is((SELECT source FROM referral.referral WHERE id = pg_temp.id('r')),
          'phone', 'its source');
SELECT is(referral.referral_create(pg_temp.id('p'),
              jsonb_build_object('referrer_id', pg_temp.id('anna')),
              '{"email": " LEAD@example.com"}'), pg_temp.id('r'),
          'named again: the same referral');
SELECT lives_ok('SELECT referral.referral_accept(pg_temp.id(''r''))',
                'accepted');
SELECT lives_ok('SELECT referral.referral_accept(pg_temp.id(''r''))',
                'to be where one is, is no step');
SELECT throws_ok('SELECT referral.referral_set_status(pg_temp.id(''r''),
                                                      ''registered'')',
                 'RF092', NULL, 'registered is not set by hand');
SELECT throws_ok('SELECT referral.referral_set_status(pg_temp.id(''r''),
                                                      ''paid'')',
                 'RF091', NULL, 'nor is what is far off');
SELECT throws_ok('SELECT referral.referral_set_status(pg_temp.id(''r''),
                                                      ''nonsense'')',
                 'RF091', NULL, 'nor is no status');
SELECT lives_ok('SELECT referral.referral_reject(pg_temp.id(''r''), ''no'')',
                'rejected');
SELECT throws_ok('SELECT referral.referral_accept(pg_temp.id(''r''))',
                 'RF091', NULL, 'the end');
SELECT throws_ok('SELECT referral.referral_accept(-1)', 'RF090', NULL,
                 'no referral');
SELECT results_eq($$ SELECT from_status, to_status, reason
                         FROM referral.referral_step
                         WHERE referral_id = pg_temp.id('r') ORDER BY id $$,
                  $$ VALUES (NULL, 'pending', NULL),
                            ('pending', 'accepted', NULL),
                            ('accepted', 'rejected', 'no') $$,
                  'its history');
SELECT is((SELECT accepted_at IS NOT NULL AND rejected_at IS NOT NULL
                  AND registered_at IS NULL
               FROM referral.referral WHERE id = pg_temp.id('r')), true,
          'with dates');
SELECT results_eq($$ SELECT type FROM referral.event
                         WHERE order_key = 'referral:' || pg_temp.id('r')
                         ORDER BY seq $$,
                  $$ VALUES ('referral.created'), ('referral.rejected') $$,
                  'its events');
SELECT is((SELECT count(*) FROM referral.event
               WHERE data::text ~* 'lead'), 0::bigint,
          'with nothing personal');

-- every step there is, and every one there is not

CREATE FUNCTION pg_temp.try_step(was text, becomes text) RETURNS text
    LANGUAGE plpgsql AS $$
DECLARE
    r  bigint;
BEGIN
    INSERT INTO referral.referral (organisation_id, program_id, status)
        VALUES (pg_temp.id('o'), pg_temp.id('p'), was) RETURNING id INTO r;
    PERFORM referral.referral_move(r, becomes, (SELECT coalesce(max(made_by),
                'anyone') FROM referral.referral_transition
                WHERE from_status = was AND to_status = becomes));
    RETURN (SELECT status FROM referral.referral WHERE id = r);
EXCEPTION WHEN SQLSTATE 'RF091' THEN
    RETURN 'RF091';
END $$;

SELECT is_empty($$
    WITH s (status) AS (SELECT unnest(ARRAY['pending', 'accepted', 'rejected',
        'registered', 'converted', 'rewarded', 'paid', 'expired', 'declined',
        'cancelled', 'superseded']))
    SELECT a.status, b.status, pg_temp.try_step(a.status, b.status)
        FROM s a, s b
        WHERE pg_temp.try_step(a.status, b.status) <> CASE
              WHEN a.status = b.status
                   OR EXISTS (SELECT FROM referral.referral_transition t
                                  WHERE t.from_status = a.status
                                        AND t.to_status = b.status)
              THEN b.status ELSE 'RF091' END $$,
    'of 121 pairs the legal ones, and no other');

-- registration, and that it is the same any number of times

SELECT is(referral.referral_register(NULL, '{"external_id": "u1",
              "code": "anna"}') - 'referral_id',
          jsonb_build_object('outcome', 'registered', 'status', 'registered',
              'program_id', pg_temp.id('p'), 'referrer_id', pg_temp.id('anna'),
              'code', 'ANNA'), 'by a code typed in');
SELECT is(referral.referral_register(NULL, '{"external_id": "u1",
              "code": "BEN"}') ->> 'outcome', 'existing', 'again, by another');
SELECT is((SELECT uses FROM referral.code WHERE code = 'ANNA'), 1,
          'it is one use');
SELECT is((SELECT uses FROM referral.code WHERE code = 'BEN'), 0,
          'of one code');
SELECT throws_ok($$ SELECT referral.referral_create(pg_temp.id('p'),
                        '{"code": "BEN", "external_id": "u1"}') $$, 'RF096',
                 NULL, 'nobody refers him any more');
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "BEN"}') $$, 'RF102', NULL, 'who?');
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"external_id": "u2"}') $$, 'RF102', NULL, 'where?');
SELECT throws_ok($$ SELECT referral.referral_register(pg_temp.id('p'),
                        '{"external_id": "u2"}') $$, 'RF102', NULL,
                 'by whom?');
SELECT throws_ok($$ SELECT referral.referral_register(pg_temp.id('p'),
                        '{"code": "ANNA"}', '{"email": "what"}') $$, 'RF100',
                 NULL, 'no address');
SELECT throws_ok($$ SELECT referral.referral_register(pg_temp.id('p'),
                        '{"code": "ANNA"}', '{"phone": "7"}') $$, 'RF100',
                 NULL, 'no number');
SELECT throws_ok($$ SELECT referral.referral_register(pg_temp.id('p'),
                        '{"code": "ANNA", "colour": 1}') $$, 'RF011', NULL,
                 'no such option');
SELECT throws_ok($$ SELECT referral.referral_register(pg_temp.id('p'),
                        '{"code": "ANNA", "external_id": "u2",
                          "source": "rumour"}') $$, 'RF010', NULL,
                 'no such source');
SELECT throws_ok($$ SELECT referral.referral_register(pg_temp.id('p'),
                        '{"referral_id": "x", "external_id": "u2"}') $$,
                 'RF090', NULL, 'no such referral');

-- any of what he is known by makes him the same

SELECT referral.referral_register(NULL, '{"external_id": "u3", "code": "BEN"}',
           '{"email": "u3@example.com", "phone": "030 333333"}') \g /dev/null
SELECT is(referral.referral_register(NULL, given::jsonb, contact::jsonb)
              ->> 'outcome', want, name)
    FROM (VALUES ('{"code": "ANNA"}', '{"email": "U3@EXAMPLE.com"}',
                  'existing', 'by e-mail'),
                 ('{"code": "ANNA"}', '{"phone": "+49 30 333333"}', 'existing',
                  'by phone'),
                 ('{"code": "ANNA", "external_id": "u4"}',
                  '{"phone": "(030) 333 333"}', 'existing',
                  'by phone, under a new name'),
                 ('{"code": "ANNA", "external_id": "u4"}', NULL, 'existing',
                  'who is known by that name now'),
                 ('{"code": "ANNA", "external_id": "u5"}', NULL, 'registered',
                  'somebody else')) v (given, contact, want, name);
SELECT is((SELECT count(*) FROM referral.referral_find(pg_temp.id('o'), NULL,
               '{"email": "u3@example.com"}')), 1::bigint, 'found');
SELECT is((SELECT email FROM referral.referral_contact(
               (SELECT * FROM referral.referral_find(pg_temp.id('o'), 'u3')))),
          'u3@example.com', 'his contact');
SELECT is((SELECT count(*) FROM referral.audit
               WHERE action = 'read' AND object = 'referral'), 1::bigint,
          'and who read it');

-- keys are rotated: old hashes are found, new ones are made, and one of the
-- old key still keeps a second credit out

INSERT INTO referral.hash_key (id, secret)
    VALUES ('h2', convert_to(repeat('2', 32), 'UTF8'));
SELECT is(referral.referral_register(NULL, '{"code": "ANNA"}',
              '{"email": "u3@example.com"}') ->> 'outcome', 'existing',
          'under the old key');
SELECT cmp_ok(referral.hash_rekey(), '>', 0::bigint, 'hashed again');
SELECT is(referral.hash_rekey(), 0::bigint, 'until all are');
DELETE FROM referral.hash_key WHERE id = 'h1';
SELECT is(referral.referral_register(NULL, '{"code": "ANNA"}',
              '{"phone": "030 333333"}') ->> 'outcome', 'existing',
          'under the new one, the old one gone');

-- a program that keeps no contact data

SELECT pg_temp.keep('hashing', referral.program_create(pg_temp.id('o'), 'h',
           'H', '{"landing_url": "https://example.com/", "settings":
                  {"referee_contact": "hash", "email_provider_rules": true,
                   "self_referral": "flag"}}')) \g /dev/null
SELECT referral.program_set_status(pg_temp.id('hashing'), 'active'),
       referral.code_create(pg_temp.id('hashing'), pg_temp.id('anna'), 'HASH')
    \g /dev/null
SELECT pg_temp.keep('r', (referral.referral_register(NULL,
           '{"code": "HASH"}', '{"email": "x.y@gmail.com"}')
           ->> 'referral_id')::bigint) \g /dev/null
SELECT is((SELECT person_id FROM referral.referral
               WHERE id = pg_temp.id('r')), NULL, 'nobody is kept');
SELECT is(referral.referral_register(NULL, '{"code": "HASH"}',
              '{"email": "xy+z@googlemail.com"}') ->> 'outcome', 'existing',
          'and he is known all the same');

-- self-referral

SELECT throws_ok(format('SELECT referral.referral_register(NULL, %L, %L)',
                        given, contact), 'RF097', NULL, name)
    FROM (VALUES ('{"code": "ANNA", "external_id": "anna"}', NULL, 'by id'),
                 ('{"code": "ANNA", "external_id": "anna2"}',
                  '{"email": "anna@example.com"}', 'by e-mail'),
                 ('{"code": "ANNA"}', '{"phone": "+4930111222"}', 'by phone'))
             v (given, contact, name);
SELECT throws_ok($$ SELECT referral.referral_create(pg_temp.id('p'),
                        '{"code": "ANNA", "external_id": "anna"}') $$,
                 'RF097', NULL, 'when it is made');
SELECT pg_temp.keep('r', (referral.referral_register(NULL,
           '{"code": "HASH", "external_id": "anna"}')
           ->> 'referral_id')::bigint) \g /dev/null
SELECT is((SELECT flags FROM referral.referral WHERE id = pg_temp.id('r')),
          '{self-referral}', 'flagged where the program says so');

-- who may refer, and for how long

SELECT referral.referrer_set_status(pg_temp.id('cleo'), 'suspended')
    \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "CLEO", "external_id": "u6"}') $$, 'RF094',
                 NULL, 'a suspended referrer');
SELECT referral.referrer_set_status(pg_temp.id('cleo'), 'active'),
       referral.referrer_update(pg_temp.id('cleo'), '{"eligible": false}')
    \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "CLEO", "external_id": "u6"}') $$, 'RF094',
                 NULL, 'an ineligible one');
SELECT referral.referrer_update(pg_temp.id('cleo'), '{"eligible": true}')
    \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_create(pg_temp.id('p'),
                        '{"referrer_id": 0}') $$, 'RF094', NULL, 'none');
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "NOBODY", "external_id": "u6"}') $$,
                 'RF093', NULL, 'no such code');

UPDATE referral.program SET max_referrals_per_referrer = 2
    WHERE id = pg_temp.id('p');
SELECT referral.referral_register(NULL,
           '{"code": "CLEO", "external_id": "m1"}'),
       referral.referral_register(NULL,
           '{"code": "CLEO", "external_id": "m2"}') \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "CLEO", "external_id": "m3"}') $$,
                 'RF098', NULL, 'the third');
UPDATE referral.program SET max_referrals_per_referrer = NULL
    WHERE id = pg_temp.id('p');

-- uses

SELECT referral.code_create(pg_temp.id('p'), pg_temp.id('ben'), 'TWICE',
                            '{"max_uses": 2}') \g /dev/null
SELECT referral.referral_register(NULL,
           '{"code": "TWICE", "external_id": "t1"}') \g /dev/null
SELECT is((SELECT count(*) FROM referral.event
               WHERE type = 'code.exhausted'), 0::bigint, 'one left');
SELECT pg_temp.keep('t2', (referral.referral_register(NULL,
           '{"code": "TWICE", "external_id": "t2"}')
           ->> 'referral_id')::bigint) \g /dev/null
SELECT is((SELECT data ->> 'code' FROM referral.event
               WHERE type = 'code.exhausted'), 'TWICE', 'none left: an event');
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "TWICE", "external_id": "t3"}') $$,
                 'RF095', NULL, 'once too often');
SELECT is((SELECT state FROM referral.code_published WHERE code = 'TWICE'),
          'exhausted', 'and the edge is to know');
SELECT referral.referral_cancel(pg_temp.id('t2'), 'fraud') \g /dev/null
SELECT is((SELECT uses FROM referral.code WHERE code = 'TWICE'), 1,
          'a cancelled one sets its use free');
SELECT is(referral.referral_register(NULL,
              '{"code": "ANNA", "external_id": "t2"}') ->> 'outcome',
          'registered', 'and its referee');

-- the time of the click counts, not that of the registration

SELECT referral.code_create(pg_temp.id('p'), pg_temp.id('ben'), 'OLD')
    \g /dev/null
UPDATE referral.code SET starts_at = now() - interval '10 days',
                         expires_at = now() - interval '2 days'
    WHERE code = 'OLD';
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "OLD", "external_id": "c1"}') $$, 'RF093',
                 'code OLD can not be credited in program '
                 || pg_temp.id('p') || ': expired', 'expired by now');
SELECT is(referral.referral_register(NULL, jsonb_build_object('external_id',
              'c' || days, 'click_id', pg_temp.click(now() - days
                  * interval '1 day', 'OLD', 'unverified'))) ->> 'code',
          'OLD', 'clicked in time, unverified then')
    FROM unnest(ARRAY[3, 9]) days;
SELECT throws_ok(format('SELECT referral.referral_register(NULL, %L)',
                     jsonb_build_object('external_id', 'c99', 'click_id',
                         pg_temp.click(at, 'OLD', verdict))), 'RF093', NULL,
                 name)
    FROM (VALUES (now() - interval '11 days', 'unverified', 'too early'),
                 (now() - interval '1 day', 'unverified', 'too late'),
                 (now() - interval '3 days', 'inactive', 'inactive then'))
             v (at, verdict, name);
SELECT throws_ok(format('SELECT referral.referral_register(NULL, %L)',
                     jsonb_build_object('external_id', 'c99', 'click_id',
                         pg_temp.click(now() - interval '91 days', 'BEN'))),
                 'RF093', NULL, 'older than the window');
SELECT throws_ok(format('SELECT referral.referral_register(NULL, %L)',
                     jsonb_build_object('external_id', 'c99', 'click_id',
                         click)), 'RF099', NULL, name)
    FROM (VALUES (gen_random_uuid()::text, 'no click'),
                 ('nonsense', 'no id')) v (click, name);

-- what is known of the click

CREATE TEMP TABLE guess AS
    SELECT referral.referral_create(NULL, jsonb_build_object('click_id',
               pg_temp.click(now(), 'BEN', 'valid', via, host, args::jsonb)))
               AS id, want
    FROM (VALUES ('redirect', NULL, NULL, 'direct_link DE'),
                 ('scan', NULL, NULL, 'qr DE'),
                 ('redirect', 'm.facebook.com', NULL, 'social_media DE'),
                 ('redirect', 't.co', NULL, 'social_media DE'),
                 ('redirect', 'mail.google.com', NULL, 'email DE'),
                 ('redirect', 'blog.example', NULL, 'website DE'),
                 ('redirect', NULL, '{"utm_medium": "sms",
                                      "utm_campaign": "spring"}',
                  'sms sms spring DE')) v (via, host, args, want);
SELECT is(concat_ws(' ', r.source, r.channel, r.campaign, r.country), g.want,
          'a click: ' || g.want)
    FROM guess g JOIN referral.referral r USING (id);

-- tokens

SELECT is(referral.referral_register(NULL, jsonb_build_object('external_id',
              'k1', 'token', pg_temp.token('ANNA',
                  pg_temp.click(now() - interval '5 days', 'ANNA'), 'BEN',
                  pg_temp.click(now() - interval '1 day', 'BEN'))))
              ->> 'code', 'BEN', 'the last touch');
SELECT is(referral.referral_register(NULL, jsonb_build_object('external_id',
              'k2', 'token', pg_temp.token('ANNA', (lpad(to_hex((extract(epoch
                  FROM now()) * 1000)::bigint), 12, '0') || '7'
                  || substr(gen_random_uuid()::text, 16))::uuid, 'ANNA',
                  (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12,
                  '0') || '7' || substr(gen_random_uuid()::text, 16))::uuid)))
              ->> 'code', 'ANNA', 'its clicks not in the database yet');
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"external_id": "k3", "token": "v1.x"}') $$, 'RF099',
                 NULL, 'no token');

-- attribution

CREATE FUNCTION pg_temp.weights(model text, days int[], codes text[])
    RETURNS text LANGUAGE sql AS $$
    SELECT string_agg((c ->> 'code') || ' ' || (c ->> 'weight_bp')
                      || CASE WHEN c -> 'winner' = 'true' THEN '!' ELSE '' END
                      || coalesce(' ' || (c ->> 'why'), ''), ', ' ORDER BY n)
        FROM referral.program p,
             jsonb_array_elements(referral.touches_weigh(p, model,
                 (SELECT jsonb_agg(jsonb_build_object('code', code, 'at',
                      now() - day * interval '1 day'))
                      FROM unnest(days, codes) u (day, code)), '{}', now()))
                 WITH ORDINALITY e (c, n)
        WHERE p.id = pg_temp.id('p') $$;

SELECT is(pg_temp.weights(model, days, codes), want, model || ': ' || want)
    FROM (VALUES
        ('first', '{3,2,1}'::int[], '{ANNA,BEN,CLEO}'::text[],
         'ANNA 10000!, BEN 0, CLEO 0'),
        ('last', '{3,2,1}', '{ANNA,BEN,CLEO}', 'ANNA 0, BEN 0, CLEO 10000!'),
        ('linear', '{3,2,1}', '{ANNA,BEN,CLEO}',
         'ANNA 3333, BEN 3333, CLEO 3334!'),
        ('linear', '{4,3,2,1}', '{ANNA,BEN,ANNA,CLEO}',
         'ANNA 2500, BEN 2500, ANNA 2500!, CLEO 2500'),
        ('position', '{1}', '{ANNA}', 'ANNA 10000!'),
        ('position', '{2,1}', '{ANNA,BEN}', 'ANNA 5000, BEN 5000!'),
        ('position', '{3,2,1}', '{ANNA,BEN,CLEO}',
         'ANNA 4000, BEN 2000, CLEO 4000!'),
        ('position', '{5,4,3,2,1}', '{ANNA,BEN,BEN,BEN,CLEO}',
         'ANNA 4000, BEN 666, BEN 666, BEN 668, CLEO 4000!'),
        ('position', '{4,3,2,1}', '{ANNA,BEN,BEN,CLEO}',
         'ANNA 4000, BEN 1000, BEN 1000, CLEO 4000!'),
        ('first', '{100,2,1}', '{ANNA,NOBODY,BEN}',
         'ANNA 0 too-old, NOBODY 0 unknown, BEN 10000!'),
        ('last', '{1,2,3}', '{ANNA,BEN,CLEO}',
         'CLEO 0, BEN 0, ANNA 10000!')) v (model, days, codes, want);
SELECT is(referral.attribute(pg_temp.id('p'), '{"code": "nobody"}')
              #>> '{candidates,0,why}', 'unknown', 'explained');
SELECT throws_ok($$ SELECT referral.attribute(pg_temp.id('p'),
                        '{"code": "BEN"}', 'random') $$, 'RF010', NULL,
                 'no such model');

-- several for one prospect: all pending, one is credited

SELECT pg_temp.keep('a', referral.referral_create(pg_temp.id('p'),
           '{"code": "ANNA"}', '{"email": "many@example.com"}')),
       pg_temp.keep('b', referral.referral_create(pg_temp.id('p'),
           '{"code": "BEN"}', '{"email": "many@example.com"}')),
       pg_temp.keep('c', referral.referral_create(pg_temp.id('p'),
           '{"code": "CLEO"}', '{"email": "many@example.com"}')) \g /dev/null
UPDATE referral.referral SET created_at = created_at - interval '1 hour'
    WHERE id = pg_temp.id('b');
UPDATE referral.program SET attribution = 'first' WHERE id = pg_temp.id('p');
SELECT is((referral.referral_register(pg_temp.id('p'), '{}',
               '{"email": "many@example.com"}') ->> 'referral_id')::bigint,
          pg_temp.id('b'), 'the first');
SELECT is(array_to_string(ARRAY[pg_temp.state(pg_temp.id('a')),
              pg_temp.state(pg_temp.id('b')), pg_temp.state(pg_temp.id('c'))],
              ', '),
          'superseded ANNA, registered credited BEN, superseded CLEO',
          'the others are superseded');
SELECT is((SELECT model || ' ' || jsonb_array_length(candidates)
               FROM referral.attribution
               WHERE referral_id = pg_temp.id('b')), 'first 3',
          'and a row says why');
SELECT is((SELECT sum(weight_bp) FROM referral.attribution_shares
               WHERE referral_id = pg_temp.id('b')), 10000::bigint,
          'weights add up');

-- by hand

SELECT throws_ok($$ SELECT referral.attribution_override(pg_temp.id('c'),
                        ' ') $$, 'RF010', NULL, 'not without a reason');
SELECT lives_ok($$ SELECT referral.attribution_override(pg_temp.id('c'),
                       'she was there first') $$, 'the credit moves');
SELECT is(array_to_string(ARRAY[pg_temp.state(pg_temp.id('b')),
              pg_temp.state(pg_temp.id('c'))], ', '),
          'superseded BEN, registered credited CLEO', 'to the other');
SELECT is((SELECT model || ' ' || reason || ' '
                  || (previous_referral_id = pg_temp.id('b'))
               FROM referral.attribution
               WHERE referral_id = pg_temp.id('c')),
          'manual she was there first true', 'with its row');
SELECT is((SELECT reason FROM referral.audit
               WHERE action = 'override' AND object_id = pg_temp.id('c')),
          'she was there first', 'and in the audit');
SELECT is((referral.referral_convert(pg_temp.id('o'), '{}',
               '{"email": "many@example.com"}')).id, pg_temp.id('c'),
          'whose conversion it is');
SELECT throws_ok($$ SELECT referral.attribution_override(pg_temp.id('b'),
                        'back') $$, 'RF106', NULL, 'too late');

SELECT pg_temp.keep('a', referral.referral_create(pg_temp.id('p'),
           '{"code": "ANNA"}', '{"email": "two@example.com"}')),
       pg_temp.keep('b', referral.referral_create(pg_temp.id('p'),
           '{"code": "BEN"}', '{"email": "two@example.com"}')) \g /dev/null
SELECT referral.attribution_override(pg_temp.id('b'), 'agreed') \g /dev/null
SELECT is(pg_temp.state(pg_temp.id('b')), 'pending BEN', 'chosen beforehand');
SELECT is((referral.referral_register(pg_temp.id('p'), '{}',
               '{"email": "two@example.com"}') ->> 'referral_id')::bigint,
          pg_temp.id('b'), 'for when he registers');
UPDATE referral.program SET attribution = 'last' WHERE id = pg_temp.id('p');

-- conversions find their referral

SELECT is(pg_temp.state((referral.referral_convert(pg_temp.id('o'),
              '{"external_id": "u1"}')).id), 'converted credited ANNA',
          'by external id');
SELECT is(pg_temp.state((referral.referral_convert(pg_temp.id('o'),
              '{"external_id": "till", "code": "ben"}')).id),
          'converted credited BEN', 'by a code at the till');
SELECT throws_ok($$ SELECT referral.referral_convert(pg_temp.id('o'),
                        '{"external_id": "stranger"}') $$, 'RF090', NULL,
                 'a stranger');
SELECT referral.referral_register(NULL,
           '{"code": "HASH", "external_id": "both"}'),
       referral.referral_register(NULL,
           '{"code": "ANNA", "external_id": "both"}') \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_convert(pg_temp.id('o'),
                        '{"external_id": "both"}') $$, 'RF104', NULL,
                 'in two programs');
SELECT is(pg_temp.state((referral.referral_convert(pg_temp.id('o'),
              jsonb_build_object('external_id', 'both', 'program_id',
                                 pg_temp.id('p')))).id),
          'converted credited ANNA', 'the one named');

-- idempotency

SELECT pg_temp.keep('i', referral.referral_create(pg_temp.id('p'),
           '{"code": "ANNA", "idempotency_key": "i1"}')) \g /dev/null
SELECT is(referral.referral_create(pg_temp.id('p'),
              '{"code": "ANNA", "idempotency_key": "i1"}'), pg_temp.id('i'),
          'the same request');
SELECT throws_ok($$ SELECT referral.referral_create(pg_temp.id('p'),
                        '{"code": "BEN", "idempotency_key": "i1"}') $$,
                 'RF101', NULL, 'another one with its key');

-- expiry

SELECT is(referral.referral_expire(), 0::bigint, 'nothing yet');
SELECT is(referral.referral_expire(now() + interval '89 days'), 0::bigint,
          'valid for 90 days');
SELECT set_config('referral.organisation', referral.organisation_create(
           'stranger', 'Stranger')::text, true) \g /dev/null
SELECT is(referral.referral_expire('2099-01-01'), 0::bigint,
          'another organisation''s time is not passed');
SELECT set_config('referral.organisation', '', true) \g /dev/null
SELECT is(referral.referral_expire(now() + interval '91 days', 3), 3::bigint,
          'a slice');
SELECT cmp_ok(referral.referral_expire(now() + interval '91 days'), '>',
              3::bigint, 'the rest');
SELECT is((SELECT count(*) FROM referral.referral
               WHERE status IN ('pending', 'accepted', 'registered')
                     AND expires_at IS NOT NULL), 0::bigint, 'none is open');
SELECT is((SELECT count(*) FROM referral.referral
               WHERE converted_at IS NOT NULL AND status = 'expired'),
          0::bigint, 'none that converted expired');
SELECT throws_ok($$ SELECT referral.referral_convert(pg_temp.id('o'),
                        '{"external_id": "u5"}', NULL,
                        now() + interval '92 days') $$, 'RF105', NULL,
                 'an expired one does not convert');
SELECT is(referral.referral_register(NULL,
              '{"code": "BEN", "external_id": "u5"}') ->> 'outcome',
          'existing', 'nor is he a new customer');

-- programs

SELECT referral.program_set_status(pg_temp.id('p'), 'paused') \g /dev/null
SELECT throws_ok($$ SELECT referral.referral_register(NULL,
                        '{"code": "ANNA", "external_id": "z"}') $$, 'RF103',
                 NULL, 'a paused program');

-- tenants

SELECT pg_temp.keep('o2', referral.organisation_create('o2', 'O2'))
    \g /dev/null
SET LOCAL ROLE referral_app;
SELECT set_config('referral.organisation', current_setting('t.o2'), true)
    \g /dev/null
SELECT is_empty('SELECT * FROM referral.referrals',
                'another tenant sees none');
SELECT is_empty('SELECT * FROM referral.attributions', 'nor why');
SELECT throws_ok($$ SELECT referral.referral_cancel(
                        current_setting('t.c')::bigint) $$, 'RF090', NULL,
                 'changes none');
SELECT throws_ok($$ SELECT * FROM referral.referral_contact(
                        current_setting('t.c')::bigint) $$, 'RF090', NULL,
                 'reads none');
SELECT throws_ok($$ SELECT referral.referral_create(
                        current_setting('t.p')::bigint, '{"code": "ANNA"}') $$,
                 'RF012', NULL, 'and makes none');
SELECT set_config('referral.organisation', '', true) \g /dev/null
SELECT isnt_empty('SELECT * FROM referral.referrals', 'all of them');
SELECT throws_ok('SELECT * FROM referral.referral', '42501', NULL,
                 'the application reads views');
SELECT throws_ok('SELECT * FROM referral.hash_key', '42501', NULL,
                 'and no keys');
RESET ROLE;

SELECT is_empty($$ SELECT c.column_name
                       FROM information_schema.columns c
                       WHERE c.table_schema = 'referral'
                             AND c.table_name IN ('referrals', 'my_referrals')
                             AND c.column_name ~ ('external|email|phone|person'
                                                  '|message|notes|hash') $$,
                'views show nothing personal');

-- partners

SELECT set_config('referral.referrer', current_setting('t.ben'), true)
    \g /dev/null
SET LOCAL ROLE referral_partner;
SELECT isnt_empty('SELECT * FROM referral.my_referrals', 'his own');
SELECT is_empty(format('SELECT id FROM referral.my_referrals m
                            WHERE NOT EXISTS (SELECT FROM referral.referral r
                                WHERE r.id = m.id AND r.referrer_id = %s)',
                       current_setting('t.ben')), 'and only his own');
SELECT throws_ok('SELECT referee_external_id FROM referral.referral', '42501',
                 NULL, 'not whom');
SELECT throws_ok('SELECT * FROM referral.referrals', '42501', NULL,
                 'not all');
SELECT throws_ok('SELECT * FROM referral.referee_identity', '42501', NULL,
                 'not their hashes');
RESET ROLE;

SELECT * FROM finish();

ROLLBACK;
