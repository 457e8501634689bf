-- Copyright (C) The nginx referral module authors
--
-- The landing table and its partitions.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- What happened, as the edge saw it.  Nothing here may refuse a row: no
-- foreign key, trigger, row level security (COPY refuses it) or default
-- partition, and no CHECK on the words, or a newer edge's words would become
-- dead letters.  What is not known is null.

CREATE TABLE referral.interaction (
    id            uuid         NOT NULL,
    occurred_at   timestamptz  NOT NULL,
    received_at   timestamptz  NOT NULL DEFAULT now(),
    stream        int          NOT NULL,
    seq           bigint       NOT NULL,
    type          text         NOT NULL,
    verdict       text,
    via           text,
    kind          text         NOT NULL DEFAULT 'unknown',
    code          text,
    code_id       bigint,
    program_id    bigint,
    referrer_id   bigint,
    visitor       uuid,
    visitor_hash  bytea,
    ip            inet,
    country       text,
    region        text,
    city          text,
    asn           bigint,
    user_agent    text,
    browser       text,
    os            text,
    device        text,
    referer_host  text,
    host          text,
    path          text,
    args          jsonb,
    language      text,
    source        text,
    channel       text,
    signals       text[],
    destination   text,
    metadata      jsonb,
    PRIMARY KEY (id, occurred_at)
) PARTITION BY RANGE (occurred_at);

-- on code rather than code_id: a code filled into Redis by hand has no id
CREATE INDEX interaction_code ON referral.interaction (code, occurred_at);

COMMENT ON TABLE referral.interaction IS
    'Clicks and other interactions, by UTC day; query with a time bound';
COMMENT ON COLUMN referral.interaction.id IS
    'UUID version 7, made at the edge; its milliseconds are occurred_at';
COMMENT ON COLUMN referral.interaction.stream IS
    'ingest_cursor.stream: the life of one writer; seq is its record number';
COMMENT ON COLUMN referral.interaction.ip IS
    'the network (/24, /48) unless the edge records whole addresses';
COMMENT ON COLUMN referral.interaction.metadata IS
    'time_zone, latitude, longitude, referer, campaign, version (of the code),'
    ' cache, original (id of the click that this one repeats)';

-- Detaching needs the table's owner, and must not be done by a function
-- (CONCURRENTLY).  So the table has an owner of its own, whose role the
-- worker may take: it can destroy what it is there to destroy, nothing else.

ALTER TABLE referral.interaction OWNER TO referral_partitions;

GRANT INSERT ON referral.interaction TO referral_worker;


-- The time inside a version 7 UUID; null for other versions.

CREATE FUNCTION referral.uuid_time(id uuid) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    RETURN CASE WHEN substr(id::text, 15, 1) = '7'
                     AND substr(id::text, 20, 1) IN ('8', '9', 'a', 'b') THEN
               to_timestamp(('x0000' || translate(substr(id::text, 1, 13),
                                                  '-', ''))::bit(64)::bigint
                            / 1000.0)
           END;

REVOKE ALL ON FUNCTION referral.uuid_time(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.uuid_time(uuid)
    TO referral_worker, referral_app, referral_analyst;


-- Makes the partition of one UTC day; true when it was not there before.
-- ATTACH rather than CREATE ... PARTITION OF, which would wait for every
-- writer.  No CHECK for the bounds: an empty table is scanned for nothing.

CREATE FUNCTION referral.partition_ensure(day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    partition  text := 'interaction_' || to_char(day, 'YYYYMMDD');
    parent     oid;
BEGIN
    IF day IS NULL OR day < DATE '2020-01-01' OR day > current_date + 366 THEN
        RAISE EXCEPTION 'no partition for the day %',
                        coalesce(day::text, '(null)')
            USING ERRCODE = 'RF001',
                  HINT = 'Days from 2020 to one year ahead have partitions.';
    END IF;

    -- two creators at once: one would fail with a 23505 from the catalog
    PERFORM pg_advisory_xact_lock(hashtextextended('referral.partition', 0));

    SELECT coalesce(i.inhparent, 0) INTO parent
        FROM pg_class c
             LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
                                        AND NOT i.inhdetachpending
        WHERE c.relname = partition
              AND c.relnamespace = 'referral'::regnamespace;

    IF parent = 'referral.interaction'::regclass THEN
        RETURN false;
    END IF;

    IF parent IS NOT NULL THEN
        RAISE EXCEPTION 'table referral.% exists and is not a partition of'
                        ' referral.interaction', partition
            USING ERRCODE = 'RF002',
                  HINT = 'It was detached by retention, or by hand: attach it,'
                         ' rename it or drop it.';
    END IF;

    EXECUTE format('CREATE TABLE referral.%I'
                   ' (LIKE referral.interaction INCLUDING ALL'
                   ' EXCLUDING COMMENTS)', partition);

    EXECUTE format('ALTER TABLE referral.interaction ATTACH PARTITION'
                   ' referral.%I FOR VALUES FROM (%L) TO (%L)', partition,
                   day::timestamp AT TIME ZONE 'UTC',
                   (day + 1)::timestamp AT TIME ZONE 'UTC');
    RETURN true;
END
$$;

ALTER FUNCTION referral.partition_ensure(date) OWNER TO referral_partitions;
REVOKE ALL ON FUNCTION referral.partition_ensure(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.partition_ensure(date)
    TO referral_worker, referral_owner;


-- Partitions from yesterday to days ahead of today; the number made.

CREATE FUNCTION referral.partitions_ahead(days int DEFAULT 3) RETURNS int
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*)::int
        FROM generate_series(-1, days) n
        WHERE referral.partition_ensure((now() AT TIME ZONE 'UTC')::date + n)
$$;

ALTER FUNCTION referral.partitions_ahead(int) OWNER TO referral_partitions;
REVOKE ALL ON FUNCTION referral.partitions_ahead(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.partitions_ahead(int)
    TO referral_worker, referral_owner;


-- The partitions there are, and tables of such a name that are detached.
-- Those that expire are marked by the worker before it detaches them.

CREATE VIEW referral.interaction_partition AS
    SELECT c.relname::text AS name,
           to_date(substr(c.relname, 13), 'YYYYMMDD') AS day,
           i.inhrelid IS NOT NULL AS attached,
           coalesce(i.inhdetachpending, false) AS detaching,
           coalesce(obj_description(c.oid, 'pg_class') = 'expired', false)
               AS expired,
           c.reltuples::bigint AS rows_estimated,
           pg_total_relation_size(c.oid) AS bytes
        FROM pg_class c
             LEFT JOIN pg_inherits i
                 ON i.inhrelid = c.oid
                    AND i.inhparent = 'referral.interaction'::regclass
        WHERE c.relnamespace = 'referral'::regnamespace
              AND c.relkind = 'r'
              AND c.relname ~ '^interaction_[0-9]{8}$';

GRANT SELECT ON referral.interaction_partition
    TO referral_worker, referral_analyst;


DO $$ BEGIN PERFORM referral.partitions_ahead(); END $$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (2, 'interaction');

COMMIT;
