-- Copyright (C) The nginx referral module authors
--
-- Codes, what is published of them, imports, and what partners see.

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('acme', 'Acme') AS acme \gset
SELECT referral.organisation_create('beta', 'Beta') AS beta \gset
SELECT referral.program_create(:acme, 'p', 'P',
    '{"landing_url": "https://example.com/p", "campaign": "all",
      "time_zone": "Europe/Berlin"}') AS p \gset
SELECT referral.program_create(:acme, 'q', 'Q',
    '{"code_prefix": "DEV-O-"}') AS q \gset
SELECT referral.program_create(:beta, 'f', 'F') AS foreign \gset
SELECT referral.program_set_status(:p, 'active');
SELECT referral.program_set_status(:foreign, 'active');

SET LOCAL ROLE referral_app;
SELECT referral.referrer_create(:acme, 'user', '{"external_id": "ann"}') AS ann \gset
SELECT referral.referrer_create(:acme, 'user', '{"external_id": "bob"}') AS bob \gset
SELECT referral.referrer_create(:beta, 'user', '{"external_id": "ann"}') AS eve \gset

-- folding: as the edge does it

SELECT is(referral.code_fold(given), folded,
          'folded: ' || coalesce(to_json(given)::text, 'null'))
    FROM (VALUES ('a', 'A'), ('Summer-25_x', 'SUMMER-25_X'),
                 (repeat('z', 64), repeat('Z', 64)), (repeat('z', 65), NULL),
                 ('', NULL), (' a', NULL), ('a ', NULL), ('a b', NULL),
                 (E'a\n', NULL), (E'\na', NULL), ('ä', NULL), ('ß', NULL),
                 ('ı', NULL), ('İ', NULL), (E'\u212A', NULL), ('ａ', NULL),
                 ('a.b', NULL), ('a/b', NULL), ('%41', NULL), ('*', NULL),
                 (NULL, NULL)) v (given, folded);

-- vanity codes

SELECT results_eq(format('SELECT organisation_id, program_id, referrer_id,'
    ' code, kind, own, status, uses, campaign, max_uses'
    ' FROM referral.code_create(%s, NULL, ''juan2025'')', :p),
    format($$ VALUES (%s::bigint, %s::bigint, NULL::bigint,
        'JUAN2025' COLLATE "C", 'vanity', false, 'active', 0, NULL::text,
        NULL::int) $$, :acme, :p), 'a vanity code');
SELECT throws_ok(format('SELECT referral.code_create(%s, NULL, %L)', program,
                        code), 'RF029', 'the code JUAN2025 is taken', code)
    FROM (VALUES (:p, 'JUAN2025'), (:p, 'Juan2025'), (:q, 'juan2025'),
                 (:foreign, 'juan2025')) v (program, code);
SELECT throws_ok(format('SELECT referral.code_create(%s, NULL, %L)', :p,
                        code), 'RF028', NULL, to_json(code)::text)
    FROM unnest(ARRAY['', ' ', 'a b', 'ä', repeat('a', 65), E'a\n']) code;
RESET ROLE;

