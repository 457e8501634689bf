-- Organisations, one of them changed; a person.

DO $$ BEGIN
    PERFORM referral.organisation_create('acme', 'Acme');
    PERFORM referral.organisation_create('beta', 'Beta');
    PERFORM referral.organisation_update(1, '{"name": "Acme Inc"}');
    PERFORM referral.person_write('upgrade', NULL, 1, 'customer',
                                  '{"email": "a@example.com"}');
END $$;
