-- Copyright (C) The nginx referral module authors
--
-- How records came in: the position of each stream, and every record that is
-- not in interaction.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- One row per stream, for ever: it is the memory that lets no record in
-- twice.  It moves in the transaction that writes the rows, by
-- UPDATE ... WHERE seq = old AND last_id = old.  The CHECK is the promise
-- that every record is somewhere.

CREATE TABLE referral.ingest_cursor (
    stream       int          GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream_id    uuid         NOT NULL UNIQUE,
    edge         text         NOT NULL DEFAULT '',
    seq          bigint       NOT NULL DEFAULT 0,
    last_id      uuid,
    rows         bigint       NOT NULL DEFAULT 0 CHECK (rows >= 0),
    quarantined  bigint       NOT NULL DEFAULT 0 CHECK (quarantined >= 0),
    dead         bigint       NOT NULL DEFAULT 0 CHECK (dead >= 0),
    gap          bigint       NOT NULL DEFAULT 0 CHECK (gap >= 0),
    updated_at   timestamptz  NOT NULL DEFAULT now(),
    CONSTRAINT ingest_cursor_conservation
        CHECK (seq = rows + quarantined + dead + gap)
) WITH (fillfactor = 70);

COMMENT ON COLUMN referral.ingest_cursor.last_id IS
    'id of record seq; null when that record could not be read';

-- Records that Postgres refused, or that can not be decoded.  Kept 30 days.

CREATE TABLE referral.dead_letter (
    stream  int          NOT NULL,
    seq     bigint       NOT NULL,
    reason  text         NOT NULL,
    detail  text,
    record  bytea,
    at      timestamptz  NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, seq)
);

CREATE INDEX dead_letter_at ON referral.dead_letter (at);

COMMENT ON COLUMN referral.dead_letter.reason IS
    'SQLSTATE, or "undecodable"; detail is the message';

-- Records whose time can not be right by the clock of this server.  Kept 90
-- days; referral.requeue() moves them.  data is the row they would have been.

CREATE TABLE referral.quarantine (
    stream  int          NOT NULL,
    seq     bigint       NOT NULL,
    reason  text         NOT NULL,
    record  bytea        NOT NULL,
    data    jsonb        NOT NULL,
    at      timestamptz  NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, seq)
);

CREATE INDEX quarantine_at ON referral.quarantine (at);

-- Numbers that no record was found for.

CREATE TABLE referral.ingest_gap (
    stream    int          NOT NULL,
    from_seq  bigint       NOT NULL,
    to_seq    bigint       NOT NULL,
    reason    text         NOT NULL,
    at        timestamptz  NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, from_seq),
    CHECK (from_seq <= to_seq)
);

-- UPDATE and SELECT of single columns: identity and stream_id never change
GRANT SELECT, INSERT (stream_id, edge),
      UPDATE (seq, last_id, rows, quarantined, dead, gap, updated_at)
    ON referral.ingest_cursor TO referral_worker;
GRANT INSERT ON referral.dead_letter, referral.quarantine, referral.ingest_gap
    TO referral_worker;
GRANT SELECT ON referral.ingest_cursor, referral.ingest_gap
    TO referral_analyst;


-- The window of plausible times, judged by the clock of this server.

CREATE FUNCTION referral.plausible(occurred_at timestamptz) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN occurred_at BETWEEN now() - interval '90 days'
                           AND now() + interval '5 minutes';

