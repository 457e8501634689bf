
/*
 * Copyright (C) The nginx referral module authors
 *
 * How far Postgres is behind the journal, for the endpoint.  A thread reads
 * the journal by itself, each second what is new: the flush does not know how
 * much there is while it waits for Postgres, which is when it matters.
 */


#ifndef _REFERRAL_LAG_H_INCLUDED_
#define _REFERRAL_LAG_H_INCLUDED_


#include "referral_reader.h"
#include "thread.h"


typedef struct {
    referral_thread_t          thread;
    const char                *path;       /* of the journal */

    referral_journal_t        *journal;    /* its positions: the ends */
    dev_t                      dev;
    ino_t                      ino;
} referral_lag_t;


/* REFERRAL_ERROR: logged; the path must stay until it is stopped */
int referral_lag_start(referral_lag_t *l, const char *path);

/* as referral_thread_stop() */
int referral_lag_stop(referral_lag_t *l);


#endif /* _REFERRAL_LAG_H_INCLUDED_ */
