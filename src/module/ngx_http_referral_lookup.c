
/*
 * Copyright (C) The nginx referral module authors
 *
 * A read of Redis (an op) belongs to this worker and never to a request: it
 * keeps its own copy of the code, the requests that wait for it stand in its
 * queue, and the cleanup of a request takes it out again.  So a reply may
 * come after all of them have gone, and still fills the zone.
 */


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include "ngx_http_referral.h"
#include "ngx_http_referral_limit.h"
#include "ngx_http_referral_lookup.h"
#include "ngx_http_referral_redis.h"
#include "ngx_http_referral_stat.h"
#include "ngx_http_referral_zone.h"


#define NGX_HTTP_REFERRAL_LOOKUP_KEY  "referral:code:"


typedef struct {
    ngx_str_node_t                     sn;         /* by code */
    ngx_queue_t                        waiters;    /* of contexts */
    ngx_event_t                        timer;      /* set while some wait */
    ngx_connection_t                   dummy;      /* what the timer shows */
    ngx_msec_t                         deadline;
    u_char                             code[REFERRAL_CODE_LEN];
} ngx_http_referral_lookup_op_t;


typedef struct {
    ngx_http_referral_main_conf_t     *rmcf;
    ngx_http_referral_redis_t         *link;       /* NULL: no Redis */
    ngx_log_t                         *log;

    ngx_rbtree_t                       ops;
    ngx_rbtree_node_t                  sentinel;

    ngx_queue_t                        answered;   /* contexts to wake */
    ngx_event_t                        wake;
    ngx_connection_t                   dummy;

    ngx_uint_t                         waiters;
} ngx_http_referral_lookup_t;


static ngx_int_t ngx_http_referral_lookup_zone(ngx_http_referral_ctx_t *ctx,
    ngx_uint_t *refresh);
static ngx_int_t ngx_http_referral_lookup_rule(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_rule_t *src);
static void ngx_http_referral_lookup_unverified(ngx_http_referral_ctx_t *ctx,
    referral_cache_e cache);
static ngx_http_referral_lookup_op_t *ngx_http_referral_lookup_find(
    ngx_str_t *code, uint32_t hash);
static ngx_http_referral_lookup_op_t *ngx_http_referral_lookup_start(
    ngx_str_t *code, uint32_t hash);
static ngx_int_t ngx_http_referral_lookup_wait(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op);
static void ngx_http_referral_lookup_cleanup(void *data);
static void ngx_http_referral_lookup_leave(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op);
static void ngx_http_referral_lookup_timeout_handler(ngx_event_t *ev);
static void ngx_http_referral_lookup_reply_handler(void *data,
    redisReply *reply);
static ngx_int_t ngx_http_referral_lookup_reply(
    ngx_http_referral_lookup_op_t *op, redisReply *reply,
    referral_rule_t *rule);
static void ngx_http_referral_lookup_refuse(
    ngx_http_referral_lookup_op_t *op, referral_rule_t *rule,
    const char *reason);
static void ngx_http_referral_lookup_answer(ngx_http_referral_ctx_t *ctx,
    referral_rule_t *rule, referral_verdict_e verdict);
static void ngx_http_referral_lookup_give_up(
    ngx_http_referral_lookup_op_t *op);
static void ngx_http_referral_lookup_post(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op);
static void ngx_http_referral_lookup_wake_handler(ngx_event_t *ev);


static ngx_http_referral_lookup_t  ngx_http_referral_lookups;

/* what ctx->wait is between the answer and the wake */

static u_char  ngx_http_referral_lookup_answered;


