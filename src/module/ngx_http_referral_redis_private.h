
/*
 * Copyright (C) The nginx referral module authors
 *
 * What the two files of the link share.
 */


#ifndef _NGX_HTTP_REFERRAL_REDIS_PRIVATE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_REDIS_PRIVATE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_event_connect.h>
#include <ngx_http.h>

#include "ngx_http_referral.h"
#include "ngx_http_referral_redis.h"
#include "ngx_http_referral_stat.h"


#define NGX_HTTP_REFERRAL_REDIS_REASON    256            /* bytes */


typedef enum {
    NGX_HTTP_REFERRAL_REDIS_DOWN = 0,
    NGX_HTTP_REFERRAL_REDIS_CONNECTING,
    NGX_HTTP_REFERRAL_REDIS_GREETING,
    NGX_HTTP_REFERRAL_REDIS_READY
} ngx_http_referral_redis_state_e;


/* what the link itself asks; OP_USER and _OPTIONAL are everybody else */

typedef enum {
    NGX_HTTP_REFERRAL_REDIS_OP_USER = 0,
    NGX_HTTP_REFERRAL_REDIS_OP_AUTH,
    NGX_HTTP_REFERRAL_REDIS_OP_SELECT,
    NGX_HTTP_REFERRAL_REDIS_OP_NAME,
    NGX_HTTP_REFERRAL_REDIS_OP_PROBE,
    NGX_HTTP_REFERRAL_REDIS_OP_OPTIONAL
} ngx_http_referral_redis_op_e;


typedef struct {
    ngx_queue_t                        queue;
    ngx_msec_t                         sent;
    uint64_t                           started;    /* for the histogram */
    ngx_http_referral_redis_op_e       type;
    ngx_http_referral_redis_pt         handler;
    void                              *data;
} ngx_http_referral_redis_op_t;


struct ngx_http_referral_redis_s {
    ngx_http_referral_redis_conf_t    *conf;

    const ngx_http_referral_redis_use_t  *use;
    ngx_http_referral_redis_t         *leader;     /* or NULL */

    ngx_msec_t                         timeout;    /* of a command */

    ngx_http_referral_redis_state_e    state;
    ngx_uint_t                         addr;       /* of conf->addrs */
    ngx_uint_t                         tried;      /* of them, in a row */

    ngx_peer_connection_t              peer;
    ngx_log_t                          log;
    redisReader                       *reader;
    redisReplyObjectFunctions          functions;
    redisReplyObjectFunctions         *defaults;
    size_t                             fed;        /* of the next reply */

    u_char                            *out;
    u_char                            *pos;
    u_char                            *last;
    u_char                            *end;

    /* replies come in this order: late, then ops */

    ngx_queue_t                        late;       /* timed out */
    ngx_queue_t                        ops;
    ngx_queue_t                        spare;
    ngx_uint_t                         nops;

    ngx_event_t                        retry;      /* connect, or probe */
    ngx_event_t                        deadline;   /* of the oldest op */
    ngx_connection_t                   dummy;      /* what timers refer to */

    ngx_msec_t                         backoff;
    ngx_msec_t                         said;       /* that it is down */
    uint32_t                           said_crc;   /* and why */
    ngx_msec_t                         since;      /* ready, circuit closed */
    ngx_msec_t                         heard;      /* any bytes */
    ngx_uint_t                         timeouts;   /* in a row */

    u_char                             reason[NGX_HTTP_REFERRAL_REDIS_REASON];

    unsigned                           hopeful:1;  /* nothing failed yet */
    unsigned                           open:1;     /* the circuit */
    unsigned                           probing:1;
    unsigned                           reported:1; /* as not usable */
    unsigned                           broken:1;   /* sending failed */
    unsigned                           too_large:1;
};


/* ngx_http_referral_redis.c: states */

void ngx_http_referral_redis_ready(ngx_http_referral_redis_t *link);
void ngx_http_referral_redis_set_deadline(
    ngx_http_referral_redis_t *link);
void ngx_http_referral_redis_reason(ngx_http_referral_redis_t *link,
    const char *fmt, ...);
void ngx_http_referral_redis_errno(ngx_http_referral_redis_t *link,
    ngx_err_t err);
void ngx_http_referral_redis_fail(ngx_http_referral_redis_t *link);
void ngx_http_referral_redis_close(ngx_http_referral_redis_t *link);

/* ngx_http_referral_redis_io.c: the connection, bytes and replies */

void ngx_http_referral_redis_connect(ngx_http_referral_redis_t *link);
ngx_int_t ngx_http_referral_redis_probe(
    ngx_http_referral_redis_t *link);
ngx_int_t ngx_http_referral_redis_ask(ngx_http_referral_redis_t *link,
    ngx_http_referral_redis_op_e type, int argc, const char **argv,
    const size_t *argvlen, ngx_http_referral_redis_pt handler, void *data);


#endif /* _NGX_HTTP_REFERRAL_REDIS_PRIVATE_H_INCLUDED_ */
