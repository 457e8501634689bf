
/*
 * Copyright (C) The nginx referral module authors
 *
 * The attribution cookie: reading the token that came, making the next one.
 */


#ifndef _NGX_HTTP_REFERRAL_COOKIE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_COOKIE_H_INCLUDED_


#include "ngx_http_referral.h"


/*
 * Tries all cookies of our name and keeps the first that verifies:
 * ctx->has_token.  Once a request; results are counted.
 */
void ngx_http_referral_cookie_read(ngx_http_referral_ctx_t *ctx);

/*
 * 1 when the visitor may be remembered: consent is given or not required,
 * and no Sec-GPC where it is respected.  Asked once a request.
 */
ngx_uint_t ngx_http_referral_cookie_consent(ngx_http_referral_ctx_t *ctx);

/* "Set-Cookie: ..." for ctx->new_token; called again, it adds nothing */
ngx_int_t ngx_http_referral_cookie_set(ngx_http_referral_ctx_t *ctx);


#endif /* _NGX_HTTP_REFERRAL_COOKIE_H_INCLUDED_ */