CREATE FUNCTION pg_temp.hint(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hint  text;
BEGIN
    EXECUTE query;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN hint;
END
$$;

SELECT referral.code_create(:p, NULL, 'JUAN2025-3') \g /dev/null
SELECT is(pg_temp.hint(format('SELECT referral.code_create(%s, NULL,'
                              ' ''JUAN2025'')', :p)),
          'Codes are one of the whole database, in capitals. Free:'
          ' JUAN2025-2, JUAN2025-4, JUAN2025-5.', 'free ones are named');
SELECT referral.code_create(:p, NULL, repeat('L', 64)) \g /dev/null
SELECT alike(pg_temp.hint(format('SELECT referral.code_create(%s, NULL, %L)',
                                :p, repeat('L', 64))),
            '% Free: ' || repeat('L', 61) || '-2, %', 'none too long');
SET LOCAL ROLE referral_app;

-- automatic codes

SELECT results_eq(format('SELECT code ~ ''^[2-9A-HJKMNP-TV-Z]{8}$'', kind'
    ' FROM referral.code_create(%s)', :p), $$ VALUES (true, 'automatic') $$,
    'an automatic code: 8 characters, none like another');
SELECT results_eq(format('SELECT code ~ ''^DEV-O-[2-9A-HJKMNP-TV-Z]{8}$'''
    ' FROM referral.code_create(%s)', :q), 'VALUES (true)',
    'with the prefix of the program');
SELECT results_eq(format('SELECT code ~ ''^DEV-O-ALEX[2-9A-HJKMNP-TV-Z]{4}$'','
    ' kind FROM referral.code_create(%s, NULL, NULL, %L)', :q,
    '{"name": "Alex!"}'), $$ VALUES (true, 'automatic') $$,
    'and a name');
SELECT results_eq(format('SELECT length(code) FROM'
    ' referral.code_create(%s, NULL, NULL, %L)', :q,
    format('{"name": "%s"}', repeat('x', 100))), 'VALUES (6 + 16 + 4)',
    'of which 16 characters are taken');
RESET ROLE;

SELECT is(count(DISTINCT c), 30::bigint, 'all 30 characters appear')
    FROM (SELECT unnest(string_to_array(referral.code_random(5000), NULL)) c)
         r;
SELECT cmp_ok(max(n) - min(n), '<', 400::bigint, 'and as often as the others')
    FROM (SELECT count(*) AS n
              FROM unnest(string_to_array(referral.code_random(60000), NULL))
                   c GROUP BY c) r;     -- 2,000 each, 45 the deviation
SELECT is(count(DISTINCT referral.code_random(8)), 2000::bigint,
          'two thousand are different')
    FROM generate_series(1, 2000);

SELECT is(referral.code_length(), 8, 'few codes');
SAVEPOINT many;
INSERT INTO referral.code (id, organisation_id, program_id, code)
    OVERRIDING SYSTEM VALUE VALUES (656100, :acme, :p, 'X-1');
SELECT is(referral.code_length(), 9, 'more codes, longer ones');
UPDATE referral.code SET id = DEFAULT WHERE code = 'X-1';
INSERT INTO referral.code (id, organisation_id, program_id, code)
    OVERRIDING SYSTEM VALUE VALUES (590490000, :acme, :p, 'X-2');
SELECT is(referral.code_length(), 12, 'very many');
ROLLBACK TO many;

-- collisions: a generator that first gives what is there already

SAVEPOINT worn;
CREATE SEQUENCE pg_temp.drawn;
GRANT USAGE ON SEQUENCE pg_temp.drawn TO referral_owner;
CREATE OR REPLACE FUNCTION referral.code_random(wanted int) RETURNS text
    LANGUAGE sql SET search_path = pg_catalog, pg_temp
    AS $$ SELECT left(CASE WHEN nextval('pg_temp.drawn') <= 9
                           THEN 'SSSSSSSSSSSSSSSS' ELSE 'FFFFFFFFFFFFFFFF' END,
                      wanted) $$;
SELECT referral.code_create(:p, NULL, repeat('S', n))
    FROM generate_series(8, 10) n \g /dev/null
SELECT is((SELECT code FROM referral.code_create(:p)), repeat('F', 10),
          'a collision is tried again, now and then a character longer');
SELECT is((SELECT last_value FROM pg_temp.drawn), 10::bigint,
          'at the tenth time it went');
CREATE OR REPLACE FUNCTION referral.code_random(wanted int) RETURNS text
    LANGUAGE sql SET search_path = pg_catalog, pg_temp
    AS $$ SELECT 'SSSSSSSS' $$;
SELECT throws_ok(format('SELECT referral.code_create(%s)', :p), 'RF030', NULL,
                 'one that never ends is named');
ROLLBACK TO worn;

SET LOCAL ROLE referral_app;

-- options

SELECT referral.program_variant_set(:p, 'a') AS variant \gset
SELECT referral.program_variant_set(:foreign, 'a') AS other_variant \gset
SELECT results_eq(format('SELECT campaign, channel, destination, rules,'
    ' starts_at, expires_at, max_uses, variant_id, settings, status'
    ' FROM referral.code_create(%s, %s, ''full'', %L)', :p, :ann,
    format('{"campaign": "Summer", "channel": "flyer",
        "destination": "https://example.com/{click_id}",
        "rules": {"country": ["MX"]}, "starts_at": "2026-06-01",
        "expires_at": "2026-07-01T00:00:00Z", "max_uses": 10,
        "variant_id": %s, "settings": {"a": 1}, "status": "disabled"}',
        :variant)),
    format($$ VALUES ('Summer', 'flyer', 'https://example.com/{click_id}',
        '{"country": ["MX"]}'::jsonb, timestamptz '2026-05-31 22:00Z',
        timestamptz '2026-07-01 00:00Z', 10, %s::bigint, '{"a": 1}'::jsonb,
        'disabled') $$, :variant), 'every option, days of the program');
