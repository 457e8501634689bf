
/*
 * Copyright (C) The nginx referral module authors
 *
 * What the two files of lookups share: requests that wait, and reads.
 *
 * A read of Redis (an op) belongs to this worker and never to a request: it
 * keeps its own copy of the code, the requests that wait for it stand in its
 * queues, and the cleanup of a request takes it out again.  So a reply may
 * come after all of them have gone, and still fills the zone.
 *
 * A request may be answered by any read that was written after it came.  One
 * that joined later needs a reply that the zone takes: nothing was announced
 * in between.
 */


#ifndef _NGX_HTTP_REFERRAL_LOOKUP_PRIVATE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_LOOKUP_PRIVATE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include "ngx_http_referral.h"
#include "ngx_http_referral_lookup.h"
#include "ngx_http_referral_redis.h"
#include "ngx_http_referral_stat.h"
#include "ngx_http_referral_zone.h"


typedef struct {
    ngx_str_node_t                     sn;         /* by code */
    ngx_queue_t                        held;       /* link, until it is sent */
    ngx_queue_t                        waiters;    /* since before the read */
    ngx_queue_t                        joined;     /* those that came later */
    ngx_http_referral_zone_token_t     token;
    ngx_msec_t                         sent;
    ngx_uint_t                         reads;      /* without an answer */
    ngx_uint_t                         pending;    /* replies */
    ngx_event_t                        timer;      /* set while some wait */
    ngx_connection_t                   dummy;      /* what the timer shows */
    ngx_msec_t                         deadline;
    u_char                             code[REFERRAL_CODE_LEN];
    unsigned                           absent:1;   /* if Redis is ready */
} ngx_http_referral_lookup_op_t;


typedef struct {
    ngx_http_referral_main_conf_t     *rmcf;
    ngx_http_referral_redis_t         *link;       /* NULL: no Redis */
    ngx_log_t                         *log;

    ngx_rbtree_t                       ops;
    ngx_rbtree_node_t                  sentinel;

    ngx_queue_t                        held;       /* reads, at the start */
    ngx_queue_t                        answered;   /* contexts to wake */
    ngx_event_t                        wake;
    ngx_connection_t                   dummy;

    ngx_uint_t                         waiters;
} ngx_http_referral_lookup_t;


extern ngx_http_referral_lookup_t           ngx_http_referral_lookups;
extern const ngx_http_referral_redis_use_t  ngx_http_referral_lookup_use;


/* ngx_http_referral_lookup.c: requests */

/* rule NULL: unknown; its strings belong to the reply */
void ngx_http_referral_lookup_answers(
    ngx_http_referral_lookup_op_t *op, ngx_queue_t *queue,
    referral_rule_t *rule, referral_verdict_e verdict);

/* all who wait are answered with what there is */
void ngx_http_referral_lookup_give_up(
    ngx_http_referral_lookup_op_t *op);

/* those that joined wait for the next read */
void ngx_http_referral_lookup_merge(
    ngx_http_referral_lookup_op_t *op);

/* ngx_http_referral_lookup_read.c: reads */

ngx_http_referral_lookup_op_t *ngx_http_referral_lookup_find(
    ngx_str_t *code, uint32_t hash);

/* NULL: the link takes no command now, or there is no memory */
ngx_http_referral_lookup_op_t *ngx_http_referral_lookup_start(
    ngx_str_t *code, uint32_t hash);


#endif /* _NGX_HTTP_REFERRAL_LOOKUP_PRIVATE_H_INCLUDED_ */
