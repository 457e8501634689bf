-- Copyright (C) The nginx referral module authors
--
-- What becomes of released rewards: payouts, statements, redemption on
-- orders, transfer to another referrer.  Bulk operations.  Referrals between
-- professionals.  Views in the vocabularies of other systems.
--
-- Locks, as everywhere: requests and referees, referrals, codes, payouts and
-- redemptions, accounts, rewards; each kind by id.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- When and from which amount on what is payable is paid out: per organisation
-- and unit, or for those who earned in one program.

CREATE TABLE referral.payout_policy (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL REFERENCES referral.organisation,
    program_id       bigint       REFERENCES referral.program,
    unit             text         NOT NULL REFERENCES referral.unit,
    minimum          bigint       NOT NULL DEFAULT 1 CHECK (minimum > 0),
    every            text         CHECK (every IN ('week', 'month',
                                                   'quarter')),
    method           text         NOT NULL DEFAULT 'bank_transfer'
                                  CHECK (method IN ('bank_transfer', 'cash',
                                      'account_credit', 'check')),
    next_at          timestamptz,
    last_referrer    bigint,
    updated_at       timestamptz  NOT NULL DEFAULT now(),
    CONSTRAINT payout_policy_key
        UNIQUE NULLS NOT DISTINCT (organisation_id, program_id, unit),
    CHECK ((every IS NULL) = (next_at IS NULL)),
    CHECK (program_id IS NULL OR every IS NULL)
);

COMMENT ON COLUMN referral.payout_policy.minimum IS
    'minor units: less stays payable; of several that apply the smallest';
COMMENT ON COLUMN referral.payout_policy.every IS
    'payouts are asked for at the start of each, in the organisation''s zone';
COMMENT ON COLUMN referral.payout_policy.last_referrer IS
    'a run in slices has come to this one';

DO $$ BEGIN PERFORM referral.audit_table('payout_policy',
                                         '{next_at,last_referrer}'); END $$;


CREATE TABLE referral.payout_transition (
    from_status  text  NOT NULL,
    to_status    text  NOT NULL,
    PRIMARY KEY (from_status, to_status)
);

INSERT INTO referral.payout_transition (from_status, to_status)
    VALUES ('requested', 'approved'), ('requested', 'rejected'),
           ('requested', 'cancelled'), ('approved', 'paid'),
           ('approved', 'rejected'), ('approved', 'cancelled');

CREATE TABLE referral.payout (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL REFERENCES referral.organisation,
    referrer_id      bigint       NOT NULL REFERENCES referral.referrer,
    unit             text         NOT NULL REFERENCES referral.unit,
    amount           bigint       NOT NULL CHECK (amount > 0),
    method           text         NOT NULL
                                  CHECK (method IN ('bank_transfer', 'cash',
                                      'account_credit', 'check')),
    status           text         NOT NULL DEFAULT 'requested'
                                  CHECK (status IN ('requested', 'approved',
                                      'paid', 'rejected', 'cancelled')),
    reference        text         CHECK (length(reference) BETWEEN 1 AND 200),
    notes            text         CHECK (length(notes) <= 1000),
    reason           text         CHECK (length(reason) <= 500),
    idempotency_key  text         CHECK (length(idempotency_key)
                                         BETWEEN 1 AND 200),
    request_hash     bytea,
    requested_at     timestamptz  NOT NULL DEFAULT now(),
    requested_by     text         NOT NULL DEFAULT referral.actor(),
    approved_at      timestamptz,
    approved_by      text,
    paid_at          timestamptz,
    paid_by          text,
    closed_at        timestamptz,
    closed_by        text,
    CONSTRAINT payout_paid_check CHECK ((status = 'paid')
                                        = (paid_at IS NOT NULL))
);

CREATE INDEX payout_referrer ON referral.payout (referrer_id, requested_at);
CREATE INDEX payout_open ON referral.payout (organisation_id, id)
    WHERE status IN ('requested', 'approved');
