
/*
 * Copyright (C) The nginx referral module authors
 */


#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "referral_fault.h"
#include "log.h"
#include "signals.h"
#include "stat.h"
#include "webhook.h"


/* milliseconds */

#define REFERRAL_WEBHOOK_LOOK    1000
#define REFERRAL_WEBHOOK_LEASE   15000     /* beyond the timeout */
#define REFERRAL_WEBHOOK_MINUTE  60000

#define REFERRAL_WEBHOOK_LINES   10        /* about dead ones, a minute */
#define REFERRAL_WEBHOOK_ITEM    256


static void referral_webhook_run(void *data);
static int referral_webhook_connect(referral_webhook_t *w);
static int referral_webhook_notified(referral_webhook_t *w);
static int referral_webhook_claim(referral_webhook_t *w);
static int referral_webhook_record(referral_webhook_t *w);
static void referral_webhook_result(referral_webhook_t *w,
    const referral_send_slot_t *slot);
static void referral_webhook_outcome(referral_webhook_t *w,
    referral_send_slot_t *slot, const PGresult *res);
static void referral_webhook_report(referral_webhook_t *w,
    const referral_send_slot_t *slot, const char *outcome);
static void referral_webhook_wait(referral_webhook_t *w);


int
referral_webhook_start(referral_webhook_t *w,
    const referral_settings_t *settings)
{
    memset(w, 0, sizeof(referral_webhook_t));

    w->settings = settings;

    referral_pg_init(&w->pg, settings);
    w->pg.name = "referral-webhooks";
    w->pg.quiet = 1;

    if (referral_send_init(&w->send, settings->webhook_timeout)
        != REFERRAL_OK)
    {
        referral_log(REFERRAL_LOG_ERROR, "webhooks-failed", "out of memory",
                     NULL);
        return REFERRAL_ERROR;
    }

    w->thread.name = "webhooks";
    w->thread.run = referral_webhook_run;
    w->thread.data = w;

    return referral_thread_start(&w->thread);
}


int
referral_webhook_stop(referral_webhook_t *w)
{
    return referral_thread_stop(&w->thread);
}


/* what is on its way when it stops is left to its lease */

static void
referral_webhook_run(void *data)
{
    int                  rc;
    referral_webhook_t  *w;

    w = data;

    while (!referral_stopping()) {

        rc = referral_webhook_connect(w);

        if (referral_send_perform(&w->send) && rc == REFERRAL_OK) {
            rc = referral_webhook_record(w);
        }

        if (rc == REFERRAL_OK) {
            rc = referral_webhook_notified(w);
        }

        if (rc == REFERRAL_OK
            && (w->look || referral_now() - w->looked >= REFERRAL_WEBHOOK_LOOK)
            && w->send.busy < REFERRAL_SEND_SLOTS)
        {
            rc = referral_webhook_claim(w);
        }

        if (rc == REFERRAL_ERROR && !referral_stopping()) {
            referral_pg_failed(&w->pg);

        } else if (rc == REFERRAL_OK) {
            referral_pg_recovered(&w->pg);
        }

        referral_stat_set(webhook_in_flight, w->send.busy);

        referral_webhook_wait(w);
    }

    referral_pg_close(&w->pg);
    referral_send_free(&w->send);
    referral_buf_free(&w->results);
    referral_stat_set(webhook_in_flight, 0);
}


/* REFERRAL_AGAIN: it is not the time yet */

