-- Copyright (C) The nginx referral module authors
--
-- The scope, everywhere: with referral.organisation set, the views of clicks,
-- counters and published codes have the rows of its programs only, and the
-- functions that took any id take its own.  Replaces what is of this name in
-- 0003, 0005, 0008, 0010, 0012, 0018, 0027, 0028 and 0030.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;


-- Clicks and counts without a program (codes that nobody has) are of no
-- organisation: only without a scope they are seen.

CREATE OR REPLACE VIEW referral.click AS
    SELECT occurred_at AS time,
           code,
           verdict,
           via,
           country,
           city,
           ip,
           host || path AS page,
           referer_host AS referer,
           source,
           kind,
           browser,
           os,
           device,
           user_agent,
           language,
           signals,
           args,
           destination,
           id,
           code_id,
           program_id,
           referrer_id
        FROM referral.interaction
        WHERE type = 'click'
              AND ((SELECT referral.organisation_scope()) IS NULL
                   OR program_id IN (SELECT p.id
                          FROM referral.program p
                          WHERE p.organisation_id
                                = (SELECT referral.organisation_scope())));


CREATE OR REPLACE VIEW referral.counters AS
    SELECT program_id, referrer_id, code, day, type, verdict, kind,
           sum(n)::bigint AS n
        FROM (SELECT program_id, referrer_id, code, day, type, verdict, kind, n
                  FROM referral.counter
              UNION ALL
              SELECT program_id, referrer_id, code, day, type, verdict, kind, n
                  FROM referral.counter_delta) c
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR program_id IN (SELECT p.id
                     FROM referral.program p
                     WHERE p.organisation_id
                           = (SELECT referral.organisation_scope()))
        GROUP BY program_id, referrer_id, code, day, type, verdict, kind;


-- What the edges get, one row for each hash of Redis, and nothing else: times
-- in Unix seconds.  A code that no moment is left for is inactive, as the edge
-- takes an expiry before the start for a mistake.
--
-- This is the publisher's, who has the codes of all, whatever is set for its
-- role or in its connection: a code that it does not see is one to delete.

CREATE VIEW referral.code_state AS
    SELECT c.id AS code_id,
           c.code,
           coalesce(c.destination, p.landing_url) AS url,
           CASE WHEN NOT (o.live AND p.live AND coalesce(r.live, true)
                          AND c.status = 'active')
                     OR w.not_before >= w.expires
                THEN 'inactive'
                WHEN c.uses >= c.max_uses THEN 'exhausted'
                ELSE 'active' END AS state,
           CASE WHEN w.not_before >= w.expires THEN NULL
                ELSE w.not_before END AS not_before,
           w.expires,
           c.program_id,
           c.referrer_id,
           coalesce(c.campaign, p.campaign) AS campaign,
           c.rules
        FROM referral.code c
             JOIN referral.program p ON p.id = c.program_id
             JOIN referral.organisation o ON o.id = p.organisation_id
             LEFT JOIN referral.referrer r ON r.id = c.referrer_id
             CROSS JOIN LATERAL
                 (SELECT ceil(extract(epoch FROM
                              greatest(c.starts_at, p.starts_at)))::bigint
                             AS not_before,
                         floor(extract(epoch FROM
                               least(c.expires_at, p.ends_at)))::bigint
                             AS expires) w
        WHERE NOT p.template
              AND coalesce(c.destination, p.landing_url) IS NOT NULL;

CREATE OR REPLACE VIEW referral.code_published AS
    SELECT s.code_id, s.code, s.url, s.state, s.not_before, s.expires,
           s.program_id, s.referrer_id, s.campaign, s.rules
        FROM referral.code_state s
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR s.program_id IN (SELECT p.id
                     FROM referral.program p
                     WHERE p.organisation_id
                           = (SELECT referral.organisation_scope()));

COMMENT ON VIEW referral.code_state IS
    'Codes as they are in Redis; templates and codes without a URL are not';
COMMENT ON VIEW referral.code_published IS
    'Codes as they are in Redis, of the organisation in the scope';

