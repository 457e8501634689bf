
/*
 * Copyright (C) The nginx referral module authors
 *
 * Counters, kept in the zone: a slot for each worker, so that no cache line
 * is written by two of them.  They survive reload.
 */


#ifndef _NGX_HTTP_REFERRAL_STAT_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_STAT_H_INCLUDED_


#include "ngx_http_referral.h"


#define NGX_HTTP_REFERRAL_STAT_SLOTS    64

/* of Redis' answers: see ngx_http_referral_stat.c; the last has no bound */

#define NGX_HTTP_REFERRAL_STAT_BUCKETS  14


/*
 * A line each: field, name behind "referral_", label, its value, help.  The
 * slots, JSON and Prometheus' text are made of these lines.  A family with
 * labels stands together, and its first line has the help.
 */

#define NGX_HTTP_REFERRAL_COUNTERS(X)                                         \
    X(zone_hit, "zone_lookups_total", "result", "hit",                        \
      "Codes looked up in the zone.")                                         \
    X(zone_stale, "zone_lookups_total", "result", "stale", NULL)              \
    X(zone_unsure, "zone_lookups_total", "result", "unsure", NULL)            \
    X(zone_miss, "zone_lookups_total", "result", "miss", NULL)                \
    X(zone_evicted, "zone_evicted_total", NULL, NULL,                         \
      "Entries dropped from the zone to make room.")                          \
    X(zone_nomem, "zone_no_memory_total", NULL, NULL,                         \
      "Entries that were not stored for want of memory.")                     \
    X(zone_changed, "zone_refused_total", "reason", "changed",                \
      "Replies of Redis that were not stored, overtaken or older.")           \
    X(zone_older, "zone_refused_total", "reason", "older", NULL)              \
                                                                              \
    X(redis_commands, "redis_commands_total", NULL, NULL,                     \
      "Commands sent to Redis.")                                              \
    X(redis_replies, "redis_replies_total", NULL, NULL,                       \
      "Replies of Redis.")                                                    \
    X(redis_errors, "redis_errors_total", NULL, NULL,                         \
      "Replies of Redis that are errors.")                                    \
    X(redis_timeouts, "redis_timeouts_total", NULL, NULL,                     \
      "Commands without a reply in time.")                                    \
    X(redis_connects, "redis_connects_total", NULL, NULL,                     \
      "Connections made to Redis.")                                           \
    X(redis_failures, "redis_connect_failures_total", NULL, NULL,             \
      "Connections to Redis that failed or broke.")                           \
    X(redis_opened, "redis_circuit_opened_total", NULL, NULL,                 \
      "Times that waiting for Redis was given up.")                           \
    X(redis_not_ready, "redis_not_ready_total", NULL, NULL,                   \
      "Absent codes not believed, because the publisher was not ready.")      \
    X(subscriptions, "redis_subscriptions_total", NULL, NULL,                 \
      "Subscriptions to changes that began.")                                 \
    X(invalidations, "redis_invalidations_total", NULL, NULL,                 \
      "Changes that were announced, counted by each worker.")                 \
    X(off_reads, "redis_off_reads_total", NULL, NULL,                         \
      "Reads of the set of programs and referrers switched off.")             \
                                                                              \
    X(journal_records, "journal_records_total", NULL, NULL,                   \
      "Records appended to the journal.")                                     \
    X(journal_bytes, "journal_bytes_total", NULL, NULL,                       \
      "Bytes appended to the journal.")                                       \
                                                                              \
    X(dropped_full, "dropped_total", "reason", "full",                        \
      "Clicks that were not recorded.")                                       \
    X(dropped_noise, "dropped_total", "reason", "noise", NULL)                \
    X(dropped_error, "dropped_total", "reason", "error", NULL)                \
                                                                              \
    X(limited, "limited_total", NULL, NULL,                                   \
      "Requests refused with 429 by the miss limit.")                         \
    X(waiters_refused, "waiters_refused_total", NULL, NULL,                   \
      "Requests over the cap on those that wait for Redis.")                  \
                                                                              \
    X(geo_found, "geo_lookups_total", "result", "found",                      \
      "Addresses looked up in the geo databases.")                            \
    X(geo_missing, "geo_lookups_total", "result", "missing", NULL)            \
    X(geo_errors, "geo_lookups_total", "result", "error", NULL)               \
    X(geo_reads, "geo_reads_total", NULL, NULL,                               \
      "Networks read from the geo databases, the others were known.")         \
    X(geo_loads, "geo_loads_total", NULL, NULL,                               \
      "Geo databases that were replaced by a newer file.")                    \
    X(geo_failures, "geo_load_failures_total", NULL, NULL,                    \
      "Geo databases that could not be read or were refused.")                \
                                                                              \
    X(token_new, "tokens_total", "result", "new",                             \
      "Cookies issued (new, updated), and those that came.")                  \
    X(token_updated, "tokens_total", "result", "updated", NULL)               \
    X(token_verified, "tokens_total", "result", "verified", NULL)             \
    X(token_rotated, "tokens_total", "result", "rotated", NULL)               \
    X(token_malformed, "tokens_total", "result", "malformed", NULL)           \
    X(token_unknown_key, "tokens_total", "result", "unknown-key", NULL)       \
    X(token_forged, "tokens_total", "result", "forged", NULL)                 \
    X(token_expired, "tokens_total", "result", "expired", NULL)


