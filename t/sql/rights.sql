-- Copyright (C) The nginx referral module authors
--
-- Who may do what, for every object there is: what a later migration adds
-- falls under these rules by itself.  A right on a table that is not in the
-- list below is a failure until somebody has thought about it and added it.

BEGIN;

SELECT no_plan();

-- tables and sequences: nobody but the worker writes, and only where records
-- come in

CREATE TEMP VIEW granted AS
    SELECT c.relname::text AS name, a.grantee::regrole::text AS role,
           string_agg(a.privilege_type, ',' ORDER BY a.privilege_type)
               AS rights
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = 'referral'::regnamespace
              AND c.relkind IN ('r', 'p', 'S', 'f', 'm')
              AND a.grantee <> c.relowner
        GROUP BY 1, 2;

CREATE TEMP TABLE expected (name text, role text, rights text);

INSERT INTO expected VALUES
    ('interaction', 'referral_worker', 'INSERT'),
    ('counter_delta', 'referral_worker', 'INSERT'),
    ('dead_letter', 'referral_worker', 'INSERT'),
    ('quarantine', 'referral_worker', 'INSERT'),
    ('ingest_gap', 'referral_worker', 'INSERT'),
    ('ingest_cursor', 'referral_worker', 'SELECT'),
    ('ingest_cursor', 'referral_analyst', 'SELECT'),
    ('ingest_gap', 'referral_analyst', 'SELECT'),
    ('schema_migration', 'referral_worker', 'SELECT'),
    ('schema_migration', 'referral_app', 'SELECT'),
    ('schema_migration', 'referral_analyst', 'SELECT'),
    -- own rows only, by row level security
    ('terms_acceptance', 'referral_partner', 'SELECT'),
    -- words, the same for all
    ('event_type', 'referral_app', 'SELECT'),
    ('event_type', 'referral_analyst', 'SELECT'),
    ('referral_transition', 'referral_app', 'SELECT'),
    ('referral_transition', 'referral_analyst', 'SELECT'),
    ('payout_transition', 'referral_app', 'SELECT'),
    ('payout_transition', 'referral_analyst', 'SELECT'),
    ('housekeeping_part', 'referral_worker', 'SELECT'),
    ('unit', 'referral_app', 'SELECT'),
    ('unit', 'referral_analyst', 'SELECT'),
    ('unit', 'referral_partner', 'SELECT');

SELECT is_empty('SELECT * FROM granted EXCEPT SELECT * FROM expected',
                'no right on a table but those of the list');
SELECT is_empty('SELECT * FROM expected EXCEPT SELECT * FROM granted',
                'and all of the list');

SELECT is_empty($$ SELECT c.relname, a.attname, x.grantee::regrole,
                          x.privilege_type
    FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid,
         aclexplode(a.attacl) x
    WHERE c.relnamespace = 'referral'::regnamespace
          AND (x.grantee::regrole::text, c.relname, x.privilege_type) NOT IN
              (('referral_worker', 'ingest_cursor', 'INSERT'),
               ('referral_worker', 'ingest_cursor', 'UPDATE'))
          AND (x.grantee::regrole::text, x.privilege_type)
              <> ('referral_partner', 'SELECT') $$,
    'columns: partners read them, the worker moves its cursor');

SELECT is_empty($$ SELECT c.relname, a.grantee::regrole, a.privilege_type
    FROM pg_class c, aclexplode(c.relacl) a
    WHERE c.relnamespace = 'referral'::regnamespace AND c.relkind = 'v'
          AND a.grantee <> c.relowner AND a.privilege_type <> 'SELECT' $$,
    'views are read, nothing else');

SELECT is_empty($$ SELECT c.relname, a.privilege_type
    FROM pg_class c, aclexplode(c.relacl) a
    WHERE c.relnamespace = 'referral'::regnamespace AND a.is_grantable
          AND a.grantee <> c.relowner $$, 'no right is passed on');

-- partners: own rows of tables with row level security, views made for them

SELECT is_empty($$ SELECT DISTINCT c.relname
    FROM pg_class c
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid,
         aclexplode(coalesce(a.attacl, c.relacl)) x
    WHERE c.relnamespace = 'referral'::regnamespace
          AND c.relkind IN ('r', 'p') AND c.relname <> 'unit'
          AND x.grantee = 'referral_partner'::regrole
          AND NOT (c.relrowsecurity
                   AND EXISTS (SELECT FROM pg_policy p
                                   WHERE p.polrelid = c.oid
                                         AND 'referral_partner'::regrole
                                             = ANY (p.polroles))) $$,
    'what partners read of tables is under a policy for them');

SELECT is_empty($$ SELECT c.relname, p.polname
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
    WHERE c.relnamespace = 'referral'::regnamespace
          AND (p.polcmd <> 'r' OR NOT p.polpermissive
               OR p.polroles <> ARRAY['referral_partner'::regrole::oid]
               OR pg_get_expr(p.polqual, p.polrelid)
                  !~ 'current_referrer\(\)') $$,
    'policies are for reading, for partners, by the referrer');

