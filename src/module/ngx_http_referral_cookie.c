
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_capture.h"
#include "ngx_http_referral_cookie.h"
#include "ngx_http_referral_filter.h"
#include "ngx_http_referral_stat.h"


#define NGX_HTTP_REFERRAL_COOKIE_NAME  "_ref"
#define NGX_HTTP_REFERRAL_COOKIE_AGE   (90 * 24 * 60 * 60)  /* seconds */

/* cookies of our name that are tried, the others are ignored */

#define NGX_HTTP_REFERRAL_COOKIE_TRIES  16

#define NGX_HTTP_REFERRAL_SECRET_SIZE  65536

#define ngx_http_referral_is(str, word)                                      \
    ((str)->len == sizeof(word) - 1                                          \
     && ngx_strncasecmp((str)->data, (u_char *) word, sizeof(word) - 1) == 0)


typedef struct {
    ngx_str_t                 domain;
    ngx_str_t                 path;
    ngx_str_t                 samesite;
    ngx_uint_t                httponly;
} ngx_http_referral_cookie_attrs_t;


static ngx_uint_t ngx_http_referral_cookie_line(ngx_http_referral_ctx_t *ctx,
    ngx_str_t *line, ngx_uint_t *tries);
static ngx_uint_t ngx_http_referral_cookie_try(ngx_http_referral_ctx_t *ctx,
    u_char *start, u_char *end);
static ngx_uint_t ngx_http_referral_cookie_yes(ngx_str_t *value);
static ngx_uint_t ngx_http_referral_cookie_secure(
    ngx_http_referral_ctx_t *ctx);
static ngx_uint_t ngx_http_referral_cookie_present(ngx_http_request_t *r,
    ngx_str_t *value);

static char *ngx_http_referral_cookie_attr(ngx_conf_t *cf,
    ngx_http_referral_cookie_conf_t *conf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value);
static char *ngx_http_referral_cookie_check(ngx_conf_t *cf,
    ngx_http_referral_cookie_conf_t *conf,
    ngx_http_referral_cookie_attrs_t *attrs);
static char *ngx_http_referral_cookie_render(ngx_conf_t *cf,
    ngx_http_referral_cookie_conf_t *conf,
    ngx_http_referral_cookie_attrs_t *attrs);
static char *ngx_http_referral_secret_read(ngx_conf_t *cf, ngx_str_t *name,
    ngx_file_t *file, referral_keyring_t *ring);


void
ngx_http_referral_cookie_read(ngx_http_referral_ctx_t *ctx)
{
    ngx_uint_t                      i, tries;
    ngx_list_part_t                *part;
    ngx_table_elt_t                *h;
    ngx_http_referral_main_conf_t  *rmcf;
    ngx_http_referral_srv_conf_t   *rscf;

    if (ctx->token_read) {
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
    ngx_http_referral_main_conf_t  *rmcf;
    ngx_http_referral_srv_conf_t   *rscf;

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

    ngx_http_referral_count(tokens[result]);

    ctx->has_token = (result == REFERRAL_TOKEN_VALID);

    return ctx->has_token;
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

    rscf = ngx_http_get_module_srv_conf(ctx->request,
                                        ngx_http_referral_module);

    ngx_http_referral_capture_headers(ctx);

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
    u_char                           token[REFERRAL_TOKEN_MAX];
    u_char                          *p;
    size_t                           len, size;
    ngx_uint_t                       secure;
    ngx_table_elt_t                 *h;
    ngx_http_request_t              *r;
    ngx_http_referral_main_conf_t   *rmcf;
    ngx_http_referral_srv_conf_t    *rscf;
    ngx_http_referral_cookie_conf_t *cookie;

    r = ctx->request;

    if (ctx->set_cookie.len) {

        /* the headers went out, or were thrown away with an error page */

        if (ngx_http_referral_cookie_present(r, &ctx->set_cookie)) {
            return NGX_OK;
        }

    } else {
        rmcf = ngx_http_get_module_main_conf(r, ngx_http_referral_module);
        rscf = ngx_http_get_module_srv_conf(r, ngx_http_referral_module);
        cookie = rscf->cookie;

        len = referral_token_make(rmcf->keyring, &ctx->new_token, token);
        secure = ngx_http_referral_cookie_secure(ctx);

        size = cookie->name.len + 1 + len + cookie->path.len
               + cookie->max_age.len + cookie->domain.len
               + sizeof("; Secure") - 1 + cookie->flags.len;

        p = ngx_pnalloc(r->pool, size);
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

        ngx_http_referral_count(tokens_issued);
    }

    h = ngx_http_referral_add_header(r, "Set-Cookie", "");
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->value = ctx->set_cookie;

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


char *
ngx_http_referral_cookie(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_srv_conf_t  *rscf = conf;

    char                              *rv;
    ngx_str_t                         *value;
    ngx_uint_t                         i;
    ngx_http_referral_cookie_conf_t   *cookie;
    ngx_http_referral_cookie_attrs_t   attrs;

    if (rscf->cookie != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    cookie = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_cookie_conf_t));
    if (cookie == NULL) {
        return NGX_CONF_ERROR;
    }

    rscf->cookie = cookie;

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "off") == 0) {

        if (cf->args->nelts > 2) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"referral_cookie off\" takes no parameters");
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    ngx_memzero(&attrs, sizeof(ngx_http_referral_cookie_attrs_t));

    attrs.httponly = 1;
    ngx_str_set(&attrs.path, "/");
    ngx_str_set(&attrs.samesite, "Lax");

    cookie->name = value[1];
    cookie->age = NGX_HTTP_REFERRAL_COOKIE_AGE;
    cookie->secure = NGX_HTTP_REFERRAL_SECURE_AUTO;

    for (i = 2; i < cf->args->nelts; i++) {

        rv = ngx_http_referral_cookie_attr(cf, cookie, &attrs, &value[i]);

        if (rv == NGX_CONF_OK) {
            continue;
        }

        if (rv != NGX_CONF_ERROR) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\" of "
                               "\"referral_cookie\": %s", &value[i], rv);
        }

        return NGX_CONF_ERROR;
    }

    rv = ngx_http_referral_cookie_check(cf, cookie, &attrs);

    if (rv != NGX_CONF_OK) {
        return rv;
    }

    return ngx_http_referral_cookie_render(cf, cookie, &attrs);
}


