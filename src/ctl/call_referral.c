
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"


#define REFERRAL_JSON                                                         \
    "r.id AS \"j:id\", r.organisation_id AS \"j:organisation_id\","           \
    " o.slug AS \"j:organisation\", r.program_id AS \"j:program_id\","        \
    " r.program AS \"j:program\", r.referrer_id AS \"j:referrer_id\","        \
    " f.external_id AS \"j:referrer\", r.code_id AS \"j:code_id\","           \
    " r.code AS \"j:code\", r.variant_id AS \"j:variant_id\","                \
    " r.status AS \"j:status\", r.credited AS \"j:credited\","                \
    " to_jsonb(r.flags) AS \"j:flags\", r.source AS \"j:source\","            \
    " r.channel AS \"j:channel\", r.campaign AS \"j:campaign\","              \
    " r.country AS \"j:country\", r.click_id AS \"j:click_id\","              \
    " r.clicked_at AS \"j:clicked_at\", r.value AS \"j:value\","              \
    " r.currency AS \"j:currency\", r.created_by AS \"j:created_by\","        \
    " r.created_at AS \"j:created_at\", r.updated_at AS \"j:updated_at\","    \
    " r.expires_at AS \"j:expires_at\","                                      \
    " r.accepted_at AS \"j:accepted_at\","                                    \
    " r.rejected_at AS \"j:rejected_at\","                                    \
    " r.registered_at AS \"j:registered_at\","                                \
    " r.converted_at AS \"j:converted_at\","                                  \
    " r.rewarded_at AS \"j:rewarded_at\", r.paid_at AS \"j:paid_at\","        \
    " r.expired_at AS \"j:expired_at\","                                      \
    " r.declined_at AS \"j:declined_at\","                                    \
    " r.cancelled_at AS \"j:cancelled_at\","                                  \
    " r.superseded_at AS \"j:superseded_at\""

#define REFERRAL_FROM                                                         \
    " FROM referral.referrals r"                                              \
    "      JOIN referral.organisations o ON o.id = r.organisation_id"         \
    "      LEFT JOIN referral.referrers f ON f.id = r.referrer_id"

#define REFERRER_NAME  "coalesce(f.external_id, 'id:' || r.referrer_id)"

#define REFERRAL_SHOW                                                         \
    "SELECT " REFERRAL_JSON ","                                               \
    " (SELECT coalesce(jsonb_agg(jsonb_build_object('at', s.at, 'from',"      \
    "             s.from_status, 'to', s.to_status, 'actor', s.actor,"        \
    "             'reason', s.reason) ORDER BY s.id), '[]')"                  \
    "      FROM referral.referral_steps s WHERE s.referral_id = r.id)"        \
    "     AS \"j:steps\","                                                    \
    " r.id AS \"p:referral\", r.status AS \"p:status\","                      \
    " nullif(r.credited, false) AS \"p:credited\","                           \
    " nullif(array_to_string(r.flags, ', '), '') AS \"p:flags\","             \
    " o.slug || '/' || r.program AS \"p:program\","                           \
    " " REFERRER_NAME " AS \"p:referrer\", r.code AS \"p:code\","             \
    " concat_ws(', ', r.source, r.channel, r.campaign, r.country)"            \
    "     AS \"p:source\","                                                   \
    " r.click_id AS \"p:click\", r.clicked_at AS \"p:clicked\","              \
    " referral.money_text(r.value, r.currency) AS \"p:value\","               \
    " (SELECT string_agg(s.to_status || ' ' || to_char(s.at AT TIME ZONE"     \
    "             'UTC', 'YYYY-MM-DD HH24:MI:SS') || coalesce(' (' ||"        \
    "             s.reason || ')', ''), ', ' ORDER BY s.id)"                  \
    "      FROM referral.referral_steps s WHERE s.referral_id = r.id)"        \
    "     AS \"p:steps\","                                                    \
    " r.expires_at AS \"p:expires\", r.created_at AS \"p:created\""           \
    REFERRAL_FROM " WHERE r.id = $1::bigint"


