-- Copyright (C) The nginx referral module authors
--
-- Referrers: application, review, contact; acceptance of terms.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

CREATE TABLE referral.referrer (
    id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id  bigint       NOT NULL REFERENCES referral.organisation,
    person_id        bigint,
    external_id      text         COLLATE "C"
                         CHECK (length(external_id) BETWEEN 1 AND 200),
    type             text         NOT NULL DEFAULT 'customer'
                         CHECK (type IN ('customer', 'partner', 'influencer',
                             'employee', 'professional', 'student', 'parent',
                             'alumni', 'affiliate', 'patient', 'provider',
                             'agent', 'user')),
    status           text         NOT NULL DEFAULT 'active'
                         CHECK (status IN ('applied', 'active', 'rejected',
                             'inactive', 'suspended', 'terminated')),
    eligible         boolean      NOT NULL DEFAULT true,
    live             boolean      NOT NULL GENERATED ALWAYS AS
                         (status = 'active' AND eligible) STORED,
    attributes       jsonb        NOT NULL DEFAULT '{}'
                         CHECK (jsonb_typeof(attributes) = 'object'),
    commission_bp    int          CHECK (commission_bp BETWEEN 0 AND 10000),
    applied_at       timestamptz,
    reviewed_at      timestamptz,
    reviewed_by      text,
    approved_at      timestamptz,
    rejected_at      timestamptz,
    reject_reason    text         CHECK (length(reject_reason) <= 1000),
    notes            text         CHECK (length(notes) <= 10000),
    created_at       timestamptz  NOT NULL DEFAULT now(),
    updated_at       timestamptz  NOT NULL DEFAULT now(),
    UNIQUE (organisation_id, external_id),
    UNIQUE (id, organisation_id),
    FOREIGN KEY (person_id, organisation_id)
        REFERENCES referral.person (id, organisation_id)
) WITH (fillfactor = 90);

CREATE INDEX referrer_person ON referral.referrer (person_id)
    WHERE person_id IS NOT NULL;
CREATE INDEX referrer_status ON referral.referrer (organisation_id, status)
    WHERE status <> 'active';

COMMENT ON COLUMN referral.referrer.external_id IS
    'its user id in the application';
COMMENT ON COLUMN referral.referrer.eligible IS
    'set by the application: still a student, a customer in good standing';
COMMENT ON COLUMN referral.referrer.live IS
    'its codes may be valid at the edge, as far as the referrer is concerned';
COMMENT ON COLUMN referral.referrer.attributes IS
    'nothing personal; programs ask for them in eligibility.attributes';
COMMENT ON COLUMN referral.referrer.commission_bp IS
    'basis points, instead of the rate of the program';

COMMENT ON CONSTRAINT referrer_external_id_check ON referral.referrer IS
    '1 to 200 characters';
COMMENT ON CONSTRAINT referrer_attributes_check ON referral.referrer IS
    'a JSON object';
COMMENT ON CONSTRAINT referrer_commission_bp_check ON referral.referrer IS
    '0 to 10000 basis points (100 %)';
COMMENT ON CONSTRAINT referrer_reject_reason_check ON referral.referrer IS
    'at most 1000 characters';
COMMENT ON CONSTRAINT referrer_notes_check ON referral.referrer IS
    'at most 10000 characters';

CREATE TRIGGER touch BEFORE UPDATE ON referral.referrer
    FOR EACH ROW EXECUTE FUNCTION referral.touch();

DO $$ BEGIN PERFORM referral.audit_table('referrer'); END $$;

ALTER TABLE referral.partner_login
    ADD FOREIGN KEY (referrer_id) REFERENCES referral.referrer;

CREATE INDEX partner_login_referrer ON referral.partner_login (referrer_id);


-- The referrer, when there is one with this id inside the scope: RF025.

CREATE FUNCTION referral.referrer_row(id bigint,
                                      locked boolean DEFAULT false)
    RETURNS referral.referrer
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scope  bigint := referral.organisation_scope();
    r      referral.referrer;