static int
referral_webhook_connect(referral_webhook_t *w)
{
    if (referral_pg_connected(&w->pg)) {
        return REFERRAL_OK;
    }

    if (w->pg.retry > referral_now()) {
        return REFERRAL_AGAIN;
    }

    w->look = 1;

    if (referral_pg_connect(&w->pg) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    /* a claim or a result that a crash of the server undoes is made again */

    return referral_pg_query(&w->pg, "SET synchronous_commit = off;"
                             "LISTEN referral_outbox", 0, NULL, NULL);
}


static int
referral_webhook_notified(referral_webhook_t *w)
{
    PGnotify  *notify;

    if (PQconsumeInput(w->pg.conn) == 0) {
        return referral_pg_broken(&w->pg);
    }

    while ((notify = PQnotifies(w->pg.conn)) != NULL) {
        w->look = 1;
        PQfreemem(notify);
    }

    return REFERRAL_OK;
}


static int
referral_webhook_claim(referral_webhook_t *w)
{
    int                       i, n;
    char                      room[24], lease[32];
    PGresult                 *res;
    const char               *values[2];
    referral_send_request_t   r;

    snprintf(room, sizeof(room), "%zu", REFERRAL_SEND_SLOTS - w->send.busy);
    snprintf(lease, sizeof(lease), "%" PRIu64 " ms",
             w->send.timeout + REFERRAL_WEBHOOK_LEASE);

    values[0] = room;
    values[1] = lease;

    w->look = 0;
    w->looked = referral_now();

    if (referral_pg_query(&w->pg, "SELECT delivery_id, webhook_id, attempt,"
                          " url, allow_private, event_id, at, signature, body"
                          " FROM referral.webhook_claim($1, $2)", 2, values,
                          &res)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    n = PQntuples(res);

    for (i = 0; i < n; i++) {
        r.delivery = strtoll(PQgetvalue(res, i, 0), NULL, 10);
        r.webhook = strtoll(PQgetvalue(res, i, 1), NULL, 10);
        r.attempt = strtol(PQgetvalue(res, i, 2), NULL, 10);
        r.url = PQgetvalue(res, i, 3);
        r.allow_private = PQgetvalue(res, i, 4)[0] == 't';
        r.event = PQgetvalue(res, i, 5);
        r.at = PQgetvalue(res, i, 6);
        r.signature = PQgetvalue(res, i, 7);
        r.body = PQgetvalue(res, i, 8);

        referral_send_begin(&w->send, &r);
    }

    PQclear(res);

    if (n) {
        referral_fault("webhook-claimed");
    }

    return REFERRAL_OK;
}


static int
referral_webhook_record(referral_webhook_t *w)
{
    size_t                 i;
    PGresult              *res;
    const char            *values[1];
    referral_send_slot_t  *slot;

    w->results.len = 0;
    w->results.failed = 0;

    for (i = 0; i < REFERRAL_SEND_SLOTS; i++) {
        if (w->send.slots[i].state == REFERRAL_SEND_DONE) {
            referral_webhook_result(w, &w->send.slots[i]);
        }
    }

    referral_buf_add(&w->results, "]", sizeof("]"));

    if (w->results.failed) {
        return REFERRAL_AGAIN;
    }

    values[0] = (char *) w->results.data;

    referral_fault("webhook-sent");

    if (referral_pg_query(&w->pg, "SELECT delivery_id, outcome"
                          " FROM referral.webhook_done($1)", 1, values, &res)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    for (i = 0; i < REFERRAL_SEND_SLOTS; i++) {
        slot = &w->send.slots[i];

        if (slot->state == REFERRAL_SEND_DONE) {
            referral_webhook_outcome(w, slot, res);
            referral_send_release(&w->send, slot);
        }
    }

    PQclear(res);

    /* the next of a key, or of an endpoint that had enough, may be taken */

    w->look = 1;

    return REFERRAL_OK;
}


static void
referral_webhook_result(referral_webhook_t *w,
    const referral_send_slot_t *slot)
{
    char             text[REFERRAL_WEBHOOK_ITEM];
    referral_str_t   str;
    referral_buf_t  *b;

    b = &w->results;

    snprintf(text, sizeof(text), "%s{\"delivery\":%" PRId64 ",\"attempt\":%ld,"
             "\"status\":%ld,\"retry_after\":%" PRId64 ",\"ms\":%" PRIu64
             ",\"error\":", b->len ? "," : "[", slot->delivery, slot->attempt,
             slot->status, slot->retry_after, slot->took / 1000);

    referral_buf_string(b, text);

    if (slot->error[0] != '\0') {
        str.data = (u_char *) slot->error;
        str.len = strlen(slot->error);
        referral_buf_json(b, &str);

    } else {
        referral_buf_string(b, "null");
    }

    referral_buf_string(b, ",\"response\":");

    str.data = (u_char *) slot->response;
    str.len = slot->len;
    referral_buf_json(b, &str);

    referral_buf_string(b, "}");
}


/* a delivery that is not in the answer was removed with its webhook */

static void
referral_webhook_outcome(referral_webhook_t *w, referral_send_slot_t *slot,
    const PGresult *res)
{
    int          i, n;
    const char  *outcome;

    outcome = "late";
    n = PQntuples(res);

    for (i = 0; i < n; i++) {
        if (strtoll(PQgetvalue(res, i, 0), NULL, 10) == slot->delivery) {
            outcome = PQgetvalue(res, i, 1);
            break;
        }
    }

    if (strcmp(outcome, "delivered") == 0) {
        referral_stat_add(webhook_delivered, 1);

    } else if (strcmp(outcome, "retry") == 0) {
        referral_stat_add(webhook_retry, 1);

    } else if (strcmp(outcome, "dead") == 0) {
        referral_stat_add(webhook_dead, 1);

    } else if (strcmp(outcome, "disabled") == 0) {
        referral_stat_add(webhook_disabled, 1);

    } else {
        referral_stat_add(webhook_late, 1);
    }

    referral_stat_time(webhook, slot->took);

    referral_webhook_report(w, slot, outcome);
}


static void
referral_webhook_report(referral_webhook_t *w,
    const referral_send_slot_t *slot, const char *outcome)
{
    uint64_t              now;
    referral_log_level_e  level;

    level = REFERRAL_LOG_DEBUG;

    if (strcmp(outcome, "dead") == 0 || strcmp(outcome, "disabled") == 0) {
        now = referral_now();

        if (now - w->since >= REFERRAL_WEBHOOK_MINUTE) {
            w->since = now;
            w->lines = 0;
        }

        if (w->lines++ < REFERRAL_WEBHOOK_LINES) {
            level = REFERRAL_LOG_WARN;
        }
    }

    referral_log(level, "webhook", slot->error[0] ? slot->error : NULL,
                 "result=%s webhook=%" PRId64 " delivery=%" PRId64
                 " attempt=%ld ms=%" PRIu64, outcome, slot->webhook,
                 slot->delivery, slot->attempt, slot->took / 1000);
}


static void
referral_webhook_wait(referral_webhook_t *w)
{
    int                  ms;
    unsigned             n;
    struct curl_waitfd   fds[2];

    memset(fds, 0, sizeof(fds));

    n = 1;
    fds[0].fd = w->thread.wake;
    fds[0].events = CURL_WAIT_POLLIN;

    if (referral_pg_connected(&w->pg)) {
        fds[n].fd = PQsocket(w->pg.conn);
        fds[n++].events = CURL_WAIT_POLLIN;
    }

    /* what was begun or became possible since the last look is done first */

    ms = w->look && n == 2 && w->send.busy < REFERRAL_SEND_SLOTS
         ? 0 : REFERRAL_WEBHOOK_LOOK;

    if (!referral_pg_connected(&w->pg)) {
        ms = 100;
    }

    (void) curl_multi_poll(w->send.multi, fds, n, ms, NULL);
}
