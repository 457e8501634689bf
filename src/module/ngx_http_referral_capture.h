
/*
 * Copyright (C) The nginx referral module authors
 *
 * Pages: sees the parameter, judges its code, strips it from the address.
 */


#ifndef _NGX_HTTP_REFERRAL_CAPTURE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_CAPTURE_H_INCLUDED_


#include "ngx_http_referral.h"


/* arguments of a server that names none: "ref" */
#define NGX_HTTP_REFERRAL_PARAM  "ref"


/* SERVER_REWRITE: sees the parameter and judges its code */
ngx_int_t ngx_http_referral_capture_handler(ngx_http_request_t *r);

/* REWRITE, where the location is known: 429 to who is over the miss limit */
ngx_int_t ngx_http_referral_limited_handler(ngx_http_request_t *r);

/* PRECONTENT: redirects to the same page without the parameter */
ngx_int_t ngx_http_referral_strip_handler(ngx_http_request_t *r);

/* a new code to judge; a malformed one is judged already */
void ngx_http_referral_capture_code(ngx_http_referral_ctx_t *ctx,
    referral_via_e via, u_char *data, size_t len);

/* a request that waits notices when its client goes away */
ngx_int_t ngx_http_referral_capture_wait(ngx_http_referral_ctx_t *ctx);


#endif /* _NGX_HTTP_REFERRAL_CAPTURE_H_INCLUDED_ */
