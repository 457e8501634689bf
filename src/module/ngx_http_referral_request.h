
/*
 * Copyright (C) The nginx referral module authors
 *
 * What every file that handles requests uses: the context, what the
 * request's headers say, response headers.
 */


#ifndef _NGX_HTTP_REFERRAL_REQUEST_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_REQUEST_H_INCLUDED_


#include "ngx_http_referral.h"


/* NULL when the request has none; works after internal redirects */
ngx_http_referral_ctx_t *ngx_http_referral_get_ctx(ngx_http_request_t *r);

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


#endif /* _NGX_HTTP_REFERRAL_REQUEST_H_INCLUDED_ */
