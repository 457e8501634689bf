
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_commit.h"
#include "ngx_http_referral_cookie.h"
#include "ngx_http_referral_filter.h"
#include "ngx_http_referral_request.h"
#include "ngx_http_referral_variables.h"


#define NGX_HTTP_REFERRAL_WORD_VERDICT  0
#define NGX_HTTP_REFERRAL_WORD_VIA      1
#define NGX_HTTP_REFERRAL_WORD_CACHE    2


static ngx_http_referral_ctx_t *ngx_http_referral_variable_ctx(
    ngx_http_request_t *r, ngx_uint_t make);
static referral_touch_t *ngx_http_referral_variable_touch(
    ngx_http_referral_ctx_t *ctx);
static void ngx_http_referral_variable_commit(ngx_http_referral_ctx_t *ctx);
static ngx_int_t ngx_http_referral_variable_set(ngx_http_variable_value_t *v,
    const u_char *data, size_t len);
static ngx_int_t ngx_http_referral_variable_empty(
    ngx_http_variable_value_t *v);
static ngx_int_t ngx_http_referral_variable_code(
    ngx_http_variable_value_t *v, referral_touch_t *touch);
static ngx_int_t ngx_http_referral_variable_uuid(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, const u_char *id);

static ngx_int_t ngx_http_referral_code_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_referral_first_code_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_referral_word_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_referral_click_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_referral_visitor_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_referral_destination_variable(
    ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_referral_place_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_referral_asn_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


/* values change while a request lives, so none is cached */

static ngx_http_variable_t  ngx_http_referral_variables[] = {

    { ngx_string("referral_code"), NULL,
      ngx_http_referral_code_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_first_code"), NULL,
      ngx_http_referral_first_code_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_verdict"), NULL,
      ngx_http_referral_word_variable, NGX_HTTP_REFERRAL_WORD_VERDICT,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_via"), NULL,
      ngx_http_referral_word_variable, NGX_HTTP_REFERRAL_WORD_VIA,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_cache"), NULL,
      ngx_http_referral_word_variable, NGX_HTTP_REFERRAL_WORD_CACHE,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_click_id"), NULL,
      ngx_http_referral_click_id_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_visitor_id"), NULL,
      ngx_http_referral_visitor_id_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_destination"), NULL,
      ngx_http_referral_destination_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_country"), NULL,
      ngx_http_referral_place_variable,
      offsetof(ngx_http_referral_ctx_t, country), NGX_HTTP_VAR_NOCACHEABLE,
      0 },

    { ngx_string("referral_city"), NULL,
      ngx_http_referral_place_variable,
      offsetof(ngx_http_referral_ctx_t, city), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("referral_asn"), NULL,
      ngx_http_referral_asn_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    ngx_http_null_variable
};


/*
 * NULL for a request that has nothing to show: no context, unless make says
 * that one may be worth making (a cookie, an address) in a server of ours.
 */

static ngx_http_referral_ctx_t *
ngx_http_referral_variable_ctx(ngx_http_request_t *r, ngx_uint_t make)
{
    ngx_http_referral_ctx_t       *ctx;
    ngx_http_referral_srv_conf_t  *rscf;

    ctx = ngx_http_referral_get_ctx(r);

    if (ctx != NULL || !make) {
        return ctx;
    }

    rscf = ngx_http_get_module_srv_conf(r->main, ngx_http_referral_module);

    if (!rscf->enable && !rscf->redirect) {
        return NULL;
    }

    return ngx_http_referral_make_ctx(r);
}


/* the touch of the cookie that is shown in place of this request's click */

static referral_touch_t *
ngx_http_referral_variable_touch(ngx_http_referral_ctx_t *ctx)
{
    ngx_http_referral_srv_conf_t  *rscf;

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    if (rscf->attribution == NGX_HTTP_REFERRAL_FIRST) {

        ngx_http_referral_cookie_read(ctx);

        return ctx->has_token ? &ctx->token.first : NULL;
    }

    if (ctx->seen) {
        return NULL;
    }

    ngx_http_referral_cookie_read(ctx);

    return ctx->has_token ? &ctx->token.last : NULL;
}


/*
 * Whoever sees an id may store it, so the click is recorded first: this is
 * what a proxied header reads, long before the response's headers.
 */

static void
ngx_http_referral_variable_commit(ngx_http_referral_ctx_t *ctx)
{
    if (ctx->seen && !ctx->committed && ngx_http_referral_filter_allows(ctx))
    {
        ngx_http_referral_commit(ctx);
    }
}


static ngx_int_t
ngx_http_referral_variable_set(ngx_http_variable_value_t *v,
    const u_char *data, size_t len)
{
    v->len = len;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;
    v->data = (u_char *) data;

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_variable_empty(ngx_http_variable_value_t *v)
{
    return ngx_http_referral_variable_set(v, (u_char *) "", 0);
}


static ngx_int_t
ngx_http_referral_variable_code(ngx_http_variable_value_t *v,
    referral_touch_t *touch)
{
    return ngx_http_referral_variable_set(v, touch->code, touch->code_len);
}


static ngx_int_t
ngx_http_referral_variable_uuid(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, const u_char *id)
{
    u_char  *p;

    p = ngx_pnalloc(r->pool, REFERRAL_UUID_TEXT_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    referral_uuid_text(id, p);

    return ngx_http_referral_variable_set(v, p, REFERRAL_UUID_TEXT_LEN);
}


static ngx_int_t
ngx_http_referral_code_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    referral_touch_t         *touch;
    ngx_http_referral_ctx_t  *ctx;

    ctx = ngx_http_referral_variable_ctx(r, 1);

    if (ctx == NULL) {
        return ngx_http_referral_variable_empty(v);
    }

    touch = ngx_http_referral_variable_touch(ctx);

    if (touch != NULL) {
        return ngx_http_referral_variable_code(v, touch);
    }

    if (ctx->seen && ctx->verdict != REFERRAL_VERDICT_MALFORMED) {
        return ngx_http_referral_variable_set(v, ctx->code.data,
                                              ctx->code.len);
    }

    return ngx_http_referral_variable_empty(v);
}


static ngx_int_t
ngx_http_referral_first_code_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_referral_ctx_t  *ctx;

    ctx = ngx_http_referral_variable_ctx(r, 1);

    if (ctx == NULL) {
        return ngx_http_referral_variable_empty(v);
    }

    if (ctx->set_token) {
        return ngx_http_referral_variable_code(v, &ctx->new_token.first);
    }

    ngx_http_referral_cookie_read(ctx);

    if (ctx->has_token) {
        return ngx_http_referral_variable_code(v, &ctx->token.first);
    }

    /* a new visitor's, before the click is recorded */

    if (ctx->seen && !ctx->committed && ngx_http_referral_filter_allows(ctx)
        && ngx_http_referral_commit_remembers(ctx))
    {
        return ngx_http_referral_variable_set(v, ctx->code.data,
                                              ctx->code.len);
    }

    return ngx_http_referral_variable_empty(v);
}


static ngx_int_t
ngx_http_referral_word_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    const referral_str_t     *word;
    ngx_http_referral_ctx_t  *ctx;

    ctx = ngx_http_referral_variable_ctx(r, 0);

    if (ctx == NULL || !ctx->seen) {
        return ngx_http_referral_variable_empty(v);
    }

    switch (data) {

    case NGX_HTTP_REFERRAL_WORD_VERDICT:
        word = referral_verdict_word(ctx->verdict);
        break;

    case NGX_HTTP_REFERRAL_WORD_VIA:
        word = referral_via_word(ctx->via);
        break;

    default: /* NGX_HTTP_REFERRAL_WORD_CACHE */
        word = referral_cache_word(ctx->cache);
        break;
    }

    if (word->len == 0) {
        return ngx_http_referral_variable_empty(v);
    }

    return ngx_http_referral_variable_set(v, word->data, word->len);
}


static ngx_int_t
ngx_http_referral_click_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    referral_touch_t         *touch;
    ngx_http_referral_ctx_t  *ctx;

    ctx = ngx_http_referral_variable_ctx(r, 1);

    if (ctx == NULL) {
        return ngx_http_referral_variable_empty(v);
    }

    touch = ngx_http_referral_variable_touch(ctx);

    if (touch != NULL) {
        return ngx_http_referral_variable_uuid(r, v, touch->click);
    }

    ngx_http_referral_variable_commit(ctx);

    if (!ctx->accepted) {
        return ngx_http_referral_variable_empty(v);
    }

    return ngx_http_referral_variable_set(v,
                                          ngx_http_referral_commit_id(ctx),
                                          REFERRAL_UUID_TEXT_LEN);
}


