-- Copyright (C) The nginx referral module authors
--
-- Referrals: who was referred by whom, and how referees are recognised.
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

INSERT INTO referral.schema_migration (version, name) VALUES (14, 'referral');

COMMIT;
