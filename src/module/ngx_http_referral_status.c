
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral_journal.h"
#include "ngx_http_referral_request.h"
#include "ngx_http_referral_stat.h"
#include "ngx_http_referral_status.h"
#include "ngx_http_referral_zone.h"


#define NGX_HTTP_REFERRAL_STATUS_SIZE  32768


/* a counter of the slots; families with labels stand together */

typedef struct {
    const char        *name;
    const char        *label;                      /* NULL: none */
    const char        *value;
    const char        *help;
    size_t             offset;
} ngx_http_referral_counter_t;


static ngx_int_t ngx_http_referral_status_handler(ngx_http_request_t *r);
static void ngx_http_referral_status_sum(ngx_http_referral_stat_t *sum,
    const ngx_http_referral_stat_t *slots);
static u_char *ngx_http_referral_status_head(u_char *p, u_char *last,
    const char *name, const char *type, const char *help);
static u_char *ngx_http_referral_status_requests(u_char *p, u_char *last,
    ngx_http_referral_stat_t *stat);
static u_char *ngx_http_referral_status_counters(u_char *p, u_char *last,
    ngx_http_referral_stat_t *stat);
static u_char *ngx_http_referral_status_tokens(u_char *p, u_char *last,
    ngx_http_referral_stat_t *stat);
static u_char *ngx_http_referral_status_zone(u_char *p, u_char *last,
    ngx_http_referral_zone_conf_t *zcf);
static u_char *ngx_http_referral_status_journal(u_char *p, u_char *last,
    ngx_http_referral_journal_conf_t *jcf);
static u_char *ngx_http_referral_status_gauge(u_char *p, u_char *last,
    const char *name, const char *help, uint64_t value);


#define ngx_http_referral_counter(field)                                      \
    offsetof(ngx_http_referral_stat_t, field)


static ngx_http_referral_counter_t  ngx_http_referral_counters[] = {

    { "zone_lookups_total", "result", "hit",
      "Codes looked up in the zone.",
      ngx_http_referral_counter(zone_hit) },

    { "zone_lookups_total", "result", "stale", NULL,
      ngx_http_referral_counter(zone_stale) },

    { "zone_lookups_total", "result", "miss", NULL,
      ngx_http_referral_counter(zone_miss) },

    { "zone_evicted_total", NULL, NULL,
      "Entries dropped from the zone to make room.",
      ngx_http_referral_counter(zone_evicted) },

    { "zone_no_memory_total", NULL, NULL,
      "Entries that were not stored for want of memory.",
      ngx_http_referral_counter(zone_nomem) },

    { "redis_commands_total", NULL, NULL,
      "Commands sent to Redis.",
      ngx_http_referral_counter(redis_commands) },

    { "redis_replies_total", NULL, NULL,
      "Replies of Redis.",
      ngx_http_referral_counter(redis_replies) },

    { "redis_errors_total", NULL, NULL,
      "Replies of Redis that are errors.",
      ngx_http_referral_counter(redis_errors) },

    { "redis_timeouts_total", NULL, NULL,
      "Commands without a reply in time.",
      ngx_http_referral_counter(redis_timeouts) },

    { "redis_connects_total", NULL, NULL,
      "Connections made to Redis.",
      ngx_http_referral_counter(redis_connects) },

    { "redis_connect_failures_total", NULL, NULL,
      "Connections to Redis that failed or broke.",
      ngx_http_referral_counter(redis_failures) },

    { "redis_circuit_opened_total", NULL, NULL,
      "Times that waiting for Redis was given up.",
      ngx_http_referral_counter(redis_opened) },

    { "journal_records_total", NULL, NULL,
      "Records appended to the journal.",
      ngx_http_referral_counter(journal_records) },

    { "journal_bytes_total", NULL, NULL,
      "Bytes appended to the journal.",
      ngx_http_referral_counter(journal_bytes) },

    { "dropped_total", "reason", "full",
      "Clicks that were not recorded.",
      ngx_http_referral_counter(dropped_full) },

    { "dropped_total", "reason", "noise", NULL,
      ngx_http_referral_counter(dropped_noise) },

    { "dropped_total", "reason", "error", NULL,
      ngx_http_referral_counter(dropped_error) },

    { "limited_total", NULL, NULL,
      "Requests refused with 429 by the miss limit.",
      ngx_http_referral_counter(limited) },

    { "waiters_refused_total", NULL, NULL,
      "Requests over the cap on those that wait for Redis.",
      ngx_http_referral_counter(waiters_refused) },

    { "geo_lookups_total", "result", "found",
      "Addresses looked up in the geo databases.",
      ngx_http_referral_counter(geo_found) },

    { "geo_lookups_total", "result", "missing", NULL,
      ngx_http_referral_counter(geo_missing) },

    { "geo_lookups_total", "result", "error", NULL,
      ngx_http_referral_counter(geo_errors) },

    { NULL, NULL, NULL, NULL, 0 }
};


