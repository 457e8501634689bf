-- Copyright (C) The nginx referral module authors
--
-- Templates that come with the schema have reward rules, so that a program
-- made of one rewards.  Replaces program_templates() and program_create() of
-- 0008.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;


-- The templates that come with the schema.  An organisation's own are its
-- programs with template = true; they go first.  What an amount of money is
-- worth depends on the currency: so rules have rates, coupons and quantities.
-- reward_rules_set() replaces them, and sets caps and limits.

DROP FUNCTION referral.program_templates();

CREATE FUNCTION referral.program_templates(OUT name text, OUT title text,
                                           OUT advice text, OUT options jsonb,
                                           OUT rules jsonb)
    RETURNS SETOF record
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.name, t.title, t.advice, t.options::jsonb, t.rules::jsonb
        FROM (VALUES
            ('refer-a-friend', 'Customers refer friends',
             'Reward both sides; the friend''s discount opens the door.',
             '{"type": "customer", "attribution": "last",
               "eligibility": {"types": ["customer"]}}',
             '[{"kind": "credit", "rate_bp": 1000, "hold": "14 days",
                "valid_for": "1 year"},
               {"slot": "welcome", "beneficiary": "referee",
                "trigger": "registration", "kind": "discount",
                "unit": "coupons", "amount": 1, "coupon_bp": 1000,
                "valid_for": "30 days"}]'),
            ('student', 'Students and alumni refer students',
             'Pay after enrolment, with tiers for the fifth and the tenth; set'
             ' a cap, and approval_above for what somebody should see.',
             '{"type": "student", "attribution": "last",
               "referral_validity": "90 days", "terms_required": false,
               "eligibility": {"types": ["student", "alumni"]}}',
             '[{"kind": "cash", "hold": "14 days",
                "tiers": [{"from": 1, "rate_bp": 500},
                          {"from": 5, "rate_bp": 750},
                          {"from": 10, "rate_bp": 1000}]},
               {"slot": "welcome", "beneficiary": "referee",
                "trigger": "registration", "kind": "discount",
                "unit": "coupons", "amount": 1, "coupon_bp": 500,
                "valid_for": "90 days"}]'),
            ('parent', 'Parents refer families',
             'Course credit is spent where it was earned.',
             '{"type": "parent", "attribution": "last",
               "eligibility": {"types": ["parent"]}}',
             '[{"kind": "credit", "rate_bp": 1000, "valid_for": "1 year"},
               {"slot": "welcome", "beneficiary": "referee",
                "kind": "credit", "rate_bp": 500, "valid_for": "1 year"}]'),
            ('affiliate', 'Affiliates and influencers',
             'Commission in percent, paid after the refund period; the'
             ' referrer''s own commission goes before the rule''s.',
             '{"type": "affiliate", "attribution": "last",
               "attribution_window": "30 days",
               "eligibility": {"types": ["affiliate", "influencer"]}}',
             '[{"slot": "commission", "kind": "cash", "rate_bp": 1000,
                "commission": true, "times": null, "hold": "30 days"}]'),
            ('partner-leads', 'Partners and agents bring leads',
             'Accept or reject each lead within days, pay for converted ones.',
             '{"type": "partner", "attribution": "first",
               "eligibility": {"types": ["partner", "agent",
                                         "professional"]}}',
             '[{"slot": "commission", "kind": "cash", "rate_bp": 1000,
                "commission": true, "approval": "manual"}]'),
            ('patient', 'Patients refer family and friends',
             'Credit rather than cash, a month to redeem it; say nothing about'
             ' health in a link.',
             '{"type": "standard", "referral_validity": "30 days",
               "attribution": "last",
               "eligibility": {"types": ["patient", "customer"]}}',
             '[{"kind": "credit", "rate_bp": 2000, "valid_for": "30 days"},
               {"slot": "welcome", "beneficiary": "referee",
                "trigger": "registration", "kind": "discount",
                "unit": "coupons", "amount": 1, "coupon_bp": 2000,
                "valid_for": "30 days"}]'),
            ('user-invite', 'Users of a service invite users',
             'A little at sign-up for both, more at the upgrade.',
             '{"type": "user", "attribution": "last",
               "eligibility": {"types": ["user", "customer"]}}',
             '[{"slot": "signup-messages", "trigger": "registration",
                "kind": "messages", "amount": 10, "valid_for": "1 month"},
               {"slot": "signup-requests", "trigger": "registration",
                "kind": "requests", "amount": 5, "valid_for": "1 month"},
               {"slot": "welcome-messages", "beneficiary": "referee",
                "trigger": "registration", "kind": "messages", "amount": 5,
                "valid_for": "1 month"},
               {"slot": "welcome-requests", "beneficiary": "referee",
                "trigger": "registration", "kind": "requests", "amount": 2,
                "valid_for": "1 month"},
               {"slot": "trial", "beneficiary": "referee",
                "trigger": "registration", "kind": "feature_days",
                "amount": 7},
               {"slot": "upgrade-messages", "kind": "messages",
                "amount": 50, "valid_for": "3 months"},
               {"slot": "upgrade-requests", "kind": "requests",
                "amount": 25, "valid_for": "3 months"}]'),
            ('seasonal', 'A season''s campaign',
             'Set starts_at and ends_at, and a multiplier for the season.',
             '{"type": "seasonal", "referral_validity": "30 days",
               "attribution_window": "30 days"}',
             '[{"kind": "credit", "rate_bp": 1000, "valid_for": "90 days"},
               {"slot": "welcome", "beneficiary": "referee",
                "trigger": "registration", "kind": "discount",
                "unit": "coupons", "amount": 1, "coupon_bp": 1000,
                "valid_for": "30 days"}]')
        ) t (name, title, advice, options, rules);
