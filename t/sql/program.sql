-- Copyright (C) The nginx referral module authors
--
-- Programs: settings, statuses, the limit, variants, templates, cloning.

BEGIN;

SELECT no_plan();

CREATE FUNCTION pg_temp.id(slug text) RETURNS bigint LANGUAGE sql AS
    'SELECT p.id FROM referral.programs p WHERE p.slug = $1';

SELECT referral.organisation_create('acme', 'Acme', '{"currency": "MXN",
           "time_zone": "America/Mexico_City"}') AS acme \gset
SELECT referral.organisation_create('beta', 'Beta') AS beta \gset

SET LOCAL ROLE referral_app;

SELECT referral.program_create(:acme, 'plain', 'Plain') AS plain \gset

SELECT results_eq(format(
    'SELECT type, status, template, referral_validity, attribution,'
    ' attribution_window, reward_threshold, eligibility, targeting,'
    ' terms_version, terms_required, time_zone, currency, settings'
    ' FROM referral.programs WHERE id = %s', :plain),
    $$ VALUES ('standard', 'draft', false, interval '90 days', 'last',
               interval '90 days', 1, '{}'::jsonb, '{}'::jsonb, 0, false,
               'America/Mexico_City', 'MXN', '{}'::jsonb) $$,
    'defaults, and those of the organisation');

SELECT referral.program_create(:acme, 'full', 'Full', '{
    "description": "d", "type": "seasonal", "starts_at": "2026-06-01",
    "ends_at": "2026-09-01T00:00:00Z", "referral_validity": "30 days",
    "attribution": "position", "attribution_window": "7 days",
    "max_referrals_per_referrer": 10, "reward_threshold": 3,
    "eligibility": {"types": ["student", "alumni"],
                    "attributes": {"campus": "north"}},
    "targeting": {"age": [18, 30]}, "terms": "Be kind.",
    "terms_required": true, "landing_url": "https://example.com/{code}",
    "time_zone": "Europe/Berlin", "currency": "EUR",
    "code_prefix": "dev-o-", "campaign": "Summer",
    "settings": {"color": "red"}}') AS "full" \gset

SELECT results_eq(format(
    'SELECT description, type, starts_at, ends_at, referral_validity,'
    ' attribution, attribution_window, max_referrals_per_referrer,'
    ' reward_threshold, targeting, terms, terms_version, terms_required,'
    ' landing_url, time_zone, currency, code_prefix, campaign, settings,'
    ' created_by FROM referral.programs WHERE id = %s', :full),
    format($$ VALUES ('d', 'seasonal', timestamptz '2026-05-31 22:00Z',
        timestamptz '2026-09-01 00:00Z', interval '30 days', 'position',
        interval '7 days', 10, 3, '{"age": [18, 30]}'::jsonb, 'Be kind.', 1,
        true, 'https://example.com/{code}', 'Europe/Berlin', 'EUR',
        'DEV-O-' COLLATE "C", 'Summer', '{"color": "red"}'::jsonb, %L) $$,
        session_user::text),
    'every option; a day begins where the program is');
SELECT is(current_setting('TimeZone'), 'Asia/Kolkata',
          'the session''s time zone is as it was');

-- each type, each attribution, nothing else

SELECT lives_ok(format('SELECT referral.program_create(%s, %L, %L, %L)',
                       :acme, 'type-' || t, t, format('{"type": "%s"}', t)),
                'type ' || t)
    FROM unnest('{standard,specialty,seasonal,student,parent,affiliate,
                  partner,customer,professional,user}'::text[]) t;
SELECT lives_ok(format('SELECT referral.program_create(%s, %L, %L, %L)',
                       :acme, 'attribution-' || t, t,
                       format('{"attribution": "%s"}', t)),
                'attribution ' || t)
    FROM unnest('{first,last,linear,position}'::text[]) t;

