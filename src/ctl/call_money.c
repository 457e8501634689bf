
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"


#define IN_ORG(column)                                                        \
    "($1::bigint IS NULL OR " column ".organisation_id = $1::bigint)"

#define WANTED(key, column, type)                                             \
    " AND ($2::jsonb ->> '" key "' IS NULL OR " column                        \
    " = ($2::jsonb ->> '" key "')::" type ")"

#define REFERRER_NAME(t)                                                      \
    "(SELECT coalesce(f.external_id, 'id:' || f.id)"                          \
    "     FROM referral.referrers f WHERE f.id = " t ".referrer_id)"

#define REWARD_JSON                                                           \
    "w.id AS \"j:id\", w.organisation_id AS \"j:organisation_id\","           \
    " w.program_id AS \"j:program_id\", w.referral_id AS \"j:referral_id\","  \
    " w.conversion_id AS \"j:conversion_id\", w.rule_id AS \"j:rule_id\","    \
    " w.slot AS \"j:slot\", w.trigger AS \"j:trigger\","                      \
    " w.beneficiary AS \"j:beneficiary\","                                    \
    " w.referrer_id AS \"j:referrer_id\", w.person_id AS \"j:person_id\","    \
    " w.kind AS \"j:kind\", w.unit AS \"j:unit\", w.amount AS \"j:amount\","  \
    " w.amount_text AS \"j:amount_text\", w.available AS \"j:available\","    \
    " w.item AS \"j:item\", w.coupon_bp AS \"j:coupon_bp\","                  \
    " w.status AS \"j:status\", w.reason AS \"j:reason\","                    \
    " w.needs_approval AS \"j:needs_approval\","                              \
    " w.reviewed_at AS \"j:reviewed_at\","                                    \
    " w.reviewed_by AS \"j:reviewed_by\", w.hold_until AS \"j:hold_until\","  \
    " w.earned_at AS \"j:earned_at\", w.approved_at AS \"j:approved_at\","    \
    " w.valid_from AS \"j:valid_from\","                                      \
    " w.valid_until AS \"j:valid_until\", w.closed_at AS \"j:closed_at\","    \
    " w.reversed AS \"j:reversed\", w.returned AS \"j:returned\","            \
    " w.expired AS \"j:expired\""

#define REWARD_SHOW                                                           \
    "SELECT " REWARD_JSON ", w.id AS \"p:reward\","                           \
    " w.amount_text AS \"p:amount\", w.kind AS \"p:kind\","                   \
    " w.item AS \"p:item\", w.status AS \"p:status\","                        \
    " w.reason AS \"p:reason\","                                              \
    " nullif(w.needs_approval, false) AS \"p:needs approval\","               \
    " w.beneficiary || coalesce(' ' || " REFERRER_NAME("w") ", '')"           \
    "     AS \"p:for\","                                                      \
    " w.referral_id AS \"p:referral\","                                       \
    " w.conversion_id AS \"p:conversion\","                                   \
    " referral.money_text(w.available, w.unit) AS \"p:available\","           \
    " referral.money_text(nullif(w.reversed, 0), w.unit)"                     \
    "     AS \"p:taken back\","                                               \
    " w.earned_at AS \"p:earned\", w.hold_until AS \"p:held until\","         \
    " w.approved_at AS \"p:approved\","                                       \
    " w.reviewed_by AS \"p:reviewed by\","                                    \
    " w.valid_until AS \"p:valid until\", w.closed_at AS \"p:closed\""        \
    " FROM referral.rewards w WHERE w.id = $1::bigint"

#define PAYOUT_JSON                                                           \
    "o.id AS \"j:id\", o.organisation_id AS \"j:organisation_id\","           \
    " o.referrer_id AS \"j:referrer_id\", o.unit AS \"j:unit\","              \
    " o.amount AS \"j:amount\", o.amount_text AS \"j:amount_text\","          \
    " o.method AS \"j:method\", o.status AS \"j:status\","                    \
    " o.reference AS \"j:reference\", o.notes AS \"j:notes\","                \
    " o.reason AS \"j:reason\", o.requested_at AS \"j:requested_at\","        \
    " o.requested_by AS \"j:requested_by\","                                  \
    " o.approved_at AS \"j:approved_at\","                                    \
    " o.approved_by AS \"j:approved_by\", o.paid_at AS \"j:paid_at\","        \
    " o.paid_by AS \"j:paid_by\", o.closed_at AS \"j:closed_at\","            \
    " o.closed_by AS \"j:closed_by\""

