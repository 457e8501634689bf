-- Copyright (C) The nginx referral module authors
--
-- Statements, redemption of credit and discounts, transfer of rewards, bulk
-- operations.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- A referrer's statement for days of the organisation, both included: per
-- account and unit what there was, what moved, what there is.  Conversions
-- are booked at the time they are said to have occurred at.

CREATE FUNCTION referral.statement_lines(of_referrer bigint, from_day date,
                                         until_day date)
    RETURNS TABLE (unit text, account text, line text, at timestamptz,
                   what text, amount bigint, balance bigint,
                   amount_text text, balance_text text, referral_id bigint,
                   reward_id bigint, payout_id bigint)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH period AS (
        SELECT referral.day_begins(from_day, o.time_zone) AS since,
               referral.day_begins(until_day + 1, o.time_zone) AS until
            FROM referral.referrer f
                 JOIN referral.organisation o ON o.id = f.organisation_id
            WHERE f.id = of_referrer
    ), own AS (
        SELECT a.id, a.unit, a.kind FROM referral.account a
            WHERE a.referrer_id = of_referrer AND a.owed
    ), moved AS (
        SELECT w.id AS account_id, w.unit, w.kind, t.id AS transfer_id, t.at,
               t.kind AS what, e.amount, e.seq, t.referral_id, e.reward_id,
               t.payout_id
            FROM own w
                 JOIN referral.entry e ON e.account_id = w.id
                 JOIN referral.transfer t ON t.id = e.transfer_id
    ), lines AS (
        SELECT w.unit, w.kind, 1 AS part, 'opening' AS line, p.since AS at,
               NULL AS what, 0::numeric AS seq,
               coalesce((SELECT sum(m.amount) FROM moved m
                             WHERE m.account_id = w.id AND m.at < p.since), 0)
                   AS amount, NULL::bigint AS referral_id,
               NULL::bigint AS reward_id, NULL::bigint AS payout_id
            FROM own w, period p
        UNION ALL
        SELECT m.unit, m.kind, 2, 'movement', m.at, m.what, m.seq, m.amount,
               m.referral_id, m.reward_id, m.payout_id
            FROM moved m, period p
            WHERE m.at >= p.since AND m.at < p.until
        UNION ALL
        SELECT w.unit, w.kind, 3, 'closing', p.until, NULL, 0,
               coalesce((SELECT sum(m.amount) FROM moved m
                             WHERE m.account_id = w.id AND m.at < p.until), 0),
               NULL, NULL, NULL
            FROM own w, period p
    ), summed AS (
        SELECT l.*, CASE l.part WHEN 3 THEN l.amount
                    ELSE sum(l.amount) FILTER (WHERE l.part < 3)
                         OVER (PARTITION BY l.unit, l.kind
                               ORDER BY l.part, l.at, l.seq) END AS balance
            FROM lines l
    )
    SELECT s.unit, s.kind, s.line, s.at, s.what,
           CASE WHEN s.part = 2 THEN s.amount END::bigint, s.balance::bigint,
           CASE WHEN s.part = 2
                THEN referral.money_text(s.amount::bigint, s.unit) END,
           referral.money_text(s.balance::bigint, s.unit), s.referral_id,
           s.reward_id, s.payout_id
        FROM summed s
        ORDER BY s.unit, s.kind, s.part, s.at, s.seq
$$;

