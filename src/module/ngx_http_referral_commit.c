
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_commit.h"
#include "ngx_http_referral_cookie.h"
#include "ngx_http_referral_geo.h"
#include "ngx_http_referral_journal.h"
#include "ngx_http_referral_request.h"
#include "ngx_http_referral_stat.h"

#include "referral_args.h"


static void ngx_http_referral_commit_place(ngx_http_referral_ctx_t *ctx,
    referral_ip_t *ip, referral_record_t *rec);
static void ngx_http_referral_commit_record(ngx_http_referral_ctx_t *ctx,
    referral_record_t *rec);
static void ngx_http_referral_commit_person(ngx_http_referral_ctx_t *ctx,
    referral_record_t *rec, uint64_t now);
static void ngx_http_referral_commit_address(ngx_http_referral_ctx_t *ctx,
    referral_ip_t *ip, referral_record_t *rec);
static void ngx_http_referral_commit_referer(ngx_http_request_t *r,
    referral_record_t *rec);
static ngx_uint_t ngx_http_referral_commit_host(ngx_str_t *url,
    ngx_str_t *host);
static void ngx_http_referral_commit_args(ngx_http_referral_ctx_t *ctx,
    referral_record_t *rec);
static ngx_uint_t ngx_http_referral_commit_arg_wanted(ngx_array_t *wanted,
    ngx_str_t *name);
static void ngx_http_referral_commit_token(ngx_http_referral_ctx_t *ctx);


static referral_uuid_source_t  ngx_http_referral_uuids;
static ngx_uint_t              ngx_http_referral_uuids_ready;


void
ngx_http_referral_commit(ngx_http_referral_ctx_t *ctx)
{
    uint64_t            now;
    ngx_time_t         *tp;
    referral_ip_t       ip;
    referral_record_t   rec;

    if (ctx->committed || !ctx->seen || !ctx->judged) {
        return;
    }

    /* before any variable is read: one of them may want the click's id */

    ctx->committed = 1;

    /* <img src="/r/CODE"> on any page of the web is no click */

    ngx_http_referral_read_headers(ctx);

    if (!ctx->document || ngx_http_referral_commit_skip(ctx)) {
        return;
    }

    ngx_http_referral_count(requests[ctx->verdict][ctx->via]);

    tp = ngx_timeofday();
    now = (uint64_t) tp->sec * 1000 + tp->msec;

    if (!ngx_http_referral_uuids_ready
        || referral_uuid7(&ngx_http_referral_uuids, now, ctx->id)
           != REFERRAL_OK)
    {
        ngx_http_referral_count(dropped_error);
        return;
    }

    /* nargs says how many of the arguments, which are half of it, are there */

    ngx_memzero(&rec, offsetof(referral_record_t, args));

    (void) referral_ip_from_sockaddr(&ip, ctx->request->connection->sockaddr);

    ngx_http_referral_commit_record(ctx, &rec);
    ngx_http_referral_commit_place(ctx, &ip, &rec);
    ngx_http_referral_commit_person(ctx, &rec, now);
    ngx_http_referral_commit_address(ctx, &ip, &rec);

    if (ngx_http_referral_journal_append(&rec) != NGX_OK) {
        return;
    }

    ctx->accepted = 1;

    ngx_http_referral_commit_token(ctx);

    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "referral commit: token %ui, duplicate %ui",
                   (ngx_uint_t) ctx->set_token, (ngx_uint_t) ctx->duplicate);
}


/* whoever comes again within seconds is shown the click that is kept */

u_char *
ngx_http_referral_commit_id(ngx_http_referral_ctx_t *ctx)
{
    if (!ctx->id_read) {
        ctx->id_read = 1;

        referral_uuid_text(ctx->duplicate ? ctx->token.last.click : ctx->id,
                           ctx->id_text);
    }

    return ctx->id_text;
}


ngx_uint_t
ngx_http_referral_commit_skip(ngx_http_referral_ctx_t *ctx)
{
    ngx_http_referral_srv_conf_t  *rscf;

    if (!ctx->skip_read) {

        ctx->skip_read = 1;

        rscf = ngx_http_get_module_srv_conf(ctx->request,
                                            ngx_http_referral_module);

        ctx->skip = (ngx_http_test_predicates(ctx->request, rscf->skip)
                     != NGX_OK);
    }

    return ctx->skip;
}


