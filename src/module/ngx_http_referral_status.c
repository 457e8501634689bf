
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral_geo_private.h"
#include "ngx_http_referral_journal.h"
#include "ngx_http_referral_request.h"
#include "ngx_http_referral_stat.h"
#include "ngx_http_referral_status.h"
#include "ngx_http_referral_zone.h"


#define NGX_HTTP_REFERRAL_STATUS_SIZE  65536


typedef struct {
    const char                 *name;
    const char                 *label;             /* NULL: none */
    const char                 *value;
    const char                 *help;              /* of a family's first */
    size_t                      offset;
} ngx_http_referral_counter_t;


typedef struct {
    u_char                     *p;
    u_char                     *last;
    const char                 *name;              /* of the family */
    unsigned                    json:1;
    unsigned                    labels:1;          /* so has the family */
    unsigned                    many:1;            /* not its first sample */
} ngx_http_referral_status_t;


static ngx_int_t ngx_http_referral_status_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_referral_status_format(ngx_http_request_t *r,
    ngx_uint_t *json);
static void ngx_http_referral_status_accept(ngx_str_t *value,
    ngx_uint_t *json, ngx_uint_t *text);
static ngx_uint_t ngx_http_referral_status_quality(u_char *p, u_char *last);
static ngx_uint_t ngx_http_referral_status_is(ngx_str_t *type,
    const char *name);
static void ngx_http_referral_status_sum(ngx_http_referral_stat_t *sum,
    const ngx_http_referral_stat_t *slots);
static void ngx_http_referral_status_render(ngx_http_referral_status_t *s,
    ngx_http_referral_main_conf_t *rmcf);
static void ngx_http_referral_status_requests(ngx_http_referral_status_t *s,
    const ngx_http_referral_stat_t *stat);
static void ngx_http_referral_status_table(ngx_http_referral_status_t *s,
    const ngx_http_referral_counter_t *c, const char *type,
    const ngx_http_referral_stat_t *stat);
static void ngx_http_referral_status_latency(ngx_http_referral_status_t *s,
    const ngx_http_referral_stat_t *stat);
static void ngx_http_referral_status_zone(ngx_http_referral_status_t *s,
    ngx_http_referral_zone_conf_t *zcf);
static void ngx_http_referral_status_journal(ngx_http_referral_status_t *s,
    ngx_http_referral_journal_conf_t *jcf,
    const ngx_http_referral_stat_t *stat);
static void ngx_http_referral_status_geo(ngx_http_referral_status_t *s,
    ngx_http_referral_geo_conf_t *gcf);
static void ngx_http_referral_status_gauge(ngx_http_referral_status_t *s,
    const char *name, const char *help, uint64_t value);
static void ngx_http_referral_status_family(ngx_http_referral_status_t *s,
    const char *name, const char *type, const char *help, ngx_uint_t labels);
static void ngx_http_referral_status_sample(ngx_http_referral_status_t *s,
    const char *label, const char *value, uint64_t n);
static void ngx_http_referral_status_end(ngx_http_referral_status_t *s);
static u_char *ngx_http_referral_status_seconds(u_char *p, uint64_t us);


#define ngx_http_referral_status_counter(field, name, label, value, help)     \
    { name, label, value, help, offsetof(ngx_http_referral_stat_t, field) },

#define ngx_http_referral_status_now(field, name, help)                       \
    { name, NULL, NULL, help, offsetof(ngx_http_referral_stat_t, field) },


static const ngx_http_referral_counter_t  ngx_http_referral_counters[] = {
    NGX_HTTP_REFERRAL_COUNTERS(ngx_http_referral_status_counter)
    { NULL, NULL, NULL, NULL, 0 }
};


static const ngx_http_referral_counter_t  ngx_http_referral_gauges[] = {
    NGX_HTTP_REFERRAL_GAUGES(ngx_http_referral_status_now)
    { NULL, NULL, NULL, NULL, 0 }
};


