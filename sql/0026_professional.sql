-- Copyright (C) The nginx referral module authors
--
-- Professionals who refer to each other, which no money is paid for; and what
-- is read of payouts.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- Referrals between professionals: a practice sends patients to partners, and
-- gets some from them.  Nothing is paid; what counts is who owes whom.

CREATE TABLE referral.professional_partner (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL REFERENCES referral.organisation,
    name             text         NOT NULL CHECK (length(name)
                                                  BETWEEN 1 AND 200),
    specialty        text         CHECK (length(specialty) <= 200),
    external_id      text         CHECK (length(external_id)
                                         BETWEEN 1 AND 200),
    person_id        bigint       REFERENCES referral.person,
    active           boolean      NOT NULL DEFAULT true,
    created_at       timestamptz  NOT NULL DEFAULT now(),
    UNIQUE (organisation_id, external_id),
    UNIQUE (organisation_id, name)
);

CREATE TABLE referral.professional_referral (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL REFERENCES referral.organisation,
    partner_id       bigint       NOT NULL
                                  REFERENCES referral.professional_partner,
    direction        text         NOT NULL
                                  CHECK (direction IN ('sent', 'received')),
    subject          text         CHECK (length(subject) BETWEEN 1 AND 200),
    specialty        text         CHECK (length(specialty) <= 200),
    status           text         NOT NULL DEFAULT 'pending'
                                  CHECK (status IN ('pending', 'accepted',
                                      'completed', 'declined', 'cancelled')),
    notes            text         CHECK (length(notes) <= 2000),
    idempotency_key  text         CHECK (length(idempotency_key)
                                         BETWEEN 1 AND 200),
    occurred_at      timestamptz  NOT NULL DEFAULT now(),
    created_at       timestamptz  NOT NULL DEFAULT now(),
    closed_at        timestamptz,
    UNIQUE (organisation_id, idempotency_key)
);

CREATE INDEX professional_referral_partner
    ON referral.professional_referral (partner_id);

COMMENT ON COLUMN referral.professional_referral.subject IS
    'the id of the patient or client in the practice''s own system, no name';

DO $$
BEGIN
    PERFORM referral.audit_table('professional_partner');
    PERFORM referral.audit_table('professional_referral');
END
$$;


-- Options: specialty, external_id.  The same name again is the same partner.

