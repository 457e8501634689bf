-- Copyright (C) The nginx referral module authors
--
-- What a conversion and a partner's page cost, I: what they call.  Functions
-- of 0007, 0013, 0016, 0017, 0018, 0020 and 0021 are made anew and do the
-- same, with fewer statements: each costs a start of the executor.  Events of
-- a reward have the slot and which referral it was (a milestone, where a bonus
-- is given), too.  How long it takes to know a customer does not grow with the
-- programs of the organisation.  Two functions that nothing called, of 0020
-- and 0028, go.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

DROP FUNCTION referral.reward_take(bigint, bigint, bigint);
DROP FUNCTION referral.program_day(bigint, timestamptz);


-- A partner's page counts all referrals of a referrer by status: from the
-- index alone, as each of them lies in another page.  It is planned once in a
-- session, not anew for the first five: planning takes longer than a page.

DROP INDEX referral.referral_referrer;
CREATE INDEX referral_referrer
    ON referral.referral (referrer_id, created_at) INCLUDE (status);

ALTER FUNCTION referral.partner_page(bigint, date, date)
    SET plan_cache_mode = force_generic_plan;


-- Rewards come after referrals, as in sessions that wait for either.  This
-- index was there twice, as reward_program.

DROP INDEX referral.reward_earned;

-- Most rewards never end: they need not be in the indexes of those that do.

DROP INDEX referral.reward_expiring;
DROP INDEX referral.reward_expiry;
CREATE INDEX reward_expiring ON referral.reward (expiring_at)
    WHERE status = 'approved' AND expiring_sent_at IS NULL
          AND expiring_at IS NOT NULL;
CREATE INDEX reward_expiry ON referral.reward (valid_until)
    WHERE status = 'approved' AND closed_at IS NULL
          AND valid_until IS NOT NULL;


CREATE OR REPLACE FUNCTION referral.options_check(what text, given jsonb,
                                                  allowed text[])
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

    IF given - allowed <> '{}' THEN
        SELECT min(key COLLATE "C") INTO name
            FROM jsonb_object_keys(given - allowed) key;

        RAISE EXCEPTION '%(): no option "%"', what, left(name, 100)
            USING ERRCODE = 'RF011',
                  HINT = format('Keys: %s.', array_to_string(allowed, ', '));
    END IF;

    RETURN given;
END
$$;


-- Events of one object, in their order: see emit().

