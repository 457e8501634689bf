-- Copyright (C) The nginx referral module authors
--
-- Export and erasure.

BEGIN;

SELECT no_plan();

CREATE FUNCTION pg_temp.id(key text) RETURNS bigint LANGUAGE sql
    AS $$ SELECT current_setting('t.' || key)::bigint $$;
CREATE FUNCTION pg_temp.keep(key text, id bigint) RETURNS bigint LANGUAGE sql
    AS $$ SELECT set_config('t.' || key, id::text, true)::bigint $$;

CREATE FUNCTION pg_temp.click(code text, visitor uuid) RETURNS uuid
    LANGUAGE plpgsql AS $$
DECLARE
    made  uuid := (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12,
                        '0') || '7' || substr(gen_random_uuid()::text, 16))::uuid;
BEGIN
    INSERT INTO referral.interaction (id, occurred_at, stream, seq, type,
                                      verdict, via, code, program_id, visitor,
                                      visitor_hash, ip, user_agent, args,
                                      metadata)
        SELECT made, referral.uuid_time(made), 1, 1, 'click', 'valid', 'redirect',
               c.code, c.program_id, click.visitor, '\x0102', '198.51.100.7',
               'Secretbrowser/1', '{"utm_term": "secret-term"}',
               '{"referer": "https://secret.example/", "campaign": "spring"}'
            FROM referral.code c WHERE c.code = click.code;
    RETURN made;
END $$;

-- every value of the schema's tables as text: whether the person is in there

