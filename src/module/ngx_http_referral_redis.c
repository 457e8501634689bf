
/*
 * Copyright (C) The nginx referral module authors
 *
 * The link: its states, the deadline of commands, the circuit.
 */


#include "ngx_http_referral_redis_private.h"


#define NGX_HTTP_REFERRAL_REDIS_RETRY     100            /* ms, doubled */
#define NGX_HTTP_REFERRAL_REDIS_PROBE     200            /* ms, doubled */
#define NGX_HTTP_REFERRAL_REDIS_MAX       5000           /* ms */

/* a link that was well for so long has earned a quick retry */

#define NGX_HTTP_REFERRAL_REDIS_STEADY    10000          /* ms */

/* the first one, where a link was closed that nobody used */

#define NGX_HTTP_REFERRAL_REDIS_IDLE      1000           /* ms */

/* another reason for the same state is logged once in this time */

#define NGX_HTTP_REFERRAL_REDIS_REPEAT    60000          /* ms */

/* timeouts in a row that open the circuit */

#define NGX_HTTP_REFERRAL_REDIS_TIMEOUTS  5

/* commands in flight that nobody waits for, while it is open */

#define NGX_HTTP_REFERRAL_REDIS_BEHIND    128


static ngx_int_t ngx_http_referral_redis_queue(
    ngx_http_referral_redis_t *link, ngx_http_referral_redis_op_e type,
    int argc, const char **argv, const size_t *argvlen,
    ngx_http_referral_redis_pt handler, void *data);
static void ngx_http_referral_redis_deadline_handler(ngx_event_t *ev);
static void ngx_http_referral_redis_open(ngx_http_referral_redis_t *link);
static void ngx_http_referral_redis_retry_handler(ngx_event_t *ev);
static ngx_msec_t ngx_http_referral_redis_patience(
    ngx_http_referral_redis_t *link);
static ngx_msec_t ngx_http_referral_redis_begun(
    ngx_http_referral_redis_t *link, ngx_http_referral_redis_op_t *op);
static void ngx_http_referral_redis_wait(ngx_http_referral_redis_t *link,
    ngx_msec_t first);
static void ngx_http_referral_redis_report(ngx_http_referral_redis_t *link);
static u_char *ngx_http_referral_redis_log_error(ngx_log_t *log, u_char *buf,
    size_t len);


ngx_http_referral_redis_t *
ngx_http_referral_redis_create(ngx_cycle_t *cycle,
    ngx_http_referral_redis_conf_t *conf,
    const ngx_http_referral_redis_use_t *use,
    ngx_http_referral_redis_t *leader)
{
    ngx_http_referral_redis_t  *link;

    link = ngx_calloc(sizeof(ngx_http_referral_redis_t), cycle->log);
    if (link == NULL) {
        return NULL;
    }

    link->conf = conf;
    link->use = use;
    link->leader = leader;
    link->timeout = use->timeout ? use->timeout : conf->timeout;
    link->hopeful = 1;

    link->log = *cycle->log;
    link->log.handler = ngx_http_referral_redis_log_error;
    link->log.data = link;
    link->log.action = NULL;

    ngx_queue_init(&link->late);
    ngx_queue_init(&link->ops);
    ngx_queue_init(&link->spare);

    /* debug messages about timers print the descriptor of a connection */

    link->dummy.fd = (ngx_socket_t) -1;
    link->dummy.data = link;

    link->retry.handler = ngx_http_referral_redis_retry_handler;
    link->retry.data = &link->dummy;
    link->retry.log = &link->log;
    link->retry.cancelable = 1;

    link->deadline.handler = ngx_http_referral_redis_deadline_handler;
    link->deadline.data = &link->dummy;
    link->deadline.log = &link->log;
    link->deadline.cancelable = 1;

    ngx_http_referral_redis_connect(link);

    return link;
}


