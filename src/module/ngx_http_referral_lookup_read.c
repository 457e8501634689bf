
/*
 * Copyright (C) The nginx referral module authors
 *
 * Reads of codes: what goes to Redis, and what its replies mean.
 */


#include "ngx_http_referral_lookup_private.h"

#include "ngx_http_referral_off.h"
#include "ngx_http_referral_subscribe.h"
#include "ngx_http_referral_zone_cover.h"


#define NGX_HTTP_REFERRAL_LOOKUP_KEY  "referral:code:"

/* reads that give no answer, for those who wait */

#define NGX_HTTP_REFERRAL_READS       2


static ngx_int_t ngx_http_referral_lookup_send(
    ngx_http_referral_lookup_op_t *op);
static ngx_int_t ngx_http_referral_lookup_publisher(
    ngx_http_referral_lookup_op_t *op);
static void ngx_http_referral_lookup_timeout_handler(ngx_event_t *ev);
static void ngx_http_referral_lookup_reply_handler(void *data,
    redisReply *reply);
static ngx_int_t ngx_http_referral_lookup_reply(
    ngx_http_referral_lookup_op_t *op, redisReply *reply,
    referral_rule_t *rule);
static void ngx_http_referral_lookup_publisher_handler(void *data,
    redisReply *reply);
static ngx_int_t ngx_http_referral_lookup_ready(redisReply *reply,
    ngx_http_referral_zone_token_t *token);
static void ngx_http_referral_lookup_probe_handler(void *data,
    redisReply *reply);
static void ngx_http_referral_lookup_settle(
    ngx_http_referral_lookup_op_t *op, referral_rule_t *rule);
static void ngx_http_referral_lookup_end(ngx_http_referral_lookup_op_t *op);
static void ngx_http_referral_lookup_refuse(
    ngx_http_referral_lookup_op_t *op, referral_rule_t *rule,
    const char *reason);
static void ngx_http_referral_lookup_link_ready(
    ngx_http_referral_redis_t *link);
static void ngx_http_referral_lookup_link_down(
    ngx_http_referral_redis_t *link);


const ngx_http_referral_redis_use_t  ngx_http_referral_lookup_use = {
    "lookup",
    "is not usable",
    "codes that are not in the zone stay unverified until it is",
    "is usable again",
    NGX_LOG_ERR,
    0,
    ngx_http_referral_off_greet,
    ngx_http_referral_lookup_link_ready,
    ngx_http_referral_lookup_link_down,
    ngx_http_referral_lookup_probe_handler,
    NULL
};


ngx_http_referral_lookup_op_t *
ngx_http_referral_lookup_find(ngx_str_t *code, uint32_t hash)
{
    return (ngx_http_referral_lookup_op_t *)
               ngx_str_rbtree_lookup(&ngx_http_referral_lookups.ops, code,
                                     hash);
}


ngx_http_referral_lookup_op_t *
ngx_http_referral_lookup_start(ngx_str_t *code, uint32_t hash)
{
    ngx_http_referral_lookup_t     *lookup;
    ngx_http_referral_lookup_op_t  *op;

    lookup = &ngx_http_referral_lookups;

    if (lookup->link == NULL || code->len > REFERRAL_CODE_LEN) {
        return NULL;
    }

    op = ngx_calloc(sizeof(ngx_http_referral_lookup_op_t), lookup->log);
    if (op == NULL) {
        return NULL;
    }

    ngx_memcpy(op->code, code->data, code->len);

    op->sn.node.key = hash;
    op->sn.str.len = code->len;
    op->sn.str.data = op->code;

    ngx_queue_init(&op->waiters);
    ngx_queue_init(&op->joined);

    op->sent = ngx_current_msec;
    op->deadline = op->sent + lookup->rmcf->redis->timeout;

    op->dummy.fd = (ngx_socket_t) -1;
    op->dummy.data = op;

    op->timer.handler = ngx_http_referral_lookup_timeout_handler;
    op->timer.data = &op->dummy;
    op->timer.log = lookup->log;

    if (ngx_http_referral_subscribe_starting()) {
        ngx_queue_insert_tail(&lookup->held, &op->held);

    } else if (ngx_http_referral_lookup_send(op) != NGX_OK) {
        ngx_free(op);
        return NULL;
    }

    ngx_rbtree_insert(&lookup->ops, &op->sn.node);

    return op;
}


/*
 * The token is taken before the bytes may leave: an earlier one only makes
 * it more likely that the reply is not stored.  What Redis says of its
 * publisher comes after the code, because it has to hold for it.
 */

