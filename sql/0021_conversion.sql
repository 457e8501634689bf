-- Copyright (C) The nginx referral module authors
--
-- Recording a conversion.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- Records a conversion, once, and gives what it earns.
--
-- Options: order_ref and idempotency_key, at least one; who: referral_id, or
-- external_id, email, phone of the customer, or click_id, token, code of the
-- click (program_id where several are possible); what: amount (minor units,
-- the promotion discount off), currency (default: the program's), discount,
-- kind (purchase), product, occurred_at (now).
--
-- Returns outcome, conversion_id, referral_id, program_id, referrer_id, nth,
-- rewards and skipped rules.  The outcome is "credited", or "unattributed",
-- with the reason, when no referral is good for it: then nothing is kept, and
-- the same order may be sent again.  Otherwise the same order, or key, gets
-- the first answer again; RF068 if it has other content (e-mail and phone are
-- not kept, and so not compared).
--
-- Some hundred small statements run here, and all are found by an index: plans
-- made anew for the values of each would take a third of the time.

CREATE FUNCTION referral.conversion_record(organisation_id bigint,
                                           options jsonb)
    RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET timezone = 'UTC'
AS $$
DECLARE
    who      text[] := '{referral_id,program_id,external_id,email,phone,'
                       'click_id,token,code}';
    c        referral.conversion;
    old      referral.conversion;
    r        referral.referral;
    given    jsonb;
    contact  jsonb;
    refused  jsonb;
    clicks   boolean;
    first    boolean;
BEGIN
    PERFORM referral.organisation_live(organisation_id);
    options := jsonb_strip_nulls(referral.options_check('conversion_record',
                   options, who || '{order_ref,idempotency_key,amount,'
                   'currency,discount,kind,product,occurred_at}'::text[]));
    c.kind := 'purchase';
    c.amount := 0;
    c.discount := 0;
    c.occurred_at := now();
    c := referral.options_apply('conversion_record', c, options - who);
    c.organisation_id := organisation_id;
    c.request_hash := sha256(convert_to((options - '{email,phone}'::text[])
                                        ::text, 'UTF8'));
    PERFORM referral.conversion_values(c);

    -- the same order at the same time: one is first, the others read it

    PERFORM pg_advisory_xact_lock(hashtextextended('referral.order/' || k,
                                                   organisation_id))
        FROM (SELECT 'o' || c.order_ref AS k
              UNION ALL
              SELECT 'k' || c.idempotency_key
              ORDER BY 1 DESC) l
        WHERE k IS NOT NULL;

    SELECT * INTO old
        FROM referral.conversion t
        WHERE t.organisation_id = conversion_record.organisation_id
              AND (t.order_ref = c.order_ref
                   OR t.idempotency_key = c.idempotency_key)
        ORDER BY t.id
        LIMIT 1;

    IF FOUND THEN
        IF old.request_hash <> c.request_hash THEN
            RAISE EXCEPTION 'conversion % was recorded with other content'
                            ' (order_ref %, idempotency_key %)', old.id,
                            coalesce(old.order_ref, 'none'),
                            coalesce(old.idempotency_key, 'none')
                USING ERRCODE = 'RF068',
                      HINT = 'An order is recorded once. What changed'
                             ' afterwards is a refund, or another order.';
        END IF;

        RETURN old.answer;
    END IF;

    contact := nullif(jsonb_strip_nulls(jsonb_build_object(
                   'email', options -> 'email', 'phone', options -> 'phone')),
                   '{}');
    given := options - '{email,phone,order_ref,idempotency_key,amount,'
                       'currency,discount,kind,product,occurred_at}'::text[];

    FOR turn IN 1 .. 2 LOOP
        clicks := given ?| '{token,click_id}';
        refused := NULL;

        BEGIN
            r := referral.referral_convert(organisation_id, given, contact,
                                           c.occurred_at);

        EXCEPTION
            WHEN SQLSTATE 'RF090' OR SQLSTATE 'RF091' OR SQLSTATE 'RF093'
                 OR SQLSTATE 'RF094' OR SQLSTATE 'RF095' OR SQLSTATE 'RF096'
                 OR SQLSTATE 'RF097' OR SQLSTATE 'RF098' OR SQLSTATE 'RF099'
                 OR SQLSTATE 'RF103' OR SQLSTATE 'RF105'
            THEN
                refused := jsonb_build_object('outcome', 'unattributed',
                               'sqlstate', SQLSTATE, 'reason', SQLERRM);
        END;

        -- an old token in the browser does not spoil what is known besides

        EXIT WHEN refused IS NULL OR NOT clicks
                  OR NOT (given ?| '{referral_id,external_id,code}'
                          OR contact IS NOT NULL);
        given := given - '{token,click_id}'::text[];
    END LOOP;

    IF refused IS NOT NULL THEN
        IF given ? 'referral_id' AND refused ->> 'sqlstate' = 'RF090' THEN
            RAISE EXCEPTION '%', refused ->> 'reason'
                USING ERRCODE = 'RF090',
                      HINT = 'The view referral.referrals lists them.';
        END IF;

        RETURN refused;
    END IF;

    IF r.organisation_id <> organisation_id THEN
        RAISE EXCEPTION 'referral % is of another organisation', r.id
            USING ERRCODE = 'RF090',
                  HINT = 'The view referral.referrals lists them.';
    END IF;

    c.id := nextval('referral.conversion_id_seq');
    c.referral_id := r.id;
    c.program_id := r.program_id;
    c.referrer_id := r.referrer_id;
    c.code_id := r.code_id;

    IF c.currency IS NULL THEN
        SELECT p.currency INTO c.currency
            FROM referral.program p WHERE p.id = r.program_id;
    END IF;

    -- a second order of the same referee does not move the tiers

    SELECT t.nth INTO c.nth
        FROM referral.conversion t
        WHERE t.referral_id = r.id
        LIMIT 1;

    first := c.nth IS NULL;

    IF first AND r.referrer_id IS NOT NULL THEN
        INSERT INTO referral.reward_progress AS g (program_id, referrer_id,
                                                   converted)
            VALUES (r.program_id, r.referrer_id, 1)
            ON CONFLICT ON CONSTRAINT reward_progress_pkey
                DO UPDATE SET converted = g.converted + 1
            RETURNING g.converted INTO c.nth;
    END IF;

    c.nth := coalesce(c.nth, 1);

    -- what was expected gives way to what was bought

    UPDATE referral.referral t
        SET value = CASE WHEN first THEN 0 ELSE t.value END + c.amount,
            currency = c.currency
        WHERE t.id = r.id AND (first OR t.currency = c.currency);

    c.answer := jsonb_strip_nulls(jsonb_build_object('outcome', 'credited',
                    'conversion_id', c.id, 'referral_id', r.id,
                    'program_id', r.program_id, 'referrer_id', r.referrer_id,
                    'nth', c.nth))
                || referral.reward_give(r, 'conversion', c, c.nth,
                                        c.occurred_at);

    INSERT INTO referral.conversion (id, organisation_id, program_id,
            referral_id, referrer_id, code_id, order_ref, idempotency_key,
            request_hash, kind, product, amount, currency, discount,
            occurred_at, nth, answer)
        OVERRIDING SYSTEM VALUE
        VALUES (c.id, c.organisation_id, c.program_id, c.referral_id,
            c.referrer_id, c.code_id, c.order_ref, c.idempotency_key,
            c.request_hash, c.kind, c.product, c.amount, c.currency,
            c.discount, c.occurred_at, c.nth, c.answer);

    RETURN c.answer;
END
$$;

REVOKE ALL ON FUNCTION referral.conversion_record(bigint, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.conversion_record(bigint, jsonb)
    TO referral_app;


-- What is wrong with the values of a conversion, before anything is locked.

CREATE FUNCTION referral.conversion_values(c referral.conversion)
    RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name  text;
    hint  text;
BEGIN
    IF c.order_ref IS NULL AND c.idempotency_key IS NULL THEN
        RAISE EXCEPTION 'conversion_record(): nothing says which order it is'
            USING ERRCODE = 'RF069',
                  HINT = 'Give order_ref, or an idempotency_key.';
    END IF;

    SELECT v.name, v.hint INTO name, hint
        FROM (VALUES
            ('order_ref', length(c.order_ref) BETWEEN 1 AND 200,
             '1 to 200 characters'),
            ('idempotency_key', length(c.idempotency_key) BETWEEN 1 AND 200,
             '1 to 200 characters'),
            ('kind', c.kind ~ '^[a-z0-9][a-z0-9_-]{0,39}$',
             '1 to 40 of a-z, 0-9, _ and -'),
            ('product', length(c.product) BETWEEN 1 AND 200,
             '1 to 200 characters'),
            ('amount', c.amount BETWEEN 0 AND 1000000000000000,
             'a whole number of minor units, from 0 to 10^15'),
            ('discount', c.discount BETWEEN 0 AND 1000000000000000,
             'a whole number of minor units, from 0 to 10^15'),
            ('currency', c.currency IS NULL
                         OR EXISTS (SELECT FROM referral.unit u
                                        WHERE u.code = c.currency
                                              AND u.kind = 'money'),
             'a currency of ISO 4217, such as USD'),
            ('occurred_at', c.occurred_at > '2000-01-01Z'
                            AND c.occurred_at < now() + interval '1 day',
             'a time from 2000 on, at most a day ahead')) v (name, good, hint)
        WHERE NOT v.good
        LIMIT 1;

    IF FOUND THEN
        RAISE EXCEPTION 'conversion_record(): "%" is not acceptable', name
            USING ERRCODE = 'RF010', HINT = format('Accepted: %s.', hint);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.conversion_values(referral.conversion)
    FROM PUBLIC;


-- Locks rewards, whose referrals are locked: the accounts that they may move
-- in, the one of the organisation's side among them, then their rows.

CREATE FUNCTION referral.reward_lock(ids bigint[], other_side text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.account_lock((
        SELECT array_agg(a)
            FROM (SELECT *
                      FROM referral.reward w
                      WHERE w.id = ANY (ids)
                      ORDER BY w.id) w,
                 LATERAL unnest(ARRAY[w.pending_id, w.account_id]
                                || referral.account_get(w.organisation_id,
                                       other_side, w.unit, w.referrer_id,
                                       w.person_id, w.referral_id)) a));

    PERFORM FROM referral.reward w
        WHERE w.id = ANY (ids)
        ORDER BY w.id
        FOR NO KEY UPDATE;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_lock(bigint[], text) FROM PUBLIC;


-- The reward, after its referral and accounts are locked; RF070.

CREATE FUNCTION referral.reward_row(id bigint) RETURNS referral.reward
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    w      referral.reward;
BEGIN
    SELECT * INTO w
        FROM referral.reward t
        WHERE t.id = reward_row.id
              AND (scope IS NULL OR t.organisation_id = scope);

    IF NOT FOUND THEN
        RAISE EXCEPTION 'reward %: there is none with this id, or it is not'
                        ' yours', coalesce(reward_row.id::text, '(null)')
            USING ERRCODE = 'RF070',
                  HINT = 'The view referral.rewards lists them.';
    END IF;

    PERFORM FROM referral.referral r
        WHERE r.id = w.referral_id
        FOR NO KEY UPDATE;
    PERFORM referral.reward_lock(ARRAY[w.id], 'expense');
    SELECT * INTO w FROM referral.reward t WHERE t.id = reward_row.id;

    RETURN w;
END
$$;

REVOKE ALL ON FUNCTION referral.reward_row(bigint) FROM PUBLIC;

INSERT INTO referral.schema_migration (version, name)
    VALUES (21, 'conversion');

COMMIT;
