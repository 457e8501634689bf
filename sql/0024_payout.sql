-- Copyright (C) The nginx referral module authors
--
-- Payouts of released rewards: when and from which amount on, requests, their
-- approval, and what was paid.
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

INSERT INTO referral.schema_migration (version, name) VALUES (24, 'payout');

COMMIT;