CREATE FUNCTION pg_temp.holds(needle text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    name   text;
    n      bigint;
    found  text[] := '{}';
BEGIN
    FOR name IN
        SELECT c.relname FROM pg_class c
            WHERE c.relnamespace = 'referral'::regnamespace
                  AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            ORDER BY 1
    LOOP
        EXECUTE format('SELECT count(*) FROM referral.%I t'
                       ' WHERE position(lower($1) IN lower(t::text)) > 0',
                       name)
            INTO n USING needle;
        IF n > 0 THEN
            found := found || name;
        END IF;
    END LOOP;
    RETURN array_to_string(found, ' ');
END $$;

SELECT pg_temp.keep('o', referral.organisation_create('o', 'O')) \g /dev/null
SELECT pg_temp.keep('p', referral.program_create(pg_temp.id('o'), 'p', 'P',
           '{"landing_url": "https://example.com/"}')) \g /dev/null
SELECT referral.program_set_status(pg_temp.id('p'), 'active') \g /dev/null
SELECT referral.reward_rules_set(pg_temp.id('p'),
           '[{"slot": "share", "kind": "cash", "rate_bp": 1000},'
           ' {"slot": "welcome", "beneficiary": "referee", "kind": "credit",'
           '  "unit": "USD", "amount": 500}]') \g /dev/null
SELECT pg_temp.keep('anna', referral.referrer_create(pg_temp.id('o'),
           'customer', '{"external_id": "u-zanna", "notes": "Zanna is nice"}',
           '{"first_name": "Zanna", "email": "zanna@example.com",'
           ' "phone": "+49 30 7654321", "address": {"city": "Zannastadt"}}'))
    \g /dev/null
SELECT pg_temp.keep('ben', referral.referrer_create(pg_temp.id('o'),
           'customer', '{"external_id": "ben"}',
           '{"first_name": "Ben", "email": "ben@example.com"}')) \g /dev/null
SELECT referral.code_create(pg_temp.id('p'), pg_temp.id('anna'), 'CODE-A'),
       referral.code_create(pg_temp.id('p'), pg_temp.id('ben'), 'CODE-B')
    \g /dev/null

-- Ben refers Xaver, who converts; Anna refers Yvo

SELECT set_config('t.click', pg_temp.click('CODE-B',
           '11111111-1111-4111-8111-111111111111')::text, true) \g /dev/null
SELECT pg_temp.keep('xaver', referral.referral_create(pg_temp.id('p'),
           jsonb_build_object('click_id', current_setting('t.click'),
                              'external_id', 'u-xaver',
                              'message', 'Dear Xaver', 'notes', 'Xaver called'),
           '{"name": "Xaver Xylander", "email": "xaver@example.com",'
           ' "phone": "+49 40 1234567"}')) \g /dev/null
SELECT pg_temp.keep('yvo', referral.referral_create(pg_temp.id('p'),
           '{"code": "CODE-A", "external_id": "u-yvo",'
           ' "message": "Dear Yvo, yours Zanna"}',
           '{"name": "Yvo Ypsilon", "email": "yvo@example.com"}'))
    \g /dev/null
SELECT referral.conversion_record(pg_temp.id('o'), jsonb_build_object(
           'program_id', pg_temp.id('p'), 'external_id', 'u-xaver',
           'order_ref', 'X1', 'amount', 10000, 'currency', 'USD')),
       referral.conversion_record(pg_temp.id('o'), jsonb_build_object(
           'program_id', pg_temp.id('p'), 'external_id', 'u-yvo',
           'order_ref', 'Y1', 'amount', 5000, 'currency', 'USD'))
    \g /dev/null

SELECT set_config('t.sum', (SELECT sum(amount * (transfer_id % 97))
                                FROM referral.entry)::text, true) \g /dev/null
SELECT isnt(pg_temp.holds('xaver'), '', 'Xaver is there: '
                                        || pg_temp.holds('xaver'));

-- export: the referee finds what is about him, and nobody else

CREATE TEMP TABLE export AS
    SELECT referral.customer_export(pg_temp.id('o'), NULL,
               '{"email": "Xaver@Example.com"}', 'asked') AS data;
SELECT is(data #>> '{person,0,name}', 'Xaver Xylander', 'his name')
    FROM export;
SELECT is(jsonb_array_length(data -> 'referral') || ' '
          || jsonb_array_length(data -> 'conversion') || ' '
          || jsonb_array_length(data -> 'reward') || ' '
          || jsonb_array_length(data -> 'interaction'), '1 1 1 1',
          'his referral, conversion, reward and click')
    FROM export;
SELECT ok(data::text NOT ILIKE '%ypsilon%' AND data::text NOT ILIKE '%zanna%'
          AND data::text NOT ILIKE '%ben@%', 'and of nobody else')
    FROM export;

SELECT ok(x::text ILIKE '%zannastadt%' AND x::text ILIKE '%CODE-A%'
          AND x::text NOT ILIKE '%ypsilon%' AND x::text NOT ILIKE '%u-yvo%',
          'a referrer: contact and codes, not whom she referred')
    FROM referral.customer_export(pg_temp.id('o'), 'u-zanna') x;

SELECT is((SELECT count(*) FROM referral.audit WHERE action = 'export'),
          2::bigint, 'the audit has both exports');

-- erasure

SELECT throws_ok(
    $$ SELECT referral.customer_erase(pg_temp.id('o'), 'u-xaver', NULL, ' ') $$,
    'RF126', NULL, 'not without a reason');
SELECT throws_ok(
    $$ SELECT referral.customer_erase(pg_temp.id('o'), NULL, '{}', 'x') $$,
    'RF125', NULL, 'nor without anybody');
SELECT throws_ok($$ SELECT referral.person_erase(0, 'x') $$, 'RF124', NULL,
                 'nor somebody who is not there');

SELECT is(referral.customer_erase(pg_temp.id('o'), 'u-xaver', NULL, 'asked')
              - '{referee_identity,event,professional_partner,'
                 'professional_referral}'::text[],
          '{"person": 1, "code": 0, "referrer": 0, "referral": 1,'
          ' "interaction": 1}'::jsonb, 'Xaver is erased');
SELECT is(pg_temp.holds('xaver'), '', 'no table names him');
SELECT is(pg_temp.holds('xylander'), '', 'nor his surname');
SELECT is(pg_temp.holds('4940123'), '', 'nor his phone');
SELECT is(pg_temp.holds('1234567'), '', 'however it is written');
SELECT is(pg_temp.holds('secret'), '', 'nor what his click had');
SELECT is((SELECT metadata ->> 'campaign' FROM referral.interaction
               WHERE id = current_setting('t.click')::uuid), 'spring',
          'what names nobody stays');
SELECT is((SELECT count(*) FROM referral.referral_find(pg_temp.id('o'), NULL,
               '{"email": "xaver@example.com"}')), 0::bigint,
          'he is not recognised any more');
SELECT is((SELECT sum(amount * (transfer_id % 97)) FROM referral.entry)::text,
          current_setting('t.sum'), 'the ledger is as it was');
SELECT is_empty($$ SELECT * FROM referral.ledger_check() $$, 'and adds up');

SELECT is(referral.customer_erase(pg_temp.id('o'), 'u-zanna', NULL, 'asked')
              - '{referee_identity,event,professional_partner,'
                 'professional_referral}'::text[],
          '{"person": 1, "code": 1, "referrer": 1, "referral": 1,'
          ' "interaction": 0}'::jsonb, 'a referrer is erased');
SELECT is(pg_temp.holds('zanna'), '', 'no table names her');
SELECT is((SELECT state FROM referral.code_published WHERE code = 'CODE-A'),
          'inactive', 'her code is off');
SELECT isnt(pg_temp.holds('yvo'), '', 'whom she referred is not erased');
SELECT is_empty($$ SELECT * FROM referral.ledger_check() $$,
                'the ledger adds up');

-- Two named Wanda by her address, one of them without her id; Will, who has an
-- id of his own, has the same phone

SELECT pg_temp.keep('q', referral.program_create(pg_temp.id('o'), 'q', 'Q',
           '{"landing_url": "https://example.com/"}')) \g /dev/null
SELECT referral.program_set_status(pg_temp.id('q'), 'active'),
       referral.code_create(pg_temp.id('p'), NULL, 'CODE-C'),
       referral.code_create(pg_temp.id('q'), NULL, 'CODE-D') \g /dev/null
SELECT pg_temp.keep('wanda', referral.referral_create(pg_temp.id('p'),
           '{"code": "CODE-B", "external_id": "u-wanda"}',
           '{"name": "Wanda", "email": "wanda@example.com",
             "phone": "+49 30 5550001"}')) \g /dev/null
SELECT referral.referral_create(pg_temp.id('p'),
           '{"code": "CODE-C", "message": "Dear Wanda"}',
           '{"name": "Wanda W.", "email": "Wanda@Example.com"}'),
       referral.referral_create(pg_temp.id('q'),
           '{"code": "CODE-D", "external_id": "u-will"}',
           '{"name": "Will Weiss", "phone": "+49 30 5550001"}') \g /dev/null
SELECT referral.person_erase((SELECT person_id FROM referral.referral
                                  WHERE id = pg_temp.id('wanda')), 'asked')
    \g /dev/null
SELECT is(pg_temp.holds('wanda'), '', 'whoever named her, she is erased');
SELECT is(pg_temp.holds('weiss'), 'person', 'somebody else is not');

-- professionals, and whom they were sent

SELECT pg_temp.keep('vet', referral.professional_partner_ensure(
           pg_temp.id('o'), 'Dr. Yvonne Yves', '{"external_id": "yves-1"}',
           '{"email": "yves@example.com"}')),
       pg_temp.keep('doctor', referral.professional_partner_ensure(
           pg_temp.id('o'), 'Dr. Zorn')) \g /dev/null
SELECT referral.professional_referral_record(pg_temp.id('vet'), 'sent',
           '{"subject": "u-quentin", "notes": "Quentin limps",
             "idempotency_key": "quentin/1"}'),
       referral.professional_referral_record(pg_temp.id('doctor'), 'sent',
           '{"subject": "u-quirin"}') \g /dev/null
SELECT referral.referral_create(pg_temp.id('p'),
           '{"code": "CODE-B", "external_id": "u-quentin",
             "idempotency_key": "invite quentin"}') \g /dev/null
SELECT is((SELECT jsonb_array_length(x -> 'professional_referral')
               FROM referral.customer_export(pg_temp.id('o'), 'u-quentin') x),
          1, 'a client of professionals is told of it');
SELECT is((SELECT x -> 'professional_partner' -> 0 ->> 'name'
               FROM referral.customer_export(pg_temp.id('o'), NULL,
                        '{"email": "Yves@example.com"}') x),
          'Dr. Yvonne Yves', 'and a professional');
SELECT referral.customer_erase(pg_temp.id('o'), 'u-quentin', NULL, 'asked'),
       referral.customer_erase(pg_temp.id('o'), NULL,
           '{"email": "yves@example.com"}', 'asked') \g /dev/null
SELECT is(pg_temp.holds('quentin') || pg_temp.holds('yves')
          || pg_temp.holds('yvonne'), '', 'both are erased');
SELECT is(pg_temp.holds('quirin') || ' ' || pg_temp.holds('zorn'),
          'professional_referral professional_partner', 'others are not');

-- visitors

SELECT pg_temp.click('CODE-B', '22222222-2222-4222-8222-222222222222'),
       pg_temp.click('CODE-B', '22222222-2222-4222-8222-222222222222')
    \g /dev/null
SELECT is(jsonb_array_length(referral.visitor_export(
              '22222222-2222-4222-8222-222222222222')), 2, 'a visitor');
SELECT set_config('referral.organisation', (SELECT
           referral.organisation_create('other', 'Other'))::text, true)
    \g /dev/null
SELECT is(jsonb_array_length(referral.visitor_export(
              '22222222-2222-4222-8222-222222222222')), 0,
          'another organisation sees none of it');
SELECT throws_ok($$ SELECT referral.customer_export(pg_temp.id('o'), 'ben') $$,
                 NULL, NULL, 'nor of customers');
SELECT set_config('referral.organisation', '', true) \g /dev/null
SELECT is(referral.visitor_erase('22222222-2222-4222-8222-222222222222',
                                 'asked'), 2::bigint, 'and is erased');
SELECT is(pg_temp.holds('22222222-2222'), '', 'everywhere');
SELECT is(pg_temp.holds('secret'), '', 'with what came along');

SELECT * FROM finish();
ROLLBACK;
