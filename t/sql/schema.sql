-- Copyright (C) The nginx referral module authors
--
-- Owners, rights, and what every object of the schema must obey.

BEGIN;

SELECT no_plan();

SELECT columns_are('referral', 'interaction', ARRAY['id', 'occurred_at',
    'received_at', 'stream', 'seq', 'type', 'verdict', 'via', 'kind', 'code',
    'code_id', 'program_id', 'referrer_id', 'visitor', 'visitor_hash', 'ip',
    'country', 'region', 'city', 'asn', 'user_agent', 'browser', 'os',
    'device', 'referer_host', 'host', 'path', 'args', 'language', 'source',
    'channel', 'signals', 'destination', 'metadata']);
SELECT col_type_is('referral', 'interaction', 'id', 'uuid', 'id');
SELECT col_type_is('referral', 'interaction', 'ip', 'inet', 'ip');
SELECT col_type_is('referral', 'interaction', 'args', 'jsonb', 'args');
SELECT col_type_is('referral', 'interaction', 'signals', 'text[]', 'signals');
SELECT col_is_pk('referral', 'interaction',
                 ARRAY['id', 'occurred_at']::name[], 'primary key');
SELECT columns_are('referral', 'ingest_cursor', ARRAY['stream', 'stream_id',
    'edge', 'seq', 'last_id', 'rows', 'quarantined', 'dead', 'gap',
    'updated_at']);

-- the landing table

SELECT is_empty($$ SELECT conname FROM pg_constraint
                       WHERE conrelid = 'referral.interaction'::regclass
                             AND contype IN ('f', 'c') $$,
                'no foreign key and no check on interaction');
SELECT is_empty($$ SELECT tgname FROM pg_trigger
                       WHERE tgrelid = 'referral.interaction'::regclass $$,
                'no trigger on it');
SELECT is_empty($$ SELECT relname FROM pg_class
                       WHERE relnamespace = 'referral'::regnamespace
                             AND relrowsecurity
                             AND relname LIKE 'interaction%' $$,
                'no row level security on it');
SELECT is_empty($$ SELECT partrelid FROM pg_partitioned_table
                       WHERE partdefid <> 0 $$, 'no default partition');

-- types

SELECT is_empty($$ SELECT c.relname, a.attname, a.atttypid::regtype
                       FROM pg_attribute a
                            JOIN pg_class c ON c.oid = a.attrelid
                       WHERE c.relnamespace = 'referral'::regnamespace
                             AND a.attnum > 0 AND NOT a.attisdropped
                             AND a.atttypid IN ('timestamp'::regtype,
                                 'time'::regtype, 'timetz'::regtype,
                                 'money'::regtype, 'float8'::regtype,
                                 'char'::regtype, 'bpchar'::regtype)
                             AND c.relkind IN ('r', 'p', 'v') $$,
                'no time without a zone, no float, no char(n)');

-- owners

SELECT is_empty($$ SELECT c.relname, c.relowner::regrole
                       FROM pg_class c
                       WHERE c.relnamespace = 'referral'::regnamespace
                             AND c.relowner <> CASE
                                 WHEN c.relname ~
                                      '^interaction(_[0-9]|_pkey|_code|$)'
                                 THEN 'referral_partitions'
                                 ELSE 'referral_owner' END::regrole $$,
                'tables and views belong to referral_owner, interaction and'
                ' its partitions to referral_partitions');
SELECT is_empty($$ SELECT rolname FROM pg_roles
                       WHERE rolname LIKE 'referral\_%'
                             AND (rolcanlogin OR rolsuper OR rolbypassrls
                                  OR rolcreaterole OR rolcreatedb) $$,
                'no role of ours logs in or is special');

-- functions

SELECT is_empty($$ SELECT oid::regprocedure FROM pg_proc
                       WHERE pronamespace = 'referral'::regnamespace
                             AND NOT EXISTS (SELECT FROM unnest(proconfig) s
                                             WHERE s LIKE
                                             'search_path=pg_catalog%pg_temp')
                $$, 'every function pins search_path, pg_temp last');