static const ctl_arg_t  ctl_referral_keys[] = {
    { "code", CTL_ARG_CODE_TEXT, 0, "that was typed in or clicked" },
    { "click_id", CTL_ARG_UUID, 0, "of the click" },
    { "token", CTL_ARG_TEXT, 0, "the attribution cookie" },
    { "external_id", CTL_ARG_TEXT, 0,
      "the referee's user id in your application" },
    { "source", CTL_ARG_TEXT, 0,
      "website, mobile_app, email, phone, in_person,\n"
      "social_media, sms, direct_link, qr or other" },
    { "channel", CTL_ARG_TEXT, 0, "free text" },
    { "campaign", CTL_ARG_TEXT, 0, "free text" },
    { "notes", CTL_ARG_TEXT, 0, "" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_referral_create_keys[] = {
    { "program", CTL_ARG_PROGRAM, 0, "where the code does not say it" },
    { "referrer", CTL_ARG_REFERRER, 0, "who names somebody, without a code" },
    { "message", CTL_ARG_TEXT, 0, "from the referrer to the referee" },
    { "value", CTL_ARG_MONEY, 0, "expected: \"12.50 EUR\"" },
    { "expires_at", CTL_ARG_TIME, 0, "(the program's validity from now)" },
    { "idempotency_key", CTL_ARG_TEXT, 0, "twice the same is once" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_referral_register_keys[] = {
    { "program", CTL_ARG_PROGRAM, 0, "where code or click do not say it" },
    { "referral_id", CTL_ARG_ID, 0, "one that is pending" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_referral_filters[] = {
    { "program", CTL_ARG_PROGRAM, 0, "only those of this program" },
    { "referrer", CTL_ARG_REFERRER, 0, "only those of this referrer" },
    { "code", CTL_ARG_CODE_TEXT, 0, "only those of this code" },
    { "status", CTL_ARG_TEXT, 0, "only those with this status" },
    { "since", CTL_ARG_TIME, 0, "created then or later" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


#define REFERRAL    { "REFERRAL", CTL_ARG_ID, 0, NULL }
#define REASON      { "REASON", CTL_ARG_TEXT, 0, NULL }
#define MAY_REASON  { "REASON", CTL_ARG_TEXT, CTL_ARG_OPTIONAL, NULL }
#define END         { NULL, CTL_ARG_TEXT, 0, NULL }


const ctl_call_t  ctl_referral_calls[] = {

    { "referral", "create", "enter a referral, pending",
      { END }, { ctl_referral_create_keys, ctl_referral_keys,
                 ctl_contact_keys, NULL },
      "SELECT referral.referral_create(($1::jsonb ->> 'program')::bigint,"
      " ($1::jsonb - '{program,referrer,contact,value_unit}'::text[])"
      " || CASE WHEN $1::jsonb ? 'referrer' THEN jsonb_build_object("
      "         'referrer_id', $1::jsonb -> 'referrer') ELSE '{}' END"
      " || CASE WHEN $1::jsonb ->> 'value_unit' IS NOT NULL THEN"
      "         jsonb_build_object('currency', $1::jsonb -> 'value_unit')"
      "         ELSE '{}' END,"
      " $1::jsonb -> 'contact')",
      REFERRAL_SHOW, CTL_PRINT_ONE, "referral %s is entered",
      "By a code, a click, a token, or by a referrer who names somebody.\n",
      "  referralctl referral create code=SUMMER25 email=eva@example.com\n"
      "  referralctl referral create program=acme/summer referrer=4711 \\\n"
      "      name='Eva Roth' phone='+49 30 1234567' source=phone\n" },

    { "referral", "register", "a referee has signed up",
      { END }, { ctl_referral_register_keys, ctl_referral_keys,
                 ctl_contact_keys, NULL },
      "SELECT referral.referral_register(($1::jsonb ->> 'program')::bigint,"
      " $1::jsonb - '{program,contact}'::text[], $1::jsonb -> 'contact')",
      NULL, CTL_PRINT_ANSWER, "registered",
      "Decides which referral gets the credit, and gives what is earned by a\n"
      "registration.  The same referee again gets the same answer.\n",
      "  referralctl referral register token=v1.k1.SUMMER25... \\\n"
      "      external_id=815\n"
    },

    { "referral", "list", "list referrals, without personal data",
      { END }, { ctl_referral_filters, NULL },
      "SELECT " REFERRAL_JSON ", r.id AS \"p:id\", r.status AS \"p:status\","
      " r.credited AS \"p:credited\","
      " o.slug || '/' || r.program AS \"p:program\","
      " " REFERRER_NAME " AS \"p:referrer\", r.code AS \"p:code\","
      " r.source AS \"p:source\","
      " referral.money_text(r.value, r.currency) AS \"p:value\","
      " r.created_at AS \"p:created\""
      REFERRAL_FROM
      " WHERE ($1::jsonb ->> 'program' IS NULL"
      "        OR r.program_id = ($1::jsonb ->> 'program')::bigint)"
      " AND ($1::jsonb ->> 'referrer' IS NULL"
      "      OR r.referrer_id = ($1::jsonb ->> 'referrer')::bigint)"
      " AND ($1::jsonb ->> 'code' IS NULL OR r.code = $1::jsonb ->> 'code')"
      " AND ($1::jsonb ->> 'status' IS NULL"
      "      OR r.status = $1::jsonb ->> 'status')"
      " AND ($1::jsonb ->> 'since' IS NULL"
      "      OR r.created_at >= ($1::jsonb ->> 'since')::timestamptz)"
      " ORDER BY r.id",
      NULL, CTL_PRINT_LIST, "no referrals",
      "",
      "  referralctl referral list program=acme/summer status=pending\n" },

    { "referral", "show", "print a referral and its steps",
      { REFERRAL, END }, { NULL },
      REFERRAL_SHOW, NULL, CTL_PRINT_ONE, "referral %s",
      "",
      "  referralctl referral show 17\n" },

    { "referral", "contact", "print who was referred",
      { REFERRAL, END }, { NULL },
      "SELECT $1::bigint AS referral, c.*"
      " FROM referral.referral_contact($1::bigint) c",
      NULL, CTL_PRINT_ONE, "referee of referral %s",
      "Who reads it is kept in the audit.\n",
      "  referralctl referral contact 17\n" },

    { "referral", "accept", "accept a pending referral",
      { REFERRAL, MAY_REASON, END }, { NULL },
      "SELECT $1::bigint, referral.referral_accept($1::bigint, $2)",
      REFERRAL_SHOW, CTL_PRINT_ONE, "referral %s is accepted",
      "",
      "  referralctl referral accept 17\n" },

    { "referral", "reject", "reject a referral",
      { REFERRAL, REASON, END }, { NULL },
      "SELECT $1::bigint, referral.referral_reject($1::bigint, $2)",
      REFERRAL_SHOW, CTL_PRINT_ONE, "referral %s is rejected",
      "",
      "  referralctl referral reject 17 'is a customer already'\n" },

    { "referral", "decline", "the referee does not want it",
      { REFERRAL, MAY_REASON, END }, { NULL },
      "SELECT $1::bigint, referral.referral_decline($1::bigint, $2)",
      REFERRAL_SHOW, CTL_PRINT_ONE, "referral %s is declined",
      "",
      "  referralctl referral decline 17\n" },

    { "referral", "cancel", "cancel a referral",
      { REFERRAL, MAY_REASON, END }, { NULL },
      "SELECT $1::bigint, referral.referral_cancel($1::bigint, $2)",
      REFERRAL_SHOW, CTL_PRINT_ONE, "referral %s is cancelled",
      "Rewards that it earned are taken back.\n",
      "  referralctl referral cancel 17 'the order was a test'\n" },

    { "referral", "override", "give a referral the credit, by hand",
      { REFERRAL, REASON, END }, { NULL },
      "SELECT $1::bigint, referral.attribution_override($1::bigint, $2)",
      REFERRAL_SHOW, CTL_PRINT_ONE, "referral %s has the credit",
      "Against the program's rule; the one that had it is superseded.  Who\n"
      "did it and the reason are kept.\n",
      "  referralctl referral override 17 'said so on the phone'\n" },

    { NULL, NULL, NULL, { END }, { NULL }, NULL, NULL, CTL_PRINT_LIST, NULL,
      NULL, NULL }
};
