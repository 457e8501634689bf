-- Copyright (C) The nginx referral module authors
--
-- Referrers: application and review, contact, eligibility, terms, imports.

BEGIN;

SELECT no_plan();

SELECT referral.organisation_create('acme', 'Acme') AS acme \gset
SELECT referral.organisation_create('beta', 'Beta') AS beta \gset
SELECT referral.program_create(:acme, 'p', 'P') AS p \gset
SELECT referral.program_create(:beta, 'p', 'P') AS foreign \gset
SELECT referral.program_set_status(:p, 'active');

SET LOCAL ROLE referral_app;
SET LOCAL referral.actor = 'reviewer';

-- creating

SELECT lives_ok(format('SELECT referral.referrer_create(%s, %L)', :acme, t),
                'type ' || t)
    FROM unnest(referral.referrer_types()) t;
SELECT is(cardinality(referral.referrer_types()), 13, 'every type');
SELECT referral.referrer_create(:acme, 'partner', '{"external_id": "u-1",
    "attributes": {"campus": "north", "year": 2}, "commission_bp": 1250,
    "notes": "good"}', '{"first_name": "Ann", "last_name": "Lee",
    "email": "ann@example.com", "phone": "+52 55 1234 5678",
    "company": "Lee & Co", "address": {"city": "Mexico"}}') AS ann \gset
SELECT results_eq(format('SELECT external_id, type, status, eligible,'
    ' attributes, commission_bp, notes, has_contact, approved_at = now(),'
    ' applied_at FROM referral.referrers WHERE id = %s', :ann),
    $$ VALUES ('u-1' COLLATE "C", 'partner', 'active', true,
               '{"campus": "north", "year": 2}'::jsonb, 1250, 'good', true,
               true, NULL::timestamptz) $$, 'every option');

SELECT throws_ok(format('SELECT referral.referrer_create(%s, %L, %L, %L)',
                        :acme, type, options, contact), state, NULL,
                 concat_ws(' ', type, options, contact))
    FROM (VALUES
        ('friend', '{}', NULL, 'RF010'),
        (NULL, '{}', NULL, 'RF010'),
        ('user', '{"status": "active"}', NULL, 'RF011'),
        ('user', '{"commission_bp": -1}', NULL, 'RF010'),
        ('user', '{"commission_bp": 10001}', NULL, 'RF010'),
        ('user', '{"commission_bp": "10 %"}', NULL, 'RF010'),
        ('user', '{"external_id": ""}', NULL, 'RF010'),
        ('user', '{"eligible": "perhaps"}', NULL, 'RF010'),
        ('user', '{"eligible": null}', NULL, 'RF010'),
        ('user', '{"attributes": []}', NULL, 'RF010'),
        ('user', '{"external_id": "u-1"}', NULL, 'RF026'),
        ('user', '{}', '{"email": "ANN@example.com"}', 'RF018'),
        ('user', '{}', '{"emial": "x@example.com"}', 'RF011'),
        ('user', '{}', '{"email": "nobody"}', 'RF010')
    ) v (type, options, contact, state);
SELECT lives_ok(format($$ SELECT referral.referrer_create(%s, 'user',
    '{"external_id": "u-1"}', '{"email": "ann@example.com"}') $$, :beta),
    'both are free in another organisation');
SELECT throws_ok('SELECT referral.referrer_create(99, ''user'')', 'RF012',
                 NULL, 'no such organisation');

-- application, review

SELECT referral.referrer_apply(:acme, 'partner', '{"external_id": "bob"}',
    '{"name": "Bob", "email": "bob@example.com"}') AS bob \gset
SELECT results_eq(format('SELECT status, applied_at = now(), approved_at'
    ' FROM referral.referrers WHERE id = %s', :bob),
    $$ VALUES ('applied', true, NULL::timestamptz) $$, 'an application');
SELECT throws_ok(format('SELECT referral.code_create(%s, %s)', :p, :bob),
    'RF027', format('referrer %s can have no code in program %s (p): it is'
    ' applied', :bob, :p), 'who only applied has no code');
