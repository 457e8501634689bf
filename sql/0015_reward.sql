-- Copyright (C) The nginx referral module authors
--
-- Reward rules, conversions, refunds and rewards.
--
-- A conversion is recorded in one transaction: its referral is found or
-- decided, the rules that were in force when the referral was made say what
-- is earned, and the ledger says who owes it to whom.  Locks are taken in this
-- order: the order's, the referee's, referrals by id, codes, the referrer's
-- progress in the program, accounts by id, rewards.  A reward's row is changed
-- only by who has the lock of the account that it is in.
--
-- No foreign key goes to a row that all conversions of a program have in
-- common (organisation, rule): each check would lock it.  Rules are never
-- changed or deleted.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;


-- Tiers, an array of {"from": n, "amount": a} or {"from": n, "rate_bp": b}:
-- from the n-th on.  Null when acceptable, or what is wrong.

CREATE FUNCTION referral.tiers_problem(tiers jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tier  jsonb;
    from_ numeric;
    last  numeric := 0;
BEGIN
    IF jsonb_typeof(tiers) <> 'array' OR jsonb_array_length(tiers) = 0 THEN
        RETURN 'tiers are an array';
    END IF;

    FOR tier IN SELECT * FROM jsonb_array_elements(tiers) LOOP
        IF jsonb_typeof(tier) <> 'object'
           OR tier - '{from,amount,rate_bp}'::text[] <> '{}'
           OR jsonb_typeof(tier -> 'from') IS DISTINCT FROM 'number'
           OR num_nonnulls(tier -> 'amount', tier -> 'rate_bp') <> 1
           OR jsonb_typeof(coalesce(tier -> 'amount', tier -> 'rate_bp'))
              <> 'number'
        THEN
            RETURN 'a tier has "from" and either "amount" or "rate_bp"';
        END IF;

        from_ := (tier -> 'from')::numeric;

        IF from_ <= last OR from_ > 1000000000 OR from_ % 1 <> 0 THEN
            RETURN '"from" of tiers: whole numbers from 1 on, ascending';
        END IF;

        last := from_;

        IF (tier -> 'amount')::numeric % 1 <> 0
           OR (tier -> 'amount')::numeric NOT BETWEEN 1 AND 1e15
           OR (tier -> 'rate_bp')::numeric % 1 <> 0
           OR (tier -> 'rate_bp')::numeric NOT BETWEEN 1 AND 1000000
        THEN
            RETURN 'amounts are whole numbers from 1 on, rates 1 to 1000000';
        END IF;
    END LOOP;

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.tiers_problem(jsonb) FROM PUBLIC;


-- Seasons, an array of {"from": day, "until": day, "multiplier_bp": m}: both
-- days are the program's own, and belong to it.

CREATE FUNCTION referral.seasons_problem(seasons jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    season  jsonb;
BEGIN
    IF jsonb_typeof(seasons) <> 'array' OR jsonb_array_length(seasons) = 0 THEN
        RETURN 'seasons are an array';
    END IF;

    FOR season IN SELECT * FROM jsonb_array_elements(seasons) LOOP
        IF jsonb_typeof(season) <> 'object'
           OR season - '{from,until,multiplier_bp}'::text[] <> '{}'
           OR NOT season ?& '{from,until,multiplier_bp}'
           OR jsonb_typeof(season -> 'multiplier_bp') <> 'number'
        THEN
            RETURN 'a season has "from", "until" and "multiplier_bp"';
        END IF;

        IF (season -> 'multiplier_bp')::numeric NOT BETWEEN 1 AND 1000000
           OR (season -> 'multiplier_bp')::numeric % 1 <> 0
        THEN
            RETURN 'multiplier_bp is 1 to 1000000, 20000 is twice as much';
        END IF;

        IF season ->> 'from' !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}$'
           OR season ->> 'until' !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}$'
        THEN
            RETURN 'days are written 2026-12-31';
        END IF;

        BEGIN
            IF make_date(left(season ->> 'from', 4)::int,
                         substr(season ->> 'from', 6, 2)::int,
                         right(season ->> 'from', 2)::int)
               > make_date(left(season ->> 'until', 4)::int,
                           substr(season ->> 'until', 6, 2)::int,
                           right(season ->> 'until', 2)::int)
            THEN
                RETURN 'a season ends before it begins';
            END IF;

        EXCEPTION WHEN datetime_field_overflow THEN
            RETURN 'there is no such day';
        END;
    END LOOP;

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.seasons_problem(jsonb) FROM PUBLIC;


-- A version of a program's rules, or of one code's.  A referral keeps the
-- program's version that was the newest when it was made: what is in force
-- for it is the program's set with the highest version up to it, and, where
-- its code has sets, likewise the code's.

CREATE TABLE referral.reward_rule_set (
    program_id       bigint       NOT NULL REFERENCES referral.program,
    version          int          NOT NULL CHECK (version > 0),
    code_id          bigint       REFERENCES referral.code,
    cap              bigint       CHECK (cap >= 0),
    approval_above   bigint       CHECK (approval_above >= 0),
    unit             text         NOT NULL REFERENCES referral.unit,
    expiring_notice  interval     NOT NULL DEFAULT '7 days'
                                  CHECK (expiring_notice BETWEEN '0'
                                         AND '1 year'),
    note             text         CHECK (length(note) <= 1000),
    created_by       text         NOT NULL DEFAULT referral.actor(),
    created_at       timestamptz  NOT NULL DEFAULT now(),
    PRIMARY KEY (program_id, version)
);

CREATE INDEX reward_rule_set_code
    ON referral.reward_rule_set (code_id, version)
    WHERE code_id IS NOT NULL;

COMMENT ON COLUMN referral.reward_rule_set.code_id IS
    'rules of this code, before those of the program; null: the program''s';
COMMENT ON COLUMN referral.reward_rule_set.cap IS
    'of all rewards of one referral in unit, net of what was taken back';
COMMENT ON COLUMN referral.reward_rule_set.approval_above IS
    'a reward above it is approved by hand; so is one in another currency';

COMMENT ON CONSTRAINT reward_rule_set_cap_check
    ON referral.reward_rule_set IS '0 or more, in minor units of unit';
COMMENT ON CONSTRAINT reward_rule_set_approval_above_check
    ON referral.reward_rule_set IS '0 or more, in minor units of unit';
COMMENT ON CONSTRAINT reward_rule_set_expiring_notice_check
    ON referral.reward_rule_set IS '0 to 1 year';
COMMENT ON CONSTRAINT reward_rule_set_unit_fkey
    ON referral.reward_rule_set IS 'a unit of referral.unit, such as USD';

