-- Copyright (C) The nginx referral module authors
--
-- Arguments: null, values out of range and wrong words are errors with a name,
-- in every function that others may call.  Replaces those of this name in
-- 0014, 0016, 0017, 0022, 0024, 0026 and 0029, as 0032 and 0034 left them.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;


-- RF010 unless an argument is right.

CREATE FUNCTION referral.argument_check(what text, name text, fits boolean,
                                        accepted text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF fits IS NOT TRUE THEN
        RAISE EXCEPTION '%(): "%" is not acceptable', what, name
            USING ERRCODE = 'RF010', HINT = format('Accepted: %s.', accepted);
    END IF;
END
$$;


-- A number of rows, or of things done at a time; null: no limit.

CREATE FUNCTION referral.limit_check(what text, name text, n int)
    RETURNS void
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.argument_check(what, name, coalesce(n >= 0, true),
                                    '0 or more; null: no limit');
END
$$;


-- Two days that a calendar has, the first not behind the last: or RF121.

CREATE FUNCTION referral.days_check(low date, high date) RETURNS void
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF low >= '1900-01-01' AND high <= '9998-12-31' AND low <= high THEN
        RETURN;
    END IF;

    RAISE EXCEPTION 'from % to % is no period', coalesce(low::text, '(null)'),
                    coalesce(high::text, '(null)')
        USING ERRCODE = 'RF121',
              HINT = 'The first day is not behind the last, both are from'
                     ' 1900 to 9998.';
END
$$;

REVOKE ALL ON FUNCTION referral.argument_check(text, text, boolean, text),
    referral.limit_check(text, text, int),
    referral.days_check(date, date) FROM PUBLIC;


-- The program, if it may be read, with the period filled in.

CREATE OR REPLACE FUNCTION referral.period(program_id bigint, from_day date,
                                           until_day date, OUT low date,
                                           OUT high date)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program := referral.program_row(program_id);
BEGIN
    high := coalesce(until_day, (now() AT TIME ZONE p.time_zone)::date);
    low := coalesce(from_day, high - 29);

    PERFORM referral.days_check(low, high);

    IF high - low > 3700 THEN
        RAISE EXCEPTION 'the period % to % is no period of at most 10 years',
                        low, high
            USING ERRCODE = 'RF121',
                  HINT = 'The first day is not behind the last.';
    END IF;
END
$$;


-- The figures by source, campaign, country or variant, most clicks first; the
-- name is null for what has none.

CREATE OR REPLACE FUNCTION
    referral.breakdown(program_id bigint, by text, from_day date DEFAULT NULL,
                       until_day date DEFAULT NULL, max_rows int DEFAULT 100)
    RETURNS TABLE (name text, clicks bigint, noise bigint, created bigint,
                   registered bigint, converted bigint, revenue bigint,
                   refunds bigint, cost bigint, conversion_rate numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    low   date;
    high  date;
BEGIN
    IF by IS NULL OR by <> ALL ('{source,campaign,country,variant}'::text[])
    THEN
        RAISE EXCEPTION 'no breakdown by "%"', by
            USING ERRCODE = 'RF122',
                  HINT = 'By source, campaign, country or variant; by'
                         ' referrer: leaderboard().';
    END IF;

    PERFORM referral.limit_check('breakdown', 'max_rows', max_rows);

    SELECT p.low, p.high INTO low, high
        FROM referral.period(breakdown.program_id, from_day, until_day) p;

    RETURN QUERY
        SELECT CASE breakdown.by
                    WHEN 'source' THEN r.source
                    WHEN 'campaign' THEN r.campaign
                    WHEN 'country' THEN r.country
                    ELSE v.name END,
               sum(r.clicks)::bigint, sum(r.noise)::bigint,
               sum(r.created)::bigint, sum(r.registered)::bigint,
               sum(r.converted)::bigint, sum(r.revenue)::bigint,
               sum(r.refunds)::bigint, sum(r.cost)::bigint,
               referral.share(sum(r.converted), sum(r.clicks))
            FROM referral.rollup r
                 LEFT JOIN referral.program_variant v ON v.id = r.variant_id
            WHERE r.program_id = breakdown.program_id
                  AND r.day BETWEEN low AND high
            GROUP BY 1
            ORDER BY sum(r.clicks) DESC, sum(r.created) DESC, 1
            LIMIT breakdown.max_rows;
END
$$;


-- Referrers of a program in order of clicks, created, registered, converted,
-- conversions, revenue (net of refunds) or earned.  Who has the same figure
-- has the same rank, who has none is not listed.

CREATE OR REPLACE FUNCTION
    referral.leaderboard(program_id bigint, by text DEFAULT 'converted',
                         from_day date DEFAULT NULL,
                         until_day date DEFAULT NULL, max_rows int DEFAULT 10)
    RETURNS TABLE (rank bigint, referrer_id bigint, external_id text,
                   clicks bigint, created bigint, registered bigint,
                   converted bigint, conversions bigint, revenue bigint,
                   earned bigint, conversion_rate numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    low   date;
    high  date;
BEGIN
    IF by IS NULL OR by <> ALL ('{clicks,created,registered,converted,'
           'conversions,revenue,earned}'::text[])
    THEN
        RAISE EXCEPTION 'no leaderboard by "%"', by
            USING ERRCODE = 'RF122',
                  HINT = 'By clicks, created, registered, converted,'
                         ' conversions, revenue or earned.';
    END IF;

    PERFORM referral.limit_check('leaderboard', 'max_rows', max_rows);

    SELECT p.low, p.high INTO low, high
        FROM referral.period(leaderboard.program_id, from_day, until_day) p;

    -- who leads is found by the one figure, and then the others of these few

    RETURN QUERY EXECUTE format($q$
        SELECT t.rank, t.referrer_id, f.external_id, s.clicks, s.created,
               s.registered, s.converted, s.conversions, s.revenue, s.earned,
               referral.share(s.converted, s.clicks)
            FROM (SELECT rank() OVER (ORDER BY sum(%1$s) DESC) AS rank,
                         r.referrer_id
                      FROM referral.rollup_referrer r
                      WHERE r.program_id = $1 AND r.day BETWEEN $2 AND $3
                            AND %2$s
                      GROUP BY r.referrer_id
                      ORDER BY 1, 2
                      LIMIT $4) t
                 JOIN referral.referrer f ON f.id = t.referrer_id,
                 LATERAL (SELECT sum(r.clicks)::bigint AS clicks,
                                 sum(r.created)::bigint AS created,
                                 sum(r.registered)::bigint AS registered,
                                 sum(r.converted)::bigint AS converted,
                                 sum(r.conversions)::bigint AS conversions,
                                 sum(r.revenue - r.refunds)::bigint
                                     AS revenue,
                                 sum(r.earned)::bigint AS earned
                              FROM referral.rollup_referrer r
                              WHERE r.referrer_id = t.referrer_id
                                    AND r.program_id = $1
                                    AND r.day BETWEEN $2 AND $3) s
            ORDER BY t.rank, t.referrer_id $q$,
        CASE by WHEN 'revenue' THEN 'r.revenue - r.refunds'
                ELSE 'r.' || by END,
        CASE by WHEN 'revenue' THEN '(r.revenue <> 0 OR r.refunds <> 0)'
                ELSE 'r.' || by || ' <> 0' END)
        USING leaderboard.program_id, low, high, max_rows;
END
$$;


-- Records a cost once: the same reference again with the same amount and day
-- changes nothing, with others it is RF120.

COMMENT ON CONSTRAINT program_cost_reference_check ON referral.program_cost IS
    '1 to 200 characters';

CREATE OR REPLACE FUNCTION
    referral.program_cost_record(program_id bigint, day date, amount bigint,
                                 reference text)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    given          referral.program_cost;
    new            bigint;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    PERFORM referral.program_row(program_cost_record.program_id);
    PERFORM referral.argument_check('program_cost_record', 'day',
        program_cost_record.day BETWEEN '1900-01-01' AND '9998-12-31',
        'a day from 1900 to 9998');

    INSERT INTO referral.program_cost (program_id, day, amount, reference)
        VALUES (program_cost_record.program_id, program_cost_record.day,
                program_cost_record.amount, program_cost_record.reference)
        ON CONFLICT (program_id, reference) DO NOTHING
        RETURNING id INTO new;

    IF new IS NOT NULL THEN
        RETURN new;
    END IF;

    SELECT * INTO given FROM referral.program_cost c
        WHERE c.program_id = program_cost_record.program_id
              AND c.reference = program_cost_record.reference;

    IF given.day IS DISTINCT FROM program_cost_record.day
       OR given.amount IS DISTINCT FROM program_cost_record.amount
    THEN
        RAISE EXCEPTION 'cost "%" of program % is already there with another'
                        ' amount or day', program_cost_record.reference,
                        program_cost_record.program_id
            USING ERRCODE = 'RF120',
                  HINT = 'Record the difference under a reference of its own.';
    END IF;

    RETURN given.id;

EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('program_cost_record', broken_table,
                                      broken, broken_column);
END
$$;



-- The policy of an organisation, or of a program with program_id.  Options:
-- program_id, minimum, every (week, month, quarter; null: only on request),
-- method.

CREATE OR REPLACE FUNCTION
    referral.payout_policy_set(organisation_id bigint, unit text,
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

    y := referral.options_apply('payout_policy_set', y, options);

    SELECT * INTO y FROM referral.payout_policy q
        WHERE q.organisation_id = o.id AND q.unit = payout_policy_set.unit
              AND q.program_id IS NOT DISTINCT FROM y.program_id;

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

    PERFORM referral.argument_check('payout_policy_set', 'every',
        coalesce(y.every IN ('week', 'month', 'quarter'), true),
        'week, month, quarter; null: on request only');

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


-- What a referrer had, got and has, for each unit and account: days are the
-- organisation's, both included.

CREATE OR REPLACE FUNCTION
    referral.statement(referrer_id bigint, from_day date, until_day date)
    RETURNS TABLE (unit text, account text, line text, at timestamptz,
                   what text, amount bigint, balance bigint, amount_text text,
                   balance_text text, referral_id bigint, reward_id bigint,
                   payout_id bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referrer_row(referrer_id);
    PERFORM referral.days_check(from_day, until_day);

    RETURN QUERY SELECT * FROM referral.statement_lines(statement.referrer_id,
                                                        from_day, until_day);
END
$$;


CREATE OR REPLACE FUNCTION
    referral.my_statement(from_day date, until_day date)
    RETURNS TABLE (unit text, account text, line text, at timestamptz,
                   what text, amount bigint, balance bigint, amount_text text,
                   balance_text text, referral_id bigint, reward_id bigint,
                   payout_id bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.days_check(from_day, until_day);

    RETURN QUERY
        SELECT * FROM referral.statement_lines(referral.current_referrer(),
                                               from_day, until_day);
END
$$;


-- Notes that a payout was paid.  A bank transfer or a check has a reference.
-- With account_credit the money stays here: it becomes the referrer's credit,
-- for orders.  Referrals of which nothing is left to be paid are paid.  Again,
-- with the same reference: nothing.

CREATE OR REPLACE FUNCTION
    referral.payout_pay(id bigint, reference text DEFAULT NULL,
                        method text DEFAULT NULL)
    RETURNS void
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

    IF length(reference) NOT BETWEEN 1 AND 200
       OR reference IS NULL AND method IN ('bank_transfer', 'check')
    THEN
        RAISE EXCEPTION 'payout_pay(): "reference" is not acceptable'
            USING ERRCODE = 'RF010',
                  HINT = 'The number of the bank transfer or the check, 1 to'
                         ' 200 characters; null for other methods.';
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
    PERFORM referral.options_check('referral', contact,
        '{first_name,last_name,name,email,phone,company,address}');

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


-- Expires what is open and past its time, in slices, each referral in one
-- session only; how many.  Rows that others are at are left for the next time.

CREATE OR REPLACE FUNCTION
    referral.referral_expire(at timestamptz DEFAULT now(),
                                         slice int DEFAULT 1000)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    id     bigint;
    done   bigint := 0;
BEGIN
    PERFORM referral.limit_check('referral_expire', 'slice', slice);

    FOR id IN
        SELECT r.id FROM referral.referral r
            WHERE r.status IN ('pending', 'accepted', 'registered')
                  AND r.expires_at <= at
                  AND (scope IS NULL OR r.organisation_id = scope)
            ORDER BY r.id
            LIMIT slice
            FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        PERFORM referral.referral_move(id, 'expired', 'anyone',
                                       'past expires_at', at);
        done := done + 1;
    END LOOP;

    RETURN done;
END
$$;


-- Releases up to a slice of the rewards whose time has come; how many.  Any
-- number of sessions at once: each takes others.  Those of referrers who are
-- suspended meanwhile are held.

CREATE OR REPLACE FUNCTION
    referral.reward_release(at timestamptz DEFAULT now(),
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
    PERFORM referral.limit_check('reward_release', 'slice', slice);

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


-- Announces rewards that will expire, once each, by the notice of their rules;
-- how many.

CREATE OR REPLACE FUNCTION
    referral.reward_expiring(at timestamptz DEFAULT now(),
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
    PERFORM referral.limit_check('reward_expiring', 'slice', slice);

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


-- Lets expire what was not used in time; how many.  What is in a payout that
-- was asked for in time does not.

CREATE OR REPLACE FUNCTION
    referral.reward_expire(at timestamptz DEFAULT now(), slice int DEFAULT 200)
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
    PERFORM referral.limit_check('reward_expire', 'slice', slice);

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
    PERFORM referral.limit_check('payout_scheduled', 'slice', slice);

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


-- The program in the options of a conversion, or null: RF020 for what is none.

CREATE FUNCTION referral.program_named(options jsonb) RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given  text := options ->> 'program_id';
BEGIN
    IF given !~ '^[0-9]{1,18}$' THEN
        RAISE EXCEPTION 'program %: there is none with this id, or it is not'
                        ' yours', left(given, 40)
            USING ERRCODE = 'RF020',
                  HINT = 'The view referral.programs lists them.';
    END IF;

    RETURN given::bigint;
END
$$;

REVOKE ALL ON FUNCTION referral.program_named(jsonb) FROM PUBLIC;


-- What most conversions are for: a customer whose one referral is credited,
-- and can convert, or has.  That one, locked, as is the customer; or null:
-- referral_convert() has the last word then, and may refuse.

CREATE OR REPLACE FUNCTION
    referral.referral_known(organisation_id bigint, options jsonb,
                                        contact jsonb, at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    program  bigint := referral.program_named(options);
    referee  bytea[];
    ids      bigint[];
    r        referral.referral;
BEGIN
    IF options ->> 'referral_id' IS NOT NULL THEN
        RETURN NULL;
    END IF;

    referee := referral.customer_hashes(organisation_id, program,
                                        options ->> 'external_id', contact);

    IF referee = '{}' THEN
        RETURN NULL;
    END IF;

    PERFORM referral.referee_lock(organisation_id, referee);

    ids := ARRAY(SELECT i.referral_id
                     FROM referral.referee_identity i
                     WHERE i.hash = ANY (referee) AND i.credited
                           AND i.organisation_id
                               = referral_known.organisation_id
                           AND (program IS NULL OR i.program_id = program));

    IF ids = '{}' OR ids[1] <> ANY (ids) THEN
        RETURN NULL;
    END IF;

    r := referral.referral_row(ids[1]);

    IF r.status IN ('converted', 'rewarded', 'paid')
       OR (r.status IN ('registered', 'expired') AND r.credited
           AND coalesce(r.expires_at > at, true))
    THEN
        RETURN r;
    END IF;

    RETURN NULL;
END
$$;


-- For conversions: the credited referral of a customer, at 'converted' or
-- beyond; for one who never registered it is decided now.  Options are
-- those of the conversion; read are referral_id, program_id, external_id,
-- code, click_id and token.  The locks of the referee and of the referral are
-- held after it.  RF090 where there is none, RF091 and RF105 where it is over.

CREATE OR REPLACE FUNCTION referral.referral_convert(organisation_id bigint,
                                          options jsonb,
                                          contact jsonb DEFAULT NULL,
                                          at timestamptz DEFAULT now())
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p        referral.program;
    r        referral.referral;
    touches  jsonb := referral.touches_given(options, at);
    program  bigint := referral.program_named(options);
    mine     bigint;
    referee  bytea[];
    several  int;
BEGIN
    options := options - 'idempotency_key';
    r := referral.referral_named(options, program);
    program := coalesce(program, r.program_id);

    SELECT coalesce(array_agg(h.hash), '{}') INTO referee
        FROM (SELECT unnest(referral.customer_hashes(organisation_id, program,
                         options ->> 'external_id', contact)) AS hash
              UNION
              SELECT i.hash FROM referral.referee_identity i
                  WHERE i.referral_id = r.id) h;

    PERFORM referral.referee_lock(organisation_id, referee);

    SELECT count(DISTINCT f.program_id), max(f.id) INTO several, mine
        FROM referral.referral f
        WHERE f.organisation_id = referral_convert.organisation_id
              AND (program IS NULL OR f.program_id = program)
              AND f.credited
              AND f.id IN (SELECT r.id
                           UNION ALL
                           SELECT i.referral_id
                               FROM referral.referee_identity i
                               WHERE i.hash = ANY (referee)
                                     AND i.credited);

    IF several > 1 THEN
        RAISE EXCEPTION 'this customer was referred in % programs', several
            USING ERRCODE = 'RF104',
                  HINT = 'Give program_id or referral_id.';

    ELSIF several = 1 THEN
        RETURN referral.referral_convert_one(mine, at);

    ELSIF r.id IS NOT NULL AND r.status NOT IN ('pending', 'accepted') THEN
        RETURN referral.referral_convert_one(r.id, at);
    END IF;

    p := referral.referral_program(coalesce(program,
             referral.program_open(organisation_id, referee, touches, at)),
             touches);

    IF p.organisation_id <> organisation_id THEN
        RAISE EXCEPTION 'program % is of another organisation', p.id
            USING ERRCODE = 'RF012',
                  HINT = 'A conversion belongs to one organisation.';
    END IF;

    PERFORM referral.request_lock(p, options, touches, referee);
    r := referral.referral_decide(p, options, contact, touches, referee, at);

    RETURN referral.referral_settle(r, 'converted', 'money', at);
END
$$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (36, 'arguments');

COMMIT;