static ngx_int_t
ngx_http_referral_lookup_send(ngx_http_referral_lookup_op_t *op)
{
    u_char                      *p;
    size_t                       argvlen[REFERRAL_RULE_FIELDS + 2];
    ngx_uint_t                   i;
    const char                  *argv[REFERRAL_RULE_FIELDS + 2];
    ngx_http_referral_lookup_t  *lookup;
    u_char                       key[sizeof(NGX_HTTP_REFERRAL_LOOKUP_KEY)
                                     + REFERRAL_CODE_LEN];

    lookup = &ngx_http_referral_lookups;

    p = ngx_cpymem(key, NGX_HTTP_REFERRAL_LOOKUP_KEY,
                   sizeof(NGX_HTTP_REFERRAL_LOOKUP_KEY) - 1);
    p = ngx_cpymem(p, op->sn.str.data, op->sn.str.len);

    argv[0] = "HMGET";
    argvlen[0] = sizeof("HMGET") - 1;
    argv[1] = (char *) key;
    argvlen[1] = p - key;

    for (i = 0; i < REFERRAL_RULE_FIELDS; i++) {
        argv[i + 2] = (char *) referral_rule_fields[i].data;
        argvlen[i + 2] = referral_rule_fields[i].len;
    }

    ngx_http_referral_zone_token(lookup->rmcf->zone, &op->sn.str, &op->token);

    op->absent = 0;
    op->pending = 0;

    if (ngx_http_referral_redis_command(lookup->link,
                                     REFERRAL_RULE_FIELDS + 2, argv, argvlen,
                                     ngx_http_referral_lookup_reply_handler,
                                     op)
        != NGX_OK)
    {
        return NGX_DECLINED;
    }

    op->sent = ngx_current_msec;
    op->reads++;
    op->pending++;

    if (ngx_http_referral_lookup_publisher(op) == NGX_OK) {
        op->pending++;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_lookup_publisher(ngx_http_referral_lookup_op_t *op)
{
    static const char  *argv[] = { "HMGET", "referral:publisher",
                                   "generation", "ready" };

    return ngx_http_referral_redis_optional(
                                  ngx_http_referral_lookups.link, 4, argv,
                                  NULL,
                                  ngx_http_referral_lookup_publisher_handler,
                                  op);
}


void
ngx_http_referral_lookup_release(void)
{
    ngx_queue_t                    *q;
    ngx_http_referral_lookup_t     *lookup;
    ngx_http_referral_lookup_op_t  *op;

    lookup = &ngx_http_referral_lookups;

    while (!ngx_queue_empty(&lookup->held)) {

        q = ngx_queue_head(&lookup->held);
        ngx_queue_remove(q);

        op = ngx_queue_data(q, ngx_http_referral_lookup_op_t, held);

        if (lookup->link == NULL
            || ngx_http_referral_lookup_send(op) != NGX_OK)
        {
            ngx_http_referral_lookup_give_up(op);
            ngx_http_referral_lookup_end(op);
        }
    }
}


void
ngx_http_referral_lookup_hurry(void)
{
    if (ngx_http_referral_lookups.link != NULL) {
        ngx_http_referral_redis_hurry(ngx_http_referral_lookups.link);
    }
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

    ngx_int_t        rc;
    referral_rule_t  rule;

    rc = NGX_ERROR;

    if (reply != NULL) {
        rc = ngx_http_referral_lookup_reply(op, reply, &rule);
    }

    op->pending--;

    switch (rc) {

    case NGX_OK:
        ngx_http_referral_lookup_settle(op, &rule);
        break;

    case NGX_DECLINED:
        op->absent = 1;
        break;

    default: /* NGX_ERROR */
        ngx_http_referral_lookup_give_up(op);
        break;
    }

    if (op->pending == 0) {

        if (op->absent) {
            ngx_http_referral_lookup_give_up(op);
        }

        ngx_http_referral_lookup_end(op);
    }
}


static void
ngx_http_referral_lookup_publisher_handler(void *data, redisReply *reply)
{
    ngx_http_referral_lookup_op_t *op = data;

    ngx_int_t  rc;

    op->pending--;

    rc = NGX_DECLINED;

    if (reply != NULL) {
        rc = ngx_http_referral_lookup_ready(reply, &op->token);
    }

    if (op->absent) {

        switch (rc) {

        case NGX_OK:
            ngx_http_referral_lookup_settle(op, NULL);
            break;

        case NGX_AGAIN:
            break;

        default: /* NGX_DECLINED */
            ngx_http_referral_count(redis_not_ready);
            ngx_http_referral_lookup_give_up(op);
            break;
        }
    }

    ngx_http_referral_lookup_end(op);
}


static ngx_int_t
ngx_http_referral_lookup_ready(redisReply *reply,
    ngx_http_referral_zone_token_t *token)
{
    ngx_int_t    n;
    ngx_uint_t   exists, ready;
    redisReply  *generation, *word;

    n = 0;
    exists = 0;
    ready = 0;

    /* something else in the place of this hash says nothing */

    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2) {
        generation = reply->element[0];
        word = reply->element[1];

        if (generation->type == REDIS_REPLY_STRING) {
            exists = 1;
            n = ngx_atoi((u_char *) generation->str, generation->len);
        }

        if (word->type == REDIS_REPLY_STRING) {
            exists = 1;
            ready = (word->len == 1 && word->str[0] == '1');
        }
    }

    return ngx_http_referral_zone_publisher(
                                  ngx_http_referral_lookups.rmcf->zone, token,
                                  exists, n > 0 ? n : 0, ready);
}


/* what it was at the start is known before the first code is read */

static void
ngx_http_referral_lookup_probe_handler(void *data, redisReply *reply)
{
    ngx_http_referral_zone_token_t  token;

    if (reply == NULL) {
        return;
    }

    /* of no epoch: a change is for lookups to find */

    ngx_memzero(&token, sizeof(ngx_http_referral_zone_token_t));

    (void) ngx_http_referral_lookup_ready(reply, &token);
}


/* rule NULL: absent */

static void
ngx_http_referral_lookup_settle(ngx_http_referral_lookup_op_t *op,
    referral_rule_t *rule)
{
    ngx_int_t                       rc;
    referral_rule_t                 judged;
    referral_verdict_e              verdict;
    ngx_http_referral_zone_conf_t  *zcf;

    zcf = ngx_http_referral_lookups.rmcf->zone;

    rc = ngx_http_referral_zone_set(zcf, &op->sn.str, rule, &op->token);

    if (rc == NGX_DECLINED) {

        /* not to be believed; the next one may be */

        return;
    }

    verdict = REFERRAL_VERDICT_UNKNOWN;

    if (rule != NULL) {
        judged = *rule;

        if (ngx_http_referral_zone_off(zcf, rule->program_id,
                                       rule->referrer_id))
        {
            judged.state = REFERRAL_STATE_INACTIVE;
        }

        verdict = referral_rule_judge(&judged, ngx_time());
    }

    ngx_http_referral_lookup_answers(op, &op->waiters, rule, verdict);

    if (rc == NGX_OK) {
        ngx_http_referral_lookup_answers(op, &op->joined, rule, verdict);
    }

    op->reads = 0;
}


/*
 * All replies to a read are here.  Who waits still, does so for the next one:
 * this was not for them, or not to be believed.
 */

static void
ngx_http_referral_lookup_end(ngx_http_referral_lookup_op_t *op)
{
    ngx_msec_t                   sent;
    ngx_msec_int_t               left;
    ngx_http_referral_lookup_t  *lookup;

    lookup = &ngx_http_referral_lookups;

    ngx_http_referral_lookup_merge(op);

    if (!ngx_queue_empty(&op->waiters)) {

        sent = op->sent;

        if (op->reads < NGX_HTTP_REFERRAL_READS
            && ngx_http_referral_lookup_send(op) == NGX_OK)
        {
            if (op->reads == 1) {

                /* those who waited before that read have been answered */

                op->deadline = sent + lookup->rmcf->redis->timeout;

                left = (ngx_msec_int_t) (op->deadline - ngx_current_msec);

                ngx_add_timer(&op->timer, left > 0 ? (ngx_msec_t) left : 1);
            }

            return;
        }

        ngx_http_referral_lookup_give_up(op);
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


static void
ngx_http_referral_lookup_link_ready(ngx_http_referral_redis_t *link)
{
    ngx_http_referral_gauge(redis_connected, 1);
    ngx_http_referral_gauge(redis_circuit, 0);

    ngx_http_referral_subscribe_hurry();
}


static void
ngx_http_referral_lookup_link_down(ngx_http_referral_redis_t *link)
{
    ngx_http_referral_gauge(redis_connected, 0);
    ngx_http_referral_gauge(redis_circuit, 0);
}
