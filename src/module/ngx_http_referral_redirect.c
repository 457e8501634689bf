
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_capture.h"
#include "ngx_http_referral_commit.h"
#include "ngx_http_referral_geo.h"
#include "ngx_http_referral_lookup.h"
#include "ngx_http_referral_redirect.h"
#include "ngx_http_referral_request.h"


/* nginx has no name for it */

#define NGX_HTTP_REFERRAL_GONE  410


static void ngx_http_referral_redirect_asked(ngx_http_referral_ctx_t *ctx);
static ngx_int_t ngx_http_referral_redirect_code(ngx_http_request_t *r,
    ngx_str_t *code);
static ngx_int_t ngx_http_referral_redirect_lookup(
    ngx_http_referral_ctx_t *ctx);
static void ngx_http_referral_redirect_wake(ngx_http_referral_ctx_t *ctx);
static ngx_int_t ngx_http_referral_redirect_answer(
    ngx_http_referral_ctx_t *ctx);
static ngx_int_t ngx_http_referral_redirect_valid(
    ngx_http_referral_ctx_t *ctx);
static ngx_int_t ngx_http_referral_redirect_other(
    ngx_http_referral_ctx_t *ctx);
static ngx_uint_t ngx_http_referral_redirect_fallback(ngx_http_request_t *r,
    ngx_str_t *url);
static ngx_int_t ngx_http_referral_redirect_check(ngx_str_t *url,
    char *error);


