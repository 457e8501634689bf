-- Copyright (C) The nginx referral module authors
--
-- Registrations, conversions as far as the referral is concerned, overriding
-- by hand, expiry; and what is read of referrals.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- Rewards for registrations, which a later file makes.

CREATE FUNCTION referral.referral_reward(id bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regprocedure('referral.reward_on_registration(bigint)') IS NOT NULL
    THEN
        EXECUTE 'SELECT referral.reward_on_registration($1)' USING id;
    END IF;
END
$$;


-- A sign-up: decides which referral is credited for this referee, makes it if
-- there is none yet, and rewards what is rewarded at registration.  Whoever
-- registers again gets the first answer: any number of times, from any number
-- of sessions.  The program may be null where a touch or referral_id names it.
--
-- Options: external_id or a contact with e-mail or phone, at least one; code,
-- click_id, token, referral_id (a pending one); source, channel, campaign,
-- notes.  Returns referral_id, outcome (registered, existing), status,
-- program_id, referrer_id and code.

CREATE FUNCTION referral.referral_register(program_id bigint, options jsonb,
                                           contact jsonb DEFAULT NULL)
    RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    p        referral.program;
    r        referral.referral;
    touches  jsonb;
    referee  bytea[];
    outcome  text := 'existing';
BEGIN
    options := referral.options_check('referral_register', options,
        '{code,click_id,token,referral_id,external_id,source,channel,campaign,'
        'notes}');
    touches := referral.touches_given(options, now());
    r := referral.referral_named(options, program_id);
    p := referral.referral_program(coalesce(program_id, r.program_id),
                                   touches);
    PERFORM referral.organisation_live(p.organisation_id);

    SELECT coalesce(array_agg(h.hash), '{}') INTO referee
        FROM (SELECT k.hash
                  FROM referral.referee_hashes(p, options ->> 'external_id',
                           contact ->> 'email', contact ->> 'phone') k
              UNION
              SELECT i.hash FROM referral.referee_identity i
                  WHERE i.referral_id = r.id) h;

    IF referee = '{}' THEN
        RAISE EXCEPTION 'nothing says who registers'
            USING ERRCODE = 'RF102',
                  HINT = 'Give external_id, or a contact with email or phone.';
    END IF;

    PERFORM referral.request_lock(p, options, touches, referee);

    SELECT f.* INTO r
        FROM referral.referee_identity i
             JOIN referral.referral f ON f.id = i.referral_id
        WHERE i.hash = ANY (referee) AND i.program_id = p.id AND i.credited
        ORDER BY f.id LIMIT 1;

    IF FOUND THEN
        PERFORM referral.referee_identify(r, options ->> 'external_id',
                                          contact);

    ELSE
        r := referral.referral_decide(p, options, contact, touches, referee,
                                      now());
        r := referral.referral_settle(r, 'registered', 'attribution', now());
        PERFORM referral.referral_reward(r.id);
        outcome := 'registered';
    END IF;

    RETURN (SELECT jsonb_build_object('referral_id', f.id, 'outcome', outcome,
                       'status', f.status, 'program_id', f.program_id,
                       'referrer_id', f.referrer_id, 'code', c.code)
                FROM referral.referral f
                     LEFT JOIN referral.code c ON c.id = f.code_id
                WHERE f.id = r.id);
END
$$;

REVOKE ALL ON FUNCTION referral.referral_register(bigint, jsonb, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referral_register(bigint, jsonb, jsonb)
    TO referral_app;


-- What a customer of an organisation may be known by, in whichever program:
-- programs may read addresses and numbers in their own way.

CREATE FUNCTION referral.customer_hashes(organisation_id bigint,
                                         only_program bigint,
                                         external_id text, contact jsonb)
    RETURNS bytea[]
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT coalesce(array_agg(DISTINCT h.hash), '{}')
            FROM (SELECT DISTINCT ON (q.key) q.p
                      FROM (SELECT p, concat_ws('/', p.settings ->
                                       'referee_identity', p.settings ->
                                       'email_provider_rules', p.settings ->
                                       'calling_code', p.settings ->
                                       'trunk_prefix') AS key
                                FROM referral.program p
                                WHERE p.organisation_id
                                      = customer_hashes.organisation_id
                                      AND (only_program IS NULL
                                           OR p.id = only_program)
                                      AND NOT p.template) q) g,
                 LATERAL referral.referee_hashes(g.p, external_id,
                             contact ->> 'email', contact ->> 'phone') h);
END
$$;


-- The credited referral of a customer, at 'converted' or beyond.

CREATE FUNCTION referral.referral_convert_one(id bigint, at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referral := referral.referral_row(id);
BEGIN
    IF r.status IN ('converted', 'rewarded', 'paid') THEN
        RETURN r;
    END IF;

    -- an order of before the end may be told of after it

    IF r.status IN ('registered', 'expired')
       AND (r.expires_at <= at OR NOT r.credited)
    THEN
        RAISE EXCEPTION 'referral % was valid until %', r.id, r.expires_at
            USING ERRCODE = 'RF105',
                  HINT = 'referral_update() changes expires_at.';
    END IF;

    RETURN referral.referral_move(r.id, 'converted', 'money', NULL, at);
END
$$;


-- The program of a customer's open referrals, or null; RF104 where there are
-- several and nothing else decides.

CREATE FUNCTION referral.program_open(organisation_id bigint, referee bytea[],
                                      touches jsonb, at timestamptz)
    RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    one      bigint;
    several  int;
BEGIN
    IF touches <> '[]' THEN
        RETURN NULL;                    -- the last touch decides
    END IF;

    SELECT count(DISTINCT f.program_id), max(f.program_id) INTO several, one
        FROM referral.referee_identity i
             JOIN referral.referral f ON f.id = i.referral_id
        WHERE i.hash = ANY (referee)
              AND i.organisation_id = program_open.organisation_id
              AND f.status IN ('pending', 'accepted');

    IF several = 0 THEN
        RAISE EXCEPTION 'there is no referral for this customer'
            USING ERRCODE = 'RF090',
                  HINT = 'Give a code, a click_id or a token, or another of'
                         ' external_id, e-mail and phone.';

    ELSIF several > 1 THEN
        RAISE EXCEPTION 'this customer was referred in % programs', several
            USING ERRCODE = 'RF104',
                  HINT = 'Give program_id, referral_id or a code.';
    END IF;

    RETURN one;
END
$$;


-- For conversions: the credited referral of a customer, at 'converted' or
-- beyond; for one who never registered it is decided now.  Options are
-- those of the conversion; read are referral_id, program_id, external_id,
-- code, click_id and token.  The locks of the referee and of the referral are
-- held after it.  RF090 where there is none, RF091 and RF105 where it is over.

CREATE FUNCTION referral.referral_convert(organisation_id bigint,
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
    program  bigint := (options ->> 'program_id')::bigint;
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


-- Changes: source, channel, campaign, message, notes, expires_at.

CREATE FUNCTION referral.referral_update(id bigint, changes jsonb)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    r              referral.referral := referral.referral_row(id);
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    changes := referral.options_check('referral_update', changes,
                   '{source,channel,campaign,message,notes,expires_at}');
    r := referral.options_apply('referral_update', r, changes);

    UPDATE referral.referral f
        SET source = r.source, channel = r.channel, campaign = r.campaign,
            message = r.message, notes = r.notes, expires_at = r.expires_at,
            updated_at = now()
        WHERE f.id = r.id;

EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('referral_update', broken_table, broken,
                                      broken_column);
END
$$;


-- Gives the credit to this referral, against the rule, with a reason.  The
-- one that had it is superseded; its rewards are taken back.  Before anybody
-- has registered the referral is chosen for that time.  Refused once the
-- credited one has converted: what was earned is undone first, by
-- referral_cancel() or a refund, where everyone sees it.

CREATE FUNCTION referral.attribution_override(referral_id bigint, reason text)
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

    PERFORM FROM referral.referral f WHERE f.id IN (r.id, had.id)
        ORDER BY f.id FOR NO KEY UPDATE;
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


-- Expires what is open and past its time, in slices, each referral in one
-- session only; how many.  Rows that others are at are left for the next time.

CREATE FUNCTION referral.referral_expire(at timestamptz DEFAULT now(),
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


-- Who was referred, as far as it is kept: a read that the audit notes.

CREATE FUNCTION referral.referral_contact(id bigint,
                                          OUT external_id text,
                                          OUT first_name text,
                                          OUT last_name text, OUT name text,
                                          OUT email text, OUT phone text,
                                          OUT company text, OUT address jsonb,
                                          OUT message text, OUT notes text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referral := referral.referral_row(id);
BEGIN
    SELECT r.referee_external_id, h.first_name, h.last_name, h.name, h.email,
           h.phone, h.company, h.address, r.message, r.notes
        INTO external_id, first_name, last_name, name, email, phone, company,
             address, message, notes
        FROM (SELECT 1) one
             LEFT JOIN referral.person h ON h.id = r.person_id;

    PERFORM referral.audit_write(r.organisation_id, 'read', 'referral', r.id);
END
$$;


-- The referrals of a referee, by any of what identifies it.

CREATE FUNCTION referral.referral_find(organisation_id bigint,
                                       external_id text DEFAULT NULL,
                                       contact jsonb DEFAULT NULL)
    RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.organisation_check(organisation_id);
    PERFORM referral.audit_write(organisation_id, 'find', 'referral', NULL);

    RETURN QUERY
        SELECT DISTINCT i.referral_id
            FROM referral.referee_identity i
            WHERE i.hash = ANY (referral.customer_hashes(
                      referral_find.organisation_id, NULL,
                      referral_find.external_id, contact))
                  AND i.organisation_id = referral_find.organisation_id
            ORDER BY 1;
END
$$;


-- Steps have their own history, with who and why; other changes are audited.

CREATE TRIGGER audit_row
    AFTER DELETE OR UPDATE OF referrer_id, code_id, person_id,
        referee_external_id, source, channel, campaign, message, notes,
        expires_at, chosen
    ON referral.referral
    FOR EACH ROW EXECUTE FUNCTION referral.audit_row('touches', 'click_id');


CREATE VIEW referral.referrals AS
    SELECT r.id, r.organisation_id, r.program_id, p.slug AS program,
           r.referrer_id, r.code_id, c.code, r.variant_id, r.status,
           r.credited, r.flags, r.source, r.channel, r.campaign, r.country,
           r.click_id, r.clicked_at, r.value, r.currency, r.created_by,
           r.created_at, r.updated_at, r.expires_at, r.accepted_at,
           r.rejected_at, r.registered_at, r.converted_at, r.rewarded_at,
           r.paid_at, r.expired_at, r.declined_at, r.cancelled_at,
           r.superseded_at
        FROM referral.referral r
             JOIN referral.program p ON p.id = r.program_id
             LEFT JOIN referral.code c ON c.id = r.code_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

COMMENT ON VIEW referral.referrals IS
    'Referrals without personal data; referral_contact() reads that';

CREATE VIEW referral.referral_steps AS
    SELECT s.id, r.organisation_id, s.referral_id, s.at, s.from_status,
           s.to_status, s.actor, s.reason
        FROM referral.referral_step s
             JOIN referral.referral r ON r.id = s.referral_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR r.organisation_id = (SELECT referral.organisation_scope());

CREATE VIEW referral.attributions AS
    SELECT a.id, a.organisation_id, a.program_id, a.referral_id,
           a.previous_referral_id, a.model, a.reason, a.candidates,
           a.decided_by, a.decided_at
        FROM referral.attribution a
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR a.organisation_id = (SELECT referral.organisation_scope());

-- one row per touch, for sums: a referrer's share of what was converted
CREATE VIEW referral.attribution_shares AS
    SELECT a.id AS attribution_id, a.organisation_id, a.program_id,
           a.referral_id, a.model, a.decided_at,
           (c ->> 'referrer_id')::bigint AS referrer_id,
           (c ->> 'code_id')::bigint AS code_id, c ->> 'source' AS source,
           (c ->> 'at')::timestamptz AS touched_at, c ->> 'why' AS why,
           (c ->> 'weight_bp')::int AS weight_bp,
           (c ->> 'winner')::boolean AS winner
        FROM referral.attribution a, jsonb_array_elements(a.candidates) c
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR a.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.referrals, referral.referral_steps,
    referral.attributions, referral.attribution_shares,
    referral.referral_transition TO referral_app, referral_analyst;


-- What partners see: their own referrals, and nothing about the referees.

ALTER TABLE referral.referral ENABLE ROW LEVEL SECURITY;

CREATE POLICY referral_partner ON referral.referral
    FOR SELECT TO referral_partner
    USING (referrer_id = (SELECT referral.current_referrer()));

GRANT SELECT (id, program_id, referrer_id, code_id, source, channel, campaign,
              status, credited, value, currency, created_at, expires_at,
              accepted_at, rejected_at, registered_at, converted_at,
              rewarded_at, paid_at, expired_at, declined_at, cancelled_at,
              superseded_at) ON referral.referral TO referral_partner;

CREATE VIEW referral.my_referrals WITH (security_invoker = true) AS
    SELECT id, program_id, code_id, source, channel, campaign, status,
           credited, value, currency, created_at, expires_at, accepted_at,
           rejected_at, registered_at, converted_at, rewarded_at, paid_at,
           expired_at, declined_at, cancelled_at, superseded_at
        FROM referral.referral;

GRANT SELECT ON referral.my_referrals TO referral_partner;


REVOKE ALL ON FUNCTION referral.referral_set_status(bigint, text, text)
    FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_accept(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_reject(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_decline(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_cancel(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_update(bigint, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.attribution_override(bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_contact(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_find(bigint, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION referral.referral_expire(timestamptz, int)
    FROM PUBLIC;

GRANT EXECUTE ON FUNCTION
    referral.referral_set_status(bigint, text, text),
    referral.referral_accept(bigint, text),
    referral.referral_reject(bigint, text),
    referral.referral_decline(bigint, text),
    referral.referral_cancel(bigint, text),
    referral.referral_update(bigint, jsonb),
    referral.attribution_override(bigint, text),
    referral.referral_contact(bigint),
    referral.referral_find(bigint, text, jsonb),
    referral.referral_expire(timestamptz, int)
    TO referral_app;
GRANT EXECUTE ON FUNCTION referral.referral_expire(timestamptz, int)
    TO referral_worker;

INSERT INTO referral.schema_migration (version, name)
    VALUES (17, 'registration');

COMMIT;
