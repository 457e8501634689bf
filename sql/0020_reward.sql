-- Copyright (C) The nginx referral module authors
--
-- Rewards: conversions that earn them, how much, and their accounts.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- What has been converted: an order, a first consultation, an upgrade.

CREATE TABLE referral.conversion (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL,
    program_id       bigint       NOT NULL,
    referral_id      bigint       NOT NULL REFERENCES referral.referral,
    referrer_id      bigint,
    code_id          bigint,
    order_ref        text         CHECK (length(order_ref) BETWEEN 1 AND 200),
    idempotency_key  text         CHECK (length(idempotency_key)
                                         BETWEEN 1 AND 200),
    request_hash     bytea        NOT NULL,
    kind             text         NOT NULL DEFAULT 'purchase'
                                  CHECK (kind ~ '^[a-z0-9][a-z0-9_-]{0,39}$'),
    product          text         CHECK (length(product) BETWEEN 1 AND 200),
    amount           bigint       NOT NULL DEFAULT 0
                                  CHECK (amount BETWEEN 0
                                         AND 1000000000000000),
    currency         text         NOT NULL,
    discount         bigint       NOT NULL DEFAULT 0
                                  CHECK (discount BETWEEN 0
                                         AND 1000000000000000),
    occurred_at      timestamptz  NOT NULL DEFAULT now(),
    recorded_at      timestamptz  NOT NULL DEFAULT now(),
    nth              int          NOT NULL,
    refunded         bigint       NOT NULL DEFAULT 0,
    cancelled        boolean      NOT NULL DEFAULT false,
    answer           jsonb        NOT NULL,
    CHECK (num_nonnulls(order_ref, idempotency_key) > 0),
    CONSTRAINT conversion_refunded_check CHECK (refunded BETWEEN 0 AND amount)
) WITH (fillfactor = 90);

CREATE UNIQUE INDEX conversion_order
    ON referral.conversion (organisation_id, order_ref)
    WHERE order_ref IS NOT NULL;