ngx_int_t
ngx_http_referral_lookup(ngx_http_referral_ctx_t *ctx)
{
    uint32_t                        hash;
    ngx_int_t                       rc;
    ngx_uint_t                      refresh;
    ngx_http_referral_lookup_t     *lookup;
    ngx_http_referral_lookup_op_t  *op;

    lookup = &ngx_http_referral_lookups;

    /* a path's code may follow a parameter's */

    ctx->rule = NULL;

    refresh = 0;

    rc = ngx_http_referral_lookup_zone(ctx, &refresh);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc == NGX_OK && !refresh) {
        return NGX_OK;
    }

    hash = ngx_crc32_short(ctx->code.data, ctx->code.len);

    op = ngx_http_referral_lookup_find(&ctx->code, hash);

    if (rc == NGX_OK) {

        if (op == NULL) {
            (void) ngx_http_referral_lookup_start(&ctx->code, hash);
        }

        return NGX_OK;
    }

    ngx_http_referral_count(zone_miss);

    if (lookup->link == NULL
        || !ngx_http_referral_redis_usable(lookup->link))
    {
        /* nobody waits, but a server that is only slow fills the zone */

        if (op == NULL) {
            (void) ngx_http_referral_lookup_start(&ctx->code, hash);
        }

        ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_OFF);
        return NGX_OK;
    }

    if (op != NULL) {

        /* who joins costs Redis nothing, so no budget either */

        return ngx_http_referral_lookup_wait(ctx, op);
    }

    if (lookup->waiters >= NGX_HTTP_REFERRAL_WAITERS) {
        ngx_http_referral_count(waiters_refused);
        ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_MISS);
        return NGX_OK;
    }

    if (ngx_http_referral_limit_miss(ctx->request, lookup->rmcf)
        == NGX_BUSY)
    {
        ctx->busy = 1;
        return NGX_BUSY;
    }

    op = ngx_http_referral_lookup_start(&ctx->code, hash);

    if (op == NULL) {
        ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_OFF);
        return NGX_OK;
    }

    return ngx_http_referral_lookup_wait(ctx, op);
}


static ngx_int_t
ngx_http_referral_lookup_zone(ngx_http_referral_ctx_t *ctx,
    ngx_uint_t *refresh)
{
    ngx_int_t                        rc;
    ngx_http_referral_zone_conf_t   *zcf;
    ngx_http_referral_zone_entry_t   entry;

    zcf = ngx_http_referral_lookups.rmcf->zone;

    rc = ngx_http_referral_zone_get(zcf, &ctx->code, ctx->request->pool,
                                    &entry);

    if (rc != NGX_OK) {
        return rc;
    }

    if (entry.verdict != REFERRAL_VERDICT_UNKNOWN
        && ngx_http_referral_lookup_rule(ctx, &entry.rule) != NGX_OK)
    {
        return NGX_ERROR;
    }

    ctx->verdict = entry.verdict;
    ctx->judged = 1;

    if (entry.fresh) {
        ctx->cache = REFERRAL_CACHE_HIT;
        ngx_http_referral_count(zone_hit);

    } else {
        ctx->cache = REFERRAL_CACHE_STALE;
        ngx_http_referral_count(zone_stale);
    }

    *refresh = entry.refresh;

    ngx_log_debug3(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "referral zone: verdict:%ui fresh:%d refresh:%d",
                   (ngx_uint_t) entry.verdict, entry.fresh, entry.refresh);

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_lookup_rule(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_rule_t *src)
{
    ctx->rule = ngx_palloc(ctx->request->pool,
                           sizeof(ngx_http_referral_rule_t));
    if (ctx->rule == NULL) {
        return NGX_ERROR;
    }

    *ctx->rule = *src;

    return NGX_OK;
}


static void
ngx_http_referral_lookup_unverified(ngx_http_referral_ctx_t *ctx,
    referral_cache_e cache)
{
    ctx->rule = NULL;
    ctx->verdict = REFERRAL_VERDICT_UNVERIFIED;
    ctx->cache = cache;
    ctx->judged = 1;
}


static ngx_http_referral_lookup_op_t *
ngx_http_referral_lookup_find(ngx_str_t *code, uint32_t hash)
{
    return (ngx_http_referral_lookup_op_t *)
               ngx_str_rbtree_lookup(&ngx_http_referral_lookups.ops, code,
                                     hash);
}


/* NULL: the link takes no command now, or there is no memory */

static ngx_http_referral_lookup_op_t *
ngx_http_referral_lookup_start(ngx_str_t *code, uint32_t hash)
{
    u_char                         *p;
    size_t                          argvlen[REFERRAL_RULE_FIELDS + 2];
    ngx_uint_t                      i;
    const char                     *argv[REFERRAL_RULE_FIELDS + 2];
    ngx_http_referral_lookup_t     *lookup;
    ngx_http_referral_lookup_op_t  *op;
    u_char                          key[sizeof(NGX_HTTP_REFERRAL_LOOKUP_KEY)
                                        + REFERRAL_CODE_LEN];

    lookup = &ngx_http_referral_lookups;

    if (lookup->link == NULL || code->len > REFERRAL_CODE_LEN) {
        return NULL;
    }

    op = ngx_calloc(sizeof(ngx_http_referral_lookup_op_t), lookup->log);
    if (op == NULL) {
        return NULL;
    }

    p = ngx_cpymem(key, NGX_HTTP_REFERRAL_LOOKUP_KEY,
                   sizeof(NGX_HTTP_REFERRAL_LOOKUP_KEY) - 1);
    p = ngx_cpymem(p, code->data, code->len);

    argv[0] = "HMGET";
    argvlen[0] = sizeof("HMGET") - 1;
    argv[1] = (char *) key;
    argvlen[1] = p - key;

    for (i = 0; i < REFERRAL_RULE_FIELDS; i++) {
        argv[i + 2] = (char *) referral_rule_fields[i].data;
        argvlen[i + 2] = referral_rule_fields[i].len;
    }

    if (ngx_http_referral_redis_command(lookup->link,
                                     REFERRAL_RULE_FIELDS + 2, argv, argvlen,
                                     ngx_http_referral_lookup_reply_handler,
                                     op)
        != NGX_OK)
    {
        ngx_free(op);
        return NULL;
    }

    ngx_memcpy(op->code, code->data, code->len);

    op->sn.node.key = hash;
    op->sn.str.len = code->len;
    op->sn.str.data = op->code;

    ngx_queue_init(&op->waiters);

    op->deadline = ngx_current_msec + lookup->rmcf->redis->timeout;

    op->dummy.fd = (ngx_socket_t) -1;
    op->dummy.data = op;

    op->timer.handler = ngx_http_referral_lookup_timeout_handler;
    op->timer.data = &op->dummy;
    op->timer.log = lookup->log;

    ngx_rbtree_insert(&lookup->ops, &op->sn.node);

    return op;
}


static ngx_int_t
ngx_http_referral_lookup_wait(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op)
{
    ngx_msec_int_t               left;
    ngx_http_cleanup_t          *cln;
    ngx_http_referral_lookup_t  *lookup;

    lookup = &ngx_http_referral_lookups;

    left = (ngx_msec_int_t) (op->deadline - ngx_current_msec);

    if (left <= 0) {
        ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_MISS);
        return NGX_OK;
    }

    if (lookup->waiters >= NGX_HTTP_REFERRAL_WAITERS) {
        ngx_http_referral_count(waiters_refused);
        ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_MISS);
        return NGX_OK;
    }

    cln = ngx_http_cleanup_add(ctx->request, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    cln->handler = ngx_http_referral_lookup_cleanup;
    cln->data = ctx;

    ctx->wait = op;

    ngx_queue_insert_tail(&op->waiters, &ctx->waiters);
    lookup->waiters++;
    ngx_http_referral_gauge(redis_waiting, lookup->waiters);

    /* not cancelable: an exiting worker has to answer this request first */

    if (!op->timer.timer_set) {
        ngx_add_timer(&op->timer, (ngx_msec_t) left);
    }

    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "referral waits for redis, %M ms at most, %ui wait",
                   (ngx_msec_t) left, lookup->waiters);

    return NGX_AGAIN;
}


