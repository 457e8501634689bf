-- Copyright (C) The nginx referral module authors
--
-- Locks in one order, also where sessions met in another one:
--
--     orders and requests, referees     advisory locks
--     referrals                         by id
--     codes                             of limited uses first, then by id
--     progress                          by referrer
--     payouts, redemptions              by id
--     accounts                          missing ones are made before, by
--                                       referrer, unit and kind; then all that
--                                       are there are locked, by id
--     rewards                           by id
--
-- Each kind is locked once in a transaction, all rows that it will need: who
-- comes back for another one may wait for somebody who waits for him.  So
-- functions look ahead:
--
--     referral_decide(), attribution_override()  (of 0016, 0017) for what goes
--         back when a referral is superseded, and for other chosen referrals;
--     reward_lock()  (0021) for rewards that settling debts changes;
--     reward_give()  (0034) for those, and for the accounts it makes;
--     payout_close(), payout_scheduled(), redemption_reverse(),
--         reward_transfer(), bulk_lock()  (0024, 0025) for both.
--
-- referee_identify()  (0014) locked the person before the referral, and
-- referral_uncredit()  (0016) the identities before the code, which those wait
-- for who have the code; referral_given_up()  (0022) locked accounts when
-- there was nothing to give back.  The other lines of these functions are as
-- they were.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- Rewards of referrals of which something is left, or can come back: from a
-- payout that is given up, or an order that is cancelled.

CREATE FUNCTION referral.rewards_open(referrals bigint[]) RETURNS bigint[]
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN ARRAY(SELECT w.id
                     FROM referral.reward w
                     WHERE w.referral_id = ANY (referrals)
                           AND w.status NOT IN ('rejected', 'cancelled',
                                                'expired', 'reversed'));

REVOKE ALL ON FUNCTION referral.rewards_open(bigint[]) FROM PUBLIC;


-- Those of the accounts, which are locked, that have a debt: reward_settle()
-- pays it with what else comes in.