void
ngx_http_referral_redis_destroy(ngx_http_referral_redis_t *link)
{
    ngx_queue_t                   *q;
    ngx_http_referral_redis_op_t  *op;

    link->hopeful = 0;

    ngx_http_referral_redis_close(link);

    if (link->retry.timer_set) {
        ngx_del_timer(&link->retry);
    }

    while (!ngx_queue_empty(&link->spare)) {

        q = ngx_queue_head(&link->spare);
        ngx_queue_remove(q);

        op = ngx_queue_data(q, ngx_http_referral_redis_op_t, queue);

        ngx_free(op);
    }

    if (link->out != NULL) {
        ngx_free(link->out);
    }

    ngx_free(link);
}


ngx_uint_t
ngx_http_referral_redis_usable(ngx_http_referral_redis_t *link)
{
    if (link->open) {
        return 0;
    }

    switch (link->state) {

    case NGX_HTTP_REFERRAL_REDIS_READY:
        return 1;

    case NGX_HTTP_REFERRAL_REDIS_CONNECTING:
    case NGX_HTTP_REFERRAL_REDIS_GREETING:
        return link->hopeful;

    default: /* NGX_HTTP_REFERRAL_REDIS_DOWN */
        return 0;
    }
}


ngx_int_t
ngx_http_referral_redis_command(ngx_http_referral_redis_t *link,
    int argc, const char **argv, const size_t *argvlen,
    ngx_http_referral_redis_pt handler, void *data)
{
    if (!link->open && !ngx_http_referral_redis_usable(link)) {
        return NGX_DECLINED;
    }

    if (ngx_http_referral_redis_queue(link, NGX_HTTP_REFERRAL_REDIS_OP_USER,
                                      argc, argv, argvlen, handler, data)
        != NGX_OK)
    {
        return NGX_DECLINED;
    }

    ngx_http_referral_count(redis_commands);

    return NGX_OK;
}


ngx_int_t
ngx_http_referral_redis_optional(ngx_http_referral_redis_t *link,
    int argc, const char **argv, const size_t *argvlen,
    ngx_http_referral_redis_pt handler, void *data)
{
    if (link->state == NGX_HTTP_REFERRAL_REDIS_DOWN) {
        return NGX_DECLINED;
    }

    return ngx_http_referral_redis_queue(link,
                                         NGX_HTTP_REFERRAL_REDIS_OP_OPTIONAL,
                                         argc, argv, argvlen, handler, data);
}


static ngx_int_t
ngx_http_referral_redis_queue(ngx_http_referral_redis_t *link,
    ngx_http_referral_redis_op_e type, int argc, const char **argv,
    const size_t *argvlen, ngx_http_referral_redis_pt handler, void *data)
{
    ngx_connection_t  *c;

    /* a slow server still tells what it knows, if it is not flooded */

    if (link->open && link->nops >= NGX_HTTP_REFERRAL_REDIS_BEHIND) {
        return NGX_DECLINED;
    }

    if (ngx_http_referral_redis_ask(link, type, argc, argv, argvlen, handler,
                                    data)
        != NGX_OK)
    {
        return NGX_DECLINED;
    }

    /* all commands of one turn of the event loop leave in one write */

    c = link->peer.connection;

    if (link->state != NGX_HTTP_REFERRAL_REDIS_CONNECTING
        && c->write->ready)
    {
        ngx_post_event(c->write, &ngx_posted_events);
    }

    return NGX_OK;
}


void
ngx_http_referral_redis_hurry(ngx_http_referral_redis_t *link)
{
    if (link->leader && link->addr != link->leader->addr
        && link->state != NGX_HTTP_REFERRAL_REDIS_DOWN)
    {
        ngx_http_referral_redis_close(link);
        ngx_http_referral_redis_connect(link);
        return;
    }

    if ((link->open || link->state == NGX_HTTP_REFERRAL_REDIS_DOWN)
        && link->retry.timer_set)
    {
        ngx_del_timer(&link->retry);
        ngx_add_timer(&link->retry, 1);
    }
}