static ngx_int_t
ngx_http_referral_status_handler(ngx_http_request_t *r)
{
    ngx_int_t                       rc;
    ngx_buf_t                      *b;
    ngx_uint_t                      json;
    ngx_chain_t                     out;
    ngx_http_referral_status_t      s;
    ngx_http_referral_main_conf_t  *rmcf;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_referral_status_format(r, &json) != NGX_OK) {
        return NGX_HTTP_BAD_REQUEST;
    }

    b = ngx_create_temp_buf(r->pool, NGX_HTTP_REFERRAL_STATUS_SIZE);
    if (b == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rmcf = ngx_http_get_module_main_conf(r, ngx_http_referral_module);

    ngx_memzero(&s, sizeof(ngx_http_referral_status_t));

    s.p = b->last;
    s.last = b->end;
    s.json = json;

    ngx_http_referral_status_render(&s, rmcf);

    b->last = s.p;
    b->last_buf = (r == r->main) ? 1 : 0;
    b->last_in_chain = 1;

    if (ngx_http_referral_add_header(r, "Cache-Control", "no-store") == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = b->last - b->pos;

    if (json) {
        ngx_str_set(&r->headers_out.content_type, "application/json");
        r->headers_out.content_type_len = r->headers_out.content_type.len;

    } else {
        ngx_str_set(&r->headers_out.content_type,
                    "text/plain; version=0.0.4; charset=utf-8");
        r->headers_out.content_type_len = sizeof("text/plain") - 1;
    }

    r->headers_out.content_type_lowcase = NULL;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


/*
 * The argument "format" decides; without it, what the client likes better.
 * Prometheus asks for OpenMetrics first and takes the text as well.
 */

static ngx_int_t
ngx_http_referral_status_format(ngx_http_request_t *r, ngx_uint_t *json)
{
    ngx_str_t         value;
    ngx_uint_t        i, likes_json, likes_text;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    if (ngx_http_arg(r, (u_char *) "format", 6, &value) == NGX_OK) {

        *json = (value.len == 4 && ngx_memcmp(value.data, "json", 4) == 0);

        return (*json || (value.len == 10
                          && ngx_memcmp(value.data, "prometheus", 10) == 0))
               ? NGX_OK : NGX_DECLINED;
    }

    likes_json = 0;
    likes_text = 0;

    for (part = &r->headers_in.headers.part; part; part = part->next) {

        h = part->elts;

        for (i = 0; i < part->nelts; i++) {
            if (h[i].key.len == sizeof("accept") - 1
                && ngx_memcmp(h[i].lowcase_key, "accept", 6) == 0)
            {
                ngx_http_referral_status_accept(&h[i].value, &likes_json,
                                                &likes_text);
            }
        }
    }

    *json = (likes_json >= likes_text);

    return NGX_OK;
}


static void
ngx_http_referral_status_accept(ngx_str_t *value, ngx_uint_t *json,
    ngx_uint_t *text)
{
    u_char     *p, *last, *end;
    ngx_str_t   type;

    p = value->data;
    last = p + value->len;

    for ( /* void */ ; p < last; p = end + 1) {

        end = ngx_strlchr(p, last, ',');
        if (end == NULL) {
            end = last;
        }

        while (p < end && (*p == ' ' || *p == '\t')) {
            p++;
        }

        type.data = p;

        while (p < end && *p != ';' && *p != ' ' && *p != '\t') {
            p++;
        }

        type.len = p - type.data;

        if (ngx_http_referral_status_is(&type, "application/json")) {
            *json = ngx_max(*json, ngx_http_referral_status_quality(p, end));

        } else if (ngx_http_referral_status_is(&type, "text/plain")
                   || ngx_http_referral_status_is(&type,
                                            "application/openmetrics-text"))
        {
            *text = ngx_max(*text, ngx_http_referral_status_quality(p, end));
        }
    }
}


/* of ";version=0.0.4;q=0.5": in thousandths, 1000 without a q */

static ngx_uint_t
ngx_http_referral_status_quality(u_char *p, u_char *last)
{
    ngx_int_t   n;
    u_char     *end;

    for ( /* void */ ; p < last; p = end) {

        while (p < last && (*p == ';' || *p == ' ' || *p == '\t')) {
            p++;
        }

        end = ngx_strlchr(p, last, ';');
        if (end == NULL) {
            end = last;
        }

        if (end - p < 3 || (*p | 0x20) != 'q' || p[1] != '=') {
            continue;
        }

        p += 2;
        last = end;

        while (last > p && (last[-1] == ' ' || last[-1] == '\t')) {
            last--;
        }

        n = ngx_atofp(p, last - p, 3);

        return (n == NGX_ERROR) ? 0 : ngx_min(n, 1000);
    }

    return 1000;
}


static ngx_uint_t
ngx_http_referral_status_is(ngx_str_t *type, const char *name)
{
    return type->len == ngx_strlen(name)
           && ngx_strncasecmp(type->data, (u_char *) name, type->len) == 0;
}


static void
ngx_http_referral_status_sum(ngx_http_referral_stat_t *sum,
    const ngx_http_referral_stat_t *slots)
{
    ngx_uint_t           i, n, end;
    ngx_atomic_t        *dst;
    const ngx_atomic_t  *src;

    dst = (ngx_atomic_t *) sum;

    for (i = 0; i < NGX_HTTP_REFERRAL_STAT_SLOTS; i++) {
        src = (const ngx_atomic_t *) &slots[i];

        end = offsetof(ngx_http_referral_stat_t, pid);

        if (slots[i].pid != 0) {
            end = offsetof(ngx_http_referral_stat_t, padding);
        }

        for (n = 0; n < end / sizeof(ngx_atomic_t); n++) {
            dst[n] += src[n];
        }
    }

    /* no sums: how many, and the earliest */

    sum->pid = 0;
    sum->unsynced = 0;

    for (i = 0; i < NGX_HTTP_REFERRAL_STAT_SLOTS; i++) {

        if (slots[i].pid == 0) {
            continue;
        }

        sum->pid++;

        if (slots[i].unsynced != 0
            && (sum->unsynced == 0 || slots[i].unsynced < sum->unsynced))
        {
            sum->unsynced = slots[i].unsynced;
        }
    }
}


static void
ngx_http_referral_status_render(ngx_http_referral_status_t *s,
    ngx_http_referral_main_conf_t *rmcf)
{
    ngx_http_referral_stat_t  *slots, sum;

    ngx_memzero(&sum, sizeof(ngx_http_referral_stat_t));

    slots = ngx_http_referral_zone_stat(rmcf->zone);

    if (slots != NULL) {
        ngx_http_referral_status_sum(&sum, slots);
    }

    if (s->json) {
        *s->p++ = '{';
    }

    ngx_http_referral_status_requests(s, &sum);
    ngx_http_referral_status_table(s, ngx_http_referral_counters, "counter",
                                   &sum);
    ngx_http_referral_status_latency(s, &sum);
    ngx_http_referral_status_gauge(s, "workers", "Workers of nginx that live.",
                                   sum.pid);
    ngx_http_referral_status_table(s, ngx_http_referral_gauges, "gauge",
                                   &sum);

    /* no server may have the module on */

    if (rmcf->zone != NULL) {
        ngx_http_referral_status_zone(s, rmcf->zone);
    }

    if (rmcf->journal != NULL) {
        ngx_http_referral_status_journal(s, rmcf->journal, &sum);
    }

    if (rmcf->geo != NULL) {
        ngx_http_referral_status_geo(s, rmcf->geo);
    }

    ngx_http_referral_status_end(s);

    if (s->json) {
        s->p = ngx_slprintf(s->p, s->last, "}\n");
    }
}


static void
ngx_http_referral_status_requests(ngx_http_referral_status_t *s,
    const ngx_http_referral_stat_t *stat)
{
    ngx_uint_t   i, n;
    const char  *verdict, *via;

    ngx_http_referral_status_family(s, "requests_total", "counter",
                                    "Requests with a code.", 1);

    for (i = REFERRAL_VERDICT_NONE + 1; i < REFERRAL_VERDICT_MAX; i++) {
        verdict = (const char *) referral_verdict_word(i)->data;

        if (s->json) {
            s->p = ngx_slprintf(s->p, s->last, "%s\"%s\":{",
                                s->many ? "," : "", verdict);
            s->many = 0;
        }

        for (n = REFERRAL_VIA_NONE + 1; n < REFERRAL_VIA_MAX; n++) {
            via = (const char *) referral_via_word(n)->data;

            if (s->json) {
                ngx_http_referral_status_sample(s, "via", via,
                                                stat->requests[i][n]);
                continue;
            }

            s->p = ngx_slprintf(s->p, s->last, "referral_%s{verdict=\"%s\","
                                "via=\"%s\"} %uA\n", s->name, verdict, via,
                                stat->requests[i][n]);
        }

        if (s->json) {
            s->p = ngx_slprintf(s->p, s->last, "}");
        }
    }
}


static void
ngx_http_referral_status_table(ngx_http_referral_status_t *s,
    const ngx_http_referral_counter_t *c, const char *type,
    const ngx_http_referral_stat_t *stat)
{
    const ngx_atomic_t  *n;

    for ( /* void */ ; c->name; c++) {
        n = (const ngx_atomic_t *) ((const u_char *) stat + c->offset);

        if (c->help != NULL) {
            ngx_http_referral_status_family(s, c->name, type, c->help,
                                            c->label != NULL);
        }

        ngx_http_referral_status_sample(s, c->label, c->value, *n);
    }
}


static void
ngx_http_referral_status_latency(ngx_http_referral_status_t *s,
    const ngx_http_referral_stat_t *stat)
{
    u_char      le[NGX_INT64_LEN + sizeof(".000000")], *p;
    uint64_t    count;
    ngx_uint_t  i;

    ngx_http_referral_status_family(s, "redis_latency_seconds", "histogram",
                                    "Time from a command to its reply.", 1);
    count = 0;

    if (s->json) {
        s->p = ngx_slprintf(s->p, s->last, "\"buckets\":{");
    }

    for (i = 0; i < NGX_HTTP_REFERRAL_STAT_BUCKETS; i++) {
        count += stat->latency[i];

        if (i < NGX_HTTP_REFERRAL_STAT_BUCKETS - 1) {
            p = ngx_http_referral_status_seconds(le,
                                         ngx_http_referral_stat_bounds[i]);

            while (p[-1] == '0') {
                p--;
            }

            if (p[-1] == '.') {
                p--;
            }

        } else {
            p = ngx_cpymem(le, "+Inf", 4);
        }

        *p = '\0';

        if (s->json) {
            ngx_http_referral_status_sample(s, "le", (char *) le, count);
            continue;
        }

        s->p = ngx_slprintf(s->p, s->last, "referral_%s_bucket{le=\"%s\"} "
                            "%uL\n", s->name, le, count);
    }

    p = ngx_http_referral_status_seconds(le, stat->latency_sum);
    *p = '\0';

    if (s->json) {
        s->p = ngx_slprintf(s->p, s->last, "},\"sum\":%s,\"count\":%uL", le,
                            count);
        return;
    }

    s->p = ngx_slprintf(s->p, s->last, "referral_%s_sum %s\n"
                        "referral_%s_count %uL\n", s->name, le, s->name,
                        count);
}


static void
ngx_http_referral_status_zone(ngx_http_referral_status_t *s,
    ngx_http_referral_zone_conf_t *zcf)
{
    ngx_http_referral_zone_usage_t  usage;

    ngx_memzero(&usage, sizeof(ngx_http_referral_zone_usage_t));

    ngx_http_referral_zone_usage(zcf, &usage);

    ngx_http_referral_status_gauge(s, "zone_codes", "Codes in the zone.",
                                   usage.codes);
    ngx_http_referral_status_gauge(s, "zone_absent_codes",
                                   "Codes known as absent in the zone.",
                                   usage.absent);
    ngx_http_referral_status_gauge(s, "zone_networks",
                                   "Networks under the miss limit.",
                                   usage.networks);
    ngx_http_referral_status_gauge(s, "zone_used_blocks",
                                   "Blocks of the zone in use.", usage.used);
    ngx_http_referral_status_gauge(s, "zone_capacity_blocks",
                                   "Blocks of the zone.", usage.capacity);
    ngx_http_referral_status_gauge(s, "zone_covered",
                                   "Whether each change would be heard.",
                                   usage.covered);
    ngx_http_referral_status_gauge(s, "zone_epoch",
                                   "Times that entries became unsure, and 1.",
                                   usage.epoch);
    ngx_http_referral_status_gauge(s, "zone_off_members",
                                   "Programs and referrers switched off.",
                                   usage.off);
}


static void
ngx_http_referral_status_journal(ngx_http_referral_status_t *s,
    ngx_http_referral_journal_conf_t *jcf,
    const ngx_http_referral_stat_t *stat)
{
    u_char                   age[NGX_INT64_LEN + sizeof(".000000")];
    uint64_t                 ms, now;
    referral_writer_t       *w;
    referral_writer_stat_t   ws;

    ngx_http_referral_status_gauge(s, "journal_limit_bytes",
                                   "The size given to the journal.",
                                   jcf->size);

    if (jcf->sync) {
        now = ngx_http_referral_stat_clock() / 1000;
        ms = (stat->unsynced && now > stat->unsynced) ? now - stat->unsynced
                                                      : 0;

        *ngx_http_referral_status_seconds(age, ms * 1000) = '\0';

        ngx_http_referral_status_family(s, "journal_sync_age_seconds", "gauge",
            "How long the oldest record that is not on disk waits.", 0);

        s->p = s->json ? ngx_slprintf(s->p, s->last, "%s", age)
                       : ngx_slprintf(s->p, s->last, "referral_%s %s\n",
                                      s->name, age);
    }

    w = ngx_http_referral_journal_writer();

    if (w == NULL) {
        return;
    }

    referral_writer_stat(w, &ws);

    ngx_http_referral_status_gauge(s, "journal_used_bytes",
                          "What all streams hold, as last seen.", ws.journal);

    ngx_http_referral_status_gauge(s, "journal_free_bytes",
                          "What is left of the size, as last seen.",
                          (uint64_t) jcf->size > ws.journal
                          ? (uint64_t) jcf->size - ws.journal : 0);

    ngx_http_referral_status_gauge(s, "journal_noise_bytes",
                          "What of it are records that are not valid.",
                          ws.noise);
}


/* those of the worker that answers; all read the same files */

static void
ngx_http_referral_status_geo(ngx_http_referral_status_t *s,
    ngx_http_referral_geo_conf_t *gcf)
{
    u_char                      *p;
    ngx_uint_t                   i, c, open;
    ngx_http_referral_geo_db_t  *db;
    u_char                       name[NGX_MAX_PATH * 2 + 1];

    db = gcf->dbs.elts;
    open = 0;

    ngx_http_referral_status_family(s, "geo_build_timestamp_seconds", "gauge",
        "When a geo database in use was built, Unix time.", 1);

    for (i = 0; i < gcf->dbs.nelts; i++) {

        if (!db[i].open) {
            continue;
        }

        open++;
        p = name;

        for (c = 0; c < db[i].path.len && c < NGX_MAX_PATH; c++) {

            if (db[i].path.data[c] == '"' || db[i].path.data[c] == '\\') {
                *p++ = '\\';
            }

            /* neither format takes them as they are */

            *p++ = (db[i].path.data[c] < ' ' || db[i].path.data[c] > '~')
                   ? '?' : db[i].path.data[c];
        }

        *p = '\0';

        ngx_http_referral_status_sample(s, "database", (char *) name,
                                        db[i].mmdb.metadata.build_epoch);
    }

    ngx_http_referral_status_gauge(s, "geo_databases",
                                   "Geo databases configured.",
                                   gcf->dbs.nelts);
    ngx_http_referral_status_gauge(s, "geo_open_databases",
                                   "Geo databases in use.", open);
}


static void
ngx_http_referral_status_gauge(ngx_http_referral_status_t *s,
    const char *name, const char *help, uint64_t value)
{
    ngx_http_referral_status_family(s, name, "gauge", help, 0);
    ngx_http_referral_status_sample(s, NULL, NULL, value);
}


/* in JSON: a member, an object when there are labels */

static void
ngx_http_referral_status_family(ngx_http_referral_status_t *s,
    const char *name, const char *type, const char *help, ngx_uint_t labels)
{
    ngx_http_referral_status_end(s);

    if (s->json) {
        s->p = ngx_slprintf(s->p, s->last, "%s\n\"%s\":%s",
                            s->name ? "," : "", name, labels ? "{" : "");

    } else {
        s->p = ngx_slprintf(s->p, s->last, "# HELP referral_%s %s\n"
                            "# TYPE referral_%s %s\n", name, help, name, type);
    }

    s->name = name;
    s->labels = labels;
    s->many = 0;
}


static void
ngx_http_referral_status_sample(ngx_http_referral_status_t *s,
    const char *label, const char *value, uint64_t n)
{
    if (s->json && label == NULL) {
        s->p = ngx_slprintf(s->p, s->last, "%uL", n);

    } else if (s->json) {
        s->p = ngx_slprintf(s->p, s->last, "%s\"%s\":%uL",
                            s->many ? "," : "", value, n);

    } else if (label == NULL) {
        s->p = ngx_slprintf(s->p, s->last, "referral_%s %uL\n", s->name, n);

    } else {
        s->p = ngx_slprintf(s->p, s->last, "referral_%s{%s=\"%s\"} %uL\n",
                            s->name, label, value, n);
    }

    s->many = 1;
}


static void
ngx_http_referral_status_end(ngx_http_referral_status_t *s)
{
    if (s->json && s->labels) {
        s->p = ngx_slprintf(s->p, s->last, "}");
    }

    s->labels = 0;
}


static u_char *
ngx_http_referral_status_seconds(u_char *p, uint64_t us)
{
    return ngx_sprintf(p, "%uL.%06uL", us / 1000000, us % 1000000);
}


char *
ngx_http_referral_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    clcf->handler = ngx_http_referral_status_handler;

    return NGX_CONF_OK;
}
