-- Copyright (C) The nginx referral module authors
--
-- Reward rules; and what they, conversions, refunds and rewards, in the files
-- that follow, have in common.
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

INSERT INTO referral.schema_migration (version, name)
    VALUES (19, 'reward_rule');

COMMIT;
