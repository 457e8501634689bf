
/*
 * Copyright (C) The nginx referral module authors
 *
 * The referral_status handler: counters as JSON, or as Prometheus' text.
 */


#ifndef _NGX_HTTP_REFERRAL_STATUS_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_STATUS_H_INCLUDED_


#include "ngx_http_referral.h"


/* directive: referral_status */
char *ngx_http_referral_status(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


#endif /* _NGX_HTTP_REFERRAL_STATUS_H_INCLUDED_ */