CREATE TABLE referral.reward_rule (
    id                bigint    GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    program_id        bigint    NOT NULL,
    version           int       NOT NULL,
    position          int       NOT NULL,
    slot              text      NOT NULL
                                CHECK (slot ~ '^[a-z0-9][a-z0-9_-]{0,39}$'),
    beneficiary       text      NOT NULL DEFAULT 'referrer'
                                CHECK (beneficiary IN ('referrer',
                                                       'referee')),
    trigger           text      NOT NULL DEFAULT 'conversion'
                                CHECK (trigger IN ('registration',
                                                   'conversion')),
    conversion_kinds  text[]    CHECK (cardinality(conversion_kinds) > 0),
    products          text[]    CHECK (cardinality(products) > 0),
    variant_id        bigint    REFERENCES referral.program_variant,
    nth               int       CHECK (nth > 0),
    every             int       CHECK (every > 0),
    min_amount        bigint    CHECK (min_amount > 0),
    kind              text      NOT NULL
                                CHECK (kind IN ('cash', 'credit', 'discount',
                                    'points', 'free_item', 'merchandise',
                                    'messages', 'requests', 'feature_days')),
    unit              text      REFERENCES referral.unit,
    amount            bigint    CHECK (amount BETWEEN 1 AND 1000000000000000),
    rate_bp           int       CHECK (rate_bp BETWEEN 1 AND 1000000),
    tiers             jsonb     CHECK (referral.tiers_problem(tiers) IS NULL),
    seasons           jsonb     CHECK (referral.seasons_problem(seasons)
                                       IS NULL),
    base              text      NOT NULL DEFAULT 'after'
                                CHECK (base IN ('before', 'after')),
    commission        boolean   NOT NULL DEFAULT true,
    threshold         int       CHECK (threshold > 0),
    max_amount        bigint    CHECK (max_amount > 0),
    times             int       DEFAULT 1 CHECK (times > 0),
    approval          text      CHECK (approval IN ('auto', 'manual')),
    approval_above    bigint    CHECK (approval_above >= 0),
    hold              interval  CHECK (hold BETWEEN '0' AND '10 years'),
    valid_for         interval  CHECK (valid_for > '0'
                                       AND valid_for <= '100 years'),
    item              text      CHECK (length(item) BETWEEN 1 AND 200),
    coupon_bp         int       CHECK (coupon_bp BETWEEN 1 AND 10000),
    FOREIGN KEY (program_id, version) REFERENCES referral.reward_rule_set,
    CONSTRAINT reward_rule_value_check
        CHECK (num_nonnulls(amount, rate_bp) = 1
               OR (tiers IS NOT NULL AND num_nonnulls(amount, rate_bp) = 0)),
    CONSTRAINT reward_rule_rate_check
        CHECK (trigger = 'conversion'
               OR (rate_bp IS NULL AND min_amount IS NULL
                   AND NOT coalesce(jsonb_path_exists(tiers,
                                        '$[*].rate_bp'), false))),
    CONSTRAINT reward_rule_item_given
        CHECK (item IS NOT NULL OR kind NOT IN ('free_item', 'merchandise')),
    CONSTRAINT reward_rule_coupon_kind
        CHECK (coupon_bp IS NULL OR kind = 'discount')
);

CREATE INDEX reward_rule_set_rules
    ON referral.reward_rule (program_id, version);

COMMENT ON COLUMN referral.reward_rule.slot IS
    'of a slot''s rules that apply, the most specific one is taken; slots add'
    ' up.  Default: "reward", or "bonus" with nth or every';
COMMENT ON COLUMN referral.reward_rule.conversion_kinds IS 'null: all';
COMMENT ON COLUMN referral.reward_rule.products IS 'null: all';
COMMENT ON COLUMN referral.reward_rule.nth IS
    'only for the referrer''s n-th referral in the program';
COMMENT ON COLUMN referral.reward_rule.every IS
    'only for each n-th referral of the referrer';
COMMENT ON COLUMN referral.reward_rule.min_amount IS
    'of the order, in the program''s currency';
COMMENT ON COLUMN referral.reward_rule.unit IS
    'null: that of kind; of cash, credit, discount the program''s currency'
    ' where the amount is fixed, else that of the conversion';
COMMENT ON COLUMN referral.reward_rule.base IS
    'of rates: the price before or after the promotion discount';
COMMENT ON COLUMN referral.reward_rule.commission IS
    'the referrer''s own commission_bp replaces rates';
COMMENT ON COLUMN referral.reward_rule.threshold IS
    'from this referral of the referrer on; null: the program''s';
COMMENT ON COLUMN referral.reward_rule.times IS
    'how often for one referral; null: each conversion';
COMMENT ON COLUMN referral.reward_rule.valid_for IS
    'from the release on; null: for ever';
COMMENT ON COLUMN referral.reward_rule.item IS
    'what is given: a product, a service, a feature';
COMMENT ON COLUMN referral.reward_rule.coupon_bp IS
    'the discount is this part of a later order: amount is how many coupons';

COMMENT ON CONSTRAINT reward_rule_slot_check ON referral.reward_rule IS
    '1 to 40 of a-z, 0-9, _ and -';
COMMENT ON CONSTRAINT reward_rule_value_check ON referral.reward_rule IS
    'one of amount and rate_bp, or tiers';
COMMENT ON CONSTRAINT reward_rule_rate_check ON referral.reward_rule IS
    'a registration has no order: no rate_bp, no min_amount';
COMMENT ON CONSTRAINT reward_rule_item_given ON referral.reward_rule IS
    'an item, for free_item and merchandise';
COMMENT ON CONSTRAINT reward_rule_coupon_kind ON referral.reward_rule IS
    'coupon_bp for discounts only';
COMMENT ON CONSTRAINT reward_rule_tiers_check ON referral.reward_rule IS
    '[{"from": 1, "amount": 1000}, {"from": 5, "amount": 2000}], ascending;'
    ' rate_bp instead of amount for rates';
COMMENT ON CONSTRAINT reward_rule_seasons_check ON referral.reward_rule IS
    '[{"from": "2026-06-01", "until": "2026-08-31", "multiplier_bp": 20000}]';

DO $$ BEGIN PERFORM referral.audit_table('reward_rule'); END $$;

CREATE TRIGGER ledger_refuse
    BEFORE UPDATE OR DELETE OR TRUNCATE ON referral.reward_rule_set
    FOR EACH STATEMENT EXECUTE FUNCTION referral.ledger_refuse();
CREATE TRIGGER ledger_refuse
    BEFORE UPDATE OR DELETE OR TRUNCATE ON referral.reward_rule
    FOR EACH STATEMENT EXECUTE FUNCTION referral.ledger_refuse();


-- The newest version of a program's rules, those of codes included; 0: none.

CREATE FUNCTION referral.rule_set_current(program_id bigint) RETURNS int
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce((SELECT max(s.version) FROM referral.reward_rule_set s
                         WHERE s.program_id = rule_set_current.program_id), 0);
END
$$;

REVOKE ALL ON FUNCTION referral.rule_set_current(bigint) FROM PUBLIC;


-- A referral keeps the rules of its making.

CREATE FUNCTION referral.referral_rules() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.rule_set_version := coalesce(NEW.rule_set_version,
                                 referral.rule_set_current(NEW.program_id));
    RETURN NEW;
END
$$;

REVOKE ALL ON FUNCTION referral.referral_rules() FROM PUBLIC;

CREATE TRIGGER referral_rules BEFORE INSERT ON referral.referral
    FOR EACH ROW EXECUTE FUNCTION referral.referral_rules();


