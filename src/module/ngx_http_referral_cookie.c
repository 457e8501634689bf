
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_cookie.h"
#include "ngx_http_referral_request.h"
#include "ngx_http_referral_stat.h"


/* cookies of our name that are tried, the others are ignored */

#define NGX_HTTP_REFERRAL_COOKIE_TRIES  16


static ngx_uint_t ngx_http_referral_cookie_line(ngx_http_referral_ctx_t *ctx,
    ngx_str_t *line, ngx_uint_t *tries);
static ngx_uint_t ngx_http_referral_cookie_try(ngx_http_referral_ctx_t *ctx,
    u_char *start, u_char *end);
static void ngx_http_referral_cookie_count(referral_token_result_e result,
    ngx_uint_t key);
static ngx_uint_t ngx_http_referral_cookie_yes(ngx_str_t *value);
static ngx_int_t ngx_http_referral_cookie_render(
    ngx_http_referral_ctx_t *ctx);
static ngx_uint_t ngx_http_referral_cookie_secure(
    ngx_http_referral_ctx_t *ctx);
static ngx_uint_t ngx_http_referral_cookie_present(ngx_http_request_t *r,
    ngx_str_t *value);


void
ngx_http_referral_cookie_read(ngx_http_referral_ctx_t *ctx)
{
    ngx_uint_t                      i, tries;
    ngx_list_part_t                *part;
    ngx_table_elt_t                *h;
    ngx_http_referral_srv_conf_t   *rscf;
    ngx_http_referral_main_conf_t  *rmcf;

    /* who says no is not told by the cookie of a time when he said yes */

    if (ctx->token_read || !ngx_http_referral_cookie_consent(ctx)) {
        return;
    }

    ctx->token_read = 1;

    rmcf = ngx_http_get_module_main_conf(ctx->request,
                                         ngx_http_referral_module);
    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    if (rscf->cookie->name.len == 0 || rmcf->keyring == NULL) {
        return;
    }

    /* nginx's own parsers ignore case and stop at the first of a name */

    part = &ctx->request->headers_in.headers.part;
    h = part->elts;
    tries = 0;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                return;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len == sizeof("cookie") - 1
            && ngx_memcmp(h[i].lowcase_key, "cookie", 6) == 0
            && ngx_http_referral_cookie_line(ctx, &h[i].value, &tries))
        {
            return;
        }
    }
}


/* 1 when there is nothing more to try */

static ngx_uint_t
ngx_http_referral_cookie_line(ngx_http_referral_ctx_t *ctx, ngx_str_t *line,
    ngx_uint_t *tries)
{
    u_char                        *p, *last, *end;
    ngx_str_t                     *name;
    ngx_http_referral_srv_conf_t  *rscf;

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    name = &rscf->cookie->name;
    p = line->data;
    last = p + line->len;

    while (p < last) {

        if (*p == ' ' || *p == '\t') {
            p++;
            continue;
        }

        end = ngx_strlchr(p, last, ';');
        if (end == NULL) {
            end = last;
        }

        if ((size_t) (end - p) > name->len && p[name->len] == '='
            && ngx_memcmp(p, name->data, name->len) == 0)
        {
            if (ngx_http_referral_cookie_try(ctx, p + name->len + 1, end)) {
                return 1;
            }

            if (++(*tries) == NGX_HTTP_REFERRAL_COOKIE_TRIES) {
                return 1;
            }
        }

        p = end + 1;
    }

    return 0;
}


static ngx_uint_t
ngx_http_referral_cookie_try(ngx_http_referral_ctx_t *ctx, u_char *start,
    u_char *end)
{
    uint64_t                        now;
    ngx_time_t                     *tp;
    referral_token_result_e         result;
    ngx_http_referral_srv_conf_t   *rscf;
    ngx_http_referral_main_conf_t  *rmcf;

    rmcf = ngx_http_get_module_main_conf(ctx->request,
                                         ngx_http_referral_module);
    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    while (start < end && (*start == ' ' || *start == '\t')) {
        start++;
    }

    while (end > start && (end[-1] == ' ' || end[-1] == '\t')) {
        end--;
    }

    if (end - start > 1 && *start == '"' && end[-1] == '"') {
        start++;
        end--;
    }

    tp = ngx_timeofday();
    now = (uint64_t) tp->sec * 1000 + tp->msec;

    result = referral_token_verify(rmcf->keyring, start, end - start, now,
                                   (uint64_t) rscf->cookie->age * 1000,
                                   &ctx->token);

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "referral token: %s", referral_token_result_word(result));

    ngx_http_referral_cookie_count(result, ctx->token.key);

    ctx->has_token = (result == REFERRAL_TOKEN_VALID);

    return ctx->has_token;
}


/* a key that no longer signs verifies tokens from before a rotation */

static void
ngx_http_referral_cookie_count(referral_token_result_e result, ngx_uint_t key)
{
    switch (result) {

    case REFERRAL_TOKEN_VALID:
        if (key == 0) {
            ngx_http_referral_count(token_verified);

        } else {
            ngx_http_referral_count(token_rotated);
        }

        break;

    case REFERRAL_TOKEN_UNKNOWN_KEY:
        ngx_http_referral_count(token_unknown_key);
        break;

    case REFERRAL_TOKEN_FORGED:
        ngx_http_referral_count(token_forged);
        break;

    case REFERRAL_TOKEN_EXPIRED:
        ngx_http_referral_count(token_expired);
        break;

    default: /* REFERRAL_TOKEN_MALFORMED */
        ngx_http_referral_count(token_malformed);
        break;
    }
}


