-- Copyright (C) The nginx referral module authors
--
-- What changed, for the publisher: the part of referral-worker that carries
-- codes to Redis (README, "Codes, from Postgres to the edge").
--
-- A change leaves a mark in its own transaction.  The publisher keeps the
-- snapshot up to which it has seen marks, so that a transaction is found when
-- it commits, however late that is and whatever number its marks have.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

CREATE SEQUENCE referral.publish_fence;
CREATE SEQUENCE referral.publish_version;
CREATE SEQUENCE referral.publish_generation;

-- kind code has its text, as a deleted or renamed code is only known by that;
-- the others stand for all codes of the object.

CREATE TABLE referral.mark (
    id         bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid        xid8         NOT NULL DEFAULT pg_current_xact_id(),
    kind       text         NOT NULL CHECK (kind IN ('code', 'program',
                                                     'referrer',
                                                     'organisation')),
    object_id  bigint       NOT NULL,
    code       text         CHECK ((kind = 'code') = (code IS NOT NULL)),
    at         timestamptz  NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_threshold = 20000);

CREATE INDEX mark_xid ON referral.mark (xid);

-- One row per generation: the content of one Redis since a full publish.

CREATE TABLE referral.publication (
    generation         bigint       PRIMARY KEY,
    redis_run_id       text         NOT NULL,
    fence              bigint       NOT NULL,
    system_identifier  bigint       NOT NULL,
    request            bigint       NOT NULL DEFAULT 0,
    ready              boolean      NOT NULL DEFAULT false,
    codes              bigint       NOT NULL DEFAULT 0,
    begun_at           timestamptz  NOT NULL DEFAULT clock_timestamp(),
    ready_at           timestamptz,
    updated_at         timestamptz  NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);

COMMENT ON COLUMN referral.publication.request IS
    'the last publish_request for a full publish that this one answers';
COMMENT ON COLUMN referral.publication.codes IS
    'hashes written by the full publish';
COMMENT ON COLUMN referral.publication.updated_at IS
    'when a publisher was last seen with it; every ten seconds';

-- Its batches: only the last one counts.  Appended, not updated: under a long
-- transaction of somebody else, versions of one row would pile up, and each
-- look would go through all of them.  The primary key decides between two
-- publishers.

CREATE TABLE referral.publication_batch (
    generation  bigint       NOT NULL REFERENCES referral.publication
                                 ON DELETE CASCADE,
    batch       bigint       NOT NULL CHECK (batch >= 0),
    snapshot    pg_snapshot  NOT NULL,
    pending     jsonb        NOT NULL DEFAULT '[]'
                                 CHECK (jsonb_typeof(pending) = 'array'),
    at          timestamptz  NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (generation, batch)
) WITH (autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_threshold = 5000);

COMMENT ON COLUMN referral.publication_batch.pending IS
    'what is rewritten behind: kind all, scan, program, referrer or marks, and'
    ' how far';

