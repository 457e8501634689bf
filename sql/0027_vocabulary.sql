-- Copyright (C) The nginx referral module authors
--
-- The same rows in the words of five kinds of programs.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- Other systems' words.  Each family of views says what referrals and rewards
-- are in the vocabulary of one of the five specifications that this schema was
-- made from, for applications that were written to it; the states behind them
-- are richer, and the README has the table.

-- the commission is the partner's own, or that of the program of its code
CREATE VIEW referral.seed_insurance_partner AS
    SELECT f.id, f.organisation_id, f.external_id AS user_id,
           k.code AS referral_code,
           upper(f.status) AS status,
           round(coalesce(f.commission_bp, k.rate_bp) / 10000.0, 4)
               AS commission_rate,
           n.total_referrals, n.successful_referrals, e.unit AS currency,
           coalesce(e.total, 0) AS total_earnings, f.created_at, f.updated_at
        FROM referral.referrer f
             CROSS JOIN LATERAL (
                 SELECT count(*) AS total_referrals,
                        count(r.converted_at) AS successful_referrals
                     FROM referral.referral r WHERE r.referrer_id = f.id) n
             LEFT JOIN LATERAL (
                 SELECT c.code,
                        (SELECT min(u.rate_bp)
                             FROM referral.reward_rule u
                             WHERE u.program_id = c.program_id
                                   AND u.version = (
                                       SELECT max(t.version)
                                           FROM referral.reward_rule_set t
                                           WHERE t.program_id = c.program_id
                                                 AND t.code_id IS NULL)
                                   AND u.beneficiary = 'referrer'
                             HAVING count(DISTINCT u.rate_bp) = 1) AS rate_bp
                     FROM referral.code c
                     WHERE c.referrer_id = f.id AND c.status = 'active'
                     ORDER BY c.own DESC NULLS LAST, c.id LIMIT 1) k ON true
             LEFT JOIN LATERAL (
                 SELECT w.unit, sum(w.amount - w.reversed - w.returned)::bigint
                            AS total
                     FROM referral.reward w
                          JOIN referral.unit u ON u.code = w.unit
                                                  AND u.kind = 'money'
                     WHERE w.referrer_id = f.id
                     GROUP BY w.unit) e ON true
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR f.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.seed_insurance_referral AS
    SELECT r.id, r.organisation_id, r.referrer_id AS partner_id,
           r.referee_external_id AS lead_id, c.code AS referral_code,
           CASE WHEN r.source IN ('website', 'mobile_app', 'email', 'phone',
                                  'in_person', 'social_media')
                THEN upper(r.source) ELSE 'OTHER' END AS source,
           CASE WHEN r.status = 'registered' THEN 'ACCEPTED'
                WHEN r.status = 'rewarded' THEN 'CONVERTED'
                WHEN r.status IN ('declined', 'cancelled', 'superseded')
                THEN 'REJECTED'
                ELSE upper(r.status) END AS status,
           r.created_at AS referred_at,
           coalesce(r.accepted_at, r.registered_at) AS accepted_at,
           coalesce(r.rejected_at, r.declined_at, r.cancelled_at,
                    r.superseded_at) AS rejected_at,
           r.converted_at, r.value AS conversion_value, r.currency
        FROM referral.referral r
             LEFT JOIN referral.code c ON c.id = r.code_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.seed_insurance_reward AS
    SELECT w.id, w.organisation_id, w.referrer_id AS partner_id,
           w.referral_id, w.amount, w.unit AS currency,
           CASE w.status WHEN 'held' THEN 'PENDING'
                         WHEN 'pending' THEN 'CALCULATED'
                         WHEN 'approved' THEN 'APPROVED'
                         WHEN 'paid' THEN 'PAID'
                         WHEN 'redeemed' THEN 'PAID'
                         WHEN 'transferred' THEN 'PAID'
                         ELSE 'CANCELLED' END AS status,
           w.earned_at AS calculated_at, o.paid_at,
           o.method AS payment_method, o.reference AS transaction_id
        FROM referral.reward w
             LEFT JOIN LATERAL (
                 SELECT p.paid_at, p.method, p.reference
                     FROM referral.entry e
                          JOIN referral.transfer t ON t.id = e.transfer_id
                          JOIN referral.payout p ON p.id = t.payout_id
                     WHERE e.reward_id = w.id AND p.status = 'paid'
                     ORDER BY p.id DESC LIMIT 1) o ON true
        WHERE w.beneficiary = 'referrer'
              AND ((SELECT referral.organisation_scope()) IS NULL
                   OR w.organisation_id
                      = (SELECT referral.organisation_scope()));

