
/*
 * Copyright (C) The nginx referral module authors
 *
 * The cookie's configuration: its attributes, keys and consent.
 */


#ifndef _NGX_HTTP_REFERRAL_COOKIE_CONF_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_COOKIE_CONF_H_INCLUDED_


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


#endif /* _NGX_HTTP_REFERRAL_COOKIE_CONF_H_INCLUDED_ */