void
ngx_http_referral_commit_geo(ngx_http_referral_ctx_t *ctx)
{
    referral_ip_t  ip;

    if (ctx->geo_read) {
        return;
    }

    (void) referral_ip_from_sockaddr(&ip, ctx->request->connection->sockaddr);

    ngx_http_referral_commit_place(ctx, &ip, NULL);
}


/* from the whole address, before it is masked */

static void
ngx_http_referral_commit_place(ngx_http_referral_ctx_t *ctx,
    referral_ip_t *ip, referral_record_t *rec)
{
    const ngx_http_referral_geo_t  *geo;
    ngx_http_referral_main_conf_t  *rmcf;

    rmcf = ngx_http_get_module_main_conf(ctx->request,
                                         ngx_http_referral_module);

    if (rmcf->geo == NULL || ip->len == 0) {
        ctx->geo_read = 1;
        return;
    }

    geo = ngx_http_referral_geo_get(ip);

    if (rec != NULL) {
        rec->place = geo->place;
    }

    if (ctx->geo_read) {
        return;
    }

    /* the cache's strings may go when the event loop turns */

    ctx->geo_read = 1;
    ctx->asn = geo->asn;

    if (geo->country.len == sizeof(ctx->country_data)) {
        ngx_memcpy(ctx->country_data, geo->country.data,
                   sizeof(ctx->country_data));

        ctx->country.len = sizeof(ctx->country_data);
        ctx->country.data = ctx->country_data;
    }

    if (geo->city.len) {
        ctx->city.data = ngx_pnalloc(ctx->request->pool, geo->city.len);

        if (ctx->city.data != NULL) {
            ngx_memcpy(ctx->city.data, geo->city.data, geo->city.len);
            ctx->city.len = geo->city.len;
        }
    }
}


/* what does not depend on the visitor's consent */

static void
ngx_http_referral_commit_record(ngx_http_referral_ctx_t *ctx,
    referral_record_t *rec)
{
    ngx_http_request_t        *r;
    ngx_http_referral_rule_t  *rule;

    r = ctx->request;

    ngx_memcpy(rec->id, ctx->id, REFERRAL_UUID_LEN);

    rec->type.len = sizeof("click") - 1;
    rec->type.data = (u_char *) "click";

    rec->verdict = ctx->verdict;
    rec->via = ctx->via;
    rec->cache = ctx->cache;
    rec->signals = ctx->signals;

    rec->code.len = ctx->code.len;
    rec->code.data = ctx->code.data;

    rule = ctx->rule;

    if (rule != NULL) {
        rec->code_id = rule->code_id;
        rec->program_id = rule->program_id;
        rec->referrer_id = rule->referrer_id;
        rec->version = rule->version;
        rec->campaign.len = rule->campaign.len;
        rec->campaign.data = rule->campaign.data;
    }

    if (r->headers_in.user_agent) {
        rec->user_agent.len = r->headers_in.user_agent->value.len;
        rec->user_agent.data = r->headers_in.user_agent->value.data;
    }

    rec->host.len = r->headers_in.server.len;
    rec->host.data = r->headers_in.server.data;

    rec->path.len = ctx->path.len;
    rec->path.data = ctx->path.data;

    rec->language.len = ctx->language.len;
    rec->language.data = ctx->language.data;

    rec->destination.len = ctx->target.len;
    rec->destination.data = ctx->target.data;

    ngx_http_referral_commit_referer(r, rec);
    ngx_http_referral_commit_args(ctx, rec);
}


/*
 * What binds the click to a visitor.  Without consent the cookie that came is
 * not even read here: neither a visitor nor an earlier click is told.
 */