SELECT is_empty($$ SELECT c.relname
    FROM pg_class c, aclexplode(c.relacl) x
    WHERE c.relnamespace = 'referral'::regnamespace AND c.relkind = 'v'
          AND x.grantee = 'referral_partner'::regrole
          AND NOT (c.relname LIKE 'my\_%'
                   AND (c.reloptions && '{security_invoker=true,
                                          security_barrier=true}'::text[])
                   AND (c.reloptions && '{security_invoker=true}'::text[]
                        OR pg_get_viewdef(c.oid)
                           ~ 'current_referrer\(\)')) $$,
    'their views are my_*, with their own rights or a barrier');

SELECT is_empty($$ SELECT c.relname
    FROM pg_class c, aclexplode(c.relacl) x
    WHERE c.relnamespace = 'referral'::regnamespace
          AND c.relname LIKE 'my\_%'
          AND x.grantee IN ('referral_app'::regrole,
                            'referral_analyst'::regrole,
                            'referral_worker'::regrole) $$,
    'and nobody else''s');

SELECT is_empty($$ SELECT p.oid::regprocedure
    FROM pg_proc p, aclexplode(p.proacl) x
    WHERE p.pronamespace = 'referral'::regnamespace
          AND x.grantee = 'referral_partner'::regrole
          AND p.proname NOT LIKE 'my\_%'
          AND NOT (p.proname IN ('actor', 'current_referrer', 'money_text')
                   OR p.provolatile = 'i') $$,
    'their functions are my_*, and those that read nothing');

-- organisations: what carries one is held to the scope

SELECT is_empty($$ SELECT c.relname
    FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid
                                AND a.attname IN ('organisation_id',
                                                  'program_id'),
         aclexplode(c.relacl) x
    WHERE c.relnamespace = 'referral'::regnamespace AND c.relkind = 'v'
          AND x.grantee IN ('referral_app'::regrole,
                            'referral_analyst'::regrole)
          AND pg_get_viewdef(c.oid) !~ 'organisation_scope\(\)'
    GROUP BY 1 $$, 'views of organisations and programs know the scope');

-- personal data: in one table, which nobody reads but functions

SELECT is_empty($$ SELECT c.relname, a.attname
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'referral'::regnamespace
          AND c.relkind IN ('r', 'p', 'v') AND c.relname <> 'person'
          AND a.attname IN ('email', 'phone', 'first_name', 'last_name',
                            'address', 'company') $$,
    'e-mail, phone, names and addresses stand in person');

-- functions

SELECT is_empty($$ SELECT oid::regprocedure, proconfig
    FROM pg_proc
    WHERE pronamespace = 'referral'::regnamespace
          AND NOT coalesce(proconfig, '{}')
                  && '{"search_path=pg_catalog, pg_temp"}'::text[] $$,
    'every function pins search_path to pg_catalog, pg_temp');

SELECT is_empty($$ SELECT oid::regprocedure, proowner::regrole
    FROM pg_proc
    WHERE pronamespace = 'referral'::regnamespace
          AND proowner <> CASE WHEN proname IN ('partition_ensure',
                                                'partitions_ahead')
                               THEN 'referral_partitions'
                               ELSE 'referral_owner' END::regrole $$,
    'functions belong to the owner');

SELECT is_empty($$ SELECT p.oid::regprocedure
    FROM pg_proc p, aclexplode(coalesce(p.proacl,
                                        acldefault('f', p.proowner))) x
    WHERE p.pronamespace = 'referral'::regnamespace AND x.grantee = 0 $$,
    'none is executable by PUBLIC');

SELECT is_empty($$ SELECT p.oid::regprocedure
    FROM pg_proc p, aclexplode(p.proacl) x
    WHERE p.pronamespace = 'referral'::regnamespace
          AND x.grantee = 'referral_analyst'::regrole
          AND p.provolatile = 'v' $$,
    'analysts execute nothing that could write');

SELECT is_empty($$ SELECT p.oid::regprocedure
    FROM pg_proc p, aclexplode(p.proacl) x
    WHERE p.pronamespace = 'referral'::regnamespace
          AND p.prorettype = 'trigger'::regtype
          AND x.grantee <> p.proowner $$, 'nobody executes triggers'' functions');

-- the probe: a table, a view and a function as one might forget them are
-- found

SET LOCAL client_min_messages = warning;
SET LOCAL ROLE referral_owner;
CREATE TABLE referral.forgotten (email text);
GRANT SELECT ON referral.forgotten TO referral_app;
CREATE FUNCTION referral.forgotten() RETURNS int LANGUAGE sql
    SECURITY DEFINER AS 'SELECT 1';
GRANT EXECUTE ON FUNCTION referral.forgotten() TO PUBLIC;
RESET ROLE;
SELECT isnt_empty('SELECT * FROM granted EXCEPT SELECT * FROM expected',
                  'a forgotten table is found');
SELECT isnt_empty($$ SELECT oid::regprocedure
    FROM pg_proc
    WHERE pronamespace = 'referral'::regnamespace
          AND NOT coalesce(proconfig, '{}')
                  && '{"search_path=pg_catalog, pg_temp"}'::text[] $$,
    'so is a function without a path');

SELECT * FROM finish();

ROLLBACK;
