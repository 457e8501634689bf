-- Copyright (C) The nginx referral module authors
--
-- Marks, generations, batches, requests.

BEGIN;

SELECT no_plan();

-- who may what

SELECT is_empty($$ SELECT t, r
                       FROM unnest(ARRAY['mark', 'publication',
                                'publication_batch', 'publish_request',
                                'publish_answer']) t,
                            unnest(ARRAY['referral_worker', 'referral_app',
                                'referral_analyst', 'referral_partner',
                                'referral_partitions']) r
                       WHERE has_table_privilege(r, 'referral.' || t,
                                 'SELECT,INSERT,UPDATE,DELETE') $$,
                'nobody has a right on the tables');
SELECT function_privs_are('referral', 'publish_collect',
    ARRAY['bigint', 'bigint', 'integer'], 'referral_worker',
    ARRAY['EXECUTE'], 'the worker collects');
SELECT function_privs_are('referral', 'publish_collect',
    ARRAY['bigint', 'bigint', 'integer'], 'referral_app',
    ARRAY[]::text[], 'the application does not');
SELECT function_privs_are('referral', 'publish_request', ARRAY['boolean'],
    'referral_app', ARRAY['EXECUTE'], 'the application asks');
SELECT function_privs_are('referral', 'publish_request', ARRAY['boolean'],
    'referral_partner', ARRAY[]::text[], 'a partner does not');

-- what the view reads is what the triggers compare

SELECT is_empty($$ SELECT DISTINCT c.relname, a.attname
                       FROM pg_rewrite r
                            JOIN pg_depend d
                                ON d.classid = 'pg_rewrite'::regclass
                                   AND d.objid = r.oid AND d.refobjsubid > 0
                            JOIN pg_class c ON c.oid = d.refobjid
                            JOIN pg_attribute a
                                ON a.attrelid = c.oid
                                   AND a.attnum = d.refobjsubid
                            JOIN pg_proc p
                                ON p.proname = 'mark_' || c.relname
                                   AND p.pronamespace
                                       = 'referral'::regnamespace
                       WHERE r.ev_class = 'referral.code_state'::regclass
                             AND c.oid <> r.ev_class AND a.attname <> 'id'
                             AND p.prosrc !~ ('n\.' || a.attname || '\M') $$,
                'a change of any column that code_state reads is marked');

CREATE FUNCTION pg_temp.marks() RETURNS text LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM referral.mark RETURNING *)
    SELECT string_agg(concat_ws(' ', kind, object_id, code), ', '
                      ORDER BY id) FROM gone;
$$;

SELECT referral.organisation_create('a', 'A') AS org \gset
SELECT referral.program_create(:org, 'p', 'P',
    '{"landing_url": "https://example.com/"}') AS program \gset
SELECT referral.program_create(:org, 'q', 'Q',
    '{"landing_url": "https://example.com/q"}') AS other \gset
SELECT referral.program_set_status(:program, 'active');
SELECT referral.referrer_create(:org, 'partner',
    '{"external_id": "r1"}') AS referrer \gset
SELECT length(pg_temp.marks()) AS gone \gset
SELECT (referral.code_create(:program, :referrer, 'one')).id AS one \gset
SELECT is(pg_temp.marks(), format('code %s ONE', :one), 'a new code');
SELECT referral.code_set_status(:one, 'disabled');
SELECT is(pg_temp.marks(), format('code %s ONE', :one), 'one is disabled');
UPDATE referral.code SET uses = uses + 1, channel = 'mail' WHERE id = :one;
SELECT is(pg_temp.marks(), NULL, 'what is not published is not marked');
UPDATE referral.code SET max_uses = 3 WHERE id = :one;
SELECT is(pg_temp.marks(), format('code %s ONE', :one), 'a limit');
UPDATE referral.code SET uses = uses + 1 WHERE id = :one;
SELECT is(pg_temp.marks(), NULL, 'a use below the limit is none');
UPDATE referral.code SET uses = uses + 1 WHERE id = :one;
SELECT is(pg_temp.marks(), format('code %s ONE', :one), 'the last use is one');
UPDATE referral.code SET code = 'UNO' WHERE id = :one;
SELECT is(pg_temp.marks(), format('code %1$s UNO, code %1$s ONE', :one),
          'a renamed code: both names');