SELECT throws_ok(format('SELECT referral.program_create(%s, ''x'', ''X'','
                        ' %L)', :acme, options), state, NULL, options)
    FROM (VALUES
        ('{"type": "other"}', 'RF010'),
        ('{"type": null}', 'RF010'),
        ('{"attribution": "all"}', 'RF010'),
        ('{"referral_validity": "0"}', 'RF010'),
        ('{"referral_validity": "-1 day"}', 'RF010'),
        ('{"referral_validity": "11 years"}', 'RF010'),
        ('{"referral_validity": "soon"}', 'RF010'),
        ('{"attribution_window": "0"}', 'RF010'),
        ('{"max_referrals_per_referrer": 0}', 'RF010'),
        ('{"reward_threshold": 0}', 'RF010'),
        ('{"starts_at": "2026-02-30"}', 'RF010'),
        ('{"starts_at": "infinity"}', 'RF010'),
        ('{"starts_at": "-infinity"}', 'RF010'),
        ('{"ends_at": "infinity"}', 'RF010'),
        ('{"ends_at": "epoch"}', 'RF010'),
        ('{"starts_at": "2026-06-01", "ends_at": "2026-06-01"}', 'RF010'),
        ('{"eligibility": []}', 'RF010'),
        ('{"eligibility": {"types": "student"}}', 'RF010'),
        ('{"eligibility": {"types": ["students"]}}', 'RF010'),
        ('{"eligibility": {"types": [1]}}', 'RF010'),
        ('{"eligibility": {"attributes": ["a"]}}', 'RF010'),
        ('{"targeting": "all"}', 'RF010'),
        ('{"terms_required": true}', 'RF010'),
        ('{"landing_url": "example.com"}', 'RF032'),
        ('{"landing_url": "https://a@example.com"}', 'RF032'),
        ('{"landing_url": ""}', 'RF032'),
        ('{"currency": "US"}', 'RF010'),
        ('{"time_zone": "Moon"}', 'RF015'),
        ('{"code_prefix": "a b"}', 'RF010'),
        ('{"code_prefix": ""}', 'RF010'),
        (format('{"code_prefix": "%s"}', repeat('A', 41)), 'RF010'),
        (format('{"campaign": "%s"}', repeat('ü', 65)), 'RF010'),
        ('{"campaign": ""}', 'RF010'),
        ('{"settings": 1}', 'RF010'),
        ('{"status": "active"}', 'RF011'),
        ('{"template": "nothing"}', 'RF022'),
        ('{"template": 1}', 'RF010')
    ) v (options, state);

SELECT throws_ok(format('SELECT referral.program_create(%s, ''plain'', ''X'')',
                        :acme), 'RF017',
                 'program_create(): the slug "plain" is taken', 'a slug');
SELECT lives_ok(format('SELECT referral.program_create(%s, ''plain'', ''X'')',
                       :beta), 'is one of its organisation');
SELECT throws_ok('SELECT referral.program_create(99, ''x'', ''X'')', 'RF012',
                 NULL, 'no organisation, no program');

-- changes

