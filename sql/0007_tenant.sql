-- Copyright (C) The nginx referral module authors
--
-- Organisations, the one table of personal data, who acts, and the audit.
--
-- What every function from here on has in common.  It runs as its owner and
-- is granted by name; nobody but the owner writes to a table.  Options come
-- as a jsonb object whose keys are columns: an unknown key is RF011, a value
-- that is not acceptable RF010, both name the key.  Settings of the session
-- or transaction say for whom it is called:
--
--     SET LOCAL referral.actor = 'staff 4711';         -- for the audit
--     SET LOCAL referral.organisation = '17';          -- nothing outside it
--     SET LOCAL referral.referrer = '4711';            -- partners' portals

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;


-- Who acts: the setting referral.actor, or the role that logged in.

CREATE FUNCTION referral.actor() RETURNS text
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN left(coalesce(nullif(current_setting('referral.actor', true), ''),
                         session_user::text), 200);
END
$$;

REVOKE ALL ON FUNCTION referral.actor() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.actor()
    TO referral_app, referral_analyst, referral_partner;


-- A setting that holds an id, or null.  Something else is an error: a scope
-- that can not be read must not become no scope.

CREATE FUNCTION referral.setting_id(name text) RETURNS bigint
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    value  text := nullif(current_setting(name, true), '');
BEGIN
    IF value !~ '^[1-9][0-9]{0,17}$' THEN
        RAISE EXCEPTION 'the setting % is no id', name
            USING ERRCODE = 'RF013',
                  HINT = format('SET LOCAL %s = ''17''; '''' takes it back.',
                                name);
    END IF;

    RETURN value::bigint;
END
$$;

REVOKE ALL ON FUNCTION referral.setting_id(text) FROM PUBLIC;


-- The only organisation that functions and views touch; null: all.

CREATE FUNCTION referral.organisation_scope() RETURNS bigint
    LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN referral.setting_id('referral.organisation');
END
$$;

REVOKE ALL ON FUNCTION referral.organisation_scope() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.organisation_scope()
    TO referral_app, referral_analyst;


-- Partners with a login role of their own.

CREATE TABLE referral.partner_login (
    role_name    text         PRIMARY KEY,
    referrer_id  bigint       NOT NULL,
    created_at   timestamptz  NOT NULL DEFAULT now()
);


-- The referrer whose rows referral_partner sees: that of the login role, else
-- the setting referral.referrer, which is believed only where the session's
-- role is an application's (a portal: SET LOCAL ROLE referral_partner).

CREATE FUNCTION referral.current_referrer() RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN coalesce((SELECT l.referrer_id
                         FROM referral.partner_login l
                         WHERE l.role_name = session_user::text),
                    CASE WHEN pg_has_role(session_user, 'referral_app',
                                          'MEMBER')
                         THEN referral.setting_id('referral.referrer') END);

REVOKE ALL ON FUNCTION referral.current_referrer() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.current_referrer()
    TO referral_app, referral_partner;


-- Options: an object with none but the allowed keys, or RF011.  Null is {}.

CREATE FUNCTION referral.options_check(what text, given jsonb, allowed text[])
    RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name  text;
BEGIN
    IF given IS NULL THEN
        RETURN '{}';
    END IF;

    IF jsonb_typeof(given) <> 'object' THEN
        RAISE EXCEPTION '%(): options are a JSON object, not %', what,
                        jsonb_typeof(given)
            USING ERRCODE = 'RF011',
                  HINT = format('Keys: %s.', array_to_string(allowed, ', '));
    END IF;

    SELECT key INTO name
        FROM jsonb_object_keys(given) key
        WHERE key <> ALL (allowed)
        ORDER BY key
        LIMIT 1;

    IF FOUND THEN
        RAISE EXCEPTION '%(): no option "%"', what, left(name, 100)
            USING ERRCODE = 'RF011',
                  HINT = format('Keys: %s.', array_to_string(allowed, ', '));
    END IF;

    RETURN given;
END
$$;

REVOKE ALL ON FUNCTION referral.options_check(text, jsonb, text[])
    FROM PUBLIC;


-- The row with the values given for its columns.  A value of a wrong type is
-- RF010 with the key's name.  Times without a zone are of the session's time
-- zone: callers set it.

CREATE FUNCTION referral.options_apply(what text, base anyelement, given jsonb)
    RETURNS anyelement
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name   text;
    value  jsonb;
BEGIN
    BEGIN
        RETURN jsonb_populate_record(base, given);
    EXCEPTION WHEN data_exception THEN
        NULL;                           -- which one it is, is found out below
    END;

    FOR name, value IN SELECT * FROM jsonb_each(given) LOOP
        BEGIN
            base := jsonb_populate_record(base,
                                          jsonb_build_object(name, value));
        EXCEPTION WHEN data_exception THEN
            RAISE EXCEPTION '%(): "%": %', what, name, SQLERRM
                USING ERRCODE = 'RF010';
        END;
    END LOOP;

    RETURN base;
END
$$;

REVOKE ALL ON FUNCTION referral.options_apply(text, anyelement, jsonb)
    FROM PUBLIC;


-- Turns a broken constraint into RF010 with the column's name, and what is
-- accepted as the hint: from the constraint's comment, or its list of words.
-- The arguments are the stacked diagnostics of the handler that calls it.

CREATE FUNCTION referral.constraint_raise(what text, table_name text,
                                          constraint_name text,
                                          column_name text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c       record;
    words   text;
    column_ text := nullif(column_name, '');
BEGIN
    IF column_ IS NOT NULL THEN
        RAISE EXCEPTION '%(): "%" must not be null', what, column_
            USING ERRCODE = 'RF010', HINT = 'Leave it away for its default.';
    END IF;

    SELECT pg_get_constraintdef(o.oid) AS definition,
           obj_description(o.oid, 'pg_constraint') AS remark,
           (SELECT string_agg(a.attname, '", "' ORDER BY k.n)
                FROM unnest(o.conkey) WITH ORDINALITY k (attnum, n)
                     JOIN pg_attribute a ON a.attrelid = o.conrelid
                                            AND a.attnum = k.attnum) AS columns
        INTO c
        FROM pg_constraint o
             JOIN pg_class t ON t.oid = o.conrelid
        WHERE o.conname = constraint_name AND t.relname = table_name
              AND t.relnamespace = 'referral'::regnamespace;

    IF c.definition LIKE '%= ANY (ARRAY[%' THEN
        SELECT string_agg(m[1], ', ') INTO words
            FROM regexp_matches(c.definition, '''([a-z_]+)''::text', 'g') m;
    END IF;

    RAISE EXCEPTION '%(): "%" is not acceptable', what,
                    coalesce(c.columns, constraint_name)
        USING ERRCODE = 'RF010',
              HINT = format('Accepted: %s.',
                            coalesce(c.remark, words, c.definition));
END
$$;

REVOKE ALL ON FUNCTION referral.constraint_raise(text, text, text, text)
    FROM PUBLIC;


-- Calls emit() of the outbox, which a later file makes.

CREATE FUNCTION referral.emit_event(organisation_id bigint, type text,
                                    order_key text, data jsonb) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regprocedure('referral.emit(bigint, text, text, jsonb)') IS NOT NULL
    THEN
        EXECUTE 'SELECT referral.emit($1, $2, $3, $4)'
            USING organisation_id, type, order_key, data;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.emit_event(bigint, text, text, jsonb)
    FROM PUBLIC;


-- The audit: who did what to which row, and which columns changed.  Never a
-- value, so nothing in it has to be erased.  Nobody changes or deletes it, the
-- owner's functions included.

CREATE TABLE referral.audit (
    id                 bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at                 timestamptz  NOT NULL DEFAULT now(),
    actor              text         NOT NULL,
    session_user_name  text         NOT NULL DEFAULT session_user,
    organisation_id    bigint,
    action             text         NOT NULL,
    object             text         NOT NULL,
    object_id          bigint,
    columns            text[],
    reason             text
);

CREATE INDEX audit_object ON referral.audit (object, object_id, id);
CREATE INDEX audit_organisation ON referral.audit (organisation_id, id);

COMMENT ON COLUMN referral.audit.action IS
    'insert, update, delete; read: personal data; other words by functions';
COMMENT ON COLUMN referral.audit.object IS 'the table, object_id its id';
COMMENT ON COLUMN referral.audit.columns IS
    'those that changed, or were read; null: the whole row';

CREATE FUNCTION referral.audit_refuse() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'the audit is only appended to, no % is possible', TG_OP
        USING ERRCODE = 'RF014',
              HINT = 'What was written wrongly is set right by a new row.';
END
$$;

REVOKE ALL ON FUNCTION referral.audit_refuse() FROM PUBLIC;

CREATE TRIGGER audit_refuse
    BEFORE UPDATE OR DELETE OR TRUNCATE ON referral.audit
    FOR EACH STATEMENT EXECUTE FUNCTION referral.audit_refuse();

-- also where session_replication_role = replica
ALTER TABLE referral.audit ENABLE ALWAYS TRIGGER audit_refuse;


-- One row of the audit.

CREATE FUNCTION referral.audit_write(organisation_id bigint, action text,
                                     object text, object_id bigint,
                                     columns text[] DEFAULT NULL,
                                     reason text DEFAULT NULL) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO referral.audit (actor, organisation_id, action, object,
                                object_id, columns, reason)
        VALUES (referral.actor(), audit_write.organisation_id,
                audit_write.action, audit_write.object,
                audit_write.object_id, audit_write.columns,
                left(coalesce(audit_write.reason,
                     nullif(current_setting('referral.reason', true), '')),
                     1000))
$$;

REVOKE ALL ON FUNCTION referral.audit_write(bigint, text, text, bigint,
                                            text[], text) FROM PUBLIC;


-- Whose a row is: its organisation, or that of its program.

CREATE FUNCTION referral.audit_organisation(object name, content jsonb)
    RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF object = 'organisation' THEN
        RETURN content ->> 'id';
    END IF;

    IF content ? 'program_id' AND NOT content ? 'organisation_id' THEN
        RETURN (SELECT p.organisation_id
                    FROM referral.program p
                    WHERE p.id = (content ->> 'program_id')::bigint);
    END IF;

    RETURN content ->> 'organisation_id';
END
$$;

REVOKE ALL ON FUNCTION referral.audit_organisation(name, jsonb) FROM PUBLIC;


-- The triggers of audited tables.  What is inserted or deleted is audited by
-- statement, as a thousand codes come with one; of what is updated the columns
-- are found row by row.  The arguments are columns whose changes are not worth
-- a row.

CREATE FUNCTION referral.audit_rows() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    who     text := referral.actor();
    reason  text := left(nullif(current_setting('referral.reason', true), ''),
                         1000);
BEGIN
    INSERT INTO referral.audit (actor, organisation_id, action, object,
                                object_id, reason)
        SELECT who,
               referral.audit_organisation(TG_TABLE_NAME, c.content),
               lower(TG_OP), TG_TABLE_NAME, (c.content ->> 'id')::bigint,
               reason
            FROM (SELECT to_jsonb(r) AS content FROM changed r) c;

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.audit_rows() FROM PUBLIC;


CREATE FUNCTION referral.audit_row() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    content  jsonb;
    changed  text[];
BEGIN
    IF TG_OP = 'DELETE' THEN
        content := to_jsonb(OLD);

    ELSE
        content := to_jsonb(NEW);
    END IF;

    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(o.key ORDER BY o.key) INTO changed
            FROM jsonb_each(to_jsonb(OLD)) o
            WHERE content -> o.key <> o.value
                  AND o.key <> 'updated_at'
                  AND o.key <> ALL (coalesce(TG_ARGV, '{}'));

        IF changed IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;

    PERFORM referral.audit_write(
        referral.audit_organisation(TG_TABLE_NAME, content), lower(TG_OP),
        TG_TABLE_NAME::text, (content ->> 'id')::bigint, changed);
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.audit_row() FROM PUBLIC;


-- For migrations: audits a table of the schema.

CREATE FUNCTION referral.audit_table(name text,
                                     ignored text[] DEFAULT '{}')
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER audit_insert AFTER INSERT ON referral.%I'
                   ' REFERENCING NEW TABLE AS changed FOR EACH STATEMENT'
                   ' EXECUTE FUNCTION referral.audit_rows()', name);

    EXECUTE format('CREATE TRIGGER audit_delete AFTER DELETE ON referral.%I'
                   ' REFERENCING OLD TABLE AS changed FOR EACH STATEMENT'
                   ' EXECUTE FUNCTION referral.audit_rows()', name);

    EXECUTE format('CREATE TRIGGER audit_update AFTER UPDATE ON referral.%I'
                   ' FOR EACH ROW EXECUTE FUNCTION referral.audit_row(%s)',
                   name, (SELECT string_agg(quote_literal(c), ', ')
                              FROM unnest(ignored) c));
