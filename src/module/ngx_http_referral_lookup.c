
/*
 * Copyright (C) The nginx referral module authors
 *
 * From a code to a verdict, and requests that wait for it.
 */


#include "ngx_http_referral_lookup_private.h"

#include "ngx_http_referral_limit.h"
#include "ngx_http_referral_off.h"


static ngx_int_t ngx_http_referral_lookup_unsure(
    ngx_http_referral_ctx_t *ctx, uint32_t hash,
    ngx_http_referral_zone_entry_t *entry);
static ngx_int_t ngx_http_referral_lookup_zone(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_zone_entry_t *entry);
static ngx_int_t ngx_http_referral_lookup_entry(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_zone_entry_t *entry);
static void ngx_http_referral_lookup_unverified(ngx_http_referral_ctx_t *ctx,
    referral_cache_e cache);
static ngx_int_t ngx_http_referral_lookup_wait(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op, ngx_queue_t *queue);
static void ngx_http_referral_lookup_cleanup(void *data);
static void ngx_http_referral_lookup_leave(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op);
static void ngx_http_referral_lookup_answer(ngx_http_referral_ctx_t *ctx,
    referral_rule_t *rule, referral_verdict_e verdict);
static void ngx_http_referral_lookup_post(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op);
static void ngx_http_referral_lookup_wake_handler(ngx_event_t *ev);


/* of those that join: the read may be under way already */

#define ngx_http_referral_lookup_queue(op)                                    \
    ((op)->pending ? &(op)->joined : &(op)->waiters)


ngx_http_referral_lookup_t  ngx_http_referral_lookups;

/* what ctx->wait is between the answer and the wake */

static u_char  ngx_http_referral_lookup_answered;


void
ngx_http_referral_lookup_expect(ngx_http_referral_ctx_t *ctx)
{
    ctx->hash = ngx_http_referral_zone_expect(
                    ngx_http_referral_lookups.rmcf->zone, &ctx->code);
}


void
ngx_http_referral_lookup_expect_entry(ngx_http_referral_ctx_t *ctx)
{
    if (!ctx->judged) {
        ngx_http_referral_zone_expect_entry(
            ngx_http_referral_lookups.rmcf->zone, ctx->hash);
    }
}


ngx_int_t
ngx_http_referral_lookup(ngx_http_referral_ctx_t *ctx)
{
    uint32_t                         hash;
    ngx_int_t                        rc;
    ngx_http_referral_lookup_t      *lookup;
    ngx_http_referral_lookup_op_t   *op;
    ngx_http_referral_zone_entry_t   entry;

    lookup = &ngx_http_referral_lookups;

    /* a path's code may follow a parameter's */

    ctx->rule = NULL;

    rc = ngx_http_referral_lookup_zone(ctx, &entry);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc == NGX_OK && !entry.unsure) {

        if (entry.fresh) {
            ngx_http_referral_count(zone_hit);

        } else {
            ngx_http_referral_count(zone_stale);
        }

        rc = ngx_http_referral_lookup_entry(ctx, &entry);

        if (rc != NGX_OK || !entry.refresh) {
            return rc;
        }
    }

    hash = ngx_crc32_short(ctx->code.data, ctx->code.len);

    if (rc == NGX_OK && entry.unsure) {
        return ngx_http_referral_lookup_unsure(ctx, hash, &entry);
    }

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

        rc = ngx_http_referral_lookup_wait(ctx, op,
                                           ngx_http_referral_lookup_queue(op));

        if (rc == NGX_DECLINED) {
            ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_MISS);
            return NGX_OK;
        }

        return rc;
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

    rc = ngx_http_referral_lookup_wait(ctx, op, &op->waiters);

    if (rc == NGX_DECLINED) {
        ngx_http_referral_lookup_unverified(ctx, REFERRAL_CACHE_MISS);
        return NGX_OK;
    }

    return rc;
}


/*
 * Changes of the code may have been missed: it is read again while Redis can
 * be asked, at nobody's expense, and the entry is the answer in any other
 * case.
 */

static ngx_int_t
ngx_http_referral_lookup_unsure(ngx_http_referral_ctx_t *ctx, uint32_t hash,
    ngx_http_referral_zone_entry_t *entry)
{
    ngx_int_t                       rc;
    ngx_queue_t                    *queue;
    ngx_http_referral_lookup_t     *lookup;
    ngx_http_referral_lookup_op_t  *op;

    lookup = &ngx_http_referral_lookups;

    ngx_http_referral_count(zone_unsure);

    op = ngx_http_referral_lookup_find(&ctx->code, hash);

    if (lookup->link != NULL
        && ngx_http_referral_redis_usable(lookup->link)
        && lookup->waiters < NGX_HTTP_REFERRAL_WAITERS)
    {
        if (op != NULL) {
            queue = ngx_http_referral_lookup_queue(op);

        } else {
            op = ngx_http_referral_lookup_start(&ctx->code, hash);
            queue = op ? &op->waiters : NULL;
        }

        if (op != NULL) {
            rc = ngx_http_referral_lookup_wait(ctx, op, queue);

            if (rc != NGX_DECLINED) {
                return rc;
            }
        }

    } else if (op == NULL && entry->refresh) {
        (void) ngx_http_referral_lookup_start(&ctx->code, hash);
    }

    return ngx_http_referral_lookup_entry(ctx, entry);
}