SELECT referral.referrer_reject(:bob, 'no company');
SELECT results_eq(format('SELECT status, reviewed_at = now(), reviewed_by,'
    ' rejected_at = now(), reject_reason FROM referral.referrers'
    ' WHERE id = %s', :bob),
    $$ VALUES ('rejected', true, 'reviewer', true, 'no company') $$,
    'rejected');
SELECT results_eq(format('SELECT actor, action, reason'
    ' FROM referral.audit_trail WHERE object = ''referrer'''
    ' AND object_id = %s ORDER BY id DESC LIMIT 1', :bob),
    $$ VALUES ('reviewer', 'reject', 'no company') $$, 'with the reason');
SELECT throws_ok(format('SELECT referral.referrer_approve(%s)', :bob),
                 'RF021', NULL, 'who is rejected is not approved');
SELECT throws_ok(format('SELECT referral.referrer_reject(%s, ''x'')', :bob),
                 'RF021', NULL, 'nor rejected again');
SELECT lives_ok(format('SELECT referral.referrer_set_status(%s, ''applied'')',
                       :bob), 'but may apply again');
SELECT throws_ok(format('SELECT referral.referrer_approve(%s, %L)', :bob,
                        options), state, NULL, options)
    FROM (VALUES ('{"program": 9999}', 'RF020'),
                 ('{"program": "p"}', 'RF010'),
                 ('{"programs": 1}', 'RF011'),
                 (format('{"program": %s, "code": "a b"}', :p), 'RF028'),
                 (format('{"program": %s, "max_uses": 0}', :p), 'RF010'),
                 (format('{"program": %s}', :foreign), 'RF027'),
                 ('{"commission_bp": 20000}', 'RF010')
         ) v (options, state);
SELECT is((SELECT status FROM referral.referrers WHERE id = :bob), 'applied',
          'what fails approves nobody');
SELECT is(referral.referrer_approve(:bob, format('{"program": %s,
    "code": "Bob2025", "commission_bp": 900, "channel": "flyer"}',
    :p)::jsonb), 'BOB2025', 'approved, the code is made');
SELECT results_eq(format('SELECT status, commission_bp, reviewed_by,'
    ' approved_at = now(), rejected_at, reject_reason'
    ' FROM referral.referrers WHERE id = %s', :bob),
    $$ VALUES ('active', 900, 'reviewer', true, NULL::timestamptz,
               NULL::text) $$, 'and nothing of the rejection stays');
SELECT results_eq(format('SELECT code, kind, own, channel FROM referral.codes'
    ' WHERE referrer_id = %s', :bob),
    $$ VALUES ('BOB2025' COLLATE "C", 'vanity', true, 'flyer') $$,
    'it is the referrer''s own');
SELECT is(referral.ensure_code(:p, 'bob'), 'BOB2025',
          'which ensure_code() returns');
SELECT referral.referrer_apply(:acme, 'user') AS eve \gset
SELECT is(referral.referrer_approve(:eve), NULL, 'approval without a program');
SELECT throws_ok(format('SELECT referral.referrer_approve(%s)', :eve),
                 'RF021', NULL, 'only once');

-- statuses: every pair

RESET ROLE;
CREATE FUNCTION pg_temp.walk(id bigint, was text, wanted text) RETURNS text
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE referral.referrer r SET status = was WHERE r.id = walk.id;
    PERFORM referral.referrer_set_status(walk.id, wanted);
    RETURN 'goes';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END
$$;

SELECT is(pg_temp.walk(:eve, was, wanted),
          CASE WHEN was = wanted
                    OR was IN ('active', 'inactive', 'suspended')
                       AND wanted IN ('active', 'inactive', 'suspended',
                                      'terminated')
                    OR was = 'rejected' AND wanted = 'applied'
               THEN 'goes' ELSE 'RF021' END, was || ' to ' || wanted)
    FROM unnest('{applied,active,rejected,inactive,suspended,
                  terminated}'::text[]) was,
         unnest('{applied,active,rejected,inactive,suspended,terminated,
                  x}'::text[]) wanted;
