-- Copyright (C) The nginx referral module authors
--
-- Codes: what is printed, shared and clicked.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

CREATE TABLE referral.code (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL,
    program_id       bigint       NOT NULL,
    referrer_id      bigint,
    code             text         COLLATE "C" NOT NULL UNIQUE
                         CHECK (code ~ '^[A-Z0-9_-]{1,64}$'),
    kind             text         NOT NULL DEFAULT 'vanity'
                         CHECK (kind IN ('automatic', 'vanity')),
    own              boolean      NOT NULL DEFAULT false,
    status           text         NOT NULL DEFAULT 'active'
                         CHECK (status IN ('active', 'disabled')),
    campaign         text         CHECK (octet_length(campaign)
                                         BETWEEN 1 AND 128),
    channel          text         CHECK (length(channel) BETWEEN 1 AND 100),
    destination      text         CHECK (
                         referral.destination_problem(destination) IS NULL),
    rules            jsonb        CHECK (jsonb_typeof(rules) = 'object'
                                     AND octet_length(rules::text) <= 8192),
    starts_at        timestamptz  CHECK (starts_at >= '1970-01-02Z'
                                     AND starts_at < '9999-01-01Z'),
    expires_at       timestamptz  CHECK (expires_at >= '1970-01-02Z'
                                     AND expires_at < '9999-01-01Z'),
    max_uses         int          CHECK (max_uses > 0),
    uses             int          NOT NULL DEFAULT 0 CHECK (uses >= 0),
    variant_id       bigint,
    settings         jsonb        NOT NULL DEFAULT '{}'
                         CHECK (jsonb_typeof(settings) = 'object'),
    created_at       timestamptz  NOT NULL DEFAULT now(),
    updated_at       timestamptz  NOT NULL DEFAULT now(),
    UNIQUE (id, organisation_id),
    CONSTRAINT code_dates_check CHECK (expires_at > starts_at),
    CONSTRAINT code_own_check CHECK (referrer_id IS NOT NULL OR NOT own),
    CONSTRAINT code_program_fkey FOREIGN KEY (program_id, organisation_id)
        REFERENCES referral.program (id, organisation_id),
    CONSTRAINT code_referrer_fkey FOREIGN KEY (referrer_id, organisation_id)
        REFERENCES referral.referrer (id, organisation_id),
    CONSTRAINT code_variant_fkey FOREIGN KEY (variant_id, program_id)
        REFERENCES referral.program_variant (id, program_id)
) WITH (fillfactor = 90);

-- the publisher goes through a program's codes by id, a million of them

CREATE INDEX code_program ON referral.code (program_id, id);
CREATE INDEX code_referrer ON referral.code (referrer_id, id)
    WHERE referrer_id IS NOT NULL;
CREATE UNIQUE INDEX code_own ON referral.code (program_id, referrer_id)
    WHERE own;
CREATE INDEX code_variant ON referral.code (variant_id)
    WHERE variant_id IS NOT NULL;

COMMENT ON COLUMN referral.code.code IS
    'folded as the edge folds it: capitals; one of the whole database';
COMMENT ON COLUMN referral.code.own IS
    'the one code of this referrer in this program, made by ensure_code()';
COMMENT ON COLUMN referral.code.destination IS
    'null: the landing_url of the program';
COMMENT ON COLUMN referral.code.uses IS
    'credited referrals; max_uses is compared with it';

COMMENT ON CONSTRAINT code_code_check ON referral.code IS
    '1 to 64 of A-Z, 0-9, _ and -';
COMMENT ON CONSTRAINT code_campaign_check ON referral.code IS
    '1 to 128 bytes';
COMMENT ON CONSTRAINT code_channel_check ON referral.code IS
    '1 to 100 characters';
COMMENT ON CONSTRAINT code_rules_check ON referral.code IS
    'a JSON object of at most 8192 bytes';