DELETE FROM referral.code WHERE id = :one;
SELECT is(pg_temp.marks(), format('code %s UNO', :one), 'a deleted one');

INSERT INTO referral.code (organisation_id, program_id, code)
    SELECT :org, :program, 'M' || g FROM generate_series(1, 2000) g;
SELECT is(count(*), 2000::bigint, '2,000 in a statement: each')
    FROM referral.mark;
SELECT length(pg_temp.marks()) AS gone \gset
INSERT INTO referral.code (organisation_id, program_id, code)
    SELECT :org, :program, 'N' || g FROM generate_series(1, 2001) g;
SELECT is(pg_temp.marks(), format('program %s', :program),
          'more: their program');
UPDATE referral.code SET code = 'X' || code, campaign = 'c';
SELECT is(count(*) FILTER (WHERE kind = 'code'), 4001::bigint,
          'many renamed: the old names')
    FROM referral.mark;
SELECT is(count(*) FILTER (WHERE kind = 'program'), 1::bigint,
          'and the program')
    FROM referral.mark;
SELECT length(pg_temp.marks()) AS gone \gset

SELECT referral.program_update(:program, '{"description": "other words"}');
SELECT is(pg_temp.marks(), NULL, 'words of a program');
SELECT referral.program_update(:program,
    '{"landing_url": "https://example.com/b"}');
SELECT is(pg_temp.marks(), format('program %s', :program), 'its page');
SELECT referral.program_set_status(:program, 'paused');
SELECT is(pg_temp.marks(), format('program %s', :program), 'its status');
SELECT referral.program_set_status(:program, 'active');
SELECT referral.referrer_set_status(:referrer, 'suspended');
SELECT length(pg_temp.marks()) AS gone \gset
SELECT referral.referrer_set_status(:referrer, 'active');
SELECT is(pg_temp.marks(), format('referrer %s', :referrer), 'a referrer');
SELECT referral.organisation_update(:org, '{"name": "B"}');
SELECT is(pg_temp.marks(), NULL, 'words of an organisation');
SELECT referral.organisation_set_status(:org, 'disabled');
SELECT is(pg_temp.marks(), format('organisation %s', :org),
          'an organisation');
SELECT referral.organisation_set_status(:org, 'active');
SELECT length(pg_temp.marks()) AS gone \gset

-- the lock

SELECT throws_ok($$ SELECT referral.publish_lock('a b') $$, 'RF040', NULL,
                 'a run_id has no spaces');
SELECT throws_ok($$ SELECT referral.publish_lock(NULL) $$, 'RF040', NULL,
                 'nor is it null');
SELECT ok(referral.publish_lock('abc') < referral.publish_lock('abc'),
          'fences rise, and the session that has the lock gets the next');
SELECT is(referral.publish_lock('abc', 1000), 1001::bigint,
          'above what stands in Redis');
SELECT is(count(*), 1::bigint, 'one lock, not three')
    FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();

-- versions, too, where this database is an older copy: edges believe no lower
-- one, and no publisher comes to a batch a millisecond

SELECT setval('referral.publish_version', 7) AS version \gset
SELECT referral.publish_begin('old', 1001) AS old \gset
SELECT ok(nextval('referral.publish_version')
          > extract(epoch FROM clock_timestamp()) * 1000 - 60000,
          'a generation begins above the versions of former lives');
SELECT setval('referral.publish_version', 9000000000000000) AS version \gset
DELETE FROM referral.publication WHERE generation = :old;
SELECT referral.publish_begin('old', 1001) AS old \gset
SELECT ok(nextval('referral.publish_version') > 9000000000000000,
          'or where it was, if that is higher');
DELETE FROM referral.publication WHERE generation = :old;

-- a generation: everything, then what changes

SELECT is(referral.publish_begin('abc', 1001, 41), 42::bigint,
          'a generation above the one in Redis');
SELECT is(referral.publish_open(42, 0, 1001, 'abc'), false,
          'it can be gone on with, and is not ready');
SELECT is(referral.publish_open(42, 1, 1001, 'abc'), NULL,
          'another batch is not it');
SELECT is(referral.publish_open(43, 0, 1001, 'abc'), NULL,
          'another generation is not it');

CREATE TEMP TABLE got AS
    SELECT * FROM referral.publish_collect(42, 0, 1500);
