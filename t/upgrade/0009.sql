-- Referrers, one of them to be reviewed.

DO $$ BEGIN
    PERFORM referral.referrer_create(1, 'user', '{"external_id": "ann"}',
                                     '{"email": "ann@example.com"}');
    PERFORM referral.referrer_apply(1, 'partner');
    PERFORM referral.terms_accept(1, 1);
END $$;
