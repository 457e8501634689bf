-- Copyright (C) The nginx referral module authors
--
-- Every function of applications and partners, called: with what is right;
-- with null for each argument in turn, which is an error with a name or has a
-- meaning; with values of no use; and with what is of another organisation,
-- which is neither found nor touched.  So are views.  A function that a later
-- migration adds is missing in the list below until somebody has thought
-- about it.

BEGIN;

SELECT no_plan();

CREATE FUNCTION pg_temp.id(key text) RETURNS bigint LANGUAGE sql
    AS $$ SELECT current_setting('t.' || key)::bigint $$;
CREATE FUNCTION pg_temp.keep(key text, id bigint) RETURNS bigint LANGUAGE sql
    AS $$ SELECT set_config('t.' || key, id::text, true)::bigint $$;

-- an organisation with some of everything, and one with nothing

SELECT pg_temp.keep('o', referral.organisation_create('full', 'Full')),
       pg_temp.keep('empty', referral.organisation_create('empty', 'Empty'))
    \g /dev/null
SELECT pg_temp.keep('p', referral.program_create(pg_temp.id('o'), 'p', 'P',
           '{"landing_url": "https://example.com/", "terms": "Be kind."}'))
    \g /dev/null
SELECT pg_temp.keep('v', referral.program_variant_set(pg_temp.id('p'), 'a')),
       referral.reward_rules_set(pg_temp.id('p'), '[
           {"kind": "cash", "rate_bp": 1000, "times": null},
           {"slot": "more", "kind": "cash", "amount": 100,
            "approval": "manual"},
           {"slot": "used", "kind": "credit", "amount": 300,
            "times": null, "valid_for": "30 days"},
           {"slot": "welcome", "beneficiary": "referee", "kind": "credit",
            "amount": 500, "trigger": "registration"}]'),
       referral.program_set_status(pg_temp.id('p'), 'active') \g /dev/null
SELECT pg_temp.keep(name, referral.referrer_create(pg_temp.id('o'),
           'customer', jsonb_build_object('external_id', name),
           jsonb_build_object('email', name || '@example.com')))
    FROM unnest('{ann,bob}'::text[]) name \g /dev/null
SELECT pg_temp.keep('cid', referral.referrer_apply(pg_temp.id('o'),
           'customer', '{"external_id": "cid"}')) \g /dev/null
SELECT pg_temp.keep('code', (referral.code_create(pg_temp.id('p'),
           pg_temp.id('ann'), 'ANN-CODE')).id),
       referral.ensure_code(pg_temp.id('p'), 'bob'),
       referral.terms_accept(pg_temp.id('p'), pg_temp.id('ann')) \g /dev/null
SELECT pg_temp.keep('person', r.person_id)
    FROM referral.referrer r WHERE r.id = pg_temp.id('ann') \g /dev/null
SELECT referral.referral_register(pg_temp.id('p'), '{"code": "ANN-CODE",
           "external_id": "xaver"}', '{"email": "xaver@example.com"}'),
       referral.conversion_record(pg_temp.id('o'), '{"order_ref": "one",
           "external_id": "xaver", "amount": 50000}'),
       referral.conversion_record(pg_temp.id('o'), '{"order_ref": "two",
           "external_id": "xaver", "amount": 70000}') \g /dev/null
SELECT referral.refund_record(pg_temp.id('o'), '{"order_ref": "one",
           "refund_ref": "some", "amount": 100}') \g /dev/null
SELECT pg_temp.keep('reward', w.id), pg_temp.keep('won', w.referral_id)
    FROM referral.reward w WHERE w.slot = 'more' \g /dev/null
SELECT pg_temp.keep('asked', referral.payout_request(pg_temp.id('ann'),
           '{"amount": 1000}')),
       pg_temp.keep('due', referral.payout_request(pg_temp.id('ann'),
           '{"amount": 1200}')) \g /dev/null
SELECT referral.payout_approve(pg_temp.id('due')),
       referral.payout_policy_set(pg_temp.id('o'), 'USD', '{"minimum": 1}')
    \g /dev/null
SELECT referral.redeem(pg_temp.id('o'), 'shop-1', '{"external_id": "xaver",
           "amount": 100}') \g /dev/null
SELECT pg_temp.keep('redemption', r.id) FROM referral.redemption r
    \g /dev/null