static ngx_int_t
ngx_http_referral_visitor_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_referral_ctx_t       *ctx;
    ngx_http_referral_srv_conf_t  *rscf;

    ctx = ngx_http_referral_variable_ctx(r, 1);

    if (ctx == NULL) {
        return ngx_http_referral_variable_empty(v);
    }

    rscf = ngx_http_get_module_srv_conf(r->main, ngx_http_referral_module);

    if (!rscf->cookie->visitor || !ngx_http_referral_cookie_consent(ctx)) {
        return ngx_http_referral_variable_empty(v);
    }

    ngx_http_referral_variable_commit(ctx);

    if (ctx->set_token && ctx->new_token.has_visitor) {
        return ngx_http_referral_variable_uuid(r, v, ctx->new_token.visitor);
    }

    ngx_http_referral_cookie_read(ctx);

    if (ctx->has_token && ctx->token.has_visitor) {
        return ngx_http_referral_variable_uuid(r, v, ctx->token.visitor);
    }

    return ngx_http_referral_variable_empty(v);
}


static ngx_int_t
ngx_http_referral_destination_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_referral_ctx_t  *ctx;

    ctx = ngx_http_referral_variable_ctx(r, 0);

    if (ctx == NULL || ctx->destination.len == 0) {
        return ngx_http_referral_variable_empty(v);
    }

    return ngx_http_referral_variable_set(v, ctx->destination.data,
                                          ctx->destination.len);
}


static ngx_int_t
ngx_http_referral_place_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t                *s;
    ngx_http_referral_ctx_t  *ctx;

    ctx = ngx_http_referral_variable_ctx(r, 1);

    if (ctx == NULL) {
        return ngx_http_referral_variable_empty(v);
    }

    ngx_http_referral_commit_geo(ctx);

    s = (ngx_str_t *) ((char *) ctx + data);

    if (s->len == 0) {
        return ngx_http_referral_variable_empty(v);
    }

    return ngx_http_referral_variable_set(v, s->data, s->len);
}


static ngx_int_t
ngx_http_referral_asn_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char                   *p;
    ngx_http_referral_ctx_t  *ctx;

    ctx = ngx_http_referral_variable_ctx(r, 1);

    if (ctx != NULL) {
        ngx_http_referral_commit_geo(ctx);
    }

    if (ctx == NULL || ctx->asn == 0) {
        return ngx_http_referral_variable_empty(v);
    }

    p = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_referral_variable_set(v, p,
                                     ngx_sprintf(p, "%ui", ctx->asn) - p);
}


ngx_int_t
ngx_http_referral_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_referral_variables; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}