#define PAYOUT_SHOW                                                           \
    "SELECT " PAYOUT_JSON ", o.id AS \"p:payout\","                           \
    " o.amount_text AS \"p:amount\","                                         \
    " " REFERRER_NAME("o") " AS \"p:referrer\", o.status AS \"p:status\","    \
    " o.method AS \"p:method\", o.reference AS \"p:reference\","              \
    " o.notes AS \"p:notes\", o.reason AS \"p:reason\","                      \
    " o.requested_at AS \"p:requested\", o.requested_by AS \"p:by\","         \
    " o.approved_at AS \"p:approved\", o.approved_by AS \"p:approved by\","   \
    " o.paid_at AS \"p:paid\", o.paid_by AS \"p:paid by\""                    \
    " FROM referral.payouts o WHERE o.id = $1::bigint"


static const ctl_arg_t  ctl_conversion_keys[] = {
    { "order_ref", CTL_ARG_TEXT, 0, "of the order, once in an organisation" },
    { "idempotency_key", CTL_ARG_TEXT, 0, "instead of it, or as well" },
    { "amount", CTL_ARG_MONEY, 0,
      "\"49.90 EUR\", or 4990 in minor units; the discount of a\n"
      "promotion is taken off already" },
    { "currency", CTL_ARG_TEXT, 0, "of minor units (the program's)" },
    { "discount", CTL_ARG_NUMBER, 0, "that was taken off, in minor units" },
    { "kind", CTL_ARG_TEXT, 0, "(purchase)" },
    { "product", CTL_ARG_TEXT, 0, "rules may ask for it" },
    { "occurred_at", CTL_ARG_TIME, 0, "(now)" },
    { "referral_id", CTL_ARG_ID, 0, "whose it is; or who the customer is:" },
    { "external_id", CTL_ARG_TEXT, 0, "the user id," },
    { "email", CTL_ARG_TEXT, 0, "of which a hash is compared," },
    { "phone", CTL_ARG_TEXT, 0, "the same," },
    { "click_id", CTL_ARG_UUID, 0, "the click," },
    { "token", CTL_ARG_TEXT, 0, "the attribution cookie," },
    { "code", CTL_ARG_CODE_TEXT, 0, "or the code" },
    { "program", CTL_ARG_PROGRAM, 0, "where several are possible" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_refund_keys[] = {
    { "amount", CTL_ARG_MONEY, 0,
      "\"12.50 EUR\", or 1250 in minor units (all that is left)" },
    { "occurred_at", CTL_ARG_TIME, 0, "(now)" },
    { "reason", CTL_ARG_TEXT, 0, "nothing personal" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_conversion_filters[] = {
    { "program", CTL_ARG_PROGRAM, 0, "only those of this program" },
    { "referrer", CTL_ARG_REFERRER, 0, "only those of this referrer" },
    { "referral", CTL_ARG_ID, 0, "only those of this referral" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_rule_keys[] = {
    { "cap", CTL_ARG_MONEY, 0, "of one referral: \"500.00 USD\"" },
    { "approval_above", CTL_ARG_MONEY, 0, "rewards above it need approval" },
    { "expiring_notice", CTL_ARG_TEXT, 0, "(7 days)" },
    { "note", CTL_ARG_TEXT, 0, "why they are changed" },
    { "code", CTL_ARG_CODE, 0, "rules of this code" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_reward_filters[] = {
    { "status", CTL_ARG_TEXT, 0, "only those with this status" },
    { "program", CTL_ARG_PROGRAM, 0, "only those of this program" },
    { "referrer", CTL_ARG_REFERRER, 0, "only those of this referrer" },
    { "referral", CTL_ARG_ID, 0, "only those of this referral" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_payout_keys[] = {
    { "amount", CTL_ARG_MONEY, 0,
      "\"12.50 EUR\", or 1250 in minor units (all that is payable)" },
    { "unit", CTL_ARG_TEXT, 0, "(the organisation's currency)" },
    { "method", CTL_ARG_TEXT, 0,
      "bank_transfer, cash, account_credit or check" },
    { "notes", CTL_ARG_TEXT, 0, "nothing personal" },
    { "idempotency_key", CTL_ARG_TEXT, 0, "twice the same is once" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_pay_keys[] = {
    { "reference", CTL_ARG_TEXT, 0, "of the transfer, check or receipt" },
    { "method", CTL_ARG_TEXT, 0, "when it was another one" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_payout_filters[] = {
    { "status", CTL_ARG_TEXT, 0,
      "requested, approved, paid, rejected or cancelled" },
    { "referrer", CTL_ARG_REFERRER, 0, "only those of this referrer" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_statement_keys[] = {
    { "from", CTL_ARG_DAY, 0, "first day (of this month)" },
    { "until", CTL_ARG_DAY, 0, "last day (today)" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_balance_filters[] = {
    { "referrer", CTL_ARG_REFERRER, 0, "only those of this referrer" },
    { "kind", CTL_ARG_TEXT, 0, "payable, pending, paid, expense ..." },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


#define ORG         { "ORG", CTL_ARG_ORG, 0, NULL }
#define MAY_ORG     { "ORG", CTL_ARG_ORG, CTL_ARG_OPTIONAL, NULL }
#define PROGRAM     { "PROGRAM", CTL_ARG_PROGRAM, 0, NULL }
#define REFERRER    { "REFERRER", CTL_ARG_REFERRER, 0, NULL }
#define REWARD      { "REWARD", CTL_ARG_ID, 0, NULL }
#define PAYOUT      { "PAYOUT", CTL_ARG_ID, 0, NULL }
#define REASON      { "REASON", CTL_ARG_TEXT, 0, NULL }
#define MAY_REASON  { "REASON", CTL_ARG_TEXT, CTL_ARG_OPTIONAL, NULL }
#define END         { NULL, CTL_ARG_TEXT, 0, NULL }


const ctl_call_t  ctl_money_calls[] = {

    { "conversion", "add", "record an order, and give what it earns",
      { ORG, END }, { ctl_conversion_keys, NULL },
      "SELECT referral.conversion_record($1::bigint,"
      " ($2::jsonb - '{program,amount_unit}'::text[])"
      " || CASE WHEN $2::jsonb ->> 'amount_unit' IS NOT NULL THEN"
      "         jsonb_build_object('currency', $2::jsonb -> 'amount_unit')"
      "         ELSE '{}' END"
      " || CASE WHEN $2::jsonb ? 'program' THEN jsonb_build_object("
      "         'program_id', $2::jsonb -> 'program') ELSE '{}' END)",
      NULL, CTL_PRINT_ANSWER, "conversion",
      "The same order again gets the same answer.  Exits with 1 when no\n"
      "referral is good for it (\"unattributed\"): nothing is kept then.\n",
      "  referralctl conversion add acme order_ref=A-1001 external_id=815 \\\n"
      "      amount='49.90 EUR'\n" },

    { "conversion", "refund", "record a refund, of a part or of all",
      { ORG, { "ORDER", CTL_ARG_TEXT, 0, NULL },
        { "REFUND", CTL_ARG_TEXT, 0, NULL }, END },
      { ctl_refund_keys, NULL },
      "SELECT referral.refund_record($1::bigint,"
      " ($4::jsonb - 'amount_unit')"
      " || jsonb_build_object('order_ref', $2::text, 'refund_ref', $3::text)"
      " || coalesce((SELECT jsonb_build_object('amount',"
      "                  ($4::jsonb ->> 'amount') || ' minor units of '"
      "                  || ($4::jsonb ->> 'amount_unit')"
      "                  || ', of an order in ' || c.currency)"
      "                  FROM referral.conversions c"
      "                  WHERE c.organisation_id = $1::bigint"
      "                        AND c.order_ref = $2"
      "                        AND c.currency"
      "                            <> $4::jsonb ->> 'amount_unit'), '{}'))",
      NULL, CTL_PRINT_ANSWER, "refund",
      "ORDER is its order_ref, REFUND names the refund: the same one again\n"
      "gets the same answer.  Rewards are taken back pro rata, also\n"
      "after they were paid: the next payout is less then.\n",
      "  referralctl conversion refund acme A-1001 R-1 amount='10.00 EUR'\n" },

    { "conversion", "list", "list conversions",
      { MAY_ORG, END }, { ctl_conversion_filters, NULL },
      "SELECT c.id, c.organisation_id AS \"j:organisation_id\","
      " c.program_id AS \"j:program_id\", c.order_ref AS order_ref,"
      " c.referral_id AS referral_id, c.referrer_id AS \"j:referrer_id\","
      " " REFERRER_NAME("c") " AS \"p:referrer\","
      " c.code_id AS \"j:code_id\", c.kind, c.product, c.nth,"
      " c.amount AS \"j:amount\", c.currency AS \"j:currency\","
      " c.amount_text AS \"j:amount_text\","
      " c.amount_text AS \"p:amount\", c.discount AS \"j:discount\","
      " c.refunded AS \"j:refunded\","
      " referral.money_text(nullif(c.refunded, 0), c.currency)"
      "     AS \"p:refunded\","
      " c.cancelled AS \"j:cancelled\", c.occurred_at,"
      " c.recorded_at AS \"j:recorded_at\""
      " FROM referral.conversions c WHERE " IN_ORG("c")
      WANTED("program", "c.program_id", "bigint")
      WANTED("referrer", "c.referrer_id", "bigint")
      WANTED("referral", "c.referral_id", "bigint")
      " ORDER BY c.id",
      NULL, CTL_PRINT_LIST, "no conversions",
      "",
      "  referralctl conversion list acme program=summer\n" },

    { "rule", "set", "write the rules of rewards, a new version",
      { PROGRAM, { "RULES", CTL_ARG_JSON, CTL_ARG_STDIN, NULL }, END },
      { ctl_rule_keys, NULL },
      "SELECT $1::bigint, referral.reward_rules_set($1::bigint, $2::jsonb,"
      " ($3::jsonb - '{cap_unit,approval_above_unit,code}'::text[])"
      " || CASE WHEN coalesce($3::jsonb ->> 'cap_unit',"
      "                       $3::jsonb ->> 'approval_above_unit') IS NOT NULL"
      "         THEN jsonb_build_object('unit',"
      "                  coalesce($3::jsonb ->> 'cap_unit',"
      "                           $3::jsonb ->> 'approval_above_unit'))"
      "         ELSE '{}' END"
      " || CASE WHEN $3::jsonb ? 'code' THEN jsonb_build_object('code_id',"
      "                  $3::jsonb -> 'code') ELSE '{}' END)",
      "SELECT p.organisation || '/' || p.slug AS \"p:program\","
      " p.id AS \"j:program_id\", max(r.version) AS version,"
      " count(r.rule_id) FILTER (WHERE r.version = m.version) AS rules"
      " FROM referral.programs p"
      "      JOIN referral.reward_rules r ON r.program_id = p.id,"
      "      LATERAL (SELECT max(version) AS version"
      "                   FROM referral.reward_rules"
      "                   WHERE program_id = p.id) m"
      " WHERE p.id = $1::bigint GROUP BY p.organisation, p.slug, p.id",
      CTL_PRINT_ONE, "the rules of %s are written",
      "RULES is a JSON array of objects, all rules at once; - reads them\n"
      "from standard input.  Members: beneficiary (referrer, referee),\n"
      "trigger (conversion, registration), kind (cash, credit, discount,\n"
      "points, free_item, merchandise, messages, requests, feature_days),\n"
      "amount in minor units or rate_bp, unit, tiers, seasons, nth, every,\n"
      "threshold, conversion_kinds, products, min_amount, max_amount, base,\n"
      "times, hold, valid_for, approval, slot, variant_id, item, coupon_bp,\n"
      "commission.\n"
      "A referral keeps the version that it began with.\n",
      "  referralctl rule set acme/summer '[{\"kind\": \"cash\",\n"
      "      \"rate_bp\": 1000, \"hold\": \"14 days\"}]' cap='500.00 USD'\n"
      "  referralctl rule set acme/summer - < rules.json\n" },

    { "rule", "list", "list the rules of a program",
      { PROGRAM, END }, { NULL },
      "SELECT r.version, r.current, r.rule_id, r.code_id AS \"j:code_id\","
      " r.slot, r.beneficiary, r.trigger, r.kind, r.unit,"
      " r.amount AS \"j:amount\","
      " coalesce(referral.money_text(r.amount, coalesce(r.unit,"
      "              CASE WHEN r.kind IN ('cash', 'credit', 'discount')"
      "                   THEN p.currency ELSE r.kind END)),"
      "          round(r.rate_bp / 100.0, 2) || ' %', 'tiers')"
      "     AS \"p:amount\","
      " r.rate_bp AS \"j:rate_bp\", r.tiers AS \"j:tiers\","
      " r.seasons AS \"j:seasons\", r.nth, r.every, r.threshold,"
      " r.min_amount AS \"j:min_amount\", r.max_amount AS \"j:max_amount\","
      " to_jsonb(r.conversion_kinds) AS \"j:conversion_kinds\","
      " to_jsonb(r.products) AS \"j:products\","
      " r.variant_id AS \"j:variant_id\", r.base AS \"j:base\","
      " r.commission AS \"j:commission\", r.times AS \"j:times\","
      " r.approval AS \"j:approval\", r.hold, r.valid_for, r.item,"
      " r.coupon_bp AS \"j:coupon_bp\", r.cap AS \"j:cap\","
      " r.approval_above AS \"j:approval_above\","
      " r.limits_unit AS \"j:limits_unit\","
      " r.expiring_notice AS \"j:expiring_notice\", r.note AS \"j:note\","
      " r.created_by AS \"j:created_by\", r.created_at AS \"j:created_at\""
      " FROM referral.reward_rules r"
      "      JOIN referral.programs p ON p.id = r.program_id"
      " WHERE r.program_id = $1::bigint"
      " ORDER BY r.version DESC, r.position",
      NULL, CTL_PRINT_LIST, "no rules",
      "The newest version first.\n",
      "  referralctl rule list acme/summer\n" },

    { "reward", "list", "list rewards",
      { MAY_ORG, END }, { ctl_reward_filters, NULL },
      "SELECT " REWARD_JSON ", w.id AS \"p:id\","
      " w.amount_text AS \"p:amount\", w.kind AS \"p:kind\","
      " w.status AS \"p:status\","
      " w.beneficiary || coalesce(' ' || " REFERRER_NAME("w") ", '')"
      "     AS \"p:for\","
      " w.referral_id AS \"p:referral\", w.earned_at AS \"p:earned\","
      " w.hold_until AS \"p:held until\", w.valid_until AS \"p:valid until\""
      " FROM referral.rewards w WHERE " IN_ORG("w")
      WANTED("status", "w.status", "text")
      WANTED("program", "w.program_id", "bigint")
      WANTED("referrer", "w.referrer_id", "bigint")
      WANTED("referral", "w.referral_id", "bigint")
      " ORDER BY w.id",
      NULL, CTL_PRINT_LIST, "no rewards",
      "",
      "  referralctl reward list acme status=pending\n" },

    { "reward", "show", "print a reward",
      { REWARD, END }, { NULL },
      REWARD_SHOW, NULL, CTL_PRINT_ONE, "reward %s",
      "",
      "  referralctl reward show 31\n" },

    { "reward", "approve", "approve a reward",
      { REWARD, MAY_REASON, END }, { NULL },
      "SELECT $1::bigint, referral.reward_approve($1::bigint, $2)",
      REWARD_SHOW, CTL_PRINT_ONE, "reward %s is approved",
      "",
      "  referralctl reward approve 31\n" },

    { "reward", "reject", "reject a reward",
      { REWARD, REASON, END }, { NULL },
      "SELECT $1::bigint, referral.reward_reject($1::bigint, $2)",
      REWARD_SHOW, CTL_PRINT_ONE, "reward %s is rejected",
      "",
      "  referralctl reward reject 31 'a self-referral'\n" },

    { "reward", "hold", "hold a reward until it is approved",
      { REWARD, MAY_REASON, END }, { NULL },
      "SELECT $1::bigint, referral.reward_hold($1::bigint, $2)",
      REWARD_SHOW, CTL_PRINT_ONE, "reward %s is held",
      "",
      "  referralctl reward hold 31 'is looked at'\n" },

    { "reward", "cancel", "take a reward back",
      { REWARD, REASON, END }, { NULL },
      "SELECT $1::bigint, referral.reward_cancel($1::bigint, $2)",
      REWARD_SHOW, CTL_PRINT_ONE, "reward %s is cancelled",
      "",
      "  referralctl reward cancel 31 'entered twice'\n" },

    { "payout", "request", "ask for a payout of what is payable",
      { REFERRER, END }, { ctl_payout_keys, NULL },
      "SELECT referral.payout_request($1::bigint,"
      " ($2::jsonb - 'amount_unit')"
      " || CASE WHEN $2::jsonb ->> 'amount_unit' IS NOT NULL THEN"
      "         jsonb_build_object('unit', $2::jsonb -> 'amount_unit')"
      "         ELSE '{}' END)",
      PAYOUT_SHOW, CTL_PRINT_ONE, "payout %s is requested",
      "",
      "  referralctl payout request acme/4711 method=bank_transfer\n" },

    { "payout", "approve", "approve a payout",
      { PAYOUT, END }, { NULL },
      "SELECT $1::bigint, referral.payout_approve($1::bigint)",
      PAYOUT_SHOW, CTL_PRINT_ONE, "payout %s is approved",
      "",
      "  referralctl payout approve 5\n" },

    { "payout", "reject", "reject a payout: the amount is payable again",
      { PAYOUT, REASON, END }, { NULL },
      "SELECT $1::bigint, referral.payout_reject($1::bigint, $2)",
      PAYOUT_SHOW, CTL_PRINT_ONE, "payout %s is rejected",
      "",
      "  referralctl payout reject 5 'the account is closed'\n" },

    { "payout", "cancel", "withdraw a payout that was requested",
      { PAYOUT, MAY_REASON, END }, { NULL },
      "SELECT $1::bigint, referral.payout_cancel($1::bigint, $2)",
      PAYOUT_SHOW, CTL_PRINT_ONE, "payout %s is cancelled",
      "",
      "  referralctl payout cancel 5\n" },

    { "payout", "pay", "note that a payout was paid",
      { PAYOUT, END }, { ctl_pay_keys, NULL },
      "SELECT $1::bigint, referral.payout_pay($1::bigint,"
      " $2::jsonb ->> 'reference', $2::jsonb ->> 'method')",
      PAYOUT_SHOW, CTL_PRINT_ONE, "payout %s is paid",
      "",
      "  referralctl payout pay 5 reference='SEPA 2026-11-20/17'\n" },

    { "payout", "list", "list payouts",
      { MAY_ORG, END }, { ctl_payout_filters, NULL },
      "SELECT " PAYOUT_JSON ", o.id AS \"p:id\","
      " o.amount_text AS \"p:amount\","
      " " REFERRER_NAME("o") " AS \"p:referrer\", o.status AS \"p:status\","
      " o.method AS \"p:method\", o.reference AS \"p:reference\","
      " o.requested_at AS \"p:requested\", o.paid_at AS \"p:paid\""
      " FROM referral.payouts o WHERE " IN_ORG("o")
      WANTED("status", "o.status", "text")
      WANTED("referrer", "o.referrer_id", "bigint")
      " ORDER BY o.id",
      NULL, CTL_PRINT_LIST, "no payouts",
      "",
      "  referralctl payout list acme status=requested\n" },

    { "payout", "show", "print a payout",
      { PAYOUT, END }, { NULL },
      PAYOUT_SHOW, NULL, CTL_PRINT_ONE, "payout %s",
      "",
      "  referralctl payout show 5\n" },

    { "statement", "", "print the statement of a referrer",
      { REFERRER, END }, { ctl_statement_keys, NULL },
      "SELECT s.unit AS \"j:unit\", s.account, s.line AS \"j:line\", s.at,"
      " s.what AS \"j:what\", coalesce(s.what, s.line) AS \"p:what\","
      " s.amount AS \"j:amount\", s.amount_text AS \"j:amount_text\","
      " s.amount_text AS \"p:amount\", s.balance AS \"j:balance\","
      " s.balance_text AS \"j:balance_text\","
      " s.balance_text AS \"p:balance\","
      " s.referral_id AS \"j:referral_id\","
      " s.reward_id AS \"j:reward_id\", s.payout_id AS \"j:payout_id\""
      " FROM referral.referrers f"
      "      JOIN referral.organisations o ON o.id = f.organisation_id,"
      "      LATERAL (SELECT (now() AT TIME ZONE o.time_zone)::date AS day) d,"
      "      LATERAL referral.statement(f.id,"
      "          coalesce(($2::jsonb ->> 'from')::date,"
      "                   date_trunc('month', d.day)::date),"
      "          coalesce(($2::jsonb ->> 'until')::date, d.day)) s"
      " WHERE f.id = $1::bigint",
      NULL, CTL_PRINT_LIST, "nothing in this time",
      "Balance before, each movement, balance after.  Days are those of the\n"
      "organisation.\n",
      "  referralctl statement acme/4711 from=2026-11-01 until=2026-11-30\n" },

    { "ledger", "check", "prove that the ledger adds up",
      { END }, { NULL },
      "SELECT problem, object, object_id, detail FROM referral.ledger_check()",
      NULL, CTL_PRINT_PROBLEMS, "no problems",
      "Each transfer, each balance, each reward.  Exits with 1 when\n"
      "something is wrong, and prints what.\n",
      "  referralctl ledger check\n" },

    { "ledger", "balance", "list the balances of accounts",
      { MAY_ORG, END }, { ctl_balance_filters, NULL },
      "SELECT b.account_id AS account_id,"
      " b.organisation_id AS \"j:organisation_id\", b.kind, b.holder,"
      " b.referrer_id AS \"j:referrer_id\","
      " " REFERRER_NAME("b") " AS \"p:referrer\","
      " b.person_id AS \"j:person_id\", b.referral_id AS \"j:referral_id\","
      " b.unit AS \"j:unit\", b.balance AS \"j:balance\","
      " b.balance_text AS \"j:balance_text\","
      " b.balance_text AS \"p:balance\""
      " FROM referral.balances b WHERE " IN_ORG("b")
      WANTED("referrer", "b.referrer_id", "bigint")
      WANTED("kind", "b.kind", "text")
      " ORDER BY b.account_id",
      NULL, CTL_PRINT_LIST, "no accounts",
      "",
      "  referralctl ledger balance acme referrer=4711\n" },

    { "ledger", "list", "list the entries of transfers",
      { MAY_ORG, END }, { ctl_balance_filters, NULL },
      "SELECT l.transfer_id, l.at, l.transfer, l.account_id,"
      " l.account, l.organisation_id AS \"j:organisation_id\","
      " l.referrer_id AS \"j:referrer_id\","
      " " REFERRER_NAME("l") " AS \"p:referrer\","
      " l.referral_id, l.reward_id, l.payout_id, l.amount AS \"j:amount\","
      " l.unit AS \"j:unit\","
      " referral.money_text(l.amount, l.unit) AS \"j:amount_text\","
      " referral.money_text(l.amount, l.unit) AS \"p:amount\","
      " l.reverses AS \"j:reverses\", l.actor AS \"j:actor\","
      " l.memo AS \"j:memo\""
      " FROM referral.ledger l WHERE " IN_ORG("l")
      WANTED("referrer", "l.referrer_id", "bigint")
      WANTED("kind", "l.account", "text")
      " ORDER BY l.transfer_id, l.seq",
      NULL, CTL_PRINT_LIST, "no entries",
      "",
      "  referralctl ledger list acme referrer=4711\n" },

    { NULL, NULL, NULL, { END }, { NULL }, NULL, NULL, CTL_PRINT_LIST, NULL,
      NULL, NULL }
};