ngx_int_t
ngx_http_referral_redirect_handler(ngx_http_request_t *r)
{
    ngx_str_t                 code;
    referral_ip_t             ip;
    ngx_http_referral_ctx_t  *ctx;

    if (r != r->main) {
        return NGX_HTTP_NOT_FOUND;
    }

    ctx = ngx_http_referral_make_ctx(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->redirect = 1;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {

        if (ngx_http_referral_add_header(r, "Allow", "GET, HEAD") == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return NGX_HTTP_NOT_ALLOWED;
    }

    if (ngx_http_referral_redirect_code(r, &code) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    /*
     * The path's code wins over a parameter's, which was looked up already.
     * A request that comes here from an error page or "try_files" may have
     * been recorded before: it is answered, and the id is not shown again.
     */

    ctx->accepted = 0;
    ctx->duplicate = 0;

    ngx_http_referral_capture_code(ctx, REFERRAL_VIA_REDIRECT, code.data,
                                   code.len);

    (void) referral_ip_from_sockaddr(&ip, r->connection->sockaddr);

    ngx_http_referral_geo_expect(&ip);

    /* what is expected by now is fetched while the headers are read */

    ngx_http_referral_redirect_asked(ctx);

    ngx_http_referral_lookup_expect_entry(ctx);
    ngx_http_referral_geo_expect_place(&ip);

    return ngx_http_referral_redirect_lookup(ctx);
}


/* what the visitor asked for, when no parameter made us look before */

static void
ngx_http_referral_redirect_asked(ngx_http_referral_ctx_t *ctx)
{
    u_char              *src, *dst, *p, *last;
    ngx_http_request_t  *r;

    r = ctx->request;

    ngx_http_referral_read_headers(ctx);

    if (ctx->path.len) {
        return;
    }

    ctx->path = r->uri;
    ctx->args = r->args;

    if (r->valid_unparsed_uri) {
        return;
    }

    /* rewritten on its way here */

    p = r->unparsed_uri.data;
    last = p + r->unparsed_uri.len;

    while (p < last && *p != '?') {
        p++;
    }

    dst = ngx_pnalloc(r->pool, r->unparsed_uri.len);
    if (dst == NULL) {
        return;
    }

    ctx->path.data = dst;
    src = r->unparsed_uri.data;

    ngx_unescape_uri(&dst, &src, p - src, 0);

    ctx->path.len = dst - ctx->path.data;

    if (p < last) {
        p++;
    }

    ctx->args.data = p;
    ctx->args.len = last - p;
}


static ngx_int_t
ngx_http_referral_redirect_code(ngx_http_request_t *r, ngx_str_t *code)
{
    ngx_http_core_loc_conf_t      *clcf;
    ngx_http_referral_loc_conf_t  *rlcf;

    rlcf = ngx_http_get_module_loc_conf(r, ngx_http_referral_module);

    if (rlcf->code != NULL) {
        return ngx_http_complex_value(r, rlcf->code, code);
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    *code = r->uri;

    if (code->len < clcf->name.len) {
        code->len = 0;
        return NGX_OK;
    }

    code->data += clcf->name.len;
    code->len -= clcf->name.len;

    /* "location /r" leaves a slash in front, people leave one behind */

    if (code->len && code->data[0] == '/') {
        code->data++;
        code->len--;
    }

    if (code->len && code->data[code->len - 1] == '/') {
        code->len--;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_redirect_lookup(ngx_http_referral_ctx_t *ctx)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    r = ctx->request;

    if (ctx->judged) {
        return ngx_http_referral_redirect_answer(ctx);
    }

    ctx->wake = ngx_http_referral_redirect_wake;

    rc = ngx_http_referral_lookup(ctx);

    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "referral redirect: %i, verdict %ui",
                   rc, (ngx_uint_t) ctx->verdict);

    switch (rc) {

    case NGX_OK:
        return ngx_http_referral_redirect_answer(ctx);

    case NGX_AGAIN:

        if (ngx_http_referral_capture_wait(ctx) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ctx->waiting = 1;
        r->main->count++;

        return NGX_DONE;

    case NGX_BUSY:
        ctx->busy = 1;

        (void) ngx_http_referral_add_header(r, "Retry-After", "1");

        return NGX_HTTP_TOO_MANY_REQUESTS;

    default: /* NGX_ERROR */
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
}


static void
ngx_http_referral_redirect_wake(ngx_http_referral_ctx_t *ctx)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    ctx->waiting = 0;

    r->read_event_handler = ngx_http_block_reading;

    ngx_http_finalize_request(r, ngx_http_referral_redirect_answer(ctx));

    ngx_http_run_posted_requests(c);
}


static ngx_int_t
ngx_http_referral_redirect_answer(ngx_http_referral_ctx_t *ctx)
{
    ngx_int_t  rc;

    rc = ngx_http_discard_request_body(ctx->request);

    if (rc != NGX_OK) {
        return rc;
    }

    if (ctx->verdict == REFERRAL_VERDICT_VALID && ctx->rule != NULL) {
        return ngx_http_referral_redirect_valid(ctx);
    }

    return ngx_http_referral_redirect_other(ctx);
}


static ngx_int_t
ngx_http_referral_redirect_valid(ngx_http_referral_ctx_t *ctx)
{
    u_char                        *p;
    ngx_http_request_t            *r;
    referral_destination_t         d;
    ngx_http_referral_loc_conf_t  *rlcf;
    ngx_http_referral_srv_conf_t  *rscf;

    r = ctx->request;

    rlcf = ngx_http_get_module_loc_conf(r, ngx_http_referral_module);
    rscf = ngx_http_get_module_srv_conf(r, ngx_http_referral_module);

    /*
     * Recorded as the code has it: with macros and passed arguments filled
     * in, every click would have a destination of its own.
     */

    ctx->target = ctx->rule->url;

    ngx_http_referral_commit(ctx);

    ngx_memzero(&d, sizeof(referral_destination_t));

    d.url.len = ctx->rule->url.len;
    d.url.data = ctx->rule->url.data;

    d.code.len = ctx->code.len;
    d.code.data = ctx->code.data;

    d.args.len = r->args.len;
    d.args.data = r->args.data;

    d.drop = rscf->params->elts;
    d.ndrop = rscf->params->nelts;
    d.passthrough = rlcf->passthrough;

    if (referral_destination_plain(&d)) {
        ctx->destination = ctx->rule->url;
        return ngx_http_referral_send_redirect(r, &ctx->destination);
    }

    if (ctx->accepted) {
        d.click_id.len = REFERRAL_UUID_TEXT_LEN;
        d.click_id.data = ngx_http_referral_commit_id(ctx);
    }

    ngx_http_referral_commit_geo(ctx);

    d.country.len = ctx->country.len;
    d.country.data = ctx->country.data;

    p = ngx_pnalloc(r->pool, referral_destination_size(&d));
    if (p == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->destination.data = p;
    ctx->destination.len = referral_destination_build(&d, p) - p;

    return ngx_http_referral_send_redirect(r, &ctx->destination);
}


static ngx_int_t
ngx_http_referral_redirect_other(ngx_http_referral_ctx_t *ctx)
{
    ngx_str_t            url;
    ngx_uint_t           fallback;
    ngx_http_request_t  *r;

    r = ctx->request;

    fallback = ngx_http_referral_redirect_fallback(r, &url);

    if (fallback) {
        ctx->target = url;
    }

    ngx_http_referral_commit(ctx);

    if (fallback) {
        ctx->destination = url;
        return ngx_http_referral_send_redirect(r, &url);
    }

    switch (ctx->verdict) {

    case REFERRAL_VERDICT_INACTIVE:
    case REFERRAL_VERDICT_EXPIRED:
    case REFERRAL_VERDICT_EXHAUSTED:
        return NGX_HTTP_REFERRAL_GONE;

    case REFERRAL_VERDICT_UNVERIFIED:

        (void) ngx_http_referral_add_header(r, "Retry-After", "1");

        return NGX_HTTP_SERVICE_UNAVAILABLE;

    default: /* unknown, malformed, early */
        return NGX_HTTP_NOT_FOUND;
    }
}


/* a value with variables is checked here, a constant one was at start */

static ngx_uint_t
ngx_http_referral_redirect_fallback(ngx_http_request_t *r, ngx_str_t *url)
{
    char                           error[REFERRAL_ERROR_LEN];
    static time_t                  logged;
    ngx_http_referral_loc_conf_t  *rlcf;

    rlcf = ngx_http_get_module_loc_conf(r, ngx_http_referral_module);

    if (rlcf->fallback == NULL) {
        return 0;
    }

    if (ngx_http_complex_value(r, rlcf->fallback, url) != NGX_OK
        || url->len == 0)
    {
        return 0;
    }

    if (rlcf->fallback->lengths == NULL
        || ngx_http_referral_redirect_check(url, error) == NGX_OK)
    {
        return 1;
    }

    /* what made the value may have come from the client: not logged */

    if (logged != ngx_time()) {
        logged = ngx_time();
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "the value of \"referral_fallback\" is not used: %s",
                      error);
    }

    return 0;
}


static ngx_int_t
ngx_http_referral_redirect_check(ngx_str_t *url, char *error)
{
    size_t          i;
    referral_str_t  s;

    if (url->len == 0 || url->data[0] != '/') {

        s.len = url->len;
        s.data = url->data;

        return referral_destination_check(&s, error) == REFERRAL_OK
               ? NGX_OK : NGX_ERROR;
    }

    if (url->len > 1 && url->data[1] == '/') {
        ngx_memcpy(error, "it begins with two slashes",
                   sizeof("it begins with two slashes"));
        return NGX_ERROR;
    }

    for (i = 0; i < url->len; i++) {
        if (url->data[i] <= ' ' || url->data[i] == 0x7f
            || url->data[i] == '\\')
        {
            ngx_memcpy(error, "it has a space, control character or backslash",
                       sizeof("it has a space, control character or "
                              "backslash"));
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


char *
ngx_http_referral_redirect(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_loc_conf_t  *rlcf = conf;

    ngx_str_t                         *value;
    ngx_http_core_loc_conf_t          *clcf;
    ngx_http_compile_complex_value_t   ccv;
    ngx_http_referral_srv_conf_t      *rscf;

    if (rlcf->redirect != NGX_CONF_UNSET) {
        return "is duplicate";
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    value = cf->args->elts;

    if (cf->args->nelts == 2) {

        rlcf->code = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));
        if (rlcf->code == NULL) {
            return NGX_CONF_ERROR;
        }

        ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

        ccv.cf = cf;
        ccv.value = &value[1];
        ccv.complex_value = rlcf->code;

        if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
            return NGX_CONF_ERROR;
        }

    } else if (clcf->exact_match || clcf->named
#if (NGX_PCRE)
               || clcf->regex
#endif
              )
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_redirect\" needs an argument in "
                           "location \"%V\": only in a prefix location is the "
                           "code what follows the name, for example "
                           "\"location /r/ { referral_redirect; }\" or "
                           "\"referral_redirect $code\"", &clcf->name);
        return NGX_CONF_ERROR;
    }

    rlcf->redirect = 1;
    clcf->handler = ngx_http_referral_redirect_handler;

    rscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_referral_module);
    rscf->redirect = 1;

    return NGX_CONF_OK;
}


char *
ngx_http_referral_fallback(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_loc_conf_t  *rlcf = conf;

    char                               error[REFERRAL_ERROR_LEN];
    ngx_str_t                         *value;
    ngx_http_complex_value_t          *cv;
    ngx_http_compile_complex_value_t   ccv;

    if (rlcf->fallback != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "off") == 0) {
        rlcf->fallback = NULL;
        return NGX_CONF_OK;
    }

    cv = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));
    if (cv == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = cv;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (cv->lengths == NULL
        && ngx_http_referral_redirect_check(&value[1], error) != NGX_OK)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid \"referral_fallback\" \"%V\": %s; give "
                           "an absolute http or https URL, or a path that "
                           "begins with one \"/\"", &value[1], error);
        return NGX_CONF_ERROR;
    }

    rlcf->fallback = cv;

    return NGX_CONF_OK;
}