BEGIN
    IF locked THEN
        SELECT * INTO r
            FROM referral.referrer t
            WHERE t.id = referrer_row.id
                  AND (scope IS NULL OR t.organisation_id = scope)
            FOR NO KEY UPDATE;

    ELSE
        SELECT * INTO r
            FROM referral.referrer t
            WHERE t.id = referrer_row.id
                  AND (scope IS NULL OR t.organisation_id = scope);
    END IF;

    IF r.id IS NULL THEN
        RAISE EXCEPTION 'referrer %: there is none with this id, or it is not'
                        ' yours', coalesce(referrer_row.id::text, '(null)')
            USING ERRCODE = 'RF025',
                  HINT = 'The view referral.referrers lists them.';
    END IF;

    RETURN r;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_row(bigint, boolean) FROM PUBLIC;


-- Inserts; the words of a taken external id and of broken constraints are
-- those of the function that was called.

CREATE FUNCTION referral.referrer_write(what text, organisation_id bigint,
                                        type text, options jsonb,
                                        contact jsonb, status text)
    RETURNS referral.referrer
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o              referral.organisation;
    r              referral.referrer;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    o := referral.organisation_live(organisation_id);
    options := referral.options_check(what, options,
        '{external_id,eligible,attributes,commission_bp,notes}');

    r.eligible := true;
    r.attributes := '{}';
    r := referral.options_apply(what, r, options);
    r.person_id := referral.person_write(what, NULL, o.id, 'referrer',
                                         contact);

    INSERT INTO referral.referrer AS t (organisation_id, person_id,
            external_id, type, status, eligible, attributes, commission_bp,
            notes, applied_at, approved_at)
        VALUES (o.id, r.person_id, r.external_id, referrer_write.type,
            referrer_write.status, r.eligible, r.attributes, r.commission_bp,
            r.notes,
            CASE WHEN referrer_write.status = 'applied' THEN now() END,
            CASE WHEN referrer_write.status = 'active' THEN now() END)
        RETURNING t.* INTO r;

    RETURN r;

