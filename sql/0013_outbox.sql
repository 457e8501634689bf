-- Copyright (C) The nginx referral module authors
--
-- The outbox: events are written in the transaction that makes them true, and
-- sent to the organisation's webhooks by referral-worker, at least once, as
-- Standard Webhooks 1.0.0 has it (standardwebhooks.com).
--
-- An event is fanned out where it is written: then no reader has to find
-- events that were committed out of order, an organisation without webhooks
-- costs one insert, and a webhook gets what happened since it was added.
--
-- Neither event nor webhook_delivery references organisation or endpoint: the
-- check would lock one row for all writers of an organisation.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

CREATE TABLE referral.event_type (
    type         text  PRIMARY KEY
                       CHECK (type COLLATE "C" ~ '^[a-z]+\.[a-z_]{1,40}$'),
    description  text  NOT NULL
);

INSERT INTO referral.event_type (type, description) VALUES
    ('referral.created', 'a referral was made'),
    ('referral.registered', 'the referee registered'),
    ('referral.converted', 'the referee''s first conversion was recorded'),
    ('referral.rejected', 'a referral was rejected'),
    ('referral.expired', 'a referral was not converted in time'),
    ('reward.earned', 'a reward came into being'),
    ('reward.approved', 'a reward was approved, by hand or by rule'),
    ('reward.expiring', 'a reward will expire soon'),
    ('reward.expired', 'a reward expired unused'),
    ('reward.reversed', 'a reward was taken back, in whole or in part'),
    ('payout.requested', 'a payout was asked for'),
    ('payout.approved', 'a payout is to be paid'),
    ('payout.paid', 'a payout was paid'),
    ('payout.rejected', 'a payout was refused'),
    ('code.exhausted', 'a code has reached its number of uses'),
    ('program.updated', 'a program was changed'),
    ('referrer.applied', 'somebody asks to become a referrer'),
    ('referrer.approved', 'a referrer was accepted'),
    ('referrer.rejected', 'an application was refused'),
    ('webhook.test', 'sent by webhook_test()');

-- Ids are version 7 UUIDs, so that the primary key is in order of time, and
-- old events are found by it.

CREATE TABLE referral.event (
    id               uuid         PRIMARY KEY,
    seq              bigint       GENERATED ALWAYS AS IDENTITY,
    organisation_id  bigint       NOT NULL,
    type             text         NOT NULL,
    order_key        text,
    data             jsonb        NOT NULL,
    created_at       timestamptz  NOT NULL DEFAULT now()
);

COMMENT ON TABLE referral.event IS
    'What happened: ids, amounts and words, nothing personal; kept 30 days';
COMMENT ON COLUMN referral.event.order_key IS
    'events of one key reach a webhook in their order; null: in any';

CREATE TABLE referral.webhook_endpoint (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL REFERENCES referral.organisation,
    url              text         NOT NULL,
    types            text[]       NOT NULL DEFAULT '{*}',
    description      text,
    status           text         NOT NULL DEFAULT 'active'
                                  CHECK (status IN ('active', 'disabled')),
    disabled_reason  text,
    allow_private    boolean      NOT NULL DEFAULT false,
    max_in_flight    int          NOT NULL DEFAULT 4
                                  CHECK (max_in_flight BETWEEN 1 AND 32),
    created_at       timestamptz  NOT NULL DEFAULT now(),
    updated_at       timestamptz  NOT NULL DEFAULT now()
);

CREATE INDEX webhook_endpoint_organisation
    ON referral.webhook_endpoint (organisation_id);

COMMENT ON COLUMN referral.webhook_endpoint.allow_private IS
    'the address may be a private one and the URL plain http';

-- What changes with each delivery: apart, so that neither audit nor emit()
-- meet it.  Its row lock is the endpoint's: who claims or finishes deliveries
-- holds it, emit() never does.

CREATE TABLE referral.webhook_state (
    endpoint_id      bigint       PRIMARY KEY REFERENCES
                                  referral.webhook_endpoint ON DELETE CASCADE,
    claimed_at       timestamptz,
    failures         int          NOT NULL DEFAULT 0,
    paused_until     timestamptz,
    last_success_at  timestamptz,
    last_failure_at  timestamptz
) WITH (fillfactor = 50);

COMMENT ON COLUMN referral.webhook_state.failures IS 'in a row';

-- Only the functions below read it, none of them returns a key that is there.

CREATE TABLE referral.webhook_secret (
    id           bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id  bigint       NOT NULL REFERENCES
                              referral.webhook_endpoint ON DELETE CASCADE,
    secret       bytea        NOT NULL
                              CHECK (length(secret) BETWEEN 24 AND 64),
    inner_pad    bytea        GENERATED ALWAYS AS
                                  (referral.hmac_pad(secret, 54)) STORED,
    outer_pad    bytea        GENERATED ALWAYS AS
                                  (referral.hmac_pad(secret, 92)) STORED,
    created_at   timestamptz  NOT NULL DEFAULT now(),
    expires_at   timestamptz
);