static void
ngx_http_referral_commit_person(ngx_http_referral_ctx_t *ctx,
    referral_record_t *rec, uint64_t now)
{
    uint64_t                       then;
    referral_touch_t              *last;
    ngx_http_referral_srv_conf_t  *rscf;

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    if (!ngx_http_referral_cookie_consent(ctx)) {
        rec->signals |= REFERRAL_SIGNAL_NO_CONSENT;
        return;
    }

    if (rscf->cookie->name.len == 0) {
        return;
    }

    ngx_http_referral_cookie_read(ctx);

    if (ctx->has_token) {
        last = &ctx->token.last;
        then = referral_uuid_time(last->click);

        if (last->code_len == ctx->code.len
            && ngx_memcmp(last->code, ctx->code.data, ctx->code.len) == 0
            && now < then + NGX_HTTP_REFERRAL_DUPLICATE)
        {
            ctx->duplicate = 1;

            rec->signals |= REFERRAL_SIGNAL_DUPLICATE;
            rec->has_original = 1;
            ngx_memcpy(rec->original, last->click, REFERRAL_UUID_LEN);
        }
    }

    if (!rscf->cookie->visitor) {
        return;
    }

    if (ctx->has_token && ctx->token.has_visitor) {
        rec->has_visitor = 1;
        ngx_memcpy(rec->visitor, ctx->token.visitor, REFERRAL_UUID_LEN);
        return;
    }

    if (!ngx_http_referral_commit_remembers(ctx)
        || referral_uuid4(&ngx_http_referral_uuids, ctx->new_token.visitor)
           != REFERRAL_OK)
    {
        return;
    }

    ctx->new_token.has_visitor = 1;

    rec->signals |= REFERRAL_SIGNAL_NEW_VISITOR;
    rec->has_visitor = 1;
    ngx_memcpy(rec->visitor, ctx->new_token.visitor, REFERRAL_UUID_LEN);
}


/*
 * HEAD comes from programs that keep no cookie.  A prefetch gets one: the
 * page may be shown to the visitor without another request.
 */

ngx_uint_t
ngx_http_referral_commit_remembers(ngx_http_referral_ctx_t *ctx)
{
    ngx_http_referral_srv_conf_t   *rscf;
    ngx_http_referral_main_conf_t  *rmcf;

    rmcf = ngx_http_get_module_main_conf(ctx->request,
                                         ngx_http_referral_module);
    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    if (rscf->cookie->name.len == 0 || rmcf->keyring == NULL
        || ctx->duplicate || !ngx_http_referral_cookie_consent(ctx)
        || (ctx->signals & REFERRAL_SIGNAL_HEAD))
    {
        return 0;
    }

    /* while Redis is away the database judges later, the visitor is kept */

    return ctx->verdict == REFERRAL_VERDICT_VALID
           || ctx->verdict == REFERRAL_VERDICT_UNVERIFIED;
}


static void
ngx_http_referral_commit_address(ngx_http_referral_ctx_t *ctx,
    referral_ip_t *ip, referral_record_t *rec)
{
    ngx_http_referral_srv_conf_t  *rscf;

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    if (rscf->ip == NGX_HTTP_REFERRAL_IP_OFF
        || !ngx_http_referral_cookie_consent(ctx))
    {
        return;
    }

    if (rscf->ip == NGX_HTTP_REFERRAL_IP_MASK) {
        referral_ip_mask(ip, NGX_HTTP_REFERRAL_V4_PREFIX,
                         NGX_HTTP_REFERRAL_V6_PREFIX);
    }

    rec->ip = *ip;
}


static void
ngx_http_referral_commit_referer(ngx_http_request_t *r,
    referral_record_t *rec)
{
    u_char                        *p;
    ngx_str_t                      host, *value;
    ngx_uint_t                     upper;
    ngx_http_referral_srv_conf_t  *rscf;

    rscf = ngx_http_get_module_srv_conf(r, ngx_http_referral_module);

    if (rscf->referer == NGX_HTTP_REFERRAL_REFERER_OFF
        || r->headers_in.referer == NULL)
    {
        return;
    }

    value = &r->headers_in.referer->value;

    if (rscf->referer == NGX_HTTP_REFERRAL_REFERER_FULL) {
        rec->referer.len = value->len;
        rec->referer.data = value->data;
    }

    upper = ngx_http_referral_commit_host(value, &host);

    if (host.len == 0 || host.len > REFERRAL_RECORD_HOST_LEN) {
        return;
    }

    if (upper) {
        p = ngx_pnalloc(r->pool, host.len);
        if (p == NULL) {
            return;
        }

        ngx_strlow(p, host.data, host.len);
        host.data = p;
    }

    rec->referer_host.len = host.len;
    rec->referer_host.data = host.data;
}


/*
 * Of "scheme://user@host:port/path"; len 0 when there is none.  1 when it may
 * have upper-case letters: browsers send none, and so nothing is copied.
 */