SELECT pg_temp.keep('lead', referral.referral_create(pg_temp.id('p'),
           jsonb_build_object('referrer_id', pg_temp.id('ann')),
           '{"email": "lead@example.com"}')),
       pg_temp.keep('rival', referral.referral_create(pg_temp.id('p'),
           jsonb_build_object('referrer_id', pg_temp.id('bob')),
           '{"email": "lead@example.com"}')),
       pg_temp.keep('partner', referral.professional_partner_ensure(
           pg_temp.id('o'), 'Dr. Vet')) \g /dev/null
SELECT pg_temp.keep('sent', referral.professional_referral_record(
           pg_temp.id('partner'), 'sent')),
       referral.program_cost_record(pg_temp.id('p'), current_date, 100, 'ads')
    \g /dev/null
SELECT pg_temp.keep('hook', w.id)
    FROM referral.webhook_add(pg_temp.id('o'), 'https://example.com/') w
    \g /dev/null
SELECT set_config('t.event', referral.emit(pg_temp.id('o'), 'reward.earned',
           'referral:1', '{}')::text, true) \g /dev/null
SELECT pg_temp.keep('delivery', d.id) FROM referral.webhook_delivery d
    \g /dev/null
UPDATE referral.webhook_delivery SET status = 'dead', finished_at = now();
SELECT pg_temp.keep('request', referral.publish_request()) \g /dev/null

-- a click and what is counted

SELECT referral.partition_ensure((now() AT TIME ZONE 'UTC')::date)
    \g /dev/null
INSERT INTO referral.interaction (id, occurred_at, stream, seq, type, verdict,
                                  via, code, program_id, referrer_id, visitor)
    SELECT c.id, referral.uuid_time(c.id), 1, 1, 'click', 'valid', 'redirect',
           'ANN-CODE', pg_temp.id('p'), pg_temp.id('ann'),
           '11111111-1111-4111-8111-111111111111'
        FROM (SELECT (lpad(to_hex((extract(epoch FROM now())
                                   * 1000)::bigint), 12, '0')
                      || '7' || substr(gen_random_uuid()::text, 16))::uuid
                         AS id) c;
INSERT INTO referral.counter_delta (program_id, referrer_id, code, day, type,
                                    verdict, kind, n)
    VALUES (pg_temp.id('p'), pg_temp.id('ann'), 'ANN-CODE', current_date,
            'click', 'valid', 'person', 1);
SELECT * FROM referral.rollup_refresh('1 minute', '0') \g /dev/null

CREATE ROLE t_partner LOGIN IN ROLE referral_partner;


-- Calls that do what they should: the arguments, with | between them; those
-- for which null has a meaning (a default, all, none); shared: nothing in it
-- is an organisation's, or it is the partner's own.

CREATE TEMP TABLE call (name text PRIMARY KEY, args text NOT NULL,
                        nulls text[] NOT NULL,
                        shared boolean NOT NULL DEFAULT false,
                        role text NOT NULL GENERATED ALWAYS AS
                            (CASE WHEN name LIKE 'my\_%'
                             THEN 'referral_partner'
                             ELSE 'referral_app' END) STORED);
GRANT SELECT ON call TO PUBLIC;

INSERT INTO call (shared, name, args, nulls)
    SELECT true, name, args, nulls::text[] FROM (VALUES
    ('actor', $$$$, '{}'),
    ('code_fold', $$'a'$$, '{code}'),
    ('current_referrer', $$$$, '{}'),
    ('destination_problem', $$'https://example.com/'$$, '{url}'),
    ('money_text', $$1 | 'USD'$$, '{amount,unit}'),
    ('my_contact', $$$$, '{}'),
    ('my_page', $$current_date | current_date$$, '{from_day,until_day}'),
    ('my_payout_cancel', $$id('asked')$$, '{}'),
    ('my_payout_request', $$'{"amount": 100}'$$, '{options}'),
    ('my_statement', $$current_date | current_date$$, '{}'),
    ('organisation_create', $$'new' | 'New' | '{}'$$, '{options}'),
    ('organisation_scope', $$$$, '{}'),
    ('program_templates', $$$$, '{}'),
    ('publish_answers', $$id('request')$$, '{}'),
    ('publish_request', $$false$$, '{whole}'),
    ('rate_of', $$1 | 1$$, '{amount,rate_bp}'),
    ('referrer_types', $$$$, '{}'),
    ('round_money', $$1.5$$, '{amount}'),
    ('split_money', $$10 | '{1,2}'$$, '{amount,weights}'),
    ('uuid_time', $$gen_random_uuid()$$, '{id}'),
    ('verify_token', $$'v1.x' | '1 day'$$, '{token,max_age}'))
        c (name, args, nulls);

