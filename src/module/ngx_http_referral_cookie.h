
/*
 * Copyright (C) The nginx referral module authors
 *
 * The attribution cookie: reading the token that came, making the next one.
 */


#ifndef _NGX_HTTP_REFERRAL_COOKIE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_COOKIE_H_INCLUDED_


#include "ngx_http_referral.h"


/* directives: referral_cookie, referral_secret, referral_consent */
char *ngx_http_referral_cookie(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_referral_secret(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_referral_consent(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/* the cookie that a configuration without the directive has */
ngx_http_referral_cookie_conf_t *ngx_http_referral_cookie_default(
    ngx_conf_t *cf);

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
