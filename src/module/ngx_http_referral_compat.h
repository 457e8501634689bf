
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

#else

#define ngx_http_referral_header_init(h)

#endif


/* 1.23.0: so is Cache-Control, which was an array before */

static ngx_inline ngx_int_t
ngx_http_referral_register_cache_control(ngx_http_request_t *r,
    ngx_table_elt_t *h)
{
#if (nginx_version >= 1023000)

    r->headers_out.cache_control = h;

#else

    ngx_table_elt_t  **cc;

    if (r->headers_out.cache_control.elts == NULL
        && ngx_array_init(&r->headers_out.cache_control, r->pool, 1,
                          sizeof(ngx_table_elt_t *))
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    cc = ngx_array_push(&r->headers_out.cache_control);
    if (cc == NULL) {
        return NGX_ERROR;
    }

    *cc = h;

#endif

    return NGX_OK;
}


#endif /* _NGX_HTTP_REFERRAL_COMPAT_H_INCLUDED_ */