CREATE UNIQUE INDEX payout_idempotency
    ON referral.payout (organisation_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

COMMENT ON COLUMN referral.payout.reference IS
    'of the bank transfer, the check or the receipt';
COMMENT ON COLUMN referral.payout.notes IS 'nothing personal: they stay';

DO $$ BEGIN PERFORM referral.audit_table('payout'); END $$;


CREATE FUNCTION referral.payout_emit(o referral.payout, type text)
    RETURNS void
    LANGUAGE sql
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT referral.emit(o.organisation_id, 'payout.' || type,
               'payout:' || o.id,
               jsonb_strip_nulls(jsonb_build_object(
                   'payout_id', o.id, 'referrer_id', o.referrer_id,
                   'unit', o.unit, 'amount', o.amount, 'method', o.method,
                   'status', o.status, 'reference', o.reference,
                   'reason', o.reason)))
$$;


-- The policy of an organisation, or of a program with program_id.  Options:
-- program_id, minimum, every (week, month, quarter; null: only on request),
-- method.

CREATE FUNCTION referral.payout_policy_set(organisation_id bigint, unit text,
                                           options jsonb DEFAULT '{}')
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o              referral.organisation;
    y              referral.payout_policy;
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    o := referral.organisation_row(organisation_id);
    options := referral.options_check('payout_policy_set', options,
                                      '{program_id,minimum,every,method}');

    SELECT * INTO y FROM referral.payout_policy q
        WHERE q.organisation_id = o.id AND q.unit = payout_policy_set.unit
              AND q.program_id IS NOT DISTINCT FROM
                  (options ->> 'program_id')::bigint;

    y.minimum := coalesce(y.minimum, 1);
    y.method := coalesce(y.method, 'bank_transfer');
    y := referral.options_apply('payout_policy_set', y, options);

    IF y.program_id IS NOT NULL
       AND NOT EXISTS (SELECT FROM referral.program p
                           WHERE p.id = y.program_id
                                 AND p.organisation_id = o.id)
    THEN
        RAISE EXCEPTION 'program %: there is none with this id, or it is not'
                        ' yours', y.program_id
            USING ERRCODE = 'RF012',
                  HINT = 'The view referral.programs lists them.';
    END IF;

    y.next_at := CASE WHEN y.every IS NOT NULL
                      THEN referral.payout_next(y.every, o.time_zone, now())
                 END;

    INSERT INTO referral.payout_policy (organisation_id, program_id, unit,
                                        minimum, every, method, next_at)
        VALUES (o.id, y.program_id, payout_policy_set.unit, y.minimum, y.every,
                y.method, y.next_at)
        ON CONFLICT ON CONSTRAINT payout_policy_key DO UPDATE
            SET minimum = excluded.minimum, every = excluded.every,
                method = excluded.method, next_at = excluded.next_at,
                last_referrer = NULL, updated_at = now();

EXCEPTION
    WHEN foreign_key_violation THEN
        RAISE EXCEPTION 'there is no unit "%"', left(unit, 40)
            USING ERRCODE = 'RF063',
                  HINT = 'See referral.unit: USD, JPY, points and so on.';

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('payout_policy_set', broken_table,
                                          broken, broken_column);
END
$$;

-- The start of the next week, month or quarter in a time zone.

CREATE FUNCTION referral.payout_next(every text, time_zone text,
                                     at timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN (date_trunc(every, at AT TIME ZONE time_zone)
            + CASE every WHEN 'week' THEN interval '7 days'
                         WHEN 'month' THEN interval '1 month'
                         ELSE interval '3 months' END) AT TIME ZONE time_zone;


-- The smallest amount that is paid out to a referrer.

CREATE FUNCTION referral.payout_minimum(f referral.referrer, unit text,
                                        account_id bigint) RETURNS bigint
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN coalesce((SELECT min(y.minimum)
                         FROM referral.payout_policy y
                         WHERE y.organisation_id = f.organisation_id
                               AND y.unit = payout_minimum.unit
                               AND (y.program_id IS NULL
                                    OR y.program_id IN (
                                        SELECT w.program_id
                                            FROM referral.reward_remains(
                                                     account_id) l
                                                 JOIN referral.reward w
                                                     ON w.id = l.reward_id))),
                    1);


-- Locks accounts, and the rewards that have something left in the first ones,
-- which it returns.

CREATE FUNCTION referral.accounts_use(accounts bigint[],
                                      others bigint[] DEFAULT '{}')
    RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rewards  bigint[];
BEGIN
    PERFORM referral.account_lock(accounts || others);

    SELECT coalesce(array_agg(l.reward_id), '{}') INTO rewards
        FROM unnest(accounts) a (id),
             LATERAL referral.reward_remains(a.id) l
        WHERE l.reward_id IS NOT NULL;

    PERFORM FROM referral.reward w
        WHERE w.id = ANY (rewards)
        ORDER BY w.id
        FOR NO KEY UPDATE;

    RETURN rewards;
END
$$;


-- The postings that move an amount between accounts, whose locks are held:
-- out of the rewards that end first, and of none that has ended already.
-- Null when there is less, or nothing.  A reward ends where it was earned:
-- what was given to another, or was paid as credit, is that one's to keep.

CREATE FUNCTION referral.accounts_take(accounts bigint[],
                                       into_accounts bigint[], amount bigint,
                                       at timestamptz)
    RETURNS referral.posting[]
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l       record;
    part    bigint;
    wanted  bigint := amount;
    taken   referral.posting[] := '{}';
BEGIN
    IF wanted <= 0 THEN
        RETURN NULL;
    END IF;

    FOR l IN
        SELECT a.id, a.other, r.reward_id, r.remaining
            FROM unnest(accounts, into_accounts) a (id, other),
                 LATERAL referral.reward_remains(a.id) r
                 LEFT JOIN referral.reward w ON w.id = r.reward_id
            WHERE r.remaining > 0
                  AND (w.valid_until IS NULL OR w.valid_until > at
                       OR w.account_id <> a.id)
            ORDER BY w.valid_until NULLS LAST, r.reward_id, a.id
    LOOP
        EXIT WHEN wanted = 0;
        part := least(l.remaining, wanted);
        taken := taken
            || ROW(l.id, -part, l.reward_id)::referral.posting
            || ROW(l.other, part, l.reward_id)::referral.posting;
        wanted := wanted - part;
    END LOOP;

    RETURN CASE WHEN wanted = 0 THEN taken END;
END
$$;


-- What of an account can be used now: not what has ended and waits to expire,
-- and never more than its balance, which debts lower.

CREATE FUNCTION referral.account_usable(account_id bigint, at timestamptz)
    RETURNS bigint
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT least(coalesce(sum(l.remaining) FILTER (
                             WHERE l.remaining > 0
                                   AND (w.valid_until IS NULL
                                        OR w.valid_until > at
                                        OR w.account_id
                                           <> account_usable.account_id)), 0),
                         coalesce(sum(l.remaining) FILTER (
                             WHERE w.valid_until IS NULL
                                   OR w.valid_until > at
                                   OR w.account_id
                                      <> account_usable.account_id
                                   OR l.remaining < 0), 0))::bigint
                FROM referral.reward_remains(account_id) l
                     LEFT JOIN referral.reward w ON w.id = l.reward_id);


-- The same postings the other way round.

CREATE FUNCTION referral.postings_back(transfer bigint)
    RETURNS referral.posting[]
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN (SELECT array_agg(ROW(e.account_id, -e.amount,
                                 e.reward_id)::referral.posting
                             ORDER BY e.account_id, e.seq)
                FROM referral.entry e WHERE e.transfer_id = transfer);


-- What was asked for under a key before: its hash must be the same.

CREATE FUNCTION referral.request_repeated(key text, was bytea, is_now bytea)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF was IS DISTINCT FROM is_now THEN
        RAISE EXCEPTION 'idempotency key "%" was used for another request',
                        left(key, 200)
            USING ERRCODE = 'RF101',
                  HINT = 'A key is for one request and its repetitions.';
    END IF;
END
$$;


-- Asks for a payout of what is payable to a referrer: many rewards in one.
-- Options: unit (default: the organisation's currency), amount (default: all
-- of it; debts from refunds are carried and lower it), method, notes,
-- idempotency_key.  The money is reserved: it is asked for once.

CREATE FUNCTION referral.payout_request(referrer_id bigint,
                                        options jsonb DEFAULT '{}')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f              referral.referrer := referral.referrer_row(referrer_id);
    o              referral.payout;
    was            referral.payout;
    minimum        bigint;
    payable        bigint;
    rewards        bigint[];
    reserved       bigint;
    postings       referral.posting[];
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    options := referral.options_check('payout_request', options,
                   '{unit,amount,method,notes,idempotency_key}');
    o.unit := (SELECT g.currency FROM referral.organisation g
                   WHERE g.id = f.organisation_id);
    o.method := 'bank_transfer';
    o := referral.options_apply('payout_request', o,
                                jsonb_strip_nulls(options));
    o.request_hash := sha256(convert_to(f.id || options::text, 'UTF8'));

    IF o.idempotency_key IS NOT NULL THEN
        PERFORM referral.referee_lock(f.organisation_id, '{}',
                                      ARRAY['payout/' || o.idempotency_key]);
        SELECT * INTO was
            FROM referral.payout p
            WHERE p.organisation_id = f.organisation_id
                  AND p.idempotency_key = o.idempotency_key;

        IF FOUND THEN
            PERFORM referral.request_repeated(o.idempotency_key,
                                              was.request_hash,
                                              o.request_hash);
            RETURN was.id;
        END IF;
    END IF;

    IF f.status NOT IN ('active', 'inactive', 'terminated') THEN
        RAISE EXCEPTION 'referrer % is %', f.id, f.status
            USING ERRCODE = 'RF109',
                  HINT = 'What was earned is kept; referrer_set_status().';
    END IF;

    payable := referral.account_get(f.organisation_id, 'payable', o.unit,
                                    f.id);
    reserved := referral.account_get(f.organisation_id, 'reserved', o.unit,
                                     f.id);
    rewards := referral.accounts_use(ARRAY[payable], ARRAY[reserved]);
    PERFORM referral.reward_settle(payable);
    minimum := referral.payout_minimum(f, o.unit, payable);
    o.amount := coalesce(o.amount, referral.account_usable(payable, now()));

    IF o.amount < minimum THEN
        RAISE EXCEPTION 'referrer % has % to be paid out, and needs %', f.id,
                        referral.money_text(o.amount, o.unit),
                        referral.money_text(minimum, o.unit)
            USING ERRCODE = 'RF108',
                  HINT = 'It is kept for the next time;'
                         ' payout_policy_set() changes the minimum.';
    END IF;

    postings := CASE WHEN o.amount <= referral.account_usable(payable, now())
                     THEN referral.accounts_take(ARRAY[payable],
                              ARRAY[reserved], o.amount, now()) END;

    IF postings IS NULL THEN
        RAISE EXCEPTION 'referrer % has %, not %', f.id,
                        referral.money_text(referral.account_usable(payable,
                            now()), o.unit),
                        referral.money_text(o.amount, o.unit)
            USING ERRCODE = 'RF110', HINT = 'Amounts are in minor units.';
    END IF;

    INSERT INTO referral.payout (organisation_id, referrer_id, unit, amount,
                                 method, notes, idempotency_key, request_hash)
        VALUES (f.organisation_id, f.id, o.unit, o.amount, o.method, o.notes,
                o.idempotency_key, o.request_hash)
        RETURNING * INTO o;

    PERFORM referral.transfer_post(o.organisation_id, 'payout_request',
                format('payout:%s:request', o.id), postings,
                payout_id => o.id);
    PERFORM referral.reward_refresh(rewards);
    PERFORM referral.payout_emit(o, 'requested');

    RETURN o.id;

EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('payout_request', broken_table, broken,
                                      broken_column);
END
$$;


-- The payout, locked, for a step: the referrals that it pays are locked before
-- it, accounts and rewards behind it.

CREATE FUNCTION referral.payout_row(id bigint, what text)
    RETURNS referral.payout
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o  referral.payout;
BEGIN
    PERFORM FROM referral.referral r
        WHERE r.id IN (SELECT w.referral_id
                           FROM referral.transfer t
                                JOIN referral.entry e ON e.transfer_id = t.id
                                JOIN referral.reward w ON w.id = e.reward_id
                           WHERE t.payout_id = payout_row.id)
        ORDER BY r.id
        FOR NO KEY UPDATE;

    SELECT * INTO o FROM referral.payout p
        WHERE p.id = payout_row.id
              AND (referral.organisation_scope() IS NULL
                   OR p.organisation_id = referral.organisation_scope())
        FOR NO KEY UPDATE;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'payout %: there is none with this id, or it is not'
                        ' yours', coalesce(payout_row.id::text, '(null)')
            USING ERRCODE = 'RF107',
                  HINT = 'The view referral.payouts lists them.';
    END IF;

    IF o.status <> what
       AND NOT EXISTS (SELECT FROM referral.payout_transition t
                           WHERE t.from_status = o.status
                                 AND t.to_status = what)
    THEN
        RAISE EXCEPTION 'payout % is % and can not become %', o.id, o.status,
                        what
            USING ERRCODE = 'RF111',
                  HINT = 'requested, approved, paid; rejected and cancelled'
                         ' before it is paid.';
    END IF;

    RETURN o;
END
$$;


-- Again: nothing.

CREATE FUNCTION referral.payout_approve(id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o  referral.payout := referral.payout_row(id, 'approved');
BEGIN
    IF o.status = 'approved' THEN
        RETURN;
    END IF;

    UPDATE referral.payout p
        SET status = 'approved', approved_at = now(),
            approved_by = referral.actor()
        WHERE p.id = o.id
        RETURNING * INTO o;
    PERFORM referral.payout_emit(o, 'approved');
END
$$;


-- Gives back what a payout had reserved.

CREATE FUNCTION referral.payout_close(o referral.payout, word text,
                                      why text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked     bigint;
    payable   bigint;
    postings  referral.posting[];
BEGIN
    IF o.status = word THEN
        RETURN;
    END IF;

    SELECT t.id INTO asked FROM referral.transfer t
        WHERE t.organisation_id = o.organisation_id
              AND t.idempotency_key = format('payout:%s:request', o.id);
    postings := referral.postings_back(asked);
    payable := referral.account_get(o.organisation_id, 'payable', o.unit,
                                    o.referrer_id);
    PERFORM referral.transfer_post(o.organisation_id, 'payout_return',
                format('payout:%s:return', o.id), postings,
                payout_id => o.id, reverses => asked);
    PERFORM referral.accounts_use(ARRAY[payable]);

    UPDATE referral.payout p
        SET status = word, reason = left(why, 500), closed_at = now(),
            closed_by = referral.actor()
        WHERE p.id = o.id
        RETURNING * INTO o;

    PERFORM referral.reward_refresh((SELECT array_agg(t.reward_id)
                                         FROM unnest(postings) t));
    PERFORM referral.reward_settle(payable);

    IF word = 'rejected' THEN
        PERFORM referral.payout_emit(o, 'rejected');
    END IF;
END
$$;

CREATE FUNCTION referral.payout_reject(id bigint, reason text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.payout_close(referral.payout_row(id, 'rejected'),
                                  'rejected', reason);
END
$$;

CREATE FUNCTION referral.payout_cancel(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.payout_close(referral.payout_row(id, 'cancelled'),
                                  'cancelled', reason);
END
$$;


-- Notes that a payout was paid.  A bank transfer or a check has a reference.
-- With account_credit the money stays here: it becomes the referrer's credit,
-- for orders.  Referrals of which nothing is left to be paid are paid.  Again,
-- with the same reference: nothing.

CREATE FUNCTION referral.payout_pay(id bigint, reference text DEFAULT NULL,
                                    method text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o         referral.payout := referral.payout_row(id, 'paid');
    asked     bigint;
    target    bigint;
    rewards   bigint[];
    reserved  bigint;
    postings  referral.posting[];
BEGIN
    method := coalesce(payout_pay.method, o.method);

    IF method NOT IN ('bank_transfer', 'cash', 'account_credit', 'check') THEN
        RAISE EXCEPTION 'payout_pay(): "method" is not acceptable'
            USING ERRCODE = 'RF010',
                  HINT = 'Accepted: bank_transfer, cash, account_credit,'
                         ' check.';
    END IF;

    IF o.status = 'paid' THEN
        IF reference IS DISTINCT FROM o.reference OR method <> o.method THEN
            RAISE EXCEPTION 'payout % was paid by % with reference %', o.id,
                            o.method, coalesce(o.reference, '(none)')
                USING ERRCODE = 'RF111',
                      HINT = 'A payout is paid once.';
        END IF;

        RETURN;
    END IF;

    IF method IN ('bank_transfer', 'check')
       AND coalesce(length(reference), 0) NOT BETWEEN 1 AND 200
    THEN
        RAISE EXCEPTION 'payout_pay(): "reference" must not be empty'
            USING ERRCODE = 'RF010',
                  HINT = 'The number of the bank transfer or the check, 1 to'
                         ' 200 characters.';
    END IF;

    SELECT t.id INTO asked FROM referral.transfer t
        WHERE t.organisation_id = o.organisation_id
              AND t.idempotency_key = format('payout:%s:request', o.id);
    reserved := referral.account_get(o.organisation_id, 'reserved', o.unit,
                                     o.referrer_id);
    target := referral.account_get(o.organisation_id,
                  CASE method WHEN 'account_credit' THEN 'credit'
                              ELSE 'paid' END, o.unit, o.referrer_id);

    SELECT array_agg(ROW(CASE WHEN e.amount > 0 THEN reserved ELSE target END,
                         -e.amount, e.reward_id)::referral.posting
                     ORDER BY e.account_id, e.seq),
           array_agg(e.reward_id)
        INTO postings, rewards
        FROM referral.entry e WHERE e.transfer_id = asked;

    PERFORM referral.transfer_post(o.organisation_id, 'payout',
                format('payout:%s:pay', o.id), postings, payout_id => o.id);
    PERFORM FROM referral.reward w WHERE w.id = ANY (rewards)
        ORDER BY w.id FOR NO KEY UPDATE;

    UPDATE referral.payout p
        SET status = 'paid', paid_at = now(), paid_by = referral.actor(),
            reference = payout_pay.reference, method = payout_pay.method
        WHERE p.id = o.id
        RETURNING * INTO o;

    PERFORM referral.reward_refresh(rewards);
    PERFORM referral.referral_paid(rewards);
    PERFORM referral.payout_emit(o, 'paid');
END
$$;

-- Referrals whose referrer's rewards are all settled, one of them by a payout.

CREATE FUNCTION referral.referral_paid(rewards bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  bigint;
BEGIN
    FOR r IN
        SELECT DISTINCT w.referral_id
            FROM referral.reward w
                 JOIN referral.referral f ON f.id = w.referral_id
            WHERE w.id = ANY (rewards)
                  AND f.status IN ('converted', 'rewarded')
                  AND NOT EXISTS (SELECT FROM referral.reward o
                                      WHERE o.referral_id = w.referral_id
                                            AND o.beneficiary = 'referrer'
                                            AND o.kind = 'cash'
                                            AND o.status IN ('pending',
                                                'held', 'approved'))
            ORDER BY 1
    LOOP
        PERFORM referral.referral_move(r, 'paid', 'money');
    END LOOP;
END
$$;


-- Asks for the payouts that the policies have planned until now, for up to a
-- slice of referrers; how many were made.  Any number of sessions at once: one
-- has the policy.  Who has too little, or is suspended, waits for the next.

CREATE FUNCTION referral.payout_scheduled(at timestamptz DEFAULT now(),
                                          slice int DEFAULT 500)
    RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    y     referral.payout_policy;
    a     record;
    who   bigint[];
    seen  int := 0;
    made  int := 0;
BEGIN
    SELECT * INTO y FROM referral.payout_policy q
        WHERE q.next_at <= at
              AND (referral.organisation_scope() IS NULL
                   OR q.organisation_id = referral.organisation_scope())
        ORDER BY q.id LIMIT 1
        FOR NO KEY UPDATE SKIP LOCKED;

    IF NOT FOUND THEN
        RETURN 0;
    END IF;

    SELECT coalesce(array_agg(c.referrer_id), '{}') INTO who
        FROM (SELECT c.referrer_id FROM referral.account c
                  WHERE c.organisation_id = y.organisation_id
                        AND c.unit = y.unit AND c.kind = 'payable'
                        AND c.referrer_id > coalesce(y.last_referrer, 0)
                  ORDER BY c.referrer_id LIMIT slice) c;

    -- all that the slice will lock, as its payouts are one transaction

    PERFORM referral.account_lock((
        SELECT array_agg(referral.account_get(y.organisation_id, kind, y.unit,
                                              f))
            FROM unnest(who) f, unnest(ARRAY['payable', 'reserved']) kind));

    FOR a IN
        SELECT c.id, c.referrer_id FROM referral.account c
            WHERE c.organisation_id = y.organisation_id AND c.unit = y.unit
                  AND c.kind = 'payable' AND c.referrer_id = ANY (who)
            ORDER BY c.referrer_id
    LOOP
        seen := seen + 1;
        y.last_referrer := a.referrer_id;
        CONTINUE WHEN referral.account_balance(a.id) <= 0;

        BEGIN
            PERFORM referral.payout_request(a.referrer_id,
                        jsonb_build_object('unit', y.unit, 'method', y.method,
                            'idempotency_key', format('schedule:%s:%s:%s',
                                y.id, y.next_at AT TIME ZONE 'UTC',
                                a.referrer_id)));
            made := made + 1;
        EXCEPTION WHEN SQLSTATE 'RF108' OR SQLSTATE 'RF109' THEN
            NULL;                       -- too little, or suspended
        END;
    END LOOP;

    UPDATE referral.payout_policy q
        SET last_referrer = CASE WHEN seen = slice THEN y.last_referrer END,
            next_at = CASE WHEN seen = slice THEN q.next_at
                           ELSE referral.payout_next(y.every, o.time_zone, at)
                      END
        FROM referral.organisation o
        WHERE q.id = y.id AND o.id = y.organisation_id;

    RETURN made;
END
$$;


-- When a day begins in a time zone.  Where clocks are put back from one to
-- midnight, as on the Azores, that hour comes twice: the first one counts.

CREATE FUNCTION referral.day_begins(day date, time_zone text)
    RETURNS timestamptz
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    midnight  timestamptz := day::timestamp AT TIME ZONE time_zone;
BEGIN
    IF ((midnight - interval '1 hour') AT TIME ZONE time_zone)::date = day THEN
        RETURN midnight - interval '1 hour';
    END IF;

    RETURN midnight;
END
$$;

REVOKE ALL ON FUNCTION referral.day_begins(date, text) FROM PUBLIC;


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
                         WHERE n.code = c.code AND n.type = 'click'
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
                         WHERE n.code = c.code AND n.type = 'click'
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

INSERT INTO referral.schema_migration (version, name) VALUES (16, 'payout');

COMMIT;