void
ngx_http_referral_redis_ready(ngx_http_referral_redis_t *link)
{
    ngx_queue_t                   *q;
    ngx_connection_t              *c;
    ngx_http_referral_redis_op_t  *op;

    c = link->peer.connection;

    if (c->read->timer_set) {
        ngx_del_timer(c->read);
    }

    if (link->retry.timer_set) {
        ngx_del_timer(&link->retry);
    }

    link->state = NGX_HTTP_REFERRAL_REDIS_READY;
    link->log.action = "reading from";

    link->hopeful = 1;
    link->open = 0;
    link->timeouts = 0;
    link->tried = 0;
    link->since = ngx_current_msec;

    /* what waited for the greeting has waited by no fault of the server's */

    for (q = ngx_queue_head(&link->ops);
         q != ngx_queue_sentinel(&link->ops);
         q = ngx_queue_next(q))
    {
        op = ngx_queue_data(q, ngx_http_referral_redis_op_t, queue);
        op->sent = ngx_current_msec;
        op->started = ngx_http_referral_stat_clock();
    }

    ngx_http_referral_redis_set_deadline(link);

    if (link->reported) {
        link->reported = 0;

        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "referral: redis %s %s",
                      link->conf->url.display, link->use->well);
    }

    if (link->use->ready) {
        link->use->ready(link);
    }
}


void
ngx_http_referral_redis_set_deadline(ngx_http_referral_redis_t *link)
{
    ngx_msec_t                     at, now;
    ngx_uint_t                     set;
    ngx_http_referral_redis_op_t  *op;

    at = 0;
    set = 0;
    now = ngx_current_msec;

    /* until the greeting is over, connect_timeout rules */

    if (link->state == NGX_HTTP_REFERRAL_REDIS_READY) {

        if (!ngx_queue_empty(&link->late)) {
            op = ngx_queue_data(ngx_queue_head(&link->late),
                                ngx_http_referral_redis_op_t, queue);
            at = ngx_http_referral_redis_begun(link, op)
                 + ngx_http_referral_redis_patience(link);
            set = 1;
        }

        if (!ngx_queue_empty(&link->ops)) {
            op = ngx_queue_data(ngx_queue_head(&link->ops),
                                ngx_http_referral_redis_op_t, queue);

            if (!set
                || (ngx_msec_int_t) (op->sent + link->timeout - at) < 0)
            {
                at = op->sent + link->timeout;
                set = 1;
            }
        }
    }

    if (set) {
        ngx_add_timer(&link->deadline,
                      (ngx_msec_int_t) (at - now) > 0 ? at - now : 1);

    } else if (link->deadline.timer_set) {
        ngx_del_timer(&link->deadline);
    }
}


static void
ngx_http_referral_redis_deadline_handler(ngx_event_t *ev)
{
    ngx_msec_t                     now;
    ngx_queue_t                   *q;
    ngx_connection_t              *dummy;
    ngx_http_referral_redis_t     *link;
    ngx_http_referral_redis_op_t  *op;

    dummy = ev->data;
    link = dummy->data;

    now = ngx_current_msec;

    while (!ngx_queue_empty(&link->ops)) {

        q = ngx_queue_head(&link->ops);
        op = ngx_queue_data(q, ngx_http_referral_redis_op_t, queue);

        if ((ngx_msec_int_t) (now - op->sent)
            < (ngx_msec_int_t) link->timeout)
        {
            break;
        }

        ngx_queue_remove(q);
        ngx_queue_insert_tail(&link->late, q);

        if (op->type == NGX_HTTP_REFERRAL_REDIS_OP_USER) {
            ngx_http_referral_count(redis_timeouts);

            link->timeouts++;
        }
    }

    if (!ngx_queue_empty(&link->late)) {

        q = ngx_queue_head(&link->late);
        op = ngx_queue_data(q, ngx_http_referral_redis_op_t, queue);

        if (now - ngx_http_referral_redis_begun(link, op)
            >= ngx_http_referral_redis_patience(link))
        {
            ngx_http_referral_redis_reason(link, "no answer for %M ms",
                                           now - op->sent);
            ngx_http_referral_redis_fail(link);
            return;
        }
    }

    if (link->timeouts >= NGX_HTTP_REFERRAL_REDIS_TIMEOUTS && !link->open) {
        ngx_http_referral_redis_open(link);
    }

    ngx_http_referral_redis_set_deadline(link);
}


