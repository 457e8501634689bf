-- Copyright (C) The nginx referral module authors
--
-- What is kept about a person: export and erasure.
--
-- Personal data stands in person, and beside it in few places: external ids,
-- messages and notes, names of professional partners, the hashes that
-- recognise a referee, and the clicks that a referral was made from.  Erasure
-- empties all of them.  Ledger and audit stay as they are: they name rows, not
-- people.  A vanity code is a public name that clicks are filed under; it is
-- switched off and stays.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

-- Where a person occurs.

CREATE TYPE referral.subject AS (
    organisation_id  bigint,
    persons          bigint[],
    referrers        bigint[],
    referrals        bigint[],              -- as the one who was referred
    clicks           uuid[],
    partners         bigint[],              -- as a professional
    professional     bigint[]               -- as a professional's client
);


-- Everything around these rows of person, and these referrals.  Whoever named
-- the same e-mail address or phone, and knew no id, meant the same person.

CREATE FUNCTION referral.subject_around(organisation bigint,
                                        of_persons bigint[],
                                        of_referrers bigint[],
                                        of_referrals bigint[])
    RETURNS referral.subject
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s  referral.subject;
BEGIN
    s.organisation_id := organisation;

    SELECT coalesce(array_agg(r.id ORDER BY r.id), '{}') INTO s.referrals
        FROM referral.referral r
        WHERE r.organisation_id = organisation
              AND r.id IN (
                  SELECT unnest(of_referrals)
                  UNION
                  SELECT t.id FROM referral.referral t
                      WHERE t.person_id = ANY (of_persons)
                  UNION
                  SELECT t.id
                      FROM referral.referee_identity known
                           JOIN referral.referee_identity same
                               ON same.hash = known.hash
                                  AND same.organisation_id = organisation
                           JOIN referral.referral t ON t.id = same.referral_id
                      WHERE known.referral_id = ANY (of_referrals)
                            AND t.referee_external_id IS NULL);

    SELECT coalesce(array_agg(f.id ORDER BY f.id), '{}') INTO s.referrers
        FROM referral.referrer f
        WHERE f.organisation_id = organisation
              AND (f.id = ANY (of_referrers)
                   OR f.person_id = ANY (of_persons));

    SELECT coalesce(array_agg(DISTINCT p.id ORDER BY p.id), '{}')
        INTO s.persons
        FROM (SELECT unnest(of_persons) AS id
              UNION ALL
              SELECT r.person_id FROM referral.referral r
                  WHERE r.id = ANY (s.referrals)
              UNION ALL
              SELECT f.person_id FROM referral.referrer f
                  WHERE f.id = ANY (s.referrers)) p
             JOIN referral.person h ON h.id = p.id
        WHERE h.organisation_id = organisation;

    SELECT coalesce(array_agg(DISTINCT t.click), '{}') INTO s.clicks
        FROM (SELECT r.click_id AS click FROM referral.referral r
                  WHERE r.id = ANY (s.referrals)
              UNION ALL
              SELECT (e.touch ->> 'click_id')::uuid
                  FROM referral.referral r,
                       jsonb_array_elements(r.touches) e (touch)
                  WHERE r.id = ANY (s.referrals)) t
        WHERE t.click IS NOT NULL;

    SELECT coalesce(array_agg(b.id ORDER BY b.id), '{}') INTO s.partners
        FROM referral.professional_partner b
        WHERE b.organisation_id = organisation
              AND b.person_id = ANY (s.persons);

    SELECT coalesce(array_agg(q.id ORDER BY q.id), '{}') INTO s.professional
        FROM referral.professional_referral q
        WHERE q.organisation_id = organisation
              AND q.subject IN (
                  SELECT r.referee_external_id FROM referral.referral r
                      WHERE r.id = ANY (s.referrals)
                  UNION ALL
                  SELECT f.external_id FROM referral.referrer f
                      WHERE f.id = ANY (s.referrers));

    RETURN s;
END
$$;

REVOKE ALL ON FUNCTION
    referral.subject_around(bigint, bigint[], bigint[], bigint[]) FROM PUBLIC;


CREATE FUNCTION referral.subject_person(person_id bigint)
    RETURNS referral.subject
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p  referral.person;
    s  referral.subject;
BEGIN
    SELECT h.* INTO p FROM referral.person h
        WHERE h.id = subject_person.person_id
              AND (referral.organisation_scope() IS NULL
                   OR h.organisation_id = referral.organisation_scope());

    IF p.id IS NULL THEN
        RAISE EXCEPTION 'no person %', coalesce(person_id::text, '(null)')
            USING ERRCODE = 'RF124',
                  HINT = 'It does not exist, or belongs to another'
                         ' organisation.';
    END IF;

    s := referral.subject_around(p.organisation_id, ARRAY[p.id], '{}', '{}');
    RETURN referral.subject_around(p.organisation_id, s.persons, s.referrers,
                                   s.referrals);
