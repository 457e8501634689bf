-- Copyright (C) The nginx referral module authors
--
-- Attribution: which of the touches that led to a referee is credited, and
-- why.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- The source of a referral by how its click came.

CREATE FUNCTION referral.source_guess(via text, medium text, utm_source text,
                                      referer_host text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN CASE
        WHEN via = 'scan' OR lower(medium) IN ('qr', 'qrcode', 'qr_code')
            THEN 'qr'
        WHEN lower(medium) IN ('email', 'e-mail', 'newsletter')
             OR lower(utm_source) IN ('email', 'newsletter')
             OR referer_host ~ '^(mail|webmail|outlook)\.'
            THEN 'email'
        WHEN lower(medium) IN ('sms', 'mms', 'text')
             OR lower(utm_source) = 'sms'
            THEN 'sms'
        WHEN lower(medium) IN ('social', 'social_media', 'social-media')
             OR referer_host ~ ('(^|\.)(facebook|instagram|twitter|x|linkedin'
                                '|tiktok|reddit|youtube|pinterest|threads'
                                '|whatsapp|telegram|snapchat)\.(com|org|net)$')
             OR referer_host IN ('t.co', 'lnkd.in', 't.me', 'wa.me',
                                 'youtu.be', 'bsky.app')
            THEN 'social_media'
        WHEN lower(medium) IN ('app', 'mobile_app') THEN 'mobile_app'
        WHEN referer_host IS NULL THEN 'direct_link'
        ELSE 'website' END;


-- The interaction with this id, or null.  The statement is made anew with
-- constants, for which one partition is looked at: a plan for any id would
-- lock and prepare all of them, each time.

CREATE FUNCTION referral.interaction_row(id uuid) RETURNS referral.interaction
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i  referral.interaction;
BEGIN
    IF referral.uuid_time(id) IS NOT NULL THEN
        EXECUTE format('SELECT * FROM referral.interaction'
                       ' WHERE id = %L::uuid AND occurred_at = %L::timestamptz',
                       id, referral.uuid_time(id))
            INTO i;
    END IF;

    RETURN i;
END
$$;

REVOKE ALL ON FUNCTION referral.interaction_row(uuid) FROM PUBLIC;


-- The touches that options name (token, click_id, code), in order of time,
-- with what is known of their clicks: code, click_id, at, verdict, source,
-- channel, campaign, country.  A code typed in is a touch of this moment.

CREATE FUNCTION referral.touches_given(options jsonb, at timestamptz)
    RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    token  record;
    click  uuid;
    given  jsonb := '[]';
    found_ referral.interaction;
BEGIN
    IF options ->> 'token' IS NOT NULL THEN
        SELECT * INTO token
            FROM referral.verify_token(options ->> 'token', NULL);

        IF NOT token.valid THEN
            RAISE EXCEPTION 'the attribution token is %', token.reason
                USING ERRCODE = 'RF099',
                      HINT = 'Take it from the cookie as it is; its key must'
                             ' stand in referral.token_key.';
        END IF;

        given := jsonb_build_array(
            jsonb_build_object('code', token.first_code,
                               'click_id', token.first_click,
                               'at', token.first_at),
            jsonb_build_object('code', token.last_code,
                               'click_id', token.last_click,
                               'at', token.last_at));

        IF token.first_click = token.last_click THEN
            given := given - 0;
        END IF;
    END IF;

    IF options ->> 'click_id' IS NOT NULL THEN
        BEGIN
            click := (options ->> 'click_id')::uuid;
        EXCEPTION WHEN invalid_text_representation THEN
            NULL;                       -- reported below as not known
        END;

        found_ := referral.interaction_row(click);

        IF found_.type IS DISTINCT FROM 'click' OR found_.code IS NULL THEN
            RAISE EXCEPTION 'click % is not known',
                            left(options ->> 'click_id', 40)
                USING ERRCODE = 'RF099',
                      HINT = 'A click of the last seconds may still be on its'
                             ' way: the token names its code and needs no'
                             ' waiting.';
        END IF;

        given := given || jsonb_build_object('code', found_.code,
                                             'click_id', found_.id,
                                             'at', found_.occurred_at);
    END IF;

    IF options ->> 'code' IS NOT NULL THEN
        given := given || jsonb_build_object('code',
                              upper(btrim(options ->> 'code')), 'at', at);
    END IF;

    SELECT coalesce(jsonb_agg(jsonb_strip_nulls(t.touch || coalesce((
               SELECT jsonb_build_object('verdict', i.verdict,
                          'source', coalesce(referral.source_guess(i.via,
                                        i.args ->> 'utm_medium', i.source,
                                        i.referer_host)),
                          'channel', coalesce(i.channel,
                                              i.args ->> 'utm_medium'),
                          'campaign', i.args ->> 'utm_campaign',
                          'country', i.country)
                   FROM referral.interaction_row(
                            (t.touch ->> 'click_id')::uuid) i
                   WHERE i.id IS NOT NULL
               ), '{}')) ORDER BY (t.touch ->> 'at')::timestamptz, t.n), '[]')
        INTO given
        FROM jsonb_array_elements(given) WITH ORDINALITY t (touch, n);

    RETURN given;
END
$$;


-- Whether the touch may be credited: why is null, or says in a word why not.
-- Dates are judged at the time of the click, so that a code that has expired
-- since is good; who has been switched off since is not.  What the edge saw
-- "unverified" or "unknown" while it had no word of the code is judged here.
-- A touch of an existing referral is good as long as that is.

CREATE FUNCTION referral.touch_judge(p referral.program, touch jsonb,
                                     referee bytea[], at timestamptz,
                                     OUT code_id bigint,
                                     OUT referrer_id bigint, OUT why text)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    touched  timestamptz := (touch ->> 'at')::timestamptz;
    earlier  referral.referral;
    c        referral.code;
    f        referral.referrer;
BEGIN
    IF touch ? 'referral_id' THEN
        SELECT * INTO earlier FROM referral.referral r
            WHERE r.id = (touch ->> 'referral_id')::bigint;
        SELECT * INTO c FROM referral.code k WHERE k.id = earlier.code_id;
        referrer_id := earlier.referrer_id;

    ELSIF touch ? 'code' THEN
        SELECT * INTO c FROM referral.code k WHERE k.code = touch ->> 'code';
        referrer_id := c.referrer_id;

    ELSE
        referrer_id := (touch ->> 'referrer_id')::bigint;
    END IF;

    code_id := c.id;
    SELECT * INTO f FROM referral.referrer k WHERE k.id = referrer_id;

    why := CASE
        WHEN earlier.expires_at <= at THEN 'referral-expired'
        WHEN touch ? 'code' AND c.id IS NULL THEN 'unknown'
        WHEN c.program_id <> p.id THEN 'other-program'
        WHEN p.template OR p.status NOT IN ('active', 'ended')
            THEN 'program-inactive'
        WHEN c.status <> 'active' THEN 'inactive'
        WHEN c.uses >= c.max_uses THEN 'exhausted'
        WHEN f.organisation_id <> p.organisation_id THEN 'other-organisation'
        WHEN f.status <> 'active' THEN 'referrer-inactive'
        WHEN f.id IS NOT NULL AND referral.ineligible(p, f) IS NOT NULL
            THEN 'referrer-ineligible'
        WHEN coalesce(referral.program_setting(p, 'self_referral') #>> '{}',
                      'refuse') = 'refuse'
             AND referral.is_referee(p, f, referee) THEN 'self-referral'
        WHEN earlier.id IS NOT NULL THEN NULL
        WHEN touch ->> 'verdict' IN ('inactive', 'exhausted')
            THEN touch ->> 'verdict'
        WHEN touched < greatest(c.starts_at, p.starts_at) THEN 'early'
        WHEN touched >= least(c.expires_at, p.ends_at) THEN 'expired'
        WHEN p.status = 'ended' AND p.ends_at IS NULL THEN 'program-inactive'
        WHEN touched < at - p.attribution_window THEN 'too-old'
        WHEN referral.referrer_full(p, referrer_id) THEN 'limit'
        END;
END
$$;


-- Whether the referee (hashes) is the referrer.

CREATE FUNCTION referral.is_referee(p referral.program, f referral.referrer,
                                    referee bytea[]) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    h  referral.person;
BEGIN
    IF f.id IS NULL OR referee = '{}' THEN
        RETURN false;
    END IF;

    SELECT * INTO h FROM referral.person e WHERE e.id = f.person_id;

    RETURN EXISTS (SELECT FROM referral.referee_hashes(p, f.external_id,
                                   h.email, h.phone, true) k
                       WHERE k.hash = ANY (referee));
END
$$;


-- Whether a referrer has as many referrals as the program allows.

CREATE FUNCTION referral.referrer_full(p referral.program, referrer_id bigint)
    RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p.max_referrals_per_referrer IS NULL OR referrer_id IS NULL THEN
        RETURN false;
    END IF;

    RETURN p.max_referrals_per_referrer
           <= (SELECT count(*) FROM referral.referral r
                   WHERE r.referrer_id = referrer_full.referrer_id
                         AND r.program_id = p.id
                         AND r.status NOT IN ('rejected', 'declined',
                             'cancelled', 'superseded', 'expired'));
END
$$;


-- Judges and weighs touches: first, last, linear (equal shares), position
-- (40 % the first, 40 % the last, 20 % those between).  The remainder of a
-- division goes to the last of those that share.  The winner is the referrer
-- with the largest sum, and of its touches the heaviest, the last of equals.

CREATE FUNCTION referral.touches_weigh(p referral.program, model text,
                                       touches jsonb, referee bytea[],
                                       at timestamptz) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    weighed  jsonb;
BEGIN
    WITH judged AS MATERIALIZED (
        SELECT t.n, t.touch, j.code_id, j.referrer_id, j.why,
               (t.touch ->> 'at')::timestamptz AS touched
            FROM jsonb_array_elements(touches) WITH ORDINALITY t (touch, n),
                 LATERAL referral.touch_judge(p, t.touch, referee, at) j
    ), numbered AS (
        SELECT n, coalesce(referrer_id, -code_id) AS who,
               row_number() OVER (ORDER BY touched, n) AS i,
               count(*) OVER () AS k
            FROM judged WHERE why IS NULL
    ), share AS (
        SELECT n, who, i,
               CASE model
                   WHEN 'first' THEN CASE i WHEN 1 THEN 10000 ELSE 0 END
                   WHEN 'last' THEN CASE i WHEN k THEN 10000 ELSE 0 END
                   WHEN 'linear'
                       THEN 10000 / k + CASE i WHEN k THEN 10000 % k ELSE 0 END
                   ELSE CASE
                       WHEN k = 1 THEN 10000
                       WHEN k = 2 THEN 5000
                       WHEN i IN (1, k) THEN 4000
                       ELSE 2000 / (k - 2)
                            + CASE i WHEN k - 1 THEN 2000 % (k - 2)
                                     ELSE 0 END END
               END AS weight
            FROM numbered
    ), winner AS (
        SELECT n FROM (SELECT n, i, weight,
                              sum(weight) OVER (PARTITION BY who) AS total
                           FROM share) s
            ORDER BY total DESC, weight DESC, i DESC LIMIT 1
    )
    SELECT coalesce(jsonb_agg(j.touch || jsonb_build_object(
                   'code_id', j.code_id, 'referrer_id', j.referrer_id,
                   'why', j.why, 'weight_bp', coalesce(w.weight, 0),
                   'winner', j.n = coalesce(o.n, 0))
               ORDER BY j.touched, j.n), '[]')
        INTO weighed
        FROM judged j
             LEFT JOIN share w ON w.n = j.n
             LEFT JOIN winner o ON true;

    RETURN weighed;
END
$$;


-- Raises what stands in the way of a touch, in words.

CREATE FUNCTION referral.touch_refuse(p referral.program, candidate jsonb)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    why   text := candidate ->> 'why';
    code  text := coalesce('code ' || left(candidate ->> 'code', 64),
                           'a referral without a code');
BEGIN
    IF why = 'exhausted' THEN
        RAISE EXCEPTION '% has been used as often as it may be', code
            USING ERRCODE = 'RF095',
                  HINT = 'code_update() changes max_uses.';

    ELSIF why IN ('referrer-inactive', 'referrer-ineligible') THEN
        RAISE EXCEPTION '%: referrer % %', code,
                        candidate ->> 'referrer_id',
                        (SELECT referral.ineligible(p, f)
                             FROM referral.referrer f
                             WHERE f.id::text = candidate ->> 'referrer_id')
            USING ERRCODE = 'RF094',
                  HINT = 'referrer_set_status(), referrer_update() or the'
                         ' program''s eligibility.';

    ELSIF why = 'self-referral' THEN
        RAISE EXCEPTION '%: referrer % referred himself', code,
                        candidate ->> 'referrer_id'
            USING ERRCODE = 'RF097',
                  HINT = 'The setting self_referral of the program can be'
                         ' "flag" or "allow".';

    ELSIF why = 'limit' THEN
        RAISE EXCEPTION '%: referrer % has the % referrals that program %'
                        ' allows', code, candidate ->> 'referrer_id',
                        p.max_referrals_per_referrer, p.id
            USING ERRCODE = 'RF098',
                  HINT = 'program_update() changes'
                         ' max_referrals_per_referrer.';

    ELSIF why = 'program-inactive' THEN
        RAISE EXCEPTION 'program % (%) is %', p.id, p.slug,
                        CASE WHEN p.template THEN 'a template'
                             ELSE p.status END
            USING ERRCODE = 'RF103',
                  HINT = 'Referrals belong to active programs.';
    END IF;

    RAISE EXCEPTION '% can not be credited in program %: %', code, p.id, why
        USING ERRCODE = 'RF093',
              HINT = 'Its dates, and those of the program, are judged at the'
                     ' time of the click, or now for one typed in.';
END
$$;


-- What attribution would say of these touches ({"token": ...}, {"click_id":
-- ...}, {"code": ...}), without a referee: for a page that explains it, or to
-- ask before a registration whether a code is good.

CREATE FUNCTION referral.attribute(program_id bigint, options jsonb,
                                   model text DEFAULT NULL) RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program := referral.referral_program(program_id, NULL);
BEGIN
    options := referral.options_check('attribute', options,
                                      '{token,click_id,code}');
    model := coalesce(model, p.attribution);

    IF model NOT IN ('first', 'last', 'linear', 'position') THEN
        RAISE EXCEPTION 'attribute(): no model "%"', left(model, 40)
            USING ERRCODE = 'RF010',
                  HINT = 'Accepted: first, last, linear, position.';
    END IF;

    RETURN jsonb_build_object('model', model, 'candidates',
               referral.touches_weigh(p, model,
                   referral.touches_given(options, now()), '{}', now()));
END
$$;

REVOKE ALL ON FUNCTION referral.attribute(bigint, jsonb, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.attribute(bigint, jsonb, text)
    TO referral_app;


-- The codes of touches, the last one first.  To be compared with = ANY: joined
-- to the elements, all codes would be read while there are some thousands.

CREATE FUNCTION referral.touches_codes(touches jsonb) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(SELECT t.touch ->> 'code'
                     FROM jsonb_array_elements(touches) WITH ORDINALITY
                              t (touch, n)
                     WHERE t.touch ->> 'code' IS NOT NULL
                     ORDER BY t.n DESC);
END
$$;

REVOKE ALL ON FUNCTION referral.touches_codes(jsonb) FROM PUBLIC;

INSERT INTO referral.schema_migration (version, name)
    VALUES (15, 'attribution');

COMMIT;
