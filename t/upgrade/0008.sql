-- Programs, one of them at work, with variants; a template.

DO $$ BEGIN
    PERFORM referral.program_create(1, 'summer', 'Summer',
        '{"landing_url": "https://example.com/", "terms": "Be kind."}');
    PERFORM referral.program_set_status(1, 'active');
    PERFORM referral.program_variant_set(1, 'a');
    PERFORM referral.program_clone(1, 'template', '{"template": true}');
END $$;