END
$$;

REVOKE ALL ON FUNCTION referral.subject_person(bigint) FROM PUBLIC;


-- By what the application knows: its id of the user, e-mail address, phone.

CREATE FUNCTION referral.subject_customer(organisation_id bigint,
                                          external_id text, contact jsonb)
    RETURNS referral.subject
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    referrals  bigint[];
    referrers  bigint[];
    partners   bigint[];
    persons    bigint[];
    s          referral.subject;
BEGIN
    PERFORM referral.organisation_check(organisation_id);

    IF external_id IS NULL AND coalesce(contact, '{}') = '{}' THEN
        RAISE EXCEPTION 'nobody is asked for'
            USING ERRCODE = 'RF125',
                  HINT = 'Give the external id, or a contact with email or'
                         ' phone.';
    END IF;

    SELECT array_agg(f) INTO referrals
        FROM referral.referral_find(organisation_id, external_id, contact) f;

    SELECT array_agg(f.id) INTO referrers
        FROM referral.referrer f
             LEFT JOIN referral.person h ON h.id = f.person_id
        WHERE f.organisation_id = subject_customer.organisation_id
              AND (f.external_id = subject_customer.external_id
                   OR referral.email_normal(h.email)
                      = referral.email_normal(contact ->> 'email')
                   OR referral.phone_normal(h.phone)
                      = referral.phone_normal(contact ->> 'phone'));

    SELECT coalesce(array_agg(b.id), '{}'),
           coalesce(array_agg(b.person_id)
                        FILTER (WHERE b.person_id IS NOT NULL), '{}')
        INTO partners, persons
        FROM referral.professional_partner b
             LEFT JOIN referral.person h ON h.id = b.person_id
        WHERE b.organisation_id = subject_customer.organisation_id
              AND (b.external_id = subject_customer.external_id
                   OR referral.email_normal(h.email)
                      = referral.email_normal(contact ->> 'email')
                   OR referral.phone_normal(h.phone)
                      = referral.phone_normal(contact ->> 'phone'));

    s := referral.subject_around(organisation_id, persons,
                                 coalesce(referrers, '{}'),
                                 coalesce(referrals, '{}'));
    -- once more: other referrals that were made for the rows of person found
    s := referral.subject_around(organisation_id, s.persons, s.referrers,
                                 s.referrals);

    s.partners := ARRAY(SELECT unnest(s.partners) UNION SELECT unnest(partners)
                            ORDER BY 1);
    s.professional := ARRAY(
        SELECT unnest(s.professional)
        UNION
        SELECT q.id FROM referral.professional_referral q
            WHERE q.organisation_id = subject_customer.organisation_id
                  AND q.subject = subject_customer.external_id
        ORDER BY 1);
    RETURN s;
END
$$;

REVOKE ALL ON FUNCTION referral.subject_customer(bigint, text, jsonb)
    FROM PUBLIC;


-- All there is, as one JSON object: a key for each table, a list of its rows.

CREATE FUNCTION referral.subject_export(s referral.subject, reason text)
    RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    result  jsonb := '{}';
    part    record;
    rows_   jsonb;
