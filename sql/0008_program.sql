-- Copyright (C) The nginx referral module authors
--
-- Programs, their variants, their terms, and templates.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;


-- What keeps a URL from being a destination, as a sentence; null: nothing.
-- The same acceptance as referral_destination_check() of src/core: absolute,
-- http or https, at most 2048 bytes, a host of DNS names or an IPv6 address,
-- no user name, macros {click_id} {code} {country} only behind the host.

CREATE FUNCTION referral.destination_problem(url text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part  text[];
    host  text;
    port  text;
    rest  text;
BEGIN
    IF octet_length(url) > 2048 THEN
        RETURN format('%s bytes, at most 2048 are accepted',
                      octet_length(url));
    END IF;

    part := regexp_match(url COLLATE "C",
                         '^(?:[Hh][Tt][Tt][Pp][Ss]?)://([^/?#]*)(.*)$');
    IF part IS NULL THEN
        RETURN 'does not begin with http:// or https://';
    END IF;

    host := part[1];
    rest := part[2];

    IF strpos(host, '@') > 0 THEN
        RETURN 'a user name, none is accepted';
    END IF;

    IF left(host, 1) = '[' THEN
        part := regexp_match(host COLLATE "C",
                             '^\[([0-9A-Fa-f:.]{2,45})\](.*)$');

        -- the type takes shorter IPv4 ends than inet_pton() does

        IF part IS NULL OR strpos(part[1], ':') = 0
           OR strpos(part[1], '.') > 0
              AND part[1] !~ (':((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}'
                              '(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])$')
        THEN
            RETURN 'no IPv6 address in the brackets';
        END IF;

        BEGIN
            PERFORM part[1]::inet;
        EXCEPTION WHEN data_exception THEN
            RETURN 'no IPv6 address in the brackets';
        END;

    ELSE
        part := regexp_match(host, '^([^:]*)(.*)$');

        IF strpos(part[1], '{') > 0 THEN
            RETURN 'a macro in the host, they are accepted only after it';
        END IF;

        IF part[1] = '' THEN
            RETURN 'no host';
        END IF;

        IF octet_length(part[1]) <> length(part[1]) THEN
            RETURN 'a non-ASCII byte in the host, write its xn-- form';
        END IF;

        IF part[1] COLLATE "C" !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$' THEN
            RETURN 'a character that does not belong in a host';
        END IF;
    END IF;

    port := part[2];

    IF port <> '' THEN
        IF port COLLATE "C" !~ '^:[0-9]{1,5}$'
           OR substr(port, 2)::int NOT BETWEEN 1 AND 65535
        THEN
            RETURN 'no port 1 to 65535';
        END IF;
    END IF;

    -- a macro becomes a letter, so that nothing is joined over it

    rest := regexp_replace(rest, '\{(click_id|code|country)\}', 'x', 'g');

    IF strpos(rest, '{') > 0 THEN
        RETURN 'no macro, {click_id}, {code} and {country} are accepted, a'
               ' brace is written %7B';
    END IF;

    IF rest COLLATE "C" ~ '[\u0001-\u0020"<>\\^`|}\u007f]' THEN
        RETURN 'a character that is not accepted, write it percent-encoded';
    END IF;

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.destination_problem(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.destination_problem(text)
    TO referral_app;


CREATE FUNCTION referral.destination_check(what text, name text, url text)
    RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem  text := referral.destination_problem(url);
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%(): "%": %', what, name, problem
            USING ERRCODE = 'RF032',
                  HINT = 'An absolute URL, as https://example.com/welcome.';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.destination_check(text, text, text)
    FROM PUBLIC;


-- The words of referrer.type; eligibility refers to them.

CREATE FUNCTION referral.referrer_types() RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN '{customer,partner,influencer,employee,professional,student,parent,'
           'alumni,affiliate,patient,provider,agent,user}'::text[];

REVOKE ALL ON FUNCTION referral.referrer_types() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_types()
    TO referral_app, referral_analyst;


CREATE TABLE referral.program (
    id                          bigint       GENERATED ALWAYS AS IDENTITY
                                                 PRIMARY KEY,
    organisation_id             bigint       NOT NULL
                                    REFERENCES referral.organisation,
    slug                        text         COLLATE "C" NOT NULL
                                    CHECK (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    name                        text         NOT NULL
                                    CHECK (length(name) BETWEEN 1 AND 200),
    description                 text         CHECK (length(description)
                                                    <= 10000),
    type                        text         NOT NULL DEFAULT 'standard'
                                    CHECK (type IN ('standard', 'specialty',
                                        'seasonal', 'student', 'parent',
                                        'affiliate', 'partner', 'customer',
                                        'professional', 'user')),
    status                      text         NOT NULL DEFAULT 'draft'
                                    CHECK (status IN ('draft', 'active',
                                        'paused', 'ended', 'archived')),
    live                        boolean      NOT NULL GENERATED ALWAYS AS
                                    (status = 'active') STORED,
    template                    boolean      NOT NULL DEFAULT false,
    cloned_from                 bigint       REFERENCES referral.program,
    starts_at                   timestamptz  CHECK (starts_at >= '1970-01-02Z'
                                                AND starts_at < '9999-01-01Z'),
    ends_at                     timestamptz  CHECK (ends_at >= '1970-01-02Z'
                                                AND ends_at < '9999-01-01Z'),
    referral_validity           interval     NOT NULL DEFAULT '90 days'
                                    CHECK (referral_validity > '0'
                                       AND referral_validity <= '10 years'),
    attribution                 text         NOT NULL DEFAULT 'last'
                                    CHECK (attribution IN ('first', 'last',
                                        'linear', 'position')),
    attribution_window          interval     NOT NULL DEFAULT '90 days'
                                    CHECK (attribution_window > '0'
                                       AND attribution_window <= '10 years'),
    max_referrals_per_referrer  int          CHECK (max_referrals_per_referrer
                                                    > 0),
    reward_threshold            int          NOT NULL DEFAULT 1
                                    CHECK (reward_threshold
                                           BETWEEN 1 AND 1000000),
    eligibility                 jsonb        NOT NULL DEFAULT '{}'
                                    CHECK (jsonb_typeof(eligibility)
                                           = 'object'),
    targeting                   jsonb        NOT NULL DEFAULT '{}'
                                    CHECK (jsonb_typeof(targeting)
                                           = 'object'),
    terms                       text         CHECK (length(terms) <= 200000),
    terms_version               int          NOT NULL DEFAULT 0,
    terms_required              boolean      NOT NULL DEFAULT false,
    landing_url                 text         CHECK (
                                    referral.destination_problem(landing_url)
                                        IS NULL),
    time_zone                   text         NOT NULL,
    currency                    text         NOT NULL
                                    CHECK (currency ~ '^[A-Z]{3}$'),
    code_prefix                 text         COLLATE "C"
                                    CHECK (code_prefix
                                           ~ '^[A-Z0-9_-]{1,40}$'),
    campaign                    text         CHECK (octet_length(campaign)
                                                    BETWEEN 1 AND 128),
    settings                    jsonb        NOT NULL DEFAULT '{}'
                                    CHECK (jsonb_typeof(settings)
                                           = 'object'),
    created_by                  text         NOT NULL
                                    DEFAULT referral.actor(),
    created_at                  timestamptz  NOT NULL DEFAULT now(),
    updated_at                  timestamptz  NOT NULL DEFAULT now(),
    UNIQUE (organisation_id, slug),
    UNIQUE (id, organisation_id),
    CONSTRAINT program_dates_check CHECK (ends_at > starts_at),
    CONSTRAINT program_template_check CHECK (status IN ('draft', 'archived')
                                             OR NOT template),
    CONSTRAINT program_terms_required_check
        CHECK (terms IS NOT NULL OR NOT terms_required)
);

CREATE INDEX program_cloned_from ON referral.program (cloned_from)
    WHERE cloned_from IS NOT NULL;

COMMENT ON COLUMN referral.program.live IS
    'its codes may be valid at the edge, as far as the program is concerned';
COMMENT ON COLUMN referral.program.reward_threshold IS
    'referrals that a referrer needs before the first reward';
COMMENT ON COLUMN referral.program.eligibility IS
    'types: words of referrer.type, attributes: what referrer.attributes must'
    ' contain; both are enforced, other keys are the application''s';
COMMENT ON COLUMN referral.program.targeting IS
    'conditions and demographics, for the application';
COMMENT ON COLUMN referral.program.terms_version IS
    'raised with each change of terms; 0: there are none';
COMMENT ON COLUMN referral.program.code_prefix IS
    'of automatic codes, as DEV-O-';

COMMENT ON CONSTRAINT program_slug_check ON referral.program IS
    '1 to 63 of a-z, 0-9 and -, the first no -';
COMMENT ON CONSTRAINT program_name_check ON referral.program IS
    '1 to 200 characters';
COMMENT ON CONSTRAINT program_description_check ON referral.program IS
    'at most 10000 characters';
COMMENT ON CONSTRAINT program_starts_at_check ON referral.program IS
    'a time from 1970 to 9998';
COMMENT ON CONSTRAINT program_ends_at_check ON referral.program IS
    'a time from 1970 to 9998';
COMMENT ON CONSTRAINT program_dates_check ON referral.program IS
    'an end after the start';
COMMENT ON CONSTRAINT program_referral_validity_check ON referral.program IS
    'more than nothing, at most 10 years';
COMMENT ON CONSTRAINT program_attribution_window_check ON referral.program IS
    'more than nothing, at most 10 years';
COMMENT ON CONSTRAINT program_max_referrals_per_referrer_check
    ON referral.program IS '1 or more; null: no limit';
COMMENT ON CONSTRAINT program_reward_threshold_check ON referral.program IS
    '1 to 1000000';
COMMENT ON CONSTRAINT program_eligibility_check ON referral.program IS
    'a JSON object';
COMMENT ON CONSTRAINT program_targeting_check ON referral.program IS
    'a JSON object';
COMMENT ON CONSTRAINT program_settings_check ON referral.program IS
    'a JSON object';
COMMENT ON CONSTRAINT program_terms_check ON referral.program IS
    'at most 200000 characters';
COMMENT ON CONSTRAINT program_terms_required_check ON referral.program IS
    'terms, where they are required';
COMMENT ON CONSTRAINT program_currency_check ON referral.program IS
    'three capital letters, as USD (ISO 4217)';
COMMENT ON CONSTRAINT program_code_prefix_check ON referral.program IS
    '1 to 40 of A-Z, 0-9, _ and -';
COMMENT ON CONSTRAINT program_campaign_check ON referral.program IS
    '1 to 128 bytes';
COMMENT ON CONSTRAINT program_template_check ON referral.program IS
    'a template is a draft, or archived';

DO $$ BEGIN PERFORM referral.audit_table('program'); END $$;


-- What rows of program obey beyond constraints.

CREATE FUNCTION referral.program_before() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    types  jsonb := NEW.eligibility -> 'types';
BEGIN
    NEW.updated_at := now();

    IF TG_OP = 'INSERT' THEN
        NEW.terms_version := CASE WHEN NEW.terms IS NULL THEN 0 ELSE 1 END;

    ELSIF NEW.terms IS DISTINCT FROM OLD.terms THEN
        NEW.terms_version := OLD.terms_version + 1;

    ELSE
        NEW.terms_version := OLD.terms_version;
    END IF;

    IF TG_OP = 'INSERT' OR NEW.time_zone IS DISTINCT FROM OLD.time_zone THEN
        PERFORM referral.time_zone_check('program', NEW.time_zone);
    END IF;

    IF types IS NOT NULL
       AND (jsonb_typeof(types) <> 'array'
            OR NOT types <@ to_jsonb(referral.referrer_types()))
       OR jsonb_typeof(NEW.eligibility -> 'attributes') <> 'object'
    THEN
        RAISE EXCEPTION 'program: "eligibility" is not acceptable'
            USING ERRCODE = 'RF010',
                  HINT = format('Accepted: types, an array of %s, and'
                                ' attributes, an object.',
                                array_to_string(referral.referrer_types(),
                                                ', '));
    END IF;

    RETURN NEW;
END
$$;

REVOKE ALL ON FUNCTION referral.program_before() FROM PUBLIC;

CREATE TRIGGER program_before BEFORE INSERT OR UPDATE ON referral.program
    FOR EACH ROW EXECUTE FUNCTION referral.program_before();


-- The limit of active programs.  The organisation's row is changed, not only
-- locked: so it holds at every isolation level.

CREATE FUNCTION referral.program_limit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    more  int := 0;
    o     referral.organisation;
BEGIN
    IF TG_OP <> 'INSERT' AND OLD.status = 'active' THEN
        more := more - 1;
    END IF;

    IF TG_OP <> 'DELETE' AND NEW.status = 'active' THEN
        more := more + 1;
    END IF;

    IF more = 0 THEN
        RETURN NULL;
    END IF;

    SELECT * INTO o
        FROM referral.organisation r
        WHERE r.id = CASE WHEN TG_OP = 'DELETE' THEN OLD.organisation_id
                          ELSE NEW.organisation_id END
        FOR NO KEY UPDATE;

    IF more > 0 AND o.active_programs >= o.max_active_programs THEN
        RAISE EXCEPTION 'organisation % (%): % programs are active, as many as'
                        ' it may have', o.id, o.slug, o.active_programs
            USING ERRCODE = 'RF019',
                  HINT = 'Pause or end one, or raise max_active_programs.';
    END IF;

    UPDATE referral.organisation r
        SET active_programs = r.active_programs + more
        WHERE r.id = o.id;

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.program_limit() FROM PUBLIC;

CREATE TRIGGER program_limit
    AFTER INSERT OR DELETE OR UPDATE OF status ON referral.program
    FOR EACH ROW EXECUTE FUNCTION referral.program_limit();


-- Variants of a program's incentives, for A/B tests.

CREATE TABLE referral.program_variant (
    id          bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    program_id  bigint       NOT NULL REFERENCES referral.program,
    name        text         NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    weight      int          NOT NULL DEFAULT 1
                    CHECK (weight BETWEEN 0 AND 1000000),
    status      text         NOT NULL DEFAULT 'active'
                    CHECK (status IN ('active', 'disabled')),
    settings    jsonb        NOT NULL DEFAULT '{}'
                    CHECK (jsonb_typeof(settings) = 'object'),
    created_at  timestamptz  NOT NULL DEFAULT now(),
    updated_at  timestamptz  NOT NULL DEFAULT now(),
    UNIQUE (program_id, name),
    UNIQUE (id, program_id)
);

COMMENT ON CONSTRAINT program_variant_name_check
    ON referral.program_variant IS '1 to 100 characters';
COMMENT ON CONSTRAINT program_variant_weight_check
    ON referral.program_variant IS '0 (nobody) to 1000000';
COMMENT ON CONSTRAINT program_variant_settings_check
    ON referral.program_variant IS 'a JSON object';

CREATE TRIGGER touch BEFORE UPDATE ON referral.program_variant
    FOR EACH ROW EXECUTE FUNCTION referral.touch();

DO $$ BEGIN PERFORM referral.audit_table('program_variant'); END $$;


-- The program, when there is one with this id inside the scope: RF020.

CREATE FUNCTION referral.program_row(id bigint, locked boolean DEFAULT false)
    RETURNS referral.program
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    p      referral.program;
BEGIN
    IF locked THEN
        SELECT * INTO p
            FROM referral.program r
            WHERE r.id = program_row.id
                  AND (scope IS NULL OR r.organisation_id = scope)
            FOR NO KEY UPDATE;

    ELSE
        SELECT * INTO p
            FROM referral.program r
            WHERE r.id = program_row.id
                  AND (scope IS NULL OR r.organisation_id = scope);
    END IF;

    IF p.id IS NULL THEN
        RAISE EXCEPTION 'program %: there is none with this id, or it is not'
                        ' yours', coalesce(program_row.id::text, '(null)')
            USING ERRCODE = 'RF020',
                  HINT = 'The view referral.programs lists them.';
    END IF;

    RETURN p;
END
$$;

REVOKE ALL ON FUNCTION referral.program_row(bigint, boolean) FROM PUBLIC;


-- The keys that program_create() and program_update() take.

CREATE FUNCTION referral.program_options() RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN '{description,type,starts_at,ends_at,referral_validity,attribution,'
           'attribution_window,max_referrals_per_referrer,reward_threshold,'
           'eligibility,targeting,terms,terms_required,landing_url,time_zone,'
           'currency,code_prefix,campaign,settings}'::text[];

REVOKE ALL ON FUNCTION referral.program_options() FROM PUBLIC;


-- The program with options applied: times without a zone are the program's.

CREATE FUNCTION referral.program_apply(what text, p referral.program,
                                       options jsonb)
    RETURNS referral.program
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    zone  text := coalesce(options ->> 'time_zone', p.time_zone);
BEGIN
    IF options ? 'time_zone' THEN
        PERFORM referral.time_zone_check(what, zone);
    END IF;

    IF options ? 'code_prefix' THEN
        options := options || jsonb_build_object('code_prefix',
                       upper((options ->> 'code_prefix') COLLATE "C"));
    END IF;

    PERFORM set_config('TimeZone', zone, true);     -- until this one returns

    p := referral.options_apply(what, p, options);

    PERFORM referral.destination_check(what, 'landing_url', p.landing_url);

    RETURN p;
END
$$;

REVOKE ALL ON FUNCTION referral.program_apply(text, referral.program, jsonb)
    FROM PUBLIC;


CREATE FUNCTION referral.program_insert(what text, p referral.program)
    RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    INSERT INTO referral.program (organisation_id, slug, name, description,
            type, template, cloned_from, starts_at, ends_at,
            referral_validity, attribution, attribution_window,
            max_referrals_per_referrer, reward_threshold, eligibility,
            targeting, terms, terms_required, landing_url, time_zone,
            currency, code_prefix, campaign, settings)
        VALUES (p.organisation_id, p.slug, p.name, p.description,
            p.type, coalesce(p.template, false), p.cloned_from, p.starts_at,
            p.ends_at, p.referral_validity, p.attribution,
            p.attribution_window, p.max_referrals_per_referrer,
            p.reward_threshold, p.eligibility, p.targeting, p.terms,
            p.terms_required, p.landing_url, p.time_zone, p.currency,
            p.code_prefix, p.campaign, p.settings)
        RETURNING program.id INTO p.id;

    RETURN p.id;

EXCEPTION
    WHEN unique_violation THEN
        PERFORM referral.slug_taken(what, p.slug);

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise(what, broken_table, broken,
                                          broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.program_insert(text, referral.program)
    FROM PUBLIC;


-- A copy of a program as a draft: its settings, variants and reward rules, not
-- its dates, referrers and codes.

CREATE FUNCTION referral.program_copy(what text, source referral.program,
                                      slug text, name text, options jsonb)
    RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program := source;
BEGIN
    p.slug := program_copy.slug;
    p.name := coalesce(program_copy.name, source.name);
    p.template := false;
    p.cloned_from := source.id;
    p.starts_at := NULL;
    p.ends_at := NULL;
    p := referral.program_apply(what, p, options);
    p.id := referral.program_insert(what, p);

    INSERT INTO referral.program_variant (program_id, name, weight, status,
                                          settings)
        SELECT p.id, v.name, v.weight, v.status, v.settings
            FROM referral.program_variant v
            WHERE v.program_id = source.id
            ORDER BY v.id;

    -- a later file makes it

    IF to_regprocedure('referral.reward_rules_clone(bigint, bigint)')
       IS NOT NULL
    THEN
        EXECUTE 'SELECT referral.reward_rules_clone($1, $2)'
            USING source.id, p.id;
    END IF;

    RETURN p.id;
END
$$;

REVOKE ALL ON FUNCTION referral.program_copy(text, referral.program, text,
                                             text, jsonb) FROM PUBLIC;


-- The templates that come with the schema.  An organisation's own are its
-- programs with template = true; they go first.

CREATE FUNCTION referral.program_templates(OUT name text, OUT title text,
                                           OUT advice text, OUT options jsonb)
    RETURNS SETOF record
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.name, t.title, t.advice, t.options::jsonb
        FROM (VALUES
            ('refer-a-friend', 'Customers refer friends',
             'Reward both sides; the friend''s discount opens the door.',
             '{"type": "customer", "attribution": "last",
               "eligibility": {"types": ["customer"]}}'),
            ('student', 'Students and alumni refer students',
             'Pay after enrolment, with tiers for the fifth and the tenth.',
             '{"type": "student", "attribution": "last",
               "referral_validity": "90 days", "terms_required": false,
               "eligibility": {"types": ["student", "alumni"]}}'),
            ('parent', 'Parents refer families',
             'Course credit is spent where it was earned.',
             '{"type": "parent", "attribution": "last",
               "eligibility": {"types": ["parent"]}}'),
            ('affiliate', 'Affiliates and influencers',
             'Commission in percent, paid after the refund period.',
             '{"type": "affiliate", "attribution": "last",
               "attribution_window": "30 days",
               "eligibility": {"types": ["affiliate", "influencer"]}}'),
            ('partner-leads', 'Partners and agents bring leads',
             'Accept or reject each lead within days, pay for converted ones.',
             '{"type": "partner", "attribution": "first",
               "eligibility": {"types": ["partner", "agent",
                                         "professional"]}}'),
            ('patient', 'Patients refer family and friends',
             'Credit rather than cash, a month to redeem it; say nothing about'
             ' health in a link.',
             '{"type": "standard", "referral_validity": "30 days",
               "attribution": "last",
               "eligibility": {"types": ["patient", "customer"]}}'),
            ('user-invite', 'Users of a service invite users',
             'A little at sign-up for both, more at the upgrade.',
             '{"type": "user", "attribution": "last",
               "eligibility": {"types": ["user", "customer"]}}'),
            ('seasonal', 'A season''s campaign',
             'Set starts_at and ends_at, and a multiplier for the season.',
             '{"type": "seasonal", "referral_validity": "30 days",
               "attribution_window": "30 days"}')
        ) t (name, title, advice, options);
END;

REVOKE ALL ON FUNCTION referral.program_templates() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.program_templates()
    TO referral_app, referral_analyst;


-- A draft.  Options: the columns of program_options(), and template: the slug
-- of a template of the organisation, a name of program_templates(), or true
-- to make the program itself a template.

CREATE FUNCTION referral.program_create(organisation_id bigint, slug text,
                                        name text,
                                        options jsonb DEFAULT '{}')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o       referral.organisation;
    p       referral.program;
    wanted  jsonb;
    preset  jsonb;
BEGIN
    o := referral.organisation_live(organisation_id);
    options := referral.options_check('program_create', options,
        referral.program_options() || 'template'::text);
    wanted := options -> 'template';
    options := options - 'template';

    IF jsonb_typeof(wanted) = 'string' THEN
        SELECT * INTO p
            FROM referral.program r
            WHERE r.organisation_id = o.id AND r.slug = wanted #>> '{}'
                  AND r.template AND r.status = 'draft';

        IF p.id IS NOT NULL THEN
            RETURN referral.program_copy('program_create', p, slug, name,
                                         options);
        END IF;

        SELECT t.options INTO preset
            FROM referral.program_templates() t
            WHERE t.name = wanted #>> '{}';

        IF preset IS NULL THEN
            RAISE EXCEPTION 'program_create(): no template "%"',
                            left(wanted #>> '{}', 100)
                USING ERRCODE = 'RF022',
                      HINT = 'Programs of the organisation with template ='
                             ' true, and those of program_templates().';
        END IF;

        options := preset || options;

    ELSIF jsonb_typeof(wanted) NOT IN ('boolean', 'null') THEN
        RAISE EXCEPTION 'program_create(): "template" is a name, or true'
            USING ERRCODE = 'RF010';
    END IF;

    p.organisation_id := o.id;
    p.slug := program_create.slug;
    p.name := program_create.name;
    p.type := 'standard';
    p.template := coalesce(wanted = 'true', false);
    p.referral_validity := '90 days';
    p.attribution := 'last';
    p.attribution_window := '90 days';
    p.reward_threshold := 1;
    p.eligibility := '{}';
    p.targeting := '{}';
    p.terms_required := false;
    p.time_zone := o.time_zone;
    p.currency := o.currency;
    p.settings := '{}';

    p := referral.program_apply('program_create', p, options);

    RETURN referral.program_insert('program_create', p);
END
$$;

REVOKE ALL ON FUNCTION referral.program_create(bigint, text, text, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.program_create(bigint, text, text, jsonb)
    TO referral_app;


-- A draft with the settings of another program.  Options: name, template
-- (true: the copy is a template) and the columns of program_options().

CREATE FUNCTION referral.program_clone(id bigint, slug text,
                                       options jsonb DEFAULT '{}')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    source   referral.program := referral.program_row(id);
    made     bigint;
    as_      jsonb;
BEGIN
    PERFORM referral.organisation_live(source.organisation_id);
    options := referral.options_check('program_clone', options,
        referral.program_options() || '{name,template}'::text[]);
    as_ := options -> 'template';

    IF jsonb_typeof(as_) NOT IN ('boolean', 'null') THEN
        RAISE EXCEPTION 'program_clone(): "template" is true or false'
            USING ERRCODE = 'RF010';
    END IF;

    made := referral.program_copy('program_clone', source, slug,
                                  options ->> 'name',
                                  options - '{name,template}'::text[]);

    IF as_ = 'true' THEN
        UPDATE referral.program r SET template = true WHERE r.id = made;
    END IF;

    RETURN made;
END
$$;

REVOKE ALL ON FUNCTION referral.program_clone(bigint, text, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.program_clone(bigint, text, jsonb)
    TO referral_app;


-- Changes: slug, name and the columns of program_options().

CREATE FUNCTION referral.program_update(id bigint, changes jsonb)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p              referral.program;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    p := referral.program_row(id, true);
    changes := referral.options_check('program_update', changes,
        '{slug,name}'::text[] || referral.program_options());

    IF changes = '{}' THEN
        RETURN;
    END IF;

    p := referral.program_apply('program_update', p, changes);

    UPDATE referral.program r
        SET slug = p.slug, name = p.name, description = p.description,
            type = p.type, starts_at = p.starts_at, ends_at = p.ends_at,
            referral_validity = p.referral_validity,
            attribution = p.attribution,
            attribution_window = p.attribution_window,
            max_referrals_per_referrer = p.max_referrals_per_referrer,
            reward_threshold = p.reward_threshold,
            eligibility = p.eligibility, targeting = p.targeting,
            terms = p.terms, terms_required = p.terms_required,
            landing_url = p.landing_url, time_zone = p.time_zone,
            currency = p.currency, code_prefix = p.code_prefix,
            campaign = p.campaign, settings = p.settings
        WHERE r.id = p.id;

    PERFORM referral.emit_event(p.organisation_id, 'program.updated',
        'program:' || p.id,
        jsonb_build_object('program_id', p.id, 'status', p.status, 'changed',
            (SELECT jsonb_agg(key ORDER BY key)
                 FROM jsonb_object_keys(changes) key)));

EXCEPTION
    WHEN unique_violation THEN
        PERFORM referral.slug_taken('program_update', p.slug);

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('program_update', broken_table,
                                          broken, broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.program_update(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.program_update(bigint, jsonb)
    TO referral_app;


-- draft to active or archived, active to paused or ended, paused to active or
-- ended, ended to active or archived; the status it has already is no error.

CREATE FUNCTION referral.program_set_status(id bigint, status text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program;
BEGIN
    p := referral.program_row(id, true);

    IF p.status = program_set_status.status THEN
        RETURN;
    END IF;

    IF p.template AND program_set_status.status = 'active' THEN
        RAISE EXCEPTION 'program % (%) is a template', p.id, p.slug
            USING ERRCODE = 'RF023',
                  HINT = 'program_clone() makes a program of it.';
    END IF;

    IF (p.status, program_set_status.status) NOT IN (
            ('draft', 'active'), ('draft', 'archived'),
            ('active', 'paused'), ('active', 'ended'),
            ('paused', 'active'), ('paused', 'ended'),
            ('ended', 'active'), ('ended', 'archived'))
       OR program_set_status.status IS NULL
    THEN
        RAISE EXCEPTION 'program % (%) is %, it can not become %', p.id,
                        p.slug, p.status,
                        coalesce(left(program_set_status.status, 100),
                                 '(null)')
            USING ERRCODE = 'RF021',
                  HINT = 'draft: active, archived; active: paused, ended;'
                         ' paused: active, ended; ended: active, archived.';
    END IF;

    UPDATE referral.program r
        SET status = program_set_status.status
        WHERE r.id = p.id;

    PERFORM referral.emit_event(p.organisation_id, 'program.updated',
        'program:' || p.id,
        jsonb_build_object('program_id', p.id, 'status',
                           program_set_status.status, 'changed',
                           '["status"]'::jsonb));
END
$$;

REVOKE ALL ON FUNCTION referral.program_set_status(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.program_set_status(bigint, text)
    TO referral_app;


-- Makes or changes the variant of this name.  Weight 0 to 1000000: its share
-- of the sum; settings, which may be {"status": "disabled"}: kept as they are.

CREATE FUNCTION referral.program_variant_set(program_id bigint, name text,
                                             weight int DEFAULT 1,
                                             settings jsonb DEFAULT '{}',
                                             status text DEFAULT 'active')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p              referral.program := referral.program_row(program_id);
    made           bigint;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    INSERT INTO referral.program_variant AS v (program_id, name, weight,
                                               settings, status)
        VALUES (p.id, program_variant_set.name, program_variant_set.weight,
                program_variant_set.settings, program_variant_set.status)
        ON CONFLICT ON CONSTRAINT program_variant_program_id_name_key
            DO UPDATE SET weight = excluded.weight,
                          settings = excluded.settings,
                          status = excluded.status
        RETURNING v.id INTO made;

    RETURN made;

EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('program_variant_set', broken_table,
                                      broken, broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.program_variant_set(bigint, text, int, jsonb,
                                                    text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.program_variant_set(bigint, text, int,
                                                       jsonb, text)
    TO referral_app;


-- The variant for a key (a user, a code): the same as long as the active
-- variants and weights are the same; null: none.  SHA-256, as the hash
-- functions of Postgres may differ between versions.

CREATE FUNCTION referral.variant_pick(program_id bigint, key text)
    RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT v.id
                FROM (SELECT id, sum(weight) OVER (ORDER BY id) AS upto,
                             sum(weight) OVER () AS total
                          FROM referral.program_variant w
                          WHERE w.program_id = variant_pick.program_id
                                AND w.status = 'active' AND w.weight > 0) v
                WHERE v.upto > ('x0' || left(encode(sha256(convert_to(
                                     variant_pick.program_id || ':'
                                     || coalesce(variant_pick.key, ''),
                                     'UTF8')), 'hex'), 15))::bit(64)::bigint
                               % v.total
                ORDER BY v.upto
                LIMIT 1);

REVOKE ALL ON FUNCTION referral.variant_pick(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.variant_pick(bigint, text)
    TO referral_app;


CREATE VIEW referral.programs AS
    SELECT p.id, p.organisation_id, o.slug AS organisation, p.slug, p.name,
           p.description, p.type, p.status, p.template, p.cloned_from,
           p.starts_at, p.ends_at, p.referral_validity, p.attribution,
           p.attribution_window, p.max_referrals_per_referrer,
           p.reward_threshold, p.eligibility, p.targeting, p.terms,
           p.terms_version, p.terms_required, p.landing_url, p.time_zone,
           p.currency, p.code_prefix, p.campaign, p.settings, p.created_by,
           p.created_at, p.updated_at
        FROM referral.program p
             JOIN referral.organisation o ON o.id = p.organisation_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR p.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.programs TO referral_app, referral_analyst;


CREATE VIEW referral.program_variants AS
    SELECT v.id, v.program_id, v.name, v.weight, v.status, v.settings,
           v.created_at, v.updated_at
        FROM referral.program_variant v
             JOIN referral.program p ON p.id = v.program_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR p.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.program_variants TO referral_app, referral_analyst;

INSERT INTO referral.schema_migration (version, name) VALUES (8, 'program');

COMMIT;