static void
ngx_http_referral_lookup_cleanup(void *data)
{
    ngx_http_referral_lookup_cancel(data);
}


void
ngx_http_referral_lookup_cancel(ngx_http_referral_ctx_t *ctx)
{
    ngx_http_referral_lookup_op_t  *op;

    if (ctx->wait == NULL) {
        return;
    }

    if (ctx->wait == &ngx_http_referral_lookup_answered) {
        ngx_queue_remove(&ctx->waiters);
        ctx->wait = NULL;
        return;
    }

    op = ctx->wait;

    ngx_http_referral_lookup_leave(ctx, op);

    if (ngx_queue_empty(&op->waiters) && op->timer.timer_set) {
        ngx_del_timer(&op->timer);
    }
}


static void
ngx_http_referral_lookup_leave(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op)
{
    ngx_queue_remove(&ctx->waiters);
    ctx->wait = NULL;

    ngx_http_referral_lookups.waiters--;
    ngx_http_referral_gauge(redis_waiting, ngx_http_referral_lookups.waiters);
}


static void
ngx_http_referral_lookup_timeout_handler(ngx_event_t *ev)
{
    ngx_connection_t               *dummy;
    ngx_http_referral_lookup_op_t  *op;

    dummy = ev->data;
    op = dummy->data;

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ev->log, 0,
                   "referral lookup of \"%V\" timed out", &op->sn.str);

    ngx_http_referral_lookup_give_up(op);
}


