
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_capture.h"
#include "ngx_http_referral_commit.h"
#include "ngx_http_referral_geo.h"
#include "ngx_http_referral_lookup.h"
#include "ngx_http_referral_request.h"

#include "referral_args.h"
#include "referral_utf8.h"


/* a longer value is no code, however it is encoded */

#define NGX_HTTP_REFERRAL_VALUE_LEN  (REFERRAL_CODE_LEN * 3 + 1)


static ngx_int_t ngx_http_referral_capture(ngx_http_request_t *r,
    ngx_array_t *params);
static ngx_uint_t ngx_http_referral_capture_param(ngx_http_request_t *r,
    ngx_array_t *params, u_char *buf, size_t *len);
static ngx_int_t ngx_http_referral_capture_lookup(
    ngx_http_referral_ctx_t *ctx);
static void ngx_http_referral_capture_wake(ngx_http_referral_ctx_t *ctx);
static ngx_int_t ngx_http_referral_strip_location(
    ngx_http_referral_ctx_t *ctx, ngx_array_t *params, ngx_str_t *location);


/*
 * The earliest moment: a "return", "rewrite" or "try_files" of the site must
 * not lose the parameter.  Nothing is recorded here, because locations,
 * "set", "deny" and "limit_req" have not spoken yet.
 */

ngx_int_t
ngx_http_referral_capture_handler(ngx_http_request_t *r)
{
    ngx_http_referral_srv_conf_t  *rscf;

    /* all that a page without arguments has to do with us */

    if (r->args.len == 0 || r != r->main) {
        return NGX_DECLINED;
    }

    rscf = ngx_http_get_module_srv_conf(r, ngx_http_referral_module);

    if (!rscf->enable) {
        return NGX_DECLINED;
    }

    return ngx_http_referral_capture(r, rscf->params);
}


static ngx_int_t
ngx_http_referral_capture(ngx_http_request_t *r, ngx_array_t *params)
{
    u_char                    buf[NGX_HTTP_REFERRAL_VALUE_LEN];
    size_t                    len;
    referral_ip_t             ip;
    ngx_http_referral_ctx_t  *ctx;

    ctx = ngx_http_referral_get_ctx(r);

    if (ctx != NULL && ctx->captured) {

        /* any write event of the connection may bring us here again */

        return ctx->waiting ? NGX_DONE : NGX_DECLINED;
    }

    if (r->internal || !(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_DECLINED;
    }

    if (!ngx_http_referral_capture_param(r, params, buf, &len)) {
        return NGX_DECLINED;
    }

    ctx = ngx_http_referral_make_ctx(r);
    if (ctx == NULL) {
        return NGX_DECLINED;
    }

    ctx->captured = 1;
    ctx->path = r->uri;
    ctx->args = r->args;

    ngx_http_referral_capture_code(ctx, REFERRAL_VIA_PARAMETER, buf, len);

    /* what is expected by now is fetched while the headers are read */

    (void) referral_ip_from_sockaddr(&ip, r->connection->sockaddr);

    ngx_http_referral_geo_expect(&ip);

    ngx_http_referral_read_headers(ctx);

    if (!ctx->document) {

        /* an image or a script of a page: what was captured is no click */

        ctx->seen = 0;
        return NGX_DECLINED;
    }

    ngx_http_referral_lookup_expect_entry(ctx);
    ngx_http_referral_geo_expect_place(&ip);

    return ngx_http_referral_capture_lookup(ctx);
}


/* names in the order of the directive, the first value that is not empty */

static ngx_uint_t
ngx_http_referral_capture_param(ngx_http_request_t *r, ngx_array_t *params,
    u_char *buf, size_t *len)
{
    ngx_uint_t       i;
    referral_str_t  *names, rest, name, value;

    names = params->elts;

    for (i = 0; i < params->nelts; i++) {

        rest.len = r->args.len;
        rest.data = r->args.data;

        while (referral_args_next(&rest, &name, &value, NULL)) {

            if (value.len == 0 || !referral_args_name_is(&name, &names[i])) {
                continue;
            }

            value.len = ngx_min(value.len, NGX_HTTP_REFERRAL_VALUE_LEN);

            *len = referral_args_decode(buf, &value);

            return 1;
        }
    }

    return 0;
}


void
ngx_http_referral_capture_code(ngx_http_referral_ctx_t *ctx,
    referral_via_e via, u_char *data, size_t len)
{
    ssize_t  n;

    ctx->via = via;
    ctx->seen = 1;
    ctx->judged = 0;
    ctx->busy = 0;
    ctx->verdict = REFERRAL_VERDICT_NONE;
    ctx->cache = REFERRAL_CACHE_NONE;
    ctx->rule = NULL;
    ctx->code.data = ctx->code_data;

    n = referral_code_fold(data, len, ctx->code_data);

    if (n >= 0) {
        ctx->code.len = n;
        ngx_http_referral_lookup_expect(ctx);
        return;
    }

    /* kept as it was sent, for those who have to find out what went wrong */

    len = referral_utf8_cut(data, len, REFERRAL_CODE_LEN);
    ngx_memcpy(ctx->code_data, data, len);

    ctx->code.len = len;
    ctx->verdict = REFERRAL_VERDICT_MALFORMED;
    ctx->judged = 1;
}


static ngx_int_t
ngx_http_referral_capture_lookup(ngx_http_referral_ctx_t *ctx)
{
    ngx_int_t  rc;

    if (ctx->judged) {
        return NGX_DECLINED;
    }

    ctx->wake = ngx_http_referral_capture_wake;

    rc = ngx_http_referral_lookup(ctx);

    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "referral capture: %i, verdict %ui",
                   rc, (ngx_uint_t) ctx->verdict);

    switch (rc) {

    case NGX_AGAIN:
        if (ngx_http_referral_capture_wait(ctx) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ctx->waiting = 1;

        /* the rewrite phase takes NGX_AGAIN for an answer */

        return NGX_DONE;

    case NGX_BUSY:

        /* in a /r/ location another code wins, and that may be a hit */

        ctx->limited = 1;

        return NGX_DECLINED;

    default: /* NGX_OK, NGX_ERROR: the visitor gets the page in any case */
        return NGX_DECLINED;
    }
}


ngx_int_t
ngx_http_referral_limited_handler(ngx_http_request_t *r)
{
    ngx_http_referral_ctx_t       *ctx;
    ngx_http_referral_loc_conf_t  *rlcf;

    if (r != r->main) {
        return NGX_DECLINED;
    }

    ctx = ngx_http_referral_get_ctx(r);

    if (ctx == NULL || !ctx->limited) {
        return NGX_DECLINED;
    }

    /* once: the page for 429 comes here too */

    ctx->limited = 0;

    rlcf = ngx_http_get_module_loc_conf(r, ngx_http_referral_module);

    if (rlcf->redirect) {
        return NGX_DECLINED;
    }

    (void) ngx_http_referral_add_header(r, "Retry-After", "1");

    return NGX_HTTP_TOO_MANY_REQUESTS;
}


ngx_int_t
ngx_http_referral_capture_wait(ngx_http_referral_ctx_t *ctx)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;

    if (c->read->ready) {
        ngx_post_event(c->read, &ngx_posted_events);

    } else if (ngx_handle_read_event(c->read, 0) != NGX_OK) {

        /* the answer goes out now, perhaps slowly: no wake may come then */

        ngx_http_referral_lookup_cancel(ctx);
        return NGX_ERROR;
    }

    r->read_event_handler = ngx_http_test_reading;
    r->write_event_handler = ngx_http_request_empty_handler;

    return NGX_OK;
}


