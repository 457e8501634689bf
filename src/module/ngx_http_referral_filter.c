
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_commit.h"
#include "ngx_http_referral_cookie.h"
#include "ngx_http_referral_filter.h"
#include "ngx_http_referral_request.h"

#include "referral_args.h"


static ngx_int_t ngx_http_referral_header_filter(ngx_http_request_t *r);
static ngx_uint_t ngx_http_referral_filter_carried(ngx_http_request_t *r);
static ngx_int_t ngx_http_referral_filter_no_store(ngx_http_request_t *r);
static ngx_int_t ngx_http_referral_filter_private(ngx_http_request_t *r);
static size_t ngx_http_referral_filter_size(ngx_http_request_t *r);
static u_char *ngx_http_referral_filter_directives(u_char *dst, u_char *start,
    ngx_str_t *value, ngx_uint_t *private);
static ngx_int_t ngx_http_referral_filter_replace(ngx_http_request_t *r,
    ngx_str_t *value);
static ngx_int_t ngx_http_referral_filter_add(ngx_http_request_t *r,
    ngx_str_t *value);
static ngx_table_elt_t *ngx_http_referral_filter_next(ngx_http_request_t *r,
    ngx_list_part_t **part, ngx_uint_t *i, const char *name, size_t len);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;


/*
 * Runs after nginx's headers filter: what "expires" and "add_header" made is
 * seen here, and cannot undo what is decided here.
 */