CREATE INDEX webhook_secret_endpoint
    ON referral.webhook_secret (endpoint_id);

-- The lease of a delivery that is being sent is its next_at, too: when the
-- worker dies, it becomes due by itself.

CREATE TABLE referral.webhook_delivery (
    id            bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id   bigint       NOT NULL,
    event_id      uuid         NOT NULL REFERENCES referral.event
                                            ON DELETE CASCADE,
    order_key     text         NOT NULL,
    status        text         NOT NULL DEFAULT 'pending' CHECK (status IN
                                   ('pending', 'sending', 'delivered',
                                    'dead')),
    attempts      int          NOT NULL DEFAULT 0,
    next_at       timestamptz  NOT NULL DEFAULT now(),
    attempted_at  timestamptz,
    http_status   int,
    error         text,
    duration_ms   int,
    response      text         CHECK (length(response) <= 1024),
    finished_at   timestamptz,
    UNIQUE (event_id, endpoint_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX webhook_delivery_due
    ON referral.webhook_delivery (endpoint_id, next_at)
    WHERE status IN ('pending', 'sending');
CREATE INDEX webhook_delivery_order
    ON referral.webhook_delivery (endpoint_id, order_key, id)
    WHERE status IN ('pending', 'sending');
CREATE INDEX webhook_delivery_dead
    ON referral.webhook_delivery (endpoint_id, id) WHERE status = 'dead';

DO $$ BEGIN PERFORM referral.audit_table('webhook_endpoint'); END $$;


-- Writes an event, in the transaction of what it tells of.  The writer holds
-- the lock of the object that order_key names ("referral:17"): so the order
-- of deliveries is that of the commits.
--
-- NOTIFY takes a lock on the whole server until the commit is on disk, which
-- would let transactions commit only one after the other.  So one of those
-- that run at a time notifies; the events of the others are found by the
-- worker's own look, each second.

CREATE FUNCTION referral.emit(organisation_id bigint, type text,
                              order_key text, data jsonb) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_id  uuid := (lpad(to_hex((extract(epoch FROM clock_timestamp())
                                  * 1000)::bigint), 12, '0')
                     || '7' || substr(gen_random_uuid()::text, 16))::uuid;
BEGIN
    IF NOT EXISTS (SELECT FROM referral.event_type t WHERE t.type = emit.type)
    THEN
        RAISE EXCEPTION 'there is no event type "%"', type
            USING ERRCODE = 'RF050',
                  HINT = 'The types are in referral.event_type.';
    END IF;

    -- receivers may refuse bodies above 20 kB, as the specification says

    IF jsonb_typeof(data) IS DISTINCT FROM 'object'
       OR octet_length(data::text) > 16384
    THEN
        RAISE EXCEPTION 'the data of event "%" are no object of up to 16384'
            ' bytes', type
            USING ERRCODE = 'RF051', HINT = 'Give ids, not contents.';
    END IF;

    INSERT INTO referral.event (id, organisation_id, type, order_key, data)
        VALUES (new_id, organisation_id, type, order_key, data);

    INSERT INTO referral.webhook_delivery (endpoint_id, event_id, order_key)
        SELECT e.id, new_id, coalesce(emit.order_key, new_id::text)
            FROM referral.webhook_endpoint e
            WHERE e.organisation_id = emit.organisation_id
                  AND e.status = 'active' AND emit.type <> 'webhook.test'
                  AND e.types && ARRAY['*', emit.type,
                                       split_part(emit.type, '.', 1) || '.*'];

    IF FOUND AND pg_try_advisory_xact_lock(
                     hashtextextended('referral.outbox', 0))
    THEN
        PERFORM pg_notify('referral_outbox', '');
    END IF;

    RETURN new_id;
END
$$;

REVOKE ALL ON FUNCTION referral.emit(bigint, text, text, jsonb) FROM PUBLIC;


-- Checks what webhook_add() and webhook_update() were given.

CREATE FUNCTION referral.webhook_check(url text, types text[],
                                       options jsonb) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    word  text;
BEGIN
    IF url IS NULL OR octet_length(url) > 2048 OR url COLLATE "C" !~
           '^https?://[A-Za-z0-9._:\[\]-]+([/?][!-~]*)?$'
       OR strpos(url, '#') > 0 OR strpos(url, '\') > 0
    THEN
        RAISE EXCEPTION 'the URL of a webhook is not usable: "%"',
            left(url, 200)
            USING ERRCODE = 'RF052',
                  HINT = 'https://HOST[:PORT][/PATH][?QUERY] in ASCII, up to'
                         ' 2048 bytes, without user and fragment.';
    END IF;

    IF url NOT LIKE 'https://%'
       AND (options -> 'allow_private') IS DISTINCT FROM 'true'
    THEN
        RAISE EXCEPTION 'the URL of a webhook must begin with https://'
            USING ERRCODE = 'RF052',
                  HINT = 'Plain http is for endpoints with allow_private.';
    END IF;

    IF coalesce(cardinality(types), 0) NOT BETWEEN 1 AND 50 THEN
        RAISE EXCEPTION 'a webhook has 1 to 50 types'
            USING ERRCODE = 'RF050', HINT = '''{*}'' are all.';
    END IF;

    FOREACH word IN ARRAY types LOOP
        IF word IS NULL
           OR word <> '*' AND NOT EXISTS (
                  SELECT FROM referral.event_type t
                      WHERE t.type = word
                            OR split_part(t.type, '.', 1) || '.*' = word)
        THEN
            RAISE EXCEPTION 'there is no event type "%"', word
                USING ERRCODE = 'RF050',
                      HINT = 'A type of referral.event_type, "reward.*" or'
                             ' "*".';
        END IF;
    END LOOP;

    FOR word IN SELECT jsonb_object_keys(options) LOOP

        -- a number in jsonb can be too large for any other type

        IF word = 'allow_private'
               AND jsonb_typeof(options -> word) <> 'boolean'
           OR word = 'max_in_flight'
               AND (options ->> word) !~ '^([1-9]|[12][0-9]|3[0-2])$'
           OR word = 'description'
               AND (jsonb_typeof(options -> word) NOT IN ('string', 'null')
                    OR length(options ->> word) > 500)
        THEN
            RAISE EXCEPTION 'the value of "%" is not usable', word
                USING ERRCODE = 'RF055',
                      HINT = 'allow_private is true or false, max_in_flight 1'
                             ' to 32, description a text of up to 500'
                             ' characters.';
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_check(text, text[], jsonb)
    FROM PUBLIC;


-- 32 random bytes.  A version 4 UUID has 122 random bits; two are hashed.

CREATE FUNCTION referral.webhook_new_secret() RETURNS bytea
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
    RETURN sha256(decode(replace(gen_random_uuid()::text
                                 || gen_random_uuid()::text
                                 || gen_random_uuid()::text, '-', ''),
                         'hex'));

REVOKE ALL ON FUNCTION referral.webhook_new_secret() FROM PUBLIC;


-- The endpoint with this id, when the session may touch it.

CREATE FUNCTION referral.webhook_get(webhook_id bigint,
                                     active boolean DEFAULT false)
    RETURNS referral.webhook_endpoint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    endpoint  referral.webhook_endpoint;
BEGIN
    SELECT * INTO endpoint FROM referral.webhook_endpoint e
        WHERE e.id = webhook_id;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no webhook %', webhook_id
            USING ERRCODE = 'RF053', HINT = 'See the view referral.webhooks.';
    END IF;

    PERFORM referral.organisation_check(endpoint.organisation_id);

    IF active AND endpoint.status <> 'active' THEN
        RAISE EXCEPTION 'webhook % is disabled', webhook_id
            USING ERRCODE = 'RF056', DETAIL = endpoint.disabled_reason,
                  HINT = 'referral.webhook_enable() first.';
    END IF;

    RETURN endpoint;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_get(bigint, boolean) FROM PUBLIC;


-- standard base64, with its padding, as libraries of receivers expect it

CREATE FUNCTION referral.webhook_secret_parse(secret text) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key  bytea;
BEGIN
    IF secret COLLATE "C" ~ ('^whsec_([A-Za-z0-9+/]{4})*'
           '([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$')
       AND octet_length(secret) <= 100
    THEN
        key := decode(substr(secret, 7), 'base64');
    END IF;

    IF key IS NULL OR length(key) NOT BETWEEN 24 AND 64 THEN
        RAISE EXCEPTION 'this is no secret of a webhook'
            USING ERRCODE = 'RF054',
                  HINT = '"whsec_" and base64 of 24 to 64 random bytes.';
    END IF;

    RETURN key;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_secret_parse(text) FROM PUBLIC;


-- Adds a webhook.  Options: description, allow_private, max_in_flight, and
-- secret ("whsec_" and base64 of 24 to 64 bytes), for one that moves here.
-- The secret is returned now and never again.

CREATE FUNCTION referral.webhook_add(organisation_id bigint, url text,
                                     types text[] DEFAULT '{*}',
                                     options jsonb DEFAULT '{}',
                                     OUT id bigint, OUT secret text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key  bytea;
BEGIN
    PERFORM referral.organisation_check(organisation_id);
    options := referral.options_check('webhook_add', options,
        '{description,allow_private,max_in_flight,secret}');
    PERFORM referral.webhook_check(url, types, options);

    IF options ? 'secret' THEN
        key := referral.webhook_secret_parse(options ->> 'secret');

    ELSE
        key := referral.webhook_new_secret();
    END IF;

    INSERT INTO referral.webhook_endpoint AS e
            (organisation_id, url, types, description, allow_private,
             max_in_flight)
        VALUES (webhook_add.organisation_id, webhook_add.url,
                webhook_add.types, options ->> 'description',
                coalesce((options ->> 'allow_private')::boolean, false),
                coalesce((options ->> 'max_in_flight')::int, 4))
        RETURNING e.id INTO id;

    INSERT INTO referral.webhook_state (endpoint_id) VALUES (id);
    INSERT INTO referral.webhook_secret (endpoint_id, secret)
        VALUES (id, key);

    secret := 'whsec_' || replace(encode(key, 'base64'), E'\n', '');
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_add(bigint, text, text[], jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_add(bigint, text, text[], jsonb)
    TO referral_app;


-- Changes url, types, description, allow_private, max_in_flight.

CREATE FUNCTION referral.webhook_update(webhook_id bigint, changes jsonb)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    endpoint   referral.webhook_endpoint := referral.webhook_get(webhook_id);
    new_types  text[] := endpoint.types;
BEGIN
    changes := referral.options_check('webhook_update', changes,
        '{url,types,description,allow_private,max_in_flight}');

    IF changes ? 'types' THEN
        new_types := CASE jsonb_typeof(changes -> 'types') WHEN 'array'
            THEN ARRAY(SELECT jsonb_array_elements_text(changes -> 'types'))
            END;
    END IF;

    PERFORM referral.webhook_check(
        CASE WHEN changes ? 'url' THEN changes ->> 'url'
             ELSE endpoint.url END,
        new_types,
        jsonb_build_object('allow_private', endpoint.allow_private)
            || changes);

    UPDATE referral.webhook_endpoint e
        SET url = coalesce(changes ->> 'url', e.url),
            types = new_types,
            description = CASE WHEN changes ? 'description'
                               THEN changes ->> 'description'
                               ELSE e.description END,
            allow_private = coalesce((changes ->> 'allow_private')::boolean,
                                     e.allow_private),
            max_in_flight = coalesce((changes ->> 'max_in_flight')::int,
                                     e.max_in_flight),
            updated_at = now()
        WHERE e.id = webhook_id;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_update(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_update(bigint, jsonb)
    TO referral_app;


-- A disabled webhook gets no new events; what it had not got yet waits.

CREATE FUNCTION referral.webhook_disable(webhook_id bigint,
                                         reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.webhook_get(webhook_id);

    UPDATE referral.webhook_endpoint e
        SET status = 'disabled', disabled_reason = reason, updated_at = now()
        WHERE e.id = webhook_id;
END
$$;

CREATE FUNCTION referral.webhook_enable(webhook_id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.webhook_get(webhook_id);

    UPDATE referral.webhook_endpoint e
        SET status = 'active', disabled_reason = NULL, updated_at = now()
        WHERE e.id = webhook_id;

    UPDATE referral.webhook_state s
        SET failures = 0, paused_until = NULL
        WHERE s.endpoint_id = webhook_id;

    PERFORM pg_notify('referral_outbox', '');
END
$$;

-- with its deliveries and secrets

CREATE FUNCTION referral.webhook_remove(webhook_id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.webhook_get(webhook_id);

    DELETE FROM referral.webhook_endpoint e WHERE e.id = webhook_id;
    DELETE FROM referral.webhook_delivery d WHERE d.endpoint_id = webhook_id;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_disable(bigint, text),
    referral.webhook_enable(bigint), referral.webhook_remove(bigint)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_disable(bigint, text),
    referral.webhook_enable(bigint), referral.webhook_remove(bigint)
    TO referral_app;


-- A new secret; for a while deliveries have both signatures.  One that was
-- still there from an earlier rotation ends at once: there are two at most.

CREATE FUNCTION referral.webhook_rotate(webhook_id bigint,
                                        overlap interval DEFAULT '24 hours',
                                        secret text DEFAULT NULL)
    RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key  bytea;
BEGIN
    PERFORM referral.webhook_get(webhook_id);

    IF overlap IS NULL OR overlap < interval '0'
       OR overlap > interval '30 days'
    THEN
        RAISE EXCEPTION 'the old secret can not be valid for % more', overlap
            USING ERRCODE = 'RF057', HINT = 'From 0 to 30 days.';
    END IF;

    IF secret IS NULL THEN
        key := referral.webhook_new_secret();

    ELSE
        key := referral.webhook_secret_parse(secret);
    END IF;

    PERFORM FROM referral.webhook_state s WHERE s.endpoint_id = webhook_id
        FOR NO KEY UPDATE;

    DELETE FROM referral.webhook_secret s
        WHERE s.endpoint_id = webhook_id
              AND (s.expires_at IS NOT NULL OR overlap = interval '0');

    UPDATE referral.webhook_secret s SET expires_at = now() + overlap
        WHERE s.endpoint_id = webhook_id;

    INSERT INTO referral.webhook_secret (endpoint_id, secret)
        VALUES (webhook_id, key);

    RETURN 'whsec_' || replace(encode(key, 'base64'), E'\n', '');
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_rotate(bigint, interval, text)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_rotate(bigint, interval, text)
    TO referral_app;


-- Sends an event "webhook.test" to this webhook, whatever its types; the
-- event's id.

CREATE FUNCTION referral.webhook_test(webhook_id bigint) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    endpoint  referral.webhook_endpoint := referral.webhook_get(webhook_id,
                                                                true);
    event_id  uuid;
BEGIN
    event_id := referral.emit(endpoint.organisation_id, 'webhook.test', NULL,
                              jsonb_build_object('webhook_id', webhook_id));

    INSERT INTO referral.webhook_delivery (endpoint_id, event_id, order_key)
        VALUES (webhook_id, event_id, event_id::text);

    PERFORM pg_notify('referral_outbox', '');

    RETURN event_id;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_test(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_test(bigint) TO referral_app;


-- Sends a delivery again, with all its attempts; what is still on its way is
-- sent now.

CREATE FUNCTION referral.webhook_redeliver(delivery_id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    endpoint  bigint;
BEGIN
    SELECT d.endpoint_id INTO endpoint
        FROM referral.webhook_delivery d WHERE d.id = delivery_id;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no delivery %', delivery_id
            USING ERRCODE = 'RF053',
                  HINT = 'See the view referral.webhook_deliveries; deliveries'
                         ' are kept 30 days.';
    END IF;

    PERFORM referral.webhook_get(endpoint, true);
    PERFORM FROM referral.webhook_state s WHERE s.endpoint_id = endpoint
        FOR NO KEY UPDATE;

    UPDATE referral.webhook_delivery d
        SET status = 'pending', next_at = now(), finished_at = NULL,
            attempts = CASE WHEN d.status = 'pending' THEN d.attempts
                            ELSE 0 END
        WHERE d.id = delivery_id
              AND (d.status <> 'sending' OR d.next_at <= now());

    PERFORM pg_notify('referral_outbox', '');
END
$$;

-- An event to all webhooks of its organisation that want it, or to one,
-- whether they have got it already or not; to how many.

CREATE FUNCTION referral.webhook_redeliver_event(event_id uuid,
    webhook_id bigint DEFAULT NULL) RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    happened  referral.event;
    delivery  bigint;
    n         int := 0;
BEGIN
    SELECT * INTO happened FROM referral.event e
        WHERE e.id = webhook_redeliver_event.event_id;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no event %', event_id
            USING ERRCODE = 'RF053',
                  HINT = 'See the view referral.events; events are kept 30'
                         ' days.';
    END IF;

    PERFORM referral.organisation_check(happened.organisation_id);

    FOR delivery IN
        INSERT INTO referral.webhook_delivery AS d
                (endpoint_id, event_id, order_key)
            SELECT e.id, happened.id, coalesce(happened.order_key,
                                               happened.id::text)
                FROM referral.webhook_endpoint e
                WHERE e.organisation_id = happened.organisation_id
                      AND e.status = 'active'
                      AND CASE WHEN webhook_id IS NULL
                          THEN happened.type <> 'webhook.test'
                               AND e.types && ARRAY['*', happened.type,
                                   split_part(happened.type, '.', 1) || '.*']
                          ELSE e.id = webhook_id END
                ORDER BY e.id
            ON CONFLICT ON CONSTRAINT webhook_delivery_event_id_endpoint_id_key
                DO UPDATE SET order_key = d.order_key
            RETURNING d.id
    LOOP
        PERFORM referral.webhook_redeliver(delivery);
        n := n + 1;
    END LOOP;

    RETURN n;
END
$$;

-- All dead deliveries of a webhook, when its receiver works again; how many.

CREATE FUNCTION referral.webhook_redeliver_dead(webhook_id bigint,
    since timestamptz DEFAULT '-infinity') RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    n  bigint;
BEGIN
    PERFORM referral.webhook_get(webhook_id, true);
    PERFORM FROM referral.webhook_state s WHERE s.endpoint_id = webhook_id
        FOR NO KEY UPDATE;

    UPDATE referral.webhook_delivery d
        SET status = 'pending', next_at = now(), finished_at = NULL,
            attempts = 0
        WHERE d.endpoint_id = webhook_id AND d.status = 'dead'
              AND d.finished_at >= since;
    GET DIAGNOSTICS n = ROW_COUNT;

    PERFORM pg_notify('referral_outbox', '');

    RETURN n;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_redeliver(bigint),
    referral.webhook_redeliver_event(uuid, bigint),
    referral.webhook_redeliver_dead(bigint, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_redeliver(bigint),
    referral.webhook_redeliver_event(uuid, bigint),
    referral.webhook_redeliver_dead(bigint, timestamptz) TO referral_app;


-- Up to room deliveries for a worker to send, signed, leased for so long.
--
-- Of each key only the first that is not finished may be taken.  Those behind
-- it that are due are given its time, lest each look meets them again;
-- webhook_done() brings the next one forward.  Both hold the lock of
-- webhook_state, or one would overwrite what the other did.
--
-- After five failures in a row an endpoint gets one delivery at a time.

CREATE FUNCTION referral.webhook_claim(room int, lease interval,
                                       OUT delivery_id bigint,
                                       OUT webhook_id bigint,
                                       OUT attempt int,
                                       OUT url text,
                                       OUT allow_private boolean,
                                       OUT event_id uuid,
                                       OUT at bigint,
                                       OUT signature text,
                                       OUT body text)
    RETURNS SETOF record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    endpoint  record;
    slots     int;
    chosen    bigint[];
    looked    int;
    claimed   record;
    key       record;
BEGIN
    at := extract(epoch FROM now())::bigint;

    FOR endpoint IN
        SELECT e.id, e.url, e.allow_private,
               CASE WHEN s.failures < 5 THEN e.max_in_flight ELSE 1 END AS most
            FROM referral.webhook_endpoint e
                 JOIN referral.webhook_state s ON s.endpoint_id = e.id
            WHERE e.status = 'active'
                  AND (s.paused_until IS NULL OR s.paused_until <= now())
                  AND EXISTS (SELECT FROM referral.webhook_delivery d
                                  WHERE d.endpoint_id = e.id
                                        AND d.status IN ('pending', 'sending')
                                        AND d.next_at <= now())
            ORDER BY s.claimed_at NULLS FIRST, e.id
            FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        EXIT WHEN room <= 0;

        SELECT least(room, endpoint.most - count(*)) INTO slots
            FROM referral.webhook_delivery d
            WHERE d.endpoint_id = endpoint.id AND d.status = 'sending'
                  AND d.next_at > now();

        CONTINUE WHEN slots <= 0;

        -- some rounds: all that one look finds may have to wait

        FOR round IN 1 .. 10 LOOP
            WITH due AS MATERIALIZED (
                SELECT d.id, d.order_key
                    FROM referral.webhook_delivery d
                    WHERE d.endpoint_id = endpoint.id
                          AND d.status IN ('pending', 'sending')
                          AND d.next_at <= now()
                    ORDER BY d.next_at, d.id
                    LIMIT 500
            ), judged AS MATERIALIZED (
                SELECT due.id, first.id AS first_id, first.next_at
                    FROM due CROSS JOIN LATERAL (
                        SELECT d.id, d.next_at
                            FROM referral.webhook_delivery d
                            WHERE d.endpoint_id = endpoint.id
                                  AND d.order_key = due.order_key
                                  AND d.status IN ('pending', 'sending')
                            ORDER BY d.id
                            LIMIT 1) first
            ), blocked AS (
                UPDATE referral.webhook_delivery d
                    SET next_at = j.next_at
                    FROM judged j
                    WHERE d.id = j.id AND j.first_id <> j.id
                          AND j.next_at > now()
            )
            SELECT (SELECT array_agg(c.id)
                        FROM (SELECT j.id FROM judged j
                                  WHERE j.first_id = j.id
                                  ORDER BY j.id LIMIT slots) c),
                   (SELECT count(*) FROM due)
                INTO chosen, looked;

            FOR claimed IN
                UPDATE referral.webhook_delivery d
                    SET status = 'sending', next_at = now() + lease,
                        attempted_at = now(), attempts = d.attempts + 1
                    FROM referral.event ev
                    WHERE d.id = ANY (chosen) AND ev.id = d.event_id
                    RETURNING d.id, d.attempts, ev.id AS event_id,
                              '{"type":' || to_json(ev.type)
                              || ',"timestamp":"'
                              || to_char(ev.created_at AT TIME ZONE 'UTC',
                                         'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                              || '","data":' || ev.data::text || '}' AS body
            LOOP
                delivery_id := claimed.id;
                webhook_id := endpoint.id;
                attempt := claimed.attempts;
                url := endpoint.url;
                allow_private := endpoint.allow_private;
                event_id := claimed.event_id;
                body := claimed.body;
                signature := NULL;

                FOR key IN
                    SELECT s.inner_pad, s.outer_pad
                        FROM referral.webhook_secret s
                        WHERE s.endpoint_id = endpoint.id
                              AND (s.expires_at IS NULL
                                   OR s.expires_at > now())
                        ORDER BY s.id DESC
                LOOP
                    signature := concat_ws(' ', signature, 'v1,'
                        || encode(sha256(key.outer_pad || sha256(key.inner_pad
                               || convert_to(event_id::text || '.' || at::text
                                             || '.' || body, 'UTF8'))),
                                  'base64'));
                END LOOP;

                slots := slots - 1;
                room := room - 1;
                RETURN NEXT;
            END LOOP;

            EXIT WHEN slots <= 0 OR looked < 500;
        END LOOP;

        UPDATE referral.webhook_state s SET claimed_at = clock_timestamp()
            WHERE s.endpoint_id = endpoint.id;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_claim(int, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_claim(int, interval)
    TO referral_worker;


-- The wait after attempt n, before jitter; null: it was the last.

CREATE FUNCTION referral.webhook_delay(attempt int) RETURNS interval
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN ('{5 s,5 min,30 min,2 h,5 h,10 h,14 h,20 h,24 h}'::interval[])
           [attempt];

REVOKE ALL ON FUNCTION referral.webhook_delay(int) FROM PUBLIC;


-- Takes what came of attempts: an array of objects with delivery, attempt,
-- status (of HTTP, 0: there was no answer), error, retry_after (seconds, null
-- without), ms and response (its first kilobyte).  The outcome of each is
-- "delivered", "retry", "dead", "disabled" (410: the endpoint too) or "late":
-- the lease was over and somebody else has it, nothing is changed.

CREATE FUNCTION referral.webhook_done(results jsonb, OUT delivery_id bigint,
                                      OUT outcome text)
    RETURNS SETOF record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    result  record;
    delay   interval;
    pause   interval;
BEGIN
    -- in one order, so that two workers do not wait for each other

    PERFORM FROM referral.webhook_state s
        WHERE s.endpoint_id IN
                  (SELECT d.endpoint_id
                       FROM jsonb_array_elements(results) r
                            JOIN referral.webhook_delivery d
                                ON d.id = (r ->> 'delivery')::bigint)
        ORDER BY s.endpoint_id
        FOR NO KEY UPDATE;

    FOR result IN
        SELECT r.*, d.endpoint_id, d.order_key
            FROM jsonb_to_recordset(results)
                     AS r(delivery bigint, attempt int, status int,
                          error text, retry_after bigint, ms int,
                          response text)
                 JOIN referral.webhook_delivery d ON d.id = r.delivery
            ORDER BY d.endpoint_id, d.id
    LOOP
        delivery_id := result.delivery;
        delay := referral.webhook_delay(result.attempt)
                 * (0.9 + random() * 0.2);
        pause := NULL;

        IF result.status IN (429, 503) AND result.retry_after > 0 THEN
            pause := make_interval(secs => least(result.retry_after, 86400));
            delay := greatest(delay, pause);
        END IF;

        outcome := CASE
            WHEN result.status BETWEEN 200 AND 299 THEN 'delivered'
            WHEN result.status = 410 THEN 'disabled'
            WHEN referral.webhook_delay(result.attempt) IS NULL THEN 'dead'
            ELSE 'retry' END;

        UPDATE referral.webhook_delivery d
            SET status = CASE outcome WHEN 'delivered' THEN 'delivered'
                                      WHEN 'retry' THEN 'pending'
                                      ELSE 'dead' END,
                next_at = CASE outcome WHEN 'retry' THEN now() + delay
                                       ELSE d.next_at END,
                finished_at = CASE WHEN outcome <> 'retry' THEN now() END,
                http_status = nullif(result.status, 0),
                error = result.error,
                duration_ms = result.ms,
                response = left(result.response, 1024)
            WHERE d.id = result.delivery AND d.status = 'sending'
                  AND d.attempts = result.attempt;

        IF NOT FOUND THEN
            outcome := 'late';
            RETURN NEXT;
            CONTINUE;
        END IF;

        IF outcome <> 'retry' THEN
            UPDATE referral.webhook_delivery d
                SET next_at = now()
                WHERE d.id = (SELECT n.id FROM referral.webhook_delivery n
                                  WHERE n.endpoint_id = result.endpoint_id
                                        AND n.order_key = result.order_key
                                        AND n.status IN ('pending', 'sending')
                                  ORDER BY n.id
                                  LIMIT 1)
                      AND d.status = 'pending';
        END IF;

        UPDATE referral.webhook_state s
            SET failures = CASE outcome WHEN 'delivered' THEN 0
                                        ELSE s.failures + 1 END,
                paused_until = CASE WHEN outcome = 'delivered' THEN NULL
                                    WHEN pause IS NOT NULL
                                    THEN greatest(s.paused_until,
                                                  now() + pause)
                                    ELSE s.paused_until END,
                last_success_at = CASE outcome WHEN 'delivered' THEN now()
                                  ELSE s.last_success_at END,
                last_failure_at = CASE outcome WHEN 'delivered'
                                  THEN s.last_failure_at ELSE now() END
            WHERE s.endpoint_id = result.endpoint_id;

        IF outcome = 'disabled' THEN
            UPDATE referral.webhook_endpoint e
                SET status = 'disabled', updated_at = now(),
                    disabled_reason = 'it answered 410 Gone'
                WHERE e.id = result.endpoint_id AND e.status = 'active';
        END IF;

        RETURN NEXT;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_done(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_done(jsonb) TO referral_worker;


-- Deletes events of more than 30 days, with their deliveries, whatever came of
-- them, and secrets that have expired; how many events.  In slices, so that no
-- call takes long.

CREATE FUNCTION referral.webhook_prune(at timestamptz DEFAULT now())
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first  uuid := (lpad(to_hex((extract(epoch FROM at - interval '30 days')
                                 * 1000)::bigint), 12, '0')
                    || '7000-8000-000000000000')::uuid;
    n      bigint;
BEGIN
    DELETE FROM referral.webhook_secret s WHERE s.expires_at <= at;

    DELETE FROM referral.event e
        WHERE e.id IN (SELECT o.id FROM referral.event o
                           WHERE o.id < first
                           ORDER BY o.id
                           LIMIT 20000
                           FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS n = ROW_COUNT;

    RETURN n;
END
$$;

REVOKE ALL ON FUNCTION referral.webhook_prune(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.webhook_prune(timestamptz)
    TO referral_worker;


CREATE VIEW referral.events WITH (security_barrier = true) AS
    SELECT e.id, e.seq, e.organisation_id, e.type, e.order_key, e.data,
           e.created_at
        FROM referral.event e
        WHERE referral.organisation_scope() IS NULL
              OR e.organisation_id = referral.organisation_scope();

CREATE VIEW referral.webhooks WITH (security_barrier = true) AS
    SELECT e.id, e.organisation_id, e.url, e.types, e.description, e.status,
           e.disabled_reason, e.allow_private, e.max_in_flight, s.failures,
           s.paused_until, s.last_success_at, s.last_failure_at,
           (SELECT count(*) FROM referral.webhook_delivery d
                WHERE d.endpoint_id = e.id
                      AND d.status IN ('pending', 'sending')) AS pending,
           (SELECT count(*) FROM referral.webhook_delivery d
                WHERE d.endpoint_id = e.id AND d.status = 'dead') AS dead,
           (SELECT count(*) FROM referral.webhook_secret k
                WHERE k.endpoint_id = e.id
                      AND (k.expires_at IS NULL OR k.expires_at > now()))
               AS secrets,
           e.created_at, e.updated_at
        FROM referral.webhook_endpoint e
             JOIN referral.webhook_state s ON s.endpoint_id = e.id
        WHERE referral.organisation_scope() IS NULL
              OR e.organisation_id = referral.organisation_scope();

CREATE VIEW referral.webhook_deliveries WITH (security_barrier = true) AS
    SELECT d.id, d.endpoint_id AS webhook_id, e.organisation_id, d.event_id,
           ev.type, ev.order_key, d.status, d.attempts,
           CASE WHEN d.status = 'pending' THEN d.next_at END AS next_at,
           d.attempted_at, d.http_status, d.error, d.duration_ms, d.response,
           ev.created_at, d.finished_at
        FROM referral.webhook_delivery d
             JOIN referral.webhook_endpoint e ON e.id = d.endpoint_id
             JOIN referral.event ev ON ev.id = d.event_id
        WHERE referral.organisation_scope() IS NULL
              OR e.organisation_id = referral.organisation_scope();

GRANT SELECT ON referral.events, referral.webhooks
    TO referral_app, referral_analyst;
GRANT SELECT ON referral.webhook_deliveries TO referral_app;
GRANT SELECT ON referral.event_type TO referral_app, referral_analyst;

INSERT INTO referral.schema_migration (version, name) VALUES (13, 'outbox');

COMMIT;