COMMENT ON CONSTRAINT code_starts_at_check ON referral.code IS
    'a time from 1970 to 9998';
COMMENT ON CONSTRAINT code_expires_at_check ON referral.code IS
    'a time from 1970 to 9998';
COMMENT ON CONSTRAINT code_dates_check ON referral.code IS
    'an expiry after the start';
COMMENT ON CONSTRAINT code_max_uses_check ON referral.code IS
    '1 or more; null: no limit';
COMMENT ON CONSTRAINT code_settings_check ON referral.code IS
    'a JSON object';
COMMENT ON CONSTRAINT code_own_check ON referral.code IS
    'true only where the code has a referrer';

CREATE TRIGGER touch BEFORE UPDATE ON referral.code
    FOR EACH ROW EXECUTE FUNCTION referral.touch();

DO $$ BEGIN PERFORM referral.audit_table('code', '{uses}'); END $$;


-- What the edges get, one row for each hash of Redis, and nothing else: times
-- in Unix seconds.  A code that no moment is left for is inactive, as the edge
-- takes an expiry before the start for a mistake.

CREATE VIEW referral.code_published AS
    SELECT c.id AS code_id,
           c.code,
           coalesce(c.destination, p.landing_url) AS url,
           CASE WHEN NOT (o.live AND p.live AND coalesce(r.live, true)
                          AND c.status = 'active')
                     OR w.not_before >= w.expires
                THEN 'inactive'
                WHEN c.uses >= c.max_uses THEN 'exhausted'
                ELSE 'active' END AS state,
           CASE WHEN w.not_before >= w.expires THEN NULL
                ELSE w.not_before END AS not_before,
           w.expires,
           c.program_id,
           c.referrer_id,
           coalesce(c.campaign, p.campaign) AS campaign,
           c.rules
        FROM referral.code c
             JOIN referral.program p ON p.id = c.program_id
             JOIN referral.organisation o ON o.id = p.organisation_id
             LEFT JOIN referral.referrer r ON r.id = c.referrer_id
             CROSS JOIN LATERAL
                 (SELECT ceil(extract(epoch FROM
                              greatest(c.starts_at, p.starts_at)))::bigint
                             AS not_before,
                         floor(extract(epoch FROM
                               least(c.expires_at, p.ends_at)))::bigint
                             AS expires) w
        WHERE NOT p.template
              AND coalesce(c.destination, p.landing_url) IS NOT NULL;

COMMENT ON VIEW referral.code_published IS
    'Codes as they are in Redis; templates and codes without a URL are not';

GRANT SELECT ON referral.code_published
    TO referral_worker, referral_app, referral_analyst;


-- The code when there is one with this id inside the scope: RF031.

CREATE FUNCTION referral.code_row(id bigint, locked boolean DEFAULT false)
    RETURNS referral.code
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    c      referral.code;
BEGIN
    IF locked THEN
        SELECT * INTO c
            FROM referral.code t
            WHERE t.id = code_row.id
                  AND (scope IS NULL OR t.organisation_id = scope)
            FOR NO KEY UPDATE;

    ELSE
        SELECT * INTO c
            FROM referral.code t
            WHERE t.id = code_row.id
                  AND (scope IS NULL OR t.organisation_id = scope);
    END IF;

    IF c.id IS NULL THEN
        RAISE EXCEPTION 'code number %: there is none with this id, or it is'
                        ' not yours', coalesce(code_row.id::text, '(null)')
            USING ERRCODE = 'RF031',
                  HINT = 'code_find() gives the id of a code.';
    END IF;

    RETURN c;
END
$$;

REVOKE ALL ON FUNCTION referral.code_row(bigint, boolean) FROM PUBLIC;


-- Folded as the edge does it: a-z become A-Z, nothing else; null: malformed.