CREATE UNIQUE INDEX conversion_idempotency
    ON referral.conversion (organisation_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX conversion_referral ON referral.conversion (referral_id);
CREATE INDEX conversion_program
    ON referral.conversion (program_id, occurred_at);
CREATE INDEX conversion_referrer
    ON referral.conversion (referrer_id, occurred_at)
    WHERE referrer_id IS NOT NULL;

COMMENT ON COLUMN referral.conversion.amount IS
    'what the customer pays, in minor units: the promotion discount is off';
COMMENT ON COLUMN referral.conversion.discount IS
    'the promotion discount: the price before it is amount + discount';
COMMENT ON COLUMN referral.conversion.nth IS
    'its referral is the n-th of the referrer''s that converted in the'
    ' program; 1 where there is no referrer';
COMMENT ON COLUMN referral.conversion.refunded IS 'the sum of its refunds';
COMMENT ON COLUMN referral.conversion.cancelled IS
    'refunded as a whole, which an amount of 0 can not show';
COMMENT ON COLUMN referral.conversion.answer IS
    'what conversion_record() returned, and returns again';

COMMENT ON CONSTRAINT conversion_amount_check ON referral.conversion IS
    'a whole number of minor units from 0 to 10^15';
COMMENT ON CONSTRAINT conversion_discount_check ON referral.conversion IS
    'a whole number of minor units from 0 to 10^15';
COMMENT ON CONSTRAINT conversion_kind_check ON referral.conversion IS
    '1 to 40 of a-z, 0-9, _ and -';
COMMENT ON CONSTRAINT conversion_order_ref_check ON referral.conversion IS
    '1 to 200 characters';
COMMENT ON CONSTRAINT conversion_idempotency_key_check
    ON referral.conversion IS '1 to 200 characters';
COMMENT ON CONSTRAINT conversion_product_check ON referral.conversion IS
    '1 to 200 characters';


CREATE TABLE referral.refund (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL,
    conversion_id    bigint       NOT NULL REFERENCES referral.conversion,
    refund_ref       text         NOT NULL
                                  CHECK (length(refund_ref)
                                         BETWEEN 1 AND 200),
    request_hash     bytea        NOT NULL,
    amount           bigint       NOT NULL CHECK (amount >= 0),
    reason           text         CHECK (length(reason) <= 500),
    occurred_at      timestamptz  NOT NULL DEFAULT now(),
    recorded_at      timestamptz  NOT NULL DEFAULT now(),
    answer           jsonb        NOT NULL,
    UNIQUE (organisation_id, refund_ref)
);

CREATE INDEX refund_conversion ON referral.refund (conversion_id);


-- How many of a referrer's referrals have come so far in a program: its row
-- is what conversions of one referrer wait for.  Never lowered: a refund does
-- not move the others' tiers.

CREATE TABLE referral.reward_progress (
    program_id   bigint  NOT NULL,
    referrer_id  bigint  NOT NULL,
    registered   int     NOT NULL DEFAULT 0,
    converted    int     NOT NULL DEFAULT 0,
    PRIMARY KEY (program_id, referrer_id)
) WITH (fillfactor = 70);


CREATE TABLE referral.reward (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL,
    program_id       bigint       NOT NULL,
    referral_id      bigint       NOT NULL REFERENCES referral.referral,
    conversion_id    bigint       REFERENCES referral.conversion
                                  DEFERRABLE INITIALLY DEFERRED,
    rule_id          bigint       NOT NULL,
    trigger          text         NOT NULL,
    slot             text         NOT NULL,
    beneficiary      text         NOT NULL,
    referrer_id      bigint,
    person_id        bigint,
    pending_id       bigint,
    account_id       bigint       NOT NULL,
    kind             text         NOT NULL,
    unit             text         NOT NULL,
    amount           bigint       NOT NULL CHECK (amount > 0),
    uncapped         bigint       NOT NULL CHECK (uncapped >= amount),
    nth              int          NOT NULL,
    base_amount      bigint,
    rate_bp          int,
    multiplier_bp    int          NOT NULL,
    share_bp         int          NOT NULL DEFAULT 10000,
    item             text,
    coupon_bp        int,
    status           text         NOT NULL CHECK (status IN ('pending',
                                      'held', 'approved', 'rejected',
                                      'cancelled', 'paid', 'redeemed',
                                      'transferred', 'expired', 'reversed')),
    reason           text         CHECK (length(reason) <= 500),
    needs_approval   boolean      NOT NULL,
    hold_until       timestamptz,
    release_at       timestamptz,
    valid_for        interval,
    notice           interval     NOT NULL,
    earned_at        timestamptz  NOT NULL,
    reviewed_at      timestamptz,
    reviewed_by      text,
    approved_at      timestamptz,
    valid_from       timestamptz,
    valid_until      timestamptz,
    expiring_at      timestamptz,
    expiring_sent_at timestamptz,
    closed_at        timestamptz,
    reversed         bigint       NOT NULL DEFAULT 0 CHECK (reversed >= 0),
    returned         bigint       NOT NULL DEFAULT 0 CHECK (returned >= 0),
    expired          bigint       NOT NULL DEFAULT 0 CHECK (expired >= 0),
    CONSTRAINT reward_taken_back_check
        CHECK (greatest(reversed, returned, expired) <= amount),
    CONSTRAINT reward_release_check
        CHECK (release_at IS NULL OR status = 'pending'),
    CONSTRAINT reward_valid_check
        CHECK ((approved_at IS NULL) = (valid_from IS NULL))
) WITH (fillfactor = 85);

CREATE INDEX reward_referral ON referral.reward (referral_id);
CREATE INDEX reward_conversion ON referral.reward (conversion_id)
    WHERE conversion_id IS NOT NULL;
CREATE INDEX reward_referrer ON referral.reward (referrer_id, earned_at)
    WHERE referrer_id IS NOT NULL;
CREATE INDEX reward_program ON referral.reward (program_id, earned_at);
CREATE INDEX reward_reversed ON referral.reward (account_id)
    WHERE reversed > 0;
CREATE INDEX reward_release ON referral.reward (release_at)
    WHERE release_at IS NOT NULL;
CREATE INDEX reward_review ON referral.reward (organisation_id, id)
    WHERE status IN ('pending', 'held') AND release_at IS NULL;
CREATE INDEX reward_expiring ON referral.reward (expiring_at)
    WHERE status = 'approved' AND expiring_sent_at IS NULL;
CREATE INDEX reward_expiry ON referral.reward (valid_until)
    WHERE status = 'approved' AND closed_at IS NULL;

COMMENT ON COLUMN referral.reward.status IS
    'pending: until hold_until and, with needs_approval, until reviewed; held:'
    ' stopped; approved: can be paid, redeemed, transferred, can expire; the'
    ' others say how it ended';
COMMENT ON COLUMN referral.reward.pending_id IS
    'the account it is in until it is released, account_id the one after;'
    ' null: released at once';
COMMENT ON COLUMN referral.reward.uncapped IS
    'what the rule gave, before max_amount and the cap of the referral';
COMMENT ON COLUMN referral.reward.share_bp IS
    'of several referrers by attribution';
COMMENT ON COLUMN referral.reward.release_at IS
    'when it is released by itself; null: it was, or waits for somebody';
COMMENT ON COLUMN referral.reward.closed_at IS
    'when nothing of it was left, or nothing that can expire';
COMMENT ON COLUMN referral.reward.reversed IS
    'taken back after refunds; what others paid of it can come back to it when'
    ' a payout is given up, and so be returned or expire as well';
COMMENT ON COLUMN referral.reward.returned IS 'rejected or cancelled';
COMMENT ON COLUMN referral.reward.expired IS 'not used in time';


-- What a rule gives at the n-th referral on a day: one rounding.  rate_bp is
-- null where the amount is fixed, amount null where no tier is reached.

CREATE FUNCTION referral.reward_amount(u referral.reward_rule, nth int,
                                       day date, base bigint,
                                       commission_bp int,
                                       OUT amount bigint, OUT rate_bp int,
                                       OUT multiplier_bp int)
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tier    jsonb;
    season  jsonb;
    fixed   bigint := u.amount;
BEGIN
    rate_bp := u.rate_bp;
    multiplier_bp := 10000;

    IF u.tiers IS NOT NULL THEN
        FOR tier IN SELECT * FROM jsonb_array_elements(u.tiers) LOOP
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

REVOKE ALL ON FUNCTION referral.reward_amount(referral.reward_rule, int, date,
                                              bigint, int) FROM PUBLIC;


-- amount * part / whole, rounded once: exactly, as a division would not.

CREATE FUNCTION referral.pro_rata(amount bigint, part bigint, whole bigint)
    RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    product  numeric := amount::numeric * part;
BEGIN
    -- the fraction is told apart from a half by whole numbers
    RETURN div(product, whole)
           + CASE sign(2 * mod(product, whole) - whole)
                 WHEN 1 THEN 1
                 WHEN 0 THEN mod(div(product, whole), 2)
                 ELSE 0 END;
END
$$;

REVOKE ALL ON FUNCTION referral.pro_rata(bigint, bigint, bigint) FROM PUBLIC;


-- The account a reward is in once it is released.

CREATE FUNCTION referral.reward_account_kind(kind text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE kind WHEN 'cash' THEN 'payable'
                     WHEN 'discount' THEN 'discount'
                     ELSE 'credit' END;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_account_kind(text) FROM PUBLIC;


CREATE FUNCTION referral.reward_emit(w referral.reward, type text,
                                     amount bigint DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.emit(w.organisation_id, 'reward.' || type,
                'referral:' || w.referral_id,
                jsonb_strip_nulls(jsonb_build_object(
                    'reward_id', w.id, 'referral_id', w.referral_id,
                    'program_id', w.program_id,
                    'conversion_id', w.conversion_id,
                    'beneficiary', w.beneficiary,
                    'referrer_id', w.referrer_id, 'person_id', w.person_id,
                    'kind', w.kind, 'unit', w.unit,
                    'amount', coalesce(reward_emit.amount, w.amount),
                    'item', w.item, 'coupon_bp', w.coupon_bp,
                    'status', w.status, 'needs_approval', w.needs_approval,
                    'valid_until', w.valid_until, 'reason', w.reason)));
END
$$;

REVOKE ALL ON FUNCTION referral.reward_emit(referral.reward, text, bigint)
    FROM PUBLIC;


-- The columns that say a reward is released, at a time.

CREATE FUNCTION referral.reward_open(w referral.reward, at timestamptz)
    RETURNS referral.reward
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
BEGIN
    w.status := 'approved';
    w.release_at := NULL;
    w.approved_at := at;
    w.valid_from := at;
    w.valid_until := at + w.valid_for;
    w.expiring_at := greatest(w.valid_until - w.notice, at);

    IF w.valid_until IS NULL THEN
        w.expiring_at := NULL;
    END IF;

    RETURN w;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_open(referral.reward, timestamptz)
    FROM PUBLIC;


-- Who shares the referrer's rewards of a referral, by the weights of its
-- attribution, the heaviest first: where the program's model shares.

CREATE FUNCTION referral.reward_shares(r referral.referral,
                                       OUT referrers bigint[],
                                       OUT weights bigint[])
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(s.referrer_id ORDER BY s.weight DESC, s.referrer_id),
           array_agg(s.weight ORDER BY s.weight DESC, s.referrer_id)
        FROM (SELECT (c ->> 'referrer_id')::bigint AS referrer_id,
                     sum((c ->> 'weight_bp')::bigint)::bigint AS weight
                  FROM (SELECT a.candidates, a.model
                            FROM referral.attribution a
                            WHERE a.referral_id = r.id
                            ORDER BY a.id DESC
                            LIMIT 1) a,
                       LATERAL jsonb_array_elements(a.candidates) c
                  WHERE a.model IN ('linear', 'position')
                        AND c ->> 'referrer_id' IS NOT NULL
                  GROUP BY 1) s
        WHERE s.weight > 0
$$;

REVOKE ALL ON FUNCTION referral.reward_shares(referral.referral) FROM PUBLIC;


-- Gives what the rules of a referral give at this event.  The referral is
-- locked; c is the conversion, whose row may be yet to come, or null.  Returns
-- the rewards, and the rules that gave none, with the reason.

CREATE FUNCTION referral.reward_give(r referral.referral,
                                     trigger_ text, c referral.conversion,
                                     nth int, at timestamptz)
    RETURNS jsonb
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
    accounts  bigint[] := '{}';
    moves     bigint[] := '{}';
    postings  referral.posting[] := '{}';
    parts     bigint[];
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
        RETURN jsonb_build_object('rewards', given, 'skipped', skipped);
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

    SELECT * INTO p FROM referral.program t WHERE t.id = r.program_id;
    SELECT * INTO f FROM referral.referrer t WHERE t.id = r.referrer_id;
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
        SELECT *
            FROM (SELECT DISTINCT ON (t.beneficiary, t.slot) t.*
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
                               t.min_amount DESC NULLS LAST, t.position)
                 chosen
            ORDER BY position, beneficiary DESC
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

        ELSIF u.times <= (SELECT count(DISTINCT coalesce(t.conversion_id, 0))
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

            IF w.status <> 'approved' THEN
                w.pending_id := referral.account_get(r.organisation_id,
                    'pending', w.unit, w.referrer_id, w.person_id, r.id);
            END IF;

            w.account_id := referral.account_get(r.organisation_id,
                referral.reward_account_kind(u.kind), w.unit, w.referrer_id,
                w.person_id, r.id);
            moves := moves || nextval('referral.transfer_id_seq');
            postings := postings
                || ROW(referral.account_get(r.organisation_id, 'expense',
                           w.unit, w.referrer_id, w.person_id, r.id),
                       -w.amount, w.id)::referral.posting
                || ROW(coalesce(w.pending_id, w.account_id), w.amount,
                       w.id)::referral.posting;
            accounts := accounts || w.account_id;
            planned := planned || w;
        END LOOP;
    END LOOP;

    IF planned = '{}' THEN
        RETURN jsonb_build_object('rewards', given, 'skipped', skipped);
    END IF;

    -- all of it in one go, as this is what every conversion does

    PERFORM referral.account_lock(accounts
        || (SELECT array_agg(t.account_id) FROM unnest(postings) t));
    INSERT INTO referral.reward OVERRIDING SYSTEM VALUE
        SELECT * FROM unnest(planned);
    INSERT INTO referral.transfer (id, organisation_id, kind, idempotency_key,
                                   entries, referral_id, reward_id)
        OVERRIDING SYSTEM VALUE
        SELECT moves[i], r.organisation_id, 'reward',
               'reward:' || (planned[i]).id, 2, r.id, (planned[i]).id
            FROM generate_subscripts(planned, 1) i;
    PERFORM referral.entries_write((SELECT array_agg(m ORDER BY i, side)
                                        FROM unnest(moves) WITH ORDINALITY
                                                 t (m, i),
                                             generate_series(1, 2) side),
                                   postings, 'reward');

    FOREACH w IN ARRAY planned LOOP
        PERFORM referral.reward_emit(w, 'earned');

        IF w.status = 'approved' THEN
            PERFORM referral.reward_emit(w, 'approved');
            PERFORM referral.reward_settle(w.account_id);
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

    PERFORM referral.reward_step(r.id);

    RETURN jsonb_build_object('rewards', given, 'skipped', skipped);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_give(referral.referral, text,
    referral.conversion, int, timestamptz) FROM PUBLIC;


-- A released reward is on its way as long as something of it is left.  What
-- became of it is read off its entries, so whoever posts some (payouts,
-- redemptions, transfers, expiry) calls reward_refresh() afterwards.

CREATE VIEW referral.reward_state AS
    SELECT s.id, s.remaining,
           CASE WHEN remaining > 0 OR reserved > 0 THEN 'approved'
                WHEN reversed > 0 AND reversed + returned + expired >= amount
                THEN 'reversed'
                WHEN paid > 0 THEN 'paid'
                WHEN redeemed > 0 THEN 'redeemed'
                WHEN elsewhere > 0 THEN 'transferred'
                WHEN returned > 0 THEN 'cancelled'
                WHEN expired > 0 THEN 'expired'
                WHEN kind = 'cash' THEN 'paid'
                ELSE 'redeemed' END AS status
        FROM (SELECT t.id, t.kind, t.amount, t.reversed, t.returned, t.expired,
                     coalesce(sum(e.amount) FILTER (
                         WHERE a.id = t.account_id), 0) AS remaining,
                     coalesce(sum(e.amount) FILTER (
                         WHERE a.kind = 'reserved'), 0) AS reserved,
                     coalesce(sum(e.amount) FILTER (
                         WHERE a.kind = 'paid'), 0) AS paid,
                     coalesce(sum(e.amount) FILTER (
                         WHERE a.kind = 'redeemed'), 0) AS redeemed,
                     coalesce(sum(e.amount) FILTER (
                         WHERE a.kind = ra.kind AND a.id <> ra.id), 0)
                         AS elsewhere
                  FROM referral.reward t
                       JOIN referral.account ra ON ra.id = t.account_id
                       JOIN referral.entry e ON e.reward_id = t.id
                       JOIN referral.account a ON a.id = e.account_id
                  WHERE t.approved_at IS NOT NULL
                  GROUP BY t.id, ra.id) s;

CREATE FUNCTION referral.reward_refresh(ids bigint[],
                                        at timestamptz DEFAULT now())
    RETURNS void
    LANGUAGE sql
    SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE referral.reward w
        SET status = n.status,
            closed_at = CASE WHEN n.remaining > 0 THEN NULL
                             ELSE coalesce(w.closed_at, at) END
        FROM referral.reward_state n
        WHERE n.id = ANY (ids) AND w.id = n.id
              AND (w.status, w.closed_at IS NULL)
                  IS DISTINCT FROM (n.status, n.remaining > 0)
$$;

REVOKE ALL ON FUNCTION referral.reward_refresh(bigint[], timestamptz)
    FROM PUBLIC;


-- What is left of rewards in an account: those above zero can be used, those
-- below are debts after clawbacks.  Those that end first come first.

CREATE FUNCTION referral.reward_remains(account_id bigint)
    RETURNS TABLE (reward_id bigint, remaining bigint)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.reward_id, s.remaining
        FROM (SELECT e.reward_id, sum(e.amount)::bigint AS remaining
                  FROM referral.entry e
                  WHERE e.account_id = reward_remains.account_id
                  GROUP BY e.reward_id
                  HAVING sum(e.amount) <> 0) s
             LEFT JOIN referral.reward w ON w.id = s.reward_id
        ORDER BY w.valid_until NULLS LAST, s.reward_id
$$;

REVOKE ALL ON FUNCTION referral.reward_remains(bigint) FROM PUBLIC;


-- The postings that take an amount out of an account, whose lock is held:
-- from the rewards that end first, or from one.  RF066 when there is less.

CREATE FUNCTION referral.reward_take(account_id bigint, amount bigint,
                                     only_reward bigint DEFAULT NULL)
    RETURNS referral.posting[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l       record;
    taken   referral.posting[] := '{}';
    wanted  bigint := amount;
    part    bigint;
BEGIN
    FOR l IN
        SELECT * FROM referral.reward_remains(account_id) t
            WHERE t.remaining > 0
                  AND (only_reward IS NULL OR t.reward_id = only_reward)
    LOOP
        EXIT WHEN wanted <= 0;
        part := least(l.remaining, wanted);
        taken := taken || ROW(account_id, -part,
                              l.reward_id)::referral.posting;
        wanted := wanted - part;
    END LOOP;

    IF wanted > 0 OR amount <= 0 THEN
        RAISE EXCEPTION '% has %, not %',
                (SELECT CASE WHEN only_reward IS NULL
                             THEN format('account %s (%s)', a.id, a.kind)
                             ELSE format('reward %s', only_reward) END
                     FROM referral.account a WHERE a.id = account_id),
                amount - wanted, amount
            USING ERRCODE = 'RF066',
                  HINT = 'Amounts are in minor units, as cents.';
    END IF;

    RETURN taken;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_take(bigint, bigint, bigint)
    FROM PUBLIC;


-- Debts in an account are paid with what else is in it: so nothing that is
-- owed expires, or is paid out, beside a debt.  The account is locked.

CREATE FUNCTION referral.reward_settle(account_id bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    debt      record;
    l         record;
    part      bigint;
    owed      bigint;
    postings  referral.posting[];
    left_     jsonb;
    rewards   bigint[] := '{}';
    a         referral.account;
    number    bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM referral.reward w
                       WHERE w.account_id = reward_settle.account_id
                             AND w.reversed > 0
                             AND (SELECT sum(e.amount)
                                      FROM referral.entry e
                                      WHERE e.reward_id = w.id
                                            AND e.account_id = w.account_id)
                                 < 0)
    THEN
        RETURN;
    END IF;

    SELECT jsonb_object_agg(t.reward_id, t.remaining) INTO left_
        FROM referral.reward_remains(account_id) t
        WHERE t.reward_id IS NOT NULL;

    IF NOT EXISTS (SELECT FROM jsonb_each(left_) t WHERE t.value::bigint > 0)
    THEN
        RETURN;
    END IF;

    SELECT * INTO a FROM referral.account t WHERE t.id = account_id;
    SELECT max(e.seq) INTO number
        FROM referral.entry e
        WHERE e.account_id = reward_settle.account_id;
    postings := '{}';

    FOR debt IN
        SELECT t.key::bigint AS id, -t.value::bigint AS owed
            FROM jsonb_each(left_) t
            WHERE t.value::bigint < 0
            ORDER BY 1
    LOOP
        owed := debt.owed;

        FOR l IN
            SELECT t.reward_id AS id, (left_ ->> t.reward_id::text)::bigint
                   AS remaining
                FROM referral.reward_remains(account_id) t
                WHERE t.remaining > 0 AND t.reward_id IS NOT NULL
        LOOP
            EXIT WHEN owed = 0;
            part := least(owed, l.remaining);
            CONTINUE WHEN part <= 0;
            postings := postings
                || ROW(account_id, part, debt.id)::referral.posting
                || ROW(account_id, -part, l.id)::referral.posting;
            left_ := left_ || jsonb_build_object(l.id, l.remaining - part);
            owed := owed - part;
            rewards := rewards || l.id;
        END LOOP;

        rewards := rewards || debt.id;
    END LOOP;

    PERFORM referral.transfer_post(a.organisation_id, 'settlement',
        format('settlement:%s:%s', account_id, number), postings);
    PERFORM referral.reward_refresh(rewards);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_settle(bigint) FROM PUBLIC;


-- A referral with a reward that was released is rewarded.

CREATE FUNCTION referral.reward_step(referral_id bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM referral.referral r
                   WHERE r.id = referral_id AND r.status = 'converted')
       AND EXISTS (SELECT FROM referral.reward w
                       WHERE w.referral_id = reward_step.referral_id
                             AND w.trigger = 'conversion'
                             AND w.approved_at IS NOT NULL)
    THEN
        PERFORM referral.referral_move(referral_id, 'rewarded', 'money');
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_step(bigint) FROM PUBLIC;


-- Rewards for a registration: called when a referral gets its referee.  Once
-- for a referral, however often.

CREATE FUNCTION referral.reward_on_registration(referral_id bigint)
    RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r    referral.referral := referral.referral_row(referral_id);
    c    referral.conversion;
    n    int := 1;
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

    RETURN referral.reward_give(r, 'registration', c, n,
                                coalesce(r.registered_at, now()));
END
$$;

REVOKE ALL ON FUNCTION referral.reward_on_registration(bigint) FROM PUBLIC;

INSERT INTO referral.schema_migration (version, name) VALUES (20, 'reward');

COMMIT;
