-- Copyright (C) The nginx referral module authors
--
-- The life of a reward after it was earned: hold, approval, expiry, return.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

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

INSERT INTO referral.schema_migration (version, name)
    VALUES (22, 'reward_review');

COMMIT;