SELECT lives_ok(format($$ SELECT referral.program_update(%s,
    '{"name": "Simple", "slug": "simple", "terms": "One",
      "starts_at": "2026-01-01 10:00", "settings": {"b": 2}}') $$, :plain),
    'program_update()');
SELECT results_eq(format('SELECT name, slug, terms, terms_version, starts_at,'
    ' settings, type FROM referral.programs WHERE id = %s', :plain),
    $$ VALUES ('Simple', 'simple' COLLATE "C", 'One', 1,
               timestamptz '2026-01-01 16:00Z', '{"b": 2}'::jsonb,
               'standard') $$, 'changes what is named, nothing else');
SELECT referral.program_update(:plain, '{"terms": "Two"}');
SELECT referral.program_update(:plain, '{"terms": "Two", "name": "S"}');
SELECT is((SELECT terms_version FROM referral.programs WHERE id = :plain), 2,
          'the version counts changes of the terms');
SELECT referral.program_update(:plain, '{"terms": null, "starts_at": null}');
SELECT results_eq(format('SELECT terms, terms_version, starts_at'
    ' FROM referral.programs WHERE id = %s', :plain),
    $$ VALUES (NULL::text, 3, NULL::timestamptz) $$, 'null takes away');
SELECT throws_ok(format($$ SELECT referral.program_update(%s,
    '{"slug": "full"}') $$, :plain), 'RF017', NULL, 'a slug that is taken');
SELECT throws_ok(format($$ SELECT referral.program_update(%s,
    '{"type": "x"}') $$, :plain), 'RF010',
    'program_update(): "type" is not acceptable', 'a bad value');
SELECT throws_ok('SELECT referral.program_update(9999, ''{"name": "x"}'')',
                 'RF020', NULL, 'no such program');
SELECT throws_ok('SELECT referral.program_update(NULL, ''{"name": "x"}'')',
                 'RF020', NULL, 'null');

-- statuses: every pair

SELECT referral.program_create(:beta, 'walk', 'Walk') AS walk \gset
RESET ROLE;

CREATE FUNCTION pg_temp.walk(id bigint, was text, wanted text) RETURNS text
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE referral.program p SET status = was WHERE p.id = walk.id;
    PERFORM referral.program_set_status(walk.id, wanted);
    RETURN 'goes';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END
$$;

SELECT is(pg_temp.walk(:walk, was, wanted),
          CASE WHEN was = wanted
                    OR (was, wanted) IN (('draft', 'active'),
                       ('draft', 'archived'), ('active', 'paused'),
                       ('active', 'ended'), ('paused', 'active'),
                       ('paused', 'ended'), ('ended', 'active'),
                       ('ended', 'archived'))
               THEN 'goes' ELSE 'RF021' END, was || ' to ' || wanted)
    FROM unnest('{draft,active,paused,ended,archived}'::text[]) was,
         unnest('{draft,active,paused,ended,archived,x}'::text[]) wanted;
SELECT is(pg_temp.walk(:walk, 'draft', NULL), 'RF021', 'to null');

-- the limit

SELECT is((SELECT active_programs FROM referral.organisation WHERE id = :beta),
          (SELECT count(*)::int FROM referral.program
               WHERE organisation_id = :beta AND status = 'active'),
          'after all this the count of active programs is right');

SET LOCAL ROLE referral_app;
SELECT referral.program_set_status(pg_temp.id('type-' || t), 'active')
    FROM unnest('{student,parent,affiliate,partner,user}'::text[]) t;
SELECT throws_ok(format('SELECT referral.program_set_status(%s, ''active'')',
                        :full), 'RF019', 'organisation 1 (acme): 5 programs'
                 ' are active, as many as it may have', 'a sixth program');
SELECT lives_ok(format('SELECT referral.program_set_status(%s, ''active'')',
                       pg_temp.id('type-user')),
                'activating an active one is nothing');
SELECT referral.program_set_status(pg_temp.id('type-user'), 'paused');
SELECT lives_ok(format('SELECT referral.program_set_status(%s, ''active'')',
                       :full), 'when one is paused, another goes');
SELECT throws_ok(format('SELECT referral.program_set_status(%s, ''active'')',
                        pg_temp.id('type-user')), 'RF019', NULL,
                 'and the first does not come back');
SELECT throws_ok(format($$ SELECT referral.organisation_update(%s,
                     '{"max_active_programs": 4}') $$, :acme), 'RF019', NULL,
                 'the limit does not go below what is active');
SELECT lives_ok(format($$ SELECT referral.organisation_update(%s,
                     '{"max_active_programs": 6}') $$, :acme), 'but up');
SELECT lives_ok(format('SELECT referral.program_set_status(%s, ''active'')',
                       pg_temp.id('type-user')), 'and then it comes back');
RESET ROLE;

SELECT throws_ok(format($$ INSERT INTO referral.program (organisation_id,
        slug, name, status, time_zone, currency)
    VALUES (%s, 'direct', 'D', 'active', 'UTC', 'USD') $$, :acme), 'RF019',
    NULL, 'the limit holds for whoever writes the table');
DELETE FROM referral.program WHERE slug = 'type-parent';
SELECT is((SELECT active_programs FROM referral.organisation WHERE id = :acme),
          5, 'a deleted program is counted off');

-- variants

SET LOCAL ROLE referral_app;
SELECT is(referral.variant_pick(:full, 'u1'), NULL, 'no variant, none picked');
SELECT referral.program_variant_set(:full, 'a', 1, '{"bonus": 5}') AS a \gset
SELECT referral.program_variant_set(:full, 'b', 3) AS b \gset
SELECT is(referral.program_variant_set(:full, 'a', 1, '{"bonus": 6}'),
          :a::bigint, 'the same name is the same variant');
SELECT results_eq(format('SELECT name, weight, status, settings'
    ' FROM referral.program_variants WHERE program_id = %s ORDER BY id',
    :full), $$ VALUES ('a', 1, 'active', '{"bonus": 6}'::jsonb),
                      ('b', 3, 'active', '{}') $$, 'variants');
SELECT is(count(*), 0::bigint, 'the same key, the same variant')
    FROM generate_series(1, 100) n
    WHERE referral.variant_pick(:full, n::text)
          IS DISTINCT FROM referral.variant_pick(:full, n::text);
SELECT cmp_ok(abs(count(*) - 500), '<', 100::bigint,
              'a quarter of the weight, a quarter of the keys')
    FROM generate_series(1, 2000) n
    WHERE referral.variant_pick(:full, n::text) = :a;
-- pinned, so that no version of Postgres gives users other incentives
SELECT is(referral.variant_pick(:full, 'user-1') = :a,
          ('x0' || left(encode(sha256(convert_to(:full || ':user-1', 'UTF8')),
                               'hex'), 15))::bit(64)::bigint % 4 < 1,
          'by SHA-256');
SELECT referral.program_variant_set(:full, 'a', 0) \g /dev/null
SELECT is(count(*), 0::bigint, 'a weight of 0 is nobody')
    FROM generate_series(1, 100) n
    WHERE referral.variant_pick(:full, n::text) <> :b;
SELECT referral.program_variant_set(:full, 'b', 3, '{}', 'disabled')
\g /dev/null
SELECT is(referral.variant_pick(:full, 'u1'), NULL, 'nor a disabled one');
SELECT throws_ok(format('SELECT referral.program_variant_set(%s, ''c'', -1)',
                        :full), 'RF010', NULL, 'a negative weight');
SELECT throws_ok(format('SELECT referral.program_variant_set(%s, '''')',
                        :full), 'RF010', NULL, 'an empty name');
SELECT throws_ok('SELECT referral.program_variant_set(9999, ''c'')', 'RF020',
                 NULL, 'no such program');

-- templates and cloning

SELECT is(count(*), 0::bigint, 'every template makes a program')
    FROM referral.program_templates() t
    WHERE referral.program_create(:beta, 'of-' || t.name, t.title,
              jsonb_build_object('template', t.name)) IS NULL;
SELECT cmp_ok(count(*), '>=', 5::bigint, 'there are some')
    FROM referral.program_templates() t
    WHERE t.name <> '' AND t.title <> '' AND t.advice <> '';
SELECT is_empty($$ SELECT p.slug FROM referral.programs p
                       WHERE p.slug LIKE 'of-%'
                             AND NOT EXISTS (SELECT FROM referral.reward_rules r
                                                 WHERE r.program_id = p.id) $$,
                'each has reward rules');
SELECT results_eq($$ SELECT r.version, r.tiers -> 2
                         FROM referral.reward_rules r
                              JOIN referral.programs p ON p.id = r.program_id
                         WHERE p.slug = 'of-student' AND r.kind = 'cash' $$,
                  $$ VALUES (1, '{"from": 10, "rate_bp": 1000}'::jsonb) $$,
                  'those of the template');
SELECT results_eq($$ SELECT type, eligibility FROM referral.programs
                         WHERE slug = 'of-student' $$,
                  $$ VALUES ('student',
                      '{"types": ["student", "alumni"]}'::jsonb) $$,
                  'with its settings');
SELECT referral.program_create(:beta, 'mine', 'Mine',
    '{"template": "student", "type": "parent", "reward_threshold": 2}')
\g /dev/null
SELECT results_eq($$ SELECT type, reward_threshold FROM referral.programs
                         WHERE slug = 'mine' $$,
                  $$ VALUES ('parent', 2) $$, 'options go before them');

SELECT referral.program_clone(:full, 'own-template',
    '{"template": true, "reward_threshold": 4}') AS own \gset
SELECT results_eq(format('SELECT name, status, template, cloned_from,'
    ' starts_at, ends_at, type, reward_threshold, targeting, terms,'
    ' terms_version, terms_required, landing_url, time_zone, currency,'
    ' code_prefix, campaign, settings, referral_validity, attribution'
    ' FROM referral.programs WHERE id = %s', :own),
    format($$ VALUES ('Full', 'draft', true, %s::bigint, NULL::timestamptz,
        NULL::timestamptz, 'seasonal', 4, '{"age": [18, 30]}'::jsonb,
        'Be kind.', 1, true, 'https://example.com/{code}', 'Europe/Berlin',
        'EUR', 'DEV-O-' COLLATE "C", 'Summer', '{"color": "red"}'::jsonb,
        interval '30 days', 'position') $$, :full),
    'a clone is a draft without dates');
SELECT results_eq(format('SELECT name, weight, status, settings'
    ' FROM referral.program_variants WHERE program_id = %s ORDER BY id',
    :own), format('SELECT name, weight, status, settings'
    ' FROM referral.program_variants WHERE program_id = %s ORDER BY id',
    :full), 'with the variants');
SELECT throws_ok(format('SELECT referral.program_set_status(%s, ''active'')',
                        :own), 'RF023', NULL, 'a template is not activated');
SELECT throws_ok(format('SELECT referral.code_create(%s)', :own), 'RF023',
                 NULL, 'and has no codes');
SELECT referral.program_create(:acme, 'from-own', 'From own',
    '{"template": "own-template"}') AS from_own \gset
SELECT results_eq(format('SELECT name, template, cloned_from, type'
    ' FROM referral.programs WHERE id = %s', :from_own),
    format($$ VALUES ('From own', false, %s::bigint, 'seasonal') $$, :own),
    'an own template by its slug');
SELECT throws_ok(format($$ SELECT referral.program_create(%s, 'x', 'X',
                         '{"template": "own-template"}') $$, :beta), 'RF022',
                 NULL, 'is none of another organisation');
SELECT throws_ok(format('SELECT referral.program_clone(%s, ''full'')', :full),
                 'RF017', NULL, 'a clone needs a slug of its own');

-- reward rules are cloned by the function of a later file

RESET ROLE;
SET LOCAL client_min_messages = warning;
DROP FUNCTION IF EXISTS referral.reward_rules_clone(bigint, bigint);
CREATE FUNCTION referral.reward_rules_clone(from_ bigint, to_ bigint)
    RETURNS void LANGUAGE sql
    SET search_path = pg_catalog, pg_temp
AS $$ SELECT set_config('t.cloned', from_ || ' ' || to_, true) $$;
SET LOCAL ROLE referral_app;
SELECT referral.program_clone(:full, 'ruled') AS ruled \gset
SELECT is(current_setting('t.cloned'), :full || ' ' || :ruled,
          'with the program');

-- what is disabled, what is out of the scope

SELECT referral.organisation_set_status(:beta, 'disabled');
SELECT throws_ok(format('SELECT referral.program_create(%s, ''x'', ''X'')',
                        :beta), 'RF016', NULL,
                 'nothing new in a disabled organisation');
SET LOCAL referral.organisation = :beta;
SELECT throws_ok(format(query, :full), 'RF020', NULL, query)
    FROM (VALUES ('SELECT referral.program_update(%s, ''{}'')'),
                 ('SELECT referral.program_set_status(%s, ''paused'')'),
                 ('SELECT referral.program_clone(%s, ''x'')'),
                 ('SELECT referral.program_variant_set(%s, ''x'')')
         ) v (query);
SELECT is((SELECT count(*) FROM referral.programs
               WHERE organisation_id <> :beta)
          + (SELECT count(*) FROM referral.program_variants v
                 WHERE v.program_id = :full), 0::bigint,
          'the views show nothing of another organisation');
RESET ROLE;

SELECT * FROM finish();

ROLLBACK;
