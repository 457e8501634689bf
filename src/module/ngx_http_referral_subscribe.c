
/*
 * Copyright (C) The nginx referral module authors
 *
 * A connection of its own, because one that is subscribed answers no other
 * command; to the same address as lookups, because only there the value is
 * in place when its message is.
 */


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include "ngx_http_referral_lookup.h"
#include "ngx_http_referral_off.h"
#include "ngx_http_referral_redis.h"
#include "ngx_http_referral_stat.h"
#include "ngx_http_referral_subscribe.h"
#include "ngx_http_referral_zone_cover.h"


#define NGX_HTTP_REFERRAL_SUBSCRIBE_CHANNEL  "referral:invalidate"

/* a ping that is not answered for so long ends the link */

#define NGX_HTTP_REFERRAL_SUBSCRIBE_TIMEOUT                                  \
    NGX_HTTP_REFERRAL_ZONE_COVER

#define NGX_HTTP_REFERRAL_SUBSCRIBE_PING     1000  /* ms */

/*
 * One worker looks so often whether others have subscribed, and proves the
 * time up to then.  At a reload nginx gives the old ones 100 ms.
 */

#define NGX_HTTP_REFERRAL_SUBSCRIBE_WATCH    25    /* ms */

/* the longest that reads are held back for a subscription at the start */

#define NGX_HTTP_REFERRAL_SUBSCRIBE_START    50    /* ms */

/* the others, for one of them has to take its place */

#define NGX_HTTP_REFERRAL_SUBSCRIBE_TICK     250   /* ms */

/* a refusal may have been taken back */

#define NGX_HTTP_REFERRAL_SUBSCRIBE_REFUSED  30000 /* ms */

/* "<CODE> <version>" */

#define NGX_HTTP_REFERRAL_SUBSCRIBE_MESSAGE                                  \
    (REFERRAL_CODE_LEN + 1 + NGX_INT64_LEN)


typedef struct {
    ngx_http_referral_main_conf_t  *rmcf;
    ngx_http_referral_redis_t      *link;          /* NULL: no Redis */
    ngx_log_t                      *log;
    ngx_event_t                     tick;
    ngx_connection_t                dummy;

    ngx_msec_t                      since;         /* subscribed */
    ngx_msec_t                      pinged;
    ngx_msec_t                      asked;         /* to subscribe */

    unsigned                        starting:1;
    unsigned                        ready:1;       /* the link */
    unsigned                        subscribed:1;
    unsigned                        settled:1;     /* referral:off is read */
    unsigned                        ponged:1;
    unsigned                        covering:1;    /* the zone was told */
    unsigned                        pinging:1;
    unsigned                        refused:1;     /* and said so */
} ngx_http_referral_subscribe_t;


static void ngx_http_referral_subscribe_ready(
    ngx_http_referral_redis_t *link);
static void ngx_http_referral_subscribe_down(
    ngx_http_referral_redis_t *link);
static void ngx_http_referral_subscribe_ask(ngx_http_referral_redis_t *link);
static void ngx_http_referral_subscribe_handler(void *data,
    redisReply *reply);
static void ngx_http_referral_subscribe_begin(void);
static void ngx_http_referral_subscribe_end(void);
static void ngx_http_referral_subscribe_refused(redisReply *reply);
static void ngx_http_referral_subscribe_ping(void);
static ngx_msec_t ngx_http_referral_subscribe_clock(void);
static void ngx_http_referral_subscribe_pong(void *data, redisReply *reply);
static void ngx_http_referral_subscribe_message(void *data,
    redisReply *reply);
static uint64_t ngx_http_referral_subscribe_number(u_char *p, u_char *last);
static void ngx_http_referral_subscribe_started(void);
static void ngx_http_referral_subscribe_tick(ngx_event_t *ev);


static ngx_http_referral_subscribe_t  ngx_http_referral_subscription;


