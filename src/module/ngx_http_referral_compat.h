
/*
 * Copyright (C) The nginx referral module authors
 *
 * Every difference between nginx versions, 1.22 to the newest, and between
 * builds stands here and nowhere else.
 */


#ifndef _NGX_HTTP_REFERRAL_COMPAT_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_COMPAT_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>


#if (nginx_version < 1022000)
#error the referral module needs nginx 1.22.0 or newer
#endif


/* 1.23.0: headers of one name are linked; list memory is not zeroed */

#if (nginx_version >= 1023000)

#define ngx_http_referral_header_init(h)  (h)->next = NULL
#define ngx_http_referral_cookies(r)      (r)->headers_in.cookie

#else

#define ngx_http_referral_header_init(h)

#endif


#endif /* _NGX_HTTP_REFERRAL_COMPAT_H_INCLUDED_ */
