-- Copyright (C) The nginx referral module authors
--
-- What a conversion costs, II: conversion_record() (0021) and what gives its
-- rewards, reward_give() and reward_on_registration() (0020), do the same with
-- fewer statements.  Each update of a referral, whose status and dates are in
-- indexes, costs an entry in most of them; and of a row that the transaction
-- has updated before, the next update checks all foreign keys, and locks
-- organisation and program by that: so a conversion updates its referral once.
--
-- Locks are taken in the order of 0032: reward_give() makes all accounts that
-- are missing before it locks any, and looks ahead for rewards that settling
-- debts changes.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;


-- Accounts of one counterparty, the first one given that is not null, and of
-- one unit, in the order of the kinds; null where there is none.

CREATE FUNCTION referral.accounts_find(organisation_id bigint, kinds text[],
                                       unit text, referrer_id bigint,
                                       person_id bigint, referral_id bigint)
    RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF referrer_id IS NOT NULL THEN
        RETURN ARRAY(SELECT a.id
                         FROM unnest(kinds) WITH ORDINALITY k (kind, n)
                              LEFT JOIN referral.account a
                                  ON a.referrer_id = accounts_find.referrer_id
                                     AND a.organisation_id
                                         = accounts_find.organisation_id
                                     AND a.unit = accounts_find.unit
                                     AND a.kind = k.kind
                         ORDER BY k.n);

    ELSIF person_id IS NOT NULL THEN
        RETURN ARRAY(SELECT a.id
                         FROM unnest(kinds) WITH ORDINALITY k (kind, n)
                              LEFT JOIN referral.account a
                                  ON a.referrer_id IS NULL
                                     AND a.person_id = accounts_find.person_id
                                     AND a.referral_id IS NULL
                                     AND a.organisation_id
                                         = accounts_find.organisation_id
                                     AND a.unit = accounts_find.unit
                                     AND a.kind = k.kind
                         ORDER BY k.n);

    ELSE
        RETURN ARRAY(SELECT a.id
                         FROM unnest(kinds) WITH ORDINALITY k (kind, n)
                              LEFT JOIN referral.account a
                                  ON a.referrer_id IS NULL
                                     AND a.person_id IS NULL
                                     AND a.referral_id
                                         = accounts_find.referral_id
                                     AND a.organisation_id
                                         = accounts_find.organisation_id
                                     AND a.unit = accounts_find.unit
                                     AND a.kind = k.kind
                         ORDER BY k.n);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.accounts_find(bigint, text[], text, bigint,
                                              bigint, bigint) FROM PUBLIC;


-- The same, made where they are missing.

CREATE FUNCTION referral.accounts_get(organisation_id bigint, kinds text[],
                                      unit text, referrer_id bigint,
                                      person_id bigint, referral_id bigint)
    RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ids  bigint[];
BEGIN
    ids := referral.accounts_find(organisation_id, kinds, unit, referrer_id,
                                  person_id, referral_id);

    IF array_position(ids, NULL) IS NULL THEN
        RETURN ids;
    END IF;

    IF NOT EXISTS (SELECT FROM referral.unit u WHERE u.code = unit) THEN
        RAISE EXCEPTION 'there is no unit "%"', unit
            USING ERRCODE = 'RF063',
                  HINT = 'See referral.unit: USD, JPY, points and so on.';
    END IF;

    -- another session may be first

    INSERT INTO referral.account (organisation_id, kind, unit, referrer_id,
                                  person_id, referral_id)
        SELECT accounts_get.organisation_id, k.kind, accounts_get.unit,
               accounts_get.referrer_id,
               CASE WHEN accounts_get.referrer_id IS NULL
                    THEN accounts_get.person_id END,
               CASE WHEN num_nonnulls(accounts_get.referrer_id,
                                      accounts_get.person_id) = 0
                    THEN accounts_get.referral_id END
            FROM unnest(kinds, ids) k (kind, id)
            WHERE k.id IS NULL
        ON CONFLICT DO NOTHING;

    RETURN referral.accounts_find(organisation_id, kinds, unit, referrer_id,
                                  person_id, referral_id);
END
$$;

REVOKE ALL ON FUNCTION referral.accounts_get(bigint, text[], text, bigint,
                                             bigint, bigint) FROM PUBLIC;


