-- Copyright (C) The nginx referral module authors
--
-- Imports of codes and referrers, and what people and partners read of them.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- The rows of an import, which must be an array of at most 1,000: RF035.

CREATE FUNCTION referral.import_check(what text, rows jsonb) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_typeof(rows) IS DISTINCT FROM 'array'
       OR jsonb_array_length(rows) > 1000
    THEN
        RAISE EXCEPTION '%(): rows are a JSON array of at most 1,000 objects',
                        what
            USING ERRCODE = 'RF035', HINT = 'Send them in parts.';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.import_check(text, jsonb) FROM PUBLIC;


-- One row of an import: no key but the allowed ones; an empty text is an
-- absent key, as in CSV, and text in a column for JSON is read as JSON.

CREATE FUNCTION referral.import_row(what text, given jsonb, allowed text[])
    RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key    text;
    value  jsonb;
BEGIN
    IF jsonb_typeof(given) <> 'object' THEN
        RAISE EXCEPTION '%(): a row is a JSON object, not %', what,
                        jsonb_typeof(given)
            USING ERRCODE = 'RF010';
    END IF;

    PERFORM referral.options_check(what, given, allowed);

    FOR key, value IN
        SELECT *
            FROM jsonb_each(given) e
            WHERE e.value = '""'
                  OR jsonb_typeof(e.value) = 'string'
                     AND e.key IN ('rules', 'settings', 'attributes',
                                   'address')
    LOOP
        IF value = '""' THEN
            given := given - key;

        ELSE
            BEGIN
                given := jsonb_set(given, ARRAY[key],
                                   (value #>> '{}')::jsonb);
            EXCEPTION WHEN data_exception THEN
                RAISE EXCEPTION '%(): "%": %', what, key, SQLERRM
                    USING ERRCODE = 'RF010';
            END;
        END IF;
    END LOOP;

    RETURN given;
END
$$;

REVOKE ALL ON FUNCTION referral.import_row(text, jsonb, text[]) FROM PUBLIC;


-- The keys of a row of code_import().

CREATE FUNCTION referral.code_import_keys() RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN referral.code_options()
           || '{code,external_id,name,status}'::text[];

REVOKE ALL ON FUNCTION referral.code_import_keys() FROM PUBLIC;


-- Those rows of an import that are a new code and nothing wrong with it, all
-- in one statement: at which line which id was made.  Null when something is
-- wrong; then none is made.

CREATE FUNCTION referral.code_import_new(p referral.program, rows jsonb)
    RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    allowed  text[] := referral.code_import_keys();
    made     jsonb;
BEGIN
    PERFORM set_config('TimeZone', p.time_zone, true);

    WITH given AS (
        SELECT DISTINCT ON (r.code) r.line, r.code, r.data
            FROM (SELECT e.n AS line,
                         referral.code_fold(e.value ->> 'code') AS code,
                         referral.import_row('code_import', e.value, allowed)
                             AS data
                      FROM jsonb_array_elements(rows)
                               WITH ORDINALITY e (value, n)
                      WHERE e.value ->> 'code' <> ''
                            AND coalesce(e.value ->> 'external_id', '') = '')
                 r
            WHERE r.code IS NOT NULL
            ORDER BY r.code, r.line
    ), made_ AS (
        INSERT INTO referral.code AS t (organisation_id, program_id, code,
                kind, status, campaign, channel, destination, rules,
                starts_at, expires_at, max_uses, variant_id, settings)
            SELECT p.organisation_id, p.id, g.code, 'vanity',
                   coalesce(c.status, 'active'), c.campaign, c.channel,
                   c.destination, c.rules, c.starts_at, c.expires_at,
                   c.max_uses, c.variant_id, coalesce(c.settings, '{}')
                FROM given g,
                     jsonb_populate_record(NULL::referral.code,
                                           g.data - 'code') c
                WHERE NOT EXISTS (SELECT FROM referral.code o
                                      WHERE o.code = g.code)
                ORDER BY g.line
            ON CONFLICT DO NOTHING
            RETURNING t.id, t.code
    )
    SELECT coalesce(jsonb_object_agg(g.line, m.id), '{}') INTO made
        FROM made_ m JOIN given g ON g.code = m.code;

    RETURN made;

EXCEPTION
    WHEN data_exception OR integrity_constraint_violation
         OR SQLSTATE 'RF010' OR SQLSTATE 'RF011'
    THEN
        RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.code_import_new(referral.program, jsonb)
    FROM PUBLIC;


-- One row, whatever it is.

CREATE FUNCTION referral.code_import_one(p referral.program, given jsonb,
                                         OUT id bigint, OUT outcome text,
                                         OUT code text)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    old   referral.code;
    new_  referral.code;
    r     referral.referrer;
    user_ text;
BEGIN
    given := referral.import_row('code_import', given,
                                 referral.code_import_keys());
    user_ := given ->> 'external_id';
    code := given ->> 'code';

    IF user_ IS NOT NULL THEN
        SELECT * INTO r
            FROM referral.referrer t
            WHERE t.organisation_id = p.organisation_id
                  AND t.external_id = user_;

        IF NOT FOUND THEN
            RAISE EXCEPTION 'no referrer has the external id "%"',
                            left(user_, 100)
                USING ERRCODE = 'RF025',
                      HINT = 'referrer_import() makes them.';
        END IF;
    END IF;

    IF code IS NOT NULL THEN
        SELECT * INTO old
            FROM referral.code t
            WHERE t.code = referral.code_fold(code_import_one.code)
            FOR NO KEY UPDATE;

        IF old.program_id <> p.id THEN
            PERFORM referral.code_taken(old.code);
        END IF;

    ELSIF r.id IS NOT NULL THEN
        SELECT * INTO old
            FROM referral.code t
            WHERE t.program_id = p.id AND t.referrer_id = r.id AND t.own
            FOR NO KEY UPDATE;

    ELSE
        RAISE EXCEPTION 'the row has neither "code" nor "external_id"'
            USING ERRCODE = 'RF010',
                  HINT = 'Without one a second import would make another'
                         ' code.';
    END IF;

    IF old.id IS NULL THEN
        new_ := referral.code_write('code_import', p, r, code,
                    given - '{code,external_id}'::text[], code IS NULL);
        outcome := 'created';

    ELSE
        PERFORM referral.code_update(old.id,
            given - '{code,external_id,name,status}'::text[]
            || CASE WHEN r.id IS NOT NULL AND r.id IS DISTINCT FROM
                         old.referrer_id
                    THEN jsonb_build_object('referrer_id', r.id)
                    ELSE '{}' END);

        IF given ? 'status' THEN
            PERFORM referral.code_set_status(old.id, given ->> 'status');
        END IF;

        SELECT * INTO new_ FROM referral.code t WHERE t.id = old.id;

        outcome := CASE WHEN new_ IS DISTINCT FROM old THEN 'updated'
                        ELSE 'unchanged' END;
    END IF;

    id := new_.id;
    code := new_.code;
END
$$;

REVOKE ALL ON FUNCTION referral.code_import_one(referral.program, jsonb)
    FROM PUBLIC;


-- Up to 1,000 codes.  Keys of a row: code, or external_id for a referrer's own
-- code, or both; status, name and the options of code_create().  A code that
-- is there is changed where a key of the row says otherwise.  A row that can
-- not be taken is told and does not stop the others; the same import again
-- changes nothing.  One row for each, in their order: outcome is created,
-- updated, unchanged or error.

CREATE FUNCTION referral.code_import(program_id bigint, rows jsonb)
    RETURNS TABLE (line int, id bigint, outcome text, message text, code text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p      referral.program := referral.program_row(program_id);
    made   jsonb;
    given  jsonb;
BEGIN
    PERFORM referral.organisation_live(p.organisation_id);
    PERFORM referral.import_check('code_import', rows);

    -- one at a time: two with their rows in different orders would deadlock

    PERFORM pg_advisory_xact_lock(hashtextextended('referral.code_import',
                                                   p.id));

    IF NOT p.template AND p.status <> 'archived' THEN
        made := referral.code_import_new(p, rows);
    END IF;

    FOR line, given IN
        SELECT e.n, e.value
            FROM jsonb_array_elements(rows) WITH ORDINALITY e (value, n)
            ORDER BY e.n
    LOOP
        id := (made ->> line::text)::bigint;
        message := NULL;

        IF id IS NOT NULL THEN
            outcome := 'created';
            code := referral.code_fold(given ->> 'code');
            RETURN NEXT;
            CONTINUE;
        END IF;

        BEGIN
            SELECT o.id, o.outcome, o.code INTO id, outcome, code
                FROM referral.code_import_one(p, given) o;

        EXCEPTION WHEN OTHERS THEN
            IF SQLSTATE !~ '^(RF|22|23)' THEN
                RAISE;
            END IF;

            id := NULL;
            outcome := 'error';
            message := SQLERRM;
            code := left(given ->> 'code', 100);
        END;

        RETURN NEXT;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION referral.code_import(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.code_import(bigint, jsonb)
    TO referral_app;


-- One row of referrer_import().

CREATE FUNCTION referral.referrer_import_one(organisation_id bigint,
                                             given jsonb, OUT id bigint,
                                             OUT outcome text,
                                             OUT external_id text)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    old       referral.referrer;
    new_      referral.referrer;
    old_who   referral.person;
    new_who   referral.person;
    contact   jsonb;
    changes   jsonb;
    wanted    text;
    of_person text[] := '{first_name,last_name,name,email,phone,company,'
                        'address}';
BEGIN
    given := referral.import_row('referrer_import', given, of_person
        || '{external_id,type,status,eligible,attributes,commission_bp,notes}'
           ::text[]);

    external_id := given ->> 'external_id';
    wanted := given ->> 'status';
    changes := given - (of_person || '{external_id,type,status}'::text[]);
    contact := given - ARRAY(SELECT jsonb_object_keys(given - of_person));

    IF external_id IS NULL THEN
        RAISE EXCEPTION 'the row has no "external_id"'
            USING ERRCODE = 'RF010',
                  HINT = 'Without one a second import would make another'
                         ' referrer.';
    END IF;

    SELECT * INTO old
        FROM referral.referrer t
        WHERE t.organisation_id = referrer_import_one.organisation_id
              AND t.external_id = referrer_import_one.external_id
        FOR NO KEY UPDATE;

    IF old.id IS NULL THEN
        new_ := referral.referrer_write('referrer_import', organisation_id,
            coalesce(given ->> 'type', 'customer'),
            changes || jsonb_build_object('external_id', external_id),
            contact,
            CASE WHEN wanted = 'applied' THEN 'applied' ELSE 'active' END);
        outcome := 'created';

    ELSE
        SELECT * INTO old_who
            FROM referral.person t
            WHERE t.id = old.person_id;

        PERFORM referral.referrer_update(old.id,
            changes || CASE WHEN given ? 'type'
                            THEN jsonb_build_object('type', given -> 'type')
                            ELSE '{}' END,
            contact);
        new_ := old;
    END IF;

    IF wanted IS NOT NULL AND wanted <> new_.status THEN
        PERFORM referral.referrer_set_status(new_.id, wanted);
    END IF;

    id := new_.id;

    IF outcome IS NULL THEN
        SELECT * INTO new_ FROM referral.referrer t WHERE t.id = old.id;
        SELECT * INTO new_who
            FROM referral.person t
            WHERE t.id = new_.person_id;

        outcome := CASE WHEN new_ IS DISTINCT FROM old
                             OR new_who IS DISTINCT FROM old_who
                        THEN 'updated' ELSE 'unchanged' END;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_import_one(bigint, jsonb)
    FROM PUBLIC;


-- Up to 1,000 referrers, known by external_id.  Further keys of a row: type
-- (customer), status, eligible, attributes, commission_bp, notes, and those of
-- a contact.  As code_import() otherwise.

CREATE FUNCTION referral.referrer_import(organisation_id bigint, rows jsonb)
    RETURNS TABLE (line int, id bigint, outcome text, message text,
                   external_id text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o      referral.organisation;
    given  jsonb;
BEGIN
    o := referral.organisation_live(organisation_id);
    PERFORM referral.import_check('referrer_import', rows);

    PERFORM pg_advisory_xact_lock(hashtextextended('referral.referrer_import',
                                                   o.id));

    FOR line, given IN
        SELECT e.n, e.value
            FROM jsonb_array_elements(rows) WITH ORDINALITY e (value, n)
            ORDER BY e.n
    LOOP
        message := NULL;

        BEGIN
            SELECT i.id, i.outcome, i.external_id
                INTO id, outcome, external_id
                FROM referral.referrer_import_one(o.id, given) i;

        EXCEPTION WHEN OTHERS THEN
            IF SQLSTATE !~ '^(RF|22|23)' THEN
                RAISE;
            END IF;

            id := NULL;
            outcome := 'error';
            message := SQLERRM;
            external_id := left(given ->> 'external_id', 200);
        END;

        RETURN NEXT;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_import(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_import(bigint, jsonb)
    TO referral_app;


CREATE VIEW referral.codes AS
    SELECT c.id, c.organisation_id, c.program_id, p.slug AS program,
           c.referrer_id, r.external_id, c.code, c.kind, c.own, c.status,
           CASE WHEN NOT (o.live AND p.live AND coalesce(r.live, true)
                          AND c.status = 'active') THEN 'inactive'
                WHEN c.uses >= c.max_uses THEN 'exhausted'
                WHEN greatest(c.starts_at, p.starts_at) > now() THEN 'early'
                WHEN least(c.expires_at, p.ends_at) <= now() THEN 'expired'
                ELSE 'valid' END AS verdict,
           coalesce(c.destination, p.landing_url) AS url, c.campaign,
           c.channel, c.destination, c.rules, c.starts_at, c.expires_at,
           c.max_uses, c.uses, c.variant_id, c.settings, c.created_at,
           c.updated_at
        FROM referral.code c
             JOIN referral.program p ON p.id = c.program_id
             JOIN referral.organisation o ON o.id = p.organisation_id
             LEFT JOIN referral.referrer r ON r.id = c.referrer_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR c.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.codes TO referral_app, referral_analyst;


-- What partners read: columns of their own rows, through views that run with
-- their own rights, so that row level security holds for whatever they ask.

ALTER TABLE referral.organisation ENABLE ROW LEVEL SECURITY;
ALTER TABLE referral.program ENABLE ROW LEVEL SECURITY;
ALTER TABLE referral.referrer ENABLE ROW LEVEL SECURITY;
ALTER TABLE referral.terms_acceptance ENABLE ROW LEVEL SECURITY;
ALTER TABLE referral.code ENABLE ROW LEVEL SECURITY;

CREATE POLICY partner ON referral.referrer FOR SELECT TO referral_partner
    USING (id = (SELECT referral.current_referrer()));

CREATE POLICY partner ON referral.organisation FOR SELECT TO referral_partner
    USING (id = (SELECT r.organisation_id
                     FROM referral.referrer r
                     WHERE r.id = (SELECT referral.current_referrer())));

CREATE POLICY partner ON referral.code FOR SELECT TO referral_partner
    USING (referrer_id = (SELECT referral.current_referrer()));

-- what one may join, and what one has a code in

CREATE POLICY partner ON referral.program FOR SELECT TO referral_partner
    USING (NOT template
           AND organisation_id = (SELECT r.organisation_id
                   FROM referral.referrer r
                   WHERE r.id = (SELECT referral.current_referrer()))
           AND (live OR EXISTS (SELECT FROM referral.code c
                   WHERE c.program_id = program.id
                         AND c.referrer_id
                             = (SELECT referral.current_referrer()))));

CREATE POLICY partner ON referral.terms_acceptance FOR SELECT
    TO referral_partner
    USING (referrer_id = (SELECT referral.current_referrer()));

GRANT SELECT (id, organisation_id, external_id, type, status, eligible, live,
              commission_bp, applied_at, approved_at, rejected_at,
              reject_reason, created_at)
    ON referral.referrer TO referral_partner;
GRANT SELECT (id, slug, name, live, currency, time_zone)
    ON referral.organisation TO referral_partner;
GRANT SELECT (id, organisation_id, slug, name, description, type, status,
              live, template, starts_at, ends_at, referral_validity,
              max_referrals_per_referrer, reward_threshold, terms,
              terms_version, terms_required, landing_url, time_zone, currency)
    ON referral.program TO referral_partner;
GRANT SELECT (id, program_id, referrer_id, code, own, status, campaign,
              channel, destination, starts_at, expires_at, max_uses, uses,
              created_at)
    ON referral.code TO referral_partner;
GRANT SELECT ON referral.terms_acceptance TO referral_partner;


CREATE VIEW referral.my_referrer WITH (security_invoker = true) AS
    SELECT r.id, o.name AS organisation, r.external_id, r.type, r.status,
           r.eligible, r.commission_bp, r.applied_at, r.approved_at,
           r.rejected_at, r.reject_reason, r.created_at
        FROM referral.referrer r
             JOIN referral.organisation o ON o.id = r.organisation_id
        WHERE r.id = (SELECT referral.current_referrer());

CREATE VIEW referral.my_programs WITH (security_invoker = true) AS
    SELECT p.id, p.slug, p.name, p.description, p.type, p.status, p.starts_at,
           p.ends_at, p.referral_validity, p.max_referrals_per_referrer,
           p.reward_threshold, p.terms, p.terms_version, p.terms_required,
           (SELECT max(t.terms_version)
                FROM referral.terms_acceptance t
                WHERE t.program_id = p.id
                      AND t.referrer_id
                          = (SELECT referral.current_referrer()))
               AS terms_accepted,
           p.landing_url, p.time_zone, p.currency
        FROM referral.program p;

CREATE VIEW referral.my_codes WITH (security_invoker = true) AS
    SELECT c.id, c.program_id, p.slug AS program, c.code, c.own,
           CASE WHEN NOT (o.live AND p.live AND r.live
                          AND c.status = 'active') THEN 'inactive'
                WHEN c.uses >= c.max_uses THEN 'exhausted'
                WHEN greatest(c.starts_at, p.starts_at) > now() THEN 'early'
                WHEN least(c.expires_at, p.ends_at) <= now() THEN 'expired'
                ELSE 'valid' END AS verdict,
           coalesce(c.destination, p.landing_url) AS url, c.campaign,
           c.channel, c.starts_at, c.expires_at, c.max_uses, c.uses,
           c.created_at
        FROM referral.code c
             JOIN referral.program p ON p.id = c.program_id
             JOIN referral.organisation o ON o.id = p.organisation_id
             JOIN referral.referrer r ON r.id = c.referrer_id
        WHERE c.referrer_id = (SELECT referral.current_referrer());

GRANT SELECT ON referral.my_referrer, referral.my_programs, referral.my_codes
    TO referral_partner;


-- One's own contact; also this reading stands in the audit.

CREATE FUNCTION referral.my_contact(OUT first_name text, OUT last_name text,
                                    OUT name text, OUT email text,
                                    OUT phone text, OUT company text,
                                    OUT address jsonb) RETURNS SETOF record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    who  bigint := referral.current_referrer();
BEGIN
    IF who IS NULL THEN
        RETURN;
    END IF;

    RETURN QUERY
        SELECT c.first_name, c.last_name, c.name, c.email, c.phone, c.company,
               c.address
            FROM referral.referrer_contact(who, 'by the referrer') c;
END
$$;

REVOKE ALL ON FUNCTION referral.my_contact() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.my_contact() TO referral_partner;

INSERT INTO referral.schema_migration (version, name) VALUES (11, 'import');

COMMIT;