ngx_http_referral_cookie_conf_t *
ngx_http_referral_cookie_default(ngx_conf_t *cf)
{
    ngx_http_referral_cookie_conf_t   *cookie;
    ngx_http_referral_cookie_attrs_t   attrs;

    cookie = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_cookie_conf_t));
    if (cookie == NULL) {
        return NULL;
    }

    ngx_memzero(&attrs, sizeof(ngx_http_referral_cookie_attrs_t));

    attrs.httponly = 1;
    ngx_str_set(&attrs.path, "/");
    ngx_str_set(&attrs.samesite, "Lax");

    ngx_str_set(&cookie->name, NGX_HTTP_REFERRAL_COOKIE_NAME);
    cookie->age = NGX_HTTP_REFERRAL_COOKIE_AGE;
    cookie->secure = NGX_HTTP_REFERRAL_SECURE_AUTO;

    if (ngx_http_referral_cookie_render(cf, cookie, &attrs) != NGX_CONF_OK) {
        return NULL;
    }

    return cookie;
}


/* NULL, NGX_CONF_ERROR after a message, or what would be accepted */

static char *
ngx_http_referral_cookie_attr(ngx_conf_t *cf,
    ngx_http_referral_cookie_conf_t *conf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value)
{
    u_char                            *eq;
    ngx_str_t                          name, s;
    ngx_http_compile_complex_value_t   ccv;

    eq = ngx_strlchr(value->data, value->data + value->len, '=');
    if (eq == NULL) {
        return "it has no \"=\"";
    }

    name.data = value->data;
    name.len = eq - value->data;

    s.data = eq + 1;
    s.len = value->len - name.len - 1;

    if (ngx_http_referral_is(&name, "domain")) {
        attrs->domain = s;
        return NGX_CONF_OK;
    }

    if (ngx_http_referral_is(&name, "path")) {
        attrs->path = s;
        return NGX_CONF_OK;
    }

    if (ngx_http_referral_is(&name, "max_age")) {

        conf->age = ngx_parse_time(&s, 1);

        if (conf->age == (time_t) NGX_ERROR || conf->age == 0) {
            return "give a time of one second or more, for example \"90d\"";
        }

        return NGX_CONF_OK;
    }

    if (ngx_http_referral_is(&name, "samesite")) {

        if (ngx_http_referral_is(&s, "lax")) {
            ngx_str_set(&attrs->samesite, "Lax");

        } else if (ngx_http_referral_is(&s, "strict")) {
            ngx_str_set(&attrs->samesite, "Strict");

        } else if (ngx_http_referral_is(&s, "none")) {
            ngx_str_set(&attrs->samesite, "None");

        } else {
            return "give \"lax\", \"strict\" or \"none\"";
        }

        return NGX_CONF_OK;
    }

    if (ngx_http_referral_is(&name, "httponly")) {

        if (ngx_http_referral_is(&s, "on")) {
            attrs->httponly = 1;

        } else if (ngx_http_referral_is(&s, "off")) {
            attrs->httponly = 0;

        } else {
            return "give \"on\" or \"off\"";
        }

        return NGX_CONF_OK;
    }

    if (ngx_http_referral_is(&name, "visitor")) {

        if (ngx_http_referral_is(&s, "on")) {
            conf->visitor = 1;

        } else if (ngx_http_referral_is(&s, "off")) {
            conf->visitor = 0;

        } else {
            return "give \"on\" or \"off\"";
        }

        return NGX_CONF_OK;
    }

    if (!ngx_http_referral_is(&name, "secure")) {
        return "there are \"domain\", \"path\", \"max_age\", \"samesite\", "
               "\"secure\", \"httponly\" and \"visitor\"";
    }

    if (ngx_http_referral_is(&s, "auto")) {
        conf->secure = NGX_HTTP_REFERRAL_SECURE_AUTO;

    } else if (ngx_http_referral_is(&s, "on")) {
        conf->secure = NGX_HTTP_REFERRAL_SECURE_ON;

    } else if (ngx_http_referral_is(&s, "off")) {
        conf->secure = NGX_HTTP_REFERRAL_SECURE_OFF;

    } else if (s.len > 1 && s.data[0] == '$') {

        conf->secure = NGX_HTTP_REFERRAL_SECURE_VAR;

        conf->secure_value = ngx_palloc(cf->pool,
                                        sizeof(ngx_http_complex_value_t));
        if (conf->secure_value == NULL) {
            return NGX_CONF_ERROR;
        }

        ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

        ccv.cf = cf;
        ccv.value = &s;
        ccv.complex_value = conf->secure_value;

        if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
            return NGX_CONF_ERROR;
        }

    } else {
        return "give \"auto\", \"on\", \"off\" or a variable";
    }

    return NGX_CONF_OK;
}


