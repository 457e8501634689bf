-- Copyright (C) The nginx referral module authors
--
-- Referrals: who was referred by whom, each step, and who is credited.
--
-- Locks are taken in one order everywhere: advisory locks of referees (and
-- of referrers with a limit), referrals by id, codes by id, ledger accounts
-- by id.  So sessions wait for each other and never in a circle.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- Keys for the hashes of e-mail addresses and phone numbers, which are made
-- and looked up under all of them.  Only the owner reads them.  To rotate:
-- insert a key, SELECT referral.hash_rekey() until it says 0, and delete the
-- old one: what is hashed under no other key is then no longer recognised.

CREATE TABLE referral.hash_key (
    id         text         PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_-]{1,16}$'),
    secret     bytea        NOT NULL CHECK (length(secret) BETWEEN 16 AND 64),
    inner_pad  bytea        GENERATED ALWAYS AS
                                (referral.hmac_pad(secret, 54)) STORED,
    outer_pad  bytea        GENERATED ALWAYS AS
                                (referral.hmac_pad(secret, 92)) STORED,
    added_at   timestamptz  NOT NULL DEFAULT clock_timestamp()
);

-- version 4 UUIDs: 4 times 122 bits of the server's strong random numbers
INSERT INTO referral.hash_key (id, secret)
    SELECT 'h1', sha256(string_agg(uuid_send(gen_random_uuid()), ''))
        FROM generate_series(1, 4);


-- The steps that are legal, and who makes them: 'anyone' by
-- referral_set_status(), 'attribution' where the credit is decided, 'money'
-- where a conversion, a reward or a payout is recorded.

CREATE TABLE referral.referral_transition (
    from_status  text  NOT NULL,
    to_status    text  NOT NULL,
    made_by      text  NOT NULL
                       CHECK (made_by IN ('anyone', 'attribution', 'money')),
    PRIMARY KEY (from_status, to_status)
);

INSERT INTO referral.referral_transition (from_status, to_status, made_by)
    VALUES ('pending', 'accepted', 'anyone'),
           ('pending', 'rejected', 'anyone'),
           ('pending', 'declined', 'anyone'),
           ('pending', 'cancelled', 'anyone'),
           ('pending', 'expired', 'anyone'),
           ('pending', 'registered', 'attribution'),
           ('pending', 'superseded', 'attribution'),
           ('pending', 'converted', 'money'),
           ('accepted', 'rejected', 'anyone'),
           ('accepted', 'declined', 'anyone'),
           ('accepted', 'cancelled', 'anyone'),
           ('accepted', 'expired', 'anyone'),
           ('accepted', 'registered', 'attribution'),
           ('accepted', 'superseded', 'attribution'),
           ('accepted', 'converted', 'money'),
           ('registered', 'rejected', 'anyone'),
           ('registered', 'cancelled', 'anyone'),
           ('registered', 'expired', 'anyone'),
           ('registered', 'superseded', 'attribution'),
           ('registered', 'converted', 'money'),
           ('expired', 'converted', 'money'),
           ('converted', 'cancelled', 'anyone'),
           ('converted', 'rewarded', 'money'),
           ('converted', 'paid', 'money'),
           ('rewarded', 'cancelled', 'anyone'),
           ('rewarded', 'paid', 'money'),
           ('paid', 'cancelled', 'anyone'),
           ('superseded', 'pending', 'attribution'),
           ('superseded', 'registered', 'attribution');

CREATE TABLE referral.referral (
    id                   bigint       GENERATED ALWAYS AS IDENTITY
                                      PRIMARY KEY,
    organisation_id      bigint       NOT NULL
                                      REFERENCES referral.organisation,
    program_id           bigint       NOT NULL REFERENCES referral.program,
    referrer_id          bigint       REFERENCES referral.referrer,
    code_id              bigint       REFERENCES referral.code,
    variant_id           bigint       REFERENCES referral.program_variant,
    person_id            bigint       REFERENCES referral.person,
    referee_external_id  text         CHECK (length(referee_external_id)
                                             BETWEEN 1 AND 200),
    click_id             uuid,
    clicked_at           timestamptz,
    touches              jsonb        NOT NULL DEFAULT '[]',
    source               text         NOT NULL DEFAULT 'other'
                                      CHECK (source IN ('website',
                                          'mobile_app', 'email', 'phone',
                                          'in_person', 'social_media', 'sms',
                                          'direct_link', 'qr', 'other')),
    channel              text,
    campaign             text,
    country              text,
    message              text,
    notes                text,
    status               text         NOT NULL DEFAULT 'pending'
                                      CHECK (status IN ('pending', 'accepted',
                                          'rejected', 'registered',
                                          'converted', 'rewarded', 'paid',
                                          'expired', 'declined', 'cancelled',
                                          'superseded')),
    credited             boolean      NOT NULL DEFAULT false,
    chosen               boolean      NOT NULL DEFAULT false,
    flags                text[]       NOT NULL DEFAULT '{}',
    rule_set_version     int,
    value                bigint,
    currency             text         CHECK (currency ~ '^[A-Z]{3}$'),
    idempotency_key      text         CHECK (length(idempotency_key)
                                             BETWEEN 1 AND 200),
    request_hash         bytea,
    created_by           text         NOT NULL DEFAULT referral.actor(),
    created_at           timestamptz  NOT NULL DEFAULT now(),
    updated_at           timestamptz  NOT NULL DEFAULT now(),
    expires_at           timestamptz,
    accepted_at          timestamptz,
    rejected_at          timestamptz,
    registered_at        timestamptz,
    converted_at         timestamptz,
    rewarded_at          timestamptz,
    paid_at              timestamptz,
    expired_at           timestamptz,
    declined_at          timestamptz,
    cancelled_at         timestamptz,
    superseded_at        timestamptz,
    CHECK (value IS NULL OR currency IS NOT NULL),
    CHECK (NOT credited
           OR status NOT IN ('pending', 'accepted', 'declined', 'superseded'))
) WITH (fillfactor = 80);

COMMENT ON TABLE referral.referral IS
    'One referral; who it is about is in person, by external id, or hashed';
COMMENT ON COLUMN referral.referral.credited IS
    'this referral has its referee, and counts as a use of its code';
COMMENT ON COLUMN referral.referral.chosen IS
    'attribution was decided by hand for this one';
COMMENT ON COLUMN referral.referral.touches IS
    'the clicks and codes it was made from: code, click_id, at, verdict';
COMMENT ON COLUMN referral.referral.message IS
    'from the referrer to the referee; goes with the person, like notes';
COMMENT ON COLUMN referral.referral.flags IS
    'self-referral: rewards of a flagged referral need approval';
COMMENT ON COLUMN referral.referral.value IS
    'minor units of currency: what the referee has bought, net of refunds';

COMMENT ON CONSTRAINT referral_referee_external_id_check
    ON referral.referral IS '1 to 200 characters';

CREATE INDEX referral_program ON referral.referral (program_id, created_at);
CREATE INDEX referral_referrer ON referral.referral (referrer_id, created_at);
CREATE INDEX referral_code ON referral.referral (code_id);
CREATE INDEX referral_person ON referral.referral (person_id)
    WHERE person_id IS NOT NULL;
CREATE INDEX referral_click ON referral.referral (click_id)
    WHERE click_id IS NOT NULL;
CREATE INDEX referral_open ON referral.referral (expires_at)
    WHERE status IN ('pending', 'accepted', 'registered');
