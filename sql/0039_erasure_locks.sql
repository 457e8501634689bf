-- Copyright (C) The nginx referral module authors
--
-- An erasure takes its locks in the order of 0032, all of them before it
-- changes anything; what no reward or payout needs comes last:
--
--     referees                          advisory locks
--     referrals, codes                  as everybody
--     referrers                         by id
--     partners, their referrals         by id
--     persons                           by id
--
-- subject_erase()  (0030) took persons first.  A referrer's external id is no
-- longer of a key that others could refer to: to empty it took a lock that
-- whoever makes a referral of his waits for, at any point of the order.
--
-- referral_credit()  (0016) enters hashes in their order, and after the code,
-- as referral_uncredit() leaves them: a referral may have some that the caller
-- did not name, and so did not lock.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

ALTER TABLE referral.referrer
    DROP CONSTRAINT referrer_organisation_id_external_id_key;
CREATE UNIQUE INDEX referrer_external
    ON referral.referrer (organisation_id, external_id)
    WHERE external_id IS NOT NULL;


-- Gives a referral its referee.  The referee's lock is held.  RF095 and RF096
-- when somebody else was first.

CREATE OR REPLACE FUNCTION referral.referral_credit(r referral.referral)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known  bytea;
BEGIN
    IF r.code_id IS NOT NULL THEN
        UPDATE referral.code c SET uses = c.uses + 1
            WHERE c.id = r.code_id
                  AND (c.max_uses IS NULL OR c.uses < c.max_uses);

        IF NOT FOUND THEN
            RAISE EXCEPTION 'the code of referral % has been used as often as'
                            ' it may be', r.id
                USING ERRCODE = 'RF095',
                      HINT = 'code_update() changes max_uses.';
        END IF;
    END IF;

    BEGIN
        FOR known IN
            SELECT i.hash FROM referral.referee_identity i
                WHERE i.referral_id = r.id
                ORDER BY i.hash
        LOOP
            UPDATE referral.referee_identity i SET credited = true
                WHERE i.referral_id = r.id AND i.hash = known;
        END LOOP;

    EXCEPTION WHEN unique_violation THEN
        RAISE EXCEPTION 'the referee of referral % has been credited in'
                        ' program % already', r.id, r.program_id
            USING ERRCODE = 'RF096',
                  HINT = 'attribution_override() moves the credit.';
    END;
END
$$;


-- Locks a subject for its erasure, and returns it as it is then: who signs up
-- at that moment may have added to it.

CREATE FUNCTION referral.subject_lock(s referral.subject)
    RETURNS referral.subject
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_  referral.subject;
BEGIN
    PERFORM referral.referee_lock(s.organisation_id,
                ARRAY(SELECT i.hash FROM referral.referee_identity i
                          WHERE i.referral_id = ANY (s.referrals)));

    found_ := referral.subject_around(s.organisation_id, s.persons,
                                      s.referrers, s.referrals);
    found_.partners := found_.partners || s.partners;
    found_.professional := found_.professional || s.professional;
    s := found_;

    PERFORM FROM referral.referral r
        WHERE r.id = ANY (s.referrals)
              OR r.referrer_id = ANY (s.referrers) AND r.message IS NOT NULL
        ORDER BY r.id
        FOR NO KEY UPDATE;
    PERFORM referral.code_lock(
                ARRAY(SELECT c.id FROM referral.code c
                          WHERE c.referrer_id = ANY (s.referrers)
                                AND c.status <> 'disabled'));
    PERFORM FROM referral.referrer f
        WHERE f.id = ANY (s.referrers)
        ORDER BY f.id
        FOR NO KEY UPDATE;

    -- the names of these are keys

    PERFORM FROM referral.professional_partner b
        WHERE b.id = ANY (s.partners)
        ORDER BY b.id
        FOR UPDATE;
    PERFORM FROM referral.professional_referral q
        WHERE q.id = ANY (s.professional)
        ORDER BY q.id
        FOR UPDATE;
    PERFORM FROM referral.person p
        WHERE p.id = ANY (s.persons)
        ORDER BY p.id
        FOR NO KEY UPDATE;

    RETURN s;
END
$$;

REVOKE ALL ON FUNCTION referral.subject_lock(referral.subject) FROM PUBLIC;


-- Empties what names the person; how many rows of each table.  What was
-- erased can not be recognised any more: the same e-mail address is a new
-- referee afterwards.

CREATE OR REPLACE FUNCTION referral.subject_erase(s referral.subject,
                                                  reason text)
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

    s := referral.subject_lock(s);

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

INSERT INTO referral.schema_migration (version, name)
    VALUES (39, 'erasure_locks');

COMMIT;