/* what a browser would silently refuse is refused here aloud */

static char *
ngx_http_referral_cookie_check(ngx_conf_t *cf,
    ngx_http_referral_cookie_conf_t *conf,
    ngx_http_referral_cookie_attrs_t *attrs)
{
    u_char       ch;
    const char  *problem;
    ngx_uint_t   i;

    problem = NULL;

    if (conf->name.len == 0) {
        problem = "the name is empty";
    }

    /* RFC 6265: a token of RFC 2616 */

    for (i = 0; i < conf->name.len; i++) {
        ch = conf->name.data[i];

        if (ch <= ' ' || ch >= 0x7f || ngx_strchr("()<>@,;:\\\"/[]?={}", ch)) {
            problem = "the name has a character that cookie names can not "
                      "have";
        }
    }

    for (i = 0; i < attrs->domain.len; i++) {
        ch = attrs->domain.data[i];

        if (!((ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z')
              || (ch >= '0' && ch <= '9') || ch == '.' || ch == '-'))
        {
            problem = "\"domain\" is no name of a host";
        }
    }

    if (attrs->path.len == 0 || attrs->path.data[0] != '/') {
        problem = "\"path\" does not begin with \"/\"";
    }

    for (i = 0; i < attrs->path.len; i++) {
        ch = attrs->path.data[i];

        if (ch < ' ' || ch >= 0x7f || ch == ';') {
            problem = "\"path\" has a control character or \";\"";
        }
    }

    if (ngx_strcmp(attrs->samesite.data, "None") == 0
        && conf->secure == NGX_HTTP_REFERRAL_SECURE_OFF)
    {
        problem = "\"samesite=none\" does not go with \"secure=off\"";
    }

    if (conf->name.len >= 9
        && ngx_strncasecmp(conf->name.data, (u_char *) "__Secure-", 9) == 0
        && conf->secure != NGX_HTTP_REFERRAL_SECURE_ON)
    {
        problem = "the prefix \"__Secure-\" demands \"secure=on\"";
    }

    if (conf->name.len >= 7
        && ngx_strncasecmp(conf->name.data, (u_char *) "__Host-", 7) == 0
        && (conf->secure != NGX_HTTP_REFERRAL_SECURE_ON || attrs->domain.len
            || attrs->path.len != 1))
    {
        problem = "the prefix \"__Host-\" demands \"secure=on\", \"path=/\" "
                  "and no \"domain\"";
    }

    if (problem == NULL) {
        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid \"referral_cookie\" \"%V\": %s", &conf->name,
                       problem);

    return NGX_CONF_ERROR;
}


static char *
ngx_http_referral_cookie_render(ngx_conf_t *cf,
    ngx_http_referral_cookie_conf_t *conf,
    ngx_http_referral_cookie_attrs_t *attrs)
{
    u_char  *p;

    p = ngx_pnalloc(cf->pool, sizeof("; Path=; Max-Age=; Domain=") - 1
                              + sizeof("; HttpOnly; SameSite=") - 1
                              + attrs->path.len + NGX_TIME_T_LEN
                              + attrs->domain.len + attrs->samesite.len);
    if (p == NULL) {
        return NGX_CONF_ERROR;
    }

    conf->path.data = p;
    p = ngx_sprintf(p, "; Path=%V", &attrs->path);
    conf->path.len = p - conf->path.data;

    conf->max_age.data = p;
    p = ngx_sprintf(p, "; Max-Age=%T", conf->age);
    conf->max_age.len = p - conf->max_age.data;

    conf->domain.data = p;

    if (attrs->domain.len) {
        p = ngx_sprintf(p, "; Domain=%V", &attrs->domain);
    }

    conf->domain.len = p - conf->domain.data;

    conf->flags.data = p;
    p = ngx_sprintf(p, "%s; SameSite=%V", attrs->httponly ? "; HttpOnly" : "",
                    &attrs->samesite);
    conf->flags.len = p - conf->flags.data;

    return NGX_CONF_OK;
}


char *
ngx_http_referral_consent(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_srv_conf_t  *rscf = conf;

    ngx_str_t                         *value;
    ngx_http_compile_complex_value_t   ccv;

    if (rscf->consent_not_required != NGX_CONF_UNSET) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "not_required") == 0) {
        rscf->consent_not_required = 1;
        return NGX_CONF_OK;
    }

    /* a constant would be an answer given for everyone */

    if (value[1].len < 2 || value[1].data[0] != '$') {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid \"referral_consent\" \"%V\": give a "
                           "variable that is neither empty nor \"0\" once the "
                           "visitor has agreed, or \"not_required\"",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    rscf->consent_not_required = 0;

    rscf->consent = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));
    if (rscf->consent == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = rscf->consent;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


char *
ngx_http_referral_secret(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_main_conf_t  *rmcf = conf;

    char        *rv;
    ngx_str_t   *value;
    ngx_file_t   file;

    if (rmcf->keyring != NULL) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_conf_full_name(cf->cycle, &value[1], 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    rmcf->secret = value[1];

    rmcf->keyring = ngx_pcalloc(cf->pool, sizeof(referral_keyring_t));
    if (rmcf->keyring == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&file, sizeof(ngx_file_t));

    file.name = value[1];
    file.log = cf->log;

    file.fd = ngx_open_file(value[1].data, NGX_FILE_RDONLY|NGX_FILE_NONBLOCK,
                            NGX_FILE_OPEN, 0);

    if (file.fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"referral_secret\": " ngx_open_file_n
                           " \"%V\" failed; make one with \"(umask 077; echo "
                           "1:$(openssl rand -base64 32) > %V)\"",
                           &value[1], &value[1]);
        return NGX_CONF_ERROR;
    }

    rv = ngx_http_referral_secret_read(cf, &value[1], &file, rmcf->keyring);

    if (ngx_close_file(file.fd) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_ALERT, cf, ngx_errno,
                           ngx_close_file_n " \"%V\" failed", &value[1]);
    }

    return rv;
}


