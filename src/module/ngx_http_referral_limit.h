
/*
 * Copyright (C) The nginx referral module authors
 *
 * Budgets: misses per client network, and records of clicks that are noise.
 */


#ifndef _NGX_HTTP_REFERRAL_LIMIT_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_LIMIT_H_INCLUDED_


#include "ngx_http_referral.h"


/* records of one worker whose verdict is not valid: per second, and burst */

#define NGX_HTTP_REFERRAL_NOISE_RATE   200
#define NGX_HTTP_REFERRAL_NOISE_BURST  2000


struct ngx_http_referral_limit_conf_s {
    ngx_uint_t                   rate;             /* 1 is 0.001 r/s */
    ngx_uint_t                   burst;            /* 1 is 0.001 r */
};


/* directive: referral_miss_limit rate=R [burst=N] */
char *ngx_http_referral_miss_limit(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/*
 * Takes one miss from the budget of the client's /24 or /64.  NGX_OK,
 * or NGX_BUSY.  Without the directive, a unix socket or memory: NGX_OK.
 */
ngx_int_t ngx_http_referral_limit_miss(ngx_http_request_t *r,
    ngx_http_referral_main_conf_t *rmcf);

/* takes one record from this worker's budget for noise: 1, or 0 if spent */
ngx_uint_t ngx_http_referral_limit_noise(void);


#endif /* _NGX_HTTP_REFERRAL_LIMIT_H_INCLUDED_ */