SELECT is(pg_temp.walk(:eve, 'active', NULL), 'RF021', 'to null');
SET LOCAL ROLE referral_app;

-- changes

SELECT referral.referrer_update(:ann, '{"eligible": false,
    "commission_bp": null}', '{"phone": null, "name": "A. Lee"}');
SELECT results_eq(format('SELECT eligible, commission_bp, type, external_id,'
    ' attributes FROM referral.referrers WHERE id = %s', :ann),
    $$ VALUES (false, NULL::int, 'partner', 'u-1' COLLATE "C",
               '{"campus": "north", "year": 2}'::jsonb) $$,
    'what is named changes');
SELECT results_eq(format('SELECT first_name, name, email, phone, company,'
    ' address FROM referral.referrer_contact(%s, ''called'')', :ann),
    $$ VALUES ('Ann', 'A. Lee', 'ann@example.com', NULL::text, 'Lee & Co',
               '{"city": "Mexico"}'::jsonb) $$, 'so does the contact');
SELECT results_eq($$ SELECT actor, action, object, columns, reason
    FROM referral.audit_trail ORDER BY id DESC LIMIT 1 $$,
    $$ VALUES ('reviewer', 'read', 'person',
        '{first_name,last_name,name,email,phone,company,address}'::text[],
        'called') $$, 'who reads a contact stands in the audit');
SELECT is_empty(format('SELECT * FROM referral.referrer_contact(%s)', :eve),
                'no contact');
SELECT throws_ok(format($$ SELECT referral.referrer_update(%s,
    '{"external_id": "bob"}') $$, :ann), 'RF026', NULL,
    'an external id that is taken');
SELECT throws_ok(format($$ SELECT referral.referrer_update(%s, '{}',
    '{"email": "bob@example.com"}') $$, :ann), 'RF018', NULL,
    'an address that is taken');
SELECT throws_ok(format($$ SELECT referral.referrer_update(%s,
    '{"type": "x"}') $$, :ann), 'RF010', NULL, 'a bad type');

RESET ROLE;
UPDATE referral.person SET erased_at = now(), email = NULL
    WHERE id = (SELECT person_id FROM referral.referrer WHERE id = :ann);
SET LOCAL ROLE referral_app;
SELECT is_empty(format('SELECT * FROM referral.referrer_contact(%s)', :ann),
                'an erased contact is not shown');

-- nothing personal in the views

SELECT is_empty($$ SELECT table_name, column_name
    FROM information_schema.columns
    WHERE table_schema = 'referral'
          AND table_name IN ('referrers', 'codes', 'code_published',
                             'my_referrer', 'my_codes', 'audit_trail')
          AND column_name IN ('first_name', 'last_name', 'name', 'email',
                              'phone', 'company', 'address') $$,
    'views of referrers and codes have no personal data');

-- eligibility

SELECT referral.program_create(:acme, 'students', 'S', '{"eligibility":
    {"types": ["student", "alumni"], "attributes": {"campus": "north"},
     "age": 18}}') AS students \gset
SELECT referral.referrer_create(:acme, 'student',
    '{"attributes": {"campus": "north", "x": 1}}') AS good \gset
SELECT referral.referrer_create(:acme, 'student',
    '{"attributes": {"campus": "south"}}') AS south \gset
SELECT is(referral.eligibility(:students, :good), NULL, 'eligible');
SELECT is(referral.eligibility(:students, :south),
          'has not the attributes that the program asks for:'
          ' {"campus": "north"}', 'wrong attributes');
SELECT is(referral.eligibility(:students, :bob),
          'is of type partner, the program is for student, alumni',
          'wrong type');
SELECT is(referral.eligibility(:foreign, :good),
          'belongs to another organisation', 'wrong organisation');
SELECT is(referral.eligibility(:p, :good), NULL,
          'a program that asks for nothing takes everybody');
