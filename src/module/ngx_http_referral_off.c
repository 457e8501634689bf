
/*
 * Copyright (C) The nginx referral module authors
 */


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_referral_off.h"
#include "ngx_http_referral_stat.h"
#include "ngx_http_referral_subscribe.h"
#include "ngx_http_referral_zone_cover.h"


#define NGX_HTTP_REFERRAL_OFF_LOOK  10000          /* ms */


typedef struct {
    ngx_http_referral_main_conf_t  *rmcf;
    ngx_http_referral_redis_t      *link;          /* NULL: none yet */
    ngx_log_t                      *log;
    uint64_t                        number;        /* of the read */

    unsigned                        reading:1;
    unsigned                        again:1;       /* asked for since */
    unsigned                        refused:1;     /* said so, like these */
    unsigned                        over:1;
    unsigned                        strange:1;
} ngx_http_referral_off_t;


static void ngx_http_referral_off_start(void);
static void ngx_http_referral_off_handler(void *data, redisReply *reply);
static void ngx_http_referral_off_take(redisReply *reply);
static uint64_t ngx_http_referral_off_key(redisReply *member);
static int ngx_libc_cdecl ngx_http_referral_off_cmp(const void *one,
    const void *two);
static void ngx_http_referral_off_refused(redisReply *reply);


static ngx_http_referral_off_t  ngx_http_referral_offs;


void
ngx_http_referral_off_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf)
{
    ngx_memzero(&ngx_http_referral_offs, sizeof(ngx_http_referral_off_t));

    ngx_http_referral_offs.rmcf = rmcf;
    ngx_http_referral_offs.log = cycle->log;
}


void
ngx_http_referral_off_greet(ngx_http_referral_redis_t *link)
{
    ngx_http_referral_offs.link = link;

    ngx_http_referral_off_read();
}


void
ngx_http_referral_off_leave(void)
{
    ngx_http_referral_offs.link = NULL;
}


void
ngx_http_referral_off_read(void)
{
    ngx_http_referral_off_t  *off;

    off = &ngx_http_referral_offs;

    off->again = 1;

    if (!off->reading) {
        ngx_http_referral_off_start();
    }
}


void
ngx_http_referral_off_tick(void)
{
    ngx_http_referral_off_t  *off;

    off = &ngx_http_referral_offs;

    if (off->reading) {
        return;
    }

    if (off->again
        || ngx_http_referral_zone_off_due(off->rmcf->zone,
                                          NGX_HTTP_REFERRAL_OFF_LOOK))
    {
        ngx_http_referral_off_read();
    }
}


/*
 * SMEMBERS has no limit, and a reply that is too large would end the link.
 * So many different members are all of them unless there are more than fit.
 */

static void
ngx_http_referral_off_start(void)
{
    size_t                    argvlen[3];
    u_char                    text[NGX_INT_T_LEN];
    const char               *argv[3];
    ngx_http_referral_off_t  *off;

    off = &ngx_http_referral_offs;

    if (off->link == NULL) {
        return;
    }

    argv[0] = "SRANDMEMBER";
    argvlen[0] = sizeof("SRANDMEMBER") - 1;
    argv[1] = "referral:off";
    argvlen[1] = sizeof("referral:off") - 1;
    argv[2] = (char *) text;
    argvlen[2] = ngx_sprintf(text, "%ui",
                             ngx_http_referral_zone_off_max(off->rmcf->zone)
                             + 1)
                 - text;

    off->number = ngx_http_referral_zone_off_ask(off->rmcf->zone);

    if (ngx_http_referral_redis_optional(off->link, 3, argv, argvlen,
                                         ngx_http_referral_off_handler, NULL)
        != NGX_OK)
    {
        return;
    }

    ngx_http_referral_count(off_reads);

    off->reading = 1;
    off->again = 0;
}


