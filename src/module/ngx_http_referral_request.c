
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_request.h"


typedef struct {
    ngx_str_t                 name;            /* lower case */
    ngx_str_t                 prefix;          /* of the value */
    ngx_uint_t                signal;
} ngx_http_referral_hint_t;


static void ngx_http_referral_cleanup(void *data);
static void ngx_http_referral_read_language(ngx_http_referral_ctx_t *ctx,
    ngx_str_t *value);


/*
 * A bit for the length of each name that is read: those of the table below,
 * "sec-fetch-dest" and "accept-language".
 */

#define NGX_HTTP_REFERRAL_HEADER_LENS                                         \
    (1 << 3 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 14 | 1 << 15)


static ngx_http_referral_hint_t  ngx_http_referral_hints[] = {

    { ngx_string("sec-gpc"), ngx_string("1"), REFERRAL_SIGNAL_GPC },
    { ngx_string("dnt"), ngx_string("1"), REFERRAL_SIGNAL_DNT },

    /* "prefetch;prerender", "prefetch;anonymous-client-ip" */

    { ngx_string("sec-purpose"), ngx_string("prefetch"),
      REFERRAL_SIGNAL_PREFETCH },

    { ngx_string("purpose"), ngx_string("prefetch"),
      REFERRAL_SIGNAL_PREFETCH },

    { ngx_string("purpose"), ngx_string("preview"),
      REFERRAL_SIGNAL_PREVIEW },

    { ngx_string("x-purpose"), ngx_string("prefetch"),
      REFERRAL_SIGNAL_PREFETCH },

    { ngx_string("x-purpose"), ngx_string("preview"),
      REFERRAL_SIGNAL_PREVIEW },

    { ngx_string("x-moz"), ngx_string("prefetch"),
      REFERRAL_SIGNAL_PREFETCH },

    { ngx_null_string, ngx_null_string, 0 }
};


ngx_http_referral_ctx_t *
ngx_http_referral_find_ctx(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t       *cln;
    ngx_http_referral_ctx_t  *ctx;

    ctx = NULL;

    for (cln = r->pool->cleanup; cln; cln = cln->next) {

        if (cln->handler == ngx_http_referral_cleanup) {
            ctx = cln->data;
            ngx_http_set_ctx(r, ctx, ngx_http_referral_module);
            break;
        }
    }

    return ctx;
}


ngx_http_referral_ctx_t *
ngx_http_referral_make_ctx(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t       *cln;
    ngx_http_referral_ctx_t  *ctx;

    r = r->main;

    ctx = ngx_http_referral_get_ctx(r);

    if (ctx != NULL) {
        return ctx;
    }

    cln = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_referral_ctx_t));
    if (cln == NULL) {
        return NULL;
    }

    ctx = cln->data;
    ngx_memzero(ctx, sizeof(ngx_http_referral_ctx_t));

    ctx->request = r;

    cln->handler = ngx_http_referral_cleanup;

    ngx_http_set_ctx(r, ctx, ngx_http_referral_module);

    return ctx;
}


/* only a mark in the pool's list: what waits is ended by the lookup */

static void
ngx_http_referral_cleanup(void *data)
{
    /* void */
}


void
ngx_http_referral_read_headers(ngx_http_referral_ctx_t *ctx)
{
    size_t                     len;
    ngx_str_t                 *value;
    ngx_uint_t                 i;
    ngx_list_part_t           *part;
    ngx_table_elt_t           *h;
    ngx_http_referral_hint_t  *hint;

    if (ctx->headers_read) {
        return;
    }

    ctx->headers_read = 1;
    ctx->document = 1;

    if (ctx->request->method & NGX_HTTP_HEAD) {
        ctx->signals |= REFERRAL_SIGNAL_HEAD;
    }

    part = &ctx->request->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                break;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        /* most headers are none of ours, and the length tells */

        len = h[i].key.len;

        if (len > sizeof("accept-language") - 1
            || (NGX_HTTP_REFERRAL_HEADER_LENS >> len & 1) == 0)
        {
            continue;
        }

        if (len == sizeof("accept-language") - 1) {

            if (ngx_memcmp(h[i].lowcase_key, "accept-language", 15) == 0) {
                ngx_http_referral_read_language(ctx, &h[i].value);
            }

            continue;
        }

        if (len == sizeof("sec-fetch-dest") - 1) {

            if (ngx_memcmp(h[i].lowcase_key, "sec-fetch-dest", 14) == 0) {
                value = &h[i].value;
                ctx->document = (value->len == sizeof("document") - 1
                                 && ngx_memcmp(value->data, "document", 8)
                                    == 0);
            }

            continue;
        }

        for (hint = ngx_http_referral_hints; hint->name.len; hint++) {

            /* the third letter tells "referer" and "x-real-ip" from them */

            if (len == hint->name.len
                && h[i].lowcase_key[2] == hint->name.data[2]
                && h[i].value.len >= hint->prefix.len
                && ngx_memcmp(h[i].lowcase_key, hint->name.data,
                              hint->name.len) == 0
                && ngx_strncasecmp(h[i].value.data, hint->prefix.data,
                                   hint->prefix.len) == 0)
            {
                ctx->signals |= hint->signal;
            }
        }
    }
}


/* the first tag of "de-CH, de;q=0.9, *;q=0.5" */

static void
ngx_http_referral_read_language(ngx_http_referral_ctx_t *ctx,
    ngx_str_t *value)
{
    size_t  i, start;

    if (ctx->language.len) {
        return;
    }

    for (start = 0; start < value->len && value->data[start] == ' '; start++) {
        /* void */
    }

    for (i = start; i < value->len; i++) {
        if (value->data[i] == ',' || value->data[i] == ';'
            || value->data[i] == ' ')
        {
            break;
        }
    }

    ctx->language.data = value->data + start;
    ctx->language.len = i - start;
}


ngx_table_elt_t *
ngx_http_referral_add_header(ngx_http_request_t *r, const char *name,
    const char *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NULL;
    }

    ngx_http_referral_header_init(h);

    h->hash = 1;
    h->key.len = ngx_strlen(name);
    h->key.data = (u_char *) name;
    h->value.len = ngx_strlen(value);
    h->value.data = (u_char *) value;

    return h;
}


/*
 * The header is not registered as r->headers_out.location: nginx would make
 * a relative one absolute, and so guess a scheme and a port that a proxy in
 * front of it may not share.
 */

ngx_int_t
ngx_http_referral_send_redirect(ngx_http_request_t *r, ngx_str_t *location)
{
    ngx_int_t         rc;
    ngx_table_elt_t  *h;

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    h = ngx_http_referral_add_header(r, "Location", "");
    if (h == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    h->value = *location;

    r->headers_out.status = NGX_HTTP_MOVED_TEMPORARILY;
    r->headers_out.content_length_n = 0;
    r->header_only = 1;

    return ngx_http_send_header(r);
}