static void
ngx_http_referral_lookup_reply_handler(void *data, redisReply *reply)
{
    ngx_http_referral_lookup_op_t *op = data;

    ngx_int_t                     rc;
    ngx_queue_t                  *q;
    referral_rule_t               rule;
    referral_verdict_e            verdict;
    ngx_http_referral_ctx_t      *ctx;
    ngx_http_referral_lookup_t   *lookup;

    lookup = &ngx_http_referral_lookups;

    rc = NGX_ERROR;

    if (reply != NULL) {
        rc = ngx_http_referral_lookup_reply(op, reply, &rule);
    }

    if (rc == NGX_ERROR) {
        ngx_http_referral_lookup_give_up(op);

    } else {

        if (rc == NGX_OK) {
            verdict = referral_rule_judge(&rule, ngx_time());

        } else { /* rc == NGX_DECLINED */
            verdict = REFERRAL_VERDICT_UNKNOWN;
        }

        ngx_http_referral_zone_set(lookup->rmcf->zone, &op->sn.str,
                                   rc == NGX_OK ? &rule : NULL);

        while (!ngx_queue_empty(&op->waiters)) {

            q = ngx_queue_head(&op->waiters);
            ctx = ngx_queue_data(q, ngx_http_referral_ctx_t, waiters);

            ngx_http_referral_lookup_answer(ctx, rc == NGX_OK ? &rule : NULL,
                                            verdict);
            ngx_http_referral_lookup_post(ctx, op);
        }
    }

    if (op->timer.timer_set) {
        ngx_del_timer(&op->timer);
    }

    ngx_rbtree_delete(&lookup->ops, &op->sn.node);

    ngx_free(op);
}


/*
 * NGX_OK: the rule is set.  NGX_DECLINED: there is no such code.  NGX_ERROR:
 * Redis does not say.
 */

static ngx_int_t
ngx_http_referral_lookup_reply(ngx_http_referral_lookup_op_t *op,
    redisReply *reply, referral_rule_t *rule)
{
    char             error[REFERRAL_ERROR_LEN];
    ngx_uint_t       i, found;
    redisReply      *element;
    referral_str_t   value;

    ngx_memzero(rule, sizeof(referral_rule_t));

    if (reply->type == REDIS_REPLY_ERROR) {

        if (ngx_strncmp(reply->str, "WRONGTYPE ", 10) == 0) {
            ngx_http_referral_lookup_refuse(op, rule, "is not a hash");
            return NGX_OK;
        }

        return NGX_ERROR;
    }

    if (reply->type != REDIS_REPLY_ARRAY
        || reply->elements != REFERRAL_RULE_FIELDS)
    {
        return NGX_ERROR;
    }

    found = 0;

    for (i = 0; i < REFERRAL_RULE_FIELDS; i++) {

        element = reply->element[i];

        if (element->type == REDIS_REPLY_NIL) {
            continue;
        }

        if (element->type != REDIS_REPLY_STRING) {
            return NGX_ERROR;
        }

        found = 1;

        value.len = element->len;
        value.data = (u_char *) element->str;

        if (referral_rule_set(rule, i, &value, error) != REFERRAL_OK) {
            ngx_http_referral_lookup_refuse(op, rule, error);
            return NGX_OK;
        }
    }

    if (!found) {
        return NGX_DECLINED;
    }

    if (referral_rule_check(rule, error) != REFERRAL_OK) {
        ngx_http_referral_lookup_refuse(op, rule, error);
    }

    return NGX_OK;
}


/*
 * A code that cannot be used as it is written counts as switched off.  The
 * zone keeps it, so this is logged once for each read and not for each click.
 */

static void
ngx_http_referral_lookup_refuse(ngx_http_referral_lookup_op_t *op,
    referral_rule_t *rule, const char *reason)
{
    ngx_memzero(rule, sizeof(referral_rule_t));

    rule->state = REFERRAL_STATE_INACTIVE;

    ngx_log_error(NGX_LOG_ERR, ngx_http_referral_lookups.log, 0,
                  "referral: code \"%V\" counts as inactive, its key "
                  "\"" NGX_HTTP_REFERRAL_LOOKUP_KEY "%V\" in redis %s: %s",
                  &op->sn.str, &op->sn.str,
                  ngx_http_referral_lookups.rmcf->redis->url.display,
                  reason);
}


/* rule NULL: unknown; its strings belong to the reply */