-- Makes the accounts of referrers that planned rewards need, in the one order:
-- two sessions that make the same ones would wait for each other.

CREATE FUNCTION referral.accounts_make(planned referral.reward[])
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.account_get(n.organisation_id, n.book, n.unit,
                                 n.referrer_id)
        FROM (SELECT DISTINCT p.referrer_id, p.unit, k.book,
                     p.organisation_id
                  FROM unnest(planned) p,
                       LATERAL (VALUES
                           ('expense'),
                           (referral.reward_account_kind(p.kind)),
                           (CASE WHEN p.status <> 'approved'
                                 THEN 'pending' END)) k (book)
                  WHERE p.referrer_id IS NOT NULL AND k.book IS NOT NULL
                  ORDER BY p.referrer_id, p.unit, k.book) n;
END
$$;

REVOKE ALL ON FUNCTION referral.accounts_make(referral.reward[]) FROM PUBLIC;


-- Gives what the rules of a referral give at this event.  The referral is
-- locked; c is the conversion, whose row may be yet to come, or null.  The
-- answer has the rewards, and the rules that gave none, with the reason; the
-- events, and the step of the referral, are left to the caller, who has others
-- as well.

DROP FUNCTION referral.reward_give(referral.referral, text,
    referral.conversion, int, timestamptz);

CREATE FUNCTION referral.reward_give(r referral.referral, trigger_ text,
                                     c referral.conversion, nth int,
                                     at timestamptz, OUT answer jsonb,
                                     OUT types text[], OUT events jsonb[])
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p         referral.program;
    f         referral.referrer;
    s         referral.reward_rule_set;
    u         referral.reward_rule;
    w         referral.reward;
    planned   referral.reward[] := '{}';
    accounts  bigint[];
    move      bigint;
    moves     bigint[];
    debts     bigint[];
    postings  referral.posting[];
    ids       bigint[];
    parts     bigint[];
    books     text[];
    before    boolean;
    sharers   bigint[];
    weights   bigint[];
    value     record;
    room      bigint;
    part      bigint;
    why       text;
    money     boolean;
    same      boolean;
    approval  boolean;
    day       date;
    code_set  int;
    skipped   jsonb := '[]';
    given     jsonb := '[]';