/* what is true now; the values of all workers that live are added up */

#define NGX_HTTP_REFERRAL_GAUGES(X)                                           \
    X(redis_connected, "redis_connected_workers",                             \
      "Workers whose connection to Redis is usable.")                         \
    X(redis_circuit, "redis_circuit_open_workers",                            \
      "Workers that do not wait for Redis, whose answers are late.")          \
    X(redis_subscribed, "redis_subscribed_workers",                           \
      "Workers that hear of each change.")                                    \
    X(redis_waiting, "redis_waiting_requests",                                \
      "Requests that wait for an answer of Redis.")                           \
    X(journal_streams, "journal_open_streams",                                \
      "Workers that have a stream of the journal.")


#define ngx_http_referral_stat_field(field, ...)  ngx_atomic_t  field;


typedef struct {
    ngx_atomic_t  requests[REFERRAL_VERDICT_MAX][REFERRAL_VIA_MAX];
    ngx_atomic_t  latency[NGX_HTTP_REFERRAL_STAT_BUCKETS];
    ngx_atomic_t  latency_sum;         /* us */

    NGX_HTTP_REFERRAL_COUNTERS(ngx_http_referral_stat_field)

    /* what is above is added up over all slots, ever */

    ngx_atomic_t  pid;                 /* of the worker, 0: free */
    ngx_atomic_t  unsynced;            /* ms, since when; 0: all is synced */

    NGX_HTTP_REFERRAL_GAUGES(ngx_http_referral_stat_field)

    u_char        padding[64];
} ngx_http_referral_stat_t;


/* this worker's slot; never NULL once a worker runs */
extern ngx_http_referral_stat_t  *ngx_http_referral_stat;

/* upper bounds of the buckets but the last, us */
extern const ngx_uint_t
    ngx_http_referral_stat_bounds[NGX_HTTP_REFERRAL_STAT_BUCKETS - 1];


#define ngx_http_referral_count(name)                                         \
    (void) ngx_atomic_fetch_add(&ngx_http_referral_stat->name, 1)

#define ngx_http_referral_count_n(name, n)                                    \
    (void) ngx_atomic_fetch_add(&ngx_http_referral_stat->name, n)

#define ngx_http_referral_gauge(name, value)                                  \
    ngx_http_referral_stat->name = (value)


/*
 * Takes a slot that no living worker has, and gives it back.  Beyond
 * NGX_HTTP_REFERRAL_STAT_SLOTS processes at a time they share: counters stay
 * right, gauges do not.
 */
void ngx_http_referral_stat_init_process(ngx_http_referral_stat_t *slots);
void ngx_http_referral_stat_exit_process(void);

/* CLOCK_MONOTONIC, us */
uint64_t ngx_http_referral_stat_clock(void);

/* an answer of Redis to what was asked at that time */
void ngx_http_referral_stat_latency(uint64_t started);


#endif /* _NGX_HTTP_REFERRAL_STAT_H_INCLUDED_ */
