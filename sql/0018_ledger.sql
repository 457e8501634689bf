-- Copyright (C) The nginx referral module authors
--
-- The ledger: double entry, only appended to.
--
-- A transfer has two or more entries, whose amounts add up to zero in each
-- unit.  Units are currencies, in minor units (cents), and quantities, such
-- as points.  An amount above zero credits an account, one below zero debits
-- it.  Accounts are of an organisation, a unit, a kind and a counterparty: the
-- referrer, the person, or the referral whose referee is no person known by
-- name.  What the organisation owes the counterparty is in
--
--     pending    earned, and not released: hold time, approval
--     payable    money released, until it is paid out
--     credit     released credit, points, items, other quantities
--     discount   released discounts and coupons
--     reserved   in a payout that was asked for and is not paid yet
--
-- so their balances are what is owed, never below zero but by a clawback,
-- which payable, credit and discount can suffer.  The other side is
--
--     expense    what rewards cost: at zero or below
--     paid       what was paid out
--     redeemed   what was used up: on orders, or by the one who delivers it
--     expired    what was not used in time
--
-- The other side is kept for each counterparty, too: one account of an
-- organisation, or of a program, would make all conversions wait for each
-- other, as each entry has the number and the balance that follow its
-- account's last.  These are written once, with the entry, under the lock of
-- the account; balances are the sums of entries, and ledger_check() proves
-- that the two agree.
--
-- Accounts are locked in the order of their ids, after everything else that
-- a transaction locks (referrals, then rewards, then payouts).

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

CREATE TABLE referral.unit (
    code      text      PRIMARY KEY
                        CHECK (code COLLATE "C" ~ '^([A-Z]{3}|[a-z][a-z_]*)$'),
    exponent  smallint  NOT NULL CHECK (exponent BETWEEN 0 AND 4),
    kind      text      NOT NULL CHECK (kind IN ('money', 'quantity')),
    CHECK (kind = 'money' OR exponent = 0)
);

COMMENT ON TABLE referral.unit IS
    'Currencies of ISO 4217, in minor units, and quantities';
COMMENT ON COLUMN referral.unit.exponent IS
    'digits after the point: 1 of the currency is 10 ^ exponent minor units';

INSERT INTO referral.unit (code, exponent, kind)
    SELECT unnest(string_to_array(codes, ' ')), exponent, 'money'
        FROM (VALUES
            (2, 'AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD'
                ' BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CNY'
                ' COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP'
                ' GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR'
                ' JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA'
                ' MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO'
                ' NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD'
                ' SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS'
                ' TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XCD'
                ' XCG YER ZAR ZMW ZWG'),
            (0, 'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF'
                ' XOF XPF'),
            (3, 'BHD IQD JOD KWD LYD OMR TND'),
            (4, 'CLF UYW')) iso_4217 (exponent, codes);

INSERT INTO referral.unit (code, exponent, kind)
    SELECT unnest(ARRAY['points', 'messages', 'requests', 'feature_days',
                        'items', 'coupons']), 0, 'quantity';

GRANT SELECT ON referral.unit TO referral_app, referral_analyst,
    referral_partner;


-- The one rounding of amounts: to the nearest integer, halves to the even one.

CREATE FUNCTION referral.round_money(amount numeric) RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF amount NOT BETWEEN -9223372036854775807 AND 9223372036854775807 THEN
        RAISE EXCEPTION 'the amount % is out of range', amount
            USING ERRCODE = 'RF060',
                  HINT = 'Amounts are integers of 64 bits, in minor units.';
    END IF;

    -- the half of an odd multiple of a half ends in .25 or .75: no tie is
    -- left for round(), which takes ties away from zero

    IF abs(amount - trunc(amount)) = 0.5 THEN
        RETURN 2 * round(amount * 0.5);
    END IF;

    RETURN round(amount);
END
$$;

REVOKE ALL ON FUNCTION referral.round_money(numeric) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.round_money(numeric)
    TO referral_app, referral_analyst;


-- An amount times a rate in basis points (1/10000), rounded once.