static const ngx_http_referral_redis_use_t  ngx_http_referral_subscribe_use = {
    "subscribe",
    "does not tell what changes",
    "codes in the zone answer, and are read again each second, until it does",
    "tells what changes again",
    NGX_LOG_WARN,
    NGX_HTTP_REFERRAL_SUBSCRIBE_TIMEOUT,
    NULL,
    ngx_http_referral_subscribe_ready,
    ngx_http_referral_subscribe_down,
    NULL,
    ngx_http_referral_subscribe_message
};


void
ngx_http_referral_subscribe_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf)
{
    ngx_http_referral_subscribe_t  *sub;

    sub = &ngx_http_referral_subscription;

    ngx_memzero(sub, sizeof(ngx_http_referral_subscribe_t));

    if (rmcf->redis == NULL) {
        return;
    }

    sub->rmcf = rmcf;
    sub->log = cycle->log;

    sub->dummy.fd = (ngx_socket_t) -1;
    sub->dummy.data = sub;

    sub->tick.handler = ngx_http_referral_subscribe_tick;
    sub->tick.data = &sub->dummy;
    sub->tick.log = cycle->log;
    sub->tick.cancelable = 1;

    sub->starting = !ngx_http_referral_zone_covered(rmcf->zone);

    ngx_add_timer(&sub->tick, NGX_HTTP_REFERRAL_SUBSCRIBE_START);

    sub->link = ngx_http_referral_redis_create(cycle, rmcf->redis,
                                            &ngx_http_referral_subscribe_use,
                                            ngx_http_referral_lookup_link());
    if (sub->link == NULL) {
        sub->starting = 0;
    }
}


void
ngx_http_referral_subscribe_exit_process(void)
{
    ngx_http_referral_subscribe_t  *sub;

    sub = &ngx_http_referral_subscription;

    if (sub->link == NULL) {
        return;
    }

    ngx_http_referral_redis_destroy(sub->link);

    sub->link = NULL;

    if (sub->tick.timer_set) {
        ngx_del_timer(&sub->tick);
    }
}


ngx_uint_t
ngx_http_referral_subscribe_starting(void)
{
    return ngx_http_referral_subscription.starting;
}


void
ngx_http_referral_subscribe_hurry(void)
{
    if (ngx_http_referral_subscription.link != NULL) {
        ngx_http_referral_redis_hurry(ngx_http_referral_subscription.link);
    }
}


static void
ngx_http_referral_subscribe_ready(ngx_http_referral_redis_t *link)
{
    ngx_http_referral_subscription.ready = 1;

    ngx_http_referral_lookup_hurry();

    ngx_http_referral_subscribe_ask(link);
}


static void
ngx_http_referral_subscribe_down(ngx_http_referral_redis_t *link)
{
    ngx_http_referral_subscribe_t  *sub;

    sub = &ngx_http_referral_subscription;

    ngx_http_referral_subscribe_end();

    sub->ready = 0;
    sub->pinging = 0;

    ngx_http_referral_subscribe_started();
}


static void
ngx_http_referral_subscribe_ask(ngx_http_referral_redis_t *link)
{
    static const char  *argv[] = { "SUBSCRIBE",
                                   NGX_HTTP_REFERRAL_SUBSCRIBE_CHANNEL };

    ngx_http_referral_subscription.asked = ngx_current_msec;

    (void) ngx_http_referral_redis_optional(link, 2, argv, NULL,
                                         ngx_http_referral_subscribe_handler,
                                         NULL);
}


static void
ngx_http_referral_subscribe_handler(void *data, redisReply *reply)
{
    ngx_http_referral_subscribe_t  *sub;

    if (reply == NULL) {
        return;
    }

    sub = &ngx_http_referral_subscription;

    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 3
        || reply->element[0]->type != REDIS_REPLY_STRING
        || ngx_strcmp(reply->element[0]->str, "subscribe") != 0)
    {
        ngx_http_referral_subscribe_refused(reply);
        return;
    }

    /* not before Redis did it, whatever the time of this turn is */

    sub->since = ngx_http_referral_subscribe_clock() + 1;
    sub->subscribed = 1;
    sub->settled = 0;
    sub->ponged = 0;

    ngx_http_referral_count(subscriptions);

    ngx_log_debug0(NGX_LOG_DEBUG_HTTP, sub->log, 0, "referral subscribed");

    ngx_http_referral_subscribe_ping();
    ngx_http_referral_off_read();
}