BEGIN
    PERFORM referral.audit_write(s.organisation_id, 'export', 'person', p,
                                 NULL, reason)
        FROM unnest(s.persons) p;

    -- $1 persons, $2 referrers, $3 referrals, $4 clicks, $5 partners,
    -- $6 referrals between professionals

    FOR part IN
        SELECT * FROM (VALUES
            ('person', 't.id = ANY ($1)'),
            ('referrer', 't.id = ANY ($2)'),
            ('terms_acceptance', 't.referrer_id = ANY ($2)'),
            ('code', 't.referrer_id = ANY ($2)'),
            ('referral', 't.id = ANY ($3) OR t.referrer_id = ANY ($2)'),
            ('referral_step', 't.referral_id = ANY ($3)'),
            ('conversion', 't.referral_id = ANY ($3)'),
            ('refund', 't.conversion_id IN (SELECT c.id'
             ' FROM referral.conversion c WHERE c.referral_id = ANY ($3))'),
            ('reward', 't.referrer_id = ANY ($2) OR t.person_id = ANY ($1)'
             ' OR t.referral_id = ANY ($3) AND t.beneficiary = ''referee'''),
            ('payout', 't.referrer_id = ANY ($2)'),
            ('redemption',
             't.referrer_id = ANY ($2) OR t.referral_id = ANY ($3)'),
            ('professional_partner', 't.id = ANY ($5)'),
            ('professional_referral', 't.id = ANY ($6)'),
            ('account', 't.referrer_id = ANY ($2) OR t.person_id = ANY ($1)'),
            ('ledger', 't.referrer_id = ANY ($2) OR t.person_id = ANY ($1)'),
            ('interaction', 't.id = ANY ($4) AND t.occurred_at IN (SELECT'
             ' referral.uuid_time(k) FROM unnest($4) k)')) v (name, condition)
    LOOP
        -- referrals made by a referrer are of somebody else: only their ids,
        -- steps and dates
        EXECUTE format('SELECT coalesce(jsonb_agg(to_jsonb(t)%s), ''[]'')'
                       ' FROM referral.%I t WHERE %s',
                       CASE part.name
                            WHEN 'referral' THEN
                                ' - CASE WHEN t.id = ANY ($3)'
                                ' THEN ''{}''::text[]'
                                ' ELSE ''{person_id,referee_external_id,'
                                'touches,click_id,notes,request_hash,'
                                'idempotency_key}'' END'
                            WHEN 'conversion' THEN
                                ' - ''{request_hash,answer}''::text[]'
                            WHEN 'refund' THEN
                                ' - ''{request_hash,answer}''::text[]'
                            WHEN 'redemption' THEN ' - ''request_hash'''
                            ELSE '' END,
                       part.name, part.condition)
            INTO rows_
            USING s.persons, s.referrers, s.referrals, s.clicks, s.partners,
                  s.professional;
        result := result || jsonb_build_object(part.name, rows_);
    END LOOP;

    RETURN jsonb_build_object('exported_at', now(),
                              'organisation_id', s.organisation_id) || result;
END
$$;

REVOKE ALL ON FUNCTION referral.subject_export(referral.subject, text)
    FROM PUBLIC;


-- Empties what names the person; how many rows of each table.  What was
-- erased can not be recognised any more: the same e-mail address is a new
-- referee afterwards.

CREATE FUNCTION referral.subject_erase(s referral.subject, reason text)
    RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    result  jsonb := '{}';
    n       bigint;
BEGIN
    IF coalesce(btrim(reason), '') = '' THEN
        RAISE EXCEPTION 'an erasure needs a reason, for the audit'
            USING ERRCODE = 'RF126',
                  HINT = 'For example: request of the person, ticket 4711.';
    END IF;

    PERFORM referral.audit_write(s.organisation_id, 'erase', 'person', p,
                                 NULL, reason)
        FROM unnest(s.persons) p;

    UPDATE referral.person p
        SET first_name = NULL, last_name = NULL, name = NULL, email = NULL,
            phone = NULL, company = NULL, address = NULL, erased_at = now()
        WHERE p.id = ANY (s.persons);
    GET DIAGNOSTICS n = ROW_COUNT;
    result := result || jsonb_build_object('person', n);

    UPDATE referral.code c
        SET status = 'disabled'
        WHERE c.referrer_id = ANY (s.referrers) AND c.status <> 'disabled';
    GET DIAGNOSTICS n = ROW_COUNT;
    result := result || jsonb_build_object('code', n);

    UPDATE referral.referrer f
        SET external_id = NULL, attributes = '{}', reject_reason = NULL,
            notes = NULL,
            status = CASE WHEN f.status IN ('applied', 'rejected')
                          THEN 'rejected' ELSE 'terminated' END
        WHERE f.id = ANY (s.referrers);
    GET DIAGNOSTICS n = ROW_COUNT;
    result := result || jsonb_build_object('referrer', n);

    DELETE FROM referral.partner_login l
        WHERE l.referrer_id = ANY (s.referrers);
    DELETE FROM referral.referee_identity i
        WHERE i.referral_id = ANY (s.referrals);
    GET DIAGNOSTICS n = ROW_COUNT;
    result := result || jsonb_build_object('referee_identity', n);

    -- a message is the referrer's, to the referee: either may have it erased

    UPDATE referral.referral r
        SET referee_external_id = CASE WHEN r.id = ANY (s.referrals)
                THEN NULL ELSE r.referee_external_id END,
            notes = CASE WHEN r.id = ANY (s.referrals)
                THEN NULL ELSE r.notes END,
            message = NULL,
            idempotency_key = CASE WHEN r.id = ANY (s.referrals)
                THEN NULL ELSE r.idempotency_key END,
            request_hash = CASE WHEN r.id = ANY (s.referrals)
                THEN NULL ELSE r.request_hash END
        WHERE r.id = ANY (s.referrals)
              OR r.referrer_id = ANY (s.referrers) AND r.message IS NOT NULL;
    GET DIAGNOSTICS n = ROW_COUNT;
    result := result || jsonb_build_object('referral', n);

    UPDATE referral.professional_partner b
        SET name = 'erased ' || b.id, external_id = NULL, active = false
        WHERE b.id = ANY (s.partners);
    GET DIAGNOSTICS n = ROW_COUNT;
    result := result || jsonb_build_object('professional_partner', n);

    UPDATE referral.professional_referral q
        SET subject = NULL, notes = NULL, idempotency_key = NULL
        WHERE q.id = ANY (s.professional);
    GET DIAGNOSTICS n = ROW_COUNT;
    result := result || jsonb_build_object('professional_referral', n);

    -- events name the application's id of the referee, for 30 days

    UPDATE referral.event e
        SET data = e.data - 'referee_external_id'
        WHERE e.order_key = ANY (SELECT 'referral:' || f
                                     FROM unnest(s.referrals) f)
              AND e.data ? 'referee_external_id';
    GET DIAGNOSTICS n = ROW_COUNT;
    result := result || jsonb_build_object('event', n);

    UPDATE referral.interaction i
        SET visitor = NULL, visitor_hash = NULL, ip = NULL, user_agent = NULL,
            args = NULL, metadata = i.metadata - '{latitude,longitude,referer,'
                                                 'time_zone}'::text[]
        WHERE i.id = ANY (s.clicks)
              AND i.occurred_at IN (SELECT referral.uuid_time(c)
                                        FROM unnest(s.clicks) c);
    GET DIAGNOSTICS n = ROW_COUNT;

    RETURN result || jsonb_build_object('interaction', n);
