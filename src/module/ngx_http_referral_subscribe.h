
/*
 * Copyright (C) The nginx referral module authors
 *
 * The worker's subscription to the changes of codes.
 */


#ifndef _NGX_HTTP_REFERRAL_SUBSCRIBE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_SUBSCRIBE_H_INCLUDED_


#include "ngx_http_referral.h"


void ngx_http_referral_subscribe_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf);
void ngx_http_referral_subscribe_exit_process(void);

/*
 * 1 for a moment after the start, while nothing covers the zone and the first
 * attempt is under way: what is read now would be read again.  Ends with
 * ngx_http_referral_lookup_release().
 */
ngx_uint_t ngx_http_referral_subscribe_starting(void);

/* referral:off is as it was after the last time it was asked for, or later */
void ngx_http_referral_subscribe_settled(void);

/* the server was heard on another connection */
void ngx_http_referral_subscribe_hurry(void);


#endif /* _NGX_HTTP_REFERRAL_SUBSCRIBE_H_INCLUDED_ */