BEGIN
    types := '{}';
    events := '{}';

    SELECT * INTO s
        FROM referral.reward_rule_set t
        WHERE t.program_id = r.program_id AND t.code_id IS NULL
              AND t.version <= r.rule_set_version
        ORDER BY t.version DESC
        LIMIT 1;
    SELECT max(t.version) INTO code_set
        FROM referral.reward_rule_set t
        WHERE t.code_id = r.code_id AND t.version <= r.rule_set_version;

    IF s.version IS NULL AND code_set IS NULL THEN
        answer := jsonb_build_object('rewards', given, 'skipped', skipped);
        RETURN;
    END IF;

    -- the limits of the code's rules are its own, where it has any

    IF code_set IS NOT NULL THEN
        SELECT t.cap, t.approval_above, t.unit, t.expiring_notice
            INTO value
            FROM referral.reward_rule_set t
            WHERE t.program_id = r.program_id AND t.version = code_set;

        IF s.version IS NULL OR num_nonnulls(value.cap, value.approval_above)
                                > 0
        THEN
            s.cap := value.cap;
            s.approval_above := value.approval_above;
            s.unit := value.unit;
            s.expiring_notice := value.expiring_notice;
        END IF;
    END IF;

    SELECT t.attribution, t.time_zone, t.currency, t.reward_threshold
        INTO p.attribution, p.time_zone, p.currency, p.reward_threshold
        FROM referral.program t
        WHERE t.id = r.program_id;
    SELECT t.id, t.status, t.commission_bp
        INTO f.id, f.status, f.commission_bp
        FROM referral.referrer t
        WHERE t.id = r.referrer_id;
    before := EXISTS (SELECT FROM referral.reward t
                          WHERE t.referral_id = r.id);
    day := (at AT TIME ZONE p.time_zone)::date;

    IF p.attribution IN ('linear', 'position') THEN
        SELECT t.referrers, t.weights INTO sharers, weights
            FROM referral.reward_shares(r) t;
    END IF;

    IF s.cap IS NOT NULL THEN
        SELECT s.cap - coalesce(sum(greatest(t.amount - t.reversed
                                             - t.returned, 0)), 0)
            INTO room
            FROM referral.reward t
            WHERE t.referral_id = r.id AND t.unit = s.unit;
    END IF;

    FOR u IN
        SELECT x.*
            FROM referral.reward_rule x
            WHERE x.id = ANY (ARRAY(
                  SELECT DISTINCT ON (t.beneficiary, t.slot) t.id
                      FROM referral.reward_rule t
                      WHERE t.program_id = r.program_id
                            AND t.version IN (s.version, code_set)
                            AND t.trigger = trigger_
                            AND (t.variant_id IS NULL
                                 OR t.variant_id = r.variant_id)
                            AND (t.conversion_kinds IS NULL
                                 OR c.kind = ANY (t.conversion_kinds))
                            AND (t.products IS NULL
                                 OR c.product = ANY (t.products))
                            AND (t.nth IS NULL OR t.nth = reward_give.nth)
                            AND (t.every IS NULL
                                 OR reward_give.nth % t.every = 0)
                            AND (t.min_amount IS NULL
                                 OR c.currency = p.currency
                                    AND c.amount >= t.min_amount)
                      ORDER BY t.beneficiary, t.slot,
                               (t.version = code_set) DESC NULLS LAST,
                               t.products IS NULL, t.conversion_kinds IS NULL,
                               t.variant_id IS NULL, t.nth IS NULL,
                               t.every DESC NULLS LAST,
                               t.min_amount DESC NULLS LAST, t.position))
            ORDER BY x.position, x.beneficiary DESC
    LOOP
        why := NULL;
        value := referral.reward_amount(u, nth, day,
                     CASE u.base WHEN 'before' THEN c.amount + c.discount
                                 ELSE c.amount END, f.commission_bp);

        IF u.beneficiary = 'referrer' AND f.id IS NULL THEN
            why := 'no referrer';

        ELSIF u.beneficiary = 'referrer'
              AND f.status IN ('terminated', 'rejected')
        THEN
            why := 'the referrer is ' || f.status;

        ELSIF u.beneficiary = 'referrer'
              AND nth < coalesce(u.threshold, p.reward_threshold)
        THEN
            why := 'below the threshold';

        ELSIF u.unit IS NOT NULL AND value.rate_bp IS NOT NULL
              AND u.unit <> c.currency
              AND u.kind IN ('cash', 'credit', 'discount')
        THEN
            why := 'another currency';

        ELSIF coalesce(value.amount, 0) <= 0 THEN
            why := 'nothing';

        ELSIF before
              AND u.times <= (SELECT count(DISTINCT coalesce(t.conversion_id,
                                                             0))
                                  FROM referral.reward t
                                  WHERE t.referral_id = r.id
                                        AND t.beneficiary = u.beneficiary
                                        AND t.slot = u.slot
                                        AND t.trigger = u.trigger
                                        AND t.status <> 'reversed')
        THEN
            why := 'given before';
        END IF;

        w := NULL;
        w.unit := coalesce(u.unit, c.currency);
        money := u.kind IN ('cash', 'credit', 'discount')
                 AND u.coupon_bp IS NULL;
        same := w.unit = s.unit;
        w.uncapped := value.amount;
        part := least(value.amount, u.max_amount);

        IF why IS NULL AND same AND room IS NOT NULL THEN
            part := least(part, room);

            IF part <= 0 THEN
                why := 'the cap of the referral is reached';
            END IF;
        END IF;

        IF why IS NOT NULL THEN
            skipped := skipped || jsonb_build_object('rule_id', u.id,
                           'slot', u.slot, 'beneficiary', u.beneficiary,
                           'reason', why);
            CONTINUE;
        END IF;

        IF same THEN
            room := room - part;
        END IF;

        -- what can not be compared with a limit is looked at by somebody

        approval := CASE
            WHEN r.flags <> '{}' THEN true
            WHEN u.approval IS NOT NULL THEN u.approval = 'manual'
            WHEN u.approval_above IS NOT NULL THEN part > u.approval_above
            WHEN same THEN coalesce(part > s.approval_above, false)
            ELSE money AND num_nonnulls(s.cap, s.approval_above) > 0 END;

        w.organisation_id := r.organisation_id;
        w.program_id := r.program_id;
        w.referral_id := r.id;
        w.conversion_id := c.id;
        w.rule_id := u.id;
        w.trigger := u.trigger;
        w.slot := u.slot;
        w.beneficiary := u.beneficiary;
        w.kind := u.kind;
        w.nth := nth;
        w.base_amount := CASE WHEN value.rate_bp IS NULL THEN NULL
                              WHEN u.base = 'before'
                              THEN c.amount + c.discount
                              ELSE c.amount END;
        w.rate_bp := value.rate_bp;
        w.multiplier_bp := value.multiplier_bp;
        w.share_bp := 10000;
        w.item := u.item;
        w.coupon_bp := u.coupon_bp;
        w.needs_approval := approval;
        w.hold_until := (at AT TIME ZONE 'UTC' + u.hold) AT TIME ZONE 'UTC';
        w.valid_for := u.valid_for;
        w.notice := s.expiring_notice;
        w.earned_at := at;
        w.reversed := 0;
        w.returned := 0;
        w.expired := 0;
        parts := ARRAY[part];

        IF u.beneficiary = 'referrer' AND cardinality(sharers) > 1 THEN
            parts := referral.split_money(part, weights);
        END IF;

        FOR i IN 1 .. cardinality(parts) LOOP
            CONTINUE WHEN parts[i] = 0;

            w.id := nextval('referral.reward_id_seq');
            w.amount := parts[i];
            w.status := 'pending';
            w.reason := NULL;
            w.pending_id := NULL;
            w.approved_at := NULL;
            w.valid_from := NULL;

            IF u.beneficiary = 'referee' THEN
                w.person_id := r.person_id;

            ELSIF cardinality(parts) = 1 THEN
                w.referrer_id := f.id;
                why := f.status;

            ELSE
                w.referrer_id := sharers[i];
                w.share_bp := referral.pro_rata(10000, weights[i],
                                  (SELECT sum(t)::bigint
                                       FROM unnest(weights) t));
                SELECT t.status INTO why
                    FROM referral.referrer t
                    WHERE t.id = w.referrer_id;
            END IF;

            IF u.beneficiary = 'referrer' AND why NOT IN ('active', 'inactive')
            THEN
                w.status := 'held';
                w.reason := 'the referrer is ' || why;
                w.release_at := NULL;

            ELSIF approval THEN
                w.release_at := NULL;

            ELSIF w.hold_until > now() THEN
                w.release_at := w.hold_until;

            ELSE
                w := referral.reward_open(w, now());
            END IF;

            planned := planned || w;
        END LOOP;
    END LOOP;

    IF planned = '{}' THEN
        answer := jsonb_build_object('rewards', given, 'skipped', skipped);
        RETURN;
    END IF;

    accounts := '{}';
    moves := '{}';
    postings := '{}';

    FOR i IN 1 .. cardinality(planned) LOOP
        w := planned[i];
        books := ARRAY['expense', referral.reward_account_kind(w.kind)];

        IF w.status <> 'approved' THEN
            books := books || 'pending'::text;
        END IF;

        -- a referee's are made by the session that has the referral

        IF w.referrer_id IS NULL THEN
            ids := referral.accounts_get(r.organisation_id, books, w.unit,
                                         NULL, w.person_id, r.id);

        ELSE
            ids := referral.accounts_find(r.organisation_id, books, w.unit,
                                          w.referrer_id, NULL, NULL);

            IF array_position(ids, NULL) IS NOT NULL THEN
                PERFORM referral.accounts_make(planned);
                ids := referral.accounts_find(r.organisation_id, books, w.unit,
                                              w.referrer_id, NULL, NULL);
            END IF;
        END IF;

        w.account_id := ids[2];
        w.pending_id := ids[3];
        planned[i] := w;
        accounts := accounts || ids;
        move := nextval('referral.transfer_id_seq');
        moves := moves || move || move;
        postings := postings
            || ROW(ids[1], -w.amount, w.id)::referral.posting
            || ROW(coalesce(w.pending_id, w.account_id), w.amount,
                   w.id)::referral.posting;
    END LOOP;

    -- all of it in one go, as this is what every conversion does

    PERFORM referral.account_lock(accounts);
    INSERT INTO referral.reward OVERRIDING SYSTEM VALUE
        SELECT * FROM unnest(planned);
    INSERT INTO referral.transfer (id, organisation_id, kind, idempotency_key,
                                   entries, referral_id, reward_id)
        OVERRIDING SYSTEM VALUE
        SELECT moves[2 * i], r.organisation_id, 'reward',
               'reward:' || (planned[i]).id, 2, r.id, (planned[i]).id
            FROM generate_subscripts(planned, 1) i;
    PERFORM referral.entries_write(moves, postings, 'reward');

    FOREACH w IN ARRAY planned LOOP
        types := types || 'reward.earned'::text;
        events := events || referral.reward_event(w, w.amount);

        IF w.status = 'approved' THEN
            types := types || 'reward.approved'::text;
            events := events || events[cardinality(events)];
        END IF;

        given := given || jsonb_strip_nulls(jsonb_build_object(
                     'reward_id', w.id, 'rule_id', w.rule_id,
                     'slot', w.slot, 'beneficiary', w.beneficiary,
                     'referrer_id', w.referrer_id, 'kind', w.kind,
                     'unit', w.unit, 'amount', w.amount, 'item', w.item,
                     'status', w.status,
                     'capped', nullif(w.amount < w.uncapped
                                      AND w.share_bp = 10000, false)));
    END LOOP;

    debts := referral.accounts_in_debt(accounts);

    IF debts <> '{}' THEN
        PERFORM referral.rewards_lock('{}', debts);
        PERFORM referral.reward_settle(d) FROM unnest(debts) d;
    END IF;

    answer := jsonb_build_object('rewards', given, 'skipped', skipped);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_give(referral.referral, text,
    referral.conversion, int, timestamptz) FROM PUBLIC;