CREATE FUNCTION referral.code_fold(code text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN CASE WHEN code COLLATE "C" ~ '^[A-Za-z0-9_-]{1,64}$'
                THEN upper(code COLLATE "C") END;

REVOKE ALL ON FUNCTION referral.code_fold(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.code_fold(text) TO referral_app;


-- The id of a code as a person writes it; null: there is none.

CREATE FUNCTION referral.code_find(code text) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT c.id
                FROM referral.code c
                WHERE c.code = referral.code_fold(code_find.code)
                      AND (referral.organisation_scope() IS NULL
                           OR c.organisation_id
                              = referral.organisation_scope()));

REVOKE ALL ON FUNCTION referral.code_find(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.code_find(text) TO referral_app;


-- Random characters that can not be taken for one another when they are
-- written by hand or read aloud.  From the server's strong random numbers, as
-- gen_random_uuid() has them; 30 characters, so bytes from 240 are left out.

CREATE FUNCTION referral.code_random(wanted int) RETURNS text
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made   text := '';
    bytes  bytea;
BEGIN
    WHILE length(made) < wanted LOOP
        bytes := sha256(uuid_send(gen_random_uuid())
                        || uuid_send(gen_random_uuid()));

        SELECT made || coalesce(string_agg(
                   substr('23456789ABCDEFGHJKMNPQRSTVWXYZ',
                          get_byte(bytes, i) % 30 + 1, 1), '' ORDER BY i), '')
            INTO made
            FROM generate_series(0, 31) i
            WHERE get_byte(bytes, i) < 240;
    END LOOP;

    RETURN left(made, wanted);
END
$$;

REVOKE ALL ON FUNCTION referral.code_random(int) FROM PUBLIC;


-- How long automatic codes are: of a million possible ones at most one is a
-- code, so that nobody finds one by trying.  30^8 is 656,100 million.

CREATE FUNCTION referral.code_length() RETURNS int
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT CASE WHEN n < 656100 THEN 8
                        WHEN n < 19683000 THEN 9
                        WHEN n < 590490000 THEN 10
                        ELSE 12 END
                FROM (SELECT coalesce(max(id), 0) AS n FROM referral.code) c);

REVOKE ALL ON FUNCTION referral.code_length() FROM PUBLIC;


-- The keys that code_create() and code_update() take.

CREATE FUNCTION referral.code_options() RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN '{campaign,channel,destination,rules,starts_at,expires_at,max_uses,'
           'variant_id,settings}'::text[];

REVOKE ALL ON FUNCTION referral.code_options() FROM PUBLIC;


-- The code with options applied: times without a zone are the program's.

CREATE FUNCTION referral.code_apply(what text, c referral.code, zone text,
                                    options jsonb) RETURNS referral.code
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    SET datestyle = 'ISO, YMD'
AS $$
BEGIN
    PERFORM set_config('TimeZone', zone, true);     -- until this one returns

    c := referral.options_apply(what, c, options);

    IF options ? 'destination' THEN
        PERFORM referral.destination_check(what, 'destination',
                                           c.destination);
    END IF;

    RETURN c;
END
$$;

REVOKE ALL ON FUNCTION referral.code_apply(text, referral.code, text, jsonb)
    FROM PUBLIC;


-- Says that a code is taken, and names some that are not.

CREATE FUNCTION referral.code_taken(code text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    free  text;
BEGIN
    SELECT string_agg(f.candidate, ', ' ORDER BY f.n) INTO free
        FROM (SELECT left(code_taken.code, 61) || '-' || n AS candidate, n
                  FROM generate_series(2, 99) n
                  WHERE NOT EXISTS (
                      SELECT FROM referral.code c
                          WHERE c.code = left(code_taken.code, 61) || '-' || n)
                  ORDER BY n
                  LIMIT 3) f;

    RAISE EXCEPTION 'the code % is taken', code_taken.code
        USING ERRCODE = 'RF029',
              HINT = 'Codes are one of the whole database, in capitals.'
                     || coalesce(' Free: ' || free || '.', '');
END
$$;

REVOKE ALL ON FUNCTION referral.code_taken(text) FROM PUBLIC;


-- Whether a referrer may have a code in a program: RF027, or RF024 when the
-- terms are not accepted.

CREATE FUNCTION referral.code_allowed(p referral.program, r referral.referrer)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem  text := referral.ineligible(p, r);
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'referrer % can have no code in program % (%): it %',
                        r.id, p.id, p.slug, problem
            USING ERRCODE = 'RF027',
                  HINT = 'referrer_approve(), referrer_set_status() or'
                         ' referrer_update() changes the referrer,'
                         ' program_update() what the program asks for.';
    END IF;

    IF p.terms_required
       AND NOT EXISTS (SELECT FROM referral.terms_acceptance t
                           WHERE t.program_id = p.id
                                 AND t.referrer_id = r.id
                                 AND t.terms_version = p.terms_version)
    THEN
        RAISE EXCEPTION 'referrer % has not accepted the terms of program %'
                        ' (%), version %', r.id, p.id, p.slug, p.terms_version
            USING ERRCODE = 'RF024', HINT = 'terms_accept() accepts them.';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.code_allowed(referral.program,
                                             referral.referrer) FROM PUBLIC;


-- Inserts a code, automatic ones as often as it takes.  An own code that is
-- there already is returned (RF034 when another one was wanted).

CREATE FUNCTION referral.code_insert(what text, p referral.program,
                                     c referral.code, name text)
    RETURNS referral.code
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made           referral.code;
    wanted         text := c.code;
    stem           text := coalesce(p.code_prefix, '');
    long           int;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    IF wanted IS NULL AND name IS NOT NULL THEN
        stem := stem || left(upper(regexp_replace(name COLLATE "C",
                                       '[^A-Za-z0-9]', '', 'g')), 16);
        long := 4;

    ELSIF wanted IS NULL THEN
        long := referral.code_length();
    END IF;

    c.kind := CASE WHEN wanted IS NULL THEN 'automatic' ELSE 'vanity' END;

    FOR attempt IN 1 .. 24 LOOP

        -- a character more after every fourth collision

        IF wanted IS NULL THEN
            c.code := stem || referral.code_random(long + (attempt - 1) / 4);
        END IF;

        INSERT INTO referral.code AS t (organisation_id, program_id,
                referrer_id, code, kind, own, status, campaign, channel,
                destination, rules, starts_at, expires_at, max_uses,
                variant_id, settings)
            VALUES (p.organisation_id, p.id, c.referrer_id, c.code, c.kind,
                c.own, c.status, c.campaign, c.channel, c.destination,
                c.rules, c.starts_at, c.expires_at, c.max_uses, c.variant_id,
                c.settings)
            ON CONFLICT DO NOTHING
            RETURNING t.* INTO made;

        IF FOUND THEN
            RETURN made;
        END IF;

        IF c.own THEN
            SELECT * INTO made
                FROM referral.code t
                WHERE t.program_id = p.id AND t.referrer_id = c.referrer_id
                      AND t.own;

            IF FOUND THEN
                RETURN made;
            END IF;
        END IF;

        IF wanted IS NOT NULL THEN
            PERFORM referral.code_taken(wanted);
        END IF;
    END LOOP;

    RAISE EXCEPTION '%(): no free code was found', what
        USING ERRCODE = 'RF030',
              HINT = 'Give the program another code_prefix, or try again.';

EXCEPTION
    WHEN foreign_key_violation THEN
        RAISE EXCEPTION '%(): "variant_id": program % has no such variant',
                        what, p.id
            USING ERRCODE = 'RF010',
                  HINT = 'The view referral.program_variants lists them.';

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise(what, broken_table, broken,
                                          broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.code_insert(text, referral.program,
                                            referral.code, text) FROM PUBLIC;


-- Checks what is wanted and inserts it.

CREATE FUNCTION referral.code_write(what text, p referral.program,
                                    r referral.referrer, code text,
                                    options jsonb, own boolean)
    RETURNS referral.code
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c  referral.code;
BEGIN
    PERFORM referral.organisation_live(p.organisation_id);

    IF p.template OR p.status = 'archived' THEN
        RAISE EXCEPTION 'program % (%) is %, it has no codes', p.id, p.slug,
                        CASE WHEN p.template THEN 'a template'
                             ELSE 'archived' END
            USING ERRCODE = 'RF023',
                  HINT = 'program_clone() makes a program of it.';
    END IF;

    IF r.id IS NOT NULL THEN
        PERFORM referral.code_allowed(p, r);
    END IF;

    IF code_write.code IS NOT NULL THEN
        c.code := referral.code_fold(code_write.code);

        IF c.code IS NULL THEN
            RAISE EXCEPTION '%(): "%" is no code', what,
                            left(code_write.code, 100)
                USING ERRCODE = 'RF028',
                      HINT = '1 to 64 of A-Z, a-z, 0-9, _ and -.';
        END IF;
    END IF;

    c.referrer_id := r.id;
    c.own := coalesce(own, false);
    c.status := 'active';
    c.settings := '{}';
    c := referral.code_apply(what, c, p.time_zone,
                             options - '{own,name}'::text[]);

    RETURN referral.code_insert(what, p, c, options ->> 'name');
END
$$;

REVOKE ALL ON FUNCTION referral.code_write(text, referral.program,
                                           referral.referrer, text, jsonb,
                                           boolean) FROM PUBLIC;


-- A code of a program, of a referrer when one is given: this one (RF029 when
-- it is taken), or an automatic one.  Options: campaign, channel, destination,
-- rules, starts_at, expires_at, max_uses, variant_id, settings, status; own
-- (true: the one code that ensure_code() returns; RF034 when there is one);
-- name: of automatic codes, between the program's prefix and the random end.

CREATE FUNCTION referral.code_create(program_id bigint,
                                     referrer_id bigint DEFAULT NULL,
                                     code text DEFAULT NULL,
                                     options jsonb DEFAULT '{}')
    RETURNS referral.code
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p    referral.program := referral.program_row(program_id);
    r    referral.referrer;
    c    referral.code;
    own  jsonb;
BEGIN
    IF code_create.referrer_id IS NOT NULL THEN
        r := referral.referrer_row(code_create.referrer_id);
    END IF;

    options := referral.options_check('code_create', options,
        referral.code_options() || '{status,own,name}'::text[]);
    own := options -> 'own';

    IF jsonb_typeof(own) NOT IN ('boolean', 'null') THEN
        RAISE EXCEPTION 'code_create(): "own" is true or false'
            USING ERRCODE = 'RF010';
    END IF;

    IF own = 'true' THEN
        SELECT * INTO c
            FROM referral.code t
            WHERE t.program_id = p.id AND t.referrer_id = r.id AND t.own;

        IF FOUND THEN
            RAISE EXCEPTION 'referrer % has its own code in program % (%): %',
                            r.id, p.id, p.slug, c.code
                USING ERRCODE = 'RF034',
                      HINT = 'Leave "own" away for another code.';
        END IF;
    END IF;

    RETURN referral.code_write('code_create', p, r, code_create.code, options,
                               own = 'true');
END
$$;

REVOKE ALL ON FUNCTION referral.code_create(bigint, bigint, text, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.code_create(bigint, bigint, text, jsonb)
    TO referral_app;


-- Changes: campaign, channel, destination, rules, starts_at, expires_at,
-- max_uses, variant_id, settings; referrer_id where there is none yet.  The
-- code itself is printed somewhere and never changes.

CREATE FUNCTION referral.code_update(id bigint, changes jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c              referral.code := referral.code_row(id, true);
    p              referral.program := referral.program_row(c.program_id);
    had            bigint := c.referrer_id;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    changes := referral.options_check('code_update', changes,
        referral.code_options() || 'referrer_id'::text);
    c := referral.code_apply('code_update', c, p.time_zone, changes);

    IF c.referrer_id IS DISTINCT FROM had THEN

        IF had IS NOT NULL THEN
            RAISE EXCEPTION 'code % belongs to referrer %', c.code, had
                USING ERRCODE = 'RF010',
                      HINT = 'Disable it and make another one.';
        END IF;

        PERFORM referral.code_allowed(p,
                                      referral.referrer_row(c.referrer_id));
    END IF;

    UPDATE referral.code t
        SET referrer_id = c.referrer_id, campaign = c.campaign,
            channel = c.channel, destination = c.destination,
            rules = c.rules, starts_at = c.starts_at,
            expires_at = c.expires_at, max_uses = c.max_uses,
            variant_id = c.variant_id, settings = c.settings
        WHERE t.id = c.id
              AND (t.referrer_id, t.campaign, t.channel, t.destination,
                   t.rules, t.starts_at, t.expires_at, t.max_uses,
                   t.variant_id, t.settings)
                  IS DISTINCT FROM
                  (c.referrer_id, c.campaign, c.channel, c.destination,
                   c.rules, c.starts_at, c.expires_at, c.max_uses,
                   c.variant_id, c.settings);

EXCEPTION
    WHEN foreign_key_violation THEN
        RAISE EXCEPTION 'code_update(): "variant_id": program % has no such'
                        ' variant', c.program_id
            USING ERRCODE = 'RF010',
                  HINT = 'The view referral.program_variants lists them.';

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('code_update', broken_table, broken,
                                          broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.code_update(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.code_update(bigint, jsonb)
    TO referral_app;


-- active or disabled.

CREATE FUNCTION referral.code_set_status(id bigint, status text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c              referral.code := referral.code_row(id, true);
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    UPDATE referral.code t
        SET status = code_set_status.status
        WHERE t.id = c.id
              AND t.status IS DISTINCT FROM code_set_status.status;

EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('code_set_status', broken_table, broken,
                                      broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.code_set_status(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.code_set_status(bigint, text)
    TO referral_app;


-- The referrer with this external id, made when there is none: also when
-- sessions do so at once.

CREATE FUNCTION referral.referrer_ensure(what text, organisation_id bigint,
                                         external_id text, type text,
                                         options jsonb, contact jsonb)
    RETURNS referral.referrer
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referrer;
BEGIN
    FOR attempt IN 1 .. 2 LOOP
        SELECT * INTO r
            FROM referral.referrer t
            WHERE t.organisation_id = referrer_ensure.organisation_id
                  AND t.external_id = referrer_ensure.external_id;

        IF FOUND THEN
            RETURN r;
        END IF;

        BEGIN
            RETURN referral.referrer_write(what, organisation_id, type,
                options || jsonb_build_object('external_id', external_id),
                contact, 'active');

        EXCEPTION WHEN SQLSTATE 'RF026' OR SQLSTATE 'RF018' THEN
            -- the other session's row is there now, or it was not its fault

            IF attempt = 2 THEN
                RAISE;
            END IF;
        END;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_ensure(text, bigint, text, text,
                                                jsonb, jsonb) FROM PUBLIC;


-- The own code of a user in a program: the same one each time, made at the
-- first, and the referrer with it.  Options, which count only then: type
-- (user), attributes, contact, terms_accepted (true), code (a vanity code) or
-- name, and those of code_create().

CREATE FUNCTION referral.ensure_code(program_id bigint, external_id text,
                                     options jsonb DEFAULT '{}')
    RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p      referral.program := referral.program_row(program_id);
    r      referral.referrer;
    found_ text;
BEGIN
    SELECT c.code INTO found_
        FROM referral.referrer t
             JOIN referral.code c ON c.program_id = p.id
                                     AND c.referrer_id = t.id AND c.own
        WHERE t.organisation_id = p.organisation_id
              AND t.external_id = ensure_code.external_id;

    IF FOUND THEN
        RETURN found_;
    END IF;

    IF ensure_code.external_id IS NULL THEN
        RAISE EXCEPTION 'ensure_code(): "external_id" must not be null'
            USING ERRCODE = 'RF010',
                  HINT = 'It is the user''s id in the application.';
    END IF;

    options := referral.options_check('ensure_code', options,
        referral.code_options()
        || '{type,attributes,contact,terms_accepted,code,name}'::text[]);

    r := referral.referrer_ensure('ensure_code', p.organisation_id,
             ensure_code.external_id, coalesce(options ->> 'type', 'user'),
             CASE WHEN options ? 'attributes'
                  THEN jsonb_build_object('attributes',
                                          options -> 'attributes')
                  ELSE '{}' END,
             options -> 'contact');

    IF options -> 'terms_accepted' = 'true' THEN
        PERFORM referral.terms_accept(p.id, r.id);
    END IF;

    RETURN (referral.code_write('ensure_code', p, r, options ->> 'code',
        options - '{type,attributes,contact,terms_accepted,code}'::text[],
        true)).code;
END
$$;

REVOKE ALL ON FUNCTION referral.ensure_code(bigint, text, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.ensure_code(bigint, text, jsonb)
    TO referral_app;


-- Takes an application.  Options: program, an id: the referrer gets its own
-- code there, with code, name and the options of code_create(); commission_bp.
-- The code, when one was made.

CREATE FUNCTION referral.referrer_approve(id bigint,
                                          options jsonb DEFAULT '{}')
    RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r     referral.referrer := referral.referrer_row(id, true);
    p     referral.program;
    made  referral.code;
BEGIN
    options := referral.options_check('referrer_approve', options,
        referral.code_options()
        || '{program,code,name,commission_bp,terms_accepted}'::text[]);

    IF r.status <> 'applied' THEN
        PERFORM referral.status_refused('referrer', r.id, r.status, 'active',
            'Only who applied is approved; referrer_set_status() takes a'
            ' suspended one back.');
    END IF;

    IF options ? 'commission_bp' THEN
        PERFORM referral.referrer_update(r.id, jsonb_build_object(
                    'commission_bp', options -> 'commission_bp'));
    END IF;

    UPDATE referral.referrer t
        SET status = 'active', reviewed_at = now(),
            reviewed_by = referral.actor(), approved_at = now(),
            rejected_at = NULL, reject_reason = NULL
        WHERE t.id = r.id
        RETURNING t.* INTO r;

    IF options ->> 'program' IS NOT NULL THEN
        IF options ->> 'program' !~ '^[1-9][0-9]{0,17}$' THEN
            RAISE EXCEPTION 'referrer_approve(): "program" is no id'
                USING ERRCODE = 'RF010',
                      HINT = 'The view referral.programs has them.';
        END IF;

        p := referral.program_row((options ->> 'program')::bigint);

        IF options -> 'terms_accepted' = 'true' THEN
            PERFORM referral.terms_accept(p.id, r.id);
        END IF;

        made := referral.code_write('referrer_approve', p, r,
            options ->> 'code',
            options - '{program,code,commission_bp,terms_accepted}'::text[],
            true);
    END IF;

    PERFORM referral.emit_event(r.organisation_id, 'referrer.approved',
        'referrer:' || r.id,
        jsonb_build_object('referrer_id', r.id, 'type', r.type,
                           'program_id', p.id, 'code', made.code));

    RETURN made.code;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_approve(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_approve(bigint, jsonb)
    TO referral_app;

INSERT INTO referral.schema_migration (version, name) VALUES (10, 'code');

COMMIT;
