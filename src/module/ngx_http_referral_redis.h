
/*
 * Copyright (C) The nginx referral module authors
 *
 * One connection to Redis for each worker: nginx owns the socket, hiredis
 * formats commands and parses replies.  Commands are pipelined.
 */


#ifndef _NGX_HTTP_REFERRAL_REDIS_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_REDIS_H_INCLUDED_


#include "ngx_http_referral.h"
#include "referral_redis_url.h"

#include <hiredis/hiredis.h>


struct ngx_http_referral_redis_conf_s {
    referral_redis_url_t         url;
    ngx_addr_t                  *addrs;            /* resolved at start */
    ngx_uint_t                   naddrs;
    ngx_msec_t                   timeout;          /* of a command */
    ngx_msec_t                   connect_timeout;
};


typedef struct ngx_http_referral_redis_s  ngx_http_referral_redis_t;

/*
 * Called once for each command, with the reply however late it is, or with
 * NULL when there will be none because the link was closed: after max(1 s,
 * 3 timeouts) without it at the latest.  reply belongs to the link.  Must not
 * destroy the link.
 */
typedef void (*ngx_http_referral_redis_pt)(void *data, redisReply *reply);


/*
 * directive: referral_redis url [timeout=time] [connect_timeout=time]
 *            [password_file=path]
 */
char *ngx_http_referral_redis(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* makes this worker's link and starts to connect; NULL only without memory */
ngx_http_referral_redis_t *ngx_http_referral_redis_create(ngx_cycle_t *cycle,
    ngx_http_referral_redis_conf_t *conf, const char *name);
void ngx_http_referral_redis_destroy(ngx_http_referral_redis_t *link);

/*
 * 1 when it is worth waiting for a reply (the first attempt to connect
 * included); 0 while the server is not reachable, not ready, or the circuit
 * is open.
 */
ngx_uint_t ngx_http_referral_redis_usable(ngx_http_referral_redis_t *link);

/*
 * Queues a command.  NGX_DECLINED when there is no connection or too much is
 * in flight: handler is not called then.  With an open circuit a few commands
 * are still taken, whose replies may come late.
 */
ngx_int_t ngx_http_referral_redis_command(ngx_http_referral_redis_t *link,
    int argc, const char **argv, const size_t *argvlen,
    ngx_http_referral_redis_pt handler, void *data);


#endif /* _NGX_HTTP_REFERRAL_REDIS_H_INCLUDED_ */