SELECT throws_ok(format('SELECT referral.code_create(%s, NULL, NULL, %L)', :p,
                        options), state, NULL, left(options, 60))
    FROM (VALUES
        ('{"max_uses": 0}', 'RF010'),
        ('{"max_uses": 3000000000}', 'RF010'),
        ('{"destination": "example.com"}', 'RF032'),
        ('{"destination": ""}', 'RF032'),
        ('{"rules": []}', 'RF010'),
        (format('{"rules": {"a": "%s"}}', repeat('x', 8192)), 'RF010'),
        (format('{"campaign": "%s"}', repeat('ü', 65)), 'RF010'),
        ('{"channel": ""}', 'RF010'),
        ('{"starts_at": "2026-06-02", "expires_at": "2026-06-01"}', 'RF010'),
        ('{"expires_at": "infinity"}', 'RF010'),
        ('{"expires_at": "10000-01-01"}', 'RF010'),
        ('{"expires_at": "1969-12-31"}', 'RF010'),
        (format('{"variant_id": %s}', :other_variant), 'RF010'),
        ('{"status": "off"}', 'RF010'),
        ('{"settings": null}', 'RF010'),
        ('{"own": true}', 'RF010'),
        ('{"own": "x"}', 'RF010'),
        ('{"uses": 1}', 'RF011'),
        ('{"code": "A"}', 'RF011')
    ) v (options, state);
SELECT throws_ok(format('SELECT referral.code_create(%s)', :p + 1000),
                 'RF020', NULL, 'no such program');
SELECT throws_ok(format('SELECT referral.code_create(%s, %s)', :p, 99999),
                 'RF025', NULL, 'no such referrer');
SELECT throws_ok(format('SELECT referral.code_create(%s, %s)', :p, :eve),
                 'RF027', NULL, 'a referrer of another organisation');
RESET ROLE;
SELECT throws_ok(format('INSERT INTO referral.code (organisation_id,'
    ' program_id, referrer_id, code) VALUES (%s, %s, %L, ''MIX'')', o, p, r),
    '23503', NULL, 'organisations are not mixed by whoever writes the table')
    FROM (VALUES (:acme, :p, :eve), (:beta, :p, :eve),
                 (:acme, :foreign, NULL)) v (o, p, r);
SET LOCAL ROLE referral_app;

-- finding, changing

SELECT is(referral.code_find('Juan2025'),
          (SELECT id FROM referral.codes WHERE code = 'JUAN2025'), 'found');
SELECT is(referral.code_find(c), NULL, 'not found: ' || coalesce(c, 'null'))
    FROM unnest('{NOSUCH,"a b","",NULL}'::text[]) c;

