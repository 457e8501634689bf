
/*
 * Copyright (C) The nginx referral module authors
 *
 * The header filter: commits, sets the cookie, guards caches, strips.
 */


#ifndef _NGX_HTTP_REFERRAL_FILTER_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_FILTER_H_INCLUDED_


#include "ngx_http_referral.h"


ngx_int_t ngx_http_referral_filter_init(ngx_conf_t *cf);


#endif /* _NGX_HTTP_REFERRAL_FILTER_H_INCLUDED_ */