void
ngx_http_referral_subscribe_settled(void)
{
    ngx_http_referral_subscription.settled = 1;

    ngx_http_referral_subscribe_begin();
}


/*
 * Entries are true again when programs and referrers are known, too; and a
 * subscription that may not be pinged proves nothing.
 */

static void
ngx_http_referral_subscribe_begin(void)
{
    ngx_http_referral_subscribe_t  *sub;

    sub = &ngx_http_referral_subscription;

    if (!sub->subscribed || !sub->settled || !sub->ponged || sub->covering) {
        return;
    }

    sub->covering = 1;

    ngx_http_referral_gauge(redis_subscribed, 1);

    ngx_http_referral_zone_cover_begin(sub->rmcf->zone, sub->since);

    /* it may be up to this worker to watch; timers are lazy when set anew */

    if (sub->tick.timer_set) {
        ngx_del_timer(&sub->tick);
    }

    ngx_add_timer(&sub->tick, NGX_HTTP_REFERRAL_SUBSCRIBE_WATCH);

    if (sub->refused) {
        sub->refused = 0;

        ngx_log_error(NGX_LOG_NOTICE, sub->log, 0,
                      "referral: redis %s lets this user subscribe now",
                      sub->rmcf->redis->url.display);
    }

    ngx_http_referral_subscribe_started();
}


static void
ngx_http_referral_subscribe_end(void)
{
    ngx_http_referral_subscribe_t  *sub;

    sub = &ngx_http_referral_subscription;

    sub->subscribed = 0;

    if (sub->covering) {
        sub->covering = 0;

        ngx_http_referral_gauge(redis_subscribed, 0);

        ngx_http_referral_zone_cover_end(sub->rmcf->zone);
    }
}


static void
ngx_http_referral_subscribe_refused(redisReply *reply)
{
    ngx_http_referral_subscribe_t  *sub;

    sub = &ngx_http_referral_subscription;

    ngx_http_referral_subscribe_end();

    ngx_http_referral_zone_cover_refused(sub->rmcf->zone);
    ngx_http_referral_subscribe_started();

    if (sub->refused) {
        return;
    }

    sub->refused = 1;

    ngx_log_error(NGX_LOG_WARN, sub->log, 0,
                  "referral: redis %s does not let this user subscribe%s%s; "
                  "a change of a code is seen when \"valid\" of referral_zone "
                  "is over; allow it: +subscribe +ping "
                  "&" NGX_HTTP_REFERRAL_SUBSCRIBE_CHANNEL,
                  sub->rmcf->redis->url.display,
                  reply->type == REDIS_REPLY_ERROR ? ": " : "",
                  reply->type == REDIS_REPLY_ERROR ? reply->str : "");
}


static void
ngx_http_referral_subscribe_ping(void)
{
    ngx_http_referral_subscribe_t  *sub;
    static const char              *argv[] = { "PING" };

    sub = &ngx_http_referral_subscription;

    sub->pinged = ngx_http_referral_subscribe_clock();

    if (ngx_http_referral_redis_optional(sub->link, 1, argv, NULL,
                                         ngx_http_referral_subscribe_pong,
                                         NULL)
        == NGX_OK)
    {
        sub->pinging = 1;
    }
}


/* that of ngx_current_msec, which may be late by a turn of the event loop */

static ngx_msec_t
ngx_http_referral_subscribe_clock(void)
{
    return (ngx_msec_t) (ngx_http_referral_stat_clock() / 1000);
}


