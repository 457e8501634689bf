
/*
 * Copyright (C) The nginx referral module authors
 */


#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "referral_core.h"
#include "notify.h"
#include "signals.h"
#include "thread.h"


/* the watchdog is fed at least this often during a wait, ms */

#define REFERRAL_WAIT_STEP  1000


static void referral_signals_handler(int signo);
static void referral_signals_drain(void);


volatile sig_atomic_t  referral_quit;
volatile sig_atomic_t  referral_reload;


static int  referral_signals_pipe[2] = { -1, -1 };


int
referral_signals_init(void)
{
    struct sigaction  sa;

    if (pipe2(referral_signals_pipe, O_CLOEXEC|O_NONBLOCK) == -1) {
        return REFERRAL_ERROR;
    }

    memset(&sa, 0, sizeof(struct sigaction));
    sigemptyset(&sa.sa_mask);

    sa.sa_flags = SA_RESTART;
    sa.sa_handler = referral_signals_handler;

    if (sigaction(SIGTERM, &sa, NULL) == -1
        || sigaction(SIGINT, &sa, NULL) == -1
        || sigaction(SIGHUP, &sa, NULL) == -1)
    {
        return REFERRAL_ERROR;
    }

    sa.sa_handler = SIG_IGN;

    return sigaction(SIGPIPE, &sa, NULL) == -1 ? REFERRAL_ERROR : REFERRAL_OK;
}


static void
referral_signals_handler(int signo)
{
    int      err;
    ssize_t  rc;

    err = errno;

    if (signo == SIGHUP) {
        referral_reload = 1;

    } else if (referral_quit) {
        _exit(0);

    } else {
        __atomic_store_n(&referral_quit, 1, __ATOMIC_RELAXED);
    }

    rc = write(referral_signals_pipe[1], "", 1);
    (void) rc;

    errno = err;
}


uint64_t
referral_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}


int
referral_wait(const char *what, int fd, short events, uint64_t ms,
    unsigned stoppable)
{
    int                 n;
    uint64_t            now, end, step;
    struct pollfd       pfd[2];
    referral_thread_t  *t;

    now = referral_now();
    end = now + ms;
    t = referral_thread_self();

    for ( ;; ) {

        if (t != NULL ? !t->holding && referral_stopping()
                      : stoppable && (referral_quit || referral_reload))
        {
            return REFERRAL_DONE;
        }

        step = now < end ? end - now : 0;

        if (step > REFERRAL_WAIT_STEP) {
            step = REFERRAL_WAIT_STEP;
        }

        pfd[0].fd = t == NULL ? referral_signals_pipe[0]
                    : t->holding ? -1 : t->wake;
        pfd[0].events = POLLIN;
        pfd[1].fd = fd;
        pfd[1].events = events;
        pfd[1].revents = 0;

        n = poll(pfd, 2, (int) step);

        /* an answer is progress, however short the wait for it was */

        if (n > 0 && pfd[1].revents) {

            if (t == NULL) {
                referral_notify_alive();
            }

            return REFERRAL_OK;
        }

        if (n > 0 && t == NULL) {
            referral_signals_drain();
        }

        now = referral_now();

        if (now >= end) {
            return REFERRAL_AGAIN;
        }

        if (n == 0 && t == NULL) {
            referral_notify_status(what);
            referral_notify_alive();
        }
    }
}


static void
referral_signals_drain(void)
{
    char  buf[64];

    while (read(referral_signals_pipe[0], buf, sizeof(buf)) > 0) {
        /* void */
    }
}