/* nobody waits any more; the link stays, and probes tell when it is well */

static void
ngx_http_referral_redis_open(ngx_http_referral_redis_t *link)
{
    ngx_http_referral_count(redis_opened);

    if (ngx_current_msec - link->since >= NGX_HTTP_REFERRAL_REDIS_STEADY) {
        link->backoff = 0;
    }

    link->open = 1;
    ngx_http_referral_gauge(redis_circuit, 1);

    ngx_http_referral_redis_reason(link, "%ui answers in a row are late",
                                   link->timeouts);
    ngx_http_referral_redis_report(link);

    ngx_http_referral_redis_wait(link, NGX_HTTP_REFERRAL_REDIS_PROBE);
}


static void
ngx_http_referral_redis_retry_handler(ngx_event_t *ev)
{
    ngx_connection_t           *dummy;
    ngx_http_referral_redis_t  *link;

    dummy = ev->data;
    link = dummy->data;

    if (link->state == NGX_HTTP_REFERRAL_REDIS_DOWN) {
        ngx_http_referral_redis_connect(link);
        return;
    }

    if (!link->open) {
        return;
    }

    if (!link->probing && ngx_http_referral_redis_probe(link) == NGX_OK) {
        ngx_post_event(link->peer.connection->write, &ngx_posted_events);
    }

    ngx_http_referral_redis_wait(link, NGX_HTTP_REFERRAL_REDIS_PROBE);
}


/* how long the oldest command may go without a reply */

static ngx_msec_t
ngx_http_referral_redis_patience(ngx_http_referral_redis_t *link)
{
    return link->use->timeout ? link->timeout
                              : ngx_max(1000, link->timeout * 3);
}


/* an answer may have to wait until a flood of messages is read */

static ngx_msec_t
ngx_http_referral_redis_begun(ngx_http_referral_redis_t *link,
    ngx_http_referral_redis_op_t *op)
{
    if (link->use->push
        && (ngx_msec_int_t) (link->heard - op->sent) > 0)
    {
        return link->heard;
    }

    return op->sent;
}


/* half of the time is random: the workers of a fleet must not come at once */

static void
ngx_http_referral_redis_wait(ngx_http_referral_redis_t *link,
    ngx_msec_t first)
{
    ngx_msec_t  half;

    link->backoff = link->backoff ? link->backoff * 2 : first;
    link->backoff = ngx_min(link->backoff, NGX_HTTP_REFERRAL_REDIS_MAX);

    half = link->backoff / 2;

    ngx_add_timer(&link->retry, half + (ngx_msec_t) ngx_random() % half);
}


/* what a peer says may be anything, and goes to a log */

void
ngx_http_referral_redis_reason(ngx_http_referral_redis_t *link,
    const char *fmt, ...)
{
    u_char   *p, *last;
    va_list   args;

    va_start(args, fmt);
    last = ngx_vslprintf(link->reason,
                         link->reason + NGX_HTTP_REFERRAL_REDIS_REASON - 1,
                         fmt, args);
    va_end(args);

    for (p = link->reason; p < last; p++) {
        if (*p < 0x20 || *p > 0x7e) {
            *p = '?';
        }
    }

    *last = '\0';
}


void
ngx_http_referral_redis_errno(ngx_http_referral_redis_t *link, ngx_err_t err)
{
    u_char  *p;

    p = ngx_strerror(err, link->reason, NGX_HTTP_REFERRAL_REDIS_REASON - 1);
    *p = '\0';
}