-- Writes a new version of a program's rules, all of them, and returns its
-- number; referrals made from now on have it.  rules is an array of objects
-- whose keys are columns of reward_rule.  Options: cap (for each referral),
-- approval_above, unit (of both; default: the program's currency),
-- expiring_notice, note; code_id: these are rules of that code, which replace
-- the program's of the same slot and beneficiary.

CREATE FUNCTION referral.reward_rules_set(program_id bigint, rules jsonb,
                                          options jsonb DEFAULT '{}')
    RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    allowed        text[] := '{slot,beneficiary,trigger,conversion_kinds,'
                             'products,variant_id,nth,every,min_amount,kind,'
                             'unit,amount,rate_bp,tiers,seasons,base,'
                             'commission,threshold,max_amount,times,approval,'
                             'approval_above,hold,valid_for,item,coupon_bp}';
    p              referral.program := referral.program_row(program_id);
    s              referral.reward_rule_set;
    r              referral.reward_rule;
    given          jsonb;
    n              int := 0;
    what           text := 'reward_rules_set';
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    IF jsonb_typeof(rules) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'reward_rules_set(): rules are a JSON array of objects'
            USING ERRCODE = 'RF010', HINT = 'An empty one rewards nothing.';
    END IF;

    options := referral.options_check(what, options,
        '{cap,approval_above,unit,expiring_notice,note,code_id}');
    s.unit := p.currency;
    s.expiring_notice := '7 days';
    s := referral.options_apply(what, s, options);

    IF s.code_id IS NOT NULL
       AND NOT EXISTS (SELECT FROM referral.code c
                           WHERE c.id = s.code_id AND c.program_id = p.id)
    THEN
        RAISE EXCEPTION 'reward_rules_set(): code % is no code of program %',
                        s.code_id, p.id
            USING ERRCODE = 'RF067',
                  HINT = 'The view referral.codes lists them.';
    END IF;

    PERFORM pg_advisory_xact_lock(hashtextextended('referral.rules', p.id));

    INSERT INTO referral.reward_rule_set (program_id, version, code_id, cap,
                                          approval_above, unit,
                                          expiring_notice, note)
        VALUES (p.id, referral.rule_set_current(p.id) + 1, s.code_id, s.cap,
                s.approval_above, s.unit, s.expiring_notice, s.note)
        RETURNING * INTO s;

    FOR given IN SELECT * FROM jsonb_array_elements(rules) LOOP
        n := n + 1;
        what := format('rule %s of reward_rules_set', n);
        given := referral.options_check(what, given, allowed);

        r := NULL;
        r.beneficiary := 'referrer';
        r.trigger := 'conversion';
        r.base := 'after';
        r.commission := true;
        r.times := 1;
        r := referral.options_apply(what, r, given);
        r.slot := coalesce(r.slot, CASE WHEN num_nonnulls(r.nth, r.every) > 0
                                        THEN 'bonus' ELSE 'reward' END);
        r.unit := coalesce(r.unit, CASE
            WHEN r.coupon_bp IS NOT NULL THEN 'coupons'
            WHEN r.kind IN ('free_item', 'merchandise') THEN 'items'
            WHEN r.kind NOT IN ('cash', 'credit', 'discount') THEN r.kind
            WHEN r.rate_bp IS NULL
                 AND NOT coalesce(jsonb_path_exists(r.tiers,
                                      '$[*].rate_bp'), false)
            THEN p.currency END);

        -- what is of one unit by its kind does not get another

        IF r.unit IS DISTINCT FROM 'coupons' AND r.coupon_bp IS NOT NULL
           OR r.kind IN ('cash', 'credit', 'discount')
              AND r.coupon_bp IS NULL
              AND EXISTS (SELECT FROM referral.unit u
                              WHERE u.code = r.unit AND u.kind <> 'money')
           OR r.kind IN ('free_item', 'merchandise') AND r.unit <> 'items'
           OR r.kind IN ('points', 'messages', 'requests', 'feature_days')
              AND r.unit <> r.kind
        THEN
            RAISE EXCEPTION '%(): a reward of kind % is not counted in %',
                            what, r.kind, r.unit
                USING ERRCODE = 'RF010', HINT = 'Leave "unit" away.';
        END IF;

        INSERT INTO referral.reward_rule (program_id, version, position, slot,
                beneficiary, trigger, conversion_kinds, products, variant_id,
                nth, every, min_amount, kind, unit, amount, rate_bp, tiers,
                seasons, base, commission, threshold, max_amount, times,
                approval, approval_above, hold, valid_for, item, coupon_bp)
            VALUES (p.id, s.version, n, r.slot, r.beneficiary, r.trigger,
                r.conversion_kinds, r.products, r.variant_id, r.nth, r.every,
                r.min_amount, r.kind, r.unit, r.amount, r.rate_bp, r.tiers,
                r.seasons, r.base, r.commission, r.threshold, r.max_amount,
                r.times, r.approval, r.approval_above, r.hold, r.valid_for,
                r.item, r.coupon_bp);
    END LOOP;

    PERFORM referral.emit(p.organisation_id, 'program.updated',
        'program:' || p.id, jsonb_build_object('program_id', p.id,
            'rule_set_version', s.version));

    RETURN s.version;

EXCEPTION
    WHEN check_violation OR not_null_violation OR foreign_key_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise(what, broken_table, broken,
                                          broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_rules_set(bigint, jsonb, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.reward_rules_set(bigint, jsonb, jsonb)
    TO referral_app;


-- The newest rules of a program become the first ones of another, those of
-- codes excepted, which are the original's own.  Variants go by their names.

CREATE FUNCTION referral.reward_rules_clone(source bigint, made bigint)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s  referral.reward_rule_set;
BEGIN
    SELECT * INTO s
        FROM referral.reward_rule_set t
        WHERE t.program_id = source AND t.code_id IS NULL
        ORDER BY t.version DESC
        LIMIT 1;

    IF NOT FOUND THEN
        RETURN;
    END IF;

    INSERT INTO referral.reward_rule_set (program_id, version, cap,
                                          approval_above, unit,
                                          expiring_notice, note)
        VALUES (made, 1, s.cap, s.approval_above, s.unit, s.expiring_notice,
                format('as version %s of program %s', s.version, source));

    INSERT INTO referral.reward_rule (program_id, version, position, slot,
            beneficiary, trigger, conversion_kinds, products, variant_id,
            nth, every, min_amount, kind, unit, amount, rate_bp, tiers,
            seasons, base, commission, threshold, max_amount, times,
            approval, approval_above, hold, valid_for, item, coupon_bp)
        SELECT made, 1, r.position, r.slot, r.beneficiary, r.trigger,
               r.conversion_kinds, r.products, own.id, r.nth, r.every,
               r.min_amount, r.kind, r.unit, r.amount, r.rate_bp, r.tiers,
               r.seasons, r.base, r.commission, r.threshold, r.max_amount,
               r.times, r.approval, r.approval_above, r.hold, r.valid_for,
               r.item, r.coupon_bp
            FROM referral.reward_rule r
                 LEFT JOIN referral.program_variant v ON v.id = r.variant_id
                 LEFT JOIN referral.program_variant own
                     ON own.program_id = made AND own.name = v.name
            WHERE r.program_id = source AND r.version = s.version
                  AND (r.variant_id IS NULL OR own.id IS NOT NULL)
            ORDER BY r.position;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_rules_clone(bigint, bigint)
    FROM PUBLIC;


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


-- Records a conversion, once, and gives what it earns.
--
-- Options: order_ref and idempotency_key, at least one; who: referral_id, or
-- external_id, email, phone of the customer, or click_id, token, code of the
-- click (program_id where several are possible); what: amount (minor units,
-- the promotion discount off), currency (default: the program's), discount,
-- kind (purchase), product, occurred_at (now).
--
-- Returns outcome, conversion_id, referral_id, program_id, referrer_id, nth,
-- rewards and skipped rules.  The outcome is "credited", or "unattributed",
-- with the reason, when no referral is good for it: then nothing is kept, and
-- the same order may be sent again.  Otherwise the same order, or key, gets
-- the first answer again; RF068 if it has other content (e-mail and phone are
-- not kept, and so not compared).
--
-- Some hundred small statements run here, and all are found by an index: plans
-- made anew for the values of each would take a third of the time.

CREATE FUNCTION referral.conversion_record(organisation_id bigint,
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

    PERFORM pg_advisory_xact_lock(hashtextextended('referral.order/' || k,
                                                   organisation_id))
        FROM (SELECT 'o' || c.order_ref AS k
              UNION ALL
              SELECT 'k' || c.idempotency_key
              ORDER BY 1 DESC) l
        WHERE k IS NOT NULL;

    SELECT * INTO old
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

    FOR turn IN 1 .. 2 LOOP
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

    -- what was expected gives way to what was bought

    UPDATE referral.referral t
        SET value = CASE WHEN first THEN 0 ELSE t.value END + c.amount,
            currency = c.currency
        WHERE t.id = r.id AND (first OR t.currency = c.currency);

    c.answer := jsonb_strip_nulls(jsonb_build_object('outcome', 'credited',
                    'conversion_id', c.id, 'referral_id', r.id,
                    'program_id', r.program_id, 'referrer_id', r.referrer_id,
                    'nth', c.nth))
                || referral.reward_give(r, 'conversion', c, c.nth,
                                        c.occurred_at);

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

REVOKE ALL ON FUNCTION referral.conversion_record(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.conversion_record(bigint, jsonb)
    TO referral_app;


-- What is wrong with the values of a conversion, before anything is locked.

CREATE FUNCTION referral.conversion_values(c referral.conversion)
    RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name  text;
    hint  text;
BEGIN
    IF c.order_ref IS NULL AND c.idempotency_key IS NULL THEN
        RAISE EXCEPTION 'conversion_record(): nothing says which order it is'
            USING ERRCODE = 'RF069',
                  HINT = 'Give order_ref, or an idempotency_key.';
    END IF;

    SELECT v.name, v.hint INTO name, hint
        FROM (VALUES
            ('order_ref', length(c.order_ref) BETWEEN 1 AND 200,
             '1 to 200 characters'),
            ('idempotency_key', length(c.idempotency_key) BETWEEN 1 AND 200,
             '1 to 200 characters'),
            ('kind', c.kind ~ '^[a-z0-9][a-z0-9_-]{0,39}$',
             '1 to 40 of a-z, 0-9, _ and -'),
            ('product', length(c.product) BETWEEN 1 AND 200,
             '1 to 200 characters'),
            ('amount', c.amount BETWEEN 0 AND 1000000000000000,
             'a whole number of minor units, from 0 to 10^15'),
            ('discount', c.discount BETWEEN 0 AND 1000000000000000,
             'a whole number of minor units, from 0 to 10^15'),
            ('currency', c.currency IS NULL
                         OR EXISTS (SELECT FROM referral.unit u
                                        WHERE u.code = c.currency
                                              AND u.kind = 'money'),
             'a currency of ISO 4217, such as USD'),
            ('occurred_at', c.occurred_at > '2000-01-01Z'
                            AND c.occurred_at < now() + interval '1 day',
             'a time from 2000 on, at most a day ahead')) v (name, good, hint)
        WHERE NOT v.good
        LIMIT 1;

    IF FOUND THEN
        RAISE EXCEPTION 'conversion_record(): "%" is not acceptable', name
            USING ERRCODE = 'RF010', HINT = format('Accepted: %s.', hint);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.conversion_values(referral.conversion)
    FROM PUBLIC;


-- Locks rewards, whose referrals are locked: the accounts that they may move
-- in, the one of the organisation's side among them, then their rows.

CREATE FUNCTION referral.reward_lock(ids bigint[], other_side text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.account_lock((
        SELECT array_agg(a)
            FROM (SELECT *
                      FROM referral.reward w
                      WHERE w.id = ANY (ids)
                      ORDER BY w.id) w,
                 LATERAL unnest(ARRAY[w.pending_id, w.account_id]
                                || referral.account_get(w.organisation_id,
                                       other_side, w.unit, w.referrer_id,
                                       w.person_id, w.referral_id)) a));

    PERFORM FROM referral.reward w
        WHERE w.id = ANY (ids)
        ORDER BY w.id
        FOR NO KEY UPDATE;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_lock(bigint[], text) FROM PUBLIC;


-- The reward, after its referral and accounts are locked; RF070.

CREATE FUNCTION referral.reward_row(id bigint) RETURNS referral.reward
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    w      referral.reward;
BEGIN
    SELECT * INTO w
        FROM referral.reward t
        WHERE t.id = reward_row.id
              AND (scope IS NULL OR t.organisation_id = scope);

    IF NOT FOUND THEN
        RAISE EXCEPTION 'reward %: there is none with this id, or it is not'
                        ' yours', coalesce(reward_row.id::text, '(null)')
            USING ERRCODE = 'RF070',
                  HINT = 'The view referral.rewards lists them.';
    END IF;

    PERFORM FROM referral.referral r
        WHERE r.id = w.referral_id
        FOR NO KEY UPDATE;
    PERFORM referral.reward_lock(ARRAY[w.id], 'expense');
    SELECT * INTO w FROM referral.reward t WHERE t.id = reward_row.id;

    RETURN w;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_row(bigint) FROM PUBLIC;


-- Releases a reward, which is locked, and whose two accounts are.

CREATE FUNCTION referral.reward_release_one(w referral.reward,
                                            at timestamptz)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part  bigint := w.amount - w.reversed - w.returned;
BEGIN
    w := referral.reward_open(w, at);

    PERFORM referral.transfer_post(w.organisation_id, 'approval',
        'approval:' || w.id,
        ARRAY[ROW(w.pending_id, -part, w.id),
              ROW(w.account_id, part, w.id)]::referral.posting[],
        w.referral_id, w.id, NULL, NULL, NULL, at);

    UPDATE referral.reward t
        SET status = w.status, release_at = NULL, approved_at = w.approved_at,
            valid_from = w.valid_from, valid_until = w.valid_until,
            expiring_at = w.expiring_at
        WHERE t.id = w.id;

    PERFORM referral.reward_emit(w, 'approved', part);
    PERFORM referral.reward_settle(w.account_id);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_release_one(referral.reward,
                                                   timestamptz) FROM PUBLIC;


-- Locks what a slice of rewards needs, in the one order, and returns those
-- whose referrals no other session is at.  Callers look again at what they
-- asked for: it may have changed meanwhile.

CREATE FUNCTION referral.reward_slice(ids bigint[], referrals bigint[],
                                      other_side text)
    RETURNS SETOF referral.reward
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT array_agg(l.id) INTO referrals
        FROM (SELECT r.id
                  FROM referral.referral r
                  WHERE r.id = ANY (referrals)
                  ORDER BY r.id
                  FOR NO KEY UPDATE SKIP LOCKED) l;
    SELECT array_agg(w.id) INTO ids
        FROM referral.reward w
        WHERE w.id = ANY (ids) AND w.referral_id = ANY (referrals);

    PERFORM referral.reward_lock(ids, other_side);

    RETURN QUERY SELECT * FROM referral.reward w
                     WHERE w.id = ANY (ids)
                     ORDER BY w.id;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_slice(bigint[], bigint[], text)
    FROM PUBLIC;


-- Releases up to a slice of the rewards whose time has come; how many.  Any
-- number of sessions at once: each takes others.  Those of referrers who are
-- suspended meanwhile are held.

CREATE FUNCTION referral.reward_release(at timestamptz DEFAULT now(),
                                        slice int DEFAULT 200)
    RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    w      referral.reward;
    ids    bigint[];
    refs   bigint[];
    why    text;
    n      int := 0;
BEGIN
    SELECT array_agg(c.id), array_agg(DISTINCT c.referral_id) INTO ids, refs
        FROM (SELECT t.id, t.referral_id
                  FROM referral.reward t
                  WHERE t.release_at <= at
                        AND (scope IS NULL OR t.organisation_id = scope)
                  ORDER BY t.release_at, t.id
                  LIMIT slice) c;

    IF ids IS NULL THEN
        RETURN 0;
    END IF;

    FOR w IN
        SELECT * FROM referral.reward_slice(ids, refs, 'expense')
    LOOP
        CONTINUE WHEN w.release_at IS NULL OR w.release_at > at;

        SELECT f.status INTO why
            FROM referral.referrer f
            WHERE f.id = w.referrer_id
                  AND f.status NOT IN ('active', 'inactive');

        IF FOUND THEN
            UPDATE referral.reward t
                SET status = 'held', release_at = NULL,
                    reason = 'the referrer is ' || why
                WHERE t.id = w.id;

        ELSE
            PERFORM referral.reward_release_one(w, at);
            PERFORM referral.reward_step(w.referral_id);
        END IF;

        n := n + 1;
    END LOOP;

    RETURN n;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_release(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.reward_release(timestamptz, int)
    TO referral_app, referral_worker;


-- Announces rewards that will expire, once each, by the notice of their rules;
-- how many.

CREATE FUNCTION referral.reward_expiring(at timestamptz DEFAULT now(),
                                         slice int DEFAULT 200)
    RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    w      referral.reward;
    n      int := 0;
BEGIN
    FOR w IN
        SELECT *
            FROM referral.reward t
            WHERE t.status = 'approved' AND t.expiring_sent_at IS NULL
                  AND t.expiring_at <= at
                  AND (scope IS NULL OR t.organisation_id = scope)
            ORDER BY t.expiring_at
            LIMIT slice
            FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        UPDATE referral.reward t SET expiring_sent_at = at WHERE t.id = w.id;

        IF w.valid_until > at AND w.closed_at IS NULL THEN
            PERFORM referral.reward_emit(w, 'expiring',
                (SELECT l.remaining
                     FROM referral.reward_remains(w.account_id) l
                     WHERE l.reward_id = w.id));
        END IF;

        n := n + 1;
    END LOOP;

    RETURN n;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_expiring(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.reward_expiring(timestamptz, int)
    TO referral_app, referral_worker;


-- Lets expire what was not used in time; how many.  What is in a payout that
-- was asked for in time does not.

CREATE FUNCTION referral.reward_expire(at timestamptz DEFAULT now(),
                                       slice int DEFAULT 200)
    RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    w      referral.reward;
    ids    bigint[];
    refs   bigint[];
    left_  bigint;
    n      int := 0;
BEGIN
    SELECT array_agg(c.id), array_agg(DISTINCT c.referral_id) INTO ids, refs
        FROM (SELECT t.id, t.referral_id
                  FROM referral.reward t
                  WHERE t.status = 'approved' AND t.closed_at IS NULL
                        AND t.valid_until <= at
                        AND (scope IS NULL OR t.organisation_id = scope)
                  ORDER BY t.valid_until, t.id
                  LIMIT slice) c;

    IF ids IS NULL THEN
        RETURN 0;
    END IF;

    FOR w IN
        SELECT * FROM referral.reward_slice(ids, refs, 'expired')
    LOOP
        CONTINUE WHEN w.status <> 'approved' OR w.closed_at IS NOT NULL
                      OR w.valid_until > at;

        SELECT coalesce(sum(e.amount), 0) INTO left_
            FROM referral.entry e
            WHERE e.reward_id = w.id AND e.account_id = w.account_id;

        IF left_ > 0 THEN
            PERFORM referral.transfer_post(w.organisation_id, 'expiry',
                format('expiry:%s:%s', w.id, w.expired),
                ARRAY[ROW(w.account_id, -left_, w.id),
                      ROW(referral.account_get(w.organisation_id, 'expired',
                              w.unit, w.referrer_id, w.person_id,
                              w.referral_id), left_, w.id)
                     ]::referral.posting[],
                w.referral_id, w.id, NULL, NULL, NULL, at);
        END IF;

        UPDATE referral.reward t
            SET expired = t.expired + greatest(left_, 0), closed_at = at
            WHERE t.id = w.id;
        PERFORM referral.reward_refresh(ARRAY[w.id], at);

        IF left_ > 0 THEN
            SELECT * INTO w FROM referral.reward t WHERE t.id = w.id;
            PERFORM referral.reward_emit(w, 'expired', left_);
        END IF;

        n := n + 1;
    END LOOP;

    RETURN n;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_expire(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.reward_expire(timestamptz, int)
    TO referral_app, referral_worker;


-- What stands in the way of a decision about a reward: RF073.

CREATE FUNCTION referral.reward_refuse(w referral.reward, wanted text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'reward % is % and can not be %', w.id, w.status, wanted
        USING ERRCODE = 'RF073',
              HINT = 'Pending and held ones are approved, held or rejected;'
                     ' approved ones are cancelled as far as they are unused;'
                     ' what was used is taken back by a refund.';
END
$$;

REVOKE ALL ON FUNCTION referral.reward_refuse(referral.reward, text)
    FROM PUBLIC;


-- Approves a reward that needs it, or was held.  It is released now, or when
-- its hold time is over.  Again: nothing.

CREATE FUNCTION referral.reward_approve(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    w  referral.reward := referral.reward_row(id);
BEGIN
    IF w.approved_at IS NOT NULL AND w.status = 'approved'
       OR w.status = 'pending' AND w.release_at IS NOT NULL
    THEN
        RETURN;

    ELSIF w.status NOT IN ('pending', 'held') THEN
        PERFORM referral.reward_refuse(w, 'approved');
    END IF;

    UPDATE referral.reward t
        SET status = 'pending', reviewed_at = now(),
            reviewed_by = referral.actor(),
            release_at = greatest(t.hold_until, now()),
            reason = left(reward_approve.reason, 500)
        WHERE t.id = w.id
        RETURNING * INTO w;
    PERFORM referral.audit_write(w.organisation_id, 'approve', 'reward', w.id,
                                 NULL, reward_approve.reason);

    IF w.release_at <= now() THEN
        PERFORM referral.reward_release_one(w, now());
        PERFORM referral.reward_step(w.referral_id);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_approve(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.reward_approve(bigint, text)
    TO referral_app;


-- Stops a reward that is not released yet, until reward_approve().

CREATE FUNCTION referral.reward_hold(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    w  referral.reward := referral.reward_row(id);
BEGIN
    IF w.status NOT IN ('pending', 'held') THEN
        PERFORM referral.reward_refuse(w, 'held');
    END IF;

    UPDATE referral.reward t
        SET status = 'held', release_at = NULL,
            reason = left(reward_hold.reason, 500)
        WHERE t.id = w.id;
    PERFORM referral.audit_write(w.organisation_id, 'hold', 'reward', w.id,
                                 NULL, reward_hold.reason);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_hold(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.reward_hold(bigint, text) TO referral_app;


-- Takes back what is left of a reward, which is locked, and what of it was not
-- used: it is rejected when it was pending or held, else cancelled.

CREATE FUNCTION referral.reward_return(w referral.reward, reason text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    open     boolean := w.approved_at IS NOT NULL;
    source   bigint := CASE WHEN open THEN w.account_id ELSE w.pending_id END;
    expense  bigint := referral.account_get(w.organisation_id, 'expense',
                           w.unit, w.referrer_id, w.person_id, w.referral_id);
    left_    bigint;
BEGIN
    SELECT coalesce(sum(e.amount), 0) INTO left_
        FROM referral.entry e
        WHERE e.reward_id = w.id AND e.account_id = source;

    IF left_ > 0 THEN
        PERFORM referral.transfer_post(w.organisation_id,
            CASE WHEN open THEN 'cancellation' ELSE 'rejection' END,
            format('return:%s:%s', w.id, w.returned),
            ARRAY[ROW(source, -left_, w.id),
                  ROW(expense, left_, w.id)]::referral.posting[],
            w.referral_id, w.id);
    END IF;

    UPDATE referral.reward t
        SET returned = t.returned + greatest(left_, 0),
            status = CASE WHEN open THEN t.status ELSE 'rejected' END,
            release_at = NULL, closed_at = now(),
            reason = left(reward_return.reason, 500),
            reviewed_at = coalesce(t.reviewed_at, now()),
            reviewed_by = coalesce(t.reviewed_by, referral.actor())
        WHERE t.id = w.id
        RETURNING * INTO w;

    IF open THEN
        PERFORM referral.reward_refresh(ARRAY[w.id]);
    END IF;

    PERFORM referral.audit_write(w.organisation_id,
                CASE WHEN open THEN 'cancel' ELSE 'reject' END, 'reward',
                w.id, NULL, reward_return.reason);

    IF left_ > 0 THEN
        SELECT * INTO w FROM referral.reward t WHERE t.id = w.id;
        PERFORM referral.reward_emit(w, 'reversed', left_);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_return(referral.reward, text)
    FROM PUBLIC;


CREATE FUNCTION referral.reward_reject(id bigint, reason text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    w  referral.reward := referral.reward_row(id);
BEGIN
    IF w.status = 'rejected' THEN
        RETURN;

    ELSIF w.status NOT IN ('pending', 'held') THEN
        PERFORM referral.reward_refuse(w, 'rejected');
    END IF;

    PERFORM referral.reward_return(w, reason);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_reject(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.reward_reject(bigint, text)
    TO referral_app;


-- What is left of an approved reward is taken back; of a pending one, all.

CREATE FUNCTION referral.reward_cancel(id bigint, reason text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    w  referral.reward := referral.reward_row(id);
BEGIN
    IF w.status IN ('cancelled', 'rejected') THEN
        RETURN;

    ELSIF w.status NOT IN ('pending', 'held', 'approved')
          OR w.status = 'approved'
             AND coalesce((SELECT sum(e.amount) FROM referral.entry e
                               WHERE e.reward_id = w.id
                                     AND e.account_id = w.account_id), 0) <= 0
    THEN
        PERFORM referral.reward_refuse(w, 'cancelled');
    END IF;

    PERFORM referral.reward_return(w, reason);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_cancel(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.reward_cancel(bigint, text)
    TO referral_app;


-- A referral that is given up takes with it what is left of its rewards.
-- What was paid or used stays so: a refund claws it back.

CREATE FUNCTION referral.referral_given_up() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    w  referral.reward;
BEGIN
    PERFORM referral.reward_lock((SELECT array_agg(t.id)
                                      FROM referral.reward t
                                      WHERE t.referral_id = NEW.id),
                                 'expense');

    FOR w IN
        SELECT *
            FROM referral.reward t
            WHERE t.referral_id = NEW.id
                  AND t.status IN ('pending', 'held', 'approved')
            ORDER BY t.id
    LOOP
        PERFORM referral.reward_return(w, 'the referral is ' || NEW.status);
    END LOOP;

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.referral_given_up() FROM PUBLIC;

CREATE TRIGGER referral_given_up AFTER UPDATE OF status ON referral.referral
    FOR EACH ROW
    WHEN (NEW.status IN ('rejected', 'cancelled', 'superseded')
          AND OLD.status <> NEW.status)
    EXECUTE FUNCTION referral.referral_given_up();


-- Takes back a part of a reward after a refund, pro rata: what the whole
-- refunds so far make of it, rounded once, less what was taken before.  Of a
-- reward that was used the holder owes it: the balance may go below zero.

CREATE FUNCTION referral.reward_reverse(w referral.reward, part bigint,
                                        refund_id bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    open     boolean := w.approved_at IS NOT NULL;
    source   bigint := CASE WHEN open THEN w.account_id ELSE w.pending_id END;
    expense  bigint := referral.account_get(w.organisation_id, 'expense',
                           w.unit, w.referrer_id, w.person_id, w.referral_id);
    left_    bigint;
BEGIN
    SELECT coalesce(sum(e.amount), 0) INTO left_
        FROM referral.entry e
        WHERE e.reward_id = w.id AND e.account_id = source;

    PERFORM referral.transfer_post(w.organisation_id,
        CASE WHEN left_ >= part THEN 'reversal' ELSE 'clawback' END,
        format('refund:%s:%s', refund_id, w.id),
        ARRAY[ROW(source, -part, w.id),
              ROW(expense, part, w.id)]::referral.posting[],
        w.referral_id, w.id, NULL,
        (SELECT min(t.id) FROM referral.transfer t
             WHERE t.reward_id = w.id AND t.kind = 'reward'));

    UPDATE referral.reward t
        SET reversed = t.reversed + part,
            status = CASE WHEN NOT open AND t.reversed + part = t.amount
                          THEN 'reversed' ELSE t.status END,
            release_at = CASE WHEN t.reversed + part < t.amount
                              THEN t.release_at END,
            closed_at = CASE WHEN NOT open AND t.reversed + part = t.amount
                             THEN now() ELSE t.closed_at END
        WHERE t.id = w.id;

    IF open THEN
        PERFORM referral.reward_refresh(ARRAY[w.id]);
        PERFORM referral.reward_settle(source);
    END IF;

    SELECT * INTO w FROM referral.reward t WHERE t.id = w.id;
    PERFORM referral.reward_emit(w, 'reversed', part);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_reverse(referral.reward, bigint,
                                               bigint) FROM PUBLIC;


-- Records a refund, once, and takes back from the rewards of its conversion.
--
-- Options: refund_ref (required); order_ref or conversion_id; amount (null:
-- all that is left), occurred_at (now), reason.  Refunds never add up to more
-- than the amount of the conversion: RF072.  The same refund_ref gets the
-- first answer again; RF068 if it has other content.

CREATE FUNCTION referral.refund_record(organisation_id bigint, options jsonb)
    RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET timezone = 'UTC'
AS $$
DECLARE
    scope     bigint := referral.organisation_scope();
    n         referral.refund;
    old       referral.refund;
    c         referral.conversion;
    w         referral.reward;
    part      bigint;
    reversed  jsonb := '[]';
BEGIN
    PERFORM referral.organisation_check(organisation_id);
    options := jsonb_strip_nulls(referral.options_check('refund_record',
                   options, '{refund_ref,order_ref,conversion_id,amount,'
                            'occurred_at,reason}'));
    n.occurred_at := now();
    n := referral.options_apply('refund_record', n, options - 'order_ref');
    n.request_hash := sha256(convert_to(options::text, 'UTF8'));

    IF coalesce(length(n.refund_ref) NOT BETWEEN 1 AND 200, true) THEN
        RAISE EXCEPTION 'refund_record(): "refund_ref" is not acceptable'
            USING ERRCODE = 'RF010',
                  HINT = 'Accepted: 1 to 200 characters, one for each refund.';

    ELSIF length(n.reason) > 500 THEN
        RAISE EXCEPTION 'refund_record(): "reason" is not acceptable'
            USING ERRCODE = 'RF010',
                  HINT = 'Accepted: at most 500 characters, nothing personal.';
    END IF;

    PERFORM pg_advisory_xact_lock(hashtextextended(
                'referral.refund/' || n.refund_ref, organisation_id));

    SELECT * INTO old
        FROM referral.refund t
        WHERE t.organisation_id = refund_record.organisation_id
              AND t.refund_ref = n.refund_ref;

    IF FOUND THEN
        IF old.request_hash <> n.request_hash THEN
            RAISE EXCEPTION 'refund % was recorded with other content',
                            n.refund_ref
                USING ERRCODE = 'RF068',
                      HINT = 'A second refund needs a refund_ref of its own.';
        END IF;

        RETURN old.answer;
    END IF;

    SELECT * INTO c
        FROM referral.conversion t
        WHERE t.organisation_id = refund_record.organisation_id
              AND (t.order_ref = options ->> 'order_ref'
                   OR t.id = n.conversion_id)
              AND (n.conversion_id IS NULL OR t.id = n.conversion_id)
              AND (NOT options ? 'order_ref'
                   OR t.order_ref = options ->> 'order_ref');

    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no conversion with order_ref %, id %',
                        coalesce(left(options ->> 'order_ref', 200), 'none'),
                        coalesce(n.conversion_id::text, 'none')
            USING ERRCODE = 'RF071',
                  HINT = 'Orders that conversion_record() called'
                         ' "unattributed" have none.';
    END IF;

    PERFORM FROM referral.referral r
        WHERE r.id = c.referral_id
        FOR NO KEY UPDATE;
    SELECT * INTO c
        FROM referral.conversion t
        WHERE t.id = c.id
        FOR NO KEY UPDATE;
    n.amount := coalesce(n.amount, c.amount - c.refunded);

    IF n.amount NOT BETWEEN 0 AND c.amount - c.refunded OR c.cancelled
       OR n.amount = 0 AND c.amount > 0
    THEN
        RAISE EXCEPTION 'conversion % (order_ref %) has % left to refund, not'
                        ' %', c.id, coalesce(c.order_ref, 'none'),
                referral.money_text(c.amount - c.refunded, c.currency),
                referral.money_text(n.amount, c.currency)
            USING ERRCODE = 'RF072',
                  HINT = 'Refunds add up to the amount at most, and each is'
                         ' above zero.';
    END IF;

    UPDATE referral.conversion t
        SET refunded = t.refunded + n.amount,
            cancelled = t.refunded + n.amount = t.amount
        WHERE t.id = c.id
        RETURNING * INTO c;
    UPDATE referral.referral r
        SET value = r.value - n.amount
        WHERE r.id = c.referral_id AND r.currency = c.currency;

    n.id := nextval('referral.refund_id_seq');

    PERFORM referral.reward_lock((SELECT array_agg(t.id)
                                      FROM referral.reward t
                                      WHERE t.conversion_id = c.id),
                                 'expense');

    FOR w IN
        SELECT * FROM referral.reward t
            WHERE t.conversion_id = c.id
            ORDER BY t.id
    LOOP
        -- a settlement may have changed it since the loop began
        SELECT * INTO w FROM referral.reward t WHERE t.id = w.id;

        part := least(CASE WHEN c.cancelled THEN w.amount
                           ELSE referral.pro_rata(w.amount, c.refunded,
                                                  c.amount) END,
                      w.amount - w.returned - w.expired) - w.reversed;
        CONTINUE WHEN part <= 0;

        PERFORM referral.reward_reverse(w, part, n.id);
        reversed := reversed || jsonb_build_object('reward_id', w.id,
                        'unit', w.unit, 'amount', part);
    END LOOP;

    n.answer := jsonb_build_object('refund_id', n.id, 'conversion_id', c.id,
                    'referral_id', c.referral_id, 'amount', n.amount,
                    'left', c.amount - c.refunded, 'reversed', reversed);

    INSERT INTO referral.refund (id, organisation_id, conversion_id,
            refund_ref, request_hash, amount, reason, occurred_at, answer)
        OVERRIDING SYSTEM VALUE
        VALUES (n.id, organisation_id, c.id, n.refund_ref, n.request_hash,
            n.amount, n.reason, n.occurred_at, n.answer);

    RETURN n.answer;
END
$$;

REVOKE ALL ON FUNCTION referral.refund_record(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.refund_record(bigint, jsonb)
    TO referral_app;


-- What is wrong with rewards, conversions and refunds: no rows when nothing
-- is.

CREATE FUNCTION referral.ledger_check_rewards()
    RETURNS TABLE (problem text, object text, object_id bigint, detail text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH posted AS (
        SELECT e.reward_id,
               coalesce(sum(e.amount) FILTER (WHERE a.kind = 'pending'), 0)
                   AS pending,
               coalesce(sum(e.amount) FILTER (WHERE a.kind = 'expense'), 0)
                   AS expense,
               coalesce(sum(e.amount) FILTER (WHERE a.kind = 'expired'), 0)
                   AS expired,
               coalesce(sum(e.amount) FILTER (WHERE a.kind = 'reserved'), 0)
                   AS reserved,
               coalesce(sum(e.amount) FILTER (WHERE a.id = w.account_id), 0)
                   AS remaining
            FROM referral.entry e
                 JOIN referral.account a ON a.id = e.account_id
                 JOIN referral.reward w ON w.id = e.reward_id
            GROUP BY e.reward_id
    )
    SELECT 'the entries are not those of its amount', 'reward', w.id,
           format('amount %s, reversed %s, returned %s, expense %s',
                  w.amount, w.reversed, w.returned, p.expense)
        FROM referral.reward w
             LEFT JOIN posted p ON p.reward_id = w.id
        WHERE coalesce(p.expense, 0) <> w.reversed + w.returned - w.amount
    UNION ALL
    SELECT 'the pending account has not what is pending', 'reward', w.id,
           format('%s: %s', w.status, p.pending)
        FROM referral.reward w
             JOIN posted p ON p.reward_id = w.id
        WHERE p.pending <> CASE WHEN w.status IN ('pending', 'held')
                                THEN w.amount - w.reversed - w.returned
                                ELSE 0 END
    UNION ALL
    SELECT 'the entries are not those of its expiry', 'reward', w.id,
           format('expired %s, entries %s', w.expired, p.expired)
        FROM referral.reward w
             JOIN posted p ON p.reward_id = w.id
        WHERE p.expired <> w.expired
    UNION ALL
    SELECT 'is closed, and something is left', 'reward', w.id,
           format('%s: %s', w.status, p.remaining)
        FROM referral.reward w
             JOIN posted p ON p.reward_id = w.id
        WHERE p.remaining > 0
              AND (w.status <> 'approved' OR w.closed_at IS NOT NULL)
    UNION ALL
    SELECT 'is open, and nothing is left', 'reward', w.id, w.status
        FROM referral.reward w
             JOIN posted p ON p.reward_id = w.id
        WHERE w.status = 'approved' AND p.remaining <= 0 AND p.reserved <= 0
    UNION ALL
    SELECT 'its status is not what its entries say', 'reward', w.id,
           format('%s, not %s', w.status, n.status)
        FROM referral.reward w
             LEFT JOIN referral.reward_state n ON n.id = w.id
        WHERE CASE WHEN w.approved_at IS NOT NULL
                   THEN w.status IS DISTINCT FROM n.status
                   WHEN w.reversed + w.returned < w.amount
                   THEN w.status NOT IN ('pending', 'held')
                   ELSE w.status <> CASE WHEN w.returned > 0 THEN 'rejected'
                                         ELSE 'reversed' END END
    UNION ALL
    SELECT 'its account is not its own', 'reward', w.id,
           format('account %s', w.account_id)
        FROM referral.reward w
             LEFT JOIN referral.account a ON a.id = w.account_id
        WHERE (a.organisation_id, a.unit, a.kind)
              IS DISTINCT FROM (w.organisation_id, w.unit,
                                referral.reward_account_kind(w.kind))
              OR a.referrer_id IS DISTINCT FROM w.referrer_id
              OR w.referrer_id IS NULL
                 AND (a.person_id IS DISTINCT FROM w.person_id
                      OR w.person_id IS NULL
                         AND a.referral_id IS DISTINCT FROM w.referral_id)
    UNION ALL
    SELECT 'is not there, and has entries', 'reward', e.reward_id,
           format('%s entries', count(*))
        FROM referral.entry e
        WHERE e.reward_id IS NOT NULL
              AND NOT EXISTS (SELECT FROM referral.reward w
                                  WHERE w.id = e.reward_id)
        GROUP BY e.reward_id
    UNION ALL
    SELECT 'has not the rewards of its answer', 'conversion', c.id,
           format('reward %s', g.given -> 'reward_id')
        FROM referral.conversion c,
             LATERAL jsonb_array_elements(c.answer -> 'rewards') g (given)
             LEFT JOIN referral.reward w
                 ON w.id = (g.given -> 'reward_id')::bigint
        WHERE (w.conversion_id, w.amount, w.unit)
              IS DISTINCT FROM (c.id, (g.given -> 'amount')::bigint,
                                g.given ->> 'unit')
    UNION ALL
    SELECT 'its value is not what was bought', 'referral', r.id,
           format('%s, conversions %s', r.value, v.bought)
        FROM (SELECT c.referral_id,
                     sum(c.amount - c.refunded) FILTER (
                         WHERE c.currency = t.currency) AS bought
                  FROM referral.conversion c
                       JOIN referral.referral t ON t.id = c.referral_id
                  GROUP BY c.referral_id) v
             JOIN referral.referral r ON r.id = v.referral_id
        WHERE r.value IS DISTINCT FROM v.bought
    UNION ALL
    SELECT 'a debt stands beside what could pay it', 'account', d.account_id,
           format('reward %s: %s', d.reward_id, d.remaining)
        FROM (SELECT e.account_id, e.reward_id, sum(e.amount) AS remaining,
                     max(sum(e.amount)) OVER (PARTITION BY e.account_id)
                         AS largest
                  FROM referral.entry e
                       JOIN referral.account a ON a.id = e.account_id
                  WHERE a.kind IN ('payable', 'credit', 'discount')
                        AND e.reward_id IS NOT NULL
                  GROUP BY e.account_id, e.reward_id) d
        WHERE d.remaining < 0 AND d.largest > 0
    UNION ALL
    SELECT 'the refunds add up to something else', 'conversion', c.id,
           format('refunded %s, refunds %s', c.refunded,
                  coalesce(sum(r.amount), 0))
        FROM referral.conversion c
             LEFT JOIN referral.refund r ON r.conversion_id = c.id
        GROUP BY c.id
        HAVING c.refunded <> coalesce(sum(r.amount), 0)
    UNION ALL
    SELECT 'was not taken back pro rata', 'reward', w.id,
           format('%s of %s, refunded %s of %s', w.reversed, w.amount,
                  c.refunded, c.amount)
        FROM referral.reward w
             JOIN referral.conversion c ON c.id = w.conversion_id
        WHERE w.returned + w.expired = 0
              AND w.reversed <> CASE WHEN c.cancelled THEN w.amount
                                     WHEN c.amount = 0 THEN 0
                                     ELSE referral.pro_rata(w.amount,
                                              c.refunded, c.amount) END
    UNION ALL
    SELECT 'the numbers of referrals have gaps', 'referrer', n.referrer_id,
           format('program %s: %s referrals, the last is %s, progress %s',
                  n.program_id, n.referrals, n.last, g.converted)
        FROM (SELECT c.program_id, c.referrer_id,
                     count(DISTINCT c.referral_id) AS referrals,
                     count(DISTINCT (c.referral_id, c.nth)) AS numbers,
                     count(DISTINCT c.nth) AS different, max(c.nth) AS last
                  FROM referral.conversion c
                  WHERE c.referrer_id IS NOT NULL
                  GROUP BY c.program_id, c.referrer_id) n
             LEFT JOIN referral.reward_progress g
                 ON g.program_id = n.program_id
                    AND g.referrer_id = n.referrer_id
        WHERE n.referrals <> n.last OR n.numbers <> n.referrals
              OR n.different <> n.referrals
              OR g.converted IS DISTINCT FROM n.last::int
    UNION ALL
    SELECT 'the rule gives another amount', 'reward', w.id,
           format('%s, by rule %s at %s: %s', w.uncapped, w.rule_id, w.nth,
                  v.amount)
        FROM referral.reward w
             JOIN referral.reward_rule u ON u.id = w.rule_id
             JOIN referral.program p ON p.id = w.program_id
             LEFT JOIN referral.conversion c ON c.id = w.conversion_id,
             LATERAL referral.reward_amount(u, w.nth,
                 (w.earned_at AT TIME ZONE p.time_zone)::date, w.base_amount,
                 w.rate_bp) v
        WHERE v.amount IS DISTINCT FROM w.uncapped
              OR c.nth <> w.nth
              OR w.base_amount <> c.amount + CASE u.base WHEN 'before'
                                             THEN c.discount ELSE 0 END
    UNION ALL
    SELECT 'the rewards are above the cap', 'referral', x.referral_id,
           format('%s, the cap is %s', x.total, x.cap)
        FROM (SELECT w.referral_id, s.cap,
                     sum(greatest(w.amount - w.reversed - w.returned, 0))
                         AS total
                  FROM referral.reward w
                       JOIN referral.referral r ON r.id = w.referral_id
                       JOIN LATERAL (SELECT t.cap, t.unit
                                         FROM referral.reward_rule_set t
                                         WHERE t.program_id = w.program_id
                                               AND t.version
                                                   <= r.rule_set_version
                                               AND (t.code_id IS NULL
                                                    OR t.code_id = r.code_id
                                                       AND t.cap IS NOT NULL)
                                         ORDER BY t.code_id NULLS LAST,
                                                  t.version DESC
                                         LIMIT 1) s ON s.unit = w.unit
                  GROUP BY w.referral_id, s.cap) x
        WHERE x.total > x.cap
$$;

REVOKE ALL ON FUNCTION referral.ledger_check_rewards() FROM PUBLIC;


-- For applications and analysts.

CREATE VIEW referral.reward_rules AS
    SELECT s.program_id, s.version, s.code_id, r.id AS rule_id, r.position,
           r.slot, r.beneficiary, r.trigger, r.conversion_kinds, r.products,
           r.variant_id, r.nth, r.every, r.min_amount, r.kind, r.unit,
           r.amount, r.rate_bp, r.tiers, r.seasons, r.base, r.commission,
           r.threshold, r.max_amount, r.times, r.approval, r.hold,
           r.valid_for, r.item, r.coupon_bp, s.cap,
           coalesce(r.approval_above, s.approval_above) AS approval_above,
           s.unit AS limits_unit, s.expiring_notice, s.note, s.created_by,
           s.created_at,
           s.version = (SELECT max(t.version)
                            FROM referral.reward_rule_set t
                            WHERE t.program_id = s.program_id
                                  AND t.code_id IS NOT DISTINCT FROM s.code_id)
               AS current
        FROM referral.reward_rule_set s
             JOIN referral.program p ON p.id = s.program_id
             LEFT JOIN referral.reward_rule r
                 ON r.program_id = s.program_id AND r.version = s.version
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR p.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.conversions AS
    SELECT c.id, c.organisation_id, c.program_id, c.referral_id,
           c.referrer_id, c.code_id, c.order_ref, c.kind, c.product, c.amount,
           c.currency, referral.money_text(c.amount, c.currency)
               AS amount_text,
           c.discount, c.refunded, c.cancelled, c.nth, c.occurred_at,
           c.recorded_at
        FROM referral.conversion c
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR c.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.refunds AS
    SELECT r.id, r.organisation_id, r.conversion_id, c.referral_id,
           c.order_ref, r.refund_ref, r.amount, c.currency, r.reason,
           r.occurred_at, r.recorded_at
        FROM referral.refund r
             JOIN referral.conversion c ON c.id = r.conversion_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.rewards AS
    SELECT w.id, w.organisation_id, w.program_id, w.referral_id,
           w.conversion_id, w.rule_id, w.slot, w.trigger, w.beneficiary,
           w.referrer_id, w.person_id, w.kind, w.unit, w.amount,
           referral.money_text(w.amount, w.unit) AS amount_text,
           coalesce((SELECT sum(e.amount) FROM referral.entry e
                         WHERE e.reward_id = w.id
                               AND e.account_id = w.account_id), 0)::bigint
               AS available,
           w.uncapped, w.nth, w.base_amount, w.rate_bp, w.multiplier_bp,
           w.share_bp, w.item, w.coupon_bp, w.status, w.reason,
           w.needs_approval, w.reviewed_at, w.reviewed_by, w.hold_until,
           w.earned_at, w.approved_at, w.valid_from, w.valid_until,
           w.closed_at, w.reversed, w.returned, w.expired
        FROM referral.reward w
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR w.organisation_id = (SELECT referral.organisation_scope());

COMMENT ON COLUMN referral.rewards.available IS
    'what can be paid out or used; below zero: owed after a refund';

GRANT SELECT ON referral.reward_rules, referral.conversions, referral.refunds,
    referral.rewards TO referral_app, referral_analyst;


CREATE VIEW referral.my_rewards WITH (security_barrier) AS
    SELECT w.id, w.program_id, w.referral_id, w.kind, w.unit, w.amount,
           referral.money_text(w.amount, w.unit) AS amount_text, w.item,
           w.coupon_bp, w.status, w.earned_at, w.hold_until, w.approved_at,
           w.valid_until, w.closed_at, w.reversed
        FROM referral.reward w
        WHERE w.referrer_id = (SELECT referral.current_referrer());

GRANT SELECT ON referral.my_rewards TO referral_partner;

INSERT INTO referral.schema_migration (version, name) VALUES (15, 'reward');

COMMIT;
