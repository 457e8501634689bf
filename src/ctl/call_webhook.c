
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"


#define WEBHOOK_JSON                                                          \
    "w.id AS \"j:id\", w.organisation_id AS \"j:organisation_id\","           \
    " w.url AS \"j:url\", to_jsonb(w.types) AS \"j:types\","                  \
    " w.description AS \"j:description\", w.status AS \"j:status\","          \
    " w.disabled_reason AS \"j:disabled_reason\","                            \
    " w.allow_private AS \"j:allow_private\","                                \
    " w.max_in_flight AS \"j:max_in_flight\", w.failures AS \"j:failures\","  \
    " w.paused_until AS \"j:paused_until\","                                  \
    " w.last_success_at AS \"j:last_success_at\","                            \
    " w.last_failure_at AS \"j:last_failure_at\","                            \
    " w.pending AS \"j:pending\", w.dead AS \"j:dead\","                      \
    " w.secrets AS \"j:secrets\", w.created_at AS \"j:created_at\","          \
    " w.updated_at AS \"j:updated_at\""

#define WEBHOOK_SHOW                                                          \
    "SELECT " WEBHOOK_JSON ", w.id AS \"p:webhook\", w.url AS \"p:url\","     \
    " array_to_string(w.types, ', ') AS \"p:types\","                         \
    " w.description AS \"p:description\", w.status AS \"p:status\","          \
    " w.disabled_reason AS \"p:reason\", w.pending AS \"p:pending\","         \
    " w.dead AS \"p:dead\", nullif(w.failures, 0) AS \"p:failures\","         \
    " w.paused_until AS \"p:paused until\","                                  \
    " w.last_success_at AS \"p:last success\","                               \
    " w.last_failure_at AS \"p:last failure\","                               \
    " nullif(w.allow_private, false) AS \"p:private addresses\","             \
    " w.secrets AS \"p:secrets\", w.created_at AS \"p:created\""              \
    " FROM referral.webhooks w WHERE w.id = $1::bigint"