CREATE FUNCTION referral.emit_all(organisation_id bigint, order_key text,
                                  types text[], data jsonb[]) RETURNS uuid[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stamp  text := lpad(to_hex((extract(epoch FROM clock_timestamp())
                                * 1000)::bigint), 12, '0') || '7';
    ids    uuid[] := '{}';
    type   text;
BEGIN
    SELECT n.type INTO type
        FROM unnest(types) n (type)
        WHERE NOT EXISTS (SELECT FROM referral.event_type t
                              WHERE t.type = n.type)
        LIMIT 1;

    IF FOUND THEN
        RAISE EXCEPTION 'there is no event type "%"', type
            USING ERRCODE = 'RF050',
                  HINT = 'The types are in referral.event_type.';
    END IF;

    FOR i IN 1 .. cardinality(types) LOOP

        -- receivers may refuse bodies above 20 kB, as the specification says

        IF jsonb_typeof(data[i]) IS DISTINCT FROM 'object'
           OR octet_length(data[i]::text) > 16384
        THEN
            RAISE EXCEPTION 'the data of event "%" are no object of up to'
                ' 16384 bytes', types[i]
                USING ERRCODE = 'RF051', HINT = 'Give ids, not contents.';
        END IF;

        ids := ids || (stamp || substr(gen_random_uuid()::text, 16))::uuid;
    END LOOP;

    INSERT INTO referral.event (id, organisation_id, type, order_key, data)
        SELECT n.id, emit_all.organisation_id, n.type, emit_all.order_key,
               n.data
            FROM unnest(ids, types, data) n (id, type, data);

    IF NOT EXISTS (SELECT FROM referral.webhook_endpoint e
                       WHERE e.organisation_id = emit_all.organisation_id
                             AND e.status = 'active')
    THEN
        RETURN ids;
    END IF;

    INSERT INTO referral.webhook_delivery (endpoint_id, event_id, order_key)
        SELECT e.id, n.id, coalesce(emit_all.order_key, n.id::text)
            FROM referral.webhook_endpoint e,
                 unnest(ids, emit_all.types) WITH ORDINALITY
                     n (id, type, place)
            WHERE e.organisation_id = emit_all.organisation_id
                  AND e.status = 'active' AND n.type <> 'webhook.test'
                  AND e.types && ARRAY['*', n.type,
                                       split_part(n.type, '.', 1) || '.*']
            ORDER BY n.place;

    IF FOUND AND pg_try_advisory_xact_lock(
                     hashtextextended('referral.outbox', 0))
    THEN
        PERFORM pg_notify('referral_outbox', '');
    END IF;

    RETURN ids;
END
$$;

REVOKE ALL ON FUNCTION referral.emit_all(bigint, text, text[], jsonb[])
    FROM PUBLIC;

CREATE OR REPLACE FUNCTION referral.emit(organisation_id bigint, type text,
                                         order_key text, data jsonb)
    RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (referral.emit_all(organisation_id, order_key, ARRAY[type],
                              ARRAY[data]))[1];
END
$$;


-- What of a program's settings says how its customers are known.

CREATE FUNCTION referral.identity_key(settings jsonb) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT sha256(convert_to(concat_ws('/',
               coalesce(settings -> 'referee_identity', 'null'),
               coalesce(settings -> 'email_provider_rules', 'null'),
               coalesce(settings -> 'calling_code', 'null'),
               coalesce(settings -> 'trunk_prefix', 'null')), 'UTF8'))
$$;

REVOKE ALL ON FUNCTION referral.identity_key(jsonb) FROM PUBLIC;

CREATE INDEX program_identity
    ON referral.program (organisation_id, referral.identity_key(settings))
    WHERE NOT template;


-- An external id of one program, as most are, needs one statement.

CREATE OR REPLACE FUNCTION referral.customer_hashes(organisation_id bigint,
                                                    only_program bigint,
                                                    external_id text,
                                                    contact jsonb)
    RETURNS bytea[]
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kinds   jsonb;
    one     referral.program;
    key     bytea := '';
    hashes  bytea[] := '{}';
BEGIN
    IF only_program IS NOT NULL AND external_id IS NOT NULL
       AND contact IS NULL
    THEN
        SELECT coalesce(p.settings -> 'referee_identity',
                        o.settings -> 'referee_identity', '["external"]')
            INTO kinds
            FROM referral.program p
                 JOIN referral.organisation o ON o.id = p.organisation_id
            WHERE p.id = only_program AND NOT p.template
                  AND o.id = customer_hashes.organisation_id;

        RETURN CASE WHEN kinds ? 'external'
                    THEN ARRAY[sha256(convert_to('external:' || external_id,
                                                 'UTF8'))]
                    ELSE '{}' END;
    END IF;

    IF only_program IS NOT NULL THEN
        SELECT * INTO one
            FROM referral.program g
            WHERE g.id = only_program AND NOT g.template
                  AND g.organisation_id = customer_hashes.organisation_id;

        IF NOT FOUND THEN
            RETURN '{}';
        END IF;

        RETURN ARRAY(SELECT DISTINCT h.hash
                         FROM referral.referee_hashes(one, external_id,
                                  contact ->> 'email', contact ->> 'phone') h);
    END IF;

    -- from one way to know them to the next: as many steps as there are ways

    LOOP
        SELECT * INTO one
            FROM referral.program g
            WHERE g.organisation_id = customer_hashes.organisation_id
                  AND NOT g.template
                  AND referral.identity_key(g.settings) > key
            ORDER BY referral.identity_key(g.settings)
            LIMIT 1;

        EXIT WHEN NOT FOUND;

        key := referral.identity_key(one.settings);
        hashes := hashes || ARRAY(SELECT h.hash
                      FROM referral.referee_hashes(one, external_id,
                               contact ->> 'email', contact ->> 'phone') h
                      WHERE h.hash <> ALL (hashes));
    END LOOP;

    RETURN hashes;
END
$$;


-- A transfer of one unit, which nearly all are, is seen to be right at a
-- glance.

CREATE OR REPLACE FUNCTION referral.transfer_balanced() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    n     int;
    good  boolean;
    u     record;
BEGIN
    SELECT count(*),
           min(a.unit) = max(a.unit) AND sum(e.amount) = 0
           AND bool_and(a.organisation_id = NEW.organisation_id)
        INTO n, good
        FROM referral.entry e
             JOIN referral.account a ON a.id = e.account_id
        WHERE e.transfer_id = NEW.id;

    IF good AND n = NEW.entries THEN
        RETURN NULL;
    END IF;

    n := 0;

    FOR u IN
        SELECT a.unit, count(*) AS entries, sum(e.amount) AS total,
               bool_and(a.organisation_id = NEW.organisation_id) AS own
            FROM referral.entry e
                 JOIN referral.account a ON a.id = e.account_id
            WHERE e.transfer_id = NEW.id
            GROUP BY a.unit
    LOOP
        IF u.total <> 0 THEN
            RAISE EXCEPTION 'the entries of transfer % add up to %, not to 0',
                            NEW.id, referral.money_text(u.total::bigint,
                                                        u.unit)
                USING ERRCODE = 'RF062';
        END IF;

        IF NOT u.own THEN
            RAISE EXCEPTION 'transfer % has an account of another'
                            ' organisation', NEW.id
                USING ERRCODE = 'RF062';
        END IF;

        n := n + u.entries;
    END LOOP;

    IF n <> NEW.entries THEN
        RAISE EXCEPTION 'transfer % has % entries, and says %', NEW.id, n,
                        NEW.entries
            USING ERRCODE = 'RF062';
    END IF;

    RETURN NULL;
END
$$;


-- A reward takes nothing from what is owed: nothing is to be checked then.

CREATE OR REPLACE FUNCTION referral.entries_write(transfers bigint[],
                                                  postings referral.posting[],
                                                  kind text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    short  record;
BEGIN
    INSERT INTO referral.entry (account_id, seq, transfer_id, n, of, reward_id,
                                amount, balance)
        SELECT p.account_id,
               coalesce(last.seq, 0) + row_number() OVER account,
               t.id, row_number() OVER transfer, count(*) OVER transfer,
               p.reward_id, p.amount,
               referral.round_money(coalesce(last.balance, 0)
                                    + sum(p.amount) OVER account)
            FROM unnest(postings) WITH ORDINALITY
                     p (account_id, amount, reward_id, n)
                 JOIN unnest(transfers) WITH ORDINALITY t (id, n)
                     ON t.n = p.n
                 LEFT JOIN LATERAL (SELECT l.seq, l.balance
                                        FROM referral.entry l
                                        WHERE l.account_id = p.account_id
                                        ORDER BY l.seq DESC
                                        LIMIT 1) last ON true
            WINDOW account AS (PARTITION BY p.account_id ORDER BY p.n
                               ROWS UNBOUNDED PRECEDING),
                   transfer AS (PARTITION BY t.id ORDER BY p.n
                                ROWS BETWEEN UNBOUNDED PRECEDING
                                             AND UNBOUNDED FOLLOWING);

    IF entries_write.kind = 'reward' THEN
        RETURN;
    END IF;

    SELECT a.id, a.kind, a.unit, sum(e.amount)::bigint AS moved,
           (array_agg(e.balance ORDER BY e.seq DESC))[1] AS balance
        INTO short
        FROM referral.entry e
             JOIN referral.account a ON a.id = e.account_id
        WHERE e.transfer_id = ANY (transfers)
              AND a.owed
              AND NOT (entries_write.kind = 'clawback'
                       AND a.kind IN ('payable', 'credit', 'discount'))
        GROUP BY a.id, a.kind, a.unit
        HAVING sum(e.amount) < 0
               AND (array_agg(e.balance ORDER BY e.seq DESC))[1] < 0
        LIMIT 1;

    IF FOUND THEN
        RAISE EXCEPTION 'account % (%) has %, not %', short.id, short.kind,
                referral.money_text(short.balance - short.moved, short.unit),
                referral.money_text(-short.moved, short.unit)
            USING ERRCODE = 'RF066';
    END IF;
END
$$;


-- What events tell of a reward.

CREATE FUNCTION referral.reward_event(w referral.reward, amount bigint)
    RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN jsonb_strip_nulls(jsonb_build_object(
               'reward_id', w.id, 'referral_id', w.referral_id,
               'program_id', w.program_id, 'conversion_id', w.conversion_id,
               'beneficiary', w.beneficiary, 'referrer_id', w.referrer_id,
               'person_id', w.person_id, 'slot', w.slot, 'nth', w.nth,
               'kind', w.kind, 'unit', w.unit, 'amount', amount,
               'item', w.item, 'coupon_bp', w.coupon_bp,
               'status', w.status, 'needs_approval', w.needs_approval,
               'valid_until', w.valid_until, 'reason', w.reason));
END
$$;

REVOKE ALL ON FUNCTION referral.reward_event(referral.reward, bigint)
    FROM PUBLIC;

CREATE OR REPLACE FUNCTION referral.reward_emit(w referral.reward, type text,
                                                amount bigint DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.emit(w.organisation_id, 'reward.' || type,
                          'referral:' || w.referral_id,
                          referral.reward_event(w, coalesce(amount,
                                                            w.amount)));
END
$$;


CREATE OR REPLACE FUNCTION referral.reward_amount(
    u referral.reward_rule, nth int, day date, base bigint, commission_bp int,
    OUT amount bigint, OUT rate_bp int, OUT multiplier_bp int)
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tier    jsonb;
    fixed   bigint := u.amount;
BEGIN
    rate_bp := u.rate_bp;
    multiplier_bp := 10000;

    IF u.tiers IS NOT NULL THEN
        FOR i IN 0 .. jsonb_array_length(u.tiers) - 1 LOOP
            tier := u.tiers -> i;
            EXIT WHEN (tier -> 'from')::int > nth;
            fixed := (tier -> 'amount')::bigint;
            rate_bp := (tier -> 'rate_bp')::int;
        END LOOP;
    END IF;

    IF rate_bp IS NOT NULL AND u.commission AND u.beneficiary = 'referrer' THEN
        rate_bp := coalesce(commission_bp, rate_bp);
    END IF;

    IF u.seasons IS NOT NULL THEN
        SELECT coalesce(max((s -> 'multiplier_bp')::int), 10000)
            INTO multiplier_bp
            FROM jsonb_array_elements(u.seasons) s
            WHERE day BETWEEN (s ->> 'from')::date AND (s ->> 'until')::date;
    END IF;

    amount := CASE WHEN rate_bp IS NOT NULL
                   THEN referral.round_money(base::numeric * rate_bp
                                             * multiplier_bp * 0.00000001)
                   ELSE referral.rate_of(fixed, multiplier_bp) END;
END
$$;


CREATE OR REPLACE FUNCTION referral.conversion_values(c referral.conversion)
    RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name  text;
BEGIN
    IF c.order_ref IS NULL AND c.idempotency_key IS NULL THEN
        RAISE EXCEPTION 'conversion_record(): nothing says which order it is'
            USING ERRCODE = 'RF069',
                  HINT = 'Give order_ref, or an idempotency_key.';
    END IF;

    name := CASE
        WHEN NOT length(c.order_ref) BETWEEN 1 AND 200 THEN 'order_ref'
        WHEN NOT length(c.idempotency_key) BETWEEN 1 AND 200
            THEN 'idempotency_key'
        WHEN c.kind !~ '^[a-z0-9][a-z0-9_-]{0,39}$' THEN 'kind'
        WHEN NOT length(c.product) BETWEEN 1 AND 200 THEN 'product'
        WHEN NOT c.amount BETWEEN 0 AND 1000000000000000 THEN 'amount'
        WHEN NOT c.discount BETWEEN 0 AND 1000000000000000 THEN 'discount'
        END;

    IF name IS NULL AND c.currency IS NOT NULL
       AND NOT EXISTS (SELECT FROM referral.unit u
                           WHERE u.code = c.currency AND u.kind = 'money')
    THEN
        name := 'currency';

    ELSIF name IS NULL
          AND (c.occurred_at <= '2000-01-01Z'
               OR c.occurred_at >= now() + interval '1 day')
    THEN
        name := 'occurred_at';
    END IF;

    IF name IS NOT NULL THEN
        RAISE EXCEPTION 'conversion_record(): "%" is not acceptable', name
            USING ERRCODE = 'RF010',
                  HINT = format('Accepted: %s.', CASE name
                      WHEN 'kind' THEN '1 to 40 of a-z, 0-9, _ and -'
                      WHEN 'amount' THEN 'a whole number of minor units, from'
                                         ' 0 to 10^15'
                      WHEN 'discount' THEN 'a whole number of minor units,'
                                           ' from 0 to 10^15'
                      WHEN 'currency' THEN 'a currency of ISO 4217, such as'
                                           ' USD'
                      WHEN 'occurred_at' THEN 'a time from 2000 on, at most a'
                                              ' day ahead'
                      ELSE '1 to 200 characters' END);
    END IF;
END
$$;


-- What events tell of a referral.

CREATE FUNCTION referral.referral_event(r referral.referral) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN jsonb_strip_nulls(jsonb_build_object(
               'referral_id', r.id, 'program_id', r.program_id,
               'referrer_id', r.referrer_id, 'code_id', r.code_id,
               'referee_external_id', r.referee_external_id,
               'status', r.status, 'source', r.source,
               'value', r.value, 'currency', r.currency));
END
$$;

REVOKE ALL ON FUNCTION referral.referral_event(referral.referral) FROM PUBLIC;

CREATE OR REPLACE FUNCTION referral.referral_emit(r referral.referral,
                                                  type text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.emit(r.organisation_id, 'referral.' || type,
                          'referral:' || r.id, referral.referral_event(r));
END
$$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (33, 'statement_cost');

COMMIT;