CREATE OR REPLACE FUNCTION referral.reward_on_registration(
    referral_id bigint)
    RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r    referral.referral := referral.referral_row(referral_id);
    c    referral.conversion;
    n    int := 1;
    won  record;
BEGIN
    IF EXISTS (SELECT FROM referral.reward w
                   WHERE w.referral_id = r.id AND w.trigger = 'registration')
    THEN
        RETURN jsonb_build_object('rewards', jsonb_build_array(),
                                  'skipped', jsonb_build_array());
    END IF;

    IF r.referrer_id IS NOT NULL THEN
        INSERT INTO referral.reward_progress AS g (program_id, referrer_id,
                                                   registered)
            VALUES (r.program_id, r.referrer_id, 1)
            ON CONFLICT ON CONSTRAINT reward_progress_pkey
                DO UPDATE SET registered = g.registered + 1
            RETURNING g.registered INTO n;
    END IF;

    won := referral.reward_give(r, 'registration', c, n,
                                coalesce(r.registered_at, now()));

    IF won.types <> '{}' THEN
        PERFORM referral.emit_all(r.organisation_id, 'referral:' || r.id,
                                  won.types, won.events);
    END IF;

    RETURN won.answer;
END
$$;


-- What most conversions are for: a customer whose one referral is credited,
-- and can convert, or has.  That one, locked, as is the customer; or null:
-- referral_convert() has the last word then, and may refuse.