static const ctl_arg_t  ctl_webhook_keys[] = {
    { "types", CTL_ARG_LIST, 0,
      "of events, as referral.created,reward.* (all)" },
    { "description", CTL_ARG_TEXT, 0, "" },
    { "allow_private", CTL_ARG_FLAG, 0,
      "yes: also when its address is one of a private network" },
    { "max_in_flight", CTL_ARG_NUMBER, 0, "deliveries at once (4)" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_webhook_add_keys[] = {
    { "secret", CTL_ARG_TEXT, 0, "whsec_..., of one that moves here" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_webhook_update_keys[] = {
    { "url", CTL_ARG_TEXT, 0, "a new one" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_webhook_rotate_keys[] = {
    { "overlap", CTL_ARG_TEXT, 0, "how long both sign (24 hours)" },
    { "secret", CTL_ARG_TEXT, 0, "this one (a new one)" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_delivery_filters[] = {
    { "status", CTL_ARG_TEXT, 0, "pending, sending, delivered or dead" },
    { "type", CTL_ARG_TEXT, 0, "of the event" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


static const ctl_arg_t  ctl_redeliver_keys[] = {
    { "delivery", CTL_ARG_ID, 0, "only this one" },
    { "event", CTL_ARG_UUID, 0, "this event, delivered or not" },
    { "since", CTL_ARG_TIME, 0, "the dead ones since then" },
    { NULL, CTL_ARG_TEXT, 0, NULL }
};


#define WEBHOOK  { "WEBHOOK", CTL_ARG_ID, 0, NULL }
#define END      { NULL, CTL_ARG_TEXT, 0, NULL }


const ctl_call_t  ctl_webhook_calls[] = {

    { "webhook", "add", "send events of an organisation to a URL",
      { { "ORG", CTL_ARG_ORG, 0, NULL }, { "URL", CTL_ARG_TEXT, 0, NULL },
        END },
      { ctl_webhook_keys, ctl_webhook_add_keys, NULL },
      "SELECT id, secret FROM referral.webhook_add($1::bigint, $2,"
      " coalesce((SELECT array_agg(t) FROM jsonb_array_elements_text("
      "               CASE WHEN jsonb_typeof($3::jsonb -> 'types') = 'array'"
      "                    THEN $3::jsonb -> 'types' ELSE '[]' END) t),"
      "          '{*}'), $3::jsonb - 'types')",
      NULL, CTL_PRINT_ONE, "webhook %s is added",
      "Events are signed as the Standard Webhooks specification says; the\n"
      "secret is shown now and never again.\n",
      "  referralctl webhook add acme https://crm.example.com/hook \\\n"
      "      types=reward.approved,payout.paid\n" },

    { "webhook", "list", "list webhooks",
      { { "ORG", CTL_ARG_ORG, CTL_ARG_OPTIONAL, NULL }, END }, { NULL },
      "SELECT " WEBHOOK_JSON ", w.id AS \"p:id\", w.url AS \"p:url\","
      " array_to_string(w.types, ',') AS \"p:types\","
      " w.status AS \"p:status\", w.pending AS \"p:pending\","
      " w.dead AS \"p:dead\", w.last_success_at AS \"p:last success\""
      " FROM referral.webhooks w"
      " WHERE $1::bigint IS NULL OR w.organisation_id = $1::bigint"
      " ORDER BY w.id",
      NULL, CTL_PRINT_LIST, "no webhooks",
      "",
      "  referralctl webhook list acme\n" },

    { "webhook", "show", "print a webhook",
      { WEBHOOK, END }, { NULL },
      WEBHOOK_SHOW, NULL, CTL_PRINT_ONE, "webhook %s",
      "",
      "  referralctl webhook show 3\n" },

    { "webhook", "update", "change a webhook",
      { WEBHOOK, END }, { ctl_webhook_update_keys, ctl_webhook_keys, NULL },
      "SELECT $1::bigint, referral.webhook_update($1::bigint, $2::jsonb)",
      WEBHOOK_SHOW, CTL_PRINT_ONE, "webhook %s is changed",
      "",
      "  referralctl webhook update 3 types=payout.paid\n" },

    { "webhook", "enable", "send to a webhook again",
      { WEBHOOK, END }, { NULL },
      "SELECT $1::bigint, referral.webhook_enable($1::bigint)",
      WEBHOOK_SHOW, CTL_PRINT_ONE, "webhook %s is enabled",
      "",
      "  referralctl webhook enable 3\n" },

    { "webhook", "disable", "stop sending to a webhook",
      { WEBHOOK, { "REASON", CTL_ARG_TEXT, CTL_ARG_OPTIONAL, NULL }, END },
      { NULL },
      "SELECT $1::bigint, referral.webhook_disable($1::bigint, $2)",
      WEBHOOK_SHOW, CTL_PRINT_ONE, "webhook %s is disabled",
      "What it has not got yet waits.\n",
      "  referralctl webhook disable 3 'moves to another host'\n" },

    { "webhook", "rotate", "give a webhook a new secret",
      { WEBHOOK, END }, { ctl_webhook_rotate_keys, NULL },
      "SELECT $1::bigint AS id, referral.webhook_rotate($1::bigint,"
      " coalesce(($2::jsonb ->> 'overlap')::interval, '24 hours'),"
      " $2::jsonb ->> 'secret') AS secret",
      NULL, CTL_PRINT_ONE, "webhook %s has a new secret",
      "For a while deliveries are signed with both.\n",
      "  referralctl webhook rotate 3 overlap='2 days'\n" },

    { "webhook", "test", "send a test event to a webhook",
      { WEBHOOK, END }, { NULL },
      "SELECT $1::bigint AS id, referral.webhook_test($1::bigint) AS event",
      NULL, CTL_PRINT_ONE, "webhook %s gets a test",
      "webhook deliveries shows what became of it.\n",
      "  referralctl webhook test 3\n" },

    { "webhook", "deliveries", "list the deliveries to a webhook",
      { WEBHOOK, END }, { ctl_delivery_filters, NULL },
      "SELECT d.id, d.webhook_id AS \"j:webhook_id\","
      " d.event_id AS \"j:event_id\", d.type, d.order_key AS concerns,"
      " d.status, d.attempts, d.http_status, d.error, d.duration_ms,"
      " d.response AS \"j:response\", d.next_at AS next,"
      " d.attempted_at AS \"j:attempted_at\", d.created_at AS created,"
      " d.finished_at AS \"j:finished_at\""
      " FROM referral.webhook_deliveries d WHERE d.webhook_id = $1::bigint"
      " AND ($2::jsonb ->> 'status' IS NULL"
      "      OR d.status = $2::jsonb ->> 'status')"
      " AND ($2::jsonb ->> 'type' IS NULL OR d.type = $2::jsonb ->> 'type')"
      " ORDER BY d.id",
      NULL, CTL_PRINT_LIST, "no deliveries",
      "",
      "  referralctl webhook deliveries 3 status=dead\n" },

    { "webhook", "redeliver", "send again what a webhook did not get",
      { WEBHOOK, END }, { ctl_redeliver_keys, NULL },
      "SELECT $1::bigint AS id,"
      " CASE WHEN $2::jsonb ->> 'delivery' IS NOT NULL THEN"
      "      (SELECT 1 FROM referral.webhook_redeliver("
      "           (SELECT d.id FROM referral.webhook_deliveries d"
      "                WHERE d.id = ($2::jsonb ->> 'delivery')::bigint"
      "                      AND d.webhook_id = $1::bigint)))"
      "      WHEN $2::jsonb ->> 'event' IS NOT NULL THEN"
      "      referral.webhook_redeliver_event("
      "          ($2::jsonb ->> 'event')::uuid, $1::bigint)"
      "      ELSE referral.webhook_redeliver_dead($1::bigint,"
      "          coalesce(($2::jsonb ->> 'since')::timestamptz, '-infinity'))"
      " END AS deliveries",
      NULL, CTL_PRINT_ONE, "webhook %s is sent to again",
      "Without keys all dead deliveries.\n",
      "  referralctl webhook redeliver 3\n"
      "  referralctl webhook redeliver 3 delivery=4012\n" },

    { NULL, NULL, NULL, { END }, { NULL }, NULL, NULL, CTL_PRINT_LIST, NULL,
      NULL, NULL }
};
