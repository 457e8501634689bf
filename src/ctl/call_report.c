
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"


/* days that were asked for, or null: the last 30 of the program */

#define FROM(n)   "(" n "::jsonb ->> 'from')::date"
#define UNTIL(n)  "(" n "::jsonb ->> 'until')::date"
#define STEP(default)                                                         \
    "coalesce($2::jsonb ->> 'step', '" default "')"

/* of the program, whose currency amounts are in */

#define OF_PROGRAM  " FROM referral.programs p, LATERAL referral."
#define THE_ONE     " WHERE p.id = $1::bigint"

#define BOTH(column)                                                          \
    "f." column " AS \"j:" column "\","                                       \
    " referral.money_text(f." column ", p.currency) AS \"p:" column "\""

#define PER_CENT(column, title)                                               \
    "f." column " AS \"j:" column "\","                                       \
    " round(f." column " * 100, 1) || ' %' AS \"p:" title "\""


static const ctl_arg_t  ctl_report_days[] = {
    { "from", CTL_ARG_DAY, 0, "first day, the program's own (30 days)" },
    { "until", CTL_ARG_DAY, 0, "last day (today)" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_report_step[] = {
    { "step", CTL_ARG_TEXT, 0, "day, week, month, quarter or year" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_report_rows[] = {
    { "rows", CTL_ARG_NUMBER, 0, "at most (100; leaderboard: 10)" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_report_by[] = {
    { "by", CTL_ARG_TEXT, 0,
      "clicks, created, registered, converted, conversions,\n"
      "revenue or earned (converted)" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_report_referrer[] = {
    { "referrer", CTL_ARG_REFERRER, 0, "only of this one" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_person_keys[] = {
    { "external_id", CTL_ARG_TEXT, 0, "the user id in your application" },
    { "email", CTL_ARG_TEXT, CTL_ARG_CONTACT, "" },
    { "phone", CTL_ARG_TEXT, CTL_ARG_CONTACT, "" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_person_reason[] = {
    { "reason", CTL_ARG_TEXT, 0, "for the audit" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_visitor_since[] = {
    { "since", CTL_ARG_TIME, 0, "(as long as interactions are kept)" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


#define ORG      { "ORG", CTL_ARG_ORG, 0, NULL }
#define PROGRAM  { "PROGRAM", CTL_ARG_PROGRAM, 0, NULL }
#define VISITOR  { "VISITOR", CTL_ARG_UUID, 0, NULL }
#define REASON   { "REASON", CTL_ARG_TEXT, 0, NULL }
#define END      { NULL, CTL_ARG_TEXT, 0, NULL }


const ctl_call_t  ctl_report_calls[] = {

    { "report", "figures", "what a program has brought and cost",
      { PROGRAM, END }, { ctl_report_days, NULL },
      "SELECT p.organisation || '/' || p.slug AS program, f.first_day,"
      " f.last_day, f.shared, f.clicks, f.noise, f.visitors, f.created,"
      " f.registered, f.converted, f.conversions,"
      " " BOTH("revenue") ", " BOTH("refunds") ", " BOTH("net") ","
      " " BOTH("cost") ", " BOTH("spend") ","
      " (to_jsonb(f) ->> 'average_reward')::bigint AS \"j:average_reward\","
      " (to_jsonb(f) ->> 'cost_per_acquisition')::numeric"
      "     AS \"j:cost_per_acquisition\","
      " (to_jsonb(f) ->> 'roi')::numeric AS roi,"
      " p.currency AS \"j:currency\""
      OF_PROGRAM "program_figures(p.id, " FROM("$2") ", " UNTIL("$2") ") f"
      THE_ONE,
      NULL, CTL_PRINT_ONE, "%s",
      "Cost is what was given as rewards, spend what was paid otherwise.\n",
      "  referralctl report figures acme/summer from=2026-06-01\n" },

    { "report", "funnel", "how far those who clicked have come",
      { PROGRAM, END }, { ctl_report_days, NULL },
      "SELECT f.step, f.n, " PER_CENT("of_previous", "of previous") ","
      " " PER_CENT("of_first", "of first")
      OF_PROGRAM "funnel(p.id, " FROM("$2") ", " UNTIL("$2") ") f" THE_ONE,
      NULL, CTL_PRINT_LIST, "nothing",
      "",
      "  referralctl report funnel acme/summer\n" },

    { "report", "trend", "the same by days, weeks ...",
      { PROGRAM, END }, { ctl_report_days, ctl_report_step, NULL },
      "SELECT f.day, f.shared, f.clicks, f.noise AS \"j:noise\", f.visitors,"
      " f.created, f.registered, f.converted, f.conversions,"
      " " BOTH("revenue") ", " BOTH("refunds") ", " BOTH("cost")
      OF_PROGRAM "trend(p.id, " FROM("$2") ", " UNTIL("$2") ", "
      STEP("day") ") f" THE_ONE " ORDER BY f.day",
      NULL, CTL_PRINT_LIST, "nothing",
      "",
      "  referralctl report trend acme/summer step=week\n" },

    { "report", "breakdown", "by source, campaign, country or variant",
      { PROGRAM, { "BY", CTL_ARG_TEXT, 0, NULL }, END },
      { ctl_report_days, ctl_report_rows, NULL },
      "SELECT f.name, f.clicks, f.noise AS \"j:noise\", f.created,"
      " f.registered, f.converted, " BOTH("revenue") ", " BOTH("refunds") ","
      " " BOTH("cost") ", " PER_CENT("conversion_rate", "conversion rate")
      OF_PROGRAM "breakdown(p.id, $2, " FROM("$3") ", " UNTIL("$3") ","
      " coalesce(($3::jsonb ->> 'rows')::int, 100)) f" THE_ONE,
      NULL, CTL_PRINT_LIST, "nothing",
      "",
      "  referralctl report breakdown acme/summer country\n" },

    { "report", "leaderboard", "the best referrers",
      { PROGRAM, END },
      { ctl_report_by, ctl_report_days, ctl_report_rows, NULL },
      "SELECT f.rank, f.referrer_id AS \"j:referrer_id\","
      " f.external_id AS \"j:external_id\","
      " coalesce(f.external_id, 'id:' || f.referrer_id) AS \"p:referrer\","
      " f.clicks, f.created, f.registered, f.converted, f.conversions,"
      " " BOTH("revenue") ", " BOTH("earned") ","
      " " PER_CENT("conversion_rate", "conversion rate")
      OF_PROGRAM "leaderboard(p.id,"
      " coalesce($2::jsonb ->> 'by', 'converted'), " FROM("$2") ","
      " " UNTIL("$2") ", coalesce(($2::jsonb ->> 'rows')::int, 10)) f"
      THE_ONE " ORDER BY f.rank",
      NULL, CTL_PRINT_LIST, "nobody",
      "",
      "  referralctl report leaderboard acme/summer by=revenue rows=20\n" },

    { "report", "time", "from the click to the first conversion",
      { PROGRAM, END }, { ctl_report_days, NULL },
      "SELECT p.organisation || '/' || p.slug AS program, f.converted,"
      " f.average, f.median, f.p90, f.longest"
      OF_PROGRAM "time_to_conversion(p.id, " FROM("$2") ", " UNTIL("$2")
      ") f" THE_ONE,
      NULL, CTL_PRINT_ONE, "%s",
      "",
      "  referralctl report time acme/summer\n" },

    { "report", "cohorts", "referrals by when they were made",
      { PROGRAM, END }, { ctl_report_days, ctl_report_step, NULL },
      "SELECT f.cohort, f.created, f.registered, f.converted_7d,"
      " f.converted_30d, f.converted_90d, f.converted, " BOTH("net") ","
      " " PER_CENT("conversion_rate", "conversion rate")
      OF_PROGRAM "cohorts(p.id, " FROM("$2") ", " UNTIL("$2") ", "
      STEP("month") ") f" THE_ONE " ORDER BY f.cohort",
      NULL, CTL_PRINT_LIST, "nothing",
      "",
      "  referralctl report cohorts acme/summer from=2026-01-01\n" },

    { "report", "value", "what the customers that were brought are worth",
      { PROGRAM, END }, { ctl_report_referrer, NULL },
      "SELECT p.organisation || '/' || p.slug AS program, f.customers,"
      " " BOTH("value") ", " BOTH("average") ", f.conversions,"
      " " PER_CENT("repeat_rate", "repeat rate")
      OF_PROGRAM "lifetime_value(p.id, ($2::jsonb ->> 'referrer')::bigint) f"
      THE_ONE,
      NULL, CTL_PRINT_ONE, "%s",
      "",
      "  referralctl report value acme/summer referrer=4711\n" },

    { "report", "retention", "referrers who go on, leave and come",
      { PROGRAM, END }, { ctl_report_days, ctl_report_step, NULL },
      "SELECT f.day, f.active, f.kept, f.lost, f.first_time,"
      " " PER_CENT("retention", "retention")
      OF_PROGRAM "referrer_retention(p.id, " FROM("$2") ", " UNTIL("$2")
      ", " STEP("month") ") f" THE_ONE " ORDER BY f.day",
      NULL, CTL_PRINT_LIST, "nothing",
      "",
      "  referralctl report retention acme/summer from=2026-01-01\n" },

    { "report", "quality", "how good the referrals are, 0 to 100",
      { PROGRAM, END }, { ctl_report_referrer, NULL },
      "SELECT p.organisation || '/' || p.slug AS program,"
      " f.score AS quality_score"
      OF_PROGRAM "quality_score(p.id,"
      " ($2::jsonb ->> 'referrer')::bigint) f (score)" THE_ONE,
      NULL, CTL_PRINT_ONE, "%s",
      "30 for referrals not rejected, 50 for converted, 20 for value not\n"
      "refunded.\n",
      "  referralctl report quality acme/summer referrer=4711\n" },

    { "report", "dashboard", "all of a program, as one JSON document",
      { PROGRAM, END }, { ctl_report_days, NULL },
      "SELECT referral.program_dashboard($1::bigint, " FROM("$2") ","
      " " UNTIL("$2") ")",
      NULL, CTL_PRINT_DOCUMENT, "",
      "",
      "  referralctl report dashboard acme/summer | jq .funnel\n" },

    { "report", "partner", "all of a referrer, as one JSON document",
      { { "REFERRER", CTL_ARG_REFERRER, 0, NULL }, END },
      { ctl_report_days, NULL },
      "SELECT referral.partner_page($1::bigint, " FROM("$2") ","
      " " UNTIL("$2") ")",
      NULL, CTL_PRINT_DOCUMENT, "",
      "",
      "  referralctl report partner acme/4711 | jq .balances\n" },

    { "person", "export", "print all there is about a person, as JSON",
      { ORG, END }, { ctl_person_keys, ctl_person_reason, NULL },
      "SELECT referral.customer_export($1::bigint,"
      " $2::jsonb ->> 'external_id', $2::jsonb -> 'contact',"
      " $2::jsonb ->> 'reason')",
      NULL, CTL_PRINT_DOCUMENT, "",
      "As referrer, as referee, as customer, in every program.  Who reads it\n"
      "is kept in the audit.\n",
      "  referralctl person export acme email=eva@example.com\n" },

    { "person", "erase", "erase a person",
      { ORG, REASON, END }, { ctl_person_keys, NULL },
      "SELECT referral.customer_erase($1::bigint,"
      " $3::jsonb ->> 'external_id', $3::jsonb -> 'contact', $2)",
      NULL, CTL_PRINT_ANSWER, "erased",
      "Whoever goes by this id, address or number.  Ledger and audit stay,\n"
      "as they name nobody.  It can not be undone.\n",
      "  referralctl person erase acme 'asked on 2026-11-20' \\\n"
      "      email=eva@example.com\n" },

    { "visitor", "export", "print the interactions of a visitor, as JSON",
      { VISITOR, END }, { ctl_visitor_since, NULL },
      "SELECT referral.visitor_export($1::uuid,"
      " ($2::jsonb ->> 'since')::timestamptz)",
      NULL, CTL_PRINT_DOCUMENT, "",
      "VISITOR is the id in the visitor's cookie.\n",
      "  referralctl visitor export 01a1f8be-de27-7bff-8a65-3e00f9ea02aa\n" },

    { "visitor", "erase", "erase what tells a visitor from others",
      { VISITOR, REASON, END }, { ctl_visitor_since, NULL },
      "SELECT $1::uuid AS visitor, referral.visitor_erase($1::uuid, $2,"
      " ($3::jsonb ->> 'since')::timestamptz) AS interactions",
      NULL, CTL_PRINT_ONE, "visitor %s is erased",
      "",
      "  referralctl visitor erase 01a1f8be-de27-7bff-8a65-3e00f9ea02aa \\\n"
      "      'asked on 2026-11-20'\n" },

    { NULL, NULL, NULL, { END }, { NULL }, NULL, NULL, CTL_PRINT_LIST, NULL,
      NULL, NULL }
};
