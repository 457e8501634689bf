
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"


/* what programs get is the same from every command of a noun */

#define ORG_JSON                                                              \
    "id AS \"j:id\", slug AS \"j:slug\", name AS \"j:name\","                 \
    " status AS \"j:status\", active_programs AS \"j:active_programs\","      \
    " max_active_programs AS \"j:max_active_programs\","                      \
    " currency AS \"j:currency\", time_zone AS \"j:time_zone\","              \
    " settings AS \"j:settings\", created_at AS \"j:created_at\","            \
    " updated_at AS \"j:updated_at\""

#define ORG_SHOW                                                              \
    "SELECT " ORG_JSON ", slug AS \"p:slug\", id AS \"p:id\","                \
    " name AS \"p:name\", status AS \"p:status\","                            \
    " active_programs || ' of ' || max_active_programs"                       \
    "     AS \"p:active programs\","                                          \
    " currency AS \"p:currency\", time_zone AS \"p:time zone\","              \
    " nullif(settings, '{}') AS \"p:settings\","                              \
    " created_at AS \"p:created\""                                            \
    " FROM referral.organisations WHERE id = $1::bigint"

#define PROGRAM_JSON                                                          \
    "id AS \"j:id\", organisation_id AS \"j:organisation_id\","               \
    " organisation AS \"j:organisation\", slug AS \"j:slug\","                \
    " name AS \"j:name\", description AS \"j:description\","                  \
    " type AS \"j:type\", status AS \"j:status\","                            \
    " template AS \"j:template\", cloned_from AS \"j:cloned_from\","          \
    " starts_at AS \"j:starts_at\", ends_at AS \"j:ends_at\","                \
    " referral_validity AS \"j:referral_validity\","                          \
    " attribution AS \"j:attribution\","                                      \
    " attribution_window AS \"j:attribution_window\","                        \
    " max_referrals_per_referrer AS \"j:max_referrals_per_referrer\","        \
    " reward_threshold AS \"j:reward_threshold\","                            \
    " eligibility AS \"j:eligibility\", targeting AS \"j:targeting\","        \
    " terms AS \"j:terms\", terms_version AS \"j:terms_version\","            \
    " terms_required AS \"j:terms_required\","                                \
    " landing_url AS \"j:landing_url\", time_zone AS \"j:time_zone\","        \
    " currency AS \"j:currency\", code_prefix AS \"j:code_prefix\","          \
    " campaign AS \"j:campaign\", settings AS \"j:settings\","                \
    " created_by AS \"j:created_by\", created_at AS \"j:created_at\","        \
    " updated_at AS \"j:updated_at\""

#define PROGRAM_SHOW                                                          \
    "SELECT " PROGRAM_JSON ", organisation || '/' || slug AS \"p:program\","  \
    " id AS \"p:id\", name AS \"p:name\", description AS \"p:description\","  \
    " type AS \"p:type\", status AS \"p:status\","                            \
    " nullif(template, false) AS \"p:template\","                             \
    " starts_at AS \"p:starts\", ends_at AS \"p:ends\","                      \
    " landing_url AS \"p:landing URL\", campaign AS \"p:campaign\","          \
    " code_prefix AS \"p:code prefix\","                                      \
    " referral_validity AS \"p:referral validity\","                          \
    " attribution || ' touch, ' || attribution_window"                        \
    "     AS \"p:attribution\","                                              \
    " max_referrals_per_referrer AS \"p:referrals each\","                    \
    " nullif(reward_threshold, 1) AS \"p:reward threshold\","                 \
    " nullif(eligibility, '{}') AS \"p:eligibility\","                        \
    " nullif(targeting, '{}') AS \"p:targeting\","                            \
    " CASE WHEN terms_version > 0"                                            \
    "      THEN 'version ' || terms_version"                                  \
    "           || CASE WHEN terms_required THEN ', required' ELSE '' END"    \
    " END AS \"p:terms\","                                                    \
    " time_zone AS \"p:time zone\", currency AS \"p:currency\","              \
    " nullif(settings, '{}') AS \"p:settings\","                              \
    " created_by AS \"p:created by\", created_at AS \"p:created\""            \
    " FROM referral.programs WHERE id = $1::bigint"