static void
ngx_http_referral_capture_wake(ngx_http_referral_ctx_t *ctx)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, c->log, 0,
                   "referral capture wakes: verdict %ui",
                   (ngx_uint_t) ctx->verdict);

    ctx->waiting = 0;

    r->read_event_handler = ngx_http_block_reading;
    r->write_event_handler = ngx_http_core_run_phases;

    ngx_http_core_run_phases(r);

    ngx_http_run_posted_requests(c);
}


/*
 * After access and limit_req, so that a page which is denied stays denied.
 * A "return" of the server answers earlier, and the parameter stays.
 */

ngx_int_t
ngx_http_referral_strip_handler(ngx_http_request_t *r)
{
    ngx_str_t                      location;
    ngx_http_referral_ctx_t       *ctx;
    ngx_http_referral_loc_conf_t  *rlcf;
    ngx_http_referral_srv_conf_t  *rscf;

    rscf = ngx_http_get_module_srv_conf(r, ngx_http_referral_module);

    if (!rscf->strip || r != r->main || !(r->method & NGX_HTTP_GET)
        || r->error_page || r->err_status)
    {
        return NGX_DECLINED;
    }

    ctx = ngx_http_referral_get_ctx(r);

    if (ctx == NULL || !ctx->captured || !ctx->seen || ctx->strip) {
        return NGX_DECLINED;
    }

    rlcf = ngx_http_get_module_loc_conf(r, ngx_http_referral_module);

    if (rlcf->redirect || ngx_http_referral_commit_skip(ctx)) {
        return NGX_DECLINED;
    }

    if (ngx_http_referral_strip_location(ctx, rscf->params, &location)
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->strip = 1;

    ngx_http_finalize_request(r, ngx_http_referral_send_redirect(r,
                                                                 &location));

    return NGX_DONE;
}


/*
 * The path as it was sent.  "//host" and "/\host" would lead a browser to
 * another site, so leading slashes of either kind become one.
 */

static ngx_int_t
ngx_http_referral_strip_location(ngx_http_referral_ctx_t *ctx,
    ngx_array_t *params, ngx_str_t *location)
{
    u_char          *p, *last, *dst;
    referral_str_t   args;

    p = ctx->request->unparsed_uri.data;
    last = p + ctx->request->unparsed_uri.len;

    while (p < last && (*p == '/' || *p == '\\')) {
        p++;
    }

    dst = ngx_pnalloc(ctx->request->pool,
                      1 + (last - p) + 1 + ctx->args.len);
    if (dst == NULL) {
        return NGX_ERROR;
    }

    location->data = dst;
    *dst++ = '/';

    while (p < last && *p != '?' && *p != '#') {
        *dst++ = *p++;
    }

    args.len = ctx->args.len;
    args.data = ctx->args.data;

    args.len = referral_args_without(dst + 1, &args, params->elts,
                                     params->nelts);
    if (args.len) {
        *dst = '?';
        dst += 1 + args.len;
    }

    location->len = dst - location->data;

    return NGX_OK;
}