void
ngx_http_referral_redis_fail(ngx_http_referral_redis_t *link)
{
    ngx_uint_t  idle, was;

    was = link->state;

    idle = (was == NGX_HTTP_REFERRAL_REDIS_READY && !link->open
            && link->nops == 0
            && ngx_current_msec - link->since
               >= NGX_HTTP_REFERRAL_REDIS_IDLE);

    if (was == NGX_HTTP_REFERRAL_REDIS_READY
        && ngx_current_msec - link->since >= NGX_HTTP_REFERRAL_REDIS_STEADY)
    {
        link->backoff = 0;
    }

    ngx_http_referral_count(redis_failures);

    ngx_http_referral_redis_close(link);

    if (idle) {

        /* Redis closes clients that are idle: no reason to worry anybody */

        ngx_log_error(NGX_LOG_INFO, ngx_cycle->log, 0,
                      "referral: redis %s: %s, connecting again",
                      link->conf->url.display, link->reason);

        ngx_http_referral_redis_connect(link);
        return;
    }

    if (was != NGX_HTTP_REFERRAL_REDIS_READY && link->leader == NULL) {

        link->addr = (link->addr + 1) % link->conf->naddrs;

        if (++link->tried < link->conf->naddrs) {
            ngx_add_timer(&link->retry, 1);
            return;
        }

        link->tried = 0;
    }

    link->hopeful = 0;

    ngx_http_referral_redis_report(link);

    ngx_http_referral_redis_wait(link, NGX_HTTP_REFERRAL_REDIS_RETRY);
}


/* to DOWN, without a retry; whoever waits for a reply learns it here */

void
ngx_http_referral_redis_close(ngx_http_referral_redis_t *link)
{
    ngx_queue_t                   *q, ops;
    ngx_connection_t              *c;
    ngx_http_referral_redis_op_t  *op;

    link->state = NGX_HTTP_REFERRAL_REDIS_DOWN;
    link->open = 0;
    link->probing = 0;
    link->timeouts = 0;
    link->fed = 0;
    link->broken = 0;
    link->too_large = 0;
    link->nops = 0;

    c = link->peer.connection;

    if (c != NULL) {
        link->peer.connection = NULL;
        ngx_close_connection(c);
    }

    if (link->deadline.timer_set) {
        ngx_del_timer(&link->deadline);
    }

    if (link->retry.timer_set) {
        ngx_del_timer(&link->retry);
    }

    if (link->reader != NULL) {
        redisReaderFree(link->reader);
        link->reader = NULL;
    }

    if (link->out != NULL) {
        ngx_explicit_memzero(link->out, link->last - link->out);
        link->pos = link->out;
        link->last = link->out;
    }

    ngx_queue_init(&ops);

    if (!ngx_queue_empty(&link->late)) {
        ngx_queue_add(&ops, &link->late);
        ngx_queue_init(&link->late);
    }

    if (!ngx_queue_empty(&link->ops)) {
        ngx_queue_add(&ops, &link->ops);
        ngx_queue_init(&link->ops);
    }

    while (!ngx_queue_empty(&ops)) {

        q = ngx_queue_head(&ops);
        ngx_queue_remove(q);
        ngx_queue_insert_head(&link->spare, q);

        op = ngx_queue_data(q, ngx_http_referral_redis_op_t, queue);

        if (op->handler) {
            op->handler(op->data, NULL);
        }
    }

    if (link->use->down) {
        link->use->down(link);
    }
}


/* once for each change of state, and now and then when the reason changes */

static void
ngx_http_referral_redis_report(ngx_http_referral_redis_t *link)
{
    uint32_t  crc;

    crc = ngx_crc32_short(link->reason, ngx_strlen(link->reason));

    if (link->reported
        && (crc == link->said_crc
            || ngx_current_msec - link->said
               < NGX_HTTP_REFERRAL_REDIS_REPEAT))
    {
        return;
    }

    link->reported = 1;
    link->said = ngx_current_msec;
    link->said_crc = crc;

    ngx_log_error(link->use->level, ngx_cycle->log, 0,
                  "referral: redis %s %s: %s; %s",
                  link->conf->url.display, link->use->trouble, link->reason,
                  link->use->harm);
}


static u_char *
ngx_http_referral_redis_log_error(ngx_log_t *log, u_char *buf, size_t len)
{
    ngx_http_referral_redis_t  *link;

    link = log->data;

    return ngx_snprintf(buf, len, " while %s redis %s",
                        log->action ? log->action : "using",
                        link->conf->url.display);
}
