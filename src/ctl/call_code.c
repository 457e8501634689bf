
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"


#define CODE_JSON                                                             \
    "c.id AS \"j:id\", c.code AS \"j:code\","                                 \
    " c.organisation_id AS \"j:organisation_id\","                            \
    " o.slug AS \"j:organisation\", c.program_id AS \"j:program_id\","        \
    " c.program AS \"j:program\", c.referrer_id AS \"j:referrer_id\","        \
    " c.external_id AS \"j:external_id\", c.kind AS \"j:kind\","              \
    " c.own AS \"j:own\", c.status AS \"j:status\","                          \
    " c.verdict AS \"j:verdict\", c.url AS \"j:url\","                        \
    " c.campaign AS \"j:campaign\", c.channel AS \"j:channel\","              \
    " c.destination AS \"j:destination\", c.rules AS \"j:rules\","            \
    " c.starts_at AS \"j:starts_at\", c.expires_at AS \"j:expires_at\","      \
    " c.max_uses AS \"j:max_uses\", c.uses AS \"j:uses\","                    \
    " c.variant_id AS \"j:variant_id\", c.settings AS \"j:settings\","        \
    " c.created_at AS \"j:created_at\", c.updated_at AS \"j:updated_at\""

#define CODE_FROM                                                             \
    " FROM referral.codes c"                                                  \
    "      JOIN referral.organisations o ON o.id = c.organisation_id"

#define CODE_REFERRER                                                         \
    "coalesce(c.external_id, 'id:' || c.referrer_id)"

#define CODE_SHOW                                                             \
    "SELECT " CODE_JSON ", c.code AS \"p:code\", c.verdict AS \"p:now\","     \
    " c.id AS \"p:id\", o.slug || '/' || c.program AS \"p:program\","         \
    " " CODE_REFERRER " AS \"p:referrer\", c.status AS \"p:status\","         \
    " c.kind || CASE WHEN c.own THEN ', the referrer''s own' ELSE '' END"     \
    "     AS \"p:kind\","                                                     \
    " c.url AS \"p:leads to\","                                               \
    " CASE WHEN c.destination IS NULL AND c.url IS NOT NULL"                  \
    "      THEN 'the program' END AS \"p:destination of\","                   \
    " c.campaign AS \"p:campaign\", c.channel AS \"p:channel\","              \
    " c.rules AS \"p:rules\", c.starts_at AS \"p:starts\","                   \
    " c.expires_at AS \"p:expires\","                                         \
    " c.uses || coalesce(' of ' || c.max_uses, '') AS \"p:uses\","            \
    " c.variant_id AS \"p:variant\","                                         \
    " nullif(c.settings, '{}') AS \"p:settings\","                            \
    " c.created_at AS \"p:created\""                                          \
    CODE_FROM

#define CODE_BY_ID  CODE_SHOW " WHERE c.id = $1::bigint"