CREATE VIEW referral.seed_education_referral AS
    SELECT r.id, r.organisation_id, r.program_id, r.code_id, r.referrer_id,
           r.referee_external_id AS referee_id,
           CASE WHEN r.status IN ('pending', 'accepted', 'registered')
                THEN 'pending'
                WHEN r.status = 'converted' THEN 'converted'
                WHEN r.status IN ('rewarded', 'paid') THEN 'rewarded'
                ELSE 'expired' END AS status,
           r.value AS conversion_value, w.total AS reward_amount, w.unit,
           r.created_at AS referred_at, r.converted_at, r.rewarded_at
        FROM referral.referral r
             LEFT JOIN LATERAL (
                 SELECT sum(w.amount)::bigint AS total, min(w.unit) AS unit
                     FROM referral.reward w
                     WHERE w.referral_id = r.id
                           AND w.beneficiary = 'referrer'
                     HAVING count(DISTINCT w.unit) = 1) w ON true
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.seed_education_reward AS
    SELECT w.id, w.organisation_id, w.referral_id,
           CASE w.beneficiary WHEN 'referrer' THEN f.external_id
                              ELSE r.referee_external_id END AS recipient_id,
           w.kind AS reward_type, w.amount AS reward_amount, w.unit,
           CASE WHEN w.status IN ('pending', 'held') THEN 'pending'
                WHEN w.status = 'approved' THEN 'approved'
                WHEN w.status IN ('paid', 'redeemed', 'transferred')
                THEN 'paid'
                ELSE 'cancelled' END AS status,
           (SELECT p.reference
                FROM referral.entry e
                     JOIN referral.transfer t ON t.id = e.transfer_id
                     JOIN referral.payout p ON p.id = t.payout_id
                WHERE e.reward_id = w.id AND p.status = 'paid'
                ORDER BY p.id DESC LIMIT 1) AS payment_reference,
           coalesce(w.closed_at, w.approved_at) AS processed_at,
           w.earned_at AS created_at
        FROM referral.reward w
             JOIN referral.referral r ON r.id = w.referral_id
             LEFT JOIN referral.referrer f ON f.id = w.referrer_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR w.organisation_id = (SELECT referral.organisation_scope());