CREATE UNIQUE INDEX referral_idempotency
    ON referral.referral (organisation_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;


-- What a referee is known by, under every key.  The partial index is what
-- makes one credited referral per program and referee: any identity that two
-- of them share is refused.

CREATE TABLE referral.referee_identity (
    organisation_id  bigint   NOT NULL,
    program_id       bigint   NOT NULL,
    referral_id      bigint   NOT NULL REFERENCES referral.referral
                              ON DELETE CASCADE,
    kind             text     NOT NULL
                              CHECK (kind IN ('external', 'email', 'phone')),
    hash             bytea    NOT NULL,
    key_id           text     REFERENCES referral.hash_key ON DELETE CASCADE,
    credited         boolean  NOT NULL DEFAULT false,
    PRIMARY KEY (referral_id, hash)
);

CREATE INDEX referee_identity_hash
    ON referral.referee_identity (hash, organisation_id);
CREATE UNIQUE INDEX referee_identity_credited
    ON referral.referee_identity (program_id, hash) WHERE credited;


CREATE TABLE referral.referral_step (
    id           bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    referral_id  bigint       NOT NULL REFERENCES referral.referral
                              ON DELETE CASCADE,
    at           timestamptz  NOT NULL DEFAULT now(),
    from_status  text,
    to_status    text         NOT NULL,
    actor        text         NOT NULL DEFAULT referral.actor(),
    reason       text
);

CREATE INDEX referral_step_referral ON referral.referral_step (referral_id);


-- Why a referral was credited: every touch with its verdict and its weight in
-- basis points.  The referral is that of the one credited; its rewards are
-- shared by the weights where the model is linear or position.

CREATE TABLE referral.attribution (
    id                    bigint       GENERATED ALWAYS AS IDENTITY
                                       PRIMARY KEY,
    organisation_id       bigint       NOT NULL
                                       REFERENCES referral.organisation,
    program_id            bigint       NOT NULL REFERENCES referral.program,
    referral_id           bigint       NOT NULL REFERENCES referral.referral,
    previous_referral_id  bigint       REFERENCES referral.referral,
    model                 text         NOT NULL
                                       CHECK (model IN ('first', 'last',
                                           'linear', 'position', 'manual')),
    reason                text,
    candidates            jsonb        NOT NULL,
    decided_by            text         NOT NULL DEFAULT referral.actor(),
    decided_at            timestamptz  NOT NULL DEFAULT now(),
    CHECK (model <> 'manual' OR reason IS NOT NULL)
);

CREATE INDEX attribution_referral ON referral.attribution (referral_id);

COMMENT ON COLUMN referral.attribution.candidates IS
    'in order of time: code, code_id, referrer_id, referral_id, click_id, at,'
    ' why (null: eligible), weight_bp (they add up to 10000), winner';


-- Settings of a program: its own, else its organisation's.
--
--   self_referral         refuse (default), flag or allow
--   referee_identity      array of external, email, phone (default: all)
--   referee_contact       keep (default) or hash: no personal data is stored
--   email_provider_rules  true: dots and +tags as the provider reads them
--   calling_code          of phone numbers without one, such as 49
--   trunk_prefix          what such numbers begin with (default 0)

CREATE FUNCTION referral.program_setting(p referral.program, key text)
    RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce(p.settings -> key,
                    (SELECT o.settings -> key FROM referral.organisation o
                         WHERE o.id = p.organisation_id));
END
$$;


-- An e-mail address as it is compared: trimmed, composed (NFC), ASCII letters
-- in lower case.  With the rules of providers: gmail.com ignores dots, and it
-- and others what follows a plus.  Null when it is none.

CREATE FUNCTION referral.email_normal(email text,
                                      provider_rules boolean DEFAULT false)
    RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    address  text := lower(normalize(btrim(email, E' \t\r\n'), NFC)
                           COLLATE "C");
    name     text;
    domain   text;
BEGIN
    IF address IS NULL OR octet_length(address) > 320
       OR address !~ '^[^@[:space:][:cntrl:]]+@[^@[:space:][:cntrl:]]+$'
    THEN
        RETURN NULL;
    END IF;

    IF NOT provider_rules THEN
        RETURN address;
    END IF;

    name := split_part(address, '@', 1);
    domain := split_part(address, '@', 2);

    IF domain IN ('gmail.com', 'googlemail.com', 'outlook.com', 'hotmail.com',
                  'live.com', 'icloud.com', 'me.com', 'fastmail.com',
                  'proton.me', 'protonmail.com')
       AND name !~ '^\+'
    THEN
        name := split_part(name, '+', 1);
    END IF;

    IF domain IN ('gmail.com', 'googlemail.com') THEN
        domain := 'gmail.com';
        name := replace(name, '.', '');
    END IF;

    RETURN name || '@' || domain;
END
$$;


-- A phone number as it is compared: + and 7 to 15 digits (ITU-T E.164); an
-- extension is dropped.  Without a calling code, and none by default, the
-- digits alone.  Null when it is none.

CREATE FUNCTION referral.phone_normal(phone text,
                                      calling_code text DEFAULT NULL,
                                      trunk_prefix text DEFAULT '0')
    RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    number  text := regexp_replace(lower(btrim(phone) COLLATE "C"), '^tel:',
                                   '');
BEGIN
    number := regexp_replace(number, '[a-z;,#].*$', '');

    IF number ~ '^[^0-9]*(\+|00)' THEN
        number := replace(number, '(0)', '');
    END IF;

    number := regexp_replace(number, '[^0-9+]', '', 'g');
    number := regexp_replace(number, '^00', '+');

    IF left(number, 1) <> '+' AND calling_code IS NOT NULL THEN
        IF trunk_prefix <> '' AND starts_with(number, trunk_prefix) THEN
            number := substr(number, length(trunk_prefix) + 1);
        END IF;

        number := '+' || ltrim(calling_code, '+') || number;
    END IF;

    RETURN CASE WHEN number ~ '^\+?[0-9]{7,15}$' THEN number END;
END
$$;


-- What a referee is known by: the external id, and the normalised e-mail and
-- phone under every key (HMAC-SHA256), the newest key first.  Unless lenient,
-- what can not be read is an error rather than a referee not recognised.

CREATE FUNCTION referral.referee_hashes(p referral.program, external_id text,
                                        email text, phone text,
                                        lenient boolean DEFAULT false)
    RETURNS TABLE (kind text, hash bytea, key_id text)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kinds   jsonb := coalesce(referral.program_setting(p, 'referee_identity'),
                              '["external", "email", "phone"]');
    e_mail  text := referral.email_normal(email,
                        coalesce(referral.program_setting(p,
                            'email_provider_rules') = 'true', false));
    number  text := referral.phone_normal(phone,
                        referral.program_setting(p, 'calling_code') #>> '{}',
                        coalesce(referral.program_setting(p, 'trunk_prefix')
                                     #>> '{}', '0'));
BEGIN
    IF NOT lenient AND nullif(btrim(email), '') IS NOT NULL
       AND e_mail IS NULL
    THEN
        RAISE EXCEPTION 'the e-mail address of the referee can not be read'
            USING ERRCODE = 'RF100',
                  HINT = 'An address is name@domain, without spaces.';
    END IF;

    IF NOT lenient AND nullif(btrim(phone), '') IS NOT NULL
       AND number IS NULL
    THEN
        RAISE EXCEPTION 'the phone number of the referee can not be read'
            USING ERRCODE = 'RF100',
                  HINT = 'A number has 7 to 15 digits.';
    END IF;

    IF external_id IS NOT NULL AND kinds ? 'external' THEN
        RETURN QUERY SELECT 'external',
                            sha256(convert_to('external:' || external_id,
                                              'UTF8')),
                            NULL::text;
    END IF;

    RETURN QUERY
        SELECT v.kind,
               sha256(k.outer_pad || sha256(k.inner_pad
                   || convert_to(v.kind || ':' || v.value, 'UTF8'))),
               k.id
            FROM referral.hash_key k,
                 (VALUES ('email', e_mail), ('phone', number))
                     v (kind, value)
            WHERE v.value IS NOT NULL AND kinds ? v.kind
            ORDER BY k.added_at DESC, k.id DESC;
END
$$;


-- Serializes whatever is about these referees, and then what else is named,
-- each in one order.

CREATE FUNCTION referral.referee_lock(organisation_id bigint, hashes bytea[],
                                      others text[] DEFAULT '{}')
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key  bigint;
BEGIN
    -- what is decided behind the lock must be seen as it is by then
    IF current_setting('transaction_isolation') NOT IN ('read committed',
                                                        'read uncommitted')
    THEN
        RAISE EXCEPTION 'referrals are not written in a transaction that is %',
                        current_setting('transaction_isolation')
            USING ERRCODE = 'RF064',
                  HINT = 'Use BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;

    FOR key IN
        SELECT n.number
            FROM (SELECT 1 AS class,
                         hashtextextended('referral.referee/'
                                          || encode(h, 'hex'),
                                          organisation_id) AS number
                      FROM unnest(hashes) h
                  UNION
                  SELECT 2, hashtextextended('referral.' || o, organisation_id)
                      FROM unnest(others) o) n
            ORDER BY n.class, n.number
    LOOP
        PERFORM pg_advisory_xact_lock(key);
    END LOOP;
END
$$;


-- Enters what the referee is known by, under every key, and the contact data
-- unless the program keeps none.  What is known already stays: only what is
-- missing is filled in.

CREATE FUNCTION referral.referee_identify(r referral.referral,
                                          external_id text, contact jsonb)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p        referral.program;
    known    jsonb;
    person   bigint := r.person_id;
    missing  jsonb;
BEGIN
    SELECT * INTO p FROM referral.program g WHERE g.id = r.program_id;

    IF contact IS NOT NULL
       AND coalesce(referral.program_setting(p, 'referee_contact') #>> '{}',
                    'keep') <> 'hash'
    THEN
        SELECT jsonb_strip_nulls(to_jsonb(h)) INTO known
            FROM referral.person h WHERE h.id = person;
        SELECT coalesce(jsonb_object_agg(c.key,
                   CASE WHEN c.key IN ('email', 'phone')
                             AND jsonb_typeof(c.value) = 'string'
                        THEN to_jsonb(btrim(c.value #>> '{}', E' \t\r\n'))
                        ELSE c.value END), '{}')
            INTO missing
            FROM jsonb_each(contact) c
            WHERE NOT coalesce(known ? c.key, false);
        person := referral.person_write('referral', person, r.organisation_id,
                                        'referee', missing);
    END IF;

    INSERT INTO referral.referee_identity (organisation_id, program_id,
                                           referral_id, kind, hash, key_id,
                                           credited)
        SELECT r.organisation_id, r.program_id, r.id, h.kind, h.hash,
               h.key_id, r.credited
            FROM referral.referee_hashes(p, external_id, contact ->> 'email',
                                         contact ->> 'phone') h
        ON CONFLICT DO NOTHING;

    UPDATE referral.referral f
        SET person_id = person,
            referee_external_id = coalesce(f.referee_external_id,
                                           external_id),
            updated_at = now()
        WHERE f.id = r.id
              AND (f.person_id IS DISTINCT FROM person
                   OR f.referee_external_id IS NULL
                      AND external_id IS NOT NULL);
END
$$;


-- Adds the hashes that the newest key lacks, as far as the contact data is
-- there; the number of referrals that got some, 0 when it is done.

CREATE FUNCTION referral.hash_rekey(slice int DEFAULT 10000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    newest  text;
    r       referral.referral;
    h       referral.person;
    done    bigint := 0;
BEGIN
    SELECT k.id INTO newest FROM referral.hash_key k
        ORDER BY k.added_at DESC, k.id DESC LIMIT 1;

    FOR r IN
        SELECT f.* FROM referral.referral f
            WHERE EXISTS (SELECT FROM referral.person e
                                      JOIN referral.referee_identity i
                                          ON i.referral_id = f.id
                              WHERE e.id = f.person_id
                                    AND CASE i.kind
                                        WHEN 'email' THEN e.email
                                        WHEN 'phone' THEN e.phone
                                        END IS NOT NULL
                                    AND NOT EXISTS (
                                        SELECT FROM referral.referee_identity n
                                            WHERE n.referral_id = f.id
                                                  AND n.kind = i.kind
                                                  AND n.key_id = newest))
            ORDER BY f.id LIMIT slice
            FOR NO KEY UPDATE
    LOOP
        SELECT * INTO h FROM referral.person e WHERE e.id = r.person_id;
        PERFORM referral.referee_identify(r, NULL,
                    jsonb_build_object('email', h.email, 'phone', h.phone));
        done := done + EXISTS (SELECT FROM referral.referee_identity i
                                   WHERE i.referral_id = r.id
                                         AND i.key_id = newest)::int;
    END LOOP;

    RETURN done;
END
$$;


-- The source of a referral by how its click came.

CREATE FUNCTION referral.source_guess(via text, medium text, utm_source text,
                                      referer_host text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN CASE
        WHEN via = 'scan' OR lower(medium) IN ('qr', 'qrcode', 'qr_code')
            THEN 'qr'
        WHEN lower(medium) IN ('email', 'e-mail', 'newsletter')
             OR lower(utm_source) IN ('email', 'newsletter')
             OR referer_host ~ '^(mail|webmail|outlook)\.'
            THEN 'email'
        WHEN lower(medium) IN ('sms', 'mms', 'text')
             OR lower(utm_source) = 'sms'
            THEN 'sms'
        WHEN lower(medium) IN ('social', 'social_media', 'social-media')
             OR referer_host ~ ('(^|\.)(facebook|instagram|twitter|x|linkedin'
                                '|tiktok|reddit|youtube|pinterest|threads'
                                '|whatsapp|telegram|snapchat)\.(com|org|net)$')
             OR referer_host IN ('t.co', 'lnkd.in', 't.me', 'wa.me',
                                 'youtu.be', 'bsky.app')
            THEN 'social_media'
        WHEN lower(medium) IN ('app', 'mobile_app') THEN 'mobile_app'
        WHEN referer_host IS NULL THEN 'direct_link'
        ELSE 'website' END;


-- The touches that options name (token, click_id, code), in order of time,
-- with what is known of their clicks: code, click_id, at, verdict, source,
-- channel, campaign, country.  A code typed in is a touch of this moment.

CREATE FUNCTION referral.touches_given(options jsonb, at timestamptz)
    RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    token  record;
    click  uuid;
    given  jsonb := '[]';
    found_ jsonb;
BEGIN
    IF options ->> 'token' IS NOT NULL THEN
        SELECT * INTO token
            FROM referral.verify_token(options ->> 'token', NULL);

        IF NOT token.valid THEN
            RAISE EXCEPTION 'the attribution token is %', token.reason
                USING ERRCODE = 'RF099',
                      HINT = 'Take it from the cookie as it is; its key must'
                             ' stand in referral.token_key.';
        END IF;

        given := jsonb_build_array(
            jsonb_build_object('code', token.first_code,
                               'click_id', token.first_click,
                               'at', token.first_at),
            jsonb_build_object('code', token.last_code,
                               'click_id', token.last_click,
                               'at', token.last_at));

        IF token.first_click = token.last_click THEN
            given := given - 0;
        END IF;
    END IF;

    IF options ->> 'click_id' IS NOT NULL THEN
        BEGIN
            click := (options ->> 'click_id')::uuid;
        EXCEPTION WHEN invalid_text_representation THEN
            NULL;                       -- reported below as not known
        END;

        SELECT jsonb_build_object('code', i.code, 'click_id', i.id,
                                  'at', i.occurred_at)
            INTO found_
            FROM referral.interaction i
            WHERE i.id = click AND i.occurred_at = referral.uuid_time(click)
                  AND i.type = 'click' AND i.code IS NOT NULL;

        IF NOT FOUND THEN
            RAISE EXCEPTION 'click % is not known',
                            left(options ->> 'click_id', 40)
                USING ERRCODE = 'RF099',
                      HINT = 'A click of the last seconds may still be on its'
                             ' way: the token names its code and needs no'
                             ' waiting.';
        END IF;

        given := given || found_;
    END IF;

    IF options ->> 'code' IS NOT NULL THEN
        given := given || jsonb_build_object('code',
                              upper(btrim(options ->> 'code')), 'at', at);
    END IF;

    SELECT coalesce(jsonb_agg(jsonb_strip_nulls(t.touch || coalesce((
               SELECT jsonb_build_object('verdict', i.verdict,
                          'source', coalesce(referral.source_guess(i.via,
                                        i.args ->> 'utm_medium', i.source,
                                        i.referer_host)),
                          'channel', coalesce(i.channel,
                                              i.args ->> 'utm_medium'),
                          'campaign', i.args ->> 'utm_campaign',
                          'country', i.country)
                   FROM referral.interaction i
                   WHERE i.id = (t.touch ->> 'click_id')::uuid
                         AND i.occurred_at =
                             referral.uuid_time((t.touch ->> 'click_id')::uuid)
               ), '{}')) ORDER BY (t.touch ->> 'at')::timestamptz, t.n), '[]')
        INTO given
        FROM jsonb_array_elements(given) WITH ORDINALITY t (touch, n);

    RETURN given;
END
$$;


-- Whether the touch may be credited: why is null, or says in a word why not.
-- Dates are judged at the time of the click, so that a code that has expired
-- since is good; who has been switched off since is not.  What the edge saw
-- "unverified" or "unknown" while it had no word of the code is judged here.
-- A touch of an existing referral is good as long as that is.

CREATE FUNCTION referral.touch_judge(p referral.program, touch jsonb,
                                     referee bytea[], at timestamptz,
                                     OUT code_id bigint,
                                     OUT referrer_id bigint, OUT why text)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    touched  timestamptz := (touch ->> 'at')::timestamptz;
    earlier  referral.referral;
    c        referral.code;
    f        referral.referrer;
BEGIN
    IF touch ? 'referral_id' THEN
        SELECT * INTO earlier FROM referral.referral r
            WHERE r.id = (touch ->> 'referral_id')::bigint;
        SELECT * INTO c FROM referral.code k WHERE k.id = earlier.code_id;
        referrer_id := earlier.referrer_id;

    ELSIF touch ? 'code' THEN
        SELECT * INTO c FROM referral.code k WHERE k.code = touch ->> 'code';
        referrer_id := c.referrer_id;

    ELSE
        referrer_id := (touch ->> 'referrer_id')::bigint;
    END IF;

    code_id := c.id;
    SELECT * INTO f FROM referral.referrer k WHERE k.id = referrer_id;

    why := CASE
        WHEN earlier.expires_at <= at THEN 'referral-expired'
        WHEN touch ? 'code' AND c.id IS NULL THEN 'unknown'
        WHEN c.program_id <> p.id THEN 'other-program'
        WHEN p.template OR p.status NOT IN ('active', 'ended')
            THEN 'program-inactive'
        WHEN c.status <> 'active' THEN 'inactive'
        WHEN c.uses >= c.max_uses THEN 'exhausted'
        WHEN f.organisation_id <> p.organisation_id THEN 'other-organisation'
        WHEN f.status <> 'active' THEN 'referrer-inactive'
        WHEN f.id IS NOT NULL AND referral.ineligible(p, f) IS NOT NULL
            THEN 'referrer-ineligible'
        WHEN coalesce(referral.program_setting(p, 'self_referral') #>> '{}',
                      'refuse') = 'refuse'
             AND referral.is_referee(p, f, referee) THEN 'self-referral'
        WHEN earlier.id IS NOT NULL THEN NULL
        WHEN touch ->> 'verdict' IN ('inactive', 'exhausted')
            THEN touch ->> 'verdict'
        WHEN touched < greatest(c.starts_at, p.starts_at) THEN 'early'
        WHEN touched >= least(c.expires_at, p.ends_at) THEN 'expired'
        WHEN p.status = 'ended' AND p.ends_at IS NULL THEN 'program-inactive'
        WHEN touched < at - p.attribution_window THEN 'too-old'
        WHEN referral.referrer_full(p, referrer_id) THEN 'limit'
        END;
END
$$;


-- Whether the referee (hashes) is the referrer.

CREATE FUNCTION referral.is_referee(p referral.program, f referral.referrer,
                                    referee bytea[]) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    h  referral.person;
BEGIN
    IF f.id IS NULL OR referee = '{}' THEN
        RETURN false;
    END IF;

    SELECT * INTO h FROM referral.person e WHERE e.id = f.person_id;

    RETURN EXISTS (SELECT FROM referral.referee_hashes(p, f.external_id,
                                   h.email, h.phone, true) k
                       WHERE k.hash = ANY (referee));
END
$$;


-- Whether a referrer has as many referrals as the program allows.

CREATE FUNCTION referral.referrer_full(p referral.program, referrer_id bigint)
    RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p.max_referrals_per_referrer IS NULL OR referrer_id IS NULL THEN
        RETURN false;
    END IF;

    RETURN p.max_referrals_per_referrer
           <= (SELECT count(*) FROM referral.referral r
                   WHERE r.referrer_id = referrer_full.referrer_id
                         AND r.program_id = p.id
                         AND r.status NOT IN ('rejected', 'declined',
                             'cancelled', 'superseded', 'expired'));
END
$$;


-- Judges and weighs touches: first, last, linear (equal shares), position
-- (40 % the first, 40 % the last, 20 % those between).  The remainder of a
-- division goes to the last of those that share.  The winner is the referrer
-- with the largest sum, and of its touches the heaviest, the last of equals.

CREATE FUNCTION referral.touches_weigh(p referral.program, model text,
                                       touches jsonb, referee bytea[],
                                       at timestamptz) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    weighed  jsonb;
BEGIN
    WITH judged AS MATERIALIZED (
        SELECT t.n, t.touch, j.code_id, j.referrer_id, j.why,
               (t.touch ->> 'at')::timestamptz AS touched
            FROM jsonb_array_elements(touches) WITH ORDINALITY t (touch, n),
                 LATERAL referral.touch_judge(p, t.touch, referee, at) j
    ), numbered AS (
        SELECT n, coalesce(referrer_id, -code_id) AS who,
               row_number() OVER (ORDER BY touched, n) AS i,
               count(*) OVER () AS k
            FROM judged WHERE why IS NULL
    ), share AS (
        SELECT n, who, i,
               CASE model
                   WHEN 'first' THEN CASE i WHEN 1 THEN 10000 ELSE 0 END
                   WHEN 'last' THEN CASE i WHEN k THEN 10000 ELSE 0 END
                   WHEN 'linear'
                       THEN 10000 / k + CASE i WHEN k THEN 10000 % k ELSE 0 END
                   ELSE CASE
                       WHEN k = 1 THEN 10000
                       WHEN k = 2 THEN 5000
                       WHEN i IN (1, k) THEN 4000
                       ELSE 2000 / (k - 2)
                            + CASE i WHEN k - 1 THEN 2000 % (k - 2)
                                     ELSE 0 END END
               END AS weight
            FROM numbered
    ), winner AS (
        SELECT n FROM (SELECT n, i, weight,
                              sum(weight) OVER (PARTITION BY who) AS total
                           FROM share) s
            ORDER BY total DESC, weight DESC, i DESC LIMIT 1
    )
    SELECT coalesce(jsonb_agg(j.touch || jsonb_build_object(
                   'code_id', j.code_id, 'referrer_id', j.referrer_id,
                   'why', j.why, 'weight_bp', coalesce(w.weight, 0),
                   'winner', j.n = coalesce(o.n, 0))
               ORDER BY j.touched, j.n), '[]')
        INTO weighed
        FROM judged j
             LEFT JOIN share w ON w.n = j.n
             LEFT JOIN winner o ON true;

    RETURN weighed;
END
$$;


-- Raises what stands in the way of a touch, in words.

CREATE FUNCTION referral.touch_refuse(p referral.program, candidate jsonb)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    why   text := candidate ->> 'why';
    code  text := coalesce('code ' || left(candidate ->> 'code', 64),
                           'a referral without a code');
BEGIN
    IF why = 'exhausted' THEN
        RAISE EXCEPTION '% has been used as often as it may be', code
            USING ERRCODE = 'RF095',
                  HINT = 'code_update() changes max_uses.';

    ELSIF why IN ('referrer-inactive', 'referrer-ineligible') THEN
        RAISE EXCEPTION '%: referrer % %', code,
                        candidate ->> 'referrer_id',
                        (SELECT referral.ineligible(p, f)
                             FROM referral.referrer f
                             WHERE f.id::text = candidate ->> 'referrer_id')
            USING ERRCODE = 'RF094',
                  HINT = 'referrer_set_status(), referrer_update() or the'
                         ' program''s eligibility.';

    ELSIF why = 'self-referral' THEN
        RAISE EXCEPTION '%: referrer % referred himself', code,
                        candidate ->> 'referrer_id'
            USING ERRCODE = 'RF097',
                  HINT = 'The setting self_referral of the program can be'
                         ' "flag" or "allow".';

    ELSIF why = 'limit' THEN
        RAISE EXCEPTION '%: referrer % has the % referrals that program %'
                        ' allows', code, candidate ->> 'referrer_id',
                        p.max_referrals_per_referrer, p.id
            USING ERRCODE = 'RF098',
                  HINT = 'program_update() changes'
                         ' max_referrals_per_referrer.';

    ELSIF why = 'program-inactive' THEN
        RAISE EXCEPTION 'program % (%) is %', p.id, p.slug,
                        CASE WHEN p.template THEN 'a template'
                             ELSE p.status END
            USING ERRCODE = 'RF103',
                  HINT = 'Referrals belong to active programs.';
    END IF;

    RAISE EXCEPTION '% can not be credited in program %: %', code, p.id, why
        USING ERRCODE = 'RF093',
              HINT = 'Its dates, and those of the program, are judged at the'
                     ' time of the click, or now for one typed in.';
END
$$;


-- What attribution would say of these touches ({"token": ...}, {"click_id":
-- ...}, {"code": ...}), without a referee: for a page that explains it, or to
-- ask before a registration whether a code is good.

CREATE FUNCTION referral.attribute(program_id bigint, options jsonb,
                                   model text DEFAULT NULL) RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program := referral.referral_program(program_id, NULL);
BEGIN
    options := referral.options_check('attribute', options,
                                      '{token,click_id,code}');
    model := coalesce(model, p.attribution);

    IF model NOT IN ('first', 'last', 'linear', 'position') THEN
        RAISE EXCEPTION 'attribute(): no model "%"', left(model, 40)
            USING ERRCODE = 'RF010',
                  HINT = 'Accepted: first, last, linear, position.';
    END IF;

    RETURN jsonb_build_object('model', model, 'candidates',
               referral.touches_weigh(p, model,
                   referral.touches_given(options, now()), '{}', now()));
END
$$;

REVOKE ALL ON FUNCTION referral.attribute(bigint, jsonb, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.attribute(bigint, jsonb, text)
    TO referral_app;


-- The codes of touches, the last one first.  To be compared with = ANY: joined
-- to the elements, all codes would be read while there are some thousands.

CREATE FUNCTION referral.touches_codes(touches jsonb) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(SELECT t.touch ->> 'code'
                     FROM jsonb_array_elements(touches) WITH ORDINALITY
                              t (touch, n)
                     WHERE t.touch ->> 'code' IS NOT NULL
                     ORDER BY t.n DESC);
END
$$;

REVOKE ALL ON FUNCTION referral.touches_codes(jsonb) FROM PUBLIC;


-- The program that is named, or that the last of the touches belongs to.

CREATE FUNCTION referral.referral_program(program_id bigint, touches jsonb)
    RETURNS referral.program
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program;
BEGIN
    IF program_id IS NULL THEN
        SELECT g.* INTO p
            FROM referral.code c
                 JOIN referral.program g ON g.id = c.program_id
            WHERE c.code = ANY (referral.touches_codes(touches))
            ORDER BY array_position(referral.touches_codes(touches), c.code)
            LIMIT 1;

    ELSE
        SELECT g.* INTO p FROM referral.program g WHERE g.id = program_id;
    END IF;

    IF p.id IS NOT NULL
       AND (referral.organisation_scope() IS NULL
            OR p.organisation_id = referral.organisation_scope())
    THEN
        RETURN p;
    END IF;

    IF program_id IS NULL AND jsonb_array_length(touches) > 0 THEN
        RAISE EXCEPTION 'code % is not known', left(touches -> -1 ->> 'code',
                                                    64)
            USING ERRCODE = 'RF093',
                  HINT = 'The view referral.codes lists them.';

    ELSIF program_id IS NULL THEN
        RAISE EXCEPTION 'nothing says which program this is about'
            USING ERRCODE = 'RF102',
                  HINT = 'Give the program, a code, a click_id or a token.';
    END IF;

    RAISE EXCEPTION 'program %: there is none with this id, or it is not'
                    ' yours', program_id
        USING ERRCODE = 'RF012',
              HINT = 'The view referral.programs lists them.';
END
$$;


CREATE FUNCTION referral.code_exhausted() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    organisation  bigint;
BEGIN
    SELECT p.organisation_id INTO organisation
        FROM referral.program p WHERE p.id = NEW.program_id;

    PERFORM referral.emit(organisation, 'code.exhausted', 'code:' || NEW.id,
                jsonb_build_object('code_id', NEW.id, 'code', NEW.code,
                                   'program_id', NEW.program_id,
                                   'referrer_id', NEW.referrer_id,
                                   'uses', NEW.uses,
                                   'max_uses', NEW.max_uses));
    RETURN NULL;
END
$$;

CREATE TRIGGER code_exhausted
    AFTER UPDATE OF uses, max_uses ON referral.code
    FOR EACH ROW
    WHEN (NEW.uses >= NEW.max_uses
          AND (OLD.max_uses IS NULL OR OLD.uses < OLD.max_uses))
    EXECUTE FUNCTION referral.code_exhausted();


-- Locks codes: those of limited uses first, each sort by id.  The others are
-- locked as late as can be, as many sessions want them at once.

CREATE FUNCTION referral.code_lock(ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM referral.code c
        WHERE c.id = ANY (ids)
        ORDER BY c.max_uses IS NULL, c.id
        FOR NO KEY UPDATE;
END
$$;


-- Gives a referral its referee, and takes him back.  The referee's lock is
-- held.  RF095 and RF096 when somebody else was first.

CREATE FUNCTION referral.referral_credit(r referral.referral) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    BEGIN
        UPDATE referral.referee_identity i SET credited = true
            WHERE i.referral_id = r.id;
    EXCEPTION WHEN unique_violation THEN
        RAISE EXCEPTION 'the referee of referral % has been credited in'
                        ' program % already', r.id, r.program_id
            USING ERRCODE = 'RF096',
                  HINT = 'attribution_override() moves the credit.';
    END;

    IF r.code_id IS NOT NULL THEN
        UPDATE referral.code c SET uses = c.uses + 1
            WHERE c.id = r.code_id
                  AND (c.max_uses IS NULL OR c.uses < c.max_uses);

        IF NOT FOUND THEN
            RAISE EXCEPTION 'the code of referral % has been used as often as'
                            ' it may be', r.id
                USING ERRCODE = 'RF095',
                      HINT = 'code_update() changes max_uses.';
        END IF;
    END IF;
END
$$;

CREATE FUNCTION referral.referral_uncredit(r referral.referral) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE referral.referee_identity i SET credited = false
        WHERE i.referral_id = r.id;
    UPDATE referral.code c SET uses = greatest(c.uses - 1, 0)
        WHERE c.id = r.code_id;
END
$$;


CREATE FUNCTION referral.referral_emit(r referral.referral, type text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.emit(r.organisation_id, 'referral.' || type,
                'referral:' || r.id,
                jsonb_strip_nulls(jsonb_build_object(
                    'referral_id', r.id, 'program_id', r.program_id,
                    'referrer_id', r.referrer_id, 'code_id', r.code_id,
                    'referee_external_id', r.referee_external_id,
                    'status', r.status, 'source', r.source,
                    'value', r.value, 'currency', r.currency)));
END
$$;


-- The referral, locked; RF090 when there is none with this id in the scope.

CREATE FUNCTION referral.referral_row(id bigint) RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referral;
BEGIN
    SELECT * INTO r FROM referral.referral f
        WHERE f.id = referral_row.id
              AND (referral.organisation_scope() IS NULL
                   OR f.organisation_id = referral.organisation_scope())
        FOR NO KEY UPDATE;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'referral %: there is none with this id, or it is not'
                        ' yours', coalesce(referral_row.id::text, '(null)')
            USING ERRCODE = 'RF090',
                  HINT = 'The view referral.referrals lists them.';
    END IF;

    RETURN r;
END
$$;


-- The referral that options name, not locked; null when they name none.

CREATE FUNCTION referral.referral_named(options jsonb, program_id bigint)
    RETURNS referral.referral
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referral;
BEGIN
    IF options ->> 'referral_id' IS NULL THEN
        RETURN NULL;
    END IF;

    SELECT * INTO r FROM referral.referral f
        WHERE f.id = CASE WHEN options ->> 'referral_id' ~ '^[0-9]{1,18}$'
                          THEN (options ->> 'referral_id')::bigint END
              AND (referral_named.program_id IS NULL
                   OR f.program_id = referral_named.program_id)
              AND (referral.organisation_scope() IS NULL
                   OR f.organisation_id = referral.organisation_scope());

    IF NOT FOUND THEN
        RAISE EXCEPTION 'referral %: there is none with this id, or it is not'
                        ' yours', left(options ->> 'referral_id', 40)
            USING ERRCODE = 'RF090',
                  HINT = 'The view referral.referrals lists them.';
    END IF;

    RETURN r;
END
$$;


-- A step, with its date, its history and its event.  To be where one is, is
-- no step.  For functions: made_by says on whose behalf.  A referral that is
-- given up before it converted sets its referee free, an expired one does
-- not: who has registered once is no new customer.

CREATE FUNCTION referral.referral_move(id bigint, to_status text, made_by text,
                                       reason text DEFAULT NULL,
                                       at timestamptz DEFAULT now())
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r     referral.referral := referral.referral_row(id);
    step  referral.referral_transition;
    free  boolean;
BEGIN
    IF r.status = to_status THEN
        RETURN r;
    END IF;

    SELECT * INTO step FROM referral.referral_transition t
        WHERE t.from_status = r.status
              AND t.to_status = referral_move.to_status;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'referral % is % and can not become %', r.id, r.status,
                        coalesce(left(to_status, 40), '(null)')
            USING ERRCODE = 'RF091',
                  HINT = coalesce((SELECT format('From here: %s.',
                                 string_agg(t.to_status, ', '
                                            ORDER BY t.to_status))
                             FROM referral.referral_transition t
                             WHERE t.from_status = r.status),
                         'No step leads on from here.');
    END IF;

    IF step.made_by <> made_by AND step.made_by <> 'anyone' THEN
        RAISE EXCEPTION 'referral % can not become % by hand', r.id, to_status
            USING ERRCODE = 'RF092',
                  HINT = CASE step.made_by
                         WHEN 'money' THEN 'conversion_record(), rewards and'
                                           ' payouts make this step.'
                         ELSE 'referral_register() and attribution_override()'
                              ' make this step.' END;
    END IF;

    free := r.credited AND r.converted_at IS NULL
            AND to_status IN ('rejected', 'cancelled', 'declined',
                              'superseded');

    IF free THEN
        PERFORM referral.referral_uncredit(r);
    END IF;

    UPDATE referral.referral f
        SET status = referral_move.to_status,
            credited = f.credited AND NOT free,
            updated_at = now(),
            accepted_at = CASE to_status WHEN 'accepted' THEN at
                                         ELSE f.accepted_at END,
            rejected_at = CASE to_status WHEN 'rejected' THEN at
                                         ELSE f.rejected_at END,
            registered_at = CASE to_status WHEN 'registered' THEN at
                                           ELSE f.registered_at END,
            converted_at = CASE to_status WHEN 'converted' THEN at
                                          ELSE f.converted_at END,
            rewarded_at = CASE to_status WHEN 'rewarded' THEN at
                                         ELSE f.rewarded_at END,
            paid_at = CASE to_status WHEN 'paid' THEN at
                                     ELSE f.paid_at END,
            expired_at = CASE to_status WHEN 'expired' THEN at
                                        ELSE f.expired_at END,
            declined_at = CASE to_status WHEN 'declined' THEN at
                                         ELSE f.declined_at END,
            cancelled_at = CASE to_status WHEN 'cancelled' THEN at
                                          ELSE f.cancelled_at END,
            superseded_at = CASE to_status WHEN 'superseded' THEN at
                                           ELSE f.superseded_at END
        WHERE f.id = r.id
        RETURNING * INTO r;

    INSERT INTO referral.referral_step (referral_id, at, from_status,
                                        to_status, reason)
        VALUES (r.id, at, step.from_status, to_status, left(reason, 1000));

    IF to_status IN ('registered', 'converted', 'rejected', 'expired') THEN
        PERFORM referral.referral_emit(r, to_status);
    END IF;

    RETURN r;
END
$$;


CREATE FUNCTION referral.referral_set_status(id bigint, status text,
                                             reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, status, 'anyone', reason);
END
$$;

CREATE FUNCTION referral.referral_accept(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, 'accepted', 'anyone', reason);
END
$$;

CREATE FUNCTION referral.referral_reject(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, 'rejected', 'anyone', reason);
END
$$;

CREATE FUNCTION referral.referral_decline(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, 'declined', 'anyone', reason);
END
$$;

CREATE FUNCTION referral.referral_cancel(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, 'cancelled', 'anyone', reason);
END
$$;


-- Enters a referral for the touch that won.

CREATE FUNCTION referral.referral_insert(p referral.program, options jsonb,
                                         contact jsonb, touches jsonb,
                                         won jsonb, referee bytea[],
                                         at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    r              referral.referral;
    f              referral.referrer;
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    r.source := coalesce(won ->> 'source', 'other');
    r.channel := won ->> 'channel';
    r.campaign := won ->> 'campaign';
    r.expires_at := at + p.referral_validity;
    r := referral.options_apply('referral', r, (
             SELECT coalesce(jsonb_object_agg(o.key, o.value), '{}')
                 FROM jsonb_each(options) o
                 WHERE o.key IN ('source', 'channel', 'campaign', 'message',
                                 'notes', 'value', 'currency', 'expires_at',
                                 'idempotency_key')
                       AND o.value <> 'null'));

    r.referrer_id := (won ->> 'referrer_id')::bigint;
    r.code_id := (won ->> 'code_id')::bigint;
    SELECT * INTO f FROM referral.referrer k WHERE k.id = r.referrer_id;
    SELECT coalesce(c.campaign, r.campaign, p.campaign), c.variant_id
        INTO r.campaign, r.variant_id
        FROM (SELECT 1) one
             LEFT JOIN referral.code c ON c.id = r.code_id;

    IF referral.is_referee(p, f, referee) THEN
        r.flags := '{self-referral}';
    END IF;

    IF r.variant_id IS NULL
       AND EXISTS (SELECT FROM referral.program_variant v
                       WHERE v.program_id = p.id)
    THEN
        r.variant_id := referral.variant_pick(p.id,
                            coalesce(encode(referee[1], 'hex'),
                                     won ->> 'click_id',
                                     gen_random_uuid()::text));
    END IF;

    BEGIN
        INSERT INTO referral.referral (organisation_id, program_id,
                referrer_id, code_id, variant_id, referee_external_id,
                click_id, clicked_at,
                touches, source, channel, campaign, country, message, notes,
                value, currency, flags, idempotency_key, request_hash,
                created_at, expires_at)
            VALUES (p.organisation_id, p.id, r.referrer_id, r.code_id,
                    r.variant_id, options ->> 'external_id',
                    (won ->> 'click_id')::uuid,
                    CASE WHEN won ? 'click_id'
                         THEN (won ->> 'at')::timestamptz END,
                    touches, r.source, r.channel, r.campaign,
                    won ->> 'country', r.message, r.notes, r.value,
                    coalesce(r.currency,
                             CASE WHEN r.value IS NOT NULL THEN p.currency
                             END),
                    coalesce(r.flags, '{}'), r.idempotency_key,
                    CASE WHEN r.idempotency_key IS NOT NULL
                         THEN referral.request_hash(options, contact) END,
                    at, r.expires_at)
            RETURNING * INTO r;

    EXCEPTION WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('referral', broken_table, broken,
                                          broken_column);
    END;

    INSERT INTO referral.referral_step (referral_id, at, to_status)
        VALUES (r.id, at, 'pending');
    PERFORM referral.referee_identify(r, options ->> 'external_id', contact);
    PERFORM referral.referral_emit(r, 'created');

    RETURN r;
END
$$;

CREATE FUNCTION referral.request_hash(options jsonb, contact jsonb)
    RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN sha256(convert_to(options::text || coalesce(contact::text, ''),
                             'UTF8'));


-- The locks of a request: those of the referee, of its idempotency key, and
-- of the referrers whose referrals are counted.

CREATE FUNCTION referral.request_lock(p referral.program, options jsonb,
                                      touches jsonb, referee bytea[])
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    others  text[] := '{}';
BEGIN
    IF options ->> 'idempotency_key' IS NOT NULL THEN
        others := others || ('request/' || (options ->> 'idempotency_key'));
    END IF;

    IF p.max_referrals_per_referrer IS NOT NULL THEN
        SELECT others || coalesce(array_agg('referrer/' || p.id || '/'
                                            || w.id), '{}')
            INTO others
            FROM (SELECT c.referrer_id AS id
                      FROM referral.code c
                      WHERE c.code = ANY (referral.touches_codes(touches))
                  UNION
                  SELECT (options ->> 'referrer_id')::bigint) w
            WHERE w.id IS NOT NULL;
    END IF;

    PERFORM referral.referee_lock(p.organisation_id, referee, others);
END
$$;


-- Enters a referral, pending: by a code that was typed in, a click_id, a
-- token, or by a referrer (referrer_id) who names somebody.  The referee may
-- be known by external_id, by the contact (keys of person: name, email,
-- phone ...), or not yet at all.  The same referrer naming the same referee
-- again gets the same referral.
--
-- Options: code, click_id, token, referrer_id, external_id, source, channel,
-- campaign, message, notes, value and currency (expected), expires_at
-- (default: program's referral_validity from now), idempotency_key.  What is
-- known of the click fills source, channel, campaign and country.

CREATE FUNCTION referral.referral_create(program_id bigint,
                                         options jsonb DEFAULT '{}',
                                         contact jsonb DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p        referral.program;
    r        referral.referral;
    won      jsonb;
    judged   jsonb;
    touches  jsonb;
    referee  bytea[];
BEGIN
    options := referral.options_check('referral_create', options,
        '{code,click_id,token,referrer_id,external_id,source,channel,campaign,'
        'message,notes,value,currency,expires_at,idempotency_key}');
    touches := referral.touches_given(options, now());
    p := referral.referral_program(program_id, touches);
    PERFORM referral.organisation_live(p.organisation_id);

    IF options ->> 'referrer_id' IS NOT NULL AND touches = '[]' THEN
        touches := jsonb_build_array(jsonb_build_object(
            'referrer_id', referral.referrer_named(p, options), 'at', now()));
    END IF;

    IF touches = '[]' THEN
        RAISE EXCEPTION 'nothing says who refers'
            USING ERRCODE = 'RF102',
                  HINT = 'Give a code, a click_id, a token or a referrer_id.';
    END IF;

    SELECT coalesce(array_agg(h.hash), '{}') INTO referee
        FROM referral.referee_hashes(p, options ->> 'external_id',
                 contact ->> 'email', contact ->> 'phone') h;
    PERFORM referral.request_lock(p, options, touches, referee);

    SELECT f.* INTO r FROM referral.referral f
        WHERE f.organisation_id = p.organisation_id
              AND f.idempotency_key = options ->> 'idempotency_key';

    IF FOUND THEN
        IF r.request_hash <> referral.request_hash(options, contact) THEN
            RAISE EXCEPTION 'idempotency key "%" was used for another request',
                            left(options ->> 'idempotency_key', 200)
                USING ERRCODE = 'RF101',
                      HINT = 'A key is for one request and its repetitions.';
        END IF;

        RETURN r.id;
    END IF;

    judged := referral.touches_weigh(p, p.attribution, touches, referee,
                                     now());
    SELECT c INTO won FROM jsonb_array_elements(judged) c
        WHERE c -> 'winner' = 'true';

    -- whoever was here before, the full referrer's own referral included

    SELECT f.* INTO r
        FROM referral.referee_identity i
             JOIN referral.referral f ON f.id = i.referral_id
        WHERE i.hash = ANY (referee) AND i.program_id = p.id
              AND i.organisation_id = p.organisation_id
              AND (i.credited
                   OR f.status IN ('pending', 'accepted')
                      AND f.expires_at > now()
                      AND f.referrer_id IS NOT DISTINCT FROM
                          (coalesce(won, judged -> -1)
                           ->> 'referrer_id')::bigint
                      AND (f.referrer_id IS NOT NULL
                           OR f.code_id = (won ->> 'code_id')::bigint))
        ORDER BY i.credited DESC, f.id LIMIT 1;

    IF r.credited THEN
        RAISE EXCEPTION 'this referee has been credited in program % already,'
                        ' by referral %', p.id, r.id
            USING ERRCODE = 'RF096',
                  HINT = 'A program has one credited referral for a referee.';

    ELSIF r.id IS NOT NULL THEN
        PERFORM referral.referee_identify(r, options ->> 'external_id',
                                          contact);
        RETURN r.id;
    END IF;

    IF won IS NULL THEN
        PERFORM referral.touch_refuse(p, judged -> -1);
    END IF;

    r := referral.referral_insert(p, options, contact, touches, won, referee,
                                  now());
    RETURN r.id;
END
$$;

REVOKE ALL ON FUNCTION referral.referral_create(bigint, jsonb, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referral_create(bigint, jsonb, jsonb)
    TO referral_app;


-- The referrer that options name, when it is of the program's organisation.

CREATE FUNCTION referral.referrer_named(p referral.program, options jsonb)
    RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_  bigint;
BEGIN
    SELECT f.id INTO found_ FROM referral.referrer f
        WHERE f.id::text = options ->> 'referrer_id'
              AND f.organisation_id = p.organisation_id;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'referrer %: there is none with this id in the'
                        ' program''s organisation',
                        left(options ->> 'referrer_id', 40)
            USING ERRCODE = 'RF094',
                  HINT = 'The view referral.referrers lists them.';
    END IF;

    RETURN found_;
END
$$;


-- Decides which referral of a referee, whose lock is held, is credited: among
-- the open ones and the touches.  The others are superseded, and a row of
-- attribution says why.  The one decided is still to be moved and credited.

CREATE FUNCTION referral.referral_decide(p referral.program, options jsonb,
                                         contact jsonb, touches jsonb,
                                         referee bytea[], at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r       referral.referral;
    won     jsonb;
    open    bigint[] := '{}';
    other   bigint;
    model   text := p.attribution;
    judged  jsonb := touches;
BEGIN
    FOR r IN
        SELECT f.* FROM referral.referral f
            WHERE f.program_id = p.id AND f.status IN ('pending', 'accepted')
                  AND f.id = ANY (ARRAY(
                      SELECT (options ->> 'referral_id')::bigint
                      UNION ALL
                      SELECT i.referral_id
                          FROM referral.referee_identity i
                          WHERE i.hash = ANY (referee)
                                AND i.organisation_id = p.organisation_id))
            ORDER BY f.id
            FOR NO KEY UPDATE
    LOOP
        open := open || r.id;
        judged := judged || jsonb_strip_nulls(jsonb_build_object(
                      'referral_id', r.id, 'click_id', r.click_id,
                      'at', coalesce(r.clicked_at, r.created_at),
                      'chosen', nullif(r.chosen, false),
                      'code', (SELECT c.code FROM referral.code c
                                   WHERE c.id = r.code_id)));
    END LOOP;

    -- whose uses are limited, in one order: what is judged next will hold

    PERFORM referral.code_lock((
        SELECT array_agg(c.id)
            FROM referral.code c
            WHERE c.code = ANY (referral.touches_codes(judged))
                  AND c.max_uses IS NOT NULL));

    judged := referral.touches_weigh(p, model, judged, referee, at);

    IF EXISTS (SELECT FROM jsonb_array_elements(judged) j
                   WHERE j ? 'chosen' AND j ->> 'why' IS NULL)
    THEN
        model := 'manual';
        SELECT jsonb_agg(j || CASE WHEN j ? 'chosen'
                              THEN '{"weight_bp": 10000, "winner": true}'
                              ELSE '{"weight_bp": 0, "winner": false}'
                              END::jsonb ORDER BY n)
            INTO judged
            FROM jsonb_array_elements(judged) WITH ORDINALITY e (j, n);
    END IF;

    SELECT j INTO won FROM jsonb_array_elements(judged) j
        WHERE j -> 'winner' = 'true';

    IF won IS NULL AND judged = '[]' THEN
        RAISE EXCEPTION 'nothing says who referred this referee'
            USING ERRCODE = 'RF102',
                  HINT = 'Give a code, a click_id or a token, or make a'
                         ' referral first.';

    ELSIF won IS NULL THEN
        PERFORM referral.touch_refuse(p, judged -> -1);
    END IF;

    r := NULL;
    SELECT f.* INTO r FROM referral.referral f
        WHERE f.id = ANY (open)
              AND (f.id = (won ->> 'referral_id')::bigint
                   OR NOT won ? 'referral_id'
                      AND (f.code_id = (won ->> 'code_id')::bigint
                           OR f.referrer_id = (won ->> 'referrer_id')::bigint))
        ORDER BY f.code_id = (won ->> 'code_id')::bigint DESC NULLS LAST, f.id
        LIMIT 1;

    IF r.id IS NULL THEN
        r := referral.referral_insert(p, options, contact, touches, won,
                                      referee, at);

    ELSE
        UPDATE referral.referral f
            SET code_id = coalesce((won ->> 'code_id')::bigint, f.code_id),
                click_id = coalesce((won ->> 'click_id')::uuid, f.click_id),
                clicked_at = CASE WHEN won ? 'click_id'
                                  THEN (won ->> 'at')::timestamptz
                                  ELSE f.clicked_at END,
                country = coalesce(f.country, won ->> 'country'),
                touches = f.touches || referral_decide.touches
            WHERE f.id = r.id AND NOT won ? 'referral_id';
        PERFORM referral.referee_identify(r, options ->> 'external_id',
                                          contact);
    END IF;

    FOREACH other IN ARRAY open LOOP
        IF other <> r.id THEN
            PERFORM referral.referral_move(other, 'superseded', 'attribution',
                        format('referral %s was credited', r.id), at);
        END IF;
    END LOOP;

    INSERT INTO referral.attribution (organisation_id, program_id, referral_id,
                                      model, reason, candidates, decided_at)
        VALUES (p.organisation_id, p.id, r.id, model,
                CASE model WHEN 'manual' THEN 'chosen by hand before' END,
                judged, at);

    RETURN referral.referral_row(r.id);
END
$$;


-- Makes the decided referral its referee's, at the step it is for.

CREATE FUNCTION referral.referral_settle(r referral.referral, to_status text,
                                         made_by text, at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    r := referral.referral_move(r.id, to_status, made_by, NULL, at);
    PERFORM referral.referral_credit(r);

    UPDATE referral.referral f SET credited = true
        WHERE f.id = r.id
        RETURNING * INTO r;

    RETURN r;
END
$$;


-- Rewards for registrations, which a later file makes.

CREATE FUNCTION referral.referral_reward(id bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regprocedure('referral.reward_on_registration(bigint)') IS NOT NULL
    THEN
        EXECUTE 'SELECT referral.reward_on_registration($1)' USING id;
    END IF;
END
$$;


-- A sign-up: decides which referral is credited for this referee, makes it if
-- there is none yet, and rewards what is rewarded at registration.  Whoever
-- registers again gets the first answer: any number of times, from any number of
-- sessions.  The program may be null where a touch or referral_id names it.
--
-- Options: external_id or a contact with e-mail or phone, at least one; code,
-- click_id, token, referral_id (a pending one); source, channel, campaign,
-- notes.  Returns referral_id, outcome (registered, existing), status,
-- program_id, referrer_id and code.

CREATE FUNCTION referral.referral_register(program_id bigint, options jsonb,
                                           contact jsonb DEFAULT NULL)
    RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    p        referral.program;
    r        referral.referral;
    touches  jsonb;
    referee  bytea[];
    outcome  text := 'existing';
BEGIN
    options := referral.options_check('referral_register', options,
        '{code,click_id,token,referral_id,external_id,source,channel,campaign,'
        'notes}');
    touches := referral.touches_given(options, now());
    r := referral.referral_named(options, program_id);
    p := referral.referral_program(coalesce(program_id, r.program_id),
                                   touches);
    PERFORM referral.organisation_live(p.organisation_id);

    SELECT coalesce(array_agg(h.hash), '{}') INTO referee
        FROM (SELECT k.hash
                  FROM referral.referee_hashes(p, options ->> 'external_id',
                           contact ->> 'email', contact ->> 'phone') k
              UNION
              SELECT i.hash FROM referral.referee_identity i
                  WHERE i.referral_id = r.id) h;

    IF referee = '{}' THEN
        RAISE EXCEPTION 'nothing says who registers'
            USING ERRCODE = 'RF102',
                  HINT = 'Give external_id, or a contact with email or phone.';
    END IF;

    PERFORM referral.request_lock(p, options, touches, referee);

    SELECT f.* INTO r
        FROM referral.referee_identity i
             JOIN referral.referral f ON f.id = i.referral_id
        WHERE i.hash = ANY (referee) AND i.program_id = p.id AND i.credited
        ORDER BY f.id LIMIT 1;

    IF FOUND THEN
        PERFORM referral.referee_identify(r, options ->> 'external_id',
                                          contact);

    ELSE
        r := referral.referral_decide(p, options, contact, touches, referee,
                                      now());
        r := referral.referral_settle(r, 'registered', 'attribution', now());
        PERFORM referral.referral_reward(r.id);
        outcome := 'registered';
    END IF;

    RETURN (SELECT jsonb_build_object('referral_id', f.id, 'outcome', outcome,
                       'status', f.status, 'program_id', f.program_id,
                       'referrer_id', f.referrer_id, 'code', c.code)
                FROM referral.referral f
                     LEFT JOIN referral.code c ON c.id = f.code_id
                WHERE f.id = r.id);
END
$$;

REVOKE ALL ON FUNCTION referral.referral_register(bigint, jsonb, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referral_register(bigint, jsonb, jsonb)
    TO referral_app;


-- What a customer of an organisation may be known by, in whichever program:
-- programs may read addresses and numbers in their own way.

CREATE FUNCTION referral.customer_hashes(organisation_id bigint,
                                         only_program bigint,
                                         external_id text, contact jsonb)
    RETURNS bytea[]
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT coalesce(array_agg(DISTINCT h.hash), '{}')
            FROM (SELECT DISTINCT ON (q.key) q.p
                      FROM (SELECT p, concat_ws('/', p.settings ->
                                       'referee_identity', p.settings ->
                                       'email_provider_rules', p.settings ->
                                       'calling_code', p.settings ->
                                       'trunk_prefix') AS key
                                FROM referral.program p
                                WHERE p.organisation_id
                                      = customer_hashes.organisation_id
                                      AND (only_program IS NULL
                                           OR p.id = only_program)
                                      AND NOT p.template) q) g,
                 LATERAL referral.referee_hashes(g.p, external_id,
                             contact ->> 'email', contact ->> 'phone') h);
END
$$;


-- The credited referral of a customer, at 'converted' or beyond.

CREATE FUNCTION referral.referral_convert_one(id bigint, at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referral := referral.referral_row(id);
BEGIN
    IF r.status IN ('converted', 'rewarded', 'paid') THEN
        RETURN r;
    END IF;

    -- an order of before the end may be told of after it

    IF r.status IN ('registered', 'expired')
       AND (r.expires_at <= at OR NOT r.credited)
    THEN
        RAISE EXCEPTION 'referral % was valid until %', r.id, r.expires_at
            USING ERRCODE = 'RF105',
                  HINT = 'referral_update() changes expires_at.';
    END IF;

    RETURN referral.referral_move(r.id, 'converted', 'money', NULL, at);
END
$$;


-- The program of a customer's open referrals, or null; RF104 where there are
-- several and nothing else decides.

CREATE FUNCTION referral.program_open(organisation_id bigint, referee bytea[],
                                      touches jsonb, at timestamptz)
    RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    one      bigint;
    several  int;
BEGIN
    IF touches <> '[]' THEN
        RETURN NULL;                    -- the last touch decides
    END IF;

    SELECT count(DISTINCT f.program_id), max(f.program_id) INTO several, one
        FROM referral.referee_identity i
             JOIN referral.referral f ON f.id = i.referral_id
        WHERE i.hash = ANY (referee)
              AND i.organisation_id = program_open.organisation_id
              AND f.status IN ('pending', 'accepted');

    IF several = 0 THEN
        RAISE EXCEPTION 'there is no referral for this customer'
            USING ERRCODE = 'RF090',
                  HINT = 'Give a code, a click_id or a token, or another of'
                         ' external_id, e-mail and phone.';

    ELSIF several > 1 THEN
        RAISE EXCEPTION 'this customer was referred in % programs', several
            USING ERRCODE = 'RF104',
                  HINT = 'Give program_id, referral_id or a code.';
    END IF;

    RETURN one;
END
$$;


-- For conversions: the credited referral of a customer, at 'converted' or
-- beyond; for one who never registered it is decided now.  Options are
-- those of the conversion; read are referral_id, program_id, external_id,
-- code, click_id and token.  The locks of the referee and of the referral are
-- held after it.  RF090 where there is none, RF091 and RF105 where it is over.

CREATE FUNCTION referral.referral_convert(organisation_id bigint,
                                          options jsonb,
                                          contact jsonb DEFAULT NULL,
                                          at timestamptz DEFAULT now())
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p        referral.program;
    r        referral.referral;
    touches  jsonb := referral.touches_given(options, at);
    program  bigint := (options ->> 'program_id')::bigint;
    mine     bigint;
    referee  bytea[];
    several  int;
BEGIN
    options := options - 'idempotency_key';
    r := referral.referral_named(options, program);
    program := coalesce(program, r.program_id);

    SELECT coalesce(array_agg(h.hash), '{}') INTO referee
        FROM (SELECT unnest(referral.customer_hashes(organisation_id, program,
                         options ->> 'external_id', contact)) AS hash
              UNION
              SELECT i.hash FROM referral.referee_identity i
                  WHERE i.referral_id = r.id) h;

    PERFORM referral.referee_lock(organisation_id, referee);

    SELECT count(DISTINCT f.program_id), max(f.id) INTO several, mine
        FROM referral.referral f
        WHERE f.organisation_id = referral_convert.organisation_id
              AND (program IS NULL OR f.program_id = program)
              AND f.credited
              AND f.id IN (SELECT r.id
                           UNION ALL
                           SELECT i.referral_id
                               FROM referral.referee_identity i
                               WHERE i.hash = ANY (referee)
                                     AND i.credited);

    IF several > 1 THEN
        RAISE EXCEPTION 'this customer was referred in % programs', several
            USING ERRCODE = 'RF104',
                  HINT = 'Give program_id or referral_id.';

    ELSIF several = 1 THEN
        RETURN referral.referral_convert_one(mine, at);

    ELSIF r.id IS NOT NULL AND r.status NOT IN ('pending', 'accepted') THEN
        RETURN referral.referral_convert_one(r.id, at);
    END IF;

    p := referral.referral_program(coalesce(program,
             referral.program_open(organisation_id, referee, touches, at)),
             touches);

    IF p.organisation_id <> organisation_id THEN
        RAISE EXCEPTION 'program % is of another organisation', p.id
            USING ERRCODE = 'RF012',
                  HINT = 'A conversion belongs to one organisation.';
    END IF;

    PERFORM referral.request_lock(p, options, touches, referee);
    r := referral.referral_decide(p, options, contact, touches, referee, at);

    RETURN referral.referral_settle(r, 'converted', 'money', at);
END
$$;


-- Changes: source, channel, campaign, message, notes, expires_at.

CREATE FUNCTION referral.referral_update(id bigint, changes jsonb)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    r              referral.referral := referral.referral_row(id);
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    changes := referral.options_check('referral_update', changes,
                   '{source,channel,campaign,message,notes,expires_at}');
    r := referral.options_apply('referral_update', r, changes);

    UPDATE referral.referral f
        SET source = r.source, channel = r.channel, campaign = r.campaign,
            message = r.message, notes = r.notes, expires_at = r.expires_at,
            updated_at = now()
        WHERE f.id = r.id;

EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('referral_update', broken_table, broken,
                                      broken_column);
END
$$;


-- Gives the credit to this referral, against the rule, with a reason.  The
-- one that had it is superseded; its rewards are taken back.  Before anybody
-- has registered the referral is chosen for that time.  Refused once the
-- credited one has converted: what was earned is undone first, by
-- referral_cancel() or a refund, where everyone sees it.

CREATE FUNCTION referral.attribution_override(referral_id bigint, reason text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r        referral.referral;
    had      referral.referral;
    referee  bytea[];
BEGIN
    IF coalesce(btrim(reason), '') = '' THEN
        RAISE EXCEPTION 'attribution_override(): "reason" must not be empty'
            USING ERRCODE = 'RF010',
                  HINT = 'Say why: attribution and audit keep it.';
    END IF;

    r := referral.referral_named(jsonb_build_object('referral_id',
             coalesce(referral_id::text, '(null)')), NULL);

    SELECT coalesce(array_agg(i.hash), '{}') INTO referee
        FROM referral.referee_identity i WHERE i.referral_id = r.id;
    PERFORM referral.referee_lock(r.organisation_id, referee);

    SELECT f.* INTO had
        FROM referral.referee_identity i
             JOIN referral.referral f ON f.id = i.referral_id
        WHERE i.hash = ANY (referee) AND i.program_id = r.program_id
              AND i.credited
        ORDER BY f.id LIMIT 1;

    PERFORM FROM referral.referral f WHERE f.id IN (r.id, had.id)
        ORDER BY f.id FOR NO KEY UPDATE;
    r := referral.referral_row(r.id);

    IF had.id = r.id THEN
        RETURN;

    ELSIF had.status <> 'registered' THEN
        RAISE EXCEPTION 'referral % has the credit and is %', had.id,
                        had.status
            USING ERRCODE = 'RF106',
                  HINT = 'Only the credit of one that is registered moves.';

    ELSIF r.status NOT IN ('pending', 'accepted', 'superseded') THEN
        RAISE EXCEPTION 'referral % is % and can not be credited', r.id,
                        r.status
            USING ERRCODE = 'RF091',
                  HINT = 'From here: pending, accepted and superseded ones.';
    END IF;

    IF had.id IS NOT NULL THEN
        PERFORM referral.code_lock(ARRAY[had.code_id, r.code_id]);
        PERFORM referral.referral_move(had.id, 'superseded', 'attribution',
                                       reason);
        r := referral.referral_settle(r, 'registered', 'attribution', now());
        PERFORM referral.referral_reward(r.id);

    ELSIF r.status = 'superseded' THEN
        PERFORM referral.referral_move(r.id, 'pending', 'attribution', reason);
    END IF;

    -- only one is chosen: the last word holds

    UPDATE referral.referral f SET chosen = f.id = r.id
        WHERE f.program_id = r.program_id
              AND (f.id = r.id
                   OR f.chosen
                      AND f.id IN (SELECT i.referral_id
                                       FROM referral.referee_identity i
                                       WHERE i.hash = ANY (referee)
                                             AND i.program_id
                                                 = r.program_id));

    INSERT INTO referral.attribution (organisation_id, program_id, referral_id,
                                      previous_referral_id, model, reason,
                                      candidates)
        SELECT r.organisation_id, r.program_id, r.id, had.id, 'manual', reason,
               jsonb_agg(jsonb_build_object('referral_id', f.id,
                             'referrer_id', f.referrer_id,
                             'code_id', f.code_id,
                             'at', coalesce(f.clicked_at, f.created_at),
                             'why', NULL,
                             'weight_bp', CASE f.id WHEN r.id THEN 10000
                                                    ELSE 0 END,
                             'winner', f.id = r.id) ORDER BY f.id)
            FROM referral.referral f WHERE f.id IN (r.id, had.id);

    PERFORM referral.audit_write(r.organisation_id, 'override', 'referral',
                                 r.id, '{credited}', reason);
END
$$;


-- Expires what is open and past its time, in slices, each referral in one
-- session only; how many.  Rows that others are at are left for the next time.

CREATE FUNCTION referral.referral_expire(at timestamptz DEFAULT now(),
                                         slice int DEFAULT 1000)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    id     bigint;
    done   bigint := 0;
BEGIN
    FOR id IN
        SELECT r.id FROM referral.referral r
            WHERE r.status IN ('pending', 'accepted', 'registered')
                  AND r.expires_at <= at
                  AND (scope IS NULL OR r.organisation_id = scope)
            ORDER BY r.id
            LIMIT slice
            FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        PERFORM referral.referral_move(id, 'expired', 'anyone',
                                       'past expires_at', at);
        done := done + 1;
    END LOOP;

    RETURN done;
END
$$;


-- Who was referred, as far as it is kept: a read that the audit notes.

CREATE FUNCTION referral.referral_contact(id bigint,
                                          OUT external_id text,
                                          OUT first_name text,
                                          OUT last_name text, OUT name text,
                                          OUT email text, OUT phone text,
                                          OUT company text, OUT address jsonb,
                                          OUT message text, OUT notes text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referral := referral.referral_row(id);
BEGIN
    SELECT r.referee_external_id, h.first_name, h.last_name, h.name, h.email,
           h.phone, h.company, h.address, r.message, r.notes
        INTO external_id, first_name, last_name, name, email, phone, company,
             address, message, notes
        FROM (SELECT 1) one
             LEFT JOIN referral.person h ON h.id = r.person_id;

    PERFORM referral.audit_write(r.organisation_id, 'read', 'referral', r.id);
END
$$;


-- The referrals of a referee, by any of what identifies it.

CREATE FUNCTION referral.referral_find(organisation_id bigint,
                                       external_id text DEFAULT NULL,
                                       contact jsonb DEFAULT NULL)
    RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.organisation_check(organisation_id);
    PERFORM referral.audit_write(organisation_id, 'find', 'referral', NULL);

    RETURN QUERY
        SELECT DISTINCT i.referral_id
            FROM referral.referee_identity i
            WHERE i.hash = ANY (referral.customer_hashes(
                      referral_find.organisation_id, NULL,
                      referral_find.external_id, contact))
                  AND i.organisation_id = referral_find.organisation_id
            ORDER BY 1;
END
$$;


-- Steps have their own history, with who and why; other changes are audited.

CREATE TRIGGER audit_row
    AFTER DELETE OR UPDATE OF referrer_id, code_id, person_id,
        referee_external_id, source, channel, campaign, message, notes,
        expires_at, chosen
    ON referral.referral
    FOR EACH ROW EXECUTE FUNCTION referral.audit_row('touches', 'click_id');


CREATE VIEW referral.referrals AS
    SELECT r.id, r.organisation_id, r.program_id, p.slug AS program,
           r.referrer_id, r.code_id, c.code, r.variant_id, r.status,
           r.credited, r.flags, r.source, r.channel, r.campaign, r.country,
           r.click_id, r.clicked_at, r.value, r.currency, r.created_by,
           r.created_at, r.updated_at, r.expires_at, r.accepted_at,
           r.rejected_at, r.registered_at, r.converted_at, r.rewarded_at,
           r.paid_at, r.expired_at, r.declined_at, r.cancelled_at,
           r.superseded_at
        FROM referral.referral r
             JOIN referral.program p ON p.id = r.program_id
             LEFT JOIN referral.code c ON c.id = r.code_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

COMMENT ON VIEW referral.referrals IS
    'Referrals without personal data; referral_contact() reads that';

CREATE VIEW referral.referral_steps AS
    SELECT s.id, r.organisation_id, s.referral_id, s.at, s.from_status,
           s.to_status, s.actor, s.reason
        FROM referral.referral_step s
             JOIN referral.referral r ON r.id = s.referral_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.attributions AS
    SELECT a.id, a.organisation_id, a.program_id, a.referral_id,
           a.previous_referral_id, a.model, a.reason, a.candidates,
           a.decided_by, a.decided_at
        FROM referral.attribution a
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR a.organisation_id = (SELECT referral.organisation_scope());

-- one row per touch, for sums: a referrer's share of what was converted
CREATE VIEW referral.attribution_shares AS
    SELECT a.id AS attribution_id, a.organisation_id, a.program_id,
           a.referral_id, a.model, a.decided_at,
           (c ->> 'referrer_id')::bigint AS referrer_id,
           (c ->> 'code_id')::bigint AS code_id, c ->> 'source' AS source,
           (c ->> 'at')::timestamptz AS touched_at, c ->> 'why' AS why,
           (c ->> 'weight_bp')::int AS weight_bp,
           (c ->> 'winner')::boolean AS winner
        FROM referral.attribution a, jsonb_array_elements(a.candidates) c
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR a.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.referrals, referral.referral_steps,
    referral.attributions, referral.attribution_shares,
    referral.referral_transition TO referral_app, referral_analyst;


-- What partners see: their own referrals, and nothing about the referees.

ALTER TABLE referral.referral ENABLE ROW LEVEL SECURITY;

CREATE POLICY referral_partner ON referral.referral
    FOR SELECT TO referral_partner
    USING (referrer_id = (SELECT referral.current_referrer()));

GRANT SELECT (id, program_id, referrer_id, code_id, source, channel, campaign,
              status, credited, value, currency, created_at, expires_at,
              accepted_at, rejected_at, registered_at, converted_at,
              rewarded_at, paid_at, expired_at, declined_at, cancelled_at,
              superseded_at) ON referral.referral TO referral_partner;

CREATE VIEW referral.my_referrals WITH (security_invoker = true) AS
    SELECT id, program_id, code_id, source, channel, campaign, status,
           credited, value, currency, created_at, expires_at, accepted_at,
           rejected_at, registered_at, converted_at, rewarded_at, paid_at,
           expired_at, declined_at, cancelled_at, superseded_at
        FROM referral.referral;

GRANT SELECT ON referral.my_referrals TO referral_partner;


REVOKE ALL ON FUNCTION referral.referral_set_status(bigint, text, text)
    FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_accept(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_reject(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_decline(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_cancel(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_update(bigint, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.attribution_override(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_contact(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_find(bigint, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_expire(timestamptz, int)
    FROM PUBLIC;

GRANT EXECUTE ON FUNCTION
    referral.referral_set_status(bigint, text, text),
    referral.referral_accept(bigint, text),
    referral.referral_reject(bigint, text),
    referral.referral_decline(bigint, text),
    referral.referral_cancel(bigint, text),
    referral.referral_update(bigint, jsonb),
    referral.attribution_override(bigint, text),
    referral.referral_contact(bigint),
    referral.referral_find(bigint, text, jsonb),
    referral.referral_expire(timestamptz, int)
    TO referral_app;
GRANT EXECUTE ON FUNCTION referral.referral_expire(timestamptz, int)
    TO referral_worker;

INSERT INTO referral.schema_migration (version, name) VALUES (13, 'referral');

COMMIT;
