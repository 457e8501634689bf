-- Codes.

DO $$ BEGIN
    PERFORM referral.ensure_code(1, 'ann');
    PERFORM referral.code_create(1, NULL, 'SUMMER25');
    PERFORM referral.code_import(1, '[{"code": "WINTER25", "max_uses": 3}]');
END $$;