static void
ngx_http_referral_lookup_answer(ngx_http_referral_ctx_t *ctx,
    referral_rule_t *rule, referral_verdict_e verdict)
{
    u_char                    *p;
    ngx_http_referral_rule_t  *r;

    if (rule != NULL) {
        r = ngx_pcalloc(ctx->request->pool, sizeof(ngx_http_referral_rule_t));
        p = ngx_pnalloc(ctx->request->pool,
                        rule->url.len + rule->campaign.len + 1);

        if (r == NULL || p == NULL) {
            ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_MISS);
            return;
        }

        r->url.len = rule->url.len;
        r->url.data = p;

        /* a code whose fields were refused may have no url */

        if (rule->url.len) {
            p = ngx_cpymem(p, rule->url.data, rule->url.len);
        }

        r->campaign.len = rule->campaign.len;
        r->campaign.data = p;

        if (rule->campaign.len) {
            ngx_memcpy(p, rule->campaign.data, rule->campaign.len);
        }

        r->code_id = rule->code_id;
        r->program_id = rule->program_id;
        r->referrer_id = rule->referrer_id;
        r->version = rule->version;

        ctx->rule = r;
    }

    ctx->verdict = verdict;
    ctx->cache = REFERRAL_CACHE_MISS;
    ctx->judged = 1;
}


/* nobody waits any longer; another worker may know the code by now */

static void
ngx_http_referral_lookup_give_up(ngx_http_referral_lookup_op_t *op)
{
    ngx_uint_t                refresh;
    ngx_queue_t              *q;
    ngx_http_referral_ctx_t  *ctx;

    while (!ngx_queue_empty(&op->waiters)) {

        q = ngx_queue_head(&op->waiters);
        ctx = ngx_queue_data(q, ngx_http_referral_ctx_t, waiters);

        if (ngx_http_referral_lookup_zone(ctx, &refresh) != NGX_OK) {
            ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_MISS);
        }

        ngx_http_referral_lookup_post(ctx, op);
    }
}


/*
 * Requests go on from the event loop: here the caller is in the middle of a
 * reply, and a request that goes on may end others, or ask for more.
 */

static void
ngx_http_referral_lookup_post(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op)
{
    ngx_http_referral_lookup_t  *lookup;

    lookup = &ngx_http_referral_lookups;

    ngx_http_referral_lookup_leave(ctx, op);

    ctx->wait = &ngx_http_referral_lookup_answered;

    ngx_queue_insert_tail(&lookup->answered, &ctx->waiters);

    ngx_post_event(&lookup->wake, &ngx_posted_events);
}


static void
ngx_http_referral_lookup_wake_handler(ngx_event_t *ev)
{
    ngx_queue_t                 *q;
    ngx_http_referral_ctx_t     *ctx;
    ngx_http_referral_lookup_t  *lookup;

    lookup = &ngx_http_referral_lookups;

    /* one by one from the head: any wake may take others out of the queue */

    while (!ngx_queue_empty(&lookup->answered)) {

        q = ngx_queue_head(&lookup->answered);
        ngx_queue_remove(q);

        ctx = ngx_queue_data(q, ngx_http_referral_ctx_t, waiters);

        ctx->wait = NULL;
        ctx->wake(ctx);
    }
}


ngx_int_t
ngx_http_referral_lookup_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf)
{
    ngx_http_referral_lookup_t  *lookup;

    lookup = &ngx_http_referral_lookups;

    ngx_memzero(lookup, sizeof(ngx_http_referral_lookup_t));

    lookup->rmcf = rmcf;
    lookup->log = cycle->log;

    ngx_rbtree_init(&lookup->ops, &lookup->sentinel,
                    ngx_str_rbtree_insert_value);
    ngx_queue_init(&lookup->answered);

    lookup->dummy.fd = (ngx_socket_t) -1;
    lookup->dummy.data = lookup;

    lookup->wake.handler = ngx_http_referral_lookup_wake_handler;
    lookup->wake.data = &lookup->dummy;
    lookup->wake.log = cycle->log;

    if (rmcf->redis == NULL) {
        return NGX_OK;
    }

    /* without it every miss is unverified, which is no reason not to serve */

    lookup->link = ngx_http_referral_redis_create(cycle, rmcf->redis,
                                                  "lookup");

    return NGX_OK;
}


void
ngx_http_referral_lookup_exit_process(void)
{
    ngx_http_referral_lookup_t  *lookup;

    lookup = &ngx_http_referral_lookups;

    if (lookup->link == NULL) {
        return;
    }

    /* reads that are under way end here with no reply, and free themselves */

    ngx_http_referral_redis_destroy(lookup->link);

    lookup->link = NULL;
}