static void
ngx_http_referral_off_handler(void *data, redisReply *reply)
{
    ngx_http_referral_off_t  *off;

    off = &ngx_http_referral_offs;

    off->reading = 0;

    if (reply == NULL) {

        /* the next link greets with it */

        off->again = 1;
        return;
    }

    if (reply->type == REDIS_REPLY_ARRAY) {
        ngx_http_referral_off_take(reply);

    } else {
        ngx_http_referral_off_refused(reply);
    }

    if (off->again) {

        /* what changed since may not be in it */

        ngx_http_referral_off_start();
        return;
    }

    ngx_http_referral_subscribe_settled();
}


static void
ngx_http_referral_off_take(redisReply *reply)
{
    uint64_t                   key, *keys;
    ngx_uint_t                 i, n, max, over;
    ngx_http_referral_off_t   *off;

    off = &ngx_http_referral_offs;

    max = ngx_http_referral_zone_off_max(off->rmcf->zone);
    over = (reply->elements > max);

    keys = ngx_alloc((max + 1) * sizeof(uint64_t), off->log);
    if (keys == NULL) {
        return;
    }

    n = 0;

    for (i = 0; i < reply->elements && n < max; i++) {

        key = ngx_http_referral_off_key(reply->element[i]);

        if (key) {
            keys[n++] = key;

        } else if (!off->strange) {
            off->strange = 1;

            ngx_log_error(NGX_LOG_ERR, off->log, 0,
                          "referral: a member of referral:off in redis %s is "
                          "neither program:<id> nor referrer:<id>, ignored",
                          off->rmcf->redis->url.display);
        }
    }

    ngx_qsort(keys, n, sizeof(uint64_t), ngx_http_referral_off_cmp);

    (void) ngx_http_referral_zone_off_set(off->rmcf->zone, off->number, keys,
                                          n, over);
    ngx_free(keys);

    if (over && !off->over) {
        ngx_log_error(NGX_LOG_ERR, off->log, 0,
                      "referral: referral:off in redis %s has more than %ui "
                      "members, codes with a program or a referrer are read "
                      "again each second; is the publisher running?",
                      off->rmcf->redis->url.display, max);
    }

    off->over = over;
    off->refused = 0;
}


/* 0: not a member that means something */

static uint64_t
ngx_http_referral_off_key(redisReply *member)
{
    size_t      len;
    u_char     *p;
    ngx_int_t   id;

    if (member->type != REDIS_REPLY_STRING) {
        return 0;
    }

    p = (u_char *) member->str;
    len = member->len;

    if (len > 8 && ngx_memcmp(p, "program:", 8) == 0) {
        id = ngx_atoi(p + 8, len - 8);

        return (id > 0) ? ngx_http_referral_zone_off_program(id) : 0;
    }

    if (len > 9 && ngx_memcmp(p, "referrer:", 9) == 0) {
        id = ngx_atoi(p + 9, len - 9);

        return (id > 0) ? ngx_http_referral_zone_off_referrer(id) : 0;
    }

    return 0;
}


static int ngx_libc_cdecl
ngx_http_referral_off_cmp(const void *one, const void *two)
{
    const uint64_t  *a = one;
    const uint64_t  *b = two;

    return (*a < *b) ? -1 : (*a > *b);
}


/* programs and referrers take effect with their codes then */

static void
ngx_http_referral_off_refused(redisReply *reply)
{
    ngx_http_referral_off_t  *off;

    off = &ngx_http_referral_offs;

    if (off->refused) {
        return;
    }

    off->refused = 1;

    ngx_log_error(NGX_LOG_WARN, off->log, 0,
                  "referral: redis %s does not let this user read "
                  "referral:off%s%s; programs and referrers that are switched "
                  "off take effect code by code; allow it: +srandmember "
                  "~referral:*",
                  off->rmcf->redis->url.display,
                  reply->type == REDIS_REPLY_ERROR ? ": " : "",
                  reply->type == REDIS_REPLY_ERROR ? reply->str : "");
}
