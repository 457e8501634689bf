
/*
 * Copyright (C) The nginx referral module authors
 *
 * What the worker counts: one place for all its threads.  Whoever counts
 * something adds a field here and its line to the table in stat.c, which the
 * text for Prometheus is made from; labels have few values, known here.
 */


#ifndef _REFERRAL_STAT_H_INCLUDED_
#define _REFERRAL_STAT_H_INCLUDED_


#include "referral_uuid.h"
#include "copy.h"


/* upper bounds of times in stat.c, and one for all that is longer */

#define REFERRAL_STAT_BOUNDS  14

/* streams shown by themselves; of more, those with most records */

#define REFERRAL_STAT_STREAMS  64


typedef struct {
    uint64_t                 buckets[REFERRAL_STAT_BOUNDS + 1];
    uint64_t                 sum;          /* microseconds */
} referral_stat_times_t;


typedef struct {
    u_char                   id[REFERRAL_UUID_LEN];
    uint64_t                 records;      /* that are not in Postgres */
    uint64_t                 ms;           /* age of the oldest of them */
} referral_stat_stream_t;


typedef struct {

    /* the flush */

    uint64_t                 rows;
    uint64_t                 batches;
    uint64_t                 quarantined;
    uint64_t                 dead;
    uint64_t                 gap;
    referral_stat_times_t    batch;

    /* of the flush's connection, by what was wrong */

    uint64_t                 retry_connection;
    uint64_t                 retry_conflict;
    uint64_t                 retry_timeout;
    uint64_t                 retry_resources;
    uint64_t                 retry_readonly;
    uint64_t                 retry_alarm;

    /* lag.c: gauges */

    uint64_t                 lag_records;
    uint64_t                 lag_ms;       /* age of the oldest record */
    uint64_t                 streams_live;
    uint64_t                 streams_final;
    uint64_t                 streams_aside;

    /* the publisher */

    uint64_t                 published;    /* codes written to Redis */
    uint64_t                 publish_full; /* publications of all codes */
    uint64_t                 publish_failures;
    referral_stat_times_t    publish;      /* commit to Redis */

    /* webhooks */

    uint64_t                 webhook_delivered;
    uint64_t                 webhook_retry;
    uint64_t                 webhook_dead;
    uint64_t                 webhook_disabled;
    uint64_t                 webhook_late;
    uint64_t                 webhook_in_flight;   /* gauge */
    referral_stat_times_t    webhook;

    /* what readiness is judged by: 0, or monotonic ms since when */

    uint64_t                 postgres_away;
    uint64_t                 journal_away;
    uint64_t                 postgres_seen;  /* 1: there was a connection */
    uint64_t                 alive;          /* the main loop came by */
} referral_stat_t;


extern referral_stat_t  referral_stat;


/* relaxed: a counter orders nothing */

#define referral_stat_add(field, n)                                          \
    ((void) __atomic_fetch_add(&referral_stat.field, (uint64_t) (n),         \
                               __ATOMIC_RELAXED))

#define referral_stat_set(field, n)                                          \
    __atomic_store_n(&referral_stat.field, (uint64_t) (n), __ATOMIC_RELAXED)

#define referral_stat_get(field)                                             \
    __atomic_load_n(&referral_stat.field, __ATOMIC_RELAXED)

#define referral_stat_time(field, us)                                        \
    referral_stat_observe(&referral_stat.field, us)


/* microseconds of the monotonic clock */
uint64_t referral_stat_now(void);

void referral_stat_observe(referral_stat_times_t *t, uint64_t us);

/* a lost attempt of the flush, by its SQLSTATE */
void referral_stat_retry(const char *sqlstate);

/* what is true of streams now; n: up to REFERRAL_STAT_STREAMS */
void referral_stat_streams(const referral_stat_stream_t *streams, size_t n);

/* the Prometheus text format, version 0.0.4 */
void referral_stat_prometheus(referral_buf_t *b);


#endif /* _REFERRAL_STAT_H_INCLUDED_ */