GRANT EXECUTE ON FUNCTION referral.organisation_scope() TO referral_worker;


-- Which of these names are no published codes: for keys found in Redis.

CREATE OR REPLACE FUNCTION referral.publish_missing(names text[])
    RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT n.name
        FROM unnest(names) AS n (name)
        WHERE NOT EXISTS (SELECT FROM referral.code_state s
                              WHERE s.code = n.name);
END;


-- As in 0012, but that it reads code_state.

CREATE OR REPLACE FUNCTION
    referral.publish_collect(of_generation bigint, of_batch bigint, slice int)
    RETURNS TABLE (snapshot text, pending text, off text, version bigint,
                   work boolean, more boolean, scan boolean, waited bigint,
                   whole bigint, asked bigint, code text, url text,
                   state text, not_before bigint, expires bigint,
                   code_id bigint, program_id bigint, referrer_id bigint,
                   campaign text, rules text, loud boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    few       CONSTANT int := 200;      -- codes of a scope: written at once
    most      CONSTANT int := 2000;     -- marks
    part      CONSTANT int := greatest(slice / 4, 1);
    was       referral.publication_batch;
    now_seen  pg_snapshot;
    behind    jsonb;
    entry     jsonb;
    names     text[] := '{}';
    first_id  bigint;
    kinds     text[];
    ids       bigint[];
    texts     text[];
    few_texts text[];
    numbers   bigint[];
    oldest    timestamptz;
    place     int;
    last_id   bigint;
    n         int;
    s         record;
BEGIN
    SELECT b.* INTO was
        FROM referral.publication_batch b
        WHERE b.generation = of_generation AND b.batch = of_batch
              AND NOT EXISTS (SELECT FROM referral.publication_batch c
                                  WHERE c.generation = of_generation
                                        AND c.batch = of_batch + 1);

    IF NOT FOUND THEN
        RETURN;
    END IF;

    behind := was.pending;

    -- the snapshot of this very statement: what it does not see comes next

    SELECT pg_current_snapshot(), array_agg(m.kind), array_agg(m.object_id),
           array_agg(m.code), min(m.at)
        INTO now_seen, kinds, ids, texts, oldest
        FROM referral.marks_since(was.snapshot, 0, most + 1) m;

    work := kinds IS NOT NULL;

    IF cardinality(kinds) > most THEN

        -- too many for one batch; what switches most codes does not wait

        SELECT array_agg(m.kind), array_agg(m.object_id),
               array_agg(NULL::text)
            INTO kinds, ids, texts
            FROM (SELECT DISTINCT k.kind, k.object_id
                      FROM referral.marks_since(was.snapshot, 0, NULL) k
                      WHERE pg_visible_in_snapshot(k.xid, now_seen)
                            AND k.kind IN ('program', 'organisation')) m;

        behind := behind || jsonb_build_object('kind', 'marks',
                                   'from', was.snapshot, 'until', now_seen,
                                   'after', 0);
    END IF;

    -- the first of what is behind: marks, everything, then scopes in turn, a
    -- quarter of a slice of these: subscribers hear of each code, and single
    -- changes wait for no more than that

    SELECT e.value, e.ordinality - 1 INTO entry, place
        FROM jsonb_array_elements(behind) WITH ORDINALITY e
        WHERE e.value ->> 'kind' <> 'scan'
        ORDER BY CASE e.value ->> 'kind' WHEN 'marks' THEN 0 WHEN 'all' THEN 1
                 ELSE 2 END, e.ordinality
        LIMIT 1;

    IF entry ->> 'kind' = 'marks' THEN
        SELECT kinds || array_agg(m.kind) FILTER (WHERE m.due),
               ids || array_agg(m.object_id) FILTER (WHERE m.due),
               texts || array_agg(m.code) FILTER (WHERE m.due),
               max(m.id), count(*)
            INTO kinds, ids, texts, last_id, n
            FROM (SELECT k.kind, k.object_id, k.code, k.id,
                         pg_visible_in_snapshot(k.xid,
                             (entry ->> 'until')::pg_snapshot) AS due
                      FROM referral.marks_since(
                               (entry ->> 'from')::pg_snapshot,
                               (entry ->> 'after')::bigint,
                               least(slice, most)) k) m;

        work := true;

        IF n < least(slice, most) THEN
            behind := behind - place;

        ELSE
            behind := jsonb_set(behind, ARRAY[place::text, 'after'],
                                 to_jsonb(last_id));
        END IF;

    ELSIF entry IS NOT NULL THEN

        IF entry ->> 'kind' = 'all' THEN

            -- by ranges of ids, as what is not published needs no deletion:
            -- the search finds it

            slice := 2 * slice;
            first_id := entry ->> 'after';

            SELECT array_agg(c.id) INTO numbers
                FROM (SELECT k.id FROM referral.code k
                          WHERE k.id > first_id
                          ORDER BY k.id
                          LIMIT slice) c;

        ELSIF entry ->> 'kind' = 'program' THEN
            SELECT array_agg(c.code), array_agg(c.id)
                INTO names, numbers
                FROM (SELECT k.code, k.id FROM referral.code k
                          WHERE k.program_id = (entry ->> 'id')::bigint
                                AND k.id > (entry ->> 'after')::bigint
                          ORDER BY k.id
                          LIMIT part) c;

        ELSE
            SELECT array_agg(c.code), array_agg(c.id)
                INTO names, numbers
                FROM (SELECT k.code, k.id FROM referral.code k
                          WHERE k.referrer_id = (entry ->> 'id')::bigint
                                AND k.id > (entry ->> 'after')::bigint
                          ORDER BY k.id
                          LIMIT part) c;
        END IF;

        work := true;
        n := coalesce(cardinality(numbers), 0);

        IF n = (CASE entry ->> 'kind' WHEN 'all' THEN slice
                ELSE part END)
        THEN
            behind := jsonb_set(behind, ARRAY[place::text, 'after'],
                                 to_jsonb(numbers[n]));

        ELSIF entry ->> 'kind' = 'all' THEN
            behind := (behind - place) || '[{"kind": "scan"}]';

        ELSIF entry ? 'again' THEN

            -- changed while it was on its way

            behind := jsonb_set(behind, ARRAY[place::text],
                                 entry - 'again' || '{"after": 0}');

        ELSE
            behind := behind - place;
        END IF;
    END IF;

    -- marked scopes: the small ones now, the others behind

    FOR s IN
        SELECT DISTINCT o.kind, o.id
            FROM (SELECT m.kind, m.id
                      FROM unnest(kinds, ids) m (kind, id)
                      WHERE m.kind IN ('program', 'referrer')
                  UNION ALL
                  SELECT 'program', p.id
                      FROM unnest(kinds, ids) m (kind, id)
                           JOIN referral.program p
                               ON p.organisation_id = m.id
                      WHERE m.kind = 'organisation') o
    LOOP
        SELECT e.ordinality - 1 INTO place
            FROM jsonb_array_elements(behind) WITH ORDINALITY e
            WHERE e.value ->> 'kind' = s.kind
                  AND (e.value ->> 'id')::bigint = s.id;

        IF FOUND THEN
            behind := jsonb_set(behind, ARRAY[place::text, 'again'],
                                 'true');
            CONTINUE;
        END IF;

        IF s.kind = 'program' THEN
            SELECT array_agg(c.code) INTO few_texts
                FROM (SELECT k.code FROM referral.code k
                          WHERE k.program_id = s.id LIMIT few + 1) c;

        ELSE
            SELECT array_agg(c.code) INTO few_texts
                FROM (SELECT k.code FROM referral.code k
                          WHERE k.referrer_id = s.id LIMIT few + 1) c;
        END IF;

        IF cardinality(few_texts) > few THEN
            behind := behind || jsonb_build_object('kind', s.kind,
                                       'id', s.id, 'after', 0);

        ELSE
            names := names || few_texts;
        END IF;
    END LOOP;

    -- what ends with this batch stays off until it is written

    snapshot := now_seen;
    pending := behind;
    off := (SELECT coalesce(string_agg(o.member, ' ' ORDER BY o.member), '')
                FROM (SELECT DISTINCT
                             (e ->> 'kind') || ':' || (e ->> 'id') AS member
                          FROM jsonb_array_elements(was.pending || behind) e
                          WHERE e ->> 'kind' IN ('program', 'referrer')
                                AND referral.publish_off(e ->> 'kind',
                                        (e ->> 'id')::bigint)) o);
    version := CASE WHEN work THEN nextval('referral.publish_version') END;
    more := EXISTS (SELECT FROM jsonb_array_elements(behind) e
                        WHERE e ->> 'kind' <> 'scan');
    scan := behind @> '[{"kind": "scan"}]'
            AND NOT behind @> '[{"kind": "all"}]';
    waited := extract(epoch FROM clock_timestamp() - oldest) * 1000000;
    whole := (SELECT coalesce(max(r.id), 0)
                  FROM referral.publish_request r
                  WHERE r.whole
                        AND r.id > (SELECT p.request
                                        FROM referral.publication p
                                        WHERE p.generation = of_generation));
    asked := (SELECT coalesce(max(r.id), 0)
                  FROM referral.publish_request r
                  WHERE NOT EXISTS (SELECT
                            FROM referral.publish_answer a
                                 JOIN referral.publication p
                                     ON p.redis_run_id = a.redis_run_id
                            WHERE a.request = r.id
                                  AND p.generation = of_generation));
    RETURN NEXT;

    RETURN QUERY
        SELECT NULL, NULL, NULL, NULL::bigint, NULL::boolean, NULL::boolean,
               NULL::boolean, NULL::bigint, NULL::bigint, NULL::bigint,
               n.name, p.url, p.state, p.not_before, p.expires, p.code_id,
               p.program_id, p.referrer_id, p.campaign, p.rules::text, true
            FROM (SELECT unnest(names) AS name
                  UNION
                  SELECT u.code
                      FROM unnest(kinds, texts) u (kind, code)
                      WHERE u.kind = 'code' AND u.code IS NOT NULL) n
                 LEFT JOIN referral.code_state p ON p.code = n.name
            ORDER BY n.name;

    IF cardinality(numbers) > 0 AND first_id IS NOT NULL THEN
        RETURN QUERY
            SELECT NULL, NULL, NULL, NULL::bigint, NULL::boolean,
                   NULL::boolean, NULL::boolean, NULL::bigint, NULL::bigint,
                   NULL::bigint, p.code, p.url, p.state, p.not_before,
                   p.expires, p.code_id, p.program_id, p.referrer_id,
                   p.campaign, p.rules::text, false
                FROM referral.code_state p
                WHERE p.code_id > first_id
                      AND p.code_id <= numbers[cardinality(numbers)];
    END IF;
END
$$;


-- The variant for a key (a user, a code): the same as long as the active
-- variants and weights are the same; null: none.  SHA-256, as the hash
-- functions of Postgres may differ between versions.

CREATE OR REPLACE FUNCTION referral.variant_pick(program_id bigint, key text)
    RETURNS bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM referral.program_row(program_id);

    RETURN (SELECT v.id
                FROM (SELECT id, sum(weight) OVER (ORDER BY id) AS upto,
                             sum(weight) OVER () AS total
                          FROM referral.program_variant w
                          WHERE w.program_id = variant_pick.program_id
                                AND w.status = 'active' AND w.weight > 0) v
                WHERE v.upto > ('x0' || left(encode(sha256(convert_to(
                                     variant_pick.program_id || ':'
                                     || coalesce(variant_pick.key, ''),
                                     'UTF8')), 'hex'), 15))::bit(64)::bigint
                               % v.total
                ORDER BY v.upto
                LIMIT 1);
END
$$;


-- The state of one side's reward, in the words of the specification.

CREATE OR REPLACE FUNCTION
    referral.seed_telehealth_state(of_referral bigint, whose text,
                                   OUT state text, OUT amount bigint,
                                   OUT earned_at timestamptz,
                                   OUT redeemed_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN w.status IN ('pending', 'held') THEN 'pending'
                WHEN w.status = 'approved' THEN 'earned'
                WHEN w.status IN ('paid', 'redeemed', 'transferred')
                THEN 'redeemed'
                ELSE 'expired' END, w.amount, w.earned_at,
           CASE WHEN w.status IN ('paid', 'redeemed', 'transferred')
                THEN w.closed_at END
        FROM referral.reward w
        WHERE w.referral_id = of_referral AND w.beneficiary = whose
              AND ((SELECT referral.organisation_scope()) IS NULL
                   OR w.organisation_id
                      = (SELECT referral.organisation_scope()))
        ORDER BY w.id LIMIT 1
$$;


-- Figures since a day are computed again, of one program or of all.

CREATE OR REPLACE FUNCTION
    referral.rollup_again(since date, only_program bigint DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    today     date := (now() AT TIME ZONE 'UTC')::date;
    programs  bigint[];
    marked    bigint;
BEGIN
    IF since IS NULL OR since NOT BETWEEN '2000-01-01' AND today + 1 THEN
        RAISE EXCEPTION 'rollup_again(): "since" is no day up to now'
            USING ERRCODE = 'RF010',
                  HINT = 'Accepted: a day from 2000-01-01 to tomorrow.';
    END IF;

    IF only_program IS NOT NULL THEN
        programs := ARRAY[(referral.program_row(only_program)).id];

    ELSE
        SELECT array_agg(p.id) INTO programs
            FROM referral.program p
            WHERE referral.organisation_scope() IS NULL
                  OR p.organisation_id = referral.organisation_scope();
    END IF;

    DELETE FROM referral.rollup_state s
        WHERE s.day >= since AND s.program_id = ANY (programs);

    INSERT INTO referral.rollup_mark (program_id, day, part)
        SELECT id, since + n, part
            FROM unnest(programs) id,
                 generate_series(0, today + 1 - since) n,
                 unnest('{edge,ledger}'::text[]) part;
    GET DIAGNOSTICS marked = ROW_COUNT;

    RETURN marked;
END
$$;


-- Whose an object is that ledger_check() names: of one that is not there, the
-- transfers or accounts that speak of it say so.

CREATE FUNCTION referral.ledger_organisation(object text, object_id bigint)
    RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE object
        WHEN 'transfer' THEN
            (SELECT t.organisation_id FROM referral.transfer t
                 WHERE t.id = object_id)
        WHEN 'entry' THEN
            (SELECT coalesce(t.organisation_id, a.organisation_id)
                 FROM referral.entry e
                      LEFT JOIN referral.transfer t ON t.id = e.transfer_id
                      LEFT JOIN referral.account a ON a.id = e.account_id
                 WHERE e.transfer_id = object_id
                 ORDER BY 1
                 LIMIT 1)
        WHEN 'account' THEN
            (SELECT a.organisation_id FROM referral.account a
                 WHERE a.id = object_id)
        WHEN 'reward' THEN
            coalesce((SELECT w.organisation_id FROM referral.reward w
                          WHERE w.id = object_id),
                     (SELECT min(a.organisation_id)
                          FROM referral.entry e
                               JOIN referral.account a ON a.id = e.account_id
                          WHERE e.reward_id = object_id))
        WHEN 'conversion' THEN
            (SELECT c.organisation_id FROM referral.conversion c
                 WHERE c.id = object_id)
        WHEN 'referral' THEN
            (SELECT r.organisation_id FROM referral.referral r
                 WHERE r.id = object_id)
        WHEN 'referrer' THEN
            (SELECT f.organisation_id FROM referral.referrer f
                 WHERE f.id = object_id)
        WHEN 'payout' THEN
            coalesce((SELECT o.organisation_id FROM referral.payout o
                          WHERE o.id = object_id),
                     (SELECT min(t.organisation_id) FROM referral.transfer t
                          WHERE t.payout_id = object_id))
        WHEN 'redemption' THEN
            coalesce((SELECT d.organisation_id FROM referral.redemption d
                          WHERE d.id = object_id),
                     (SELECT min(t.organisation_id) FROM referral.transfer t
                          WHERE t.idempotency_key
                                = 'redemption:' || object_id)) END;
END
$$;

REVOKE ALL ON FUNCTION referral.ledger_organisation(text, bigint) FROM PUBLIC;


-- All checks: every function ledger_check_...() of the schema.

CREATE OR REPLACE FUNCTION referral.ledger_check()
    RETURNS TABLE (problem text, object text, object_id bigint, detail text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    name   text;
BEGIN
    FOR name IN
        SELECT p.proname
            FROM pg_proc p
            WHERE p.pronamespace = 'referral'::regnamespace
                  AND p.proname ~ '^ledger_check_' AND p.pronargs = 0
            ORDER BY 1
    LOOP
        RETURN QUERY EXECUTE format(
            'SELECT * FROM referral.%I() c'
            ' WHERE $1 IS NULL'
            ' OR referral.ledger_organisation(c.object, c.object_id) = $1',
            name) USING scope;
    END LOOP;
END
$$;


-- Without a visitor nothing would be found, and that be taken for an answer.

CREATE FUNCTION referral.visitor_check(of_visitor uuid) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF of_visitor IS NULL THEN
        RAISE EXCEPTION 'no visitor is given'
            USING ERRCODE = 'RF125',
                  HINT = 'The id in the visitor''s cookie, verify_token()'
                         ' shows it.';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.visitor_check(uuid) FROM PUBLIC;


-- The clicks of one visitor id, which an attribution cookie holds.  Every
-- partition since then is read: seconds for each 10 million rows.  The edge
-- keeps no visitor, so a click recorded later is not erased.

CREATE OR REPLACE FUNCTION
    referral.visitor_export(of_visitor uuid, since timestamptz DEFAULT NULL)
    RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    low  timestamptz := coalesce(since, now() - interval '13 months');
BEGIN
    PERFORM referral.visitor_check(of_visitor);
    PERFORM referral.audit_write(referral.organisation_scope(), 'export',
                                 'interaction', NULL, '{visitor}', NULL);

    RETURN (SELECT coalesce(jsonb_agg(to_jsonb(i) ORDER BY i.occurred_at),
                            '[]')
                FROM referral.interaction i
                WHERE i.visitor = of_visitor AND i.occurred_at >= low
                      AND referral.program_in_scope(i.program_id));
END
$$;


CREATE OR REPLACE FUNCTION
    referral.visitor_erase(of_visitor uuid, reason text,
                           since timestamptz DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    low    timestamptz := coalesce(since, now() - interval '13 months');
    n      bigint;
    other  bigint;
BEGIN
    PERFORM referral.visitor_check(of_visitor);

    IF coalesce(btrim(reason), '') = '' THEN
        RAISE EXCEPTION 'an erasure needs a reason, for the audit'
            USING ERRCODE = 'RF126',
                  HINT = 'For example: request of the person, ticket 4711.';
    END IF;

    PERFORM referral.audit_write(referral.organisation_scope(), 'erase',
                                 'interaction', NULL, '{visitor}', reason);

    UPDATE referral.interaction i
        SET visitor = NULL, visitor_hash = NULL, ip = NULL, user_agent = NULL,
            args = NULL, metadata = i.metadata - '{latitude,longitude,referer,'
                                                 'time_zone}'::text[]
        WHERE i.visitor = of_visitor AND i.occurred_at >= low
              AND referral.program_in_scope(i.program_id);
    GET DIAGNOSTICS n = ROW_COUNT;

    UPDATE referral.quarantine q
        SET record = '', data = q.data - '{visitor,visitor_hash,ip,user_agent,'
                                         'args}'::text[]
        WHERE q.data ->> 'visitor' = of_visitor::text
              AND referral.program_in_scope((q.data ->> 'program_id')::bigint);
    GET DIAGNOSTICS other = ROW_COUNT;

    RETURN n + other;
END
$$;

INSERT INTO referral.schema_migration (version, name) VALUES (35, 'scope');

COMMIT;
