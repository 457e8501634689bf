
/*
 * Copyright (C) The nginx referral module authors
 *
 * Threads beside the flush.  Each owns what it uses, its own connection to
 * Postgres among it; what it shares is in stat.h, and the settings, which are
 * not changed while it runs: a reload stops it and starts it again.
 *
 * Signals are blocked in all of them.  Waits are done by referral_wait(), as
 * everywhere: in a thread it returns REFERRAL_DONE, stoppable or not, when the
 * thread is to stop, and leaves the watchdog alone.
 */


#ifndef _REFERRAL_THREAD_H_INCLUDED_
#define _REFERRAL_THREAD_H_INCLUDED_


#include <pthread.h>

#include "referral_core.h"


/* a thread has so long to stop, ms */

#define REFERRAL_THREAD_STOP  2000


typedef struct {
    const char                *name;       /* up to 15 characters */
    void                     (*run)(void *data);
    void                      *data;

    pthread_t                  tid;
    int                        wake;       /* eventfd, readable: stop */
    unsigned                   stopping;   /* atomic */
    unsigned                   running:1;

    /* set by the thread itself: what it is at is to be finished first */

    unsigned                   holding;
} referral_thread_t;


/* REFERRAL_ERROR: logged; name, run and data are set by the caller */
int referral_thread_start(referral_thread_t *t);

/*
 * Asks the thread to stop; several may be asked before the first is waited
 * for.
 */
void referral_thread_ask(referral_thread_t *t);

/*
 * Asks, and waits for it.  REFERRAL_AGAIN: it has not stopped (a name server
 * may hold libpq for minutes), and what it uses must not be freed.
 */
int referral_thread_stop(referral_thread_t *t);

/* the thread that calls, NULL: the main one */
referral_thread_t *referral_thread_self(void);

/* 1: the thread that calls, or the process, is to stop */
int referral_stopping(void);


#endif /* _REFERRAL_THREAD_H_INCLUDED_ */
