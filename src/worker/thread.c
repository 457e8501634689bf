
/*
 * Copyright (C) The nginx referral module authors
 */


#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "signals.h"
#include "thread.h"


static void *referral_thread_main(void *data);


static __thread referral_thread_t  *referral_thread_current;


int
referral_thread_start(referral_thread_t *t)
{
    int       rc;
    sigset_t  all, old;

    t->stopping = 0;
    t->wake = eventfd(0, EFD_CLOEXEC|EFD_NONBLOCK);

    rc = t->wake == -1 ? errno : 0;

    if (rc == 0) {

        /* the mask is inherited: no moment passes with signals let in */

        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);

        rc = pthread_create(&t->tid, NULL, referral_thread_main, t);

        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }

    if (rc != 0) {
        referral_log(REFERRAL_LOG_ERROR, "thread-failed", strerror(rc),
                     "thread=%s", t->name);

        if (t->wake != -1) {
            close(t->wake);
        }

        return REFERRAL_ERROR;
    }

    (void) pthread_setname_np(t->tid, t->name);

    t->running = 1;

    return REFERRAL_OK;
}


static void *
referral_thread_main(void *data)
{
    referral_thread_t  *t;

    t = data;

    referral_thread_current = t;
    t->run(t->data);

    return NULL;
}


void
referral_thread_ask(referral_thread_t *t)
{
    ssize_t   rc;
    uint64_t  one;

    if (!t->running) {
        return;
    }

    __atomic_store_n(&t->stopping, 1, __ATOMIC_RELEASE);

    one = 1;
    rc = write(t->wake, &one, sizeof(uint64_t));
    (void) rc;
}


int
referral_thread_stop(referral_thread_t *t)
{
    struct timespec  ts;

    if (!t->running) {
        return REFERRAL_OK;
    }

    referral_thread_ask(t);

    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += REFERRAL_THREAD_STOP / 1000;

    if (pthread_clockjoin_np(t->tid, NULL, CLOCK_MONOTONIC, &ts) != 0) {
        referral_log(REFERRAL_LOG_WARN, "thread-busy", "it did not stop in"
                     " time", "thread=%s", t->name);
        return REFERRAL_AGAIN;
    }

    close(t->wake);
    t->running = 0;

    return REFERRAL_OK;
}


referral_thread_t *
referral_thread_self(void)
{
    return referral_thread_current;
}


int
referral_stopping(void)
{
    if (referral_thread_current == NULL) {
        return referral_quit;
    }

    /* not only when it is asked: the main thread may be in a long batch */

    return __atomic_load_n(&referral_quit, __ATOMIC_RELAXED)
           || __atomic_load_n(&referral_thread_current->stopping,
                              __ATOMIC_ACQUIRE);
}