SELECT referral.code_find('juan2025') AS juan \gset
SELECT referral.code_update(:juan, format('{"campaign": "c", "max_uses": 2,
    "expires_at": "2030-01-01", "referrer_id": %s}', :ann)::jsonb);
SELECT results_eq(format('SELECT campaign, max_uses, expires_at, referrer_id,'
    ' code FROM referral.codes WHERE id = %s', :juan),
    format($$ VALUES ('c', 2, timestamptz '2029-12-31 23:00Z', %s::bigint,
                      'JUAN2025' COLLATE "C") $$, :ann), 'code_update()');
SELECT throws_ok(format('SELECT referral.code_update(%s, %L)', :juan, changes),
                 state, NULL, changes)
    FROM (VALUES (format('{"referrer_id": %s}', :bob), 'RF010'),
                 ('{"referrer_id": null}', 'RF010'),
                 ('{"code": "X"}', 'RF011'), ('{"uses": 0}', 'RF011'),
                 ('{"max_uses": 0}', 'RF010'),
                 ('{"destination": "x"}', 'RF032'),
                 ('{"variant_id": 99999}', 'RF010'),
                 ('{"starts_at": "2031-01-01"}', 'RF010'))
         v (changes, state);
SELECT throws_ok('SELECT referral.code_update(99999, ''{}'')', 'RF031', NULL,
                 'no such code');
SELECT referral.code_set_status(:juan, 'disabled');
SELECT is((SELECT verdict FROM referral.codes WHERE id = :juan), 'inactive',
          'disabled');
SELECT throws_ok(format('SELECT referral.code_set_status(%s, ''off'')', :juan),
                 'RF010', NULL, 'a bad status');
SELECT results_eq(format('SELECT action, columns FROM referral.audit_trail'
    ' WHERE object = ''code'' AND object_id = %s ORDER BY id', :juan),
    $$ VALUES ('insert', NULL::text[]),
        ('update', '{campaign,expires_at,max_uses,referrer_id}'),
        ('update', '{status}') $$, 'audited');
RESET ROLE;
UPDATE referral.code SET uses = uses + 1 WHERE id = :juan;
SELECT is((SELECT count(*) FROM referral.audit
               WHERE object = 'code' AND object_id = :juan), 3::bigint,
          'but not each use');
SET LOCAL ROLE referral_app;

-- one code for a user

SELECT referral.ensure_code(:q, 'alex', '{"name": "alex"}') AS alex \gset
SELECT ok(:'alex' ~ '^DEV-O-ALEX[2-9A-HJKMNP-TV-Z]{4}$', 'ensure_code()');
SELECT is(referral.ensure_code(:q, 'alex'), :'alex', 'the same again');
SELECT is(referral.ensure_code(:q, 'alex', '{"no": "option"}'), :'alex',
          'whatever the options');
SELECT results_eq($$ SELECT type, status FROM referral.referrers
                         WHERE external_id = 'alex' $$,
                  $$ VALUES ('user', 'active') $$, 'a referrer was made');
SELECT isnt(referral.ensure_code(:p, 'alex'), :'alex',
            'another program, another code');
SELECT is((SELECT count(*) FROM referral.referrers
               WHERE external_id = 'alex'), 1::bigint, 'of one referrer');
SELECT is(referral.ensure_code(:p, 'vip', '{"code": "vip-2025",
    "type": "influencer", "attributes": {"a": 1}, "max_uses": 5,
    "contact": {"email": "vip@example.com"}}'), 'VIP-2025',
    'with everything');
SELECT results_eq($$ SELECT r.type, r.attributes, r.has_contact, c.own,
                            c.max_uses
    FROM referral.referrers r JOIN referral.codes c ON c.referrer_id = r.id
    WHERE r.external_id = 'vip' $$,
    $$ VALUES ('influencer', '{"a": 1}'::jsonb, true, true, 5) $$, 'is taken');
SELECT throws_ok(format('SELECT referral.ensure_code(%s, %L, %L)', :p, user_,
                        options), state, NULL, concat_ws(' ', user_, options))
    FROM (VALUES ('new', '{"code": "vip-2025"}', 'RF029'),
                 ('new', '{"foo": 1}', 'RF011'),
                 ('new', '{"type": "x"}', 'RF010'),
                 ('new', '{"contact": {"email": "vip@example.com"}}',
                  'RF018'),
                 ('new', '{"contact": {"mail": "x"}}', 'RF011'),
                 ('new', '{"max_uses": 0}', 'RF010'),
                 (NULL, '{}', 'RF010'), ('', '{}', 'RF010'))
         v (user_, options, state);
SELECT is_empty($$ SELECT FROM referral.referrers
                       WHERE external_id = 'new' $$,
                'what fails leaves no referrer');
SELECT throws_ok(format('SELECT referral.code_create(%s, (SELECT id'
    ' FROM referral.referrers WHERE external_id = ''alex''), ''ALEX'','
    ' ''{"own": true}'')', :q), 'RF034', NULL, 'there is one own code');
SELECT lives_ok(format('SELECT referral.code_create(%s, %s, ''BOB'','
    ' ''{"own": true}'')', :q, :bob), 'made by code_create()');
SELECT is(referral.ensure_code(:q, 'bob'), 'BOB', 'it is the one');

-- what is published

RESET ROLE;

CREATE FUNCTION pg_temp.published(code text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT to_jsonb(c) - '{code_id,code,program_id,rules}'::text[]
        FROM referral.code_published c WHERE c.code = published.code
$$;

SELECT columns_are('referral', 'code_published', ARRAY['code_id', 'code',
    'url', 'state', 'not_before', 'expires', 'program_id', 'referrer_id',
    'campaign', 'rules'], 'exactly the fields of Redis');
SELECT col_type_is('referral', 'code_published', c, 'bigint', c || ' is bigint')
    FROM unnest('{code_id,not_before,expires,program_id,referrer_id}'::name[])
         c;

SELECT referral.code_create(:p, :ann, 'PUB') \g /dev/null
SELECT is(pg_temp.published('PUB'), format('{"url": "https://example.com/p",
    "state": "active", "not_before": null, "expires": null,
    "referrer_id": %s, "campaign": "all"}', :ann)::jsonb,
    'of the program where the code says nothing');

CREATE FUNCTION pg_temp.state_after(query text) RETURNS text
    LANGUAGE plpgsql AS $$
DECLARE
    answer  text;
BEGIN
    BEGIN
        EXECUTE query;
        SELECT c.state INTO answer FROM referral.code_published c
            WHERE c.code = 'PUB';
        RAISE EXCEPTION SQLSTATE 'T0000';
    EXCEPTION WHEN SQLSTATE 'T0000' THEN
        RETURN answer;
    END;
END
$$;

SELECT is(pg_temp.state_after(query), state, query)
    FROM (VALUES
        ('SELECT 1', 'active'),
        ('SELECT referral.code_set_status(referral.code_find(''PUB''),'
         ' ''disabled'')', 'inactive'),
        (format('SELECT referral.program_set_status(%s, ''paused'')', :p),
         'inactive'),
        (format('SELECT referral.organisation_set_status(%s, ''disabled'')',
                :acme), 'inactive'),
        (format('SELECT referral.referrer_set_status(%s, ''suspended'')',
                :ann), 'inactive'),
        (format('SELECT referral.referrer_update(%s, ''{"eligible": false}'')',
                :ann), 'inactive'),
        ('UPDATE referral.code SET uses = 2, max_uses = 3'
         ' WHERE code = ''PUB''', 'active'),
        ('UPDATE referral.code SET uses = 3, max_uses = 3'
         ' WHERE code = ''PUB''', 'exhausted'),
        ('UPDATE referral.code SET uses = 4, max_uses = 3'
         ' WHERE code = ''PUB''', 'exhausted'),
        ('UPDATE referral.code SET uses = 4, max_uses = 3,'
         ' status = ''disabled'' WHERE code = ''PUB''', 'inactive'),
        (format('SELECT referral.program_update(%s, ''{"landing_url":'
                ' null}'')', :p), NULL),
        (format('UPDATE referral.program SET status = ''draft'','
                ' template = true WHERE id = %s', :p), NULL)
    ) v (query, state);

-- times: the later start, the earlier end; a second is not exceeded

SELECT referral.code_create(:p, NULL, 'TIMES',
    '{"starts_at": "2026-06-01 00:00:00.5Z",
      "expires_at": "2026-07-01 00:00:00.5Z", "campaign": "own",
      "destination": "https://example.com/own"}') \g /dev/null
SELECT is(pg_temp.published('TIMES'), '{"url": "https://example.com/own",
    "state": "active", "not_before": 1780272001, "expires": 1782864000,
    "referrer_id": null, "campaign": "own"}', 'of the code');
SELECT referral.program_update(:p, '{"starts_at": "2026-06-10Z",
                                     "ends_at": "2026-06-20Z"}');
SELECT results_eq($$ SELECT not_before, expires FROM referral.code_published
                         WHERE code = 'TIMES' $$,
    'VALUES (1781049600::bigint, 1781913600::bigint)', 'of the program');
SELECT referral.program_update(:p, '{"starts_at": "2026-08-01Z",
                                     "ends_at": "2026-09-01Z"}');
SELECT results_eq($$ SELECT state, not_before, expires
    FROM referral.code_published WHERE code = 'TIMES' $$,
    $$ VALUES ('inactive', NULL::bigint, 1782864000::bigint) $$,
    'no moment is left: inactive, and nothing that the edge would refuse');
SELECT referral.program_update(:p, '{"starts_at": null, "ends_at": null}');

SELECT results_eq($$ SELECT verdict FROM referral.codes
                         WHERE code = 'TIMES' $$,
                  $$ VALUES (CASE WHEN now() < '2026-06-01 00:00:00.5Z'
                                  THEN 'early'
                                  WHEN now() < '2026-07-01 00:00:00.5Z'
                                  THEN 'valid' ELSE 'expired' END) $$,
                  'what people see is the edge''s word');

-- the plans that a million codes need

SELECT is_empty($$ SELECT i FROM unnest(ARRAY['code_program', 'code_referrer',
                       'code_own', 'code_code_key']) i
                   WHERE to_regclass('referral.' || i) IS NULL $$,
                'indexes for the code, the program, the referrer');

-- imports

SET LOCAL ROLE referral_app;

SELECT results_eq(format($$ SELECT line, outcome,
        CASE WHEN line = 3 THEN length(code)::text ELSE code END
    FROM referral.code_import(%s, '[
        {"code": "imp1", "max_uses": "5", "campaign": "", "rules": "{}"},
        {"code": "IMP2", "expires_at": "2030-01-01"},
        {"external_id": "ann"}]') $$, :p),
    $$ VALUES (1, 'created', 'IMP1'), (2, 'created', 'IMP2'),
        (3, 'created', '8') $$,
    'codes are imported');
SELECT results_eq($$ SELECT code, max_uses, campaign, rules, expires_at, kind
    FROM referral.codes WHERE code LIKE 'IMP_' ORDER BY code $$,
    $$ VALUES ('IMP1' COLLATE "C", 5, NULL::text, '{}'::jsonb,
               NULL::timestamptz, 'vanity'),
        ('IMP2', NULL, NULL, NULL, timestamptz '2029-12-31 23:00Z',
         'vanity') $$, 'with their values');
SELECT results_eq(format($$ SELECT outcome FROM referral.code_import(%s, '[
        {"code": "imp1", "max_uses": "5", "campaign": "", "rules": "{}"},
        {"code": "IMP2", "expires_at": "2030-01-01"},
        {"external_id": "ann"}]') $$, :p),
    $$ VALUES ('unchanged'), ('unchanged'), ('unchanged') $$,
    'again: nothing changes');
SELECT is((SELECT count(*) FROM referral.codes
               WHERE external_id = 'ann' AND own), 1::bigint,
          'a row without a code is the own one');
SELECT results_eq(format($$ SELECT line, outcome, code
    FROM referral.code_import(%s, '[
        {"code": "imp1", "max_uses": 6},
        {"code": "imp3"}, {"code": "IMP3"}, {"code": "imp3", "channel": "x"},
        {"code": "im p"}, {"code": "imp4", "max_uses": "x"},
        {"code": "imp5", "destination": "x"}, {"code": "imp6", "uses": 1},
        {"code": "imp7", "status": "disabled"},
        {"code": "imp7", "status": "off"},
        {"external_id": "nobody"}, {}, 7,
        {"code": "imp8", "external_id": "bob"},
        {"code": "imp8", "external_id": "ann"},
        {"code": "imp1", "external_id": "ann"},
        {"code": "imp9", "rules": "{"}, {"code": "bob"},
        {"code": "impa"}]') $$, :p),
    $$ VALUES (1, 'updated', 'IMP1'), (2, 'created', 'IMP3'),
        (3, 'unchanged', 'IMP3'), (4, 'updated', 'IMP3'),
        (5, 'error', 'im p'), (6, 'error', 'imp4'), (7, 'error', 'imp5'),
        (8, 'error', 'imp6'), (9, 'created', 'IMP7'), (10, 'error', 'imp7'),
        (11, 'error', NULL), (12, 'error', NULL), (13, 'error', NULL),
        (14, 'created', 'IMP8'), (15, 'error', 'imp8'),
        (16, 'updated', 'IMP1'), (17, 'error', 'imp9'), (18, 'error', 'bob'),
        (19, 'created', 'IMPA') $$,
    'a bad row does not stop the others');
SELECT is((SELECT count(*) FROM referral.codes WHERE code LIKE 'IMP_'),
          6::bigint, 'and leaves nothing');
SELECT is((SELECT status FROM referral.codes WHERE code = 'IMP7'), 'disabled',
          'a status on the way in');
SELECT is_empty(format($$ SELECT line FROM referral.code_import(%s,
    '[{"code": "a b"}, {"external_id": "nobody"}, {"code": "bob"}]')
    WHERE message IS NULL OR message = '' $$, :p), 'errors have their words');
SELECT throws_ok(format('SELECT referral.code_import(%s, %L)', :p, rows),
                 'RF035', NULL, left(rows, 20))
    FROM (VALUES ('{}'), ('"x"'), (NULL),
                 ((SELECT jsonb_agg(n)::text
                       FROM generate_series(1, 1001) n))) v (rows);

-- all of a call at once

SELECT results_eq(format($$ SELECT outcome, count(*), count(DISTINCT id)
    FROM referral.code_import(%s, (SELECT jsonb_agg(jsonb_build_object(
             'code', 'BULK' || n)) FROM generate_series(1, 1000) n))
    GROUP BY outcome $$, :p),
    $$ VALUES ('created', 1000::bigint, 1000::bigint) $$, 'a thousand codes');

-- another organisation

SET LOCAL referral.organisation = :beta;
SELECT throws_ok(query, state, NULL, query)
    FROM (VALUES
        (format('SELECT referral.code_create(%s)', :p), 'RF020'),
        (format('SELECT referral.code_import(%s, ''[]'')', :p), 'RF020'),
        (format('SELECT referral.ensure_code(%s, ''ann'')', :p), 'RF020'),
        (format('SELECT referral.code_update(%s, ''{}'')', :juan), 'RF031'),
        (format('SELECT referral.code_set_status(%s, ''active'')', :juan),
         'RF031')) v (query, state);
SELECT is(referral.code_find('JUAN2025'), NULL, 'finds nothing');
SELECT is_empty('SELECT FROM referral.codes', 'and sees nothing');
SET LOCAL referral.organisation = '';

-- partners: by a portal, which is an application

RESET ROLE;
SELECT referral.code_create(:foreign, :eve, 'EVE') \g /dev/null
SELECT referral.program_create(:acme, 'draft', 'Draft') \g /dev/null
SELECT referral.referrer_update(:ann, '{}', '{"email": "ann@example.com"}');
CREATE ROLE t_app LOGIN IN ROLE referral_app, referral_partner;
SET SESSION AUTHORIZATION t_app;
SET LOCAL ROLE referral_partner;

SELECT is(referral.current_referrer(), NULL, 'nobody yet');
SELECT is((SELECT count(*) FROM referral.my_codes)
          + (SELECT count(*) FROM referral.my_programs)
          + (SELECT count(*) FROM referral.my_referrer)
          + (SELECT count(*) FROM referral.my_contact()), 0::bigint,
          'and nothing to see');

SET LOCAL referral.referrer = :ann;
SELECT is(referral.current_referrer(), :ann::bigint, 'who the portal says');
SELECT set_eq('SELECT code COLLATE "default" FROM referral.my_codes'
              ' WHERE NOT own',
    $$ SELECT unnest(ARRAY['FULL', 'JUAN2025', 'PUB', 'IMP1']) $$,
    'the own codes');
SELECT is((SELECT count(*) FROM referral.my_codes WHERE own), 1::bigint,
          'and the one of the import');
SELECT results_eq('SELECT organisation, external_id, status'
                  ' FROM referral.my_referrer',
                  $$ VALUES ('Acme', 'ann' COLLATE "C", 'active') $$,
                  'the own referrer');
SELECT results_eq('SELECT slug FROM referral.my_programs',
                  $$ VALUES ('p' COLLATE "C") $$,
                  'programs that are active, no drafts');
SELECT results_eq('SELECT email FROM referral.my_contact()',
                  $$ VALUES ('ann@example.com') $$, 'the own contact');
SELECT results_eq($$ SELECT verdict, url FROM referral.my_codes
                         WHERE code = 'PUB' $$,
                  $$ VALUES ('valid', 'https://example.com/p') $$,
                  'whether it works, and where it leads');

-- whatever is asked of the tables

SELECT is((SELECT count(*) FROM referral.code WHERE referrer_id <> :ann)
          + (SELECT count(*) FROM referral.referrer WHERE id <> :ann)
          + (SELECT count(*) FROM referral.program
                 WHERE organisation_id <> :acme)
          + (SELECT count(*) FROM referral.organisation WHERE id <> :acme),
          0::bigint, 'rows of others are not there');
SELECT throws_ok(query, '42501', NULL, query)
    FROM (VALUES ('SELECT * FROM referral.person'),
                 ('SELECT email FROM referral.person'),
                 ('SELECT * FROM referral.referrer'),
                 ('SELECT notes FROM referral.referrer'),
                 ('SELECT attributes FROM referral.referrer'),
                 ('SELECT settings FROM referral.program'),
                 ('SELECT eligibility FROM referral.program'),
                 ('SELECT settings FROM referral.organisation'),
                 ('SELECT settings FROM referral.code'),
                 ('SELECT * FROM referral.codes'),
                 ('SELECT * FROM referral.code_published'),
                 ('SELECT * FROM referral.audit'),
                 ('SELECT * FROM referral.audit_trail'),
                 ('SELECT * FROM referral.partner_login'),
                 ('SELECT * FROM referral.interaction'),
                 ('UPDATE referral.code SET max_uses = NULL'),
                 ('DELETE FROM referral.code'),
                 ('INSERT INTO referral.terms_acceptance VALUES (1, 1, 1)'),
                 (format('SELECT referral.code_create(%s)', :p)),
                 ('SELECT referral.referrer_contact(1)'),
                 ('SELECT referral.eligibility(1, 1)')) v (query);

-- a function of one's own that reports each row it is asked about

RESET ROLE;
RESET SESSION AUTHORIZATION;
CREATE FUNCTION public.leak(code text) RETURNS boolean LANGUAGE plpgsql
    COST 0.0001 AS $$ BEGIN RAISE NOTICE 'leaked %', code;
    IF code IN ('EVE', 'BOB') THEN RAISE EXCEPTION 'leaked %', code; END IF;
    RETURN true; END $$;
SET SESSION AUTHORIZATION t_app;
SET LOCAL ROLE referral_partner;
SET LOCAL referral.referrer = :ann;
SET LOCAL client_min_messages = warning;
SELECT lives_ok('SELECT count(*) FROM referral.my_codes'
                ' WHERE public.leak(code)', 'is asked about no other row');
SET LOCAL referral.referrer = '';
RESET ROLE;
RESET SESSION AUTHORIZATION;

-- partners with a login: the setting is not believed

CREATE ROLE t_partner LOGIN IN ROLE referral_partner;
SELECT referral.partner_login_set('t_partner', :bob);
SET SESSION AUTHORIZATION t_partner;
SELECT is(referral.current_referrer(), :bob::bigint, 'the login''s referrer');
SET LOCAL referral.referrer = :ann;
SELECT is(referral.current_referrer(), :bob::bigint,
          'whatever the setting says');
SELECT set_eq('SELECT code COLLATE "default" FROM referral.my_codes',
              $$ VALUES ('BOB'), ('IMP8') $$, 'sees its own codes');
SELECT set_eq('SELECT slug COLLATE "default" FROM referral.my_programs',
              $$ VALUES ('p'), ('q') $$,
              'and drafts that it has a code in');
RESET SESSION AUTHORIZATION;
SELECT referral.partner_login_set('t_partner', NULL);
SET SESSION AUTHORIZATION t_partner;
SELECT is(referral.current_referrer(), NULL,
          'without a login''s row it is nobody, setting or not');
SELECT is_empty('SELECT FROM referral.my_codes', 'and sees nothing');
RESET SESSION AUTHORIZATION;

SELECT * FROM finish();

ROLLBACK;