static const ctl_arg_t  ctl_code_keys[] = {
    { "destination", CTL_ARG_TEXT, 0,
      "a URL (the program's landing_url); {click_id}, {code},\n"
      "{country} may stand in it" },
    { "campaign", CTL_ARG_TEXT, 0, "recorded with each click" },
    { "channel", CTL_ARG_TEXT, 0, "where it is shared: email, poster ..." },
    { "starts_at", CTL_ARG_TIME, 0, "it works from then on" },
    { "expires_at", CTL_ARG_TIME, 0,
      "and until then: 2026-12-31 or 2026-12-31T23:59:59+01:00\n"
      "(without a zone: the program's)" },
    { "max_uses", CTL_ARG_NUMBER, 0, "credited referrals (no limit)" },
    { "rules", CTL_ARG_JSON, 0, "a JSON object, published with the code" },
    { "variant_id", CTL_ARG_ID, 0, "see program variants" },
    { "settings", CTL_ARG_JSON, 0, "a JSON object" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_code_create_keys[] = {
    { "referrer", CTL_ARG_REFERRER, 0, "whose code it is" },
    { "own", CTL_ARG_FLAG, 0,
      "yes: the one that \"code ensure\" answers with" },
    { "name", CTL_ARG_TEXT, 0,
      "an automatic code begins with it, as JUAN7K4M" },
    { "status", CTL_ARG_TEXT, 0, "active or disabled (active)" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_code_update_keys[] = {
    { "referrer", CTL_ARG_REFERRER, 0, "whose code it is, once" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_code_ensure_keys[] = {
    { "type", CTL_ARG_TEXT, 0, "of a new referrer (user)" },
    { "attributes", CTL_ARG_JSON, 0, "of a new referrer" },
    { "terms_accepted", CTL_ARG_FLAG, 0, "yes: the terms as they are now" },
    { "code", CTL_ARG_CODE_TEXT, 0, "this one (an automatic one)" },
    { "name", CTL_ARG_TEXT, 0, "an automatic code begins with it" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_code_filters[] = {
    { "program", CTL_ARG_PROGRAM, 0, "only those of this program" },
    { "referrer", CTL_ARG_REFERRER, 0, "only those of this referrer" },
    { "verdict", CTL_ARG_TEXT, 0,
      "valid, inactive, early, expired or exhausted" },
    { "campaign", CTL_ARG_TEXT, 0, "only those of this campaign" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


#define CODE  { "CODE", CTL_ARG_CODE, 0, NULL }
#define END   { NULL, CTL_ARG_TEXT, 0, NULL }


const ctl_call_t  ctl_code_show_call = {
    "code", "show", "print a code and how it is judged now",
    { CODE, END }, { NULL },
    CODE_BY_ID, NULL, CTL_PRINT_ONE, "code %s",
    "",
    "  referralctl code show SUMMER25\n"
};


const ctl_call_t  ctl_code_list_call = {
    "code", "list", "list codes",
    { { "PATTERN", CTL_ARG_PATTERN, CTL_ARG_OPTIONAL, NULL }, END },
    { ctl_code_filters, NULL },
    "SELECT " CODE_JSON ", c.code AS \"p:code\", c.verdict AS \"p:now\","
    " o.slug || '/' || c.program AS \"p:program\","
    " " CODE_REFERRER " AS \"p:referrer\", c.uses AS \"p:uses\","
    " c.expires_at AS \"p:expires\", c.url AS \"p:leads to\""
    CODE_FROM
    " WHERE coalesce(c.code LIKE upper($1::text), true)"
    " AND coalesce(c.program_id = ($2::jsonb ->> 'program')::bigint, true)"
    " AND coalesce(c.referrer_id = ($2::jsonb ->> 'referrer')::bigint,"
    "              $2::jsonb ->> 'referrer' IS NULL)"
    " AND coalesce(c.verdict = $2::jsonb ->> 'verdict', true)"
    " AND coalesce(c.campaign = $2::jsonb ->> 'campaign',"
    "              $2::jsonb ->> 'campaign' IS NULL)"
    " ORDER BY c.id",
    NULL, CTL_PRINT_LIST, "no codes",
    "",
    "  referralctl code list program=acme/summer\n"
};


const ctl_call_t  ctl_code_calls[] = {

    { "code", "create", "make a code in Postgres, which is published",
      { { "PROGRAM", CTL_ARG_PROGRAM, 0, NULL },
        { "CODE", CTL_ARG_CODE_TEXT, CTL_ARG_OPTIONAL, NULL }, END },
      { ctl_code_create_keys, ctl_code_keys, NULL },
      "SELECT id FROM referral.code_create($1::bigint,"
      " ($3::jsonb ->> 'referrer')::bigint, $2, $3::jsonb - 'referrer')",
      CODE_BY_ID, CTL_PRINT_ONE, "code %s is made",
      "Without CODE an automatic one.  The worker writes it to Redis.\n",
      "  referralctl code create acme/summer SUMMER25 campaign=tv\n"
      "  referralctl code create acme/summer referrer=4711\n" },

    { "code", "ensure", "the one code of a user in a program",
      { { "PROGRAM", CTL_ARG_PROGRAM, 0, NULL },
        { "USER", CTL_ARG_TEXT, 0, NULL }, END },
      { ctl_code_ensure_keys, ctl_code_keys, NULL },
      "SELECT referral.ensure_code($1::bigint, $2, $3::jsonb)",
      CODE_SHOW " WHERE c.code = $1", CTL_PRINT_ONE, "code %s",
      "Made, with the referrer, when there is none yet; the same each time.\n"
      "USER is the id in your application.  Keys count when it is made.\n",
      "  referralctl code ensure acme/summer 4711 name=Juan\n" },

    { "code", "update", "change a code in Postgres, which is published",
      { CODE, END }, { ctl_code_update_keys, ctl_code_keys, NULL },
      "SELECT $1::bigint, referral.code_update($1::bigint,"
      " CASE WHEN $2::jsonb ? 'referrer'"
      "      THEN $2::jsonb - 'referrer' || jsonb_build_object('referrer_id',"
      "               $2::jsonb -> 'referrer')"
      "      ELSE $2::jsonb END)",
      CODE_BY_ID, CTL_PRINT_ONE, "code %s is changed",
      "Only the keys given are changed.  The code itself never does: it is\n"
      "printed somewhere.\n",
      "  referralctl code update SUMMER25 expires_at=2026-12-31T23:59:59Z\n"
      "  referralctl code update SUMMER25 max_uses=100 expires_at=\n" },

    { "code", "enable", "a code works again",
      { CODE, END }, { NULL },
      "SELECT $1::bigint, referral.code_set_status($1::bigint, 'active')",
      CODE_BY_ID, CTL_PRINT_ONE, "code %s is enabled",
      "",
      "  referralctl code enable SUMMER25\n" },

    { "code", "disable", "switch a code off",
      { CODE, END }, { NULL },
      "SELECT $1::bigint, referral.code_set_status($1::bigint, 'disabled')",
      CODE_BY_ID, CTL_PRINT_ONE, "code %s is disabled",
      "The edges answer 410 from then on.\n",
      "  referralctl code disable SUMMER25\n" },

    { NULL, NULL, NULL, { END }, { NULL }, NULL, NULL, CTL_PRINT_LIST, NULL,
      NULL, NULL }
};