END
$$;

REVOKE ALL ON FUNCTION referral.subject_erase(referral.subject, text)
    FROM PUBLIC;


CREATE FUNCTION referral.person_export(person_id bigint,
                                       reason text DEFAULT NULL) RETURNS jsonb
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN referral.subject_export(referral.subject_person(person_id), reason);

CREATE FUNCTION referral.person_erase(person_id bigint, reason text)
    RETURNS jsonb
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN referral.subject_erase(referral.subject_person(person_id), reason);

-- The same for whoever goes by this external id, e-mail address or phone
-- number: as referrer, as referee, and in every program.

CREATE FUNCTION referral.customer_export(organisation_id bigint,
                                         external_id text DEFAULT NULL,
                                         contact jsonb DEFAULT NULL,
                                         reason text DEFAULT NULL)
    RETURNS jsonb
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN referral.subject_export(
               referral.subject_customer(organisation_id, external_id,
                                         contact), reason);

CREATE FUNCTION referral.customer_erase(organisation_id bigint,
                                        external_id text, contact jsonb,
                                        reason text) RETURNS jsonb
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    RETURN referral.subject_erase(
               referral.subject_customer(organisation_id, external_id,
                                         contact), reason);


CREATE FUNCTION referral.program_in_scope(program_id bigint) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    RETURN referral.organisation_scope() IS NULL
           OR EXISTS (SELECT FROM referral.program p
                          WHERE p.id = program_id
                                AND p.organisation_id
                                    = referral.organisation_scope());

REVOKE ALL ON FUNCTION referral.program_in_scope(bigint) FROM PUBLIC;


-- The clicks of one visitor id, which an attribution cookie holds.  Every
-- partition since then is read: seconds for each 10 million rows.  The edge
-- keeps no visitor, so a click recorded later is not erased.

CREATE FUNCTION referral.visitor_export(of_visitor uuid,
                                        since timestamptz DEFAULT NULL)
    RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    low  timestamptz := coalesce(since, now() - interval '13 months');
BEGIN
    PERFORM referral.audit_write(NULL, 'export', 'interaction', NULL,
                                 '{visitor}', NULL);

    RETURN (SELECT coalesce(jsonb_agg(to_jsonb(i) ORDER BY i.occurred_at),
                            '[]')
                FROM referral.interaction i
                WHERE i.visitor = of_visitor AND i.occurred_at >= low
                      AND referral.program_in_scope(i.program_id));
END
$$;

CREATE FUNCTION referral.visitor_erase(of_visitor uuid, reason text,
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
    IF coalesce(btrim(reason), '') = '' THEN
        RAISE EXCEPTION 'an erasure needs a reason, for the audit'
            USING ERRCODE = 'RF126',
                  HINT = 'For example: request of the person, ticket 4711.';
    END IF;

    PERFORM referral.audit_write(NULL, 'erase', 'interaction', NULL,
                                 '{visitor}', reason);

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


DO $$
DECLARE
    f  regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid::regprocedure FROM pg_proc p
            WHERE p.pronamespace = 'referral'::regnamespace
                  AND p.proname IN ('person_export', 'person_erase',
                                    'customer_export', 'customer_erase',
                                    'visitor_export', 'visitor_erase')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO referral_app', f);
    END LOOP;
END
$$;

INSERT INTO referral.schema_migration (version, name) VALUES (30, 'privacy');

COMMIT;