#define REFERRER_JSON                                                         \
    "r.id AS \"j:id\", r.organisation_id AS \"j:organisation_id\","           \
    " o.slug AS \"j:organisation\", r.external_id AS \"j:external_id\","      \
    " r.type AS \"j:type\", r.status AS \"j:status\","                        \
    " r.eligible AS \"j:eligible\", r.attributes AS \"j:attributes\","        \
    " r.commission_bp AS \"j:commission_bp\","                                \
    " r.applied_at AS \"j:applied_at\", r.reviewed_at AS \"j:reviewed_at\","  \
    " r.reviewed_by AS \"j:reviewed_by\","                                    \
    " r.approved_at AS \"j:approved_at\","                                    \
    " r.rejected_at AS \"j:rejected_at\","                                    \
    " r.reject_reason AS \"j:reject_reason\", r.notes AS \"j:notes\","        \
    " r.has_contact AS \"j:has_contact\", r.created_at AS \"j:created_at\","  \
    " r.updated_at AS \"j:updated_at\""

#define REFERRER_FROM                                                         \
    " FROM referral.referrers r"                                              \
    "      JOIN referral.organisations o ON o.id = r.organisation_id"

#define REFERRER_NAME  "coalesce(r.external_id, 'id:' || r.id)"

#define REFERRER_SHOW                                                         \
    "SELECT " REFERRER_JSON ","                                               \
    " o.slug || '/' || " REFERRER_NAME " AS \"p:referrer\","                  \
    " r.id AS \"p:id\", r.type AS \"p:type\", r.status AS \"p:status\","      \
    " nullif(r.eligible, true) AS \"p:eligible\","                            \
    " nullif(r.attributes, '{}') AS \"p:attributes\","                        \
    " round(r.commission_bp / 100.0, 2) || ' %' AS \"p:commission\","         \
    " r.applied_at AS \"p:applied\", r.reviewed_at AS \"p:reviewed\","        \
    " r.reviewed_by AS \"p:reviewed by\","                                    \
    " r.approved_at AS \"p:approved\", r.rejected_at AS \"p:rejected\","      \
    " r.reject_reason AS \"p:reason\", r.notes AS \"p:notes\","               \
    " r.has_contact AS \"p:contact\", r.created_at AS \"p:created\""          \
    REFERRER_FROM " WHERE r.id = $1::bigint"