SELECT is_empty($$ SELECT p.oid::regprocedure
                       FROM pg_proc p,
                            aclexplode(coalesce(p.proacl,
                                       acldefault('f', p.proowner))) a
                       WHERE p.pronamespace = 'referral'::regnamespace
                             AND a.grantee = 0 $$,
                'nobody executes a function without a grant');
SELECT is_empty($$ SELECT c.relname
                       FROM pg_class c, aclexplode(c.relacl) a
                       WHERE c.relnamespace = 'referral'::regnamespace
                             AND a.grantee = 0 $$,
                'PUBLIC has no right on a table or view');
SELECT is_empty($$ SELECT a.privilege_type
                       FROM pg_namespace n, aclexplode(n.nspacl) a
                       WHERE n.nspname = 'referral' AND a.grantee = 0 $$,
                'nor on the schema');

-- the worker

SELECT table_privs_are('referral', 'interaction', 'referral_worker',
                       ARRAY['INSERT']);
SELECT table_privs_are('referral', 'counter_delta', 'referral_worker',
                       ARRAY['INSERT']);
SELECT table_privs_are('referral', 'counter', 'referral_worker',
                       ARRAY[]::text[]);
SELECT table_privs_are('referral', 'dead_letter', 'referral_worker',
                       ARRAY['INSERT']);
SELECT table_privs_are('referral', 'quarantine', 'referral_worker',
                       ARRAY['INSERT']);
SELECT table_privs_are('referral', 'ingest_gap', 'referral_worker',
                       ARRAY['INSERT']);
SELECT table_privs_are('referral', 'ingest_cursor', 'referral_worker',
                       ARRAY['SELECT']);
SELECT table_privs_are('referral', 'token_key', 'referral_worker',
                       ARRAY[]::text[]);
SELECT column_privs_are('referral', 'ingest_cursor', 'stream_id',
                        'referral_worker', ARRAY['SELECT', 'INSERT']);
SELECT column_privs_are('referral', 'ingest_cursor', 'seq',
                        'referral_worker', ARRAY['SELECT', 'UPDATE']);

SET LOCAL ROLE referral_worker;
SELECT throws_ok('SELECT count(*) FROM referral.interaction', '42501', NULL,
                 'the worker can not read interactions');
SELECT throws_ok('SELECT referral.requeue()', '42501', NULL,
                 'nor requeue');
SELECT throws_ok('DROP TABLE referral.interaction', '42501', NULL,
                 'nor drop, without taking the role for it');
SELECT lives_ok('SELECT referral.partitions_ahead()',
                'it makes partitions');
SELECT lives_ok('SELECT * FROM referral.housekeeping()',
                'and keeps house');
SET LOCAL ROLE referral_partitions;
SELECT throws_ok('SELECT count(*) FROM referral.ingest_cursor', '42501', NULL,
                 'that role has nothing but the landing table');
RESET ROLE;

-- the others

SELECT table_privs_are('referral', 'click', 'referral_analyst',
                       ARRAY['SELECT']);
SELECT table_privs_are('referral', 'counters', 'referral_analyst',
                       ARRAY['SELECT']);
SELECT table_privs_are('referral', 'interaction', 'referral_analyst',
                       ARRAY[]::text[]);
SELECT table_privs_are('referral', 'dead_letter', 'referral_analyst',
                       ARRAY[]::text[]);
SELECT table_privs_are('referral', 'token_key', 'referral_app',
                       ARRAY[]::text[]);
SELECT function_privs_are('referral', 'verify_token',
                          ARRAY['text', 'interval'], 'referral_app',
                          ARRAY['EXECUTE']);
SELECT function_privs_are('referral', 'verify_token',
                          ARRAY['text', 'interval'], 'referral_analyst',
                          ARRAY[]::text[]);
SELECT table_privs_are('referral', 'interaction', 'referral_partner',
                       ARRAY[]::text[]);

SELECT * FROM finish();

ROLLBACK;