SELECT referral.referrer_update(:good, '{"eligible": false}');
SELECT is(referral.eligibility(:students, :good), 'is marked as not eligible',
          'no longer a student');
SELECT throws_ok(format('SELECT referral.code_create(%s, %s)', :students,
                        :south), 'RF027', NULL,
                 'who is not eligible gets no code');
SELECT throws_ok(format($$ SELECT referral.ensure_code(%s, 'new') $$,
                        :students), 'RF027', NULL, 'nor by ensure_code()');
SELECT is_empty($$ SELECT FROM referral.referrers
                       WHERE external_id = 'new' $$,
                'which then leaves no referrer behind');

-- terms

SELECT throws_ok(format('SELECT referral.terms_accept(%s, %s)', :p, :bob),
                 'RF024', NULL, 'a program without terms');
SELECT referral.program_update(:p, '{"terms": "1", "terms_required": true}');
SELECT throws_ok(format('SELECT referral.code_create(%s, %s)', :p, :bob),
                 'RF024', NULL, 'no code before they are accepted');
SELECT is(referral.terms_accept(:p, :bob), 1, 'the version accepted');
SELECT is(referral.terms_accept(:p, :bob), 1, 'twice is once');
SELECT lives_ok(format('SELECT referral.code_create(%s, %s)', :p, :bob),
                'then codes are made');
SELECT lives_ok(format('SELECT referral.code_create(%s)', :p),
                'a code of nobody needs no acceptance');
SELECT referral.program_update(:p, '{"terms": "2"}');
SELECT throws_ok(format('SELECT referral.code_create(%s, %s)', :p, :bob),
                 'RF024', NULL, 'new terms are accepted anew');
SELECT is(referral.terms_accept(:p, :bob), 2, 'as version 2');
SELECT results_eq(format('SELECT terms_version, actor'
    ' FROM referral.terms_acceptances WHERE program_id = %s'
    ' ORDER BY terms_version', :p),
    $$ VALUES (1, 'reviewer'), (2, 'reviewer') $$, 'both are kept');
SELECT throws_ok(format('SELECT referral.terms_accept(%s, %s)', :foreign,
                        :bob), 'RF025', NULL,
                 'terms of another organisation');
SELECT throws_ok(format($$ SELECT referral.ensure_code(%s, 'u-9') $$, :p),
                 'RF024', NULL, 'ensure_code() needs them too');
SELECT lives_ok(format($$ SELECT referral.ensure_code(%s, 'u-9',
                    '{"terms_accepted": true}') $$, :p), 'or accepts them');

-- imports

