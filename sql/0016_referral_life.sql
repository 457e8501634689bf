-- Copyright (C) The nginx referral module authors
--
-- The life of a referral: its steps, and how it is made.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- The program that is named, or that the last of the touches belongs to.

CREATE FUNCTION referral.referral_program(program_id bigint, touches jsonb)
    RETURNS referral.program
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program;
BEGIN
    IF program_id IS NULL THEN
        SELECT g.* INTO p
            FROM referral.code c
                 JOIN referral.program g ON g.id = c.program_id
            WHERE c.code = ANY (referral.touches_codes(touches))
            ORDER BY array_position(referral.touches_codes(touches), c.code)
            LIMIT 1;

    ELSE
        SELECT g.* INTO p FROM referral.program g WHERE g.id = program_id;
    END IF;

    IF p.id IS NOT NULL
       AND (referral.organisation_scope() IS NULL
            OR p.organisation_id = referral.organisation_scope())
    THEN
        RETURN p;
    END IF;

    IF program_id IS NULL AND jsonb_array_length(touches) > 0 THEN
        RAISE EXCEPTION 'code % is not known', left(touches -> -1 ->> 'code',
                                                    64)
            USING ERRCODE = 'RF093',
                  HINT = 'The view referral.codes lists them.';

    ELSIF program_id IS NULL THEN
        RAISE EXCEPTION 'nothing says which program this is about'
            USING ERRCODE = 'RF102',
                  HINT = 'Give the program, a code, a click_id or a token.';
    END IF;

    RAISE EXCEPTION 'program %: there is none with this id, or it is not'
                    ' yours', program_id
        USING ERRCODE = 'RF012',
              HINT = 'The view referral.programs lists them.';
END
$$;


CREATE FUNCTION referral.code_exhausted() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    organisation  bigint;
BEGIN
    SELECT p.organisation_id INTO organisation
        FROM referral.program p WHERE p.id = NEW.program_id;

    PERFORM referral.emit(organisation, 'code.exhausted', 'code:' || NEW.id,
                jsonb_build_object('code_id', NEW.id, 'code', NEW.code,
                                   'program_id', NEW.program_id,
                                   'referrer_id', NEW.referrer_id,
                                   'uses', NEW.uses,
                                   'max_uses', NEW.max_uses));
    RETURN NULL;
END
$$;

CREATE TRIGGER code_exhausted
    AFTER UPDATE OF uses, max_uses ON referral.code
    FOR EACH ROW
    WHEN (NEW.uses >= NEW.max_uses
          AND (OLD.max_uses IS NULL OR OLD.uses < OLD.max_uses))
    EXECUTE FUNCTION referral.code_exhausted();


-- Locks codes: those of limited uses first, each sort by id.  The others are
-- locked as late as can be, as many sessions want them at once.