CREATE FUNCTION referral.referral_known(organisation_id bigint, options jsonb,
                                        contact jsonb, at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    program  bigint := (options ->> 'program_id')::bigint;
    referee  bytea[];
    ids      bigint[];
    r        referral.referral;
BEGIN
    IF options ->> 'referral_id' IS NOT NULL THEN
        RETURN NULL;
    END IF;

    referee := referral.customer_hashes(organisation_id, program,
                                        options ->> 'external_id', contact);

    IF referee = '{}' THEN
        RETURN NULL;
    END IF;

    PERFORM referral.referee_lock(organisation_id, referee);

    ids := ARRAY(SELECT i.referral_id
                     FROM referral.referee_identity i
                     WHERE i.hash = ANY (referee) AND i.credited
                           AND i.organisation_id
                               = referral_known.organisation_id
                           AND (program IS NULL OR i.program_id = program));

    IF ids = '{}' OR ids[1] <> ANY (ids) THEN
        RETURN NULL;
    END IF;

    r := referral.referral_row(ids[1]);

    IF r.status IN ('converted', 'rewarded', 'paid')
       OR (r.status IN ('registered', 'expired') AND r.credited
           AND coalesce(r.expires_at > at, true))
    THEN
        RETURN r;
    END IF;

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.referral_known(bigint, jsonb, jsonb,
                                               timestamptz) FROM PUBLIC;


CREATE OR REPLACE FUNCTION referral.conversion_record(organisation_id bigint,
                                                      options jsonb)
    RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET timezone = 'UTC'
AS $$
DECLARE
    who      text[] := '{referral_id,program_id,external_id,email,phone,'
                       'click_id,token,code}';
    c        referral.conversion;
    old      referral.conversion;
    r        referral.referral;
    given    jsonb;
    contact  jsonb;
    refused  jsonb;
    clicks   boolean;
    first    boolean;
    changed  boolean := false;
    was      text;
    rewards  record;
    types    text[] := '{}';
    events   jsonb[] := '{}';
BEGIN
    PERFORM referral.organisation_live(organisation_id);
    options := jsonb_strip_nulls(referral.options_check('conversion_record',
                   options, who || '{order_ref,idempotency_key,amount,'
                   'currency,discount,kind,product,occurred_at}'::text[]));
    c.kind := 'purchase';
    c.amount := 0;
    c.discount := 0;
    c.occurred_at := now();
    c := referral.options_apply('conversion_record', c, options - who);
    c.organisation_id := organisation_id;
    c.request_hash := sha256(convert_to((options - '{email,phone}'::text[])
                                        ::text, 'UTF8'));
    PERFORM referral.conversion_values(c);

    -- the same order at the same time: one is first, the others read it

    IF c.order_ref IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('referral.order/o'
                                          || c.order_ref, organisation_id));
    END IF;

    IF c.idempotency_key IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('referral.order/k'
                                          || c.idempotency_key,
                                          organisation_id));
    END IF;

    SELECT t.id, t.order_ref, t.idempotency_key, t.request_hash, t.answer
        INTO old.id, old.order_ref, old.idempotency_key, old.request_hash,
             old.answer
        FROM referral.conversion t
        WHERE t.organisation_id = conversion_record.organisation_id
              AND (t.order_ref = c.order_ref
                   OR t.idempotency_key = c.idempotency_key)
        ORDER BY t.id
        LIMIT 1;

    IF FOUND THEN
        IF old.request_hash <> c.request_hash THEN
            RAISE EXCEPTION 'conversion % was recorded with other content'
                            ' (order_ref %, idempotency_key %)', old.id,
                            coalesce(old.order_ref, 'none'),
                            coalesce(old.idempotency_key, 'none')
                USING ERRCODE = 'RF068',
                      HINT = 'An order is recorded once. What changed'
                             ' afterwards is a refund, or another order.';
        END IF;

        RETURN old.answer;
    END IF;

    contact := nullif(jsonb_strip_nulls(jsonb_build_object(
                   'email', options -> 'email', 'phone', options -> 'phone')),
                   '{}');
    given := options - '{email,phone,order_ref,idempotency_key,amount,'
                       'currency,discount,kind,product,occurred_at}'::text[];

    -- what is locked in a block with an exception is locked again when it is
    -- updated outside of it: the usual case does without

    r := referral.referral_known(organisation_id, given, contact,
                                 c.occurred_at);

    FOR turn IN 1 .. 2 LOOP
        EXIT WHEN r.id IS NOT NULL;
        clicks := given ?| '{token,click_id}';
        refused := NULL;

        BEGIN
            r := referral.referral_convert(organisation_id, given, contact,
                                           c.occurred_at);

        EXCEPTION
            WHEN SQLSTATE 'RF090' OR SQLSTATE 'RF091' OR SQLSTATE 'RF093'
                 OR SQLSTATE 'RF094' OR SQLSTATE 'RF095' OR SQLSTATE 'RF096'
                 OR SQLSTATE 'RF097' OR SQLSTATE 'RF098' OR SQLSTATE 'RF099'
                 OR SQLSTATE 'RF103' OR SQLSTATE 'RF105'
            THEN
                refused := jsonb_build_object('outcome', 'unattributed',
                               'sqlstate', SQLSTATE, 'reason', SQLERRM);
        END;

        -- an old token in the browser does not spoil what is known besides

        EXIT WHEN refused IS NULL OR NOT clicks
                  OR NOT (given ?| '{referral_id,external_id,code}'
                          OR contact IS NOT NULL);
        given := given - '{token,click_id}'::text[];
    END LOOP;

    IF refused IS NOT NULL THEN
        IF given ? 'referral_id' AND refused ->> 'sqlstate' = 'RF090' THEN
            RAISE EXCEPTION '%', refused ->> 'reason'
                USING ERRCODE = 'RF090',
                      HINT = 'The view referral.referrals lists them.';
        END IF;

        RETURN refused;
    END IF;

    IF r.organisation_id <> organisation_id THEN
        RAISE EXCEPTION 'referral % is of another organisation', r.id
            USING ERRCODE = 'RF090',
                  HINT = 'The view referral.referrals lists them.';
    END IF;

    was := r.status;

    IF r.status NOT IN ('converted', 'rewarded', 'paid') THEN
        r.status := 'converted';
        r.converted_at := c.occurred_at;
        r.updated_at := now();
        types := '{referral.converted}';
        events := ARRAY[referral.referral_event(r)];
    END IF;

    c.id := nextval('referral.conversion_id_seq');
    c.referral_id := r.id;
    c.program_id := r.program_id;
    c.referrer_id := r.referrer_id;
    c.code_id := r.code_id;

    IF c.currency IS NULL THEN
        SELECT p.currency INTO c.currency
            FROM referral.program p WHERE p.id = r.program_id;
    END IF;

    -- a second order of the same referee does not move the tiers

    SELECT t.nth INTO c.nth
        FROM referral.conversion t
        WHERE t.referral_id = r.id
        LIMIT 1;

    first := c.nth IS NULL;

    IF first AND r.referrer_id IS NOT NULL THEN
        INSERT INTO referral.reward_progress AS g (program_id, referrer_id,
                                                   converted)
            VALUES (r.program_id, r.referrer_id, 1)
            ON CONFLICT ON CONSTRAINT reward_progress_pkey
                DO UPDATE SET converted = g.converted + 1
            RETURNING g.converted INTO c.nth;
    END IF;

    c.nth := coalesce(c.nth, 1);

    rewards := referral.reward_give(r, 'conversion', c, c.nth, c.occurred_at);
    types := types || rewards.types;

    IF types <> '{}' THEN
        PERFORM referral.emit_all(r.organisation_id, 'referral:' || r.id,
                                  types, events || rewards.events);
    END IF;

    c.answer := jsonb_strip_nulls(jsonb_build_object('outcome', 'credited',
                    'conversion_id', c.id, 'referral_id', r.id,
                    'program_id', r.program_id, 'referrer_id', r.referrer_id,
                    'nth', c.nth))
                || rewards.answer;

    -- one update for all that became of the referral

    IF r.status = 'converted'
       AND c.answer -> 'rewards' @> '[{"status": "approved"}]'
    THEN
        r.status := 'rewarded';
        r.rewarded_at := now();
        r.updated_at := now();
    END IF;

    -- what was expected gives way to what was bought

    IF first OR r.currency = c.currency THEN
        r.value := CASE WHEN first THEN 0 ELSE r.value END + c.amount;
        r.currency := c.currency;
        changed := true;
    END IF;

    IF changed OR r.status <> was THEN
        UPDATE referral.referral t
            SET status = r.status, converted_at = r.converted_at,
                rewarded_at = r.rewarded_at, value = r.value,
                currency = r.currency, updated_at = r.updated_at
            WHERE t.id = r.id;
    END IF;

    IF r.status <> was THEN
        INSERT INTO referral.referral_step (referral_id, at, from_status,
                                            to_status)
            SELECT r.id, s.at, s.from_status, s.to_status
                FROM (VALUES (c.occurred_at, was, 'converted'),
                             (now(), 'converted', r.status))
                     s (at, from_status, to_status)
                WHERE s.from_status <> s.to_status;
    END IF;

    INSERT INTO referral.conversion (id, organisation_id, program_id,
            referral_id, referrer_id, code_id, order_ref, idempotency_key,
            request_hash, kind, product, amount, currency, discount,
            occurred_at, nth, answer)
        OVERRIDING SYSTEM VALUE
        VALUES (c.id, c.organisation_id, c.program_id, c.referral_id,
            c.referrer_id, c.code_id, c.order_ref, c.idempotency_key,
            c.request_hash, c.kind, c.product, c.amount, c.currency,
            c.discount, c.occurred_at, c.nth, c.answer);

    RETURN c.answer;
END
$$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (34, 'conversion_cost');

COMMIT;
