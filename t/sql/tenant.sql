-- Copyright (C) The nginx referral module authors
--
-- Organisations, scope, options, audit, time zones.

BEGIN;

SELECT no_plan();

-- organisations

SET LOCAL ROLE referral_app;

SELECT is(referral.organisation_create('acme', 'Acme'), 1::bigint,
          'organisation_create() returns the id');
SELECT results_eq(
    'SELECT slug, name, status, active_programs, max_active_programs,'
    ' currency, time_zone, settings FROM referral.organisations',
    $$ VALUES ('acme' COLLATE "C", 'Acme', 'active', 0, 5, 'USD', 'UTC',
               '{}'::jsonb) $$, 'defaults');
SELECT is(referral.organisation_create('beta', 'Beta', '{"currency": "EUR",
              "time_zone": "Europe/Berlin", "max_active_programs": 2,
              "settings": {"a": 1}}'), 2::bigint, 'options');
SELECT results_eq(
    'SELECT max_active_programs, currency, time_zone, settings'
    ' FROM referral.organisations WHERE id = 2',
    $$ VALUES (2, 'EUR', 'Europe/Berlin', '{"a": 1}'::jsonb) $$,
    'are taken');

SELECT throws_ok($$ SELECT referral.organisation_create('acme', 'B') $$,
                 'RF017', 'organisation_create(): the slug "acme" is taken',
                 'a slug is taken once');

SELECT throws_ok(format('SELECT referral.organisation_create(%L, %L)', slug,
                        name), 'RF010',
                 format('organisation_create(): %s', message),
                 'slug ' || coalesce(to_json(slug)::text, 'null'))
    FROM (VALUES ('Acme', 'A', '"slug" is not acceptable'),
                 ('-acme', 'A', '"slug" is not acceptable'),
                 ('', 'A', '"slug" is not acceptable'),
                 (repeat('a', 64), 'A', '"slug" is not acceptable'),
                 (E'a\nb', 'A', '"slug" is not acceptable'),
                 (NULL, 'A', '"slug" must not be null'),
                 ('b', '', '"name" is not acceptable'),
                 ('c', NULL, '"name" must not be null')) v (slug, name,
                                                             message);
SELECT lives_ok(format('SELECT referral.organisation_create(%L, %L)',
                       repeat('a', 63), repeat('n', 200)),
                'a slug of 63, a name of 200 characters');

SELECT throws_ok(format('SELECT referral.organisation_create(''x'', ''X'','
                        ' %L)', options), state, message, options)
    FROM (VALUES
        ('{"nam": 1}', 'RF011', 'organisation_create(): no option "nam"'),
        ('[]', 'RF011',
         'organisation_create(): options are a JSON object, not array'),
        ('{"currency": "usd"}', 'RF010',
         'organisation_create(): "currency" is not acceptable'),
        ('{"currency": null}', 'RF010',
         'organisation_create(): "currency" must not be null'),
        ('{"max_active_programs": -1}', 'RF010',
         'organisation_create(): "max_active_programs" is not acceptable'),
        ('{"max_active_programs": "many"}', 'RF010',
         'organisation_create(): "max_active_programs": invalid input syntax'
         ' for type integer: "many"'),
        ('{"settings": []}', 'RF010',
         'organisation_create(): "settings" is not acceptable'),
        ('{"time_zone": "Mars/Olympus"}', 'RF015',
         'organisation_create(): "time_zone": no time zone "Mars/Olympus"'),
        ('{"time_zone": "EST5EDT4,M3.2.0,M11.1.0"}', 'RF015', NULL),
        ('{"time_zone": null}', 'RF015', NULL)
    ) v (options, state, message);

SELECT lives_ok($$ SELECT referral.organisation_update(1,
                       '{"name": "Acme Inc", "time_zone": "Asia/Tokyo"}') $$,
                'organisation_update()');
SELECT throws_ok($$ SELECT referral.organisation_update(1,
                        '{"slug": "beta"}') $$, 'RF017', NULL,
                 'to a slug that is taken');
SELECT throws_ok($$ SELECT referral.organisation_update(1,
                        '{"status": "disabled"}') $$, 'RF011', NULL,
                 'a status is set by its own function');
SELECT throws_ok($$ SELECT referral.organisation_update(99, '{}') $$,
                 'RF012', NULL, 'none with this id');
SELECT throws_ok($$ SELECT referral.organisation_update(NULL, '{}') $$,
                 'RF012', NULL, 'null is none');
SELECT lives_ok($$ SELECT referral.organisation_set_status(2, 'disabled') $$,
                'organisation_set_status()');
SELECT throws_ok($$ SELECT referral.organisation_set_status(2, 'off') $$,
                 'RF010',
                 'organisation_set_status(): "status" is not acceptable',
                 'other words are refused');

RESET ROLE;

-- the hint says what is accepted

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

SELECT is(pg_temp.hint($$ SELECT referral.organisation_set_status(2, 'x') $$),
          'Accepted: active, disabled.', 'a list of words');
SELECT is(pg_temp.hint($$ SELECT referral.organisation_create('X', 'x') $$),
          'Accepted: 1 to 63 of a-z, 0-9 and -, the first no -.',
          'the remark of a constraint');
SELECT is(pg_temp.hint($$ SELECT referral.organisation_create('x', 'x',
                              '{"foo": 1}') $$),
          'Keys: max_active_programs, currency, time_zone, settings.',
          'the keys');

-- the scope

SET LOCAL ROLE referral_app;
SET LOCAL referral.organisation = '1';

SELECT is(referral.organisation_scope(), 1::bigint, 'the scope is read');
SELECT results_eq('SELECT id FROM referral.organisations',
                  ARRAY[1::bigint], 'the view shows this one only');
SELECT throws_ok($$ SELECT referral.organisation_update(2,
                        '{"name": "Mine"}') $$, 'RF012',
                 'organisation 2: there is none with this id, or it is not'
                 ' yours', 'another one is not there');
SELECT throws_ok('SELECT referral.organisation_check(2)', 'RF012', NULL,
                 'organisation_check()');
SELECT lives_ok('SELECT referral.organisation_check(1)', 'of the own one');
SELECT throws_ok($$ SELECT referral.organisation_create('new', 'New') $$,
                 'RF012', NULL, 'nothing is made outside it');
SELECT is((SELECT count(*) FROM referral.audit_trail
               WHERE organisation_id <> 1), 0::bigint,
          'nor another one''s audit read');

SET LOCAL referral.organisation = 'acme';
SELECT throws_ok('SELECT referral.organisation_scope()', 'RF013', NULL,
                 'what is no id is no scope, but an error');
SELECT throws_ok('SELECT * FROM referral.organisations', 'RF013', NULL,
                 'also for views');
SET LOCAL referral.organisation = '0';
SELECT throws_ok('SELECT referral.organisation_scope()', 'RF013', NULL, '0');
SET LOCAL referral.organisation = '1; DROP';
SELECT throws_ok('SELECT referral.organisation_scope()', 'RF013', NULL,
                 'more than a number');
SET LOCAL referral.organisation = '';
SELECT is(referral.organisation_scope(), NULL, 'empty is none');
SELECT is((SELECT count(*) FROM referral.organisations
               WHERE slug IN ('acme', 'beta')), 2::bigint, 'all are seen');
RESET ROLE;

-- the audit

SELECT results_eq(
    $$ SELECT actor, session_user_name, organisation_id, action, object,
              object_id, columns
           FROM referral.audit WHERE organisation_id <= 2 ORDER BY id $$,
    format($$ VALUES
        (%1$L, %1$L, 1::bigint, 'insert', 'organisation', 1::bigint,
         NULL::text[]),
        (%1$L, %1$L, 2, 'insert', 'organisation', 2, NULL),
        (%1$L, %1$L, 1, 'update', 'organisation', 1, '{name,time_zone}'),
        (%1$L, %1$L, 2, 'update', 'organisation', 2, '{live,status}') $$,
        session_user::text), 'who did what to which columns');

SET LOCAL referral.actor = 'mary@example.com';
SET LOCAL referral.reason = 'asked for by phone';
SELECT referral.organisation_update(1, '{"name": "Acme"}');
SELECT results_eq(
    'SELECT actor, session_user_name, columns, reason FROM referral.audit'
    ' ORDER BY id DESC LIMIT 1',
    format($$ VALUES ('mary@example.com', %L, '{name}'::text[],
                      'asked for by phone') $$, session_user::text),
    'the actor and the reason that the application set');
SET LOCAL referral.reason = '';

SELECT referral.organisation_update(1, '{"name": "Acme"}');
SELECT is((SELECT columns FROM referral.audit ORDER BY id DESC LIMIT 1),
          '{name}'::text[], 'what changes nothing leaves nothing');
SELECT is((SELECT count(*) FROM referral.audit
               WHERE action = 'update'), 3::bigint, 'no row more');

SELECT throws_ok('UPDATE referral.audit SET actor = ''x''', 'RF014', NULL,
                 'the audit is not changed');
SELECT throws_ok('DELETE FROM referral.audit', 'RF014', NULL, 'nor deleted');
SELECT throws_ok('TRUNCATE referral.audit', 'RF014', NULL, 'nor emptied');
SET LOCAL ROLE referral_owner;
SELECT throws_ok('DELETE FROM referral.audit WHERE false', 'RF014', NULL,
                 'by nobody');
RESET ROLE;
SET LOCAL session_replication_role = replica;
SELECT throws_ok('DELETE FROM referral.audit', 'RF014', NULL,
                 'also where triggers are off');
SET LOCAL session_replication_role = origin;

SELECT is_empty($$ SELECT c.relname
                       FROM pg_class c
                       WHERE c.relnamespace = 'referral'::regnamespace
                             AND c.relname IN ('organisation', 'person',
                                 'program', 'program_variant', 'referrer',
                                 'code')
                             AND (SELECT count(*) FROM pg_trigger t
                                      WHERE t.tgrelid = c.oid
                                            AND t.tgname IN ('audit_insert',
                                                'audit_update',
                                                'audit_delete')
                                            AND t.tgenabled <> 'D') <> 3 $$,
                'what must be audited is');

-- contact data is not in the audit, only the names of its columns

SELECT referral.person_write('t', NULL, 1, 'customer',
    '{"email": "secret@example.com", "name": "Secret Name",
      "phone": "+1 555 0100", "address": {"city": "Secret City"}}') AS person
\gset
SELECT referral.person_write('t', :person, 1, 'customer',
    '{"email": "secret2@example.com"}') \g /dev/null
SELECT results_eq(
    $$ SELECT action, columns FROM referral.audit WHERE object = 'person'
           ORDER BY id $$,
    $$ VALUES ('insert', NULL::text[]), ('update', '{email}') $$,
    'a person is audited');
SELECT is((SELECT count(*) FROM referral.audit a
               WHERE a::text ~* 'secret'), 0::bigint, 'without a value');
SELECT is((SELECT name FROM referral.person WHERE id = :person),
          'Secret Name', 'keys that are not given stay');

SELECT throws_ok(format('SELECT referral.person_write(''t'', NULL, 1,'
                        ' ''customer'', %L)', contact), state, NULL, contact)
    FROM (VALUES ('{"mail": "a@b.c"}', 'RF011'),
                 ('{"email": "a"}', 'RF010'),
                 ('{"email": "a@b@c"}', 'RF010'),
                 ('{"email": "a b@c"}', 'RF010'),
                 ('{"email": "@c"}', 'RF010'),
                 ('{"phone": "call me"}', 'RF010'),
                 ('{"phone": "12"}', 'RF010'),
                 ('{"address": "street"}', 'RF010')) v (contact, state);
SELECT throws_ok($$ SELECT referral.person_write('t', NULL, 1, 'customer',
                        '{"email": "peter at example"}') $$, 'RF010',
                 't(): "email" is not acceptable',
                 'an error does not repeat personal data');

DELETE FROM referral.person WHERE id = :person;
SELECT results_eq(
    'SELECT action, object, object_id, organisation_id FROM referral.audit'
    ' ORDER BY id DESC LIMIT 1',
    format($$ VALUES ('delete', 'person', %s::bigint, 1::bigint) $$, :person),
    'so is its end');

-- options_apply() with every type, one bad value among good ones

SELECT throws_ok($$ SELECT referral.options_apply('t',
                        NULL::referral.program, '{"slug": "a",
                        "starts_at": "tomorrow-ish", "terms_version": 1}') $$,
                 'RF010', NULL, 'one bad value among others');
SELECT throws_like($$ SELECT referral.options_apply('t',
                        NULL::referral.program, '{"slug": "a",
                        "referral_validity": "ages"}') $$,
                   't(): "referral_validity":%', 'is named');
SELECT throws_like($$ SELECT referral.options_apply('t',
                        NULL::referral.program,
                        '{"reward_threshold": 99999999999}') $$,
                   't(): "reward_threshold":%', 'and a number too large');

SELECT * FROM finish();

ROLLBACK;
