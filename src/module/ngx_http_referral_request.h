
/*
 * Copyright (C) The nginx referral module authors
 *
 * What every file that handles requests uses: the context, what the
 * request's headers say, response headers.
 */


#ifndef _NGX_HTTP_REFERRAL_REQUEST_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_REQUEST_H_INCLUDED_


#include "ngx_http_referral.h"


/* internal redirects and error pages clear r->ctx, but not the pool */
ngx_http_referral_ctx_t *ngx_http_referral_find_ctx(ngx_http_request_t *r);

/* makes it when there is none; NULL only without memory */
ngx_http_referral_ctx_t *ngx_http_referral_make_ctx(ngx_http_request_t *r);

/* what the request's headers say, read once: signals, language, document */
void ngx_http_referral_read_headers(ngx_http_referral_ctx_t *ctx);

/* pushes a response header; the strings must live as long as the request */
ngx_table_elt_t *ngx_http_referral_add_header(ngx_http_request_t *r,
    const char *name, const char *value);

/* 302 with an empty body and the Location as it is given */
ngx_int_t ngx_http_referral_send_redirect(ngx_http_request_t *r,
    ngx_str_t *location);


/*
 * NULL when the request has none; works after internal redirects.  Inline,
 * because three of our handlers ask for each page that is none of ours.
 */

static ngx_inline ngx_http_referral_ctx_t *
ngx_http_referral_get_ctx(ngx_http_request_t *r)
{
    ngx_http_referral_ctx_t  *ctx;

    r = r->main;

    ctx = ngx_http_get_module_ctx(r, ngx_http_referral_module);

    if (ctx != NULL || !(r->internal || r->filter_finalize)) {
        return ctx;
    }

    return ngx_http_referral_find_ctx(r);
}


#endif /* _NGX_HTTP_REFERRAL_REQUEST_H_INCLUDED_ */