END
$$;

REVOKE ALL ON FUNCTION referral.audit_table(text, text[]) FROM PUBLIC;


CREATE FUNCTION referral.touch() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

REVOKE ALL ON FUNCTION referral.touch() FROM PUBLIC;


-- Whether a name is one of the server's time zones.  Reading them all takes
-- some hundredths of a second: it is asked when a zone is written, once.
-- Abbreviations and POSIX strings, which AT TIME ZONE would take as well, have
-- no rules of their own.

CREATE FUNCTION referral.time_zone_check(what text, zone text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF zone = 'UTC'
       OR EXISTS (SELECT FROM pg_timezone_names WHERE name = zone)
    THEN
        RETURN;
    END IF;

    RAISE EXCEPTION '%(): "time_zone": no time zone "%"', what,
                    coalesce(left(zone, 100), '(null)')
        USING ERRCODE = 'RF015',
              HINT = 'A name like Europe/Berlin, as in pg_timezone_names.';
END
$$;

REVOKE ALL ON FUNCTION referral.time_zone_check(text, text) FROM PUBLIC;


CREATE TABLE referral.organisation (
    id                   bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slug                 text         COLLATE "C" NOT NULL UNIQUE
                             CHECK (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    name                 text         NOT NULL
                             CHECK (length(name) BETWEEN 1 AND 200),
    status               text         NOT NULL DEFAULT 'active'
                             CHECK (status IN ('active', 'disabled')),
    live                 boolean      NOT NULL GENERATED ALWAYS AS
                             (status = 'active') STORED,
    max_active_programs  int          NOT NULL DEFAULT 5
                             CHECK (max_active_programs BETWEEN 0 AND 10000),
    active_programs      int          NOT NULL DEFAULT 0,
    currency             text         NOT NULL DEFAULT 'USD'
                             CHECK (currency ~ '^[A-Z]{3}$'),
    time_zone            text         NOT NULL DEFAULT 'UTC',
    settings             jsonb        NOT NULL DEFAULT '{}'
                             CHECK (jsonb_typeof(settings) = 'object'),
    created_at           timestamptz  NOT NULL DEFAULT now(),
    updated_at           timestamptz  NOT NULL DEFAULT now(),
    CONSTRAINT organisation_within_limit
        CHECK (active_programs BETWEEN 0 AND max_active_programs)
);

COMMENT ON COLUMN referral.organisation.live IS
    'its codes may be valid at the edge';
COMMENT ON COLUMN referral.organisation.active_programs IS
    'kept by a trigger of program: counting them would not hold the limit'
    ' where sessions activate programs at once';
COMMENT ON CONSTRAINT organisation_slug_check ON referral.organisation IS
    '1 to 63 of a-z, 0-9 and -, the first no -';
COMMENT ON CONSTRAINT organisation_name_check ON referral.organisation IS
    '1 to 200 characters';
COMMENT ON CONSTRAINT organisation_currency_check ON referral.organisation IS
    'three capital letters, as USD (ISO 4217)';
COMMENT ON CONSTRAINT organisation_max_active_programs_check
    ON referral.organisation IS '0 to 10000';
COMMENT ON CONSTRAINT organisation_settings_check ON referral.organisation IS
    'a JSON object';

CREATE TRIGGER touch BEFORE UPDATE ON referral.organisation
    FOR EACH ROW EXECUTE FUNCTION referral.touch();

DO $$ BEGIN
    PERFORM referral.audit_table('organisation', '{active_programs}');
END $$;


-- The one table of personal data: of referrers, of those they refer, of
-- customers.  All else refers to it, so that erasing here is erasing.

CREATE TABLE referral.person (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL REFERENCES referral.organisation,
    role             text         NOT NULL DEFAULT 'customer'
                         CHECK (role IN ('referrer', 'referee', 'customer')),
    first_name       text         CHECK (length(first_name) <= 100),
    last_name        text         CHECK (length(last_name) <= 100),
    name             text         CHECK (length(name) <= 200),
    email            text         CHECK (length(email) <= 254
                                         AND email ~ '^[^@\s]+@[^@\s]+$'),
    phone            text         CHECK (phone ~ '^[0-9+(][0-9 ()./-]{2,39}$'),
    company          text         CHECK (length(company) <= 200),
    address          jsonb        CHECK (jsonb_typeof(address) = 'object'),
    erased_at        timestamptz,
    created_at       timestamptz  NOT NULL DEFAULT now(),
    updated_at       timestamptz  NOT NULL DEFAULT now(),
    UNIQUE (id, organisation_id)
);

-- one referrer for an address; anybody may be referred again and again
CREATE UNIQUE INDEX person_referrer_email
    ON referral.person (organisation_id, lower(email))
    WHERE role = 'referrer';

COMMENT ON CONSTRAINT person_first_name_check ON referral.person IS
    'at most 100 characters';
COMMENT ON CONSTRAINT person_last_name_check ON referral.person IS
    'at most 100 characters';
COMMENT ON CONSTRAINT person_name_check ON referral.person IS
    'at most 200 characters';
COMMENT ON CONSTRAINT person_email_check ON referral.person IS
    'one @ with something on both sides, no spaces, at most 254 characters';
COMMENT ON CONSTRAINT person_phone_check ON referral.person IS
    '3 to 40 of digits, spaces and +().-/, a digit, + or ( first';
COMMENT ON CONSTRAINT person_company_check ON referral.person IS
    'at most 200 characters';
COMMENT ON CONSTRAINT person_address_check ON referral.person IS
    'a JSON object';

CREATE TRIGGER touch BEFORE UPDATE ON referral.person
    FOR EACH ROW EXECUTE FUNCTION referral.touch();

DO $$ BEGIN PERFORM referral.audit_table('person'); END $$;


-- The organisation, when there is one with this id inside the scope: RF012.
-- locked: until the end of the transaction.

CREATE FUNCTION referral.organisation_row(id bigint,
                                          locked boolean DEFAULT false)
    RETURNS referral.organisation
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    o      referral.organisation;
BEGIN
    IF locked THEN
        SELECT * INTO o
            FROM referral.organisation r
            WHERE r.id = organisation_row.id
                  AND (scope IS NULL OR r.id = scope)
            FOR NO KEY UPDATE;

    ELSE
        SELECT * INTO o
            FROM referral.organisation r
            WHERE r.id = organisation_row.id
                  AND (scope IS NULL OR r.id = scope);
    END IF;

    IF o.id IS NULL THEN
        RAISE EXCEPTION 'organisation %: there is none with this id, or it is'
                        ' not yours', coalesce(organisation_row.id::text,
                                               '(null)')
            USING ERRCODE = 'RF012',
                  HINT = 'The view referral.organisations lists them; the'
                         ' setting referral.organisation is the scope.';
    END IF;

    RETURN o;
END
$$;

REVOKE ALL ON FUNCTION referral.organisation_row(bigint, boolean)
    FROM PUBLIC;


CREATE FUNCTION referral.organisation_check(id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.organisation_row(organisation_check.id);
END
$$;

REVOKE ALL ON FUNCTION referral.organisation_check(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.organisation_check(bigint)
    TO referral_app;


-- The same for what needs an organisation at work: RF016 when it is disabled.

CREATE FUNCTION referral.organisation_live(id bigint)
    RETURNS referral.organisation
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o  referral.organisation := referral.organisation_row(id);
BEGIN
    IF NOT o.live THEN
        RAISE EXCEPTION 'organisation % (%) is disabled', o.id, o.slug
            USING ERRCODE = 'RF016',
                  HINT = 'organisation_set_status() enables it.';
    END IF;

    RETURN o;
END
$$;

REVOKE ALL ON FUNCTION referral.organisation_live(bigint) FROM PUBLIC;


CREATE FUNCTION referral.slug_taken(what text, slug text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '%(): the slug "%" is taken', what, slug
        USING ERRCODE = 'RF017', HINT = 'Choose another one.';
END
$$;

REVOKE ALL ON FUNCTION referral.slug_taken(text, text) FROM PUBLIC;


-- Options: max_active_programs (5), currency (USD), time_zone (UTC), settings.

CREATE FUNCTION referral.organisation_create(slug text, name text,
                                             options jsonb DEFAULT '{}')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o              referral.organisation;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    IF referral.organisation_scope() IS NOT NULL THEN
        RAISE EXCEPTION 'organisation_create(): not inside an organisation'
            USING ERRCODE = 'RF012',
                  HINT = 'RESET referral.organisation first.';
    END IF;

    options := referral.options_check('organisation_create', options,
        '{max_active_programs,currency,time_zone,settings}');

    o.max_active_programs := 5;
    o.currency := 'USD';
    o.time_zone := 'UTC';
    o.settings := '{}';
    o := referral.options_apply('organisation_create', o, options);
    PERFORM referral.time_zone_check('organisation_create', o.time_zone);

    INSERT INTO referral.organisation (slug, name, max_active_programs,
                                       currency, time_zone, settings)
        VALUES (organisation_create.slug, organisation_create.name,
                o.max_active_programs, o.currency, o.time_zone, o.settings)
        RETURNING * INTO o;

    RETURN o.id;

EXCEPTION
    WHEN unique_violation THEN
        PERFORM referral.slug_taken('organisation_create', slug);

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('organisation_create', broken_table,
                                          broken, broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.organisation_create(text, text, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.organisation_create(text, text, jsonb)
    TO referral_app;


-- Changes: slug, name, max_active_programs (RF019 when more are active),
-- currency, time_zone, settings (replaced as a whole).

CREATE FUNCTION referral.organisation_update(id bigint, changes jsonb)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o              referral.organisation;
    old_zone       text;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    o := referral.organisation_row(id, true);
    old_zone := o.time_zone;
    changes := referral.options_check('organisation_update', changes,
        '{slug,name,max_active_programs,currency,time_zone,settings}');
    o := referral.options_apply('organisation_update', o, changes);

    IF o.time_zone IS DISTINCT FROM old_zone THEN
        PERFORM referral.time_zone_check('organisation_update', o.time_zone);
    END IF;

    IF o.max_active_programs < o.active_programs THEN
        RAISE EXCEPTION 'organisation % (%): % programs are active, more than'
                        ' %', o.id, o.slug, o.active_programs,
                        o.max_active_programs
            USING ERRCODE = 'RF019', HINT = 'Pause or end some first.';
    END IF;

    UPDATE referral.organisation r
        SET slug = o.slug, name = o.name,
            max_active_programs = o.max_active_programs,
            currency = o.currency, time_zone = o.time_zone,
            settings = o.settings
        WHERE r.id = o.id;

EXCEPTION
    WHEN unique_violation THEN
        PERFORM referral.slug_taken('organisation_update', o.slug);

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('organisation_update', broken_table,
                                          broken, broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.organisation_update(bigint, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.organisation_update(bigint, jsonb)
    TO referral_app;


-- active or disabled: the codes of a disabled organisation are inactive.

CREATE FUNCTION referral.organisation_set_status(id bigint, status text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o              referral.organisation;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    o := referral.organisation_row(id, true);

    UPDATE referral.organisation r
        SET status = organisation_set_status.status
        WHERE r.id = o.id
              AND r.status IS DISTINCT FROM organisation_set_status.status;

EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('organisation_set_status', broken_table,
                                      broken, broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.organisation_set_status(bigint, text)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.organisation_set_status(bigint, text)
    TO referral_app;


-- Contact data: the row of person with the keys of a contact set.  Null where
-- there is nothing to write.

CREATE FUNCTION referral.person_write(what text, id bigint,
                                      organisation_id bigint, role text,
                                      contact jsonb) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p              referral.person;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    contact := referral.options_check(what, contact,
        '{first_name,last_name,name,email,phone,company,address}');

    IF contact = '{}' THEN
        RETURN person_write.id;
    END IF;

    IF person_write.id IS NOT NULL THEN
        SELECT * INTO p
            FROM referral.person r
            WHERE r.id = person_write.id
                  AND r.organisation_id = person_write.organisation_id
            FOR NO KEY UPDATE;
    END IF;

    p := referral.options_apply(what, p, contact);

    IF p.id IS NULL THEN
        INSERT INTO referral.person (organisation_id, role, first_name,
                                     last_name, name, email, phone, company,
                                     address)
            VALUES (person_write.organisation_id, person_write.role,
                    p.first_name, p.last_name, p.name, p.email, p.phone,
                    p.company, p.address)
            RETURNING person.id INTO p.id;

    ELSE
        UPDATE referral.person r
            SET first_name = p.first_name, last_name = p.last_name,
                name = p.name, email = p.email, phone = p.phone,
                company = p.company, address = p.address, erased_at = NULL
            WHERE r.id = p.id
                  AND (r.first_name, r.last_name, r.name, r.email, r.phone,
                       r.company, r.address, r.erased_at)
                      IS DISTINCT FROM
                      (p.first_name, p.last_name, p.name, p.email, p.phone,
                       p.company, p.address, NULL);
    END IF;

    RETURN p.id;

EXCEPTION
    WHEN unique_violation THEN
        RAISE EXCEPTION '%(): a referrer with this e-mail address is there'
                        ' already', what
            USING ERRCODE = 'RF018',
                  HINT = 'An organisation has one referrer for an address.';

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise(what, broken_table, broken,
                                          broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.person_write(text, bigint, bigint, text,
                                             jsonb) FROM PUBLIC;


CREATE VIEW referral.organisations AS
    SELECT id, slug, name, status, active_programs, max_active_programs,
           currency, time_zone, settings, created_at, updated_at
        FROM referral.organisation
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.organisations TO referral_app, referral_analyst;


CREATE VIEW referral.audit_trail AS
    SELECT id, at, actor, session_user_name, organisation_id, action, object,
           object_id, columns, reason
        FROM referral.audit
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.audit_trail TO referral_app, referral_analyst;

INSERT INTO referral.schema_migration (version, name) VALUES (7, 'tenant');

COMMIT;
