
/*
 * Copyright (C) The nginx referral module authors
 *
 * Calls referral.housekeeping(), part by part, in a thread with a connection
 * of its own: folding counters and computing rollups takes seconds, which the
 * clicks do not wait for.  Any number of workers may do it at once.
 */


#ifndef _REFERRAL_HOUSEKEEPING_H_INCLUDED_
#define _REFERRAL_HOUSEKEEPING_H_INCLUDED_


#include "pg.h"
#include "settings.h"
#include "thread.h"


typedef struct {
    referral_thread_t    thread;
    referral_pg_t        pg;
} referral_housekeeping_t;


/* as in publish.h: the settings must not change while it runs */

void referral_housekeeping_start(referral_housekeeping_t *h,
    const referral_settings_t *settings);
int referral_housekeeping_stop(referral_housekeeping_t *h);


#endif /* _REFERRAL_HOUSEKEEPING_H_INCLUDED_ */