static void
ngx_http_referral_subscribe_pong(void *data, redisReply *reply)
{
    ngx_http_referral_subscribe_t  *sub;

    if (reply == NULL) {
        return;
    }

    sub = &ngx_http_referral_subscription;

    sub->pinging = 0;

    if (reply->type == REDIS_REPLY_ERROR) {
        ngx_http_referral_subscribe_refused(reply);
        return;
    }

    if (sub->covering) {
        ngx_http_referral_zone_cover_prove(sub->rmcf->zone, sub->since,
                                           sub->pinged);
        return;
    }

    sub->ponged = 1;

    ngx_http_referral_subscribe_begin();
}


/* whoever may publish in Redis may send anything */

static void
ngx_http_referral_subscribe_message(void *data, redisReply *reply)
{
    u_char                         *p, *last, *space;
    ssize_t                         len;
    uint64_t                        number;
    ngx_str_t                       code;
    u_char                          folded[REFERRAL_CODE_LEN];
    ngx_http_referral_subscribe_t  *sub;

    sub = &ngx_http_referral_subscription;

    ngx_http_referral_count(invalidations);

    p = (u_char *) reply->element[2]->str;
    last = p + reply->element[2]->len;

    if (reply->element[2]->len > NGX_HTTP_REFERRAL_SUBSCRIBE_MESSAGE) {
        return;
    }

    if (last - p == 3 && ngx_memcmp(p, "off", 3) == 0) {
        ngx_http_referral_off_read();
        return;
    }

    space = ngx_strlchr(p, last, ' ');

    if (space == NULL) {
        space = last;
    }

    number = ngx_http_referral_subscribe_number(space, last);

    if (space - p == 1 && *p == '*') {
        ngx_http_referral_zone_invalidate_all(sub->rmcf->zone, number);
        return;
    }

    len = referral_code_fold(p, space - p, folded);

    if (len == REFERRAL_DECLINED) {
        ngx_log_debug0(NGX_LOG_DEBUG_HTTP, sub->log, 0,
                       "referral message is none");
        return;
    }

    code.len = len;
    code.data = folded;

    ngx_http_referral_zone_invalidate(sub->rmcf->zone, &code, number);
}


/* after a space; 0: there is none */

static uint64_t
ngx_http_referral_subscribe_number(u_char *p, u_char *last)
{
    uint64_t  n;

    n = 0;

    if (p == last) {
        return 0;
    }

    for (p++; p < last; p++) {

        if (*p < '0' || *p > '9' || n > (UINT64_MAX - 9) / 10) {
            return 0;
        }

        n = n * 10 + (*p - '0');
    }

    return n;
}


static void
ngx_http_referral_subscribe_started(void)
{
    if (ngx_http_referral_subscription.starting) {
        ngx_http_referral_subscription.starting = 0;

        ngx_http_referral_lookup_release();
    }
}


static void
ngx_http_referral_subscribe_tick(ngx_event_t *ev)
{
    ngx_uint_t                      watch, wait;
    ngx_msec_int_t                  pinged, asked;
    ngx_connection_t               *dummy;
    ngx_http_referral_subscribe_t  *sub;

    dummy = ev->data;
    sub = dummy->data;

    ngx_http_referral_subscribe_started();

    ngx_http_referral_off_tick();

    watch = 0;

    pinged = (ngx_msec_int_t) (ngx_current_msec - sub->pinged);
    asked = (ngx_msec_int_t) (ngx_current_msec - sub->asked);

    if (sub->covering) {
        watch = ngx_http_referral_zone_cover_watch(sub->rmcf->zone, &wait);

        if (!sub->pinging
            && (pinged >= NGX_HTTP_REFERRAL_SUBSCRIBE_PING - 1
                || (watch && wait)))
        {
            ngx_http_referral_subscribe_ping();
        }

    } else if (sub->ready && sub->refused
               && asked >= NGX_HTTP_REFERRAL_SUBSCRIBE_REFUSED)
    {
        ngx_http_referral_subscribe_ask(sub->link);
    }

    ngx_add_timer(&sub->tick, watch ? NGX_HTTP_REFERRAL_SUBSCRIBE_WATCH
                                    : NGX_HTTP_REFERRAL_SUBSCRIBE_TICK);
}