static const ctl_arg_t  ctl_org_keys[] = {
    { "name", CTL_ARG_TEXT, 0, "as people call it" },
    { "max_active_programs", CTL_ARG_NUMBER, 0, "(5)" },
    { "currency", CTL_ARG_TEXT, 0, "of amounts (USD)" },
    { "time_zone", CTL_ARG_TEXT, 0, "as Europe/Berlin (UTC)" },
    { "settings", CTL_ARG_JSON, 0, "a JSON object, the application's own" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_slug_key[] = {
    { "slug", CTL_ARG_TEXT, 0, "a new one" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_status_key[] = {
    { "status", CTL_ARG_TEXT, 0, "only those with this status" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_type_key[] = {
    { "type", CTL_ARG_TEXT, 0, "only those of this type" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_program_keys[] = {
    { "name", CTL_ARG_TEXT, 0, "as people call it" },
    { "description", CTL_ARG_TEXT, 0, "more about it" },
    { "type", CTL_ARG_TEXT, 0,
      "standard, specialty, seasonal, student, parent, affiliate,\n"
      "partner, customer, professional or user" },
    { "landing_url", CTL_ARG_TEXT, 0,
      "where its codes lead that have no destination of their\n"
      "own; {click_id}, {code}, {country} may stand in it" },
    { "starts_at", CTL_ARG_TIME, 0, "its codes work from then on" },
    { "ends_at", CTL_ARG_TIME, 0,
      "and until then: 2026-12-31 or 2026-12-31T23:59:59+01:00" },
    { "campaign", CTL_ARG_TEXT, 0, "recorded with each click" },
    { "code_prefix", CTL_ARG_TEXT, 0, "of automatic codes" },
    { "referral_validity", CTL_ARG_TEXT, 0, "as \"30 days\" (90 days)" },
    { "attribution", CTL_ARG_TEXT, 0, "first, last, linear or position" },
    { "attribution_window", CTL_ARG_TEXT, 0, "(90 days)" },
    { "max_referrals_per_referrer", CTL_ARG_NUMBER, 0, "(no limit)" },
    { "reward_threshold", CTL_ARG_NUMBER, 0,
      "referrals before the first reward (1)" },
    { "eligibility", CTL_ARG_JSON, 0,
      "{\"types\": [...], \"attributes\": {...}} of referrers" },
    { "targeting", CTL_ARG_JSON, 0, "a JSON object" },
    { "terms", CTL_ARG_TEXT, 0, "their text; each change is a version" },
    { "terms_required", CTL_ARG_FLAG, 0,
      "no code for a referrer who has not accepted them" },
    { "time_zone", CTL_ARG_TEXT, 0, "(the organisation's)" },
    { "currency", CTL_ARG_TEXT, 0, "(the organisation's)" },
    { "settings", CTL_ARG_JSON, 0, "a JSON object" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_template_name_key[] = {
    { "template", CTL_ARG_TEXT, 0,
      "begin with the settings of a template: a program's slug,\n"
      "or a name that \"program templates\" lists" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_template_key[] = {
    { "template", CTL_ARG_FLAG, 0, "yes: the copy is a template" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_variant_keys[] = {
    { "weight", CTL_ARG_NUMBER, 0, "its share of the sum of all (1)" },
    { "settings", CTL_ARG_JSON, 0, "what is different in it" },
    { "status", CTL_ARG_TEXT, 0, "active or disabled" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_referrer_keys[] = {
    { "external_id", CTL_ARG_TEXT, 0, "the user id in your application" },
    { "eligible", CTL_ARG_FLAG, 0, "no: its codes do not work for now" },
    { "attributes", CTL_ARG_JSON, 0,
      "a JSON object, nothing personal; programs ask for them" },
    { "commission_bp", CTL_ARG_NUMBER, 0,
      "basis points (1250: 12.5 %), over the program's" },
    { "notes", CTL_ARG_TEXT, 0, "" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


const ctl_arg_t  ctl_contact_keys[] = {
    { "name", CTL_ARG_TEXT, CTL_ARG_CONTACT, "contact, all optional" },
    { "first_name", CTL_ARG_TEXT, CTL_ARG_CONTACT, "" },
    { "last_name", CTL_ARG_TEXT, CTL_ARG_CONTACT, "" },
    { "email", CTL_ARG_TEXT, CTL_ARG_CONTACT, "" },
    { "phone", CTL_ARG_TEXT, CTL_ARG_CONTACT, "" },
    { "company", CTL_ARG_TEXT, CTL_ARG_CONTACT, "" },
    { "address", CTL_ARG_JSON, CTL_ARG_CONTACT, "a JSON object" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_referrer_type_key[] = {
    { "type", CTL_ARG_TEXT, 0,
      "customer, partner, influencer, employee, professional,\n"
      "student, parent, alumni, affiliate, patient, provider,\n"
      "agent or user" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_approve_keys[] = {
    { "program", CTL_ARG_PROGRAM, 0, "and make a code in this program" },
    { "code", CTL_ARG_CODE_TEXT, 0, "this one (an automatic one)" },
    { "name", CTL_ARG_TEXT, 0, "an automatic code begins with it" },
    { "terms_accepted", CTL_ARG_FLAG, 0, "yes: the terms as they are now" },
    { "commission_bp", CTL_ARG_NUMBER, 0, "over the program's" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_reason_key[] = {
    { "reason", CTL_ARG_TEXT, 0, "for the audit" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


#define ORG        { "ORG", CTL_ARG_ORG, 0, NULL }
#define PROGRAM    { "PROGRAM", CTL_ARG_PROGRAM, 0, NULL }
#define REFERRER   { "REFERRER", CTL_ARG_REFERRER, 0, NULL }
#define IN_ORG     { "ORG", CTL_ARG_ORG, CTL_ARG_OPTIONAL, NULL }
#define TEXT(s)    { s, CTL_ARG_TEXT, 0, NULL }
#define END        { NULL, CTL_ARG_TEXT, 0, NULL }


const ctl_call_t  ctl_tenant_calls[] = {

    { "org", "create", "make an organisation",
      { TEXT("SLUG"), END }, { ctl_org_keys, NULL },
      "SELECT referral.organisation_create($1, coalesce($2::jsonb ->> 'name',"
      " $1), $2::jsonb - 'name')",
      ORG_SHOW, CTL_PRINT_ONE, "organisation %s is made",
      "SLUG is its name for computers: 1 to 63 of a-z, 0-9 and -.\n",
      "  referralctl org create acme name='Acme Ltd' currency=EUR\n" },

    { "org", "list", "list the organisations",
      { END }, { ctl_status_key, NULL },
      "SELECT " ORG_JSON ", slug AS \"p:org\", name AS \"p:name\","
      " status AS \"p:status\", active_programs AS \"p:active programs\","
      " currency AS \"p:currency\", time_zone AS \"p:time zone\""
      " FROM referral.organisations"
      " WHERE coalesce(status = $1::jsonb ->> 'status', true) ORDER BY slug",
      NULL, CTL_PRINT_LIST, "no organisations",
      "",
      "  referralctl org list\n"
      "  referralctl org list status=disabled --json\n" },

    { "org", "show", "print an organisation",
      { ORG, END }, { NULL },
      ORG_SHOW, NULL, CTL_PRINT_ONE, "organisation %s",
      "",
      "  referralctl org show acme\n" },

    { "org", "update", "change an organisation",
      { ORG, END }, { ctl_slug_key, ctl_org_keys, NULL },
      "SELECT $1::bigint, referral.organisation_update($1::bigint, $2::jsonb)",
      ORG_SHOW, CTL_PRINT_ONE, "organisation %s is changed",
      "Only the keys given are changed.\n",
      "  referralctl org update acme max_active_programs=12\n" },

    { "org", "enable", "its codes work again",
      { ORG, END }, { NULL },
      "SELECT $1::bigint, referral.organisation_set_status($1::bigint,"
      " 'active')",
      ORG_SHOW, CTL_PRINT_ONE, "organisation %s is enabled",
      "",
      "  referralctl org enable acme\n" },

    { "org", "disable", "switch all its codes off",
      { ORG, END }, { NULL },
      "SELECT $1::bigint, referral.organisation_set_status($1::bigint,"
      " 'disabled')",
      ORG_SHOW, CTL_PRINT_ONE, "organisation %s is disabled",
      "The edges answer 410 from then on, for each code of each program.\n",
      "  referralctl org disable acme\n" },

    { "program", "create", "make a program, a draft",
      { ORG, TEXT("SLUG"), END }, { ctl_template_name_key, ctl_program_keys,
                                    NULL },
      "SELECT referral.program_create($1::bigint, $2,"
      " coalesce($3::jsonb ->> 'name', $2), $3::jsonb - 'name')",
      PROGRAM_SHOW, CTL_PRINT_ONE, "program %s is made",
      "Its codes work when it is enabled.  Times without a zone are of the\n"
      "program's own.\n",
      "  referralctl program create acme summer name='Summer 2026' \\\n"
      "      landing_url=https://example.com/summer ends_at=2026-09-01\n" },

    { "program", "list", "list the programs",
      { IN_ORG, END }, { ctl_status_key, ctl_type_key, NULL },
      "SELECT " PROGRAM_JSON ", organisation || '/' || slug AS \"p:program\","
      " name AS \"p:name\", type AS \"p:type\", status AS \"p:status\","
      " starts_at AS \"p:starts\", ends_at AS \"p:ends\","
      " landing_url AS \"p:landing URL\""
      " FROM referral.programs"
      " WHERE coalesce(organisation_id = $1::bigint, true)"
      " AND coalesce(status = $2::jsonb ->> 'status', true)"
      " AND coalesce(type = $2::jsonb ->> 'type', true)"
      " ORDER BY organisation, slug",
      NULL, CTL_PRINT_LIST, "no programs",
      "",
      "  referralctl program list acme status=active\n" },

    { "program", "show", "print a program",
      { PROGRAM, END }, { NULL },
      PROGRAM_SHOW, NULL, CTL_PRINT_ONE, "program %s",
      "PROGRAM is ORG/SLUG, or SLUG where only one organisation has it.\n",
      "  referralctl program show acme/summer\n" },

    { "program", "update", "change a program",
      { PROGRAM, END }, { ctl_slug_key, ctl_program_keys, NULL },
      "SELECT $1::bigint, referral.program_update($1::bigint, $2::jsonb)",
      PROGRAM_SHOW, CTL_PRINT_ONE, "program %s is changed",
      "Only the keys given are changed.  What matters to the edges is\n"
      "published at once.\n",
      "  referralctl program update acme/summer ends_at=2026-10-01\n"
      "  referralctl program update acme/summer ends_at=\n" },

    { "program", "enable", "its codes work from now on",
      { PROGRAM, END }, { NULL },
      "SELECT $1::bigint, referral.program_set_status($1::bigint, 'active')",
      PROGRAM_SHOW, CTL_PRINT_ONE, "program %s is active",
      "An organisation has a limit of active programs.\n",
      "  referralctl program enable acme/summer\n" },

    { "program", "disable", "pause a program: its codes are switched off",
      { PROGRAM, END }, { NULL },
      "SELECT $1::bigint, referral.program_set_status($1::bigint, 'paused')",
      PROGRAM_SHOW, CTL_PRINT_ONE, "program %s is paused",
      "The edges answer 410 from then on, until it is enabled again.\n",
      "  referralctl program disable acme/summer\n" },

    { "program", "end", "end a program",
      { PROGRAM, END }, { NULL },
      "SELECT $1::bigint, referral.program_set_status($1::bigint, 'ended')",
      PROGRAM_SHOW, CTL_PRINT_ONE, "program %s is ended",
      "",
      "  referralctl program end acme/summer\n" },

    { "program", "archive", "put away a draft or an ended program",
      { PROGRAM, END }, { NULL },
      "SELECT $1::bigint, referral.program_set_status($1::bigint, 'archived')",
      PROGRAM_SHOW, CTL_PRINT_ONE, "program %s is archived",
      "",
      "  referralctl program archive acme/summer\n" },

    { "program", "clone", "make a draft with the settings of a program",
      { PROGRAM, TEXT("SLUG"), END }, { ctl_template_key, ctl_program_keys,
                                        NULL },
      "SELECT referral.program_clone($1::bigint, $2, $3::jsonb)",
      PROGRAM_SHOW, CTL_PRINT_ONE, "program %s is made",
      "In the same organisation; codes and referrers are not copied.  Keys\n"
      "are changes to what is copied.\n",
      "  referralctl program clone acme/summer autumn name='Autumn 2026'\n"
      "  referralctl program clone acme/summer seasonal template=yes\n" },

    { "program", "templates", "list the templates that are built in",
      { END }, { NULL },
      "SELECT name, title, options AS \"j:options\", rules AS \"j:rules\","
      " advice FROM referral.program_templates() ORDER BY name",
      NULL, CTL_PRINT_LIST, "no templates",
      "With their reward rules, which rule set replaces.  A program of an\n"
      "organisation is one too: program create ... template=SLUG.\n",
      "  referralctl program templates\n" },

    { "program", "variant", "make or change a variant, for A/B tests",
      { PROGRAM, TEXT("NAME"), END }, { ctl_variant_keys, NULL },
      "SELECT referral.program_variant_set($1::bigint, $2,"
      " coalesce(($3::jsonb ->> 'weight')::int, v.weight, 1),"
      " coalesce($3::jsonb -> 'settings', v.settings, '{}'),"
      " coalesce($3::jsonb ->> 'status', v.status, 'active'))"
      " FROM (SELECT) one LEFT JOIN referral.program_variants v"
      " ON v.program_id = $1::bigint AND v.name = $2",
      "SELECT name, id, program_id, weight, status, settings, created_at,"
      " updated_at FROM referral.program_variants WHERE id = $1::bigint",
      CTL_PRINT_ONE, "variant %s",
      "Keys that are not given stay as they are.\n",
      "  referralctl program variant acme/summer double weight=2 \\\n"
      "      settings='{\"reward\": 2000}'\n" },

    { "program", "variants", "list the variants of a program",
      { PROGRAM, END }, { NULL },
      "SELECT name, id, program_id AS \"j:program_id\", weight, status,"
      " settings, created_at AS \"j:created_at\","
      " updated_at AS \"j:updated_at\""
      " FROM referral.program_variants WHERE program_id = $1::bigint"
      " ORDER BY name",
      NULL, CTL_PRINT_LIST, "no variants",
      "",
      "  referralctl program variants acme/summer\n" },

    { "referrer", "create", "make a referrer, active at once",
      { ORG, TEXT("TYPE"), END }, { ctl_referrer_keys, ctl_contact_keys,
                                    NULL },
      "SELECT referral.referrer_create($1::bigint, $2, $3::jsonb - 'contact',"
      " $3::jsonb -> 'contact')",
      REFERRER_SHOW, CTL_PRINT_ONE, "referrer %s is made",
      "TYPE is customer, partner, influencer, employee, professional,\n"
      "student, parent, alumni, affiliate, patient, provider, agent or\n"
      "user.\n",
      "  referralctl referrer create acme customer external_id=4711 \\\n"
      "      name='Juan Perez' email=juan@example.com\n" },

    { "referrer", "apply", "enter an application, to be reviewed",
      { ORG, TEXT("TYPE"), END }, { ctl_referrer_keys, ctl_contact_keys,
                                    NULL },
      "SELECT referral.referrer_apply($1::bigint, $2, $3::jsonb - 'contact',"
      " $3::jsonb -> 'contact')",
      REFERRER_SHOW, CTL_PRINT_ONE, "referrer %s has applied",
      "",
      "  referralctl referrer apply acme affiliate external_id=blog-7 \\\n"
      "      company='Blog 7' email=mail@example.com\n" },

    { "referrer", "approve", "approve an application",
      { REFERRER, END }, { ctl_approve_keys, NULL },
      "SELECT $1::bigint, referral.referrer_approve($1::bigint, $2::jsonb)",
      REFERRER_SHOW, CTL_PRINT_ONE, "referrer %s is approved",
      "",
      "  referralctl referrer approve blog-7 program=acme/summer\n" },

    { "referrer", "reject", "reject an application",
      { REFERRER, TEXT("REASON"), END }, { NULL },
      "SELECT $1::bigint, referral.referrer_reject($1::bigint, $2)",
      REFERRER_SHOW, CTL_PRINT_ONE, "referrer %s is rejected",
      "",
      "  referralctl referrer reject blog-7 'no imprint'\n" },

    { "referrer", "list", "list the referrers",
      { IN_ORG, END }, { ctl_status_key, ctl_type_key, NULL },
      "SELECT " REFERRER_JSON ","
      " o.slug || '/' || " REFERRER_NAME " AS \"p:referrer\","
      " r.id AS \"p:id\", r.type AS \"p:type\", r.status AS \"p:status\","
      " r.eligible AS \"p:eligible\", r.created_at AS \"p:created\""
      REFERRER_FROM
      " WHERE coalesce(r.organisation_id = $1::bigint, true)"
      " AND coalesce(r.status = $2::jsonb ->> 'status', true)"
      " AND coalesce(r.type = $2::jsonb ->> 'type', true)"
      " ORDER BY r.id",
      NULL, CTL_PRINT_LIST, "no referrers",
      "Without their contacts.\n",
      "  referralctl referrer list acme status=applied\n" },

    { "referrer", "show", "print a referrer, without the contact",
      { REFERRER, END }, { NULL },
      REFERRER_SHOW, NULL, CTL_PRINT_ONE, "referrer %s",
      "REFERRER is the user id of your application, ORG/ID where more than\n"
      "one organisation has it, or id:N, the number in Postgres.\n",
      "  referralctl referrer show 4711\n"
      "  referralctl referrer show id:12\n" },

    { "referrer", "contact", "print the contact of a referrer",
      { REFERRER, END }, { ctl_reason_key, NULL },
      "SELECT coalesce(name, concat_ws(' ', first_name, last_name))"
      " AS \"p:contact\", person_id, name AS \"j:name\", first_name,"
      " last_name, email, phone, company, address"
      " FROM referral.referrer_contact($1::bigint, $2::jsonb ->> 'reason')",
      NULL, CTL_PRINT_ONE, "contact %s",
      "Who reads it, and the reason given, are kept in the audit.\n",
      "  referralctl referrer contact 4711 reason='ticket 88'\n" },

    { "referrer", "update", "change a referrer",
      { REFERRER, END }, { ctl_referrer_type_key, ctl_referrer_keys,
                           ctl_contact_keys, NULL },
      "SELECT $1::bigint, referral.referrer_update($1::bigint,"
      " $2::jsonb - 'contact', $2::jsonb -> 'contact')",
      REFERRER_SHOW, CTL_PRINT_ONE, "referrer %s is changed",
      "Only the keys given are changed.\n",
      "  referralctl referrer update 4711 phone='+598 2 1234567'\n" },

    { "referrer", "enable", "make a referrer active again",
      { REFERRER, END }, { NULL },
      "SELECT $1::bigint, referral.referrer_set_status($1::bigint,"
      " 'active')",
      REFERRER_SHOW, CTL_PRINT_ONE, "referrer %s is active",
      "",
      "  referralctl referrer enable 4711\n" },

    { "referrer", "disable", "suspend a referrer and all its codes",
      { REFERRER, END }, { NULL },
      "SELECT $1::bigint, referral.referrer_set_status($1::bigint,"
      " 'suspended')",
      REFERRER_SHOW, CTL_PRINT_ONE, "referrer %s is suspended",
      "The edges answer 410 from then on.\n",
      "  referralctl referrer disable 4711\n" },

    { "referrer", "terminate", "end it with a referrer, for good",
      { REFERRER, END }, { NULL },
      "SELECT $1::bigint, referral.referrer_set_status($1::bigint,"
      " 'terminated')",
      REFERRER_SHOW, CTL_PRINT_ONE, "referrer %s is terminated",
      "",
      "  referralctl referrer terminate 4711\n" },

    { "referrer", "accept", "note that a referrer accepts the terms",
      { PROGRAM, REFERRER, END }, { NULL },
      "SELECT p.organisation || '/' || p.slug AS \"p:program\","
      " p.id AS \"j:program_id\", $2::bigint AS \"j:referrer_id\","
      " referral.terms_accept(p.id, $2::bigint) AS version"
      " FROM referral.programs p WHERE p.id = $1::bigint",
      NULL, CTL_PRINT_ONE, "the terms of %s are accepted",
      "",
      "  referralctl referrer accept acme/summer 4711\n" },

    { NULL, NULL, NULL, { END }, { NULL }, NULL, NULL, CTL_PRINT_LIST, NULL,
      NULL, NULL }
};
