
/*
 * Copyright (C) The nginx referral module authors
 *
 * The SERVER_REWRITE handler: sees the parameter of a page, judges its code.
 */


#ifndef _NGX_HTTP_REFERRAL_CAPTURE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_CAPTURE_H_INCLUDED_


#include "ngx_http_referral.h"


ngx_int_t ngx_http_referral_capture_handler(ngx_http_request_t *r);


#endif /* _NGX_HTTP_REFERRAL_CAPTURE_H_INCLUDED_ */