static char *
ngx_http_referral_secret_read(ngx_conf_t *cf, ngx_str_t *name,
    ngx_file_t *file, referral_keyring_t *ring)
{
    int      rc;
    char     error[REFERRAL_ERROR_LEN];
    u_char  *buf;
    size_t   size;
    ssize_t  n;

    if (ngx_fd_info(file->fd, &file->info) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"referral_secret\": " ngx_fd_info_n
                           " \"%V\" failed", name);
        return NGX_CONF_ERROR;
    }

    if (!ngx_is_file(&file->info)
        || ngx_file_size(&file->info) > NGX_HTTP_REFERRAL_SECRET_SIZE)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_secret\": \"%V\" is not a file of "
                           "lines \"id:base64\"", name);
        return NGX_CONF_ERROR;
    }

    if (file->info.st_mode & 0007) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_secret\": \"%V\" has mode 0%ui%ui%ui and "
                           "is open to every user of this machine; run "
                           "\"chmod o-rwx %V\"", name,
                           (ngx_uint_t) (file->info.st_mode >> 6) & 7,
                           (ngx_uint_t) (file->info.st_mode >> 3) & 7,
                           (ngx_uint_t) file->info.st_mode & 7, name);
        return NGX_CONF_ERROR;
    }

    size = (size_t) ngx_file_size(&file->info);

    buf = ngx_alloc(size + 1, cf->log);
    if (buf == NULL) {
        return NGX_CONF_ERROR;
    }

    n = ngx_read_fd(file->fd, buf, size);

    if (n != (ssize_t) size) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, n == -1 ? ngx_errno : 0,
                           "\"referral_secret\": " ngx_read_fd_n
                           " \"%V\" failed", name);
        ngx_explicit_memzero(buf, size + 1);
        ngx_free(buf);
        return NGX_CONF_ERROR;
    }

    rc = referral_keyring_parse(ring, buf, size, error);

    ngx_explicit_memzero(buf, size + 1);
    ngx_free(buf);

    if (rc != REFERRAL_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_secret\": \"%V\": %s", name, error);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}
