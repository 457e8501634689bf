
/*
 * Copyright (C) The nginx referral module authors
 */


#include "progress.h"
#include "time_text.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>


#define CTL_PROGRESS_EVERY  200            /* ms between two lines */


static void ctl_progress_signal(int signo);


static volatile sig_atomic_t  ctl_progress_stop;


void
ctl_progress_begin(ctl_progress_t *p, const char *what)
{
    struct sigaction  sa;

    memset(p, 0, sizeof(ctl_progress_t));

    p->what = what;
    p->terminal = isatty(STDERR_FILENO) == 1;
    p->started = ctl_time_now();

    /* no SA_RESTART: a read from a terminal returns */

    memset(&sa, 0, sizeof(struct sigaction));
    sa.sa_handler = ctl_progress_signal;
    sa.sa_flags = SA_RESETHAND;

    (void) sigaction(SIGINT, &sa, NULL);
    (void) sigaction(SIGTERM, &sa, NULL);
}


static void
ctl_progress_signal(int signo)
{
    ctl_progress_stop = 1;
}


void
ctl_progress_show(ctl_progress_t *p, uint64_t rows, uint64_t done,
    uint64_t total)
{
    char      count[CTL_PROGRESS_LEN], rate[CTL_PROGRESS_LEN];
    uint64_t  now, passed;

    if (!p->terminal) {
        return;
    }

    now = ctl_time_now();

    if (now - p->shown < CTL_PROGRESS_EVERY) {
        return;
    }

    p->shown = now;
    passed = now > p->started ? now - p->started : 1;

    fprintf(stderr, "\r\033[K  %s %s", ctl_progress_number(rows, count),
            p->what);

    if (total) {
        fprintf(stderr, "  %" PRIu64 " %%",
                done < total ? done * 100 / total : 100);
    }

    fprintf(stderr, "  %s/s", ctl_progress_number(rows * 1000 / passed, rate));
    fflush(stderr);
}


void
ctl_progress_end(ctl_progress_t *p)
{
    if (p->terminal) {
        fprintf(stderr, "\r\033[K");
        fflush(stderr);
    }
}


int
ctl_progress_interrupted(void)
{
    return ctl_progress_stop;
}


const char *
ctl_progress_number(uint64_t n, char *buf)
{
    char    digits[CTL_PROGRESS_LEN], *q;
    int     i, len;

    len = snprintf(digits, sizeof(digits), "%" PRIu64, n);
    q = buf;

    for (i = 0; i < len; i++) {

        if (i && (len - i) % 3 == 0) {
            *q++ = ',';
        }

        *q++ = digits[i];
    }

    *q = '\0';

    return buf;
}
