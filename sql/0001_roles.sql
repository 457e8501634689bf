-- Copyright (C) The nginx referral module authors
--
-- Schema, roles and the register of migrations.
--
-- Rules for every file here.  Files are numbered without gaps, forward only,
-- and never edited once released.  Each is one transaction with its own BEGIN
-- and COMMIT, so that plain psql can apply them in order:
--
--     psql -v ON_ERROR_STOP=1 -d DATABASE -f sql/0001_roles.sql
--
-- Each enters itself into referral.schema_migration with a null sha256;
-- "referralctl db upgrade" runs the missing files under the advisory lock
-- hashtextextended('referral.schema_migration', 0), fills null checksums and
-- refuses to go on when a recorded one differs from the file.
--
-- The first file needs a superuser, or a role with CREATEROLE that may create
-- schemas in the database; later ones need membership in referral_owner.
-- All roles are groups that can not log in: GRANT referral_worker TO the login
-- role of the worker, and so on.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL client_min_messages = warning;

DO $$
DECLARE
    role_name  text;
    privilege  text := CASE WHEN current_setting('server_version_num')::int
                                 >= 160000 THEN 'SET' ELSE 'MEMBER' END;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['referral_owner', 'referral_partitions',
        'referral_worker', 'referral_app', 'referral_analyst',
        'referral_partner']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                -- NOINHERIT: members of the worker role reach the rights of
                -- referral_partitions only by an explicit SET ROLE
                EXECUTE format('CREATE ROLE %I NOLOGIN %s', role_name,
                               CASE role_name WHEN 'referral_worker'
                               THEN 'NOINHERIT' ELSE '' END);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;                   -- another database's upgrade was first
            END;
        END IF;
    END LOOP;

    GRANT referral_partitions TO referral_owner, referral_worker;

    FOREACH role_name IN ARRAY ARRAY['referral_owner', 'referral_partitions']
    LOOP
        IF NOT pg_has_role(current_user, role_name, privilege) THEN
            EXECUTE format('GRANT %I TO %I', role_name, current_user);
        END IF;
    END LOOP;
END
$$;

CREATE SCHEMA referral AUTHORIZATION referral_owner;

SET LOCAL ROLE referral_owner;

COMMENT ON SCHEMA referral IS 'Edge referral tracking for nginx';

GRANT USAGE ON SCHEMA referral TO referral_partitions, referral_worker,
    referral_app, referral_analyst, referral_partner;

-- makes partitions, and so must be able to create tables
GRANT CREATE ON SCHEMA referral TO referral_partitions;

-- functions are executable by everyone unless this default is taken away;
-- it only works for the whole role, not for one schema
ALTER DEFAULT PRIVILEGES FOR ROLE referral_owner
    REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE referral_partitions
    REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

CREATE TABLE referral.schema_migration (
    version     int          PRIMARY KEY,
    name        text         NOT NULL,
    sha256      text         CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    applied_at  timestamptz  NOT NULL DEFAULT now()
);

GRANT SELECT ON referral.schema_migration
    TO referral_worker, referral_app, referral_analyst;

INSERT INTO referral.schema_migration (version, name) VALUES (1, 'roles');

COMMIT;