SELECT is(count(*), 3001::bigint, 'a slice of all codes') FROM got;
SELECT is(count(*), 0::bigint, 'nobody is told of them')
    FROM got WHERE loud;
SELECT ok(work AND more AND NOT scan, 'there is more')
    FROM got WHERE code IS NULL;
SELECT is_empty($$ SELECT g.code FROM got g
                       WHERE g.code IS NOT NULL
                             AND NOT EXISTS (SELECT
                                 FROM referral.code_published p
                                 WHERE (p.code, p.url, p.state, p.code_id,
                                        p.program_id)
                                       IS NOT DISTINCT FROM
                                       (g.code, g.url, g.state, g.code_id,
                                        g.program_id)) $$,
                'as the view has them');
SELECT ok(referral.publish_done(42, 0, 1001, snapshot, pending), 'done')
    FROM got WHERE code IS NULL;
SELECT ok(NOT referral.publish_done(42, 0, 1001, snapshot, pending),
          'done twice: not')
    FROM got WHERE code IS NULL;
SELECT ok(NOT referral.publish_done(42, 1, 1000, snapshot, pending),
          'done with an old fence: not')
    FROM got WHERE code IS NULL;
SELECT is_empty('SELECT * FROM referral.publish_collect(42, 0, 1500)',
                'a batch that is not the last collects nothing');
DROP TABLE got;
CREATE TEMP TABLE got AS
    SELECT * FROM referral.publish_collect(42, 1, 1500);
SELECT is(count(*), 1002::bigint, 'the rest') FROM got;
SELECT ok(work AND NOT more AND scan, 'then Redis is searched')
    FROM got WHERE code IS NULL;

SELECT referral.publish_request(true) AS request \gset
SELECT is(done, false, 'a request waits')
    FROM referral.publish_answers(:request);
SELECT referral.publish_request() AS small \gset
SELECT ok(referral.publish_done(42, 1, 1001, snapshot, pending, :small, 4001),
          'searched')
    FROM got WHERE code IS NULL;
SELECT ok(ready AND codes = 4001 AND pending = 0, 'ready')
    FROM referral.publications;
SELECT is(done, false, 'a full publish answers what came before it began')
    FROM referral.publish_answers(:request);
SELECT ok(done AND codes = 4001 AND generation = 42,
          'what asked for no full one is answered')
    FROM referral.publish_answers(:small);
SELECT throws_ok('SELECT * FROM referral.publish_answers(-1)', 'RF041', NULL,
                 'a request that is none');
SELECT is(whole, :request::bigint, 'the publisher sees that it is asked')
    FROM referral.publish_collect(42, 2, 100) WHERE code IS NULL;

-- what this transaction did it sees itself, but only another one commits:
-- t/publish.t goes on there

SELECT ok(referral.publish_prune() IS NOT NULL, 'marks are pruned');
SELECT is(referral.publish_alive(42, 1001), true, 'a sign of life');
SELECT is(referral.publish_alive(42, 1000), false, 'not with an old fence');
SELECT set_eq($$ SELECT * FROM referral.publish_missing(
                     ARRAY['XM1', 'NOBODY']) $$, ARRAY['NOBODY'],
              'names that are no codes');
UPDATE referral.publication SET updated_at = now() - interval '25 hours';
SELECT is(referral.publish_open(42, 2, 1002, 'abc'), NULL,
          'after a day it is not gone on with');
SELECT referral.publish_prune();
SELECT is_empty('SELECT * FROM referral.publication', 'and forgotten');

SET LOCAL client_min_messages = warning;

-- what refers to codes and is only appended to is in the way here

DO $$
DECLARE
    guard  record;
BEGIN
    FOR guard IN
        SELECT tgrelid::regclass AS place, tgname
            FROM pg_trigger
            WHERE tgtype & 32 <> 0      -- TRUNCATE
                  AND tgfoid::regproc::text ~ '_refuse$'
    LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', guard.place,
                       guard.tgname);
    END LOOP;
END
$$;

TRUNCATE referral.code CASCADE;
SELECT ok(max(id) > :small AND bool_or(whole),
          'TRUNCATE asks for a full publish')
    FROM referral.publish_request;

SELECT * FROM finish();

ROLLBACK;
