
/*
 * Copyright (C) The nginx referral module authors
 *
 * Counters, kept in the zone: a slot for each worker, so that no cache line
 * is written by two of them.  They survive reload.
 */


#ifndef _NGX_HTTP_REFERRAL_STAT_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_STAT_H_INCLUDED_


#include "ngx_http_referral.h"


#define NGX_HTTP_REFERRAL_STAT_SLOTS  64


typedef struct {
    ngx_atomic_t  requests[REFERRAL_VERDICT_MAX][REFERRAL_VIA_MAX];

    ngx_atomic_t  zone_hit;
    ngx_atomic_t  zone_stale;
    ngx_atomic_t  zone_miss;
    ngx_atomic_t  zone_evicted;
    ngx_atomic_t  zone_nomem;

    ngx_atomic_t  redis_commands;
    ngx_atomic_t  redis_replies;
    ngx_atomic_t  redis_errors;        /* replies that are errors */
    ngx_atomic_t  redis_timeouts;
    ngx_atomic_t  redis_connects;
    ngx_atomic_t  redis_failures;      /* of connections */
    ngx_atomic_t  redis_opened;        /* times the circuit opened */

    ngx_atomic_t  journal_records;
    ngx_atomic_t  journal_bytes;

    ngx_atomic_t  dropped_full;        /* journal full or broken */
    ngx_atomic_t  dropped_noise;       /* over the noise budget */
    ngx_atomic_t  dropped_error;       /* could not be encoded */
    ngx_atomic_t  limited;             /* 429 of the miss limit */
    ngx_atomic_t  waiters_refused;     /* over the cap on waiting requests */

    ngx_atomic_t  geo_found;
    ngx_atomic_t  geo_missing;         /* address not in the database */
    ngx_atomic_t  geo_errors;          /* no database, damaged */

    ngx_atomic_t  tokens[REFERRAL_TOKEN_EXPIRED + 1];
    ngx_atomic_t  tokens_issued;

    u_char        padding[64];
} ngx_http_referral_stat_t;


/* this worker's slot; never NULL once a worker runs */
extern ngx_http_referral_stat_t  *ngx_http_referral_stat;


#define ngx_http_referral_count(name)                                        \
    (void) ngx_atomic_fetch_add(&ngx_http_referral_stat->name, 1)

#define ngx_http_referral_count_n(name, n)                                   \
    (void) ngx_atomic_fetch_add(&ngx_http_referral_stat->name, n)


#endif /* _NGX_HTTP_REFERRAL_STAT_H_INCLUDED_ */