static ngx_int_t
ngx_http_referral_status_handler(ngx_http_request_t *r)
{
    u_char                         *p, *last;
    ngx_int_t                       rc;
    ngx_buf_t                      *b;
    ngx_chain_t                     out;
    ngx_http_referral_stat_t       *slots, sum;
    ngx_http_referral_main_conf_t  *rmcf;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    rmcf = ngx_http_get_module_main_conf(r, ngx_http_referral_module);

    ngx_memzero(&sum, sizeof(ngx_http_referral_stat_t));

    slots = ngx_http_referral_zone_stat(rmcf->zone);

    if (slots != NULL) {
        ngx_http_referral_status_sum(&sum, slots);
    }

    b = ngx_create_temp_buf(r->pool, NGX_HTTP_REFERRAL_STATUS_SIZE);
    if (b == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    p = b->last;
    last = b->end;

    p = ngx_http_referral_status_requests(p, last, &sum);
    p = ngx_http_referral_status_counters(p, last, &sum);
    p = ngx_http_referral_status_tokens(p, last, &sum);

    /* no server may have the module on */

    if (rmcf->zone != NULL) {
        p = ngx_http_referral_status_zone(p, last, rmcf->zone);
    }

    if (rmcf->journal != NULL) {
        p = ngx_http_referral_status_journal(p, last, rmcf->journal);
    }

    b->last = p;
    b->last_buf = (r == r->main) ? 1 : 0;
    b->last_in_chain = 1;

    if (ngx_http_referral_add_header(r, "Cache-Control", "no-store") == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = b->last - b->pos;

    ngx_str_set(&r->headers_out.content_type,
                "text/plain; version=0.0.4; charset=utf-8");
    r->headers_out.content_type_len = sizeof("text/plain") - 1;
    r->headers_out.content_type_lowcase = NULL;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


static void
ngx_http_referral_status_sum(ngx_http_referral_stat_t *sum,
    const ngx_http_referral_stat_t *slots)
{
    ngx_uint_t           i, n;
    ngx_atomic_t        *dst;
    const ngx_atomic_t  *src;

    /* a slot is counters, then padding */

    for (i = 0; i < NGX_HTTP_REFERRAL_STAT_SLOTS; i++) {
        dst = (ngx_atomic_t *) sum;
        src = (const ngx_atomic_t *) &slots[i];

        for (n = 0;
             n < offsetof(ngx_http_referral_stat_t, padding)
                 / sizeof(ngx_atomic_t);
             n++)
        {
            dst[n] += src[n];
        }
    }
}


static u_char *
ngx_http_referral_status_head(u_char *p, u_char *last, const char *name,
    const char *type, const char *help)
{
    return ngx_slprintf(p, last,
                        "# HELP referral_%s %s\n# TYPE referral_%s %s\n",
                        name, help, name, type);
}


static u_char *
ngx_http_referral_status_requests(u_char *p, u_char *last,
    ngx_http_referral_stat_t *stat)
{
    ngx_uint_t             i, n;
    const referral_str_t  *verdict, *via;

    p = ngx_http_referral_status_head(p, last, "requests_total", "counter",
                                      "Requests with a code.");

    for (i = REFERRAL_VERDICT_NONE + 1; i < REFERRAL_VERDICT_MAX; i++) {
        verdict = referral_verdict_word(i);

        for (n = REFERRAL_VIA_NONE + 1; n < REFERRAL_VIA_MAX; n++) {
            via = referral_via_word(n);

            p = ngx_slprintf(p, last, "referral_requests_total"
                             "{verdict=\"%*s\",via=\"%*s\"} %uA\n",
                             verdict->len, verdict->data, via->len, via->data,
                             stat->requests[i][n]);
        }
    }

    return p;
}


static u_char *
ngx_http_referral_status_counters(u_char *p, u_char *last,
    ngx_http_referral_stat_t *stat)
{
    ngx_atomic_t                 *value;
    ngx_http_referral_counter_t  *c;

    for (c = ngx_http_referral_counters; c->name; c++) {
        value = (ngx_atomic_t *) ((u_char *) stat + c->offset);

        if (c->help != NULL) {
            p = ngx_http_referral_status_head(p, last, c->name, "counter",
                                              c->help);
        }

        if (c->label != NULL) {
            p = ngx_slprintf(p, last, "referral_%s{%s=\"%s\"} %uA\n",
                             c->name, c->label, c->value, *value);

        } else {
            p = ngx_slprintf(p, last, "referral_%s %uA\n", c->name, *value);
        }
    }

    return p;
}


static u_char *
ngx_http_referral_status_tokens(u_char *p, u_char *last,
    ngx_http_referral_stat_t *stat)
{
    ngx_uint_t   i;
    const char  *word;

    p = ngx_http_referral_status_head(p, last, "tokens_total", "counter",
                                      "Cookies read, and those issued.");

    for (i = 0; i <= REFERRAL_TOKEN_EXPIRED; i++) {
        word = referral_token_result_word(i);

        p = ngx_slprintf(p, last, "referral_tokens_total{result=\"%s\"} %uA\n",
                         word, stat->tokens[i]);
    }

    return ngx_slprintf(p, last,
                        "referral_tokens_total{result=\"issued\"} %uA\n",
                        stat->tokens_issued);
}


static u_char *
ngx_http_referral_status_zone(u_char *p, u_char *last,
    ngx_http_referral_zone_conf_t *zcf)
{
    ngx_http_referral_zone_usage_t  usage;

    ngx_memzero(&usage, sizeof(ngx_http_referral_zone_usage_t));

    ngx_http_referral_zone_usage(zcf, &usage);

    p = ngx_http_referral_status_gauge(p, last, "zone_codes",
                                       "Codes in the zone.", usage.codes);
    p = ngx_http_referral_status_gauge(p, last, "zone_absent_codes",
                                       "Codes known as absent in the zone.",
                                       usage.absent);
    p = ngx_http_referral_status_gauge(p, last, "zone_networks",
                                       "Networks under the miss limit.",
                                       usage.networks);
    p = ngx_http_referral_status_gauge(p, last, "zone_used_blocks",
                                       "Blocks of the zone in use.",
                                       usage.used);

    return ngx_http_referral_status_gauge(p, last, "zone_capacity_blocks",
                                          "Blocks of the zone.",
                                          usage.capacity);
}


static u_char *
ngx_http_referral_status_journal(u_char *p, u_char *last,
    ngx_http_referral_journal_conf_t *jcf)
{
    referral_writer_t       *w;
    referral_writer_stat_t   stat;

    p = ngx_http_referral_status_gauge(p, last, "journal_limit_bytes",
                                       "The size given to the journal.",
                                       jcf->size);

    w = ngx_http_referral_journal_writer();

    p = ngx_http_referral_status_gauge(p, last, "journal_open",
                          "Whether the worker that answers has a stream.",
                          w ? 1 : 0);

    if (w == NULL) {
        return p;
    }

    referral_writer_stat(w, &stat);

    p = ngx_http_referral_status_gauge(p, last, "journal_used_bytes",
                          "What all streams hold, as last seen.",
                          stat.journal);

    return ngx_http_referral_status_gauge(p, last, "journal_noise_bytes",
                          "What of it are records that are not valid.",
                          stat.noise);
}


static u_char *
ngx_http_referral_status_gauge(u_char *p, u_char *last, const char *name,
    const char *help, uint64_t value)
{
    p = ngx_http_referral_status_head(p, last, name, "gauge", help);

    return ngx_slprintf(p, last, "referral_%s %uL\n", name, value);
}


char *
ngx_http_referral_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    clcf->handler = ngx_http_referral_status_handler;

    return NGX_CONF_OK;
}
