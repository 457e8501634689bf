
/*
 * Copyright (C) The nginx referral module authors
 *
 * The publisher: carries codes from Postgres to Redis, in a thread with
 * connections of its own.  sql/0012_publish.sql keeps what it knows.
 *
 * Redis holds what batch number "batch" of "generation" wrote, or a part of
 * the next one.  Each script compares both, and the fence, with what this
 * publisher last saw, and batch moves with the last script of a batch; then
 * the row in Postgres follows.  So a Redis that forgot, or another one, or an
 * older copy, never looks like the one that was left, and whoever was stopped
 * for a while can do no harm.
 *
 * All that is written was read after all that was written before: one thread
 * reads and writes in turn.  Therefore a full publish needs no snapshot, and
 * single changes go on between its slices.
 */


#ifndef _REFERRAL_PUBLISH_H_INCLUDED_
#define _REFERRAL_PUBLISH_H_INCLUDED_


#include "pg.h"
#include "redis.h"
#include "settings.h"
#include "thread.h"


typedef struct {
    referral_thread_t           thread;
    const referral_settings_t  *settings;

    referral_pg_t               pg;
    referral_redis_t            redis;

    char                        run_id[65];
    int64_t                     fence;
    int64_t                     generation;
    int64_t                     batch;     /* the last one that is whole */
    uint64_t                    found;     /* hashes, by the search so far */
    uint64_t                    foreign;   /* without code_id */
    char                        cursor[24];   /* of the search */
    char                       *off;       /* what referral:off holds */

    /* monotonic ms */

    uint64_t                    looked;
    uint64_t                    alive;
    uint64_t                    pruned;
    uint64_t                    begun;     /* of the full publish */

    /* attempts that failed */

    uint64_t                    failures;  /* in a row */
    uint64_t                    since;
    uint64_t                    logged;
    uint64_t                    pause;
    char                        reason[REFERRAL_ERROR_LEN];

    unsigned                    standby:1; /* and said so */
    unsigned                    ready:1;   /* so is Redis, says Postgres */
    unsigned                    taken:1;   /* by a higher fence */
    unsigned                    lost:1;    /* Postgres, not Redis */
    unsigned                    fenced:1;  /* guards, both */
    unsigned                    compared:1;
    unsigned                    warned:1;  /* of eviction */
} referral_publish_t;


/* does nothing unless the settings want it; they must outlive the thread */
void referral_publish_start(referral_publish_t *p,
    const referral_settings_t *settings);

/* REFERRAL_AGAIN: it has not stopped, see referral_thread_stop() */
int referral_publish_stop(referral_publish_t *p);


#endif /* _REFERRAL_PUBLISH_H_INCLUDED_ */