SELECT results_eq(format($$ SELECT line, outcome, external_id
    FROM referral.referrer_import(%s, '[
        {"external_id": "i1", "type": "student", "email": "i1@example.com",
         "attributes": "{\"a\": 1}", "commission_bp": "500"},
        {"external_id": "i2", "email": "I1@example.com"},
        {"external_id": "i3", "status": "suspended", "phone": ""},
        {"external_id": "i4", "status": "applied"},
        {"external_id": "i1", "type": "student", "email": "i1@example.com"},
        {"external_id": "i1", "email": "new@example.com"},
        {"external_id": "i5", "status": "gone"},
        {"external_id": "i6", "type": "friend"},
        {"external_id": "i7", "attributes": "{"},
        {"email": "x@example.com"}, {"external": "x"}, 7, null, [],
        {"external_id": "i8"}]') $$, :acme),
    $$ VALUES (1, 'created', 'i1'), (2, 'error', 'i2'), (3, 'created', 'i3'),
        (4, 'created', 'i4'), (5, 'unchanged', 'i1'), (6, 'updated', 'i1'),
        (7, 'error', 'i5'), (8, 'error', 'i6'), (9, 'error', 'i7'),
        (10, 'error', NULL), (11, 'error', NULL), (12, 'error', NULL),
        (13, 'error', NULL), (14, 'error', NULL), (15, 'created', 'i8') $$,
    'each row has its outcome');
SELECT results_eq(format('SELECT external_id COLLATE "default", type, status, attributes,'
    ' commission_bp FROM referral.referrers WHERE organisation_id = %s'
    ' AND external_id LIKE ''i_'' ORDER BY 1', :acme),
    $$ VALUES ('i1', 'student', 'active', '{"a": 1}'::jsonb, 500),
              ('i3', 'customer', 'suspended', '{}', NULL),
              ('i4', 'customer', 'applied', '{}', NULL),
              ('i8', 'customer', 'active', '{}', NULL) $$,
    'the good rows are in');
SELECT is((SELECT email FROM referral.referrer_contact((SELECT id
               FROM referral.referrers WHERE external_id = 'i1'))),
          'new@example.com', 'with the contact');
SELECT results_eq(format($$ SELECT outcome FROM referral.referrer_import(%s,
    '[{"external_id": "i1", "email": "new@example.com"},
      {"external_id": "i3", "status": "suspended"},
      {"external_id": "i4", "status": "applied"}]') $$, :acme),
    $$ VALUES ('unchanged'), ('unchanged'), ('unchanged') $$,
    'again: nothing changes');
SELECT throws_ok(format('SELECT referral.referrer_import(%s, %L)', :acme,
                        rows), 'RF035', NULL, left(rows, 20))
    FROM (VALUES ('{}'), ('null'), (NULL),
                 ((SELECT jsonb_agg(n)::text
                       FROM generate_series(1, 1001) n))) v (rows);
SELECT is_empty(format('SELECT * FROM referral.referrer_import(%s, ''[]'')',
                       :acme), 'an empty import');

-- logins of partners

RESET ROLE;
CREATE ROLE t_partner LOGIN IN ROLE referral_partner;
CREATE ROLE t_both LOGIN IN ROLE referral_partner, referral_app;
SET LOCAL ROLE referral_app;
SELECT lives_ok(format('SELECT referral.partner_login_set(''t_partner'', %s)',
                       :bob), 'a login role of a partner');
SELECT throws_ok(format('SELECT referral.partner_login_set(%L, %s)', role,
                        :bob), 'RF033', NULL, role)
    FROM (VALUES ('t_both'), ('nobody'), ('postgres'), ('referral_app'),
                 (NULL)) v (role);
SET LOCAL referral.organisation = :beta;
SELECT throws_ok('SELECT referral.partner_login_set(''t_partner'', NULL)',
                 'RF025', NULL, 'of another organisation: not taken back');
SELECT throws_ok(format('SELECT referral.partner_login_set(''t_partner'','
                        ' %s)', :bob), 'RF025', NULL, 'nor given');
SELECT throws_ok(format(query, :bob), 'RF025', NULL, query)
    FROM (VALUES ('SELECT referral.referrer_update(%s, ''{}'')'),
                 ('SELECT referral.referrer_set_status(%s, ''inactive'')'),
                 ('SELECT referral.referrer_approve(%s)'),
                 ('SELECT referral.referrer_reject(%s, '''')'),
                 ('SELECT referral.referrer_contact(%s)'),
                 (format('SELECT referral.terms_accept(%s, %%s)', :foreign)),
                 (format('SELECT referral.eligibility(%s, %%s)', :foreign))
         ) v (query);
SELECT throws_ok(format('SELECT referral.referrer_import(%s, ''[]'')', :acme),
                 'RF012', NULL, 'an import into another organisation');
SELECT is((SELECT count(*) FROM referral.referrers
               WHERE organisation_id <> :beta)
          + (SELECT count(*) FROM referral.terms_acceptances), 0::bigint,
          'the views show nothing of another organisation');
SET LOCAL referral.organisation = '';
SELECT lives_ok('SELECT referral.partner_login_set(''t_partner'', NULL)',
                'taken back');
RESET ROLE;
SELECT is_empty('SELECT FROM referral.partner_login', 'and gone');

SELECT * FROM finish();

ROLLBACK;