CREATE FUNCTION referral.accounts_in_debt(accounts bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(SELECT DISTINCT w.account_id
                     FROM referral.reward w
                     WHERE w.account_id = ANY (accounts) AND w.reversed > 0
                           AND (SELECT sum(e.amount)
                                    FROM referral.entry e
                                    WHERE e.reward_id = w.id
                                          AND e.account_id = w.account_id) < 0
                     ORDER BY 1);
END
$$;

REVOKE ALL ON FUNCTION referral.accounts_in_debt(bigint[]) FROM PUBLIC;


-- The same, and the accounts of rewards of which something was used: taking
-- them back makes a debt.

CREATE FUNCTION referral.accounts_settling(rewards bigint[],
                                           accounts bigint[])
    RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN referral.accounts_in_debt(accounts)
           || ARRAY(SELECT DISTINCT w.account_id
                        FROM referral.reward w
                        WHERE w.id = ANY (rewards)
                              AND w.approved_at IS NOT NULL
                              AND (SELECT sum(e.amount)
                                       FROM referral.entry e
                                       WHERE e.reward_id = w.id
                                             AND e.account_id = w.account_id)
                                  < w.amount - w.reversed - w.returned
                                    - w.expired);
END
$$;

REVOKE ALL ON FUNCTION referral.accounts_settling(bigint[], bigint[])
    FROM PUBLIC;


-- Locks rewards, and those that settling the debts of accounts would change:
-- all that have something left there.  Accounts are locked.

CREATE FUNCTION referral.rewards_lock(ids bigint[], debts bigint[])
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF debts <> '{}' THEN
        ids := ids || ARRAY(SELECT l.reward_id
                                FROM unnest(debts) d,
                                     LATERAL referral.reward_remains(d) l
                                WHERE l.reward_id IS NOT NULL);
    END IF;

    PERFORM FROM referral.reward w
        WHERE w.id = ANY (ids)
        ORDER BY w.id
        FOR NO KEY UPDATE;
END
$$;

REVOKE ALL ON FUNCTION referral.rewards_lock(bigint[], bigint[]) FROM PUBLIC;


-- The accounts that rewards may move in, those of the other side among them.

CREATE FUNCTION referral.reward_accounts(ids bigint[], other_side text)
    RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(SELECT unnest(ARRAY[w.pending_id, w.account_id]
                               || referral.account_get(w.organisation_id,
                                      other_side, w.unit, w.referrer_id,
                                      w.person_id, w.referral_id))
                     FROM (SELECT *
                               FROM referral.reward t
                               WHERE t.id = ANY (ids)
                               ORDER BY t.referrer_id, t.unit, t.id) w);
END
$$;

REVOKE ALL ON FUNCTION referral.reward_accounts(bigint[], text) FROM PUBLIC;


-- Locks rewards, whose referrals are locked: the accounts that they may move
-- in, the one of the organisation's side among them, then their rows, and
-- those of rewards that settling a debt would change.

CREATE OR REPLACE FUNCTION referral.reward_lock(ids bigint[], other_side text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    accounts  bigint[] := referral.reward_accounts(ids, other_side);
BEGIN
    PERFORM referral.account_lock(accounts);
    PERFORM referral.rewards_lock(ids,
                CASE other_side WHEN 'expense'
                THEN referral.accounts_settling(ids, accounts) END);
END
$$;


-- Referrals of a program are about to lose or get the credit.  Where rewards
-- go back by that, their accounts are needed before those of new ones: so all
-- that may be needed is locked, from the codes on.  The referrals are locked.

CREATE FUNCTION referral.credit_lock(program bigint, referrals bigint[],
                                     touches jsonb DEFAULT '[]')
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    codes      bigint[];
    rewards    bigint[] := referral.rewards_open(referrals);
    accounts   bigint[];
    referrers  bigint[];
BEGIN
    IF rewards = '{}' THEN
        RETURN;
    END IF;

    codes := ARRAY(SELECT c.id
                       FROM referral.code c
                       WHERE c.code = ANY (referral.touches_codes(touches))
                             AND (c.program_id = program
                                  OR c.max_uses IS NOT NULL)
                   UNION
                   SELECT r.code_id
                       FROM referral.referral r
                       WHERE r.id = ANY (referrals));
    PERFORM referral.code_lock(codes);

    referrers := ARRAY(SELECT c.referrer_id
                           FROM referral.code c
                           WHERE c.id = ANY (codes) AND c.program_id = program
                                 AND c.referrer_id IS NOT NULL
                       UNION
                       SELECT x
                           FROM referral.referral r,
                                LATERAL unnest((referral.reward_shares(r))
                                                   .referrers
                                               || r.referrer_id) x
                           WHERE r.id = ANY (referrals) AND x IS NOT NULL
                       ORDER BY 1);

    INSERT INTO referral.reward_progress (program_id, referrer_id)
        SELECT program, x
            FROM unnest(referrers) WITH ORDINALITY l (x, n)
            ORDER BY n
        ON CONFLICT ON CONSTRAINT reward_progress_pkey DO NOTHING;
    PERFORM FROM referral.reward_progress g
        WHERE g.program_id = program AND g.referrer_id = ANY (referrers)
        ORDER BY g.referrer_id
        FOR NO KEY UPDATE;

    accounts := referral.reward_accounts(rewards, 'expense')
                || ARRAY(SELECT a.id
                             FROM referral.account a
                             WHERE a.referrer_id = ANY (referrers));
    PERFORM referral.account_lock(accounts);
    PERFORM referral.rewards_lock(rewards,
                referral.accounts_settling(rewards, accounts));
END
$$;

REVOKE ALL ON FUNCTION referral.credit_lock(bigint, bigint[], jsonb)
    FROM PUBLIC;


-- Enters what the referee is known by, under every key, and the contact data
-- unless the program keeps none.  What is known already stays: only what is
-- missing is filled in.

CREATE OR REPLACE FUNCTION referral.referee_identify(
    r referral.referral, external_id text, contact jsonb)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p        referral.program;
    known    jsonb;
    person   bigint := r.person_id;
    missing  jsonb;
BEGIN
    SELECT * INTO p FROM referral.program g WHERE g.id = r.program_id;

    IF contact IS NOT NULL
       AND coalesce(referral.program_setting(p, 'referee_contact') #>> '{}',
                    'keep') <> 'hash'
    THEN
        SELECT jsonb_strip_nulls(to_jsonb(h)) INTO known
            FROM referral.person h WHERE h.id = person;
        SELECT coalesce(jsonb_object_agg(c.key,
                   CASE WHEN c.key IN ('email', 'phone')
                             AND jsonb_typeof(c.value) = 'string'
                        THEN to_jsonb(btrim(c.value #>> '{}', E' \t\r\n'))
                        ELSE c.value END), '{}')
            INTO missing
            FROM jsonb_each(contact) c
            WHERE NOT coalesce(known ? c.key, false);

        IF person IS NOT NULL AND missing <> '{}' THEN
            PERFORM FROM referral.referral f
                WHERE f.id = r.id
                FOR NO KEY UPDATE;
        END IF;

        person := referral.person_write('referral', person, r.organisation_id,
                                        'referee', missing);
    END IF;

    INSERT INTO referral.referee_identity (organisation_id, program_id,
                                           referral_id, kind, hash, key_id,
                                           credited)
        SELECT r.organisation_id, r.program_id, r.id, h.kind, h.hash,
               h.key_id, r.credited
            FROM referral.referee_hashes(p, external_id, contact ->> 'email',
                                         contact ->> 'phone') h
            ORDER BY h.hash
        ON CONFLICT DO NOTHING;

    UPDATE referral.referral f
        SET person_id = person,
            referee_external_id = coalesce(f.referee_external_id,
                                           external_id),
            updated_at = now()
        WHERE f.id = r.id
              AND (f.person_id IS DISTINCT FROM person
                   OR f.referee_external_id IS NULL
                      AND external_id IS NOT NULL);
END
$$;


CREATE OR REPLACE FUNCTION referral.referral_uncredit(r referral.referral)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE referral.code c SET uses = greatest(c.uses - 1, 0)
        WHERE c.id = r.code_id;
    UPDATE referral.referee_identity i SET credited = false
        WHERE i.referral_id = r.id;
END
$$;


-- Decides which referral of a referee, whose lock is held, is credited: among
-- the open ones and the touches.  The others are superseded, and a row of
-- attribution says why.  The one decided is still to be moved and credited.

CREATE OR REPLACE FUNCTION referral.referral_decide(
    p referral.program, options jsonb, contact jsonb, touches jsonb,
    referee bytea[], at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r       referral.referral;
    won     jsonb;
    open    bigint[] := '{}';
    other   bigint;
    model   text := p.attribution;
    judged  jsonb := touches;
BEGIN
    FOR r IN
        SELECT f.* FROM referral.referral f
            WHERE f.program_id = p.id AND f.status IN ('pending', 'accepted')
                  AND f.id = ANY (ARRAY(
                      SELECT (options ->> 'referral_id')::bigint
                      UNION ALL
                      SELECT i.referral_id
                          FROM referral.referee_identity i
                          WHERE i.hash = ANY (referee)
                                AND i.organisation_id = p.organisation_id))
            ORDER BY f.id
            FOR NO KEY UPDATE
    LOOP
        open := open || r.id;
        judged := judged || jsonb_strip_nulls(jsonb_build_object(
                      'referral_id', r.id, 'click_id', r.click_id,
                      'at', coalesce(r.clicked_at, r.created_at),
                      'chosen', nullif(r.chosen, false),
                      'code', (SELECT c.code FROM referral.code c
                                   WHERE c.id = r.code_id)));
    END LOOP;

    IF open <> '{}' THEN
        PERFORM referral.credit_lock(p.id, open, judged);
    END IF;

    -- whose uses are limited, in one order: what is judged next will hold

    PERFORM referral.code_lock((
        SELECT array_agg(c.id)
            FROM referral.code c
            WHERE c.code = ANY (referral.touches_codes(judged))
                  AND c.max_uses IS NOT NULL));

    judged := referral.touches_weigh(p, model, judged, referee, at);

    IF EXISTS (SELECT FROM jsonb_array_elements(judged) j
                   WHERE j ? 'chosen' AND j ->> 'why' IS NULL)
    THEN
        model := 'manual';
        SELECT jsonb_agg(j || CASE WHEN j ? 'chosen'
                              THEN '{"weight_bp": 10000, "winner": true}'
                              ELSE '{"weight_bp": 0, "winner": false}'
                              END::jsonb ORDER BY n)
            INTO judged
            FROM jsonb_array_elements(judged) WITH ORDINALITY e (j, n);
    END IF;

    SELECT j INTO won FROM jsonb_array_elements(judged) j
        WHERE j -> 'winner' = 'true';

    IF won IS NULL AND judged = '[]' THEN
        RAISE EXCEPTION 'nothing says who referred this referee'
            USING ERRCODE = 'RF102',
                  HINT = 'Give a code, a click_id or a token, or make a'
                         ' referral first.';

    ELSIF won IS NULL THEN
        PERFORM referral.touch_refuse(p, judged -> -1);
    END IF;

    r := NULL;
    SELECT f.* INTO r FROM referral.referral f
        WHERE f.id = ANY (open)
              AND (f.id = (won ->> 'referral_id')::bigint
                   OR NOT won ? 'referral_id'
                      AND (f.code_id = (won ->> 'code_id')::bigint
                           OR f.referrer_id = (won ->> 'referrer_id')::bigint))
        ORDER BY f.code_id = (won ->> 'code_id')::bigint DESC NULLS LAST, f.id
        LIMIT 1;

    IF r.id IS NULL THEN
        r := referral.referral_insert(p, options, contact, touches, won,
                                      referee, at);

    ELSE
        UPDATE referral.referral f
            SET code_id = coalesce((won ->> 'code_id')::bigint, f.code_id),
                click_id = coalesce((won ->> 'click_id')::uuid, f.click_id),
                clicked_at = CASE WHEN won ? 'click_id'
                                  THEN (won ->> 'at')::timestamptz
                                  ELSE f.clicked_at END,
                country = coalesce(f.country, won ->> 'country'),
                touches = f.touches || referral_decide.touches
            WHERE f.id = r.id AND NOT won ? 'referral_id';
        PERFORM referral.referee_identify(r, options ->> 'external_id',
                                          contact);
    END IF;

    FOREACH other IN ARRAY open LOOP
        IF other <> r.id THEN
            PERFORM referral.referral_move(other, 'superseded', 'attribution',
                        format('referral %s was credited', r.id), at);
        END IF;
    END LOOP;

    INSERT INTO referral.attribution (organisation_id, program_id, referral_id,
                                      model, reason, candidates, decided_at)
        VALUES (p.organisation_id, p.id, r.id, model,
                CASE model WHEN 'manual' THEN 'chosen by hand before' END,
                judged, at);

    RETURN referral.referral_row(r.id);
END
$$;


-- Gives the credit to this referral, against the rule, with a reason.  The
-- one that had it is superseded; its rewards are taken back.  Before anybody
-- has registered the referral is chosen for that time.  Refused once the
-- credited one has converted: what was earned is undone first, by
-- referral_cancel() or a refund, where everyone sees it.

CREATE OR REPLACE FUNCTION referral.attribution_override(referral_id bigint,
                                                         reason text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r        referral.referral;
    had      referral.referral;
    referee  bytea[];
BEGIN
    IF coalesce(btrim(reason), '') = '' THEN
        RAISE EXCEPTION 'attribution_override(): "reason" must not be empty'
            USING ERRCODE = 'RF010',
                  HINT = 'Say why: attribution and audit keep it.';
    END IF;

    r := referral.referral_named(jsonb_build_object('referral_id',
             coalesce(referral_id::text, '(null)')), NULL);

    SELECT coalesce(array_agg(i.hash), '{}') INTO referee
        FROM referral.referee_identity i WHERE i.referral_id = r.id;
    PERFORM referral.referee_lock(r.organisation_id, referee);

    SELECT f.* INTO had
        FROM referral.referee_identity i
             JOIN referral.referral f ON f.id = i.referral_id
        WHERE i.hash = ANY (referee) AND i.program_id = r.program_id
              AND i.credited
        ORDER BY f.id LIMIT 1;

    PERFORM FROM referral.referral f
        WHERE f.id IN (r.id, had.id)
              OR f.chosen AND f.program_id = r.program_id
                 AND f.id IN (SELECT i.referral_id
                                  FROM referral.referee_identity i
                                  WHERE i.hash = ANY (referee)
                                        AND i.program_id = r.program_id)
        ORDER BY f.id
        FOR NO KEY UPDATE;
    r := referral.referral_row(r.id);

    IF had.id = r.id THEN
        RETURN;

    ELSIF had.status <> 'registered' THEN
        RAISE EXCEPTION 'referral % has the credit and is %', had.id,
                        had.status
            USING ERRCODE = 'RF106',
                  HINT = 'Only the credit of one that is registered moves.';

    ELSIF r.status NOT IN ('pending', 'accepted', 'superseded') THEN
        RAISE EXCEPTION 'referral % is % and can not be credited', r.id,
                        r.status
            USING ERRCODE = 'RF091',
                  HINT = 'From here: pending, accepted and superseded ones.';
    END IF;

    IF had.id IS NOT NULL THEN
        PERFORM referral.credit_lock(r.program_id, ARRAY[had.id, r.id]);
        PERFORM referral.code_lock(ARRAY[had.code_id, r.code_id]);
        PERFORM referral.referral_move(had.id, 'superseded', 'attribution',
                                       reason);
        r := referral.referral_settle(r, 'registered', 'attribution', now());
        PERFORM referral.referral_reward(r.id);

    ELSIF r.status = 'superseded' THEN
        PERFORM referral.referral_move(r.id, 'pending', 'attribution', reason);
    END IF;

    -- only one is chosen: the last word holds

    UPDATE referral.referral f SET chosen = f.id = r.id
        WHERE f.program_id = r.program_id
              AND (f.id = r.id
                   OR f.chosen
                      AND f.id IN (SELECT i.referral_id
                                       FROM referral.referee_identity i
                                       WHERE i.hash = ANY (referee)
                                             AND i.program_id
                                                 = r.program_id));

    INSERT INTO referral.attribution (organisation_id, program_id, referral_id,
                                      previous_referral_id, model, reason,
                                      candidates)
        SELECT r.organisation_id, r.program_id, r.id, had.id, 'manual', reason,
               jsonb_agg(jsonb_build_object('referral_id', f.id,
                             'referrer_id', f.referrer_id,
                             'code_id', f.code_id,
                             'at', coalesce(f.clicked_at, f.created_at),
                             'why', NULL,
                             'weight_bp', CASE f.id WHEN r.id THEN 10000
                                                    ELSE 0 END,
                             'winner', f.id = r.id) ORDER BY f.id)
            FROM referral.referral f WHERE f.id IN (r.id, had.id);

    PERFORM referral.audit_write(r.organisation_id, 'override', 'referral',
                                 r.id, '{credited}', reason);
END
$$;


-- A referral that is given up takes with it what is left of its rewards.
-- What was paid or used stays so: a refund claws it back.

CREATE OR REPLACE FUNCTION referral.referral_given_up() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ids  bigint[] := referral.rewards_open(ARRAY[NEW.id]);
    w    referral.reward;
BEGIN
    IF ids = '{}' THEN
        RETURN NULL;
    END IF;

    PERFORM referral.reward_lock(ids, 'expense');

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


-- Gives back what a payout had reserved.

CREATE OR REPLACE FUNCTION referral.payout_close(
    o referral.payout, word text, why text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked     bigint;
    payable   bigint;
    rewards   bigint[];
    accounts  bigint[];
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
    SELECT array_agg(t.reward_id), array_agg(t.account_id)
        INTO rewards, accounts
        FROM unnest(postings) t;

    PERFORM referral.account_lock(accounts || payable);
    PERFORM referral.rewards_lock(rewards,
                referral.accounts_in_debt(ARRAY[payable]));
    PERFORM referral.transfer_post(o.organisation_id, 'payout_return',
                format('payout:%s:return', o.id), postings,
                payout_id => o.id, reverses => asked);

    UPDATE referral.payout p
        SET status = word, reason = left(why, 500), closed_at = now(),
            closed_by = referral.actor()
        WHERE p.id = o.id
        RETURNING * INTO o;

    PERFORM referral.reward_refresh(rewards);
    PERFORM referral.reward_settle(payable);

    IF word = 'rejected' THEN
        PERFORM referral.payout_emit(o, 'rejected');
    END IF;
END
$$;


-- Asks for the payouts that the policies have planned until now, for up to a
-- slice of referrers; how many were made.  Any number of sessions at once: one
-- has the policy.  Who has too little, or is suspended, waits for the next.

CREATE OR REPLACE FUNCTION referral.payout_scheduled(
    at timestamptz DEFAULT now(), slice int DEFAULT 500)
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

    PERFORM referral.accounts_use((
        SELECT array_agg(referral.account_get(y.organisation_id, l.kind,
                                              y.unit, l.f))
            FROM (SELECT f, kind
                      FROM unnest(who) f,
                           unnest(ARRAY['payable', 'reserved']) kind
                      ORDER BY f, kind) l));

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


-- The order was cancelled: gives back what was used on it, all of it.  What
-- has ended since expires again with the next housekeeping.  Again: nothing.

CREATE OR REPLACE FUNCTION referral.redemption_reverse(
    id bigint, reason text DEFAULT NULL)
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
    PERFORM referral.rewards_lock(rewards,
                                  referral.accounts_in_debt(sources));
    PERFORM referral.transfer_post(n.organisation_id, 'redemption_return',
                format('redemption:%s:return', n.id), postings,
                referral_id => n.referral_id, reverses => used);
    PERFORM referral.reward_refresh(rewards);
    PERFORM referral.reward_settle(s) FROM unnest(sources) s;
END
$$;


-- Gives rewards of one referrer to another of the organisation.  Options:
-- unit (default: the organisation's currency), amount (default: all), account
-- (payable; credit, discount), idempotency_key (required).  Returns the
-- transfer of the ledger.

CREATE OR REPLACE FUNCTION referral.reward_transfer(
    from_referrer bigint, to_referrer bigint, options jsonb,
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

    PERFORM referral.account_get(f.organisation_id, kind, n.unit, h)
        FROM unnest(ARRAY[least(f.id, g.id), greatest(f.id, g.id)]) h;
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


-- All that a bulk operation will lock, in the one order.  What rewards there
-- are is known when the referrals are locked.

CREATE OR REPLACE FUNCTION referral.bulk_lock(what text, ids bigint[])
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rewards    bigint[] := ids;
    accounts   bigint[];
    referrals  bigint[] := ids;
BEGIN
    IF what = 'payout' THEN
        SELECT array_agg(DISTINCT e.reward_id),
               array_agg(DISTINCT e.account_id)
            INTO rewards, accounts
            FROM referral.transfer t
                 JOIN referral.entry e ON e.transfer_id = t.id
            WHERE t.payout_id = ANY (ids);
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

    IF what = 'referral' THEN
        SELECT array_agg(w.id) INTO rewards
            FROM referral.reward w WHERE w.referral_id = ANY (ids);
    END IF;

    IF what <> 'payout' THEN
        accounts := referral.reward_accounts(rewards, 'expense');
    END IF;

    PERFORM referral.account_lock(accounts);
    PERFORM referral.rewards_lock(rewards,
                CASE what WHEN 'payout'
                THEN referral.accounts_in_debt(accounts)
                ELSE referral.accounts_settling(rewards, accounts) END);
END
$$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (32, 'lock_order');

COMMIT;
