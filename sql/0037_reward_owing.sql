-- Copyright (C) The nginx referral module authors
--
-- Rewards: what is rejected is told as such, and how long it takes to settle
-- a debt does not grow with the refunded rewards of the account.  Replaces
-- functions of this name in 0020, 0022 and 0032.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

INSERT INTO referral.event_type (type, description) VALUES
    ('reward.rejected', 'a reward was rejected before it was released');

-- Takes back what is left of a reward, which is locked, and what of it was not
-- used: it is rejected when it was pending or held, else cancelled.

CREATE OR REPLACE FUNCTION
    referral.reward_return(w referral.reward, reason text)
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
        PERFORM referral.reward_emit(w, CASE WHEN open THEN 'reversed'
                                        ELSE 'rejected' END, left_);
    END IF;
END
$$;


-- Rewards that owe something, after clawbacks: so that an account without any
-- is seen at once.

ALTER TABLE referral.reward ADD COLUMN owing boolean;

COMMENT ON COLUMN referral.reward.owing IS
    'less than nothing is left of it; kept by reward_refresh()';

ALTER TABLE referral.reward DISABLE TRIGGER rollup_mark_update;

UPDATE referral.reward w
    SET owing = true
    WHERE w.reversed > 0
          AND (SELECT sum(e.amount)
                   FROM referral.entry e
                   WHERE e.reward_id = w.id AND e.account_id = w.account_id)
              < 0;

ALTER TABLE referral.reward ENABLE TRIGGER rollup_mark_update;

CREATE INDEX reward_owing ON referral.reward (account_id) WHERE owing;
DROP INDEX referral.reward_reversed;


CREATE OR REPLACE FUNCTION
    referral.reward_refresh(ids bigint[], at timestamptz DEFAULT now())
    RETURNS void
    LANGUAGE sql
    SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE referral.reward w
        SET status = n.status,
            closed_at = CASE WHEN n.remaining > 0 THEN NULL
                             ELSE coalesce(w.closed_at, at) END,
            owing = CASE WHEN n.remaining < 0 THEN true END
        FROM referral.reward_state n
        WHERE n.id = ANY (ids) AND w.id = n.id
              AND (w.status, w.closed_at IS NULL, coalesce(w.owing, false))
                  IS DISTINCT FROM (n.status, n.remaining > 0,
                                    n.remaining < 0)
$$;


-- Debts in an account are paid with what else is in it: so nothing that is
-- owed expires, or is paid out, beside a debt.  The account is locked.

CREATE OR REPLACE FUNCTION
    referral.reward_settle(account_id bigint) RETURNS void
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
                             AND w.owing
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


-- Those of the accounts, which are locked, that have a debt: reward_settle()
-- pays it with what else comes in.

CREATE OR REPLACE FUNCTION
    referral.accounts_in_debt(accounts bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(SELECT DISTINCT w.account_id
                     FROM referral.reward w
                     WHERE w.account_id = ANY (accounts) AND w.owing
                           AND (SELECT sum(e.amount)
                                    FROM referral.entry e
                                    WHERE e.reward_id = w.id
                                          AND e.account_id = w.account_id) < 0
                     ORDER BY 1);
END
$$;


-- A debt that is not marked is one that nothing pays.

CREATE FUNCTION referral.ledger_check_owing()
    RETURNS TABLE (problem text, object text, object_id bigint, detail text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'owes, and is not marked, or is marked and does not', 'reward',
           w.id, format('owing %s, remaining %s', coalesce(w.owing, false),
                        coalesce(s.remaining, 0))
        FROM referral.reward w
             LEFT JOIN referral.reward_state s ON s.id = w.id
        WHERE coalesce(w.owing, false) <> (coalesce(s.remaining, 0) < 0)
$$;

REVOKE ALL ON FUNCTION referral.ledger_check_owing() FROM PUBLIC;

INSERT INTO referral.schema_migration (version, name)
    VALUES (37, 'reward_owing');

COMMIT;