INSERT INTO call (name, args, nulls)
    SELECT name, args, nulls::text[] FROM (VALUES
    ('attribute', $$id('p') | '{"code": "ANN-CODE"}' | 'last'$$,
     '{program_id,options,model}'),
    ('attribution_override', $$id('rival') | 'why'$$, '{reason}'),
    ('breakdown',
     $$id('p') | 'source' | current_date | current_date | 10$$,
     '{from_day,until_day,max_rows}'),
    ('bulk', $$'referral_accept' | ARRAY[id('lead')] | 'why'$$, '{reason}'),
    ('code_create',
     $$id('p') | id('ann') | 'NEW' | '{}'$$, '{referrer_id,code,options}'),
    ('code_find', $$'ann-code'$$, '{code}'),
    ('code_import', $$id('p') | '[{"code": "MORE"}]'$$, '{}'),
    ('code_set_status', $$id('code') | 'disabled'$$, '{}'),
    ('code_update', $$id('code') | '{"max_uses": 9}'$$, '{changes}'),
    ('cohorts',
     $$id('p') | current_date | current_date | 'month'$$,
     '{from_day,until_day}'),
    ('conversion_record',
     $$id('o') |
       '{"order_ref": "three", "external_id": "xaver", "amount": 1}'$$, '{}'),
    ('customer_erase',
     $$id('o') | 'xaver' | '{"email": "xaver@example.com"}' | 'asked'$$,
     '{external_id,contact}'),
    ('customer_export',
     $$id('o') | 'xaver' | '{"email": "xaver@example.com"}' | 'asked'$$,
     '{external_id,contact,reason}'),
    ('eligibility', $$id('p') | id('ann')$$, '{}'),
    ('ensure_code', $$id('p') | 'dan' | '{}'$$, '{options}'),
    ('funnel',
     $$id('p') | current_date | current_date$$, '{from_day,until_day}'),
    ('leaderboard',
     $$id('p') | 'converted' | current_date | current_date | 10$$,
     '{from_day,until_day,max_rows}'),
    ('ledger_check', $$$$, '{}'),
    ('lifetime_value', $$id('p') | id('ann')$$, '{referrer_id}'),
    ('organisation_check', $$id('o')$$, '{}'),
    ('organisation_set_status', $$id('o') | 'disabled'$$, '{}'),
    ('organisation_update', $$id('o') | '{"name": "F"}'$$, '{changes}'),
    ('partner_login_set', $$'t_partner' | id('ann')$$, '{referrer_id}'),
    ('partner_page',
     $$id('ann') | current_date | current_date$$, '{from_day,until_day}'),
    ('payout_accuracy',
     $$id('p') | current_date | current_date$$, '{from_day,until_day}'),
    ('payout_approve', $$id('asked')$$, '{}'),
    ('payout_cancel', $$id('asked') | 'why'$$, '{reason}'),
    ('payout_pay', $$id('due') | 'ref' | 'cash'$$, '{reference,method}'),
    ('payout_policy_set',
     $$id('o') | 'USD' | '{"minimum": 5}'$$, '{options}'),
    ('payout_reject', $$id('asked') | 'why'$$, '{reason}'),
    ('payout_request', $$id('ann') | '{"amount": 100}'$$, '{options}'),
    ('payout_scheduled', $$now() | 10$$, '{at,slice}'),
    ('person_erase', $$id('person') | 'asked'$$, '{}'),
    ('person_export', $$id('person') | 'asked'$$, '{reason}'),
    ('professional_partner_ensure',
     $$id('o') | 'Dr. Dog' | '{}' | '{}'$$, '{options,contact}'),
    ('professional_referral_record',
     $$id('partner') | 'sent' | '{}'$$, '{options}'),
    ('professional_referral_set_status', $$id('sent') | 'accepted'$$, '{}'),
    ('program_clone', $$id('p') | 'copy' | '{}'$$, '{options}'),
    ('program_cost_record', $$id('p') | current_date | 5 | 'tv'$$, '{}'),
    ('program_create', $$id('o') | 'q' | 'Q' | '{}'$$, '{options}'),
    ('program_dashboard',
     $$id('p') | current_date | current_date$$, '{from_day,until_day}'),
    ('program_figures',
     $$id('p') | current_date | current_date$$, '{from_day,until_day}'),
    ('program_set_status', $$id('p') | 'paused'$$, '{}'),
    ('program_update', $$id('p') | '{"name": "R"}'$$, '{changes}'),
    ('program_variant_set', $$id('p') | 'b' | 1 | '{}' | 'active'$$, '{}'),
    ('quality_score', $$id('p') | id('ann')$$, '{referrer_id}'),
    ('redeem', $$id('o') | 'shop-2' | '{"external_id": "xaver"}'$$, '{}'),
    ('redemption_reverse', $$id('redemption') | 'why'$$, '{reason}'),
    ('referral_accept', $$id('lead') | 'why'$$, '{reason}'),
    ('referral_cancel', $$id('lead') | 'why'$$, '{reason}'),
    ('referral_contact', $$id('lead')$$, '{}'),
    ('referral_create',
     $$id('p') | '{"code": "ANN-CODE"}' | '{"email": "new@example.com"}'$$,
     '{program_id,contact}'),
    ('referral_decline', $$id('lead') | 'why'$$, '{reason}'),
    ('referral_expire', $$now() + interval '10 years' | 10$$, '{at,slice}'),
    ('referral_find',
     $$id('o') | 'xaver' | '{"email": "xaver@example.com"}'$$,
     '{external_id,contact}'),
    ('referral_register',
     $$id('p') | '{"code": "ANN-CODE", "external_id": "yvo"}' |
       '{"email": "yvo@example.com"}'$$, '{program_id,contact}'),
    ('referral_reject', $$id('lead') | 'why'$$, '{reason}'),
    ('referral_set_status', $$id('lead') | 'accepted' | 'why'$$, '{reason}'),
    ('referral_update', $$id('lead') | '{"notes": "n"}'$$, '{changes}'),
    ('referrer_apply',
     $$id('o') | 'customer' | '{}' | '{}'$$, '{options,contact}'),
    ('referrer_approve', $$id('cid') | '{}'$$, '{options}'),
    ('referrer_contact', $$id('ann') | 'why'$$, '{reason}'),
    ('referrer_create',
     $$id('o') | 'customer' | '{}' | '{}'$$, '{options,contact}'),
    ('referrer_import', $$id('o') | '[{"external_id": "imp"}]'$$, '{}'),
    ('referrer_reject', $$id('cid') | 'why'$$, '{reason}'),
    ('referrer_retention',
     $$id('p') | current_date | current_date | 'month'$$,
     '{from_day,until_day}'),
    ('referrer_set_status', $$id('ann') | 'inactive'$$, '{}'),
    ('referrer_update',
     $$id('ann') | '{"notes": "n"}' | '{}'$$, '{changes,contact}'),
    ('refund_record',
     $$id('o') | '{"order_ref": "one", "refund_ref": "r", "amount": 100}'$$,
     '{}'),
    ('reward_approve', $$id('reward') | 'why'$$, '{reason}'),
    ('reward_cancel', $$id('reward') | 'why'$$, '{reason}'),
    ('reward_expire', $$now() + interval '10 years' | 10$$, '{at,slice}'),
    ('reward_expiring', $$now() + interval '10 years' | 10$$, '{at,slice}'),
    ('reward_hold', $$id('reward') | 'why'$$, '{reason}'),
    ('reward_outcomes',
     $$id('p') | current_date | current_date$$, '{from_day,until_day}'),
    ('reward_reject', $$id('reward') | 'why'$$, '{reason}'),
    ('reward_release', $$now() + interval '10 years' | 10$$, '{at,slice}'),
    ('reward_rules_set', $$id('p') | '[]' | '{}'$$, '{options}'),
    ('reward_transfer',
     $$id('ann') | id('bob') | '{"idempotency_key": "k", "amount": 10}' |
       'why'$$,
     '{options,reason}'),
    ('rollup_again', $$current_date | id('p')$$, '{only_program}'),
    ('seed_telehealth_state', $$id('won') | 'referrer'$$,
     '{of_referral,whose}'),
    ('share_record', $$'ANN-CODE' | '{}'$$, '{options}'),
    ('statement', $$id('ann') | current_date | current_date$$, '{}'),
    ('terms_accept', $$id('p') | id('bob')$$, '{}'),
    ('time_to_conversion',
     $$id('p') | current_date | current_date$$, '{from_day,until_day}'),
    ('trend',
     $$id('p') | current_date | current_date | 'day'$$,
     '{from_day,until_day}'),
    ('variant_pick', $$id('p') | 'key'$$, '{key}'),
    ('visitor_erase',
     $$'11111111-1111-4111-8111-111111111111' | 'asked' |
       now() - interval '1 day'$$, '{since}'),
    ('visitor_export',
     $$'11111111-1111-4111-8111-111111111111' | now() - interval '1 day'$$,
     '{since}'),
    ('webhook_add',
     $$id('o') | 'https://example.org/' | '{*}' | '{}'$$, '{options}'),
    ('webhook_disable', $$id('hook') | 'why'$$, '{reason}'),
    ('webhook_enable', $$id('hook')$$, '{}'),
    ('webhook_redeliver', $$id('delivery')$$, '{}'),
    ('webhook_redeliver_dead', $$id('hook') | '-infinity'$$, '{since}'),
    ('webhook_redeliver_event',
     $$current_setting('t.event')::uuid | id('hook')$$, '{webhook_id}'),
    ('webhook_remove', $$id('hook')$$, '{}'),
    ('webhook_rotate', $$id('hook') | '1 hour' | NULL$$, '{secret}'),
    ('webhook_test', $$id('hook')$$, '{}'),
    ('webhook_update', $$id('hook') | '{"types": ["*"]}'$$, '{changes}'))
        c (name, args, nulls);