END;

REVOKE ALL ON FUNCTION referral.program_templates() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION referral.program_templates()
    TO referral_app, referral_analyst;


-- A draft.  Options: the columns of program_options(), and template: the slug
-- of a template of the organisation, a name of program_templates(), or true
-- to make the program itself a template.

CREATE OR REPLACE FUNCTION
    referral.program_create(organisation_id bigint, slug text, name text,
                            options jsonb DEFAULT '{}')
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    o       referral.organisation;
    p       referral.program;
    wanted  jsonb;
    preset  jsonb;
    rules   jsonb;
    made    bigint;
BEGIN
    o := referral.organisation_live(organisation_id);
    options := referral.options_check('program_create', options,
        referral.program_options() || 'template'::text);
    wanted := options -> 'template';
    options := options - 'template';

    IF jsonb_typeof(wanted) = 'string' THEN
        SELECT * INTO p
            FROM referral.program r
            WHERE r.organisation_id = o.id AND r.slug = wanted #>> '{}'
                  AND r.template AND r.status = 'draft';

        IF p.id IS NOT NULL THEN
            RETURN referral.program_copy('program_create', p, slug, name,
                                         options);
        END IF;

        SELECT t.options, t.rules INTO preset, rules
            FROM referral.program_templates() t
            WHERE t.name = wanted #>> '{}';

        IF preset IS NULL THEN
            RAISE EXCEPTION 'program_create(): no template "%"',
                            left(wanted #>> '{}', 100)
                USING ERRCODE = 'RF022',
                      HINT = 'Programs of the organisation with template ='
                             ' true, and those of program_templates().';
        END IF;

        options := preset || options;

    ELSIF jsonb_typeof(wanted) NOT IN ('boolean', 'null') THEN
        RAISE EXCEPTION 'program_create(): "template" is a name, or true'
            USING ERRCODE = 'RF010';
    END IF;

    p.organisation_id := o.id;
    p.slug := program_create.slug;
    p.name := program_create.name;
    p.type := 'standard';
    p.template := coalesce(wanted = 'true', false);
    p.referral_validity := '90 days';
    p.attribution := 'last';
    p.attribution_window := '90 days';
    p.reward_threshold := 1;
    p.eligibility := '{}';
    p.targeting := '{}';
    p.terms_required := false;
    p.time_zone := o.time_zone;
    p.currency := o.currency;
    p.settings := '{}';

    p := referral.program_apply('program_create', p, options);

    made := referral.program_insert('program_create', p);

    IF rules IS NOT NULL THEN
        PERFORM referral.reward_rules_set(made, rules, jsonb_build_object(
                    'note', 'of the template ' || (wanted #>> '{}')));
    END IF;

    RETURN made;
END
$$;

INSERT INTO referral.schema_migration (version, name)
    VALUES (38, 'templates');

COMMIT;