static ngx_uint_t
ngx_http_referral_commit_host(ngx_str_t *url, ngx_str_t *host)
{
    u_char      *p, *last, *start, *port;
    ngx_uint_t   upper, bracket;

    host->len = 0;

    last = url->data + url->len;
    start = ngx_strlchr(url->data, last, ':');

    if (start == NULL || last - start < 3 || start[1] != '/'
        || start[2] != '/')
    {
        return 0;
    }

    start += 3;
    port = NULL;
    upper = 0;
    bracket = 0;

    for (p = start; p < last; p++) {

        /* most are these */

        if ((u_char) (*p - 'a') <= 'z' - 'a') {
            continue;
        }

        switch (*p) {

        case '/':
        case '?':
        case '#':
            last = p;
            break;

        case '@':
            start = p + 1;
            port = NULL;
            bracket = 0;
            break;

        case '[':
            bracket |= (p == start);
            break;

        case ']':
            bracket = 0;
            break;

        case ':':
            if (port == NULL && !bracket) {
                port = p;
            }

            break;

        default:
            upper |= (*p >= 'A' && *p <= 'Z');
            break;
        }
    }

    host->data = start;
    host->len = (port ? port : last) - start;

    return upper;
}


/* those that referral_record_args names, decoded */

static void
ngx_http_referral_commit_args(ngx_http_referral_ctx_t *ctx,
    referral_record_t *rec)
{
    u_char                        *p;
    ngx_str_t                      decoded;
    referral_str_t                 rest, name, value;
    ngx_http_referral_srv_conf_t  *rscf;

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    if (ctx->args.len == 0 || rscf->args->nelts == 0) {
        return;
    }

    rest.len = ctx->args.len;
    rest.data = ctx->args.data;
    p = NULL;

    while (rec->nargs < REFERRAL_RECORD_ARGS
           && referral_args_next(&rest, &name, &value, NULL))
    {
        if (value.len == 0 || name.len == 0) {
            continue;
        }

        if (p == NULL) {

            /* decoding never makes text longer, so one buffer holds all */

            p = ngx_pnalloc(ctx->request->pool, ctx->args.len);
            if (p == NULL) {
                return;
            }
        }

        decoded.data = p;
        decoded.len = referral_args_decode(p, &name);

        if (!ngx_http_referral_commit_arg_wanted(rscf->args, &decoded)) {
            continue;
        }

        rec->args[rec->nargs].name.len = decoded.len;
        rec->args[rec->nargs].name.data = decoded.data;
        p += decoded.len;

        rec->args[rec->nargs].value.len = referral_args_decode(p, &value);
        rec->args[rec->nargs].value.data = p;
        p += rec->args[rec->nargs].value.len;

        rec->nargs++;
    }
}


static ngx_uint_t
ngx_http_referral_commit_arg_wanted(ngx_array_t *wanted, ngx_str_t *name)
{
    size_t       len;
    ngx_str_t   *w;
    ngx_uint_t   i;

    w = wanted->elts;

    for (i = 0; i < wanted->nelts; i++) {

        len = w[i].len;

        if (w[i].data[len - 1] == '*') {
            len--;

            if (name->len < len) {
                continue;
            }

        } else if (name->len != len) {
            continue;
        }

        if (ngx_memcmp(name->data, w[i].data, len) == 0) {
            return 1;
        }
    }

    return 0;
}


static void
ngx_http_referral_commit_token(ngx_http_referral_ctx_t *ctx)
{
    referral_token_t              *token;
    ngx_http_referral_srv_conf_t  *rscf;

    if (!ngx_http_referral_commit_remembers(ctx)) {
        return;
    }

    /* has_visitor is set already when the visitor is new */

    token = &ctx->new_token;

    ngx_memcpy(token->last.code, ctx->code.data, ctx->code.len);
    token->last.code_len = ctx->code.len;
    ngx_memcpy(token->last.click, ctx->id, REFERRAL_UUID_LEN);

    token->first = ctx->has_token ? ctx->token.first : token->last;

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    if (rscf->cookie->visitor && ctx->has_token && ctx->token.has_visitor) {
        token->has_visitor = 1;
        ngx_memcpy(token->visitor, ctx->token.visitor, REFERRAL_UUID_LEN);
    }

    ctx->set_token = 1;
}


ngx_int_t
ngx_http_referral_commit_init_process(ngx_cycle_t *cycle)
{
    if (referral_uuid_source_init(&ngx_http_referral_uuids) != REFERRAL_OK) {

        ngx_log_error(NGX_LOG_CRIT, cycle->log, 0,
                      "the system has no randomness to give: this worker "
                      "records no referral clicks");
        return NGX_ERROR;
    }

    ngx_http_referral_uuids_ready = 1;

    return NGX_OK;
}