EXCEPTION
    WHEN unique_violation THEN
        RAISE EXCEPTION '%(): a referrer with the external id "%" is there'
                        ' already', what, r.external_id
            USING ERRCODE = 'RF026',
                  HINT = 'referrer_update() changes it, the view'
                         ' referral.referrers has its id.';

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise(what, broken_table, broken,
                                          broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_write(text, bigint, text, jsonb,
                                               jsonb, text) FROM PUBLIC;


-- A referrer who is active at once.  Options: external_id, eligible (true),
-- attributes, commission_bp, notes.  Contact: first_name, last_name, name,
-- email, phone, company, address.

CREATE FUNCTION referral.referrer_create(organisation_id bigint, type text,
                                         options jsonb DEFAULT '{}',
                                         contact jsonb DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (referral.referrer_write('referrer_create', organisation_id, type,
                                    options, contact, 'active')).id;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_create(bigint, text, jsonb, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_create(bigint, text, jsonb, jsonb)
    TO referral_app;


-- The same, to be approved or rejected.

CREATE FUNCTION referral.referrer_apply(organisation_id bigint, type text,
                                        options jsonb DEFAULT '{}',
                                        contact jsonb DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referrer;
BEGIN
    r := referral.referrer_write('referrer_apply', organisation_id, type,
                                 options, contact, 'applied');

    PERFORM referral.emit_event(r.organisation_id, 'referrer.applied',
        'referrer:' || r.id,
        jsonb_build_object('referrer_id', r.id, 'type', r.type));

    RETURN r.id;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_apply(bigint, text, jsonb, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_apply(bigint, text, jsonb, jsonb)
    TO referral_app;


CREATE FUNCTION referral.status_refused(what text, id bigint, status text,
                                        wanted text, hint text)
    RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '% % is %, it can not become %', what, id, status,
                    coalesce(left(wanted, 100), '(null)')
        USING ERRCODE = 'RF021', HINT = hint;
END
$$;

REVOKE ALL ON FUNCTION referral.status_refused(text, bigint, text, text, text)
    FROM PUBLIC;


-- The reason goes into the row and, as the only free text, into the audit.

CREATE FUNCTION referral.referrer_reject(id bigint, reason text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r              referral.referrer;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    r := referral.referrer_row(id, true);

    IF r.status <> 'applied' THEN
        PERFORM referral.status_refused('referrer', r.id, r.status,
            'rejected', 'Only who applied is rejected;'
                        ' referrer_set_status() suspends and terminates.');
    END IF;

    UPDATE referral.referrer t
        SET status = 'rejected', reviewed_at = now(),
            reviewed_by = referral.actor(), rejected_at = now(),
            reject_reason = referrer_reject.reason
        WHERE t.id = r.id;

    PERFORM referral.audit_write(r.organisation_id, 'reject', 'referrer',
                                 r.id, NULL, referrer_reject.reason);

    PERFORM referral.emit_event(r.organisation_id, 'referrer.rejected',
        'referrer:' || r.id,
        jsonb_build_object('referrer_id', r.id, 'type', r.type));

EXCEPTION WHEN check_violation THEN
    GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
        broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
    PERFORM referral.constraint_raise('referrer_reject', broken_table, broken,
                                      broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_reject(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_reject(bigint, text)
    TO referral_app;


-- Changes: type, external_id, eligible, attributes, commission_bp, notes;
-- contact as in referrer_create(), only the keys given are changed.

CREATE FUNCTION referral.referrer_update(id bigint, changes jsonb,
                                         contact jsonb DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r              referral.referrer;
    broken_table   text;
    broken         text;
    broken_column  text;
BEGIN
    r := referral.referrer_row(id, true);
    changes := referral.options_check('referrer_update', changes,
        '{type,external_id,eligible,attributes,commission_bp,notes}');
    r := referral.options_apply('referrer_update', r, changes);
    r.person_id := referral.person_write('referrer_update', r.person_id,
                                         r.organisation_id, 'referrer',
                                         contact);

    UPDATE referral.referrer t
        SET type = r.type, external_id = r.external_id,
            eligible = r.eligible, attributes = r.attributes,
            commission_bp = r.commission_bp, notes = r.notes,
            person_id = r.person_id
        WHERE t.id = r.id
              AND (t.type, t.external_id, t.eligible, t.attributes,
                   t.commission_bp, t.notes, t.person_id)
                  IS DISTINCT FROM
                  (r.type, r.external_id, r.eligible, r.attributes,
                   r.commission_bp, r.notes, r.person_id);

EXCEPTION
    WHEN unique_violation THEN
        RAISE EXCEPTION 'referrer_update(): a referrer with the external id'
                        ' "%" is there already', r.external_id
            USING ERRCODE = 'RF026',
                  HINT = 'An external id is one user of an organisation.';

    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS broken_table = TABLE_NAME,
            broken = CONSTRAINT_NAME, broken_column = COLUMN_NAME;
        PERFORM referral.constraint_raise('referrer_update', broken_table,
                                          broken, broken_column);
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_update(bigint, jsonb, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_update(bigint, jsonb, jsonb)
    TO referral_app;


-- active, inactive, suspended, terminated (for good); one who applied is
-- approved or rejected instead; one who was rejected may apply again.

CREATE FUNCTION referral.referrer_set_status(id bigint, status text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referrer;
BEGIN
    r := referral.referrer_row(id, true);

    IF r.status = referrer_set_status.status THEN
        RETURN;
    END IF;

    IF (r.status, referrer_set_status.status) NOT IN (
            ('active', 'inactive'), ('active', 'suspended'),
            ('active', 'terminated'), ('inactive', 'active'),
            ('inactive', 'suspended'), ('inactive', 'terminated'),
            ('suspended', 'active'), ('suspended', 'inactive'),
            ('suspended', 'terminated'), ('rejected', 'applied'))
       OR referrer_set_status.status IS NULL
    THEN
        PERFORM referral.status_refused('referrer', r.id, r.status,
            referrer_set_status.status,
            'active, inactive and suspended become each other or terminated;'
            ' rejected: applied; applied: referrer_approve() or'
            ' referrer_reject().');
    END IF;

    UPDATE referral.referrer t
        SET status = referrer_set_status.status,
            applied_at = CASE WHEN referrer_set_status.status = 'applied'
                              THEN now() ELSE t.applied_at END
        WHERE t.id = r.id;

    IF referrer_set_status.status = 'applied' THEN
        PERFORM referral.emit_event(r.organisation_id, 'referrer.applied',
            'referrer:' || r.id,
            jsonb_build_object('referrer_id', r.id, 'type', r.type));
    END IF;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_set_status(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_set_status(bigint, text)
    TO referral_app;


-- The contact of a referrer; who reads it stands in the audit.  No row: there
-- is none, or it was erased.  Not STABLE: reading writes.

CREATE FUNCTION referral.referrer_contact(id bigint,
                                          reason text DEFAULT NULL,
                                          OUT person_id bigint,
                                          OUT first_name text,
                                          OUT last_name text, OUT name text,
                                          OUT email text, OUT phone text,
                                          OUT company text,
                                          OUT address jsonb)
    RETURNS SETOF record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referrer := referral.referrer_row(id);
BEGIN
    IF r.person_id IS NULL THEN
        RETURN;
    END IF;

    PERFORM referral.audit_write(r.organisation_id, 'read', 'person',
        r.person_id, '{first_name,last_name,name,email,phone,company,address}',
        referrer_contact.reason);

    RETURN QUERY
        SELECT p.id, p.first_name, p.last_name, p.name, p.email, p.phone,
               p.company, p.address
            FROM referral.person p
            WHERE p.id = r.person_id AND p.erased_at IS NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.referrer_contact(bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.referrer_contact(bigint, text)
    TO referral_app;


-- Why this referrer may not refer in this program, as a sentence; null: may.

CREATE FUNCTION referral.ineligible(p referral.program, r referral.referrer)
    RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE
        WHEN r.organisation_id <> p.organisation_id
        THEN 'belongs to another organisation'
        WHEN r.status <> 'active' THEN 'is ' || r.status
        WHEN NOT r.eligible THEN 'is marked as not eligible'
        WHEN NOT coalesce(p.eligibility -> 'types' ? r.type, true)
        THEN format('is of type %s, the program is for %s', r.type,
                    (SELECT string_agg(t, ', ')
                         FROM jsonb_array_elements_text(
                                  p.eligibility -> 'types') t))
        WHEN NOT coalesce(r.attributes @> (p.eligibility -> 'attributes'),
                          true)
        THEN 'has not the attributes that the program asks for: '
             || (p.eligibility ->> 'attributes')
    END;
END
$$;

REVOKE ALL ON FUNCTION referral.ineligible(referral.program,
                                           referral.referrer) FROM PUBLIC;

CREATE FUNCTION referral.eligibility(program_id bigint, referrer_id bigint)
    RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN referral.ineligible(referral.program_row(program_id),
                               referral.referrer_row(referrer_id));
END
$$;

REVOKE ALL ON FUNCTION referral.eligibility(bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.eligibility(bigint, bigint)
    TO referral_app;


-- Who accepted which version of a program's terms.  Rows are never changed.

CREATE TABLE referral.terms_acceptance (
    program_id     bigint       NOT NULL REFERENCES referral.program,
    referrer_id    bigint       NOT NULL REFERENCES referral.referrer,
    terms_version  int          NOT NULL CHECK (terms_version > 0),
    accepted_at    timestamptz  NOT NULL DEFAULT now(),
    actor          text         NOT NULL DEFAULT referral.actor(),
    PRIMARY KEY (program_id, referrer_id, terms_version)
);

CREATE INDEX terms_acceptance_referrer
    ON referral.terms_acceptance (referrer_id);


-- Accepts the terms as they are now; the version accepted.  Once more is no
-- error.

CREATE FUNCTION referral.terms_accept(program_id bigint, referrer_id bigint)
    RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.program := referral.program_row(program_id);
    r  referral.referrer := referral.referrer_row(referrer_id);
BEGIN
    IF p.organisation_id <> r.organisation_id THEN
        RAISE EXCEPTION 'program % and referrer % belong to different'
                        ' organisations', p.id, r.id
            USING ERRCODE = 'RF025',
                  HINT = 'A referrer refers for its own organisation.';
    END IF;

    IF p.terms_version = 0 THEN
        RAISE EXCEPTION 'program % (%) has no terms', p.id, p.slug
            USING ERRCODE = 'RF024',
                  HINT = 'program_update() sets "terms".';
    END IF;

    INSERT INTO referral.terms_acceptance (program_id, referrer_id,
                                           terms_version)
        VALUES (p.id, r.id, p.terms_version)
        ON CONFLICT DO NOTHING;

    RETURN p.terms_version;
END
$$;

REVOKE ALL ON FUNCTION referral.terms_accept(bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.terms_accept(bigint, bigint)
    TO referral_app;


-- A login role that sees what this referrer may see, in the views my_*; null
-- takes it back.

CREATE FUNCTION referral.partner_login_set(role_name text, referrer_id bigint)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r  referral.referrer;
    was  bigint;
BEGIN
    SELECT l.referrer_id INTO was
        FROM referral.partner_login l
        WHERE l.role_name = partner_login_set.role_name
        FOR UPDATE;

    IF was IS NOT NULL THEN
        r := referral.referrer_row(was);        -- the scope
    END IF;

    IF partner_login_set.referrer_id IS NULL THEN
        DELETE FROM referral.partner_login l
            WHERE l.role_name = partner_login_set.role_name;

    ELSE
        r := referral.referrer_row(partner_login_set.referrer_id);

        IF NOT EXISTS (SELECT FROM pg_roles o
                           WHERE o.rolname = partner_login_set.role_name
                                 AND pg_has_role(o.oid, 'referral_partner',
                                                 'MEMBER')
                                 AND NOT pg_has_role(o.oid, 'referral_app',
                                                     'MEMBER'))
        THEN
            RAISE EXCEPTION 'partner_login_set(): "%" is no role of a partner',
                            left(coalesce(partner_login_set.role_name,
                                          '(null)'), 100)
                USING ERRCODE = 'RF033',
                      HINT = 'CREATE ROLE ... LOGIN IN ROLE referral_partner'
                             ' first; a member of referral_app is none.';
        END IF;

        INSERT INTO referral.partner_login AS l (role_name, referrer_id)
            VALUES (partner_login_set.role_name, r.id)
            ON CONFLICT ON CONSTRAINT partner_login_pkey
                DO UPDATE SET referrer_id = excluded.referrer_id;
    END IF;

    PERFORM referral.audit_write(r.organisation_id, 'login', 'referrer', r.id)
        WHERE r.id IS NOT NULL;
END
$$;

REVOKE ALL ON FUNCTION referral.partner_login_set(text, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.partner_login_set(text, bigint)
    TO referral_app;


CREATE VIEW referral.referrers AS
    SELECT id, organisation_id, external_id, type, status, eligible,
           attributes, commission_bp, applied_at, reviewed_at, reviewed_by,
           approved_at, rejected_at, reject_reason, notes,
           person_id IS NOT NULL AS has_contact, created_at, updated_at
        FROM referral.referrer
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.referrers TO referral_app, referral_analyst;


CREATE VIEW referral.terms_acceptances AS
    SELECT t.program_id, t.referrer_id, t.terms_version, t.accepted_at,
           t.actor
        FROM referral.terms_acceptance t
             JOIN referral.program p ON p.id = t.program_id
        WHERE (SELECT referral.organisation_scope()) IS NULL
              OR p.organisation_id = (SELECT referral.organisation_scope());

GRANT SELECT ON referral.terms_acceptances TO referral_app, referral_analyst;

INSERT INTO referral.schema_migration (version, name) VALUES (9, 'referrer');

COMMIT;
