-- Copyright (C) The nginx referral module authors
--
-- Refunds, the check of rewards against the ledger, and what is read of both.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

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

INSERT INTO referral.schema_migration (version, name) VALUES (23, 'refund');

COMMIT;