CREATE FUNCTION referral.statement(referrer_id bigint, from_day date,
                                   until_day date)
    RETURNS TABLE (unit text, account text, line text, at timestamptz,
                   what text, amount bigint, balance bigint,
                   amount_text text, balance_text text, referral_id bigint,
                   reward_id bigint, payout_id bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referrer_row(referrer_id);
    RETURN QUERY SELECT * FROM referral.statement_lines(statement.referrer_id,
                                                        from_day, until_day);
END
$$;

CREATE FUNCTION referral.my_statement(from_day date, until_day date)
    RETURNS TABLE (unit text, account text, line text, at timestamptz,
                   what text, amount bigint, balance bigint,
                   amount_text text, balance_text text, referral_id bigint,
                   reward_id bigint, payout_id bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM referral.statement_lines(referral.current_referrer(),
                                           from_day, until_day)
$$;


-- What was used on an order.

CREATE TABLE referral.redemption (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL REFERENCES referral.organisation,
    referrer_id      bigint       REFERENCES referral.referrer,
    referral_id      bigint       REFERENCES referral.referral,
    order_ref        text         NOT NULL CHECK (length(order_ref)
                                                  BETWEEN 1 AND 200),
    kind             text         NOT NULL
                                  CHECK (kind IN ('credit', 'discount')),
    unit             text         NOT NULL REFERENCES referral.unit,
    amount           bigint       NOT NULL CHECK (amount > 0),
    discount         bigint       CHECK (discount >= 0),
    status           text         NOT NULL DEFAULT 'used'
                                  CHECK (status IN ('used', 'reversed')),
    idempotency_key  text         NOT NULL CHECK (length(idempotency_key)
                                                  BETWEEN 1 AND 300),
    request_hash     bytea        NOT NULL,
    used_at          timestamptz  NOT NULL DEFAULT now(),
    used_by          text         NOT NULL DEFAULT referral.actor(),
    reversed_at      timestamptz,
    reason           text         CHECK (length(reason) <= 500),
    UNIQUE (organisation_id, idempotency_key),
    CHECK (num_nonnulls(referrer_id, referral_id) = 1),
    CHECK ((status = 'reversed') = (reversed_at IS NOT NULL))
);

CREATE INDEX redemption_order
    ON referral.redemption (organisation_id, order_ref);
CREATE INDEX redemption_referral ON referral.redemption (referral_id)
    WHERE referral_id IS NOT NULL;

COMMENT ON COLUMN referral.redemption.referral_id IS
    'of the referee whose reward it is; else referrer_id';
COMMENT ON COLUMN referral.redemption.discount IS
    'what coupons take off the order, in minor units of its currency';

DO $$ BEGIN PERFORM referral.audit_table('redemption'); END $$;


-- The accounts of a referrer, or of a referral's referee: those of the person
-- and those of before the person was known by name.

CREATE FUNCTION referral.holder_accounts(organisation_id bigint,
                                         referrer_id bigint,
                                         referral_id bigint, kind text,
                                         unit text) RETURNS bigint[]
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- three look-ups by the unique index, not one by none
    RETURN ARRAY(
        SELECT a.id
            FROM (SELECT holder_accounts.referrer_id AS a,
                         NULL::bigint AS b, NULL::bigint AS c
                  UNION ALL
                  SELECT NULL, r.person_id, NULL FROM referral.referral r
                      WHERE r.id = holder_accounts.referral_id
                  UNION ALL
                  SELECT NULL, NULL, holder_accounts.referral_id) h,
                 LATERAL (
                     SELECT t.id FROM referral.account t
                         WHERE t.referrer_id = h.a
                     UNION ALL
                     SELECT t.id FROM referral.account t
                         WHERE t.person_id = h.b
                     UNION ALL
                     SELECT t.id FROM referral.account t
                         WHERE t.referrer_id IS NULL AND t.person_id IS NULL
                               AND t.referral_id = h.c) o
                 JOIN referral.account a ON a.id = o.id
            WHERE a.organisation_id = holder_accounts.organisation_id
                  AND a.kind = holder_accounts.kind
                  AND a.unit = holder_accounts.unit
            ORDER BY 1);
END
$$;


-- Uses credit, points or a discount on an order.  Whose: referrer_id, or
-- referral_id or external_id for a referee.  Options: kind (credit; discount),
-- unit (default: the organisation's currency; coupons, points, messages ...),
-- amount (default: all that is there), order_amount (what the order costs: no
-- more than that of money is used, and coupons are reckoned from it), partial
-- (default true: less is used where there is less), idempotency_key (default:
-- the order, the holder, kind and unit).  Returns redemption_id, amount,
-- remaining, and for coupons discount; what ends first is used first.

CREATE FUNCTION referral.redeem(organisation_id bigint, order_ref text,
                                options jsonb)
    RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o         referral.organisation;
    n         referral.redemption;
    was       referral.redemption;
    money     boolean;
    total     bigint;
    usable    bigint;
    partial   boolean;
    sources   bigint[];
    targets   bigint[];
    rewards   bigint[];
    postings  referral.posting[];
BEGIN
    o := referral.organisation_row(organisation_id);
    options := jsonb_strip_nulls(referral.options_check('redeem', options,
        '{referrer_id,referral_id,external_id,kind,unit,amount,order_amount,'
        'partial,idempotency_key}'));
    n := referral.redeem_request(o, order_ref, options);
    total := (options ->> 'order_amount')::bigint;
    partial := coalesce((options ->> 'partial')::boolean, true);
    PERFORM referral.referee_lock(o.id, '{}',
                                  ARRAY['redemption/' || n.idempotency_key]);

    SELECT * INTO was FROM referral.redemption d
        WHERE d.organisation_id = o.id
              AND d.idempotency_key = n.idempotency_key;

    IF FOUND THEN
        PERFORM referral.request_repeated(n.idempotency_key, was.request_hash,
                                          n.request_hash);
        RETURN jsonb_strip_nulls(jsonb_build_object('redemption_id', was.id,
                   'amount', was.amount, 'discount', was.discount,
                   'status', was.status));
    END IF;

    SELECT u.kind = 'money' INTO money FROM referral.unit u
        WHERE u.code = n.unit;
    sources := referral.holder_accounts(o.id, n.referrer_id, n.referral_id,
                                        n.kind, n.unit);
    SELECT coalesce(array_agg(referral.account_get(o.id, 'redeemed', n.unit,
                        a.referrer_id, a.person_id, a.referral_id)
                        ORDER BY a.id), '{}')
        INTO targets
        FROM referral.account a WHERE a.id = ANY (sources);
    rewards := referral.accounts_use(sources, targets);

    SELECT coalesce(sum(greatest(referral.account_usable(s, now()), 0)), 0)
        INTO usable
        FROM unnest(sources) s;

    n.amount := coalesce(n.amount, CASE WHEN n.unit = 'coupons' THEN 1
                                        ELSE usable END);

    IF money AND total IS NOT NULL THEN
        n.amount := least(n.amount, total);
    END IF;

    IF n.amount > usable AND partial THEN
        n.amount := usable;
    END IF;

    postings := CASE WHEN n.amount BETWEEN 1 AND usable
                     THEN referral.accounts_take(sources, targets, n.amount,
                                                 now()) END;

    IF postings IS NULL THEN
        RAISE EXCEPTION 'there is % of % to redeem, not %',
                        referral.money_text(usable, n.unit), n.kind,
                        referral.money_text(n.amount, n.unit)
            USING ERRCODE = 'RF110',
                  HINT = 'The view referral.balances shows what there is.';
    END IF;

    IF n.unit = 'coupons' THEN
        n.discount := referral.coupon_value(postings, total);
    END IF;

    INSERT INTO referral.redemption (organisation_id, referrer_id, referral_id,
                                     order_ref, kind, unit, amount, discount,
                                     idempotency_key, request_hash)
        VALUES (o.id, n.referrer_id, n.referral_id, n.order_ref, n.kind,
                n.unit, n.amount, n.discount, n.idempotency_key,
                n.request_hash)
        RETURNING * INTO n;

    PERFORM referral.transfer_post(o.id, 'redemption',
                format('redemption:%s', n.id), postings,
                referral_id => n.referral_id);
    PERFORM referral.reward_refresh(rewards);

    RETURN jsonb_strip_nulls(jsonb_build_object('redemption_id', n.id,
               'amount', n.amount, 'discount', n.discount, 'status', n.status,
               'remaining', usable - n.amount));
END
$$;

-- What a request for a redemption says, checked.

CREATE FUNCTION referral.redeem_request(o referral.organisation,
                                        order_ref text, options jsonb)
    RETURNS referral.redemption
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    n      referral.redemption;
    given  record;
    found_ bigint[];
BEGIN
    n.kind := 'credit';
    n.unit := o.currency;
    n := referral.options_apply('redeem', n, options - '{referrer_id,'
             'referral_id,external_id,order_amount,partial}'::text[]);
    SELECT * INTO given
        FROM referral.options_apply('redeem',
                 NULL::referral.redemption, jsonb_build_object(
                     'referrer_id', options -> 'referrer_id',
                     'referral_id', options -> 'referral_id',
                     'amount', options -> 'order_amount')) x;

    IF n.kind NOT IN ('credit', 'discount') OR n.amount <= 0
       OR given.amount < 0 OR coalesce(length(order_ref), 0)
                              NOT BETWEEN 1 AND 200
       OR options ? 'partial' AND jsonb_typeof(options -> 'partial')
                                  <> 'boolean'
       OR NOT EXISTS (SELECT FROM referral.unit u WHERE u.code = n.unit)
    THEN
        RAISE EXCEPTION 'redeem(): the request can not be read'
            USING ERRCODE = 'RF010',
                  HINT = 'kind: credit or discount; unit: one of'
                         ' referral.unit; amount above 0, order_amount 0 or'
                         ' more, whole numbers; partial: true or false;'
                         ' order_ref: 1 to 200 characters.';
    END IF;

    SELECT array_agg(f.id) INTO found_
        FROM referral.referral f
        WHERE f.id IN (SELECT given.referral_id
                       UNION ALL
                       SELECT i.referral_id
                           FROM referral.referee_identity i
                           WHERE i.organisation_id = o.id AND i.credited
                                 AND i.hash = sha256(convert_to('external:'
                                         || (options ->> 'external_id'),
                                         'UTF8')))
              AND f.organisation_id = o.id;

    SELECT f.id INTO n.referrer_id FROM referral.referrer f
        WHERE f.id = given.referrer_id AND f.organisation_id = o.id;
    n.referral_id := found_[1];

    IF num_nonnulls(n.referrer_id, n.referral_id) <> 1
       OR cardinality(found_) > 1
    THEN
        RAISE EXCEPTION 'redeem(): % says whose reward is used',
                        CASE WHEN num_nonnulls(n.referrer_id, n.referral_id)
                                  = 0 THEN 'nothing'
                             ELSE 'more than one thing' END
            USING ERRCODE = 'RF102',
                  HINT = 'Give referrer_id, or referral_id or external_id of a'
                         ' credited referee; referral_id of one who was'
                         ' referred in several programs.';
    END IF;

    n.order_ref := order_ref;
    n.idempotency_key := coalesce(n.idempotency_key,
        format('order:%s:%s%s:%s:%s', order_ref,
               CASE WHEN n.referrer_id IS NULL THEN 'e' ELSE 'r' END,
               coalesce(n.referrer_id, n.referral_id), n.kind, n.unit));
    n.request_hash := sha256(convert_to(order_ref || options::text, 'UTF8'));

    RETURN n;
END
$$;

-- What coupons take off an order: each its rate of what is left.

CREATE FUNCTION referral.coupon_value(postings referral.posting[],
                                      total bigint) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l     record;
    left_ bigint := total;
BEGIN
    FOR l IN
        SELECT w.coupon_bp, t.amount
            FROM unnest(postings) t
                 JOIN referral.reward w ON w.id = t.reward_id
            WHERE t.amount > 0 AND w.coupon_bp IS NOT NULL
            ORDER BY w.id
    LOOP
        FOR i IN 1 .. l.amount LOOP
            left_ := left_ - least(left_, referral.rate_of(left_,
                                                           l.coupon_bp));
        END LOOP;
    END LOOP;

    RETURN total - left_;
END
$$;


-- The order was cancelled: gives back what was used on it, all of it.  What
-- has ended since expires again with the next housekeeping.  Again: nothing.

CREATE FUNCTION referral.redemption_reverse(id bigint,
                                            reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    n         referral.redemption;
    used      bigint;
    others    bigint[];
    rewards   bigint[];
    sources   bigint[];
    postings  referral.posting[];
BEGIN
    SELECT * INTO n FROM referral.redemption d
        WHERE d.id = redemption_reverse.id
              AND (referral.organisation_scope() IS NULL
                   OR d.organisation_id = referral.organisation_scope());

    IF NOT FOUND THEN
        RAISE EXCEPTION 'redemption %: there is none with this id, or it is'
                        ' not yours', coalesce(redemption_reverse.id::text,
                                               '(null)')
            USING ERRCODE = 'RF112',
                  HINT = 'The view referral.redemptions lists them.';
    END IF;

    SELECT t.id INTO used FROM referral.transfer t
        WHERE t.organisation_id = n.organisation_id
              AND t.idempotency_key = format('redemption:%s', n.id);
    postings := referral.postings_back(used);
    SELECT array_agg(DISTINCT p.reward_id),
           array_agg(DISTINCT p.account_id) FILTER (WHERE p.amount > 0),
           array_agg(DISTINCT p.account_id) FILTER (WHERE p.amount < 0)
        INTO rewards, sources, others
        FROM unnest(postings) p;

    UPDATE referral.redemption d
        SET status = 'reversed', reversed_at = now(),
            reason = left(redemption_reverse.reason, 500)
        WHERE d.id = n.id AND d.status = 'used';

    IF NOT FOUND THEN
        RETURN;
    END IF;

    PERFORM referral.account_lock(sources || others);
    PERFORM referral.transfer_post(n.organisation_id, 'redemption_return',
                format('redemption:%s:return', n.id), postings,
                referral_id => n.referral_id, reverses => used);
    PERFORM referral.accounts_use(sources);
    PERFORM referral.reward_refresh(rewards);
    PERFORM referral.reward_settle(s) FROM unnest(sources) s;
END
$$;


-- Gives rewards of one referrer to another of the organisation.  Options:
-- unit (default: the organisation's currency), amount (default: all), account
-- (payable; credit, discount), idempotency_key (required).  Returns the
-- transfer of the ledger.

CREATE FUNCTION referral.reward_transfer(from_referrer bigint,
                                         to_referrer bigint, options jsonb,
                                         reason text DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f         referral.referrer := referral.referrer_row(from_referrer);
    g         referral.referrer := referral.referrer_row(to_referrer);
    n         referral.redemption;
    key       text := options ->> 'idempotency_key';
    kind      text := coalesce(options ->> 'account', 'payable');
    was       bigint;
    source    bigint;
    target    bigint;
    usable    bigint;
    rewards   bigint[];
    postings  referral.posting[];
BEGIN
    options := jsonb_strip_nulls(referral.options_check('reward_transfer',
                   options, '{unit,amount,account,idempotency_key}'));
    n.unit := (SELECT o.currency FROM referral.organisation o
                   WHERE o.id = f.organisation_id);
    n := referral.options_apply('reward_transfer', n, options - 'account');

    IF f.organisation_id <> g.organisation_id OR f.id = g.id
       OR f.status <> 'active' OR g.status <> 'active'
    THEN
        RAISE EXCEPTION 'referrer % can not give rewards to referrer %', f.id,
                        g.id
            USING ERRCODE = 'RF113',
                  HINT = 'Both are active, and of one organisation.';
    END IF;

    IF kind NOT IN ('payable', 'credit', 'discount') OR n.amount <= 0
       OR coalesce(length(key), 0) NOT BETWEEN 1 AND 150
    THEN
        RAISE EXCEPTION 'reward_transfer(): the request can not be read'
            USING ERRCODE = 'RF010',
                  HINT = 'account: payable, credit or discount; amount above'
                         ' 0; idempotency_key: 1 to 150 characters.';
    END IF;

    key := format('transfer:%s:%s:%s', f.id, g.id, key);
    PERFORM referral.referee_lock(f.organisation_id, '{}', ARRAY[key]);

    SELECT t.id INTO was FROM referral.transfer t
        WHERE t.organisation_id = f.organisation_id
              AND t.idempotency_key = key;

    IF FOUND THEN
        RETURN was;
    END IF;

    source := referral.account_get(f.organisation_id, kind, n.unit, f.id);
    target := referral.account_get(f.organisation_id, kind, n.unit, g.id);
    rewards := referral.accounts_use(ARRAY[source, target]);
    usable := referral.account_usable(source, now());
    n.amount := coalesce(n.amount, usable);
    postings := CASE WHEN n.amount BETWEEN 1 AND usable
                     THEN referral.accounts_take(ARRAY[source], ARRAY[target],
                              n.amount, now()) END;

    IF postings IS NULL THEN
        RAISE EXCEPTION 'referrer % has %, not %', f.id,
                        referral.money_text(usable, n.unit),
                        referral.money_text(n.amount, n.unit)
            USING ERRCODE = 'RF110', HINT = 'Amounts are in minor units.';
    END IF;

    was := referral.transfer_post(f.organisation_id, 'transfer', key,
                                  postings);
    PERFORM referral.reward_settle(target);
    PERFORM referral.reward_refresh(rewards);
    PERFORM referral.audit_write(f.organisation_id, 'transfer', 'referrer',
                                 f.id, ARRAY[format('to %s', g.id)], reason);

    RETURN was;
END
$$;


-- Does the same to many, up to 1,000, each for itself: a row per id, in order,
-- with the outcome done or error, and the error's code and message.  Actions:
-- referral_accept, referral_reject, referral_cancel, referral_expire,
-- reward_approve, reward_reject, payout_approve, payout_reject.

CREATE FUNCTION referral.bulk(action text, ids bigint[],
                              reason text DEFAULT NULL)
    RETURNS TABLE (id bigint, outcome text, error text, message text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF action NOT IN ('referral_accept', 'referral_reject', 'referral_cancel',
                      'referral_expire', 'reward_approve', 'reward_reject',
                      'payout_approve', 'payout_reject')
       OR action IS NULL OR coalesce(cardinality(ids), 0) NOT BETWEEN 1
                                                              AND 1000
    THEN
        RAISE EXCEPTION 'bulk(): the request can not be read'
            USING ERRCODE = 'RF010',
                  HINT = 'Actions: referral_accept, referral_reject,'
                         ' referral_cancel, referral_expire, reward_approve,'
                         ' reward_reject, payout_approve, payout_reject; 1 to'
                         ' 1000 ids.';
    END IF;

    PERFORM referral.bulk_lock(split_part(action, '_', 1), ids);

    FOR id IN SELECT DISTINCT i FROM unnest(ids) i ORDER BY 1 LOOP
        outcome := 'done';
        error := NULL;
        message := NULL;

        BEGIN
            CASE action
            WHEN 'referral_accept' THEN
                PERFORM referral.referral_accept(id, reason);
            WHEN 'referral_reject' THEN
                PERFORM referral.referral_reject(id, reason);
            WHEN 'referral_cancel' THEN
                PERFORM referral.referral_cancel(id, reason);
            WHEN 'referral_expire' THEN
                PERFORM referral.referral_set_status(id, 'expired', reason);
            WHEN 'reward_approve' THEN
                PERFORM referral.reward_approve(id, reason);
            WHEN 'reward_reject' THEN
                PERFORM referral.reward_reject(id, reason);
            WHEN 'payout_approve' THEN
                PERFORM referral.payout_approve(id);
            ELSE
                PERFORM referral.payout_reject(id, reason);
            END CASE;

        EXCEPTION WHEN OTHERS THEN
            IF SQLSTATE NOT LIKE 'RF%' THEN
                RAISE;
            END IF;

            outcome := 'error';
            error := SQLSTATE;
            message := SQLERRM;
        END;

        RETURN NEXT;
    END LOOP;
END
$$;

-- All that a bulk operation will lock, in the one order.

CREATE FUNCTION referral.bulk_lock(what text, ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rewards    bigint[];
    referrals  bigint[] := ids;
BEGIN
    IF what = 'reward' THEN
        rewards := ids;

    ELSIF what = 'payout' THEN
        SELECT array_agg(DISTINCT e.reward_id) INTO rewards
            FROM referral.transfer t
                 JOIN referral.entry e ON e.transfer_id = t.id
            WHERE t.payout_id = ANY (ids);

    ELSE
        SELECT array_agg(w.id) INTO rewards
            FROM referral.reward w WHERE w.referral_id = ANY (ids);
    END IF;

    IF what <> 'referral' THEN
        SELECT array_agg(DISTINCT w.referral_id) INTO referrals
            FROM referral.reward w WHERE w.id = ANY (rewards);
    END IF;

    PERFORM FROM referral.referral r WHERE r.id = ANY (referrals)
        ORDER BY r.id FOR NO KEY UPDATE;
    PERFORM referral.code_lock((
        SELECT array_agg(r.code_id) FROM referral.referral r
            WHERE what = 'referral' AND r.id = ANY (ids) AND r.credited));
    PERFORM FROM referral.payout p
        WHERE what = 'payout' AND p.id = ANY (ids)
        ORDER BY p.id FOR NO KEY UPDATE;
    PERFORM referral.account_lock((
        SELECT array_agg(DISTINCT a)
            FROM referral.reward w,
                 unnest(ARRAY['expense', 'reserved', 'payable']) side,
                 LATERAL unnest(ARRAY[w.pending_id, w.account_id]
                     || referral.holder_accounts(w.organisation_id,
                            w.referrer_id,
                            CASE WHEN w.referrer_id IS NULL
                                 THEN w.referral_id END, side, w.unit)) a
            WHERE w.id = ANY (rewards)));
    PERFORM FROM referral.reward w WHERE w.id = ANY (rewards)
        ORDER BY w.id FOR NO KEY UPDATE;
END
$$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (25, 'redemption');

COMMIT;
