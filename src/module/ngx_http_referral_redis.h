
/*
 * Copyright (C) The nginx referral module authors
 *
 * Connections of a worker to Redis, one for lookups and one for what Redis
 * announces: nginx owns the socket, hiredis formats commands and parses
 * replies.  Commands are pipelined.
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

typedef void (*ngx_http_referral_redis_link_pt)(
    ngx_http_referral_redis_t *link);


/* what a link is for; handlers may be NULL, and must not destroy it */

typedef struct {
    const char                       *name;        /* of the connection */
    const char                       *trouble;     /* "is not usable" */
    const char                       *harm;        /* what that means */
    const char                       *well;        /* "is usable again" */
    ngx_uint_t                        level;       /* of these lines */
    ngx_msec_t                        timeout;     /* 0: of the directive */

    /* commands that go out before any other, and before it is ready */

    ngx_http_referral_redis_link_pt   greet;
    ngx_http_referral_redis_link_pt   ready;       /* or the circuit closed */
    ngx_http_referral_redis_link_pt   down;

    /* "HMGET referral:publisher generation ready", with each greeting */

    ngx_http_referral_redis_pt        probe;

    /* messages of channels; so few at a time that nobody starves */

    ngx_http_referral_redis_pt        push;
} ngx_http_referral_redis_use_t;


/*
 * directive: referral_redis url [timeout=time] [connect_timeout=time]
 *            [password_file=path]
 */
char *ngx_http_referral_redis(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/*
 * Makes this worker's link and starts to connect; NULL only without memory.
 * Of several addresses a link takes one that answers, or that of its leader,
 * if it has one.
 */
ngx_http_referral_redis_t *ngx_http_referral_redis_create(ngx_cycle_t *cycle,
    ngx_http_referral_redis_conf_t *conf,
    const ngx_http_referral_redis_use_t *use,
    ngx_http_referral_redis_t *leader);
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

/*
 * The same for what the link itself can do without: taken while it connects,
 * too, not counted, and a user who may not do this is told so by the reply
 * and loses nothing else.
 */
ngx_int_t ngx_http_referral_redis_optional(ngx_http_referral_redis_t *link,
    int argc, const char **argv, const size_t *argvlen,
    ngx_http_referral_redis_pt handler, void *data);

/*
 * The server was heard elsewhere: a link that waits to try again need not, and
 * one whose leader has another address by now goes there.
 */
void ngx_http_referral_redis_hurry(ngx_http_referral_redis_t *link);


#endif /* _NGX_HTTP_REFERRAL_REDIS_H_INCLUDED_ */