ngx_uint_t
ngx_http_referral_cookie_consent(ngx_http_referral_ctx_t *ctx)
{
    ngx_str_t                      value;
    ngx_http_referral_srv_conf_t  *rscf;

    if (ctx->consent_read) {
        return ctx->consent;
    }

    ctx->consent_read = 1;
    ctx->consent = 0;

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    ngx_http_referral_read_headers(ctx);

    if (rscf->gpc && (ctx->signals & REFERRAL_SIGNAL_GPC)) {
        return 0;
    }

    /* not even asked: only where there is no cookie */

    if (rscf->consent == NULL) {
        ctx->consent = 1;
        return 1;
    }

    if (ngx_http_complex_value(ctx->request, rscf->consent, &value) == NGX_OK)
    {
        ctx->consent = ngx_http_referral_cookie_yes(&value);
    }

    /* "set" may not have run yet: what counts is what it says at commit */

    ctx->consent_read = ctx->committed;

    return ctx->consent;
}


/*
 * As nginx's "if" has it: neither empty nor "0".  The words that a consent
 * tool may have written for "no" are not consent either.
 */

static ngx_uint_t
ngx_http_referral_cookie_yes(ngx_str_t *value)
{
    ngx_uint_t         i;
    static ngx_str_t   no[] = {
        ngx_string(""),
        ngx_string("0"),
        ngx_string("no"),
        ngx_string("off"),
        ngx_string("false"),
        ngx_string("none"),
        ngx_string("denied")
    };

    for (i = 0; i < sizeof(no) / sizeof(no[0]); i++) {

        if (value->len == no[i].len
            && ngx_strncasecmp(value->data, no[i].data, no[i].len) == 0)
        {
            return 0;
        }
    }

    return 1;
}


ngx_int_t
ngx_http_referral_cookie_set(ngx_http_referral_ctx_t *ctx)
{
    ngx_table_elt_t     *h;
    ngx_http_request_t  *r;

    r = ctx->request;

    if (ctx->set_cookie.len == 0) {

        if (ngx_http_referral_cookie_render(ctx) != NGX_OK) {
            return NGX_ERROR;
        }

        if (ctx->has_token) {
            ngx_http_referral_count(token_updated);

        } else {
            ngx_http_referral_count(token_new);
        }

    } else if (ngx_http_referral_cookie_present(r, &ctx->set_cookie)) {

        /* the filter ran before, and its headers were not thrown away */

        return NGX_OK;
    }

    h = ngx_http_referral_add_header(r, "Set-Cookie", "");
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->value = ctx->set_cookie;

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_cookie_render(ngx_http_referral_ctx_t *ctx)
{
    u_char                            token[REFERRAL_TOKEN_MAX];
    u_char                           *p;
    size_t                            len;
    ngx_uint_t                        secure;
    ngx_http_referral_srv_conf_t     *rscf;
    ngx_http_referral_main_conf_t    *rmcf;
    ngx_http_referral_cookie_conf_t  *cookie;

    rmcf = ngx_http_get_module_main_conf(ctx->request,
                                         ngx_http_referral_module);
    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);
    cookie = rscf->cookie;

    len = referral_token_make(rmcf->keyring, &ctx->new_token, token);
    secure = ngx_http_referral_cookie_secure(ctx);

    p = ngx_pnalloc(ctx->request->pool,
                    cookie->name.len + 1 + len + cookie->path.len
                    + cookie->max_age.len + cookie->domain.len
                    + sizeof("; Secure") - 1 + cookie->flags.len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ctx->set_cookie.data = p;

    p = ngx_cpymem(p, cookie->name.data, cookie->name.len);
    *p++ = '=';
    p = ngx_cpymem(p, token, len);
    p = ngx_cpymem(p, cookie->path.data, cookie->path.len);
    p = ngx_cpymem(p, cookie->max_age.data, cookie->max_age.len);
    p = ngx_cpymem(p, cookie->domain.data, cookie->domain.len);

    if (secure) {
        p = ngx_cpymem(p, "; Secure", sizeof("; Secure") - 1);
    }

    p = ngx_cpymem(p, cookie->flags.data, cookie->flags.len);

    ctx->set_cookie.len = p - ctx->set_cookie.data;

    return NGX_OK;
}


static ngx_uint_t
ngx_http_referral_cookie_secure(ngx_http_referral_ctx_t *ctx)
{
    ngx_str_t                         value;
    ngx_http_referral_srv_conf_t     *rscf;
    ngx_http_referral_cookie_conf_t  *cookie;

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);
    cookie = rscf->cookie;

    switch (cookie->secure) {

    case NGX_HTTP_REFERRAL_SECURE_ON:
        return 1;

    case NGX_HTTP_REFERRAL_SECURE_OFF:
        return 0;

    case NGX_HTTP_REFERRAL_SECURE_VAR:
        return ngx_http_complex_value(ctx->request, cookie->secure_value,
                                      &value) == NGX_OK
               && ngx_http_referral_cookie_yes(&value);

    default: /* NGX_HTTP_REFERRAL_SECURE_AUTO */
#if (NGX_HTTP_SSL)
        return ctx->request->connection->ssl != NULL;
#else
        return 0;
#endif
    }
}


static ngx_uint_t
ngx_http_referral_cookie_present(ngx_http_request_t *r, ngx_str_t *value)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    for (part = &r->headers_out.headers.part; part; part = part->next) {

        h = part->elts;

        for (i = 0; i < part->nelts; i++) {
            if (h[i].hash && h[i].value.data == value->data) {
                return 1;
            }
        }
    }

    return 0;
}
