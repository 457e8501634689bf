
/*
 * Copyright (C) The nginx referral module authors
 *
 * Reads referral:off, the programs and referrers that are switched off, into
 * the zone.  The link is that of lookups: what a code's reply says is judged
 * by a set that was read before it.
 */


#ifndef _NGX_HTTP_REFERRAL_OFF_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_OFF_H_INCLUDED_


#include "ngx_http_referral.h"
#include "ngx_http_referral_redis.h"


void ngx_http_referral_off_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf);

/* the link of lookups greets: the set precedes all that is asked for */
void ngx_http_referral_off_greet(ngx_http_referral_redis_t *link);

/* the link is about to be destroyed */
void ngx_http_referral_off_leave(void);

/*
 * Reads the set, once more if that is under way, and when there is a link
 * again if there is none.  ngx_http_referral_subscribe_settled() follows.
 */
void ngx_http_referral_off_read(void);

/* now and then: what could not be asked, and a look in case of a lost word */
void ngx_http_referral_off_tick(void);


#endif /* _NGX_HTTP_REFERRAL_OFF_H_INCLUDED_ */