CREATE FUNCTION referral.code_lock(ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM referral.code c
        WHERE c.id = ANY (ids)
        ORDER BY c.max_uses IS NULL, c.id
        FOR NO KEY UPDATE;
END
$$;


-- Gives a referral its referee, and takes him back.  The referee's lock is
-- held.  RF095 and RF096 when somebody else was first.

CREATE FUNCTION referral.referral_credit(r referral.referral) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    BEGIN
        UPDATE referral.referee_identity i SET credited = true
            WHERE i.referral_id = r.id;
    EXCEPTION WHEN unique_violation THEN
        RAISE EXCEPTION 'the referee of referral % has been credited in'
                        ' program % already', r.id, r.program_id
            USING ERRCODE = 'RF096',
                  HINT = 'attribution_override() moves the credit.';
    END;

    IF r.code_id IS NOT NULL THEN
        UPDATE referral.code c SET uses = c.uses + 1
            WHERE c.id = r.code_id
                  AND (c.max_uses IS NULL OR c.uses < c.max_uses);

        IF NOT FOUND THEN
            RAISE EXCEPTION 'the code of referral % has been used as often as'
                            ' it may be', r.id
                USING ERRCODE = 'RF095',
                      HINT = 'code_update() changes max_uses.';
        END IF;
    END IF;
END
$$;

CREATE FUNCTION referral.referral_uncredit(r referral.referral) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE referral.referee_identity i SET credited = false
        WHERE i.referral_id = r.id;
    UPDATE referral.code c SET uses = greatest(c.uses - 1, 0)
        WHERE c.id = r.code_id;
END
$$;


CREATE FUNCTION referral.referral_emit(r referral.referral, type text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.emit(r.organisation_id, 'referral.' || type,
                'referral:' || r.id,
                jsonb_strip_nulls(jsonb_build_object(
                    'referral_id', r.id, 'program_id', r.program_id,
                    'referrer_id', r.referrer_id, 'code_id', r.code_id,
                    'referee_external_id', r.referee_external_id,
                    'status', r.status, 'source', r.source,
                    'value', r.value, 'currency', r.currency)));
END
$$;


-- The referral, locked; RF090 when there is none with this id in the scope.

CREATE FUNCTION referral.referral_row(id bigint) RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referral;
BEGIN
    SELECT * INTO r FROM referral.referral f
        WHERE f.id = referral_row.id
              AND (referral.organisation_scope() IS NULL
                   OR f.organisation_id = referral.organisation_scope())
        FOR NO KEY UPDATE;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'referral %: there is none with this id, or it is not'
                        ' yours', coalesce(referral_row.id::text, '(null)')
            USING ERRCODE = 'RF090',
                  HINT = 'The view referral.referrals lists them.';
    END IF;

    RETURN r;
END
$$;


-- The referral that options name, not locked; null when they name none.

CREATE FUNCTION referral.referral_named(options jsonb, program_id bigint)
    RETURNS referral.referral
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referral;
BEGIN
    IF options ->> 'referral_id' IS NULL THEN
        RETURN NULL;
    END IF;

    SELECT * INTO r FROM referral.referral f
        WHERE f.id = CASE WHEN options ->> 'referral_id' ~ '^[0-9]{1,18}$'
                          THEN (options ->> 'referral_id')::bigint END
              AND (referral_named.program_id IS NULL
                   OR f.program_id = referral_named.program_id)
              AND (referral.organisation_scope() IS NULL
                   OR f.organisation_id = referral.organisation_scope());

    IF NOT FOUND THEN
        RAISE EXCEPTION 'referral %: there is none with this id, or it is not'
                        ' yours', left(options ->> 'referral_id', 40)
            USING ERRCODE = 'RF090',
                  HINT = 'The view referral.referrals lists them.';
    END IF;

    RETURN r;
END
$$;


-- A step, with its date, its history and its event.  To be where one is, is
-- no step.  For functions: made_by says on whose behalf.  A referral that is
-- given up before it converted sets its referee free, an expired one does
-- not: who has registered once is no new customer.

CREATE FUNCTION referral.referral_move(id bigint, to_status text, made_by text,
                                       reason text DEFAULT NULL,
                                       at timestamptz DEFAULT now())
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r     referral.referral := referral.referral_row(id);
    step  referral.referral_transition;
    free  boolean;
BEGIN
    IF r.status = to_status THEN
        RETURN r;
    END IF;

    SELECT * INTO step FROM referral.referral_transition t
        WHERE t.from_status = r.status
              AND t.to_status = referral_move.to_status;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'referral % is % and can not become %', r.id, r.status,
                        coalesce(left(to_status, 40), '(null)')
            USING ERRCODE = 'RF091',
                  HINT = coalesce((SELECT format('From here: %s.',
                                 string_agg(t.to_status, ', '
                                            ORDER BY t.to_status))
                             FROM referral.referral_transition t
                             WHERE t.from_status = r.status),
                         'No step leads on from here.');
    END IF;

    IF step.made_by <> made_by AND step.made_by <> 'anyone' THEN
        RAISE EXCEPTION 'referral % can not become % by hand', r.id, to_status
            USING ERRCODE = 'RF092',
                  HINT = CASE step.made_by
                         WHEN 'money' THEN 'conversion_record(), rewards and'
                                           ' payouts make this step.'
                         ELSE 'referral_register() and attribution_override()'
                              ' make this step.' END;
    END IF;

    free := r.credited AND r.converted_at IS NULL
            AND to_status IN ('rejected', 'cancelled', 'declined',
                              'superseded');

    IF free THEN
        PERFORM referral.referral_uncredit(r);
    END IF;

    UPDATE referral.referral f
        SET status = referral_move.to_status,
            credited = f.credited AND NOT free,
            updated_at = now(),
            accepted_at = CASE to_status WHEN 'accepted' THEN at
                                         ELSE f.accepted_at END,
            rejected_at = CASE to_status WHEN 'rejected' THEN at
                                         ELSE f.rejected_at END,
            registered_at = CASE to_status WHEN 'registered' THEN at
                                           ELSE f.registered_at END,
            converted_at = CASE to_status WHEN 'converted' THEN at
                                          ELSE f.converted_at END,
            rewarded_at = CASE to_status WHEN 'rewarded' THEN at
                                         ELSE f.rewarded_at END,
            paid_at = CASE to_status WHEN 'paid' THEN at
                                     ELSE f.paid_at END,
            expired_at = CASE to_status WHEN 'expired' THEN at
                                        ELSE f.expired_at END,
            declined_at = CASE to_status WHEN 'declined' THEN at
                                         ELSE f.declined_at END,
            cancelled_at = CASE to_status WHEN 'cancelled' THEN at
                                          ELSE f.cancelled_at END,
            superseded_at = CASE to_status WHEN 'superseded' THEN at
                                           ELSE f.superseded_at END
        WHERE f.id = r.id
        RETURNING * INTO r;

    INSERT INTO referral.referral_step (referral_id, at, from_status,
                                        to_status, reason)
        VALUES (r.id, at, step.from_status, to_status, left(reason, 1000));

    IF to_status IN ('registered', 'converted', 'rejected', 'expired') THEN
        PERFORM referral.referral_emit(r, to_status);
    END IF;

    RETURN r;
END
$$;


CREATE FUNCTION referral.referral_set_status(id bigint, status text,
                                             reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, status, 'anyone', reason);
END
$$;

CREATE FUNCTION referral.referral_accept(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, 'accepted', 'anyone', reason);
END
$$;

CREATE FUNCTION referral.referral_reject(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, 'rejected', 'anyone', reason);
END
$$;

CREATE FUNCTION referral.referral_decline(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, 'declined', 'anyone', reason);
END
$$;

CREATE FUNCTION referral.referral_cancel(id bigint, reason text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.referral_move(id, 'cancelled', 'anyone', reason);
END
$$;


-- Enters a referral for the touch that won.

CREATE FUNCTION referral.referral_insert(p referral.program, options jsonb,
                                         contact jsonb, touches jsonb,
                                         won jsonb, referee bytea[],
                                         at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    r              referral.referral;
    f              referral.referrer;
    broken         text;
    broken_table   text;
    broken_column  text;
BEGIN
    r.source := coalesce(won ->> 'source', 'other');
    r.channel := won ->> 'channel';
    r.campaign := won ->> 'campaign';
    r.expires_at := at + p.referral_validity;
    r := referral.options_apply('referral', r, (
             SELECT coalesce(jsonb_object_agg(o.key, o.value), '{}')
                 FROM jsonb_each(options) o
                 WHERE o.key IN ('source', 'channel', 'campaign', 'message',
                                 'notes', 'value', 'currency', 'expires_at',
                                 'idempotency_key')
                       AND o.value <> 'null'));

    r.referrer_id := (won ->> 'referrer_id')::bigint;
    r.code_id := (won ->> 'code_id')::bigint;
    SELECT * INTO f FROM referral.referrer k WHERE k.id = r.referrer_id;
    SELECT coalesce(c.campaign, r.campaign, p.campaign), c.variant_id
        INTO r.campaign, r.variant_id
        FROM (SELECT 1) one
             LEFT JOIN referral.code c ON c.id = r.code_id;

    IF referral.is_referee(p, f, referee) THEN
        r.flags := '{self-referral}';
    END IF;

    IF r.variant_id IS NULL
       AND EXISTS (SELECT FROM referral.program_variant v
                       WHERE v.program_id = p.id)
    THEN
        r.variant_id := referral.variant_pick(p.id,
                            coalesce(encode(referee[1], 'hex'),
                                     won ->> 'click_id',
                                     gen_random_uuid()::text));
    END IF;

    BEGIN
        INSERT INTO referral.referral (organisation_id, program_id,
                referrer_id, code_id, variant_id, referee_external_id,
                click_id, clicked_at,
                touches, source, channel, campaign, country, message, notes,
                value, currency, flags, idempotency_key, request_hash,
                created_at, expires_at)
            VALUES (p.organisation_id, p.id, r.referrer_id, r.code_id,
                    r.variant_id, options ->> 'external_id',
                    (won ->> 'click_id')::uuid,
                    CASE WHEN won ? 'click_id'
                         THEN (won ->> 'at')::timestamptz END,
                    touches, r.source, r.channel, r.campaign,
                    won ->> 'country', r.message, r.notes, r.value,
                    coalesce(r.currency,
                             CASE WHEN r.value IS NOT NULL THEN p.currency
                             END),
                    coalesce(r.flags, '{}'), r.idempotency_key,
                    CASE WHEN r.idempotency_key IS NOT NULL
                         THEN referral.request_hash(options, contact) END,
                    at, r.expires_at)
            RETURNING * INTO r;

    EXCEPTION WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('referral', broken_table, broken,
                                          broken_column);
    END;

    INSERT INTO referral.referral_step (referral_id, at, to_status)
        VALUES (r.id, at, 'pending');
    PERFORM referral.referee_identify(r, options ->> 'external_id', contact);
    PERFORM referral.referral_emit(r, 'created');

    RETURN r;
END
$$;

CREATE FUNCTION referral.request_hash(options jsonb, contact jsonb)
    RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN sha256(convert_to(options::text || coalesce(contact::text, ''),
                             'UTF8'));


-- The locks of a request: those of the referee, of its idempotency key, and
-- of the referrers whose referrals are counted.

CREATE FUNCTION referral.request_lock(p referral.program, options jsonb,
                                      touches jsonb, referee bytea[])
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    others  text[] := '{}';
BEGIN
    IF options ->> 'idempotency_key' IS NOT NULL THEN
        others := others || ('request/' || (options ->> 'idempotency_key'));
    END IF;

    IF p.max_referrals_per_referrer IS NOT NULL THEN
        SELECT others || coalesce(array_agg('referrer/' || p.id || '/'
                                            || w.id), '{}')
            INTO others
            FROM (SELECT c.referrer_id AS id
                      FROM referral.code c
                      WHERE c.code = ANY (referral.touches_codes(touches))
                  UNION
                  SELECT (options ->> 'referrer_id')::bigint) w
            WHERE w.id IS NOT NULL;
    END IF;

    PERFORM referral.referee_lock(p.organisation_id, referee, others);
END
$$;


-- Enters a referral, pending: by a code that was typed in, a click_id, a
-- token, or by a referrer (referrer_id) who names somebody.  The referee may
-- be known by external_id, by the contact (keys of person: name, email,
-- phone ...), or not yet at all.  The same referrer naming the same referee
-- again gets the same referral.
--
-- Options: code, click_id, token, referrer_id, external_id, source, channel,
-- campaign, message, notes, value and currency (expected), expires_at
-- (default: program's referral_validity from now), idempotency_key.  What is
-- known of the click fills source, channel, campaign and country.

CREATE FUNCTION referral.referral_create(program_id bigint,
                                         options jsonb DEFAULT '{}',
                                         contact jsonb DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p        referral.program;
    r        referral.referral;
    won      jsonb;
    judged   jsonb;
    touches  jsonb;
    referee  bytea[];
BEGIN
    options := referral.options_check('referral_create', options,
        '{code,click_id,token,referrer_id,external_id,source,channel,campaign,'
        'message,notes,value,currency,expires_at,idempotency_key}');
    touches := referral.touches_given(options, now());
    p := referral.referral_program(program_id, touches);
    PERFORM referral.organisation_live(p.organisation_id);

    IF options ->> 'referrer_id' IS NOT NULL AND touches = '[]' THEN
        touches := jsonb_build_array(jsonb_build_object(
            'referrer_id', referral.referrer_named(p, options), 'at', now()));
    END IF;

    IF touches = '[]' THEN
        RAISE EXCEPTION 'nothing says who refers'
            USING ERRCODE = 'RF102',
                  HINT = 'Give a code, a click_id, a token or a referrer_id.';
    END IF;

    SELECT coalesce(array_agg(h.hash), '{}') INTO referee
        FROM referral.referee_hashes(p, options ->> 'external_id',
                 contact ->> 'email', contact ->> 'phone') h;
    PERFORM referral.request_lock(p, options, touches, referee);

    SELECT f.* INTO r FROM referral.referral f
        WHERE f.organisation_id = p.organisation_id
              AND f.idempotency_key = options ->> 'idempotency_key';

    IF FOUND THEN
        IF r.request_hash <> referral.request_hash(options, contact) THEN
            RAISE EXCEPTION 'idempotency key "%" was used for another request',
                            left(options ->> 'idempotency_key', 200)
                USING ERRCODE = 'RF101',
                      HINT = 'A key is for one request and its repetitions.';
        END IF;

        RETURN r.id;
    END IF;

    judged := referral.touches_weigh(p, p.attribution, touches, referee,
                                     now());
    SELECT c INTO won FROM jsonb_array_elements(judged) c
        WHERE c -> 'winner' = 'true';

    -- whoever was here before, the full referrer's own referral included

    SELECT f.* INTO r
        FROM referral.referee_identity i
             JOIN referral.referral f ON f.id = i.referral_id
        WHERE i.hash = ANY (referee) AND i.program_id = p.id
              AND i.organisation_id = p.organisation_id
              AND (i.credited
                   OR f.status IN ('pending', 'accepted')
                      AND f.expires_at > now()
                      AND f.referrer_id IS NOT DISTINCT FROM
                          (coalesce(won, judged -> -1)
                           ->> 'referrer_id')::bigint
                      AND (f.referrer_id IS NOT NULL
                           OR f.code_id = (won ->> 'code_id')::bigint))
        ORDER BY i.credited DESC, f.id LIMIT 1;

    IF r.credited THEN
        RAISE EXCEPTION 'this referee has been credited in program % already,'
                        ' by referral %', p.id, r.id
            USING ERRCODE = 'RF096',
                  HINT = 'A program has one credited referral for a referee.';

    ELSIF r.id IS NOT NULL THEN
        PERFORM referral.referee_identify(r, options ->> 'external_id',
                                          contact);
        RETURN r.id;
    END IF;

    IF won IS NULL THEN
        PERFORM referral.touch_refuse(p, judged -> -1);
    END IF;

    r := referral.referral_insert(p, options, contact, touches, won, referee,
                                  now());
    RETURN r.id;
END
$$;

REVOKE ALL ON FUNCTION referral.referral_create(bigint, jsonb, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referral_create(bigint, jsonb, jsonb)
    TO referral_app;


-- The referrer that options name, when it is of the program's organisation.

CREATE FUNCTION referral.referrer_named(p referral.program, options jsonb)
    RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_  bigint;
BEGIN
    SELECT f.id INTO found_ FROM referral.referrer f
        WHERE f.id::text = options ->> 'referrer_id'
              AND f.organisation_id = p.organisation_id;

    IF NOT FOUND THEN
        RAISE EXCEPTION 'referrer %: there is none with this id in the'
                        ' program''s organisation',
                        left(options ->> 'referrer_id', 40)
            USING ERRCODE = 'RF094',
                  HINT = 'The view referral.referrers lists them.';
    END IF;

    RETURN found_;
END
$$;


-- Decides which referral of a referee, whose lock is held, is credited: among
-- the open ones and the touches.  The others are superseded, and a row of
-- attribution says why.  The one decided is still to be moved and credited.

CREATE FUNCTION referral.referral_decide(p referral.program, options jsonb,
                                         contact jsonb, touches jsonb,
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


-- Makes the decided referral its referee's, at the step it is for.

CREATE FUNCTION referral.referral_settle(r referral.referral, to_status text,
                                         made_by text, at timestamptz)
    RETURNS referral.referral
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    r := referral.referral_move(r.id, to_status, made_by, NULL, at);
    PERFORM referral.referral_credit(r);

    UPDATE referral.referral f SET credited = true
        WHERE f.id = r.id
        RETURNING * INTO r;

    RETURN r;
END
$$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (16, 'referral_life');

COMMIT;