static ngx_int_t
ngx_http_referral_header_filter(ngx_http_request_t *r)
{
    ngx_uint_t                     no_store;
    ngx_http_referral_ctx_t       *ctx;
    ngx_http_referral_loc_conf_t  *rlcf;

    if (r != r->main) {
        return ngx_http_next_header_filter(r);
    }

    ctx = ngx_http_referral_get_ctx(r);
    rlcf = ngx_http_get_module_loc_conf(r, ngx_http_referral_module);

    if (ctx == NULL) {

        /* denied before the handler of a /r/ location ran */

        if (rlcf->redirect && ngx_http_referral_filter_no_store(r) != NGX_OK) {
            return NGX_ERROR;
        }

        return ngx_http_next_header_filter(r);
    }

    no_store = ctx->redirect || ctx->strip || ctx->busy || rlcf->redirect;

    if (ngx_http_referral_filter_allows(ctx)) {

        ngx_http_referral_commit(ctx);

        if (ctx->set_token) {

            if (ngx_http_referral_cookie_set(ctx) != NGX_OK) {
                return NGX_ERROR;
            }

            if (!no_store && ngx_http_referral_filter_private(r) != NGX_OK) {
                return NGX_ERROR;
            }
        }

    } else {
        ctx->declined = 1;
    }

    if (no_store && ngx_http_referral_filter_no_store(r) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_next_header_filter(r);
}


ngx_uint_t
ngx_http_referral_filter_allows(ngx_http_referral_ctx_t *ctx)
{
    ngx_uint_t           status;
    ngx_http_request_t  *r;

    r = ctx->request;

    if (ctx->declined || r->header_sent) {
        return 0;
    }

    status = r->err_status ? r->err_status : r->headers_out.status;

    switch (status) {

    case 0: /* not known yet: something reads the id before the answer */
        return !r->connection->error;

    case NGX_HTTP_UNAUTHORIZED:
    case NGX_HTTP_FORBIDDEN:
    case NGX_HTTP_REQUEST_TIME_OUT:
    case NGX_HTTP_TOO_MANY_REQUESTS:
    case NGX_HTTP_CLOSE:
    case NGX_HTTP_CLIENT_CLOSED_REQUEST:
        return 0;

    default:
        break;
    }

    if (status >= NGX_HTTP_INTERNAL_SERVER_ERROR) {
        return 0;
    }

    if (status >= NGX_HTTP_SPECIAL_RESPONSE && status < NGX_HTTP_BAD_REQUEST
        && status != NGX_HTTP_NOT_MODIFIED && !ctx->redirect)
    {
        return !ngx_http_referral_filter_carried(r);
    }

    return 1;
}


/*
 * From http to https, from "/dir" to "/dir/": the next request has the
 * parameter too and is the one to record.
 */

static ngx_uint_t
ngx_http_referral_filter_carried(ngx_http_request_t *r)
{
    u_char                        *p, *last;
    ngx_uint_t                     i, n;
    referral_str_t                *names, rest, name, value;
    ngx_list_part_t               *part;
    ngx_table_elt_t               *h;
    ngx_http_referral_srv_conf_t  *rscf;

    h = r->headers_out.location;

    if (h == NULL || h->hash == 0) {
        part = &r->headers_out.headers.part;
        i = 0;

        h = ngx_http_referral_filter_next(r, &part, &i, "Location", 8);
        if (h == NULL) {
            return 0;
        }
    }

    last = h->value.data + h->value.len;

    p = ngx_strlchr(h->value.data, last, '#');
    if (p != NULL) {
        last = p;
    }

    p = ngx_strlchr(h->value.data, last, '?');
    if (p == NULL) {
        return 0;
    }

    rest.data = p + 1;
    rest.len = last - rest.data;

    rscf = ngx_http_get_module_srv_conf(r, ngx_http_referral_module);
    names = rscf->params->elts;

    while (referral_args_next(&rest, &name, &value, NULL)) {

        if (value.len == 0) {
            continue;
        }

        for (n = 0; n < rscf->params->nelts; n++) {
            if (referral_args_name_is(&name, &names[n])) {
                return 1;
            }
        }
    }

    return 0;
}


static ngx_int_t
ngx_http_referral_filter_no_store(ngx_http_request_t *r)
{
    ngx_str_t  value;

    if (r->headers_out.expires) {
        r->headers_out.expires->hash = 0;
        r->headers_out.expires = NULL;
    }

    ngx_str_set(&value, "no-store");

    return ngx_http_referral_filter_replace(r, &value);
}


/*
 * A response with our cookie is for one visitor.  Browsers keep a permanent
 * redirect for ever, so there private is not enough: the next visitor of the
 * same browser profile would not be seen at all.
 */

static ngx_int_t
ngx_http_referral_filter_private(ngx_http_request_t *r)
{
    size_t            len;
    u_char           *p;
    ngx_str_t         value;
    ngx_uint_t        i, private;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    if (r->headers_out.status == NGX_HTTP_MOVED_PERMANENTLY
        || r->headers_out.status == NGX_HTTP_PERMANENT_REDIRECT)
    {
        return ngx_http_referral_filter_no_store(r);
    }

    len = ngx_http_referral_filter_size(r);

    if (len == 0) {
        ngx_str_set(&value, "private");
        return ngx_http_referral_filter_add(r, &value);
    }

    p = ngx_pnalloc(r->pool, len + sizeof(", private") - 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    value.data = p;
    private = 0;

    part = &r->headers_out.headers.part;
    i = 0;

    for ( ;; ) {
        h = ngx_http_referral_filter_next(r, &part, &i, "Cache-Control", 13);
        if (h == NULL) {
            break;
        }

        p = ngx_http_referral_filter_directives(p, value.data, &h->value,
                                                &private);
    }

    if (private) {
        return NGX_OK;
    }

    if (p != value.data) {
        p = ngx_cpymem(p, ", ", 2);
    }

    p = ngx_cpymem(p, "private", 7);
    value.len = p - value.data;

    return ngx_http_referral_filter_replace(r, &value);
}


/* bytes for all values and a ", " after each; 0 without any */

static size_t
ngx_http_referral_filter_size(ngx_http_request_t *r)
{
    size_t            len;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    part = &r->headers_out.headers.part;
    len = 0;
    i = 0;

    for ( ;; ) {
        h = ngx_http_referral_filter_next(r, &part, &i, "Cache-Control", 13);
        if (h == NULL) {
            return len;
        }

        /* "a,b" is written as "a, b" */

        len += 2 * h->value.len + 2;
    }
}


/*
 * Copies the directives of one value without public and s-maxage.  A
 * private="field" speaks of that field only and does not count.
 */

static u_char *
ngx_http_referral_filter_directives(u_char *dst, u_char *start,
    ngx_str_t *value, ngx_uint_t *private)
{
    u_char      *p, *last, *end, *word;
    size_t       len;
    ngx_uint_t   quoted;

    p = value->data;
    last = p + value->len;

    while (p < last) {

        if (*p == ' ' || *p == '\t' || *p == ',') {
            p++;
            continue;
        }

        word = p;
        quoted = 0;

        while (p < last && (quoted || *p != ',')) {
            if (*p == '"') {
                quoted = !quoted;

            } else if (quoted && *p == '\\' && p + 1 < last) {
                p++;
            }

            p++;
        }

        for (end = p; end > word && (end[-1] == ' ' || end[-1] == '\t'); ) {
            end--;
        }

        len = end - word;

        if ((len == 7 && ngx_strncasecmp(word, (u_char *) "private", 7) == 0)
            || (len == 8
                && ngx_strncasecmp(word, (u_char *) "no-store", 8) == 0))
        {
            *private = 1;
        }

        if ((len == 6 && ngx_strncasecmp(word, (u_char *) "public", 6) == 0)
            || (len >= 8
                && ngx_strncasecmp(word, (u_char *) "s-maxage", 8) == 0
                && (len == 8 || word[8] == '=' || word[8] == ' ')))
        {
            continue;
        }

        if (dst != start) {
            dst = ngx_cpymem(dst, ", ", 2);
        }

        dst = ngx_cpymem(dst, word, len);
    }

    return dst;
}


/* the first Cache-Control gets the value, others go */

static ngx_int_t
ngx_http_referral_filter_replace(ngx_http_request_t *r, ngx_str_t *value)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h, *first;

    part = &r->headers_out.headers.part;
    first = NULL;
    i = 0;

    for ( ;; ) {
        h = ngx_http_referral_filter_next(r, &part, &i, "Cache-Control", 13);
        if (h == NULL) {
            break;
        }

        if (first != NULL) {
            h->hash = 0;
            continue;
        }

        first = h;
    }

    if (first != NULL) {
        first->value = *value;
        return NGX_OK;
    }

    return ngx_http_referral_filter_add(r, value);
}


static ngx_int_t
ngx_http_referral_filter_add(ngx_http_request_t *r, ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_http_referral_add_header(r, "Cache-Control", "");
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->value = *value;

    return ngx_http_referral_register_cache_control(r, h);
}


/* the next response header of that name; part and i are the position */

static ngx_table_elt_t *
ngx_http_referral_filter_next(ngx_http_request_t *r, ngx_list_part_t **part,
    ngx_uint_t *i, const char *name, size_t len)
{
    ngx_table_elt_t  *h;

    for ( ;; ) {

        if (*i >= (*part)->nelts) {

            if ((*part)->next == NULL) {
                return NULL;
            }

            *part = (*part)->next;
            *i = 0;
            continue;
        }

        h = (*part)->elts;
        h += (*i)++;

        if (h->hash && h->key.len == len
            && ngx_strncasecmp(h->key.data, (u_char *) name, len) == 0)
        {
            return h;
        }
    }
}


ngx_int_t
ngx_http_referral_filter_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_referral_header_filter;

    return NGX_OK;
}