static ngx_int_t
ngx_http_referral_lookup_zone(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_zone_entry_t *entry)
{
    ngx_int_t  rc;

    rc = ngx_http_referral_zone_get(ngx_http_referral_lookups.rmcf->zone,
                                    &ctx->code, ctx->hash,
                                    ctx->request->pool, entry);

    if (rc == NGX_OK) {
        ngx_log_debug4(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                       "referral zone: verdict:%ui fresh:%d refresh:%d "
                       "unsure:%d",
                       (ngx_uint_t) entry->verdict, entry->fresh,
                       entry->refresh, entry->unsure);
    }

    return rc;
}


/* the entry is the answer */

static ngx_int_t
ngx_http_referral_lookup_entry(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_zone_entry_t *entry)
{
    if (entry->verdict != REFERRAL_VERDICT_UNKNOWN) {
        ctx->rule = ngx_palloc(ctx->request->pool,
                               sizeof(ngx_http_referral_rule_t));
        if (ctx->rule == NULL) {
            return NGX_ERROR;
        }

        *ctx->rule = entry->rule;
    }

    ctx->verdict = entry->verdict;
    ctx->cache = entry->fresh ? REFERRAL_CACHE_HIT : REFERRAL_CACHE_STALE;
    ctx->judged = 1;

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


/* NGX_DECLINED: there is no time or no place to wait */

static ngx_int_t
ngx_http_referral_lookup_wait(ngx_http_referral_ctx_t *ctx,
    ngx_http_referral_lookup_op_t *op, ngx_queue_t *queue)
{
    ngx_msec_int_t               left;
    ngx_http_cleanup_t          *cln;
    ngx_http_referral_lookup_t  *lookup;

    lookup = &ngx_http_referral_lookups;

    left = (ngx_msec_int_t) (op->deadline - ngx_current_msec);

    if (left <= 0) {
        return NGX_DECLINED;
    }

    if (lookup->waiters >= NGX_HTTP_REFERRAL_WAITERS) {
        ngx_http_referral_count(waiters_refused);
        return NGX_DECLINED;
    }

    cln = ngx_http_cleanup_add(ctx->request, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    cln->handler = ngx_http_referral_lookup_cleanup;
    cln->data = ctx;

    ctx->wait = op;

    ngx_queue_insert_tail(queue, &ctx->waiters);
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

    if (ngx_queue_empty(&op->waiters) && ngx_queue_empty(&op->joined)
        && op->timer.timer_set)
    {
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


void
ngx_http_referral_lookup_answers(ngx_http_referral_lookup_op_t *op,
    ngx_queue_t *queue, referral_rule_t *rule, referral_verdict_e verdict)
{
    ngx_queue_t              *q;
    ngx_http_referral_ctx_t  *ctx;

    while (!ngx_queue_empty(queue)) {

        q = ngx_queue_head(queue);
        ctx = ngx_queue_data(q, ngx_http_referral_ctx_t, waiters);

        ngx_http_referral_lookup_answer(ctx, rule, verdict);
        ngx_http_referral_lookup_post(ctx, op);
    }
}


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


void
ngx_http_referral_lookup_merge(ngx_http_referral_lookup_op_t *op)
{
    if (!ngx_queue_empty(&op->joined)) {
        ngx_queue_add(&op->waiters, &op->joined);
        ngx_queue_init(&op->joined);
    }
}


/*
 * Nobody waits any longer.  The zone may have an entry that is unsure, or
 * another worker knows the code by now.
 */

void
ngx_http_referral_lookup_give_up(ngx_http_referral_lookup_op_t *op)
{
    ngx_queue_t                     *q;
    ngx_http_referral_ctx_t         *ctx;
    ngx_http_referral_zone_entry_t   entry;

    ngx_http_referral_lookup_merge(op);

    while (!ngx_queue_empty(&op->waiters)) {

        q = ngx_queue_head(&op->waiters);
        ctx = ngx_queue_data(q, ngx_http_referral_ctx_t, waiters);

        if (ngx_http_referral_lookup_zone(ctx, &entry) != NGX_OK
            || ngx_http_referral_lookup_entry(ctx, &entry) != NGX_OK)
        {
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
    ngx_queue_init(&lookup->held);
    ngx_queue_init(&lookup->answered);

    lookup->dummy.fd = (ngx_socket_t) -1;
    lookup->dummy.data = lookup;

    lookup->wake.handler = ngx_http_referral_lookup_wake_handler;
    lookup->wake.data = &lookup->dummy;
    lookup->wake.log = cycle->log;

    if (rmcf->redis == NULL) {
        return NGX_OK;
    }

    ngx_http_referral_off_init_process(cycle, rmcf);

    /* without it every miss is unverified, which is no reason not to serve */

    lookup->link = ngx_http_referral_redis_create(cycle, rmcf->redis,
                                               &ngx_http_referral_lookup_use,
                                               NULL);

    return NGX_OK;
}


ngx_http_referral_redis_t *
ngx_http_referral_lookup_link(void)
{
    return ngx_http_referral_lookups.link;
}


void
ngx_http_referral_lookup_exit_process(void)
{
    ngx_http_referral_lookup_t  *lookup;

    lookup = &ngx_http_referral_lookups;

    if (lookup->link == NULL) {
        return;
    }

    ngx_http_referral_lookup_release();
    ngx_http_referral_off_leave();

    /* reads that are under way end here with no reply, and free themselves */

    ngx_http_referral_redis_destroy(lookup->link);

    lookup->link = NULL;
}
