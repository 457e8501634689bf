
/*
 * Copyright (C) The nginx referral module authors
 *
 * The header filter: commits, sets the cookie, guards caches.
 */


#ifndef _NGX_HTTP_REFERRAL_FILTER_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_FILTER_H_INCLUDED_


#include "ngx_http_referral.h"


ngx_int_t ngx_http_referral_filter_init(ngx_conf_t *cf);

/*
 * 1 unless the response, as far as it is known, is one that neither records
 * nor sets a cookie: 401, 403, 429, 5xx, a redirect that still carries the
 * parameter, or a request that ended without an answer.
 */
ngx_uint_t ngx_http_referral_filter_allows(ngx_http_referral_ctx_t *ctx);


#endif /* _NGX_HTTP_REFERRAL_FILTER_H_INCLUDED_ */
