
/*
 * Copyright (C) The nginx referral module authors
 *
 * From a code to a verdict: zone first, then one read of Redis shared by all
 * requests of this worker that want the code, with a deadline.
 */


#ifndef _NGX_HTTP_REFERRAL_LOOKUP_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_LOOKUP_H_INCLUDED_


#include "ngx_http_referral.h"
#include "ngx_http_referral_redis.h"


/* requests of one worker that may wait for Redis at a time */

#define NGX_HTTP_REFERRAL_WAITERS  1024


ngx_int_t ngx_http_referral_lookup_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf);
void ngx_http_referral_lookup_exit_process(void);

/* reads that were held back at the start go out */
void ngx_http_referral_lookup_release(void);

/* whose address the subscription takes; NULL: there is none */
ngx_http_referral_redis_t *ngx_http_referral_lookup_link(void);

/* the server was heard on another connection */
void ngx_http_referral_lookup_hurry(void);

/* ctx->code (folded) will be looked up soon: sets ctx->hash */
void ngx_http_referral_lookup_expect(ngx_http_referral_ctx_t *ctx);

/* and what that led to is fetched; the lookup's lock lets nothing pass it */
void ngx_http_referral_lookup_expect_entry(ngx_http_referral_ctx_t *ctx);

/*
 * Judges ctx->code, which lookup_expect() was told of.
 *
 *   NGX_OK     ctx->verdict, cache and rule are set, judged is 1
 *   NGX_AGAIN  the request has to wait: ctx->wake(ctx) is called from the
 *              event loop once they are set; at the deadline at the latest,
 *              then with the verdict unverified
 *   NGX_BUSY   the client's network is over the miss limit: answer 429;
 *              ctx->busy is 1, nothing else is set
 *   NGX_ERROR  no memory
 *
 * The wait ends by itself when the request does.
 */
ngx_int_t ngx_http_referral_lookup(ngx_http_referral_ctx_t *ctx);

/* the request does not wait any longer: nothing will wake it */
void ngx_http_referral_lookup_cancel(ngx_http_referral_ctx_t *ctx);


#endif /* _NGX_HTTP_REFERRAL_LOOKUP_H_INCLUDED_ */
