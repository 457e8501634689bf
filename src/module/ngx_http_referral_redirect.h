
/*
 * Copyright (C) The nginx referral module authors
 *
 * The content handler of /r/ locations.
 */


#ifndef _NGX_HTTP_REFERRAL_REDIRECT_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_REDIRECT_H_INCLUDED_


#include "ngx_http_referral.h"


ngx_int_t ngx_http_referral_redirect_handler(ngx_http_request_t *r);

/* directives: referral_redirect [code], referral_fallback url|off */
char *ngx_http_referral_redirect(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_referral_fallback(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


#endif /* _NGX_HTTP_REFERRAL_REDIRECT_H_INCLUDED_ */