CREATE TEMP VIEW public_function AS
    SELECT p.oid, p.proname::text AS name, p.pronargs,
           p.proargnames[1:p.pronargs] AS argument,
           ARRAY(SELECT format_type(t.oid, NULL)
                     FROM unnest(p.proargtypes) WITH ORDINALITY t (oid, n)
                     ORDER BY t.n) AS type
        FROM pg_proc p
        WHERE p.pronamespace = 'referral'::regnamespace
              AND (has_function_privilege('referral_app', p.oid, 'EXECUTE')
                   OR p.proname LIKE 'my\_%');
GRANT SELECT ON public_function TO PUBLIC;

SELECT is_empty('SELECT name FROM public_function EXCEPT
                 SELECT name FROM call', 'every function is called');
SELECT is_empty('SELECT name FROM call EXCEPT
                 SELECT name FROM public_function', 'and there is no other');


CREATE TEMP TABLE odd (type text PRIMARY KEY, given text[] NOT NULL);
GRANT SELECT ON odd TO PUBLIC;
INSERT INTO odd VALUES
    ('jsonb', ARRAY[$$'null'$$, $$'[]'$$, $$'""'$$, $$'{"": null}'$$,
                    $$'[null]'$$, $$'[{}]'$$, $$'[1]'$$]),
    ('text', ARRAY[$$''$$, $$' '$$, $$repeat('x', 70000)$$, $$E'\x01'$$]),
    ('bigint', ARRAY['0', '-1', '9223372036854775807',
                     '-9223372036854775808']),
    ('integer', ARRAY['0', '-1', '2147483647', '-2147483648']),
    ('numeric', ARRAY[$$'NaN'$$, $$'Infinity'$$, '-1e40']),
    ('date', ARRAY[$$'infinity'$$, $$'-infinity'$$, $$'4713-01-01 BC'$$,
                   $$'5874897-12-31'$$]),
    ('timestamp with time zone', ARRAY[$$'infinity'$$, $$'-infinity'$$]),
    ('interval', ARRAY[$$'0'$$, $$'-1 day'$$, $$'170000000 years'$$]),
    ('text[]', ARRAY[$$'{}'$$, $$'{NULL}'$$, $$'{""}'$$]),
    ('bigint[]', ARRAY[$$'{}'$$, $$'{NULL}'$$, $$'{-1}'$$, $$'{{1},{2}}'$$]);


-- One call, undone: 'ok', 'none' when it returned nothing, or the SQLSTATE;
-- ' wrote' when it wrote more than the audit.

CREATE FUNCTION pg_temp.written() RETURNS bigint LANGUAGE sql
    RETURN (SELECT sum(s.n_tup_ins + s.n_tup_upd + s.n_tup_del)
                FROM pg_stat_xact_user_tables s
                WHERE s.schemaname = 'referral' AND s.relname <> 'audit');

CREATE FUNCTION pg_temp.given(args text) RETURNS text[] LANGUAGE sql
    RETURN regexp_split_to_array(regexp_replace(args, '\mid\(',
               'pg_temp.id(', 'g'), '\s+[|]\s+');

CREATE FUNCTION pg_temp.statement(function text, args text, place int,
                                  other text) RETURNS text
    LANGUAGE plpgsql AS $$
DECLARE
    given  text[] := pg_temp.given(args);
BEGIN
    IF place > 0 THEN
        given[place] := other;
    END IF;

    RETURN format('SELECT jsonb_agg(jsonb_strip_nulls(to_jsonb(r)))'
                  ' FROM referral.%I(%s) r', function,
                  array_to_string(given, ', '));
END $$;

CREATE FUNCTION pg_temp.outcome(function text, args text,
                                place int DEFAULT 0,
                                other text DEFAULT 'NULL') RETURNS text
    LANGUAGE plpgsql AS $$
DECLARE
    before  bigint := pg_temp.written();
    rows_   jsonb;
    result  text;
BEGIN
    EXECUTE (SELECT format('SET LOCAL ROLE %I', c.role) FROM call c
                 WHERE c.name = function);
    EXECUTE pg_temp.statement(function, args, place, other) INTO rows_;
    SET CONSTRAINTS ALL IMMEDIATE;
    result := CASE WHEN rows_ IS NULL OR rows_ <@ '[null, {}, [], 0]'
                   THEN 'none' ELSE 'ok' END
              || CASE WHEN pg_temp.written() > before THEN ' wrote'
                      ELSE '' END;
    RAISE EXCEPTION 'undo' USING ERRCODE = 'XX999';
EXCEPTION
    WHEN SQLSTATE 'XX999' THEN
        RETURN result;
    WHEN OTHERS THEN
        RETURN SQLSTATE || CASE WHEN SQLSTATE LIKE 'RF%' THEN ''
                                ELSE ' ' || left(SQLERRM, 200) END;
END $$;


-- The keys that a jsonb argument takes, as the error for a wrong one says.

CREATE FUNCTION pg_temp.keys(function text, args text, place int)
    RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    hint_  text;
BEGIN
    EXECUTE (SELECT format('SET LOCAL ROLE %I', c.role) FROM call c
                 WHERE c.name = function);
    EXECUTE pg_temp.statement(function, args, place, $q$'{"?": 1}'$q$);
    RESET ROLE;
    RETURN NULL;
EXCEPTION
    WHEN SQLSTATE 'RF011' THEN
        GET STACKED DIAGNOSTICS hint_ = PG_EXCEPTION_HINT;
        RETURN string_to_array(rtrim(substr(hint_, 7), '.'), ', ');
    WHEN OTHERS THEN
        RETURN NULL;
END $$;

CREATE FUNCTION pg_temp.named(outcome text) RETURNS boolean LANGUAGE sql
    RETURN outcome LIKE 'RF%' OR outcome LIKE 'ok%' OR outcome LIKE 'none%';

SELECT set_config('referral.referrer', current_setting('t.ann'), true)
    \g /dev/null

SELECT ok(o LIKE 'ok%' OR o LIKE 'none%', format('%s(): %s', c.name, o))
    FROM call c, LATERAL pg_temp.outcome(c.name, c.args) o
    ORDER BY c.name;

SELECT ok(CASE WHEN f.argument[n] = ANY (c.nulls) THEN pg_temp.named(o)
               ELSE o LIKE 'RF%' END,
          format('%s(), %s null: %s', c.name, f.argument[n], o))
    FROM call c
         JOIN public_function f USING (name),
         LATERAL generate_series(1, f.pronargs) n,
         LATERAL pg_temp.outcome(c.name, c.args, n) o
    ORDER BY c.name, n;

-- values that are of the type, and of no use

CREATE TEMP TABLE tried AS
    SELECT format('%s(), %s %s', c.name, f.argument[n], left(v, 30)) AS what, o
        FROM call c
             JOIN public_function f USING (name),
             LATERAL unnest(f.type) WITH ORDINALITY a (type, n)
             JOIN odd ON odd.type = a.type,
             LATERAL unnest(odd.given) v,
             LATERAL pg_temp.outcome(c.name, c.args, n::int, v) o;
SELECT is_empty('SELECT what, o FROM tried WHERE NOT pg_temp.named(o)
                 ORDER BY 1', 'odd values: no error without a name');
SELECT cmp_ok(count(*), '>', 1000::bigint, 'and many were tried') FROM tried;

-- the same for each key of options, changes and contacts

CREATE TEMP TABLE tried_key AS
    SELECT format('%s(), %s, %s: %s', c.name, f.argument[n], k,
                  left(v, 30)) AS what, o
        FROM call c
             JOIN public_function f USING (name),
             LATERAL unnest(f.type) WITH ORDINALITY a (type, n),
             LATERAL unnest(pg_temp.keys(c.name, c.args, n::int)) k,
             unnest(ARRAY['null', '[]', '""', '-1', '0.5', '1e400',
                          '"\\u0001"', '"infinity"', '{"": 1}',
                          to_jsonb(repeat('x', 70000))::text]) v,
             LATERAL (SELECT btrim((pg_temp.given(c.args))[n], $$'$$)::jsonb
                                 AS usual) u,
             LATERAL pg_temp.outcome(c.name, c.args, n::int, quote_literal(
                 (CASE jsonb_typeof(u.usual) WHEN 'object' THEN u.usual
                  ELSE '{}' END || jsonb_build_object(k, v::jsonb))::text)) o
        WHERE a.type = 'jsonb';
SELECT is_empty('SELECT what, o FROM tried_key WHERE NOT pg_temp.named(o)
                 ORDER BY 1', 'odd values of keys: neither');
SELECT cmp_ok(count(*), '>', 1500::bigint, 'of which there are more')
    FROM tried_key;


-- Of another organisation, by functions; bulk() says it in each row.

SELECT set_config('referral.organisation', pg_temp.id('empty')::text, true)
    \g /dev/null

SELECT ok(o LIKE 'RF%' OR o = 'none' OR c.name = 'bulk' AND o = 'ok',
          format('%s() of another organisation: %s', c.name, o))
    FROM call c, LATERAL pg_temp.outcome(c.name, c.args) o
    WHERE NOT c.shared
    ORDER BY c.name;
SELECT is((SELECT outcome || ' ' || error
               FROM referral.bulk('referral_accept',
                                  ARRAY[pg_temp.id('lead')])), 'error RF090',
          'bulk() does nothing for it');


-- And by views: rows of both without a scope, none of the other's in it.

CREATE TEMP TABLE seen AS
    SELECT c.relname::text AS name, x.grantee::regrole::text AS role
        FROM pg_class c, aclexplode(c.relacl) x
        WHERE c.relnamespace = 'referral'::regnamespace AND c.relkind = 'v'
              AND x.grantee IN ('referral_app'::regrole,
                                'referral_analyst'::regrole)
              -- what of partitions and of the publisher is to be seen
              AND c.relname NOT IN ('interaction_partition', 'publications');

CREATE FUNCTION pg_temp.rows(name text, role text, scope text) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    n  bigint;
BEGIN
    PERFORM set_config('referral.organisation', scope, true);
    EXECUTE format('SET LOCAL ROLE %I', role);
    EXECUTE format('SELECT count(*) FROM referral.%I r', name) INTO n;
    RESET ROLE;
    RETURN n;
END $$;

SELECT cmp_ok(pg_temp.rows(name, role, ''), '>', 0::bigint,
              format('%s, %s: all without a scope', name, role)),
       cmp_ok(pg_temp.rows(name, role, current_setting('t.o')), '>', 0::bigint,
              format('%s, %s: its own', name, role)),
       is(pg_temp.rows(name, role, current_setting('t.empty')),
          CASE name WHEN 'organisations' THEN 1 WHEN 'audit_trail' THEN 1
          ELSE 0 END::bigint, format('%s, %s: no other', name, role))
    FROM seen
    ORDER BY name, role;

SELECT * FROM finish();
ROLLBACK;