REVOKE ALL ON FUNCTION referral.plausible(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.plausible(timestamptz) TO referral_worker;


-- Whether this very record is in the database: the worker, who may not read
-- interactions, asks when fewer records are on its disk than were committed.

CREATE FUNCTION referral.recorded(of_stream int, number bigint, record_id uuid)
    RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN EXISTS (SELECT FROM referral.interaction i
                       WHERE i.id = record_id
                             AND i.occurred_at = referral.uuid_time(record_id)
                             AND i.stream = of_stream AND i.seq = number)
           OR EXISTS (SELECT FROM referral.quarantine q
                          WHERE q.stream = of_stream AND q.seq = number
                                AND q.data ->> 'id' = record_id::text)
           OR EXISTS (SELECT FROM referral.dead_letter d
                          WHERE d.stream = of_stream AND d.seq = number);

REVOKE ALL ON FUNCTION referral.recorded(int, bigint, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.recorded(int, bigint, uuid)
    TO referral_worker;


-- Takes quarantined records into interaction: those of one stream, or of all;
-- those whose time has become plausible, or all that a partition can be made
-- for when forced.  Returns how many moved.

CREATE FUNCTION referral.requeue(only_stream int DEFAULT NULL,
                                 from_seq bigint DEFAULT NULL,
                                 to_seq bigint DEFAULT NULL,
                                 force boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cursor_row  record;
    moved       bigint;
    total       bigint := 0;
BEGIN
    IF from_seq > to_seq THEN
        RAISE EXCEPTION 'records % to % are no range', from_seq, to_seq
            USING ERRCODE = 'RF003';
    END IF;

    -- locked in one order, as the worker locks one at a time: no deadlock

    FOR cursor_row IN
        SELECT c.stream
            FROM referral.ingest_cursor c
            WHERE (only_stream IS NULL OR c.stream = only_stream)
                  AND c.quarantined > 0
            ORDER BY c.stream
            FOR NO KEY UPDATE
    LOOP
        PERFORM referral.partition_ensure(day)
            FROM (SELECT DISTINCT ((q.data ->> 'occurred_at')::timestamptz
                                   AT TIME ZONE 'UTC')::date AS day
                      FROM referral.quarantine q
                      WHERE q.stream = cursor_row.stream
                            AND (from_seq IS NULL OR q.seq >= from_seq)
                            AND (to_seq IS NULL OR q.seq <= to_seq)
                            AND (force OR referral.plausible(
                                     (q.data ->> 'occurred_at')::timestamptz))
                 ) days;

        WITH gone AS (
            DELETE FROM referral.quarantine q
                WHERE q.stream = cursor_row.stream
                      AND (from_seq IS NULL OR q.seq >= from_seq)
                      AND (to_seq IS NULL OR q.seq <= to_seq)
                      AND (force OR referral.plausible(
                               (q.data ->> 'occurred_at')::timestamptz))
                RETURNING q.stream, q.seq, q.data, q.at
        ), back AS (
            INSERT INTO referral.interaction
                SELECT r.*
                    FROM gone,
                         jsonb_populate_record(NULL::referral.interaction,
                             gone.data
                             || jsonb_build_object('stream', gone.stream,
                                                   'seq', gone.seq,
                                                   'received_at', gone.at)) r
                RETURNING program_id, referrer_id, code, occurred_at, type,
                          verdict, kind
        ), counted AS (
            INSERT INTO referral.counter_delta (program_id, referrer_id, code,
                                                day, type, verdict, kind, n)
                SELECT program_id, referrer_id, code,
                       (occurred_at AT TIME ZONE 'UTC')::date, type, verdict,
                       kind, count(*)
                    FROM back
                    GROUP BY 1, 2, 3, 4, 5, 6, 7
        )
        SELECT count(*) INTO moved FROM gone;

        UPDATE referral.ingest_cursor c
            SET rows = c.rows + moved, quarantined = c.quarantined - moved,
                updated_at = now()
            WHERE c.stream = cursor_row.stream AND moved > 0;

        total := total + moved;
    END LOOP;

    RETURN total;
END
$$;

REVOKE ALL ON FUNCTION referral.requeue(int, bigint, bigint, boolean)
    FROM PUBLIC;


-- Regular work, safe to run from several places at once.

CREATE FUNCTION referral.housekeeping(OUT folded bigint,
                                      OUT dead_letters_deleted bigint,
                                      OUT quarantine_deleted bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    folded := coalesce(referral.counter_fold(), 0);

    DELETE FROM referral.dead_letter WHERE at < now() - interval '30 days';
    GET DIAGNOSTICS dead_letters_deleted = ROW_COUNT;

    DELETE FROM referral.quarantine WHERE at < now() - interval '90 days';
    GET DIAGNOSTICS quarantine_deleted = ROW_COUNT;
END
$$;

REVOKE ALL ON FUNCTION referral.housekeeping() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.housekeeping() TO referral_worker;

INSERT INTO referral.schema_migration (version, name) VALUES (4, 'ingest');

COMMIT;