CREATE TABLE referral.publish_request (
    id            bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    whole         boolean      NOT NULL,
    requested_at  timestamptz  NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE referral.publish_answer (
    request       bigint       NOT NULL REFERENCES referral.publish_request
                                   ON DELETE CASCADE,
    redis_run_id  text         NOT NULL,
    generation    bigint       NOT NULL,
    codes         bigint       NOT NULL,
    answered_at   timestamptz  NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (request, redis_run_id)
);

-- What a person reads.

CREATE VIEW referral.publications AS
    SELECT p.generation, p.redis_run_id, p.ready, b.batch,
           jsonb_array_length(b.pending) AS pending, p.codes, p.begun_at,
           p.ready_at, p.updated_at
        FROM referral.publication p
             CROSS JOIN LATERAL (SELECT batch, pending
                                     FROM referral.publication_batch
                                     WHERE generation = p.generation
                                     ORDER BY batch DESC
                                     LIMIT 1) b;

GRANT SELECT ON referral.publications TO referral_app, referral_analyst;


-- Marks.  A statement that touches more than 2,000 codes marks their programs
-- instead: a mark for each would double its work.

CREATE FUNCTION referral.mark_code() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    many  boolean := false;
BEGIN
    IF TG_OP = 'INSERT' THEN
        many := (SELECT count(*) > 2000 FROM (SELECT FROM new_rows
                                                  LIMIT 2001) n);

        INSERT INTO referral.mark (kind, object_id, code)
            SELECT 'code', n.id, n.code FROM new_rows n WHERE NOT many
            UNION ALL
            SELECT DISTINCT 'program', n.program_id, NULL
                FROM new_rows n WHERE many;

    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO referral.mark (kind, object_id, code)
            SELECT 'code', o.id, o.code FROM old_rows o;

    ELSE
        many := (SELECT count(*) > 2000 FROM (SELECT FROM new_rows
                                                  LIMIT 2001) n);

        WITH changed AS (
            SELECT n.id, n.program_id, n.code, o.code AS old_code
                FROM new_rows n JOIN old_rows o ON o.id = n.id
                WHERE n.code IS DISTINCT FROM o.code
                      OR n.program_id IS DISTINCT FROM o.program_id
                      OR n.referrer_id IS DISTINCT FROM o.referrer_id
                      OR n.campaign IS DISTINCT FROM o.campaign
                      OR n.destination IS DISTINCT FROM o.destination
                      OR n.rules IS DISTINCT FROM o.rules
                      OR n.starts_at IS DISTINCT FROM o.starts_at
                      OR n.expires_at IS DISTINCT FROM o.expires_at
                      OR n.status IS DISTINCT FROM o.status
                      OR (n.uses >= n.max_uses) IS DISTINCT FROM
                         (o.uses >= o.max_uses)
        )
        INSERT INTO referral.mark (kind, object_id, code)
            SELECT 'code', c.id, c.code FROM changed c WHERE NOT many
            UNION ALL
            SELECT DISTINCT 'program', c.program_id, NULL
                FROM changed c WHERE many
            UNION ALL
            SELECT 'code', c.id, c.old_code
                FROM changed c WHERE c.old_code <> c.code;
    END IF;

    IF FOUND THEN
        PERFORM pg_notify('referral_publish', '');
    END IF;

    RETURN NULL;
END
$$;


-- Of the others only changes count: what is new has no codes, and what is
-- deleted took them along.

CREATE FUNCTION referral.mark_organisation() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO referral.mark (kind, object_id)
        SELECT 'organisation', n.id
            FROM new_rows n JOIN old_rows o ON o.id = n.id
            WHERE n.live IS DISTINCT FROM o.live;

    IF FOUND THEN
        PERFORM pg_notify('referral_publish', '');
    END IF;

    RETURN NULL;
END
$$;


CREATE FUNCTION referral.mark_program() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO referral.mark (kind, object_id)
        SELECT 'program', n.id
            FROM new_rows n JOIN old_rows o ON o.id = n.id
            WHERE n.organisation_id IS DISTINCT FROM o.organisation_id
                  OR n.live IS DISTINCT FROM o.live
                  OR n.template IS DISTINCT FROM o.template
                  OR n.landing_url IS DISTINCT FROM o.landing_url
                  OR n.campaign IS DISTINCT FROM o.campaign
                  OR n.starts_at IS DISTINCT FROM o.starts_at
                  OR n.ends_at IS DISTINCT FROM o.ends_at;

    IF FOUND THEN
        PERFORM pg_notify('referral_publish', '');
    END IF;

    RETURN NULL;
END
$$;


CREATE FUNCTION referral.mark_referrer() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO referral.mark (kind, object_id)
        SELECT 'referrer', n.id
            FROM new_rows n JOIN old_rows o ON o.id = n.id
            WHERE n.live IS DISTINCT FROM o.live;

    IF FOUND THEN
        PERFORM pg_notify('referral_publish', '');
    END IF;

    RETURN NULL;
END
$$;


-- TRUNCATE tells nobody which codes are gone

CREATE FUNCTION referral.mark_everything() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO referral.publish_request (whole) VALUES (true);
    PERFORM pg_notify('referral_publish', '');

    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.mark_code(), referral.mark_organisation(),
    referral.mark_program(), referral.mark_referrer(),
    referral.mark_everything() FROM PUBLIC;

CREATE TRIGGER mark_insert AFTER INSERT ON referral.code
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION referral.mark_code();
CREATE TRIGGER mark_update AFTER UPDATE ON referral.code
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION referral.mark_code();
CREATE TRIGGER mark_delete AFTER DELETE ON referral.code
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION referral.mark_code();
CREATE TRIGGER mark_truncate AFTER TRUNCATE ON referral.code
    FOR EACH STATEMENT EXECUTE FUNCTION referral.mark_everything();
CREATE TRIGGER mark_update AFTER UPDATE ON referral.organisation
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION referral.mark_organisation();
CREATE TRIGGER mark_update AFTER UPDATE ON referral.program
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION referral.mark_program();
CREATE TRIGGER mark_update AFTER UPDATE ON referral.referrer
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION referral.mark_referrer();


-- Whether a scope is switched off as a whole.

CREATE FUNCTION referral.publish_off(kind text, id bigint) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN CASE publish_off.kind
           WHEN 'program' THEN
               EXISTS (SELECT FROM referral.program p
                           JOIN referral.organisation o
                               ON o.id = p.organisation_id
                           WHERE p.id = publish_off.id
                                 AND NOT (p.live AND o.live))
           WHEN 'referrer' THEN
               EXISTS (SELECT FROM referral.referrer r
                           WHERE r.id = publish_off.id
                                 AND NOT r.live)
           ELSE false END;


-- One publisher per Redis server, whatever its address: the lock is held by
-- the session.  The fence it gets is above the one that stands in Redis, also
-- when this database is an older copy.  Null: another session has the lock.

CREATE FUNCTION referral.publish_lock(redis_run_id text,
                                      above bigint DEFAULT 0) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fence  bigint;
    place  bigint := hashtextextended('referral.publisher '
                                      || publish_lock.redis_run_id, 0);
BEGIN
    IF publish_lock.redis_run_id IS NULL
       OR publish_lock.redis_run_id !~ '^[0-9a-zA-Z-]{1,64}$'
    THEN
        RAISE EXCEPTION '"%" is no run_id of a Redis server',
                        publish_lock.redis_run_id
            USING ERRCODE = 'RF040',
                  HINT = 'INFO server shows it.';
    END IF;

    -- locks of a session are counted: one is enough

    IF NOT EXISTS (SELECT FROM pg_locks l
                       WHERE l.locktype = 'advisory'
                             AND l.pid = pg_backend_pid() AND l.granted
                             AND l.objsubid = 1
                             AND l.database = (SELECT oid FROM pg_database
                                               WHERE datname
                                                     = current_database())
                             AND (l.classid::bigint << 32 | l.objid::bigint)
                                 = place)
       AND NOT pg_try_advisory_lock(place)
    THEN
        RETURN NULL;
    END IF;

    fence := nextval('referral.publish_fence');

    IF fence <= above THEN
        PERFORM setval('referral.publish_fence', above);
        fence := nextval('referral.publish_fence');
    END IF;

    RETURN fence;
END
$$;


-- A new generation, above the one in Redis; what is written belongs to it.

CREATE FUNCTION referral.publish_begin(redis_run_id text, fence bigint,
                                       above bigint DEFAULT 0) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made  bigint := nextval('referral.publish_generation');
BEGIN
    -- against publish_prune(), which else could delete marks that this
    -- snapshot does not see

    PERFORM pg_advisory_xact_lock_shared(
                hashtextextended('referral.publish_prune', 0));

    IF made <= above THEN
        PERFORM setval('referral.publish_generation', above);
        made := nextval('referral.publish_generation');
    END IF;

    -- an older copy of this database must not count versions from where it
    -- was: no publisher comes to a batch a millisecond

    IF nextval('referral.publish_version')
       < extract(epoch FROM clock_timestamp()) * 1000
    THEN
        PERFORM setval('referral.publish_version',
                       (extract(epoch FROM clock_timestamp())
                        * 1000)::bigint);
    END IF;

    DELETE FROM referral.publication p
        WHERE p.redis_run_id = publish_begin.redis_run_id;

    INSERT INTO referral.publication (generation, redis_run_id, fence,
                                      system_identifier, request)
        SELECT made, publish_begin.redis_run_id, publish_begin.fence,
               c.system_identifier,
               coalesce((SELECT max(r.id) FROM referral.publish_request r
                             WHERE r.whole), 0)
            FROM pg_control_system() c;

    INSERT INTO referral.publication_batch (generation, batch, snapshot,
                                            pending)
        VALUES (made, 0, pg_current_snapshot(),
                '[{"kind": "all", "after": 0}]');

    RETURN made;
END
$$;


-- Goes on with what is in Redis.  Null when that is not what this database
-- wrote last: another generation or batch, another server, a snapshot from a
-- future that was lost.  Else whether it was ready.

CREATE FUNCTION referral.publish_open(of_generation bigint, of_batch bigint,
                                      with_fence bigint, run_id text)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was_ready  boolean;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(
                hashtextextended('referral.publish_prune', 0));

    UPDATE referral.publication p
        SET fence = with_fence, redis_run_id = run_id,
            updated_at = clock_timestamp()
        WHERE p.generation = of_generation
              AND p.updated_at > clock_timestamp() - interval '1 day'
              AND p.system_identifier = (SELECT c.system_identifier
                                             FROM pg_control_system() c)
              AND EXISTS (SELECT FROM referral.publication_batch b
                              WHERE b.generation = of_generation
                                    AND b.batch = of_batch
                                    AND pg_snapshot_xmax(b.snapshot)
                                        <= pg_snapshot_xmax(
                                               pg_current_snapshot()))
              AND NOT EXISTS (SELECT FROM referral.publication_batch b
                                  WHERE b.generation = of_generation
                                        AND b.batch = of_batch + 1)
        RETURNING p.ready INTO was_ready;

    RETURN was_ready;
END
$$;


-- Marks that one snapshot sees and an older one did not, in the order of
-- their numbers.  Asked by xid, not by "since xmin": a transaction that is
-- open for an hour would make each look read an hour of marks.

CREATE FUNCTION referral.marks_since(older pg_snapshot, after bigint,
                                     most int)
    RETURNS SETOF referral.mark
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT m.*
        FROM (SELECT n.* FROM referral.mark n
                  WHERE n.xid >= pg_snapshot_xmax(older)
              UNION ALL
              SELECT n.* FROM pg_snapshot_xip(older) x
                              JOIN referral.mark n ON n.xid = x) m
        WHERE m.id > after
        ORDER BY m.id
        LIMIT most;
END;


-- What is to be written next, and after which snapshot.  No row: batch is not
-- the last one of its generation any more.  Else the first row has no code;
-- each other row is a code and the fields of its hash, without url when the
-- hash is to be deleted.
--
--   snapshot, pending   to be given to publish_done()
--   off        what referral:off has to hold, sorted, with spaces between
--   version    of all hashes of this batch
--   work       something is there to be written
--   more       something is left for the next call
--   scan       all codes are written: those in Redis that do not exist follow
--   waited     microseconds since the oldest mark
--   whole, asked   the last requests for a full publish, for any
--   loud       subscribers are to be told of this code

CREATE FUNCTION referral.publish_collect(of_generation bigint,
                                         of_batch bigint, slice int)
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
                 LEFT JOIN referral.code_published p ON p.code = n.name
            ORDER BY n.name;

    IF cardinality(numbers) > 0 AND first_id IS NOT NULL THEN
        RETURN QUERY
            SELECT NULL, NULL, NULL, NULL::bigint, NULL::boolean,
                   NULL::boolean, NULL::boolean, NULL::bigint, NULL::bigint,
                   NULL::bigint, p.code, p.url, p.state, p.not_before,
                   p.expires, p.code_id, p.program_id, p.referrer_id,
                   p.campaign, p.rules::text, false
                FROM referral.code_published p
                WHERE p.code_id > first_id
                      AND p.code_id <= numbers[cardinality(numbers)];
    END IF;
END
$$;


-- A batch stands in Redis; scanned, the number of hashes, when with it the
-- full publish is done: Redis has all codes and no other ones of ours.  False:
-- somebody else was there, and what this session knows is worth nothing.

CREATE FUNCTION referral.publish_done(of_generation bigint, of_batch bigint,
                                      with_fence bigint, snapshot text,
                                      pending text, asked bigint DEFAULT 0,
                                      scanned bigint DEFAULT NULL)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    behind  jsonb := publish_done.pending;
BEGIN
    IF scanned IS NOT NULL THEN
        behind := (SELECT coalesce(jsonb_agg(e ORDER BY place), '[]')
                       FROM jsonb_array_elements(behind)
                            WITH ORDINALITY l (e, place)
                       WHERE e ->> 'kind' <> 'scan');
    END IF;

    INSERT INTO referral.publication_batch (generation, batch, snapshot,
                                            pending)
        SELECT p.generation, of_batch + 1, publish_done.snapshot::pg_snapshot,
               behind
            FROM referral.publication p
            WHERE p.generation = of_generation AND p.fence = with_fence
                  AND EXISTS (SELECT FROM referral.publication_batch b
                                  WHERE b.generation = of_generation
                                        AND b.batch = of_batch)
            FOR SHARE
        ON CONFLICT DO NOTHING;

    IF NOT FOUND THEN
        RETURN false;
    END IF;

    -- the one before is kept: whoever is behind by one can tell

    DELETE FROM referral.publication_batch b
        WHERE b.generation = of_generation AND b.batch = of_batch - 1;

    IF scanned IS NOT NULL THEN
        UPDATE referral.publication p
            SET ready = true, ready_at = clock_timestamp(), codes = scanned,
                updated_at = clock_timestamp()
            WHERE p.generation = of_generation;
    END IF;

    IF behind = '[]' THEN
        PERFORM referral.publish_answered(of_generation, asked);
    END IF;

    RETURN true;
END
$$;


-- Requests up to this one are answered, by whoever has the generation.  A full
-- publish is answered only by one that began after it was asked for.

CREATE FUNCTION referral.publish_answered(of_generation bigint, asked bigint)
    RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO referral.publish_answer (request, redis_run_id, generation,
                                         codes)
        SELECT r.id, p.redis_run_id, p.generation, p.codes
            FROM referral.publication p
                 JOIN referral.publish_request r
                     ON r.id <= asked AND (r.id <= p.request OR NOT r.whole)
            WHERE p.generation = of_generation AND p.ready
        ON CONFLICT DO NOTHING;
END;


-- A sign of life, every ten seconds.  False: another has taken over.

CREATE FUNCTION referral.publish_alive(of_generation bigint,
                                       with_fence bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE referral.publication p SET updated_at = clock_timestamp()
        WHERE p.generation = of_generation AND p.fence = with_fence;

    RETURN FOUND;
END
$$;


-- Which of these names are no published codes: for keys found in Redis.

CREATE FUNCTION referral.publish_missing(names text[]) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT n.name
        FROM unnest(names) AS n (name)
        WHERE NOT EXISTS (SELECT FROM referral.code_published p
                              WHERE p.code = n.name);
END;

REVOKE ALL ON FUNCTION referral.publish_off(text, bigint),
    referral.marks_since(pg_snapshot, bigint, int),
    referral.publish_lock(text, bigint),
    referral.publish_begin(text, bigint, bigint),
    referral.publish_open(bigint, bigint, bigint, text),
    referral.publish_collect(bigint, bigint, int),
    referral.publish_done(bigint, bigint, bigint, text, text, bigint,
                          bigint),
    referral.publish_answered(bigint, bigint),
    referral.publish_alive(bigint, bigint),
    referral.publish_missing(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.publish_lock(text, bigint),
    referral.publish_begin(text, bigint, bigint),
    referral.publish_open(bigint, bigint, bigint, text),
    referral.publish_collect(bigint, bigint, int),
    referral.publish_done(bigint, bigint, bigint, text, text, bigint,
                          bigint),
    referral.publish_answered(bigint, bigint),
    referral.publish_alive(bigint, bigint),
    referral.publish_missing(text[]) TO referral_worker;


-- Asking for it.  The number is to be given to publish_answers(): a row for
-- each publisher seen within the last 30 seconds, and whether it is done.

CREATE FUNCTION referral.publish_request(whole boolean DEFAULT false)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    request  bigint;
BEGIN
    INSERT INTO referral.publish_request (whole)
        VALUES (coalesce(publish_request.whole, false))
        RETURNING id INTO request;

    PERFORM pg_notify('referral_publish', '');

    RETURN request;
END
$$;


CREATE FUNCTION referral.publish_answers(request bigint)
    RETURNS TABLE (redis_run_id text, done boolean, generation bigint,
                   codes bigint, seconds numeric)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM referral.publish_request r
                       WHERE r.id = publish_answers.request)
    THEN
        RAISE EXCEPTION 'there is no request % to publish',
                        publish_answers.request
            USING ERRCODE = 'RF041',
                  HINT = 'publish_request() gives the number; requests are'
                         ' kept for a day.';
    END IF;

    RETURN QUERY
        SELECT l.redis_run_id, a.request IS NOT NULL,
               coalesce(a.generation, l.generation),
               coalesce(a.codes, l.codes),
               round(extract(epoch FROM coalesce(a.answered_at,
                                                 clock_timestamp())
                             - r.requested_at), 3)
            FROM (SELECT DISTINCT ON (p.redis_run_id) p.*
                      FROM referral.publication p
                      WHERE p.updated_at > clock_timestamp()
                                           - interval '30 seconds'
                      ORDER BY p.redis_run_id, p.generation DESC) l
                 JOIN referral.publish_request r
                     ON r.id = publish_answers.request
                 LEFT JOIN referral.publish_answer a
                     ON a.request = r.id AND a.redis_run_id = l.redis_run_id
            ORDER BY l.redis_run_id;
END
$$;

REVOKE ALL ON FUNCTION referral.publish_request(boolean),
    referral.publish_answers(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.publish_request(boolean),
    referral.publish_answers(bigint) TO referral_app, referral_worker;


-- Marks that every live generation has seen; generations that no publisher
-- has had for a day, whose Redis gets a full publish when it comes back.
-- Returns how many marks went; null when another session is at it.

CREATE FUNCTION referral.publish_prune(at timestamptz DEFAULT now())
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone    bigint;
    oldest  xid8;
BEGIN
    IF NOT pg_try_advisory_xact_lock(
               hashtextextended('referral.publish_prune', 0))
    THEN
        RETURN NULL;
    END IF;

    DELETE FROM referral.publication p
        WHERE p.updated_at < publish_prune.at - interval '1 day';
    DELETE FROM referral.publish_request r
        WHERE r.requested_at < publish_prune.at - interval '1 day';

    -- no row is lost that a snapshot of now does not see: with no generation
    -- alive the next one begins with everything

    WITH live AS (
        SELECT DISTINCT ON (b.generation) b.snapshot, b.pending
            FROM referral.publication_batch b
            ORDER BY b.generation, b.batch DESC
    )
    SELECT min(s.xmin::text::numeric)::text::xid8 INTO oldest
        FROM (SELECT pg_snapshot_xmin(l.snapshot) AS xmin FROM live l
              UNION ALL
              SELECT pg_snapshot_xmin((e ->> 'from')::pg_snapshot)
                  FROM live l, jsonb_array_elements(l.pending) e
                  WHERE e ->> 'kind' = 'marks'
              UNION ALL
              SELECT pg_snapshot_xmin(pg_current_snapshot())) s;

    DELETE FROM referral.mark m WHERE m.xid < oldest;
    GET DIAGNOSTICS gone = ROW_COUNT;

    RETURN gone;
END
$$;

REVOKE ALL ON FUNCTION referral.publish_prune(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.publish_prune(timestamptz)
    TO referral_worker;

INSERT INTO referral.schema_migration (version, name) VALUES (12, 'publish');

COMMIT;
