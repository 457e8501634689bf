-- Copyright (C) The nginx referral module authors
--
-- Verifying attribution tokens (the format is in the README) where the
-- conversion is recorded.  HMAC-SHA256 (RFC 2104) on the built-in sha256(),
-- so that no extension is needed.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- The key block combined with a constant byte; keys are no longer than a
-- block (64 bytes), so they are never hashed first.

CREATE FUNCTION referral.hmac_pad(secret bytea, pad int) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT decode(string_agg(lpad(to_hex(
                       CASE WHEN i < length(secret)
                            THEN get_byte(secret, i) # pad
                            ELSE pad END), 2, '0'), '' ORDER BY i), 'hex')
                FROM generate_series(0, 63) i);

REVOKE ALL ON FUNCTION referral.hmac_pad(bytea, int) FROM PUBLIC;

-- The keys of referral_secret files.  Only the owner reads or changes them:
--
--     INSERT INTO referral.token_key (id, secret)
--         VALUES ('k1', decode('...', 'base64'));

CREATE TABLE referral.token_key (
    id        text         PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_-]{1,16}$'),
    secret    bytea        NOT NULL CHECK (length(secret) BETWEEN 16 AND 64),
    inner_pad bytea        GENERATED ALWAYS AS
                               (referral.hmac_pad(secret, 54)) STORED,
    outer_pad bytea        GENERATED ALWAYS AS
                               (referral.hmac_pad(secret, 92)) STORED,
    added_at  timestamptz  NOT NULL DEFAULT now()
);


-- reason is "valid", "malformed", "unknown-key", "forged" or "expired"; the
-- other columns are set only for a valid token.  The age is that of the last
-- click; a first touch older than max_age is replaced by the last one, as the
-- edge does.  max_age null: no limit.

CREATE FUNCTION referral.verify_token(token text,
                                      max_age interval DEFAULT '90 days',
                                      OUT valid boolean,
                                      OUT reason text,
                                      OUT key_id text,
                                      OUT first_code text,
                                      OUT first_click uuid,
                                      OUT first_at timestamptz,
                                      OUT last_code text,
                                      OUT last_click uuid,
                                      OUT last_at timestamptz,
                                      OUT visitor uuid)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part   text[];
    key    referral.token_key;
    signed bytea;
    mac    text;
    touch  record;
BEGIN
    valid := false;
    reason := 'malformed';

    -- clicks are version 7 UUIDs; the last of 22 base64url characters has two
    -- bits of the mac, and its other four are zero

    IF token IS NULL OR octet_length(token) > 400 OR token COLLATE "C" !~
           ('^v1\.[A-Za-z0-9_-]{1,16}'
            '\.[A-Z0-9_-]{1,64}\.[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}'
            '\.[A-Z0-9_-]{1,64}\.[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}'
            '\.([0-9a-f]{32})?\.[A-Za-z0-9_-]{21}[AQgw]$')
    THEN
        RETURN;
    END IF;

    part := string_to_array(token, '.');

    SELECT * INTO key FROM referral.token_key WHERE id = part[2];
    IF NOT FOUND THEN
        reason := 'unknown-key';
        RETURN;
    END IF;

    signed := convert_to(left(token, -23), 'UTF8');
    mac := rtrim(translate(encode(substr(sha256(key.outer_pad
                 || sha256(key.inner_pad || signed)), 1, 16), 'base64'),
                 '+/', '-_'), '=');

    -- digests are compared: how long that takes says nothing about the mac
    IF sha256(convert_to(mac, 'UTF8')) <> sha256(convert_to(part[8], 'UTF8'))
    THEN
        reason := 'forged';
        RETURN;
    END IF;

    SELECT part[3] AS first_code, part[4]::uuid AS first_click,
           referral.uuid_time(part[4]::uuid) AS first_at,
           part[5] AS last_code, part[6]::uuid AS last_click,
           referral.uuid_time(part[6]::uuid) AS last_at
        INTO touch;

    IF touch.last_at > now() + interval '5 minutes'
       OR touch.last_at < now() - max_age
    THEN
        reason := 'expired';
        RETURN;
    END IF;

    valid := true;
    reason := 'valid';
    key_id := part[2];
    last_code := touch.last_code;
    last_click := touch.last_click;
    last_at := touch.last_at;
    visitor := nullif(part[7], '')::uuid;

    IF touch.first_at < now() - max_age THEN
        first_code := last_code;
        first_click := last_click;
        first_at := last_at;

    ELSE
        first_code := touch.first_code;
        first_click := touch.first_click;
        first_at := touch.first_at;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.verify_token(text, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.verify_token(text, interval)
    TO referral_app;

INSERT INTO referral.schema_migration (version, name) VALUES (6, 'token');

COMMIT;