CREATE FUNCTION referral.professional_partner_ensure(organisation_id bigint,
                                                     name text,
                                                     options jsonb
                                                         DEFAULT '{}',
                                                     contact jsonb
                                                         DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    b              referral.professional_partner;
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    PERFORM referral.organisation_check(organisation_id);
    options := referral.options_check('professional_partner_ensure', options,
                                      '{specialty,external_id}');
    b := referral.options_apply('professional_partner_ensure', b, options);

    INSERT INTO referral.professional_partner AS t (organisation_id, name,
                                                    specialty, external_id)
        VALUES (organisation_id, btrim(name), b.specialty, b.external_id)
        ON CONFLICT ON CONSTRAINT
            professional_partner_organisation_id_name_key
            DO UPDATE SET specialty = coalesce(excluded.specialty,
                                               t.specialty)
        RETURNING * INTO b;

    UPDATE referral.professional_partner t
        SET person_id = referral.person_write('professional_partner_ensure',
                            b.person_id, b.organisation_id, 'customer',
                            contact)
        WHERE t.id = b.id AND contact IS NOT NULL;

    RETURN b.id;

EXCEPTION
    WHEN unique_violation THEN
        RAISE EXCEPTION 'professional_partner_ensure(): the external id is'
                        ' that of another partner'
            USING ERRCODE = 'RF010', HINT = 'Use that one''s name.';

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('professional_partner_ensure',
                                          broken_table, broken,
                                          broken_column);
END
$$;


-- Options: subject, specialty, notes, occurred_at, idempotency_key.

CREATE FUNCTION referral.professional_referral_record(partner_id bigint,
                                                      direction text,
                                                      options jsonb
                                                          DEFAULT '{}')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    b              referral.professional_partner;
    n              referral.professional_referral;
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    SELECT * INTO b FROM referral.professional_partner t
        WHERE t.id = partner_id
              AND (referral.organisation_scope() IS NULL
                   OR t.organisation_id = referral.organisation_scope());

    IF NOT FOUND THEN
        RAISE EXCEPTION 'professional partner %: there is none with this id,'
                        ' or it is not yours', coalesce(partner_id::text,
                                                        '(null)')
            USING ERRCODE = 'RF114',
                  HINT = 'The view referral.professional_balance lists them.';
    END IF;

    options := referral.options_check('professional_referral_record', options,
                   '{subject,specialty,notes,occurred_at,idempotency_key}');
    n.occurred_at := now();
    n := referral.options_apply('professional_referral_record', n,
                                jsonb_strip_nulls(options));

    INSERT INTO referral.professional_referral AS t (organisation_id,
            partner_id, direction, subject, specialty, notes, occurred_at,
            idempotency_key)
        VALUES (b.organisation_id, b.id,
                professional_referral_record.direction, n.subject,
                n.specialty, n.notes, n.occurred_at,
                n.idempotency_key)
        ON CONFLICT ON CONSTRAINT
            professional_referral_organisation_id_idempotency_key_key
            DO UPDATE SET idempotency_key = excluded.idempotency_key
        RETURNING * INTO n;

    IF (n.partner_id, n.direction)
       <> (b.id, professional_referral_record.direction)
    THEN
        PERFORM referral.request_repeated(n.idempotency_key, '\x00', '\x01');
    END IF;

    RETURN n.id;

EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('professional_referral_record',
                                      broken_table, broken, broken_column);
END
$$;


-- pending, accepted, completed; declined and cancelled ones count for nobody.

CREATE FUNCTION referral.professional_referral_set_status(id bigint,
                                                          status text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    n  referral.professional_referral;
BEGIN
    SELECT * INTO n FROM referral.professional_referral t
        WHERE t.id = professional_referral_set_status.id
              AND (referral.organisation_scope() IS NULL
                   OR t.organisation_id = referral.organisation_scope())
        FOR NO KEY UPDATE;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'professional referral %: there is none with this id,'
                        ' or it is not yours', coalesce(id::text, '(null)')
            USING ERRCODE = 'RF114',
                  HINT = 'The view referral.professional_referrals lists'
                         ' them.';
    END IF;

    IF n.status = status THEN
        RETURN;
    END IF;

    IF (n.status, status) NOT IN (('pending', 'accepted'),
           ('pending', 'declined'), ('pending', 'cancelled'),
           ('accepted', 'completed'), ('accepted', 'cancelled'))
       OR status IS NULL
    THEN
        RAISE EXCEPTION 'professional referral % is % and can not become %',
                        n.id, n.status, coalesce(left(status, 40), '(null)')
            USING ERRCODE = 'RF091',
                  HINT = 'pending, accepted, completed; declined or cancelled'
                         ' before that.';
    END IF;

    UPDATE referral.professional_referral t
        SET status = professional_referral_set_status.status,
            closed_at = CASE WHEN professional_referral_set_status.status
                                  <> 'accepted' THEN now() END
        WHERE t.id = n.id;
END
$$;


-- we_owe is what they gave us less what we gave them: above zero we owe them
-- referrals, below they owe us.  In the words of the practice to its partner.

CREATE VIEW referral.professional_balance AS
    SELECT b.organisation_id, b.id AS partner_id, b.name, b.specialty,
           b.active, c.received, c.sent, c.received - c.sent AS we_owe,
           format('You gave me %s, I gave you %s, %s', c.received, c.sent,
                  CASE sign(c.received - c.sent)
                  WHEN 1 THEN 'I owe you ' || c.received - c.sent
                  WHEN -1 THEN 'you owe me ' || c.sent - c.received
                  ELSE 'we are even' END) AS balance_text, c.last_at
        FROM referral.professional_partner b,
             LATERAL (SELECT count(*) FILTER (WHERE r.direction = 'received')
                                 AS received,
                             count(*) FILTER (WHERE r.direction = 'sent')
                                 AS sent,
                             max(r.occurred_at) AS last_at
                          FROM referral.professional_referral r
                          WHERE r.partner_id = b.id
                                AND r.status NOT IN ('declined',
                                                     'cancelled')) c
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR b.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.professional_referrals AS
    SELECT r.id, r.organisation_id, r.partner_id, b.name AS partner,
           r.direction, r.subject, r.specialty, r.status, r.occurred_at,
           r.created_at, r.closed_at
        FROM referral.professional_referral r
             JOIN referral.professional_partner b ON b.id = r.partner_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());


CREATE VIEW referral.payouts AS
    SELECT o.id, o.organisation_id, o.referrer_id, o.unit, o.amount,
           referral.money_text(o.amount, o.unit) AS amount_text, o.method,
           o.status, o.reference, o.notes, o.reason, o.requested_at,
           o.requested_by, o.approved_at, o.approved_by, o.paid_at, o.paid_by,
           o.closed_at, o.closed_by
        FROM referral.payout o
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR o.organisation_id = (SELECT referral.organisation_scope());

-- the rewards, and so the referrals, that a payout pays
CREATE VIEW referral.payout_items AS
    SELECT o.organisation_id, o.id AS payout_id, o.referrer_id, e.reward_id,
           w.referral_id, a.unit, sum(e.amount)::bigint AS amount
        FROM referral.payout o
             JOIN referral.transfer t ON t.organisation_id = o.organisation_id
                  AND t.idempotency_key = 'payout:' || o.id || ':request'
             JOIN referral.entry e ON e.transfer_id = t.id AND e.amount > 0
             JOIN referral.account a ON a.id = e.account_id
             LEFT JOIN referral.reward w ON w.id = e.reward_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR o.organisation_id = (SELECT referral.organisation_scope())
        GROUP BY o.organisation_id, o.id, o.referrer_id, e.reward_id,
                 w.referral_id, a.unit;

CREATE VIEW referral.payout_policies AS
    SELECT y.organisation_id, y.program_id, y.unit, y.minimum,
           referral.money_text(y.minimum, y.unit) AS minimum_text, y.every,
           y.method, y.next_at
        FROM referral.payout_policy y
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR y.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.redemptions AS
    SELECT d.id, d.organisation_id, d.referrer_id, d.referral_id, d.order_ref,
           d.kind, d.unit, d.amount,
           referral.money_text(d.amount, d.unit) AS amount_text, d.discount,
           d.status, d.used_at, d.used_by, d.reversed_at, d.reason
        FROM referral.redemption d
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR d.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.professional_balance, referral.professional_referrals,
    referral.payouts, referral.payout_items, referral.payout_policies,
    referral.redemptions, referral.payout_transition
    TO referral_app, referral_analyst;


-- What a partner sees and asks for.

ALTER TABLE referral.payout ENABLE ROW LEVEL SECURITY;

CREATE POLICY payout_partner ON referral.payout
    FOR SELECT TO referral_partner
    USING (referrer_id = (SELECT referral.current_referrer()));

GRANT SELECT (id, referrer_id, unit, amount, method, status, reference, reason,
              requested_at, approved_at, paid_at, closed_at)
    ON referral.payout TO referral_partner;

CREATE VIEW referral.my_payouts WITH (security_invoker = true) AS
    SELECT id, unit, amount, referral.money_text(amount, unit) AS amount_text,
           method, status, reference, reason, requested_at, approved_at,
           paid_at, closed_at
        FROM referral.payout;

GRANT SELECT ON referral.my_payouts TO referral_partner;

CREATE FUNCTION referral.my_payout_request(options jsonb DEFAULT '{}')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN referral.payout_request(referral.current_referrer(), options);
END
$$;

CREATE FUNCTION referral.my_payout_cancel(id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.payout_cancel(
                (SELECT o.id FROM referral.payout o
                     WHERE o.id = my_payout_cancel.id
                           AND o.referrer_id = referral.current_referrer()
                           AND o.status IN ('requested', 'cancelled')),
                'by the referrer');
END
$$;


-- Part of ledger_check(): each payout and redemption moved what it says.

CREATE FUNCTION referral.ledger_check_payouts()
    RETURNS TABLE (problem text, object text, object_id bigint, detail text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'its entries are not what its status says', 'payout', o.id,
           format('%s %s: reserved %s, paid %s', o.status,
                  referral.money_text(o.amount, o.unit), e.reserved, e.paid)
        FROM referral.payout o,
             LATERAL (SELECT coalesce(sum(e.amount) FILTER (
                                 WHERE a.kind = 'reserved'), 0) AS reserved,
                             coalesce(sum(e.amount) FILTER (
                                 WHERE a.kind IN ('paid', 'credit')), 0)
                                 AS paid
                          FROM referral.transfer t
                               JOIN referral.entry e ON e.transfer_id = t.id
                               JOIN referral.account a ON a.id = e.account_id
                          WHERE t.payout_id = o.id) e
        WHERE e.reserved <> CASE WHEN o.status IN ('requested', 'approved')
                                 THEN o.amount ELSE 0 END
              OR e.paid <> CASE o.status WHEN 'paid' THEN o.amount ELSE 0 END
    UNION ALL
    SELECT 'its entries are not what was asked for', 'payout', o.id,
           format('%s of referrer %s, reserved %s',
                  referral.money_text(o.amount, o.unit), o.referrer_id,
                  e.reserved)
        FROM referral.payout o,
             LATERAL (SELECT sum(e.amount) AS reserved
                          FROM referral.transfer t
                               JOIN referral.entry e ON e.transfer_id = t.id
                               JOIN referral.account a ON a.id = e.account_id
                          WHERE t.payout_id = o.id
                                AND t.kind = 'payout_request'
                                AND a.kind = 'reserved'
                                AND a.unit = o.unit
                                AND a.referrer_id = o.referrer_id) e
        WHERE e.reserved IS DISTINCT FROM o.amount
    UNION ALL
    SELECT 'is not there, and has transfers', 'payout', t.payout_id,
           format('transfer %s', t.id)
        FROM referral.transfer t
        WHERE t.payout_id IS NOT NULL
              AND NOT EXISTS (SELECT FROM referral.payout o
                                  WHERE o.id = t.payout_id)
    UNION ALL
    SELECT 'is not there, and has transfers', 'redemption',
           split_part(t.idempotency_key, ':', 2)::bigint,
           format('transfer %s', t.id)
        FROM referral.transfer t
        WHERE t.kind IN ('redemption', 'redemption_return')
              AND NOT EXISTS (SELECT FROM referral.redemption d
                                  WHERE d.id::text
                                        = split_part(t.idempotency_key, ':',
                                                     2))
    UNION ALL
    SELECT 'its entries are not what its status says', 'redemption', d.id,
           format('%s %s: used %s', d.status,
                  referral.money_text(d.amount, d.unit), e.used)
        FROM referral.redemption d,
             LATERAL (SELECT coalesce(sum(e.amount), 0) AS used
                          FROM referral.transfer t
                               JOIN referral.entry e ON e.transfer_id = t.id
                               JOIN referral.account a ON a.id = e.account_id
                          WHERE t.organisation_id = d.organisation_id
                                AND t.idempotency_key IN (
                                    'redemption:' || d.id,
                                    'redemption:' || d.id || ':return')
                                AND a.kind = 'redeemed') e
        WHERE e.used <> CASE d.status WHEN 'used' THEN d.amount ELSE 0 END
$$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (26, 'professional');

COMMIT;