CREATE FUNCTION referral.rate_of(amount bigint, rate_bp bigint)
    RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- a product of numerics is exact, a quotient would not always be
    RETURN referral.round_money(amount::numeric * rate_bp * 0.0001);
END
$$;

REVOKE ALL ON FUNCTION referral.rate_of(bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.rate_of(bigint, bigint)
    TO referral_app, referral_analyst;


-- Splits an amount by weights: whole numbers that add up to it, exactly.  Each
-- gets its share rounded down, and what remains goes, one each, to those whose
-- fractions are largest (the first of equal ones).  A negative amount is split
-- as its opposite.  Weights are 0 or more, and not all 0.

CREATE FUNCTION referral.split_money(amount bigint, weights bigint[])
    RETURNS bigint[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total   numeric := (SELECT sum(w) FROM unnest(weights) w);
    result  bigint[];
BEGIN
    IF coalesce(total, 0) = 0
       OR EXISTS (SELECT FROM unnest(weights) w WHERE w < 0 OR w IS NULL)
    THEN
        RAISE EXCEPTION 'an amount can not be split by the weights %', weights
            USING ERRCODE = 'RF060',
                  HINT = 'Weights are 0 or more, and one of them is above 0.';
    END IF;

    WITH part AS (
        SELECT n, div(abs(amount::numeric) * w, total) AS share,
               mod(abs(amount::numeric) * w, total) AS fraction
            FROM unnest(weights) WITH ORDINALITY u (w, n)
    ), ranked AS (
        SELECT n, share,
               row_number() OVER (ORDER BY fraction DESC, n) AS rank,
               abs(amount::numeric) - sum(share) OVER () AS remainder
            FROM part
    )
    SELECT array_agg((sign(amount::numeric)
                      * (share + (rank <= remainder)::int))::bigint
                     ORDER BY n)
        INTO result
        FROM ranked;

    RETURN result;
END
$$;

REVOKE ALL ON FUNCTION referral.split_money(bigint, bigint[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.split_money(bigint, bigint[])
    TO referral_app, referral_analyst;


-- An amount as people write it: 1234, USD is "12.34 USD".

CREATE FUNCTION referral.money_text(amount bigint, unit text) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN coalesce((SELECT CASE WHEN amount < 0 THEN '-' ELSE '' END
                            || CASE u.exponent WHEN 0 THEN digits
                               ELSE left(digits, -u.exponent::int) || '.'
                                    || right(digits, u.exponent::int) END
                         FROM referral.unit u,
                              LATERAL (SELECT abs(amount::numeric)::text)
                                  a (plain),
                              LATERAL (SELECT lpad(plain,
                                           greatest(length(plain),
                                                    u.exponent + 1), '0'))
                                  d (digits)
                         WHERE u.code = unit),
                    amount::text) || ' ' || unit;

REVOKE ALL ON FUNCTION referral.money_text(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.money_text(bigint, text)
    TO referral_app, referral_analyst, referral_partner;


-- No foreign keys to organisation and unit, rows that all writers would lock:
-- the counterparty is of the organisation, account_get() looks for the unit.

CREATE TABLE referral.account (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL,
    kind             text         NOT NULL CHECK (kind IN ('pending',
                                      'payable', 'credit', 'discount',
                                      'reserved', 'expense', 'paid',
                                      'redeemed', 'expired')),
    unit             text         NOT NULL,
    referrer_id      bigint       REFERENCES referral.referrer,
    person_id        bigint       REFERENCES referral.person,
    referral_id      bigint,
    holder           text         GENERATED ALWAYS AS
                                  (CASE WHEN referrer_id IS NOT NULL
                                        THEN 'referrer'
                                        WHEN person_id IS NOT NULL
                                        THEN 'person'
                                        WHEN referral_id IS NOT NULL
                                        THEN 'referral'
                                        ELSE 'organisation' END) STORED,
    owed             boolean      GENERATED ALWAYS AS
                                  (kind IN ('pending', 'payable', 'credit',
                                            'discount', 'reserved')) STORED,
    created_at       timestamptz  NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT
        (referrer_id, person_id, referral_id, organisation_id, unit, kind),
    CHECK (num_nonnulls(referrer_id, person_id, referral_id) <= 1)
);

CREATE INDEX account_organisation ON referral.account (organisation_id);
CREATE INDEX account_person ON referral.account (person_id)
    WHERE person_id IS NOT NULL;

COMMENT ON COLUMN referral.account.owed IS
    'what the organisation owes: the balance is not below zero';


CREATE TABLE referral.transfer (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL,
    kind             text         NOT NULL CHECK (kind IN ('reward',
                                      'approval', 'rejection', 'cancellation',
                                      'expiry', 'reversal', 'clawback',
                                      'settlement', 'payout_request',
                                      'payout', 'payout_return', 'redemption',
                                      'redemption_return', 'transfer',
                                      'adjustment')),
    idempotency_key  text         NOT NULL
                                  CHECK (length(idempotency_key)
                                         BETWEEN 1 AND 200),
    entries          int          NOT NULL CHECK (entries >= 2),
    reverses         bigint       REFERENCES referral.transfer,
    referral_id      bigint,
    reward_id        bigint,
    payout_id        bigint,
    at               timestamptz  NOT NULL DEFAULT now(),
    actor            text         NOT NULL DEFAULT referral.actor(),
    memo             text         CHECK (length(memo) <= 500),
    UNIQUE (organisation_id, idempotency_key),
    UNIQUE (id, entries)
);

CREATE INDEX transfer_reward ON referral.transfer (reward_id)
    WHERE reward_id IS NOT NULL;
CREATE INDEX transfer_payout ON referral.transfer (payout_id)
    WHERE payout_id IS NOT NULL;

COMMENT ON COLUMN referral.transfer.memo IS 'nothing personal: it stays';


-- A transfer says how many entries it has, and they are numbered: none can be
-- added once it has them all, which is looked at when it is committed.

CREATE TABLE referral.entry (
    account_id   bigint  NOT NULL REFERENCES referral.account,
    seq          bigint  NOT NULL CHECK (seq > 0),
    transfer_id  bigint  NOT NULL,
    n            int     NOT NULL,
    of           int     NOT NULL,
    reward_id    bigint,
    amount       bigint  NOT NULL CHECK (amount <> 0),
    balance      bigint  NOT NULL,
    PRIMARY KEY (account_id, seq),
    CONSTRAINT entry_number UNIQUE (transfer_id, n),
    CONSTRAINT entry_number_check CHECK (n BETWEEN 1 AND of),
    FOREIGN KEY (transfer_id, of) REFERENCES referral.transfer (id, entries)
);

CREATE INDEX entry_reward ON referral.entry (reward_id)
    WHERE reward_id IS NOT NULL;

COMMENT ON COLUMN referral.entry.seq IS 'of the account, without gaps';
COMMENT ON COLUMN referral.entry.reward_id IS
    'whose part of the account it moves';
COMMENT ON COLUMN referral.entry.balance IS
    'of the account, with this entry';


-- Append-only, for the owner, too.  Who must mend a ledger by hand is a
-- superuser and says SET session_replication_role = replica.

CREATE FUNCTION referral.ledger_refuse() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is only appended to, no % of % is possible',
                    TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'RF061',
              HINT = 'What was written wrongly is set right by a new'
                     ' transfer.';
END
$$;

REVOKE ALL ON FUNCTION referral.ledger_refuse() FROM PUBLIC;

CREATE TRIGGER ledger_refuse
    BEFORE UPDATE OR DELETE OR TRUNCATE ON referral.account
    FOR EACH STATEMENT EXECUTE FUNCTION referral.ledger_refuse();
CREATE TRIGGER ledger_refuse
    BEFORE UPDATE OR DELETE OR TRUNCATE ON referral.transfer
    FOR EACH STATEMENT EXECUTE FUNCTION referral.ledger_refuse();
CREATE TRIGGER ledger_refuse
    BEFORE UPDATE OR DELETE OR TRUNCATE ON referral.entry
    FOR EACH STATEMENT EXECUTE FUNCTION referral.ledger_refuse();


-- At the end of a transaction every transfer that it made has its entries, of
-- accounts of its organisation, and each unit's amounts add up to zero.

CREATE FUNCTION referral.transfer_balanced() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    n  int := 0;
    u  record;
BEGIN
    FOR u IN
        SELECT a.unit, count(*) AS entries, sum(e.amount) AS total,
               bool_and(a.organisation_id = NEW.organisation_id) AS own
            FROM referral.entry e
                 JOIN referral.account a ON a.id = e.account_id
            WHERE e.transfer_id = NEW.id
            GROUP BY a.unit
    LOOP
        IF u.total <> 0 THEN
            RAISE EXCEPTION 'the entries of transfer % add up to %, not to 0',
                            NEW.id, referral.money_text(u.total::bigint,
                                                        u.unit)
                USING ERRCODE = 'RF062';
        END IF;

        IF NOT u.own THEN
            RAISE EXCEPTION 'transfer % has an account of another'
                            ' organisation', NEW.id
                USING ERRCODE = 'RF062';
        END IF;

        n := n + u.entries;
    END LOOP;

    IF n <> NEW.entries THEN
        RAISE EXCEPTION 'transfer % has % entries, and says %', NEW.id, n,
                        NEW.entries
            USING ERRCODE = 'RF062';
    END IF;

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.transfer_balanced() FROM PUBLIC;

CREATE CONSTRAINT TRIGGER transfer_balanced
    AFTER INSERT ON referral.transfer DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION referral.transfer_balanced();


-- The account, made where it is missing.  One counterparty at most: the first
-- one given that is not null.

CREATE FUNCTION referral.account_get(organisation_id bigint, kind text,
                                     unit text,
                                     referrer_id bigint DEFAULT NULL,
                                     person_id bigint DEFAULT NULL,
                                     referral_id bigint DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    id  bigint;
BEGIN
    IF referrer_id IS NOT NULL THEN
        person_id := NULL;
        referral_id := NULL;

    ELSIF person_id IS NOT NULL THEN
        referral_id := NULL;
    END IF;

    FOR turn IN 1 .. 2 LOOP
        IF referrer_id IS NOT NULL THEN
            SELECT a.id INTO id
                FROM referral.account a
                WHERE a.referrer_id = account_get.referrer_id
                      AND a.organisation_id = account_get.organisation_id
                      AND a.unit = account_get.unit
                      AND a.kind = account_get.kind;

        ELSIF person_id IS NOT NULL THEN
            SELECT a.id INTO id
                FROM referral.account a
                WHERE a.referrer_id IS NULL
                      AND a.person_id = account_get.person_id
                      AND a.referral_id IS NULL
                      AND a.organisation_id = account_get.organisation_id
                      AND a.unit = account_get.unit
                      AND a.kind = account_get.kind;

        ELSIF referral_id IS NOT NULL THEN
            SELECT a.id INTO id
                FROM referral.account a
                WHERE a.referrer_id IS NULL AND a.person_id IS NULL
                      AND a.referral_id = account_get.referral_id
                      AND a.organisation_id = account_get.organisation_id
                      AND a.unit = account_get.unit
                      AND a.kind = account_get.kind;

        ELSE
            SELECT a.id INTO id
                FROM referral.account a
                WHERE a.referrer_id IS NULL AND a.person_id IS NULL
                      AND a.referral_id IS NULL
                      AND a.organisation_id = account_get.organisation_id
                      AND a.unit = account_get.unit
                      AND a.kind = account_get.kind;
        END IF;

        EXIT WHEN id IS NOT NULL;

        IF NOT EXISTS (SELECT FROM referral.unit u WHERE u.code = unit) THEN
            RAISE EXCEPTION 'there is no unit "%"', unit
                USING ERRCODE = 'RF063',
                      HINT = 'See referral.unit: USD, JPY, points and so on.';
        END IF;

        INSERT INTO referral.account AS a (organisation_id, kind, unit,
                                           referrer_id, person_id,
                                           referral_id)
            VALUES (organisation_id, kind, unit, referrer_id, person_id,
                    referral_id)
            ON CONFLICT DO NOTHING
            RETURNING a.id INTO id;

        EXIT WHEN id IS NOT NULL;       -- else another session was first
    END LOOP;

    RETURN id;
END
$$;

REVOKE ALL ON FUNCTION referral.account_get(bigint, text, text, bigint,
                                            bigint, bigint) FROM PUBLIC;


-- Locks accounts in the one order.  Whoever makes several transfers in a
-- transaction locks all of their accounts first.

CREATE FUNCTION referral.account_lock(ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- a statement of an older snapshot would not see the last entries
    IF current_setting('transaction_isolation') NOT IN ('read committed',
                                                        'read uncommitted')
    THEN
        RAISE EXCEPTION 'the ledger is not written in a transaction that is %',
                        current_setting('transaction_isolation')
            USING ERRCODE = 'RF064',
                  HINT = 'Use BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;

    PERFORM FROM referral.account a
        WHERE a.id = ANY (ids)
        ORDER BY a.id
        FOR NO KEY UPDATE;
END
$$;

REVOKE ALL ON FUNCTION referral.account_lock(bigint[]) FROM PUBLIC;


CREATE FUNCTION referral.account_balance(account_id bigint) RETURNS bigint
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN coalesce((SELECT e.balance FROM referral.entry e
                         WHERE e.account_id = account_balance.account_id
                         ORDER BY e.seq DESC
                         LIMIT 1), 0);

REVOKE ALL ON FUNCTION referral.account_balance(bigint) FROM PUBLIC;


CREATE TYPE referral.posting AS (
    account_id  bigint,
    amount      bigint,
    reward_id   bigint
);


-- The entries of transfers of a kind: transfers[i] is that of postings[i].
-- The accounts are locked.

CREATE FUNCTION referral.entries_write(transfers bigint[],
                                       postings referral.posting[],
                                       kind text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    short  record;
BEGIN
    WITH made AS (
        INSERT INTO referral.entry AS e (account_id, seq, transfer_id, n, of,
                                         reward_id, amount, balance)
            SELECT p.account_id,
                   coalesce(last.seq, 0) + row_number() OVER account,
                   t.id, row_number() OVER transfer,
                   count(*) OVER (PARTITION BY t.id),
                   p.reward_id, p.amount,
                   referral.round_money(coalesce(last.balance, 0)
                                        + sum(p.amount) OVER account)
                FROM unnest(postings) WITH ORDINALITY
                         p (account_id, amount, reward_id, n)
                     JOIN unnest(transfers) WITH ORDINALITY t (id, n)
                         ON t.n = p.n
                     LEFT JOIN LATERAL (SELECT l.seq, l.balance
                                            FROM referral.entry l
                                            WHERE l.account_id = p.account_id
                                            ORDER BY l.seq DESC
                                            LIMIT 1) last ON true
                WINDOW account AS (PARTITION BY p.account_id ORDER BY p.n
                                   ROWS UNBOUNDED PRECEDING),
                       transfer AS (PARTITION BY t.id ORDER BY p.n)
            RETURNING e.account_id, e.seq, e.amount, e.balance
    )
    SELECT a.id, a.kind, a.unit, sum(m.amount)::bigint AS moved,
           (array_agg(m.balance ORDER BY m.seq DESC))[1] AS balance
        INTO short
        FROM made m
             JOIN referral.account a ON a.id = m.account_id
        WHERE a.owed
              AND NOT (entries_write.kind = 'clawback'
                       AND a.kind IN ('payable', 'credit', 'discount'))
        GROUP BY a.id, a.kind, a.unit
        HAVING sum(m.amount) < 0
               AND (array_agg(m.balance ORDER BY m.seq DESC))[1] < 0
        LIMIT 1;

    IF FOUND THEN
        RAISE EXCEPTION 'account % (%) has %, not %', short.id, short.kind,
                referral.money_text(short.balance - short.moved, short.unit),
                referral.money_text(-short.moved, short.unit)
            USING ERRCODE = 'RF066';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.entries_write(bigint[], referral.posting[],
                                              text) FROM PUBLIC;


-- Makes a transfer and returns its id.  The same
-- key with the same entries is the same transfer, with others it is RF065.
-- An account that is owed does not go below zero by what is taken from it
-- (RF066), but for clawbacks out of payable, credit and discount.

CREATE FUNCTION referral.transfer_post(organisation_id bigint, kind text,
                                       idempotency_key text,
                                       postings referral.posting[],
                                       referral_id bigint DEFAULT NULL,
                                       reward_id bigint DEFAULT NULL,
                                       payout_id bigint DEFAULT NULL,
                                       reverses bigint DEFAULT NULL,
                                       memo text DEFAULT NULL,
                                       at timestamptz DEFAULT now())
    RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    id        bigint;
    old_kind  text;
BEGIN
    PERFORM referral.account_lock((SELECT array_agg(p.account_id)
                                       FROM unnest(postings) p));

    INSERT INTO referral.transfer AS t (organisation_id, kind,
                                        idempotency_key, entries, reverses,
                                        referral_id, reward_id, payout_id,
                                        memo, at)
        VALUES (organisation_id, kind, idempotency_key,
                coalesce(cardinality(postings), 0), reverses, referral_id,
                reward_id, payout_id, memo, at)
        ON CONFLICT ON CONSTRAINT transfer_organisation_id_idempotency_key_key
            DO NOTHING
        RETURNING t.id INTO id;

    IF id IS NULL THEN
        SELECT t.id, t.kind INTO id, old_kind
            FROM referral.transfer t
            WHERE t.organisation_id = transfer_post.organisation_id
                  AND t.idempotency_key = transfer_post.idempotency_key;

        IF old_kind <> kind
           OR EXISTS (SELECT 1
                          FROM (SELECT p.account_id, p.reward_id, p.amount, 1
                                       AS n
                                    FROM unnest(postings) p
                                UNION ALL
                                SELECT e.account_id, e.reward_id, e.amount, -1
                                    FROM referral.entry e
                                    WHERE e.transfer_id = id) d
                          GROUP BY d.account_id, d.reward_id, d.amount
                          HAVING sum(d.n) <> 0)
        THEN
            RAISE EXCEPTION 'the key "%" is that of transfer %, which has'
                            ' other entries', idempotency_key, id
                USING ERRCODE = 'RF065', HINT = 'Another transfer needs'
                                                ' another key.';
        END IF;

        RETURN id;
    END IF;

    PERFORM referral.entries_write(array_fill(id,
                ARRAY[coalesce(cardinality(postings), 0)]), postings, kind);

    RETURN id;
END
$$;

REVOKE ALL ON FUNCTION referral.transfer_post(bigint, text, text,
    referral.posting[], bigint, bigint, bigint, bigint, text, timestamptz)
    FROM PUBLIC;


-- What is wrong with the ledger: no rows when nothing is.  It reads all of
-- it.

CREATE FUNCTION referral.ledger_check_entries()
    RETURNS TABLE (problem text, object text, object_id bigint, detail text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'does not add up to zero', 'transfer', t.id,
           referral.money_text(sum(e.amount)::bigint, a.unit)
        FROM referral.transfer t
             JOIN referral.entry e ON e.transfer_id = t.id
             JOIN referral.account a ON a.id = e.account_id
        GROUP BY t.id, a.unit
        HAVING sum(e.amount) <> 0
    UNION ALL
    SELECT 'has no transfer, or no account', 'entry', e.transfer_id,
           format('account %s, entry %s', e.account_id, e.seq)
        FROM referral.entry e
             LEFT JOIN referral.transfer t ON t.id = e.transfer_id
             LEFT JOIN referral.account a ON a.id = e.account_id
        WHERE t.id IS NULL OR a.id IS NULL
    UNION ALL
    SELECT 'entries are missing', 'transfer', t.id, t.kind
        FROM referral.transfer t
             LEFT JOIN referral.entry e ON e.transfer_id = t.id
        GROUP BY t.id
        HAVING count(e.transfer_id) <> t.entries
    UNION ALL
    SELECT 'has an account of another organisation', 'transfer', t.id,
           format('account %s', a.id)
        FROM referral.transfer t
             JOIN referral.entry e ON e.transfer_id = t.id
             JOIN referral.account a ON a.id = e.account_id
        WHERE a.organisation_id <> t.organisation_id
    UNION ALL
    SELECT 'a number is missing', 'account', e.account_id,
           format('%s entries, the last is %s', count(*), max(e.seq))
        FROM referral.entry e
        GROUP BY e.account_id
        HAVING count(*) <> max(e.seq) OR min(e.seq) <> 1
    UNION ALL
    SELECT 'the balance is not the sum of the entries', 'account',
           s.account_id,
           format('entry %s has %s, the sum is %s', s.seq, s.balance, s.total)
        FROM (SELECT e.account_id, e.seq, e.balance,
                     sum(e.amount) OVER (PARTITION BY e.account_id
                                         ORDER BY e.seq) AS total
                  FROM referral.entry e) s
        WHERE s.balance <> s.total
    UNION ALL
    SELECT 'was overdrawn', 'account', a.id,
           format('%s: transfer %s (%s) left %s', a.kind, t.id, t.kind,
                  referral.money_text(e.balance, a.unit))
        FROM referral.account a
             JOIN referral.entry e ON e.account_id = a.id
             JOIN referral.transfer t ON t.id = e.transfer_id
        WHERE a.owed AND e.balance < 0
              AND (a.kind IN ('pending', 'reserved')
                   OR (e.amount < 0
                       AND t.kind NOT IN ('clawback', 'settlement')))
$$;

REVOKE ALL ON FUNCTION referral.ledger_check_entries() FROM PUBLIC;


-- All checks: every function ledger_check_...() of the schema.

CREATE FUNCTION referral.ledger_check()
    RETURNS TABLE (problem text, object text, object_id bigint, detail text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name  text;
BEGIN
    FOR name IN
        SELECT p.proname
            FROM pg_proc p
            WHERE p.pronamespace = 'referral'::regnamespace
                  AND p.proname ~ '^ledger_check_' AND p.pronargs = 0
            ORDER BY 1
    LOOP
        RETURN QUERY EXECUTE format('SELECT * FROM referral.%I()', name);
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION referral.ledger_check() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.ledger_check()
    TO referral_app, referral_analyst, referral_worker;


CREATE VIEW referral.balances AS
    SELECT a.organisation_id, a.id AS account_id, a.kind, a.unit, a.holder,
           a.referrer_id, a.person_id, a.referral_id,
           coalesce(s.balance, 0)::bigint AS balance,
           referral.money_text(coalesce(s.balance, 0)::bigint, a.unit)
               AS balance_text
        FROM referral.account a
             LEFT JOIN LATERAL (SELECT sum(e.amount) AS balance
                                    FROM referral.entry e
                                    WHERE e.account_id = a.id) s ON true
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR a.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.balances TO referral_app, referral_analyst;


CREATE VIEW referral.ledger AS
    SELECT t.organisation_id, t.id AS transfer_id, t.at, t.kind AS transfer,
           a.id AS account_id, e.seq, a.kind AS account, a.unit, a.holder,
           a.referrer_id, a.person_id, t.referral_id, e.reward_id,
           t.payout_id, e.amount, e.balance, t.reverses, t.idempotency_key,
           t.actor, t.memo
        FROM referral.entry e
             JOIN referral.transfer t ON t.id = e.transfer_id
             JOIN referral.account a ON a.id = e.account_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR t.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.ledger TO referral_app, referral_analyst;


CREATE VIEW referral.my_balances WITH (security_barrier) AS
    SELECT a.kind, a.unit, coalesce(sum(e.amount), 0)::bigint AS balance,
           referral.money_text(coalesce(sum(e.amount), 0)::bigint, a.unit)
               AS balance_text
        FROM referral.account a
             JOIN referral.entry e ON e.account_id = a.id
        WHERE a.referrer_id = (SELECT referral.current_referrer())
              AND a.kind <> 'expense'
        GROUP BY a.kind, a.unit;

GRANT SELECT ON referral.my_balances TO referral_partner;

INSERT INTO referral.schema_migration (version, name) VALUES (18, 'ledger');

COMMIT;