CREATE FUNCTION referral.seed_telehealth_state(of_referral bigint,
                                               whose text,
                                               OUT state text,
                                               OUT amount bigint,
                                               OUT earned_at timestamptz,
                                               OUT redeemed_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN w.status IN ('pending', 'held') THEN 'pending'
                WHEN w.status = 'approved' THEN 'earned'
                WHEN w.status IN ('paid', 'redeemed', 'transferred')
                THEN 'redeemed'
                ELSE 'expired' END, w.amount, w.earned_at,
           CASE WHEN w.status IN ('paid', 'redeemed', 'transferred')
                THEN w.closed_at END
        FROM referral.reward w
        WHERE w.referral_id = of_referral AND w.beneficiary = whose
        ORDER BY w.id LIMIT 1
$$;

CREATE VIEW referral.seed_telehealth_referral AS
    SELECT r.id, r.organisation_id, c.code AS referral_code, r.referrer_id,
           r.referee_external_id AS referee_patient_id, r.program_id,
           r.source AS referral_source,
           CASE WHEN r.status = 'accepted' THEN 'pending'
                WHEN r.status IN ('rewarded', 'paid') THEN 'converted'
                WHEN r.status IN ('rejected', 'cancelled', 'superseded')
                THEN 'declined'
                ELSE r.status END AS status,
           r.registered_at AS referee_registered_at,
           (SELECT v.order_ref FROM referral.conversion v
                WHERE v.referral_id = r.id AND v.kind = 'consultation'
                ORDER BY v.id LIMIT 1) AS first_consultation_id,
           (SELECT v.order_ref FROM referral.conversion v
                WHERE v.referral_id = r.id AND v.kind <> 'consultation'
                ORDER BY v.id LIMIT 1) AS first_order_id,
           r.converted_at, a.state AS referrer_reward_status,
           a.earned_at AS referrer_reward_earned_at,
           a.redeemed_at AS referrer_reward_redeemed_at,
           a.amount AS referrer_reward_amount,
           b.state AS referee_reward_status,
           b.redeemed_at AS referee_reward_redeemed_at,
           b.amount AS referee_reward_amount,
           coalesce((SELECT sum(n.n)::bigint FROM referral.counters n
                         WHERE n.code = c.code COLLATE "default"
                                  AND n.type = 'click'
                               AND n.verdict IN ('valid', 'unverified')
                               AND n.kind IN ('person', 'unknown')), 0)
               AS clicks,
           r.clicked_at AS last_clicked_at, r.expires_at, r.created_at,
           r.updated_at
        FROM referral.referral r
             LEFT JOIN referral.code c ON c.id = r.code_id
             LEFT JOIN LATERAL referral.seed_telehealth_state(r.id, 'referrer')
                 a ON true
             LEFT JOIN LATERAL referral.seed_telehealth_state(r.id, 'referee')
                 b ON true
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.seed_telehealth_reward AS
    SELECT w.id, w.organisation_id, w.referral_id,
           CASE w.beneficiary WHEN 'referrer' THEN f.external_id
                              ELSE r.referee_external_id END AS patient_id,
           w.kind AS reward_type, w.amount AS reward_amount, w.unit,
           coalesce(w.item, w.slot) AS reward_description,
           CASE WHEN w.status = 'approved' THEN 'available'
                WHEN w.status IN ('paid', 'redeemed', 'transferred')
                THEN 'used'
                WHEN w.status = 'expired' THEN 'expired'
                WHEN w.status IN ('pending', 'held') THEN 'pending'
                ELSE 'cancelled' END AS status,
           d.order_ref AS used_on_order_id, d.used_at,
           w.valid_until AS expires_at, w.earned_at AS created_at
        FROM referral.reward w
             JOIN referral.referral r ON r.id = w.referral_id
             LEFT JOIN referral.referrer f ON f.id = w.referrer_id
             LEFT JOIN LATERAL (
                 SELECT n.order_ref, n.used_at
                     FROM referral.entry e
                          JOIN referral.transfer t ON t.id = e.transfer_id
                          JOIN referral.redemption n
                              ON t.idempotency_key = 'redemption:' || n.id
                                 AND n.organisation_id = t.organisation_id
                     WHERE e.reward_id = w.id AND n.status = 'used'
                     ORDER BY n.id DESC LIMIT 1) d ON true
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR w.organisation_id = (SELECT referral.organisation_scope());

-- per currency: earned is net of what was taken back; pending_payout what can
-- be asked for, and what was and is not paid yet
CREATE VIEW referral.seed_vet_referrer AS
    SELECT f.id, f.organisation_id, f.external_id AS user_id,
           f.type AS referrer_type,
           (SELECT c.code FROM referral.code c
                WHERE c.referrer_id = f.id AND c.status = 'active'
                ORDER BY c.own DESC NULLS LAST, c.id LIMIT 1)
               AS referral_code,
           n.total_referrals, n.successful_referrals, e.unit,
           coalesce(e.total, 0) AS total_earned,
           coalesce((SELECT sum(t.amount)::bigint
                         FROM referral.account a
                              JOIN referral.entry t ON t.account_id = a.id
                         WHERE a.referrer_id = f.id AND a.unit = e.unit
                               AND a.kind IN ('payable', 'reserved')), 0)
               AS pending_payout,
           f.status = 'active' AS is_active, f.created_at
        FROM referral.referrer f
             CROSS JOIN LATERAL (
                 SELECT count(*) AS total_referrals,
                        count(r.converted_at) AS successful_referrals
                     FROM referral.referral r WHERE r.referrer_id = f.id) n
             LEFT JOIN LATERAL (
                 SELECT w.unit, sum(w.amount - w.reversed - w.returned)::bigint
                            AS total
                     FROM referral.reward w
                          JOIN referral.unit u ON u.code = w.unit
                                                  AND u.kind = 'money'
                     WHERE w.referrer_id = f.id
                     GROUP BY w.unit) e ON true
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR f.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.seed_vet_referral AS
    SELECT r.id, r.organisation_id, r.referrer_id, c.code AS code_used,
           r.referee_external_id AS new_customer,
           CASE WHEN r.status IN ('accepted', 'registered') THEN 'pending'
                WHEN r.status = 'rewarded' THEN 'converted'
                WHEN r.status IN ('rejected', 'declined', 'superseded')
                THEN 'cancelled'
                ELSE r.status END AS status,
           coalesce(r.clicked_at, r.created_at) AS code_used_at,
           r.converted_at,
           (SELECT v.amount FROM referral.conversion v
                WHERE v.referral_id = r.id ORDER BY v.id LIMIT 1)
               AS first_purchase_amount,
           (SELECT sum(w.amount)::bigint FROM referral.reward w
                WHERE w.referral_id = r.id AND w.beneficiary = 'referrer'
                      AND w.unit = r.currency) AS referrer_reward_amount,
           r.paid_at AS referrer_reward_paid_at,
           (SELECT sum(coalesce(d.discount, d.amount))::bigint
                FROM referral.redemption d
                WHERE d.referral_id = r.id AND d.status = 'used'
                      AND d.kind = 'discount')
               AS new_customer_discount_applied,
           r.currency, r.created_at
        FROM referral.referral r
             LEFT JOIN referral.code c ON c.id = r.code_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.seed_vet_payout AS
    SELECT o.id, o.organisation_id, o.referrer_id, o.amount, o.unit, o.method,
           CASE o.status WHEN 'requested' THEN 'pending'
                         WHEN 'rejected' THEN 'cancelled'
                         ELSE o.status END AS status,
           ARRAY(SELECT DISTINCT w.referral_id
                     FROM referral.transfer t
                          JOIN referral.entry e ON e.transfer_id = t.id
                          JOIN referral.reward w ON w.id = e.reward_id
                     WHERE t.payout_id = o.id ORDER BY 1) AS referrals,
           o.requested_at, o.approved_by, o.approved_at, o.paid_at, o.notes
        FROM referral.payout o
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR o.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.seed_saas_code AS
    SELECT c.id, p.organisation_id, f.external_id AS user_id, c.code,
           coalesce((SELECT sum(n.n)::bigint FROM referral.counters n
                         WHERE n.code = c.code COLLATE "default"
                                  AND n.type = 'click'
                               AND n.verdict IN ('valid', 'unverified')
                               AND n.kind IN ('person', 'unknown')), 0)
               AS clicks,
           (SELECT count(r.registered_at) FROM referral.referral r
                WHERE r.code_id = c.id AND r.status <> 'superseded')
               AS signups,
           (SELECT count(r.converted_at) FROM referral.referral r
                WHERE r.code_id = c.id) AS conversions,
           c.created_at
        FROM referral.code c
             JOIN referral.program p ON p.id = c.program_id
             LEFT JOIN referral.referrer f ON f.id = c.referrer_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR p.organisation_id = (SELECT referral.organisation_scope());

-- the words end where the referral came to: there is none for how it ended
CREATE VIEW referral.seed_saas_referral AS
    SELECT r.id, r.organisation_id, f.external_id AS referrer,
           r.referee_external_id AS referee, c.code AS referral_code,
           CASE WHEN r.converted_at IS NOT NULL THEN 'converted'
                WHEN r.registered_at IS NOT NULL THEN 'signed_up'
                ELSE 'clicked' END AS status,
           r.click_id, coalesce(r.clicked_at, r.created_at) AS clicked_at,
           r.registered_at AS signed_up_at, r.converted_at
        FROM referral.referral r
             LEFT JOIN referral.code c ON c.id = r.code_id
             LEFT JOIN referral.referrer f ON f.id = r.referrer_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.seed_saas_reward AS
    SELECT w.id, w.organisation_id,
           CASE w.beneficiary WHEN 'referrer' THEN f.external_id
                              ELSE r.referee_external_id END AS user_id,
           w.referral_id,
           CASE w.kind WHEN 'messages' THEN 'extra_messages'
                       WHEN 'requests' THEN 'extra_requests'
                       WHEN 'feature_days' THEN 'feature_unlock'
                       ELSE 'account_credit' END AS reward_type,
           CASE WHEN w.status IN ('pending', 'held') THEN 'pending'
                WHEN w.status = 'approved' THEN 'active'
                WHEN w.status IN ('paid', 'redeemed', 'transferred')
                THEN 'redeemed'
                ELSE 'expired' END AS status,
           w.amount, w.unit,
           '+' || referral.money_text(w.amount, w.unit)
               || coalesce(' of ' || w.item, '') AS description,
           w.valid_from, w.valid_until, w.earned_at AS created_at,
           CASE WHEN w.status IN ('paid', 'redeemed', 'transferred')
                THEN w.closed_at END AS redeemed_at
        FROM referral.reward w
             JOIN referral.referral r ON r.id = w.referral_id
             LEFT JOIN referral.referrer f ON f.id = w.referrer_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR w.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.seed_insurance_partner,
    referral.seed_insurance_referral, referral.seed_insurance_reward,
    referral.seed_education_referral, referral.seed_education_reward,
    referral.seed_telehealth_referral, referral.seed_telehealth_reward,
    referral.seed_vet_referrer, referral.seed_vet_referral,
    referral.seed_vet_payout,
    referral.seed_saas_code, referral.seed_saas_referral,
    referral.seed_saas_reward TO referral_app, referral_analyst;


REVOKE ALL ON FUNCTION
    referral.payout_policy_set(bigint, text, jsonb),
    referral.payout_request(bigint, jsonb),
    referral.payout_approve(bigint),
    referral.payout_reject(bigint, text),
    referral.payout_cancel(bigint, text),
    referral.payout_pay(bigint, text, text),
    referral.statement(bigint, date, date),
    referral.redeem(bigint, text, jsonb),
    referral.redemption_reverse(bigint, text),
    referral.reward_transfer(bigint, bigint, jsonb, text),
    referral.bulk(text, bigint[], text),
    referral.professional_partner_ensure(bigint, text, jsonb, jsonb),
    referral.professional_referral_record(bigint, text, jsonb),
    referral.professional_referral_set_status(bigint, text),
    referral.payout_scheduled(timestamptz, int),
    referral.my_statement(date, date),
    referral.my_payout_request(jsonb),
    referral.my_payout_cancel(bigint),
    referral.ledger_check_payouts(),
    referral.seed_telehealth_state(bigint, text)
    FROM PUBLIC;

GRANT EXECUTE ON FUNCTION
    referral.payout_policy_set(bigint, text, jsonb),
    referral.payout_request(bigint, jsonb),
    referral.payout_approve(bigint),
    referral.payout_reject(bigint, text),
    referral.payout_cancel(bigint, text),
    referral.payout_pay(bigint, text, text),
    referral.statement(bigint, date, date),
    referral.redeem(bigint, text, jsonb),
    referral.redemption_reverse(bigint, text),
    referral.reward_transfer(bigint, bigint, jsonb, text),
    referral.bulk(text, bigint[], text),
    referral.professional_partner_ensure(bigint, text, jsonb, jsonb),
    referral.professional_referral_record(bigint, text, jsonb),
    referral.professional_referral_set_status(bigint, text),
    referral.payout_scheduled(timestamptz, int),
    referral.seed_telehealth_state(bigint, text)
    TO referral_app;
GRANT EXECUTE ON FUNCTION referral.seed_telehealth_state(bigint, text)
    TO referral_analyst;
GRANT EXECUTE ON FUNCTION referral.payout_scheduled(timestamptz, int)
    TO referral_worker;
GRANT EXECUTE ON FUNCTION referral.my_statement(date, date),
    referral.my_payout_request(jsonb), referral.my_payout_cancel(bigint)
    TO referral_partner;

INSERT INTO referral.schema_migration (version, name)
    VALUES (27, 'vocabulary');

COMMIT;
