
/*
 * Copyright (C) The nginx referral module authors
 *
 * Signals and waiting.  Every wait of the worker is done here, so that a
 * signal ends it and the watchdog knows its name.
 */


#ifndef _REFERRAL_SIGNALS_H_INCLUDED_
#define _REFERRAL_SIGNALS_H_INCLUDED_


#include <signal.h>
#include <stdint.h>


/* set by handlers: SIGTERM, SIGINT; SIGHUP (cleared by who obeys) */

extern volatile sig_atomic_t  referral_quit;
extern volatile sig_atomic_t  referral_reload;


/*
 * Installs the handlers.  A second SIGTERM or SIGINT leaves at once, from the
 * handler, whatever the process is doing (a name server may hold libpq for
 * minutes): nothing is lost by that, the cursor in Postgres decides.
 */
int referral_signals_init(void);

/* milliseconds of the monotonic clock */
uint64_t referral_now(void);

/*
 * Waits at most ms for events on fd (-1: only for the time).
 *
 *   REFERRAL_OK     fd is ready
 *   REFERRAL_AGAIN  the time is over
 *   REFERRAL_DONE   quit or reload was asked for; only when stoppable, and in
 *                   a thread that is to stop in any case (thread.h)
 *
 * what names the wait for the status line.
 */
int referral_wait(const char *what, int fd, short events, uint64_t ms,
    unsigned stoppable);


#endif /* _REFERRAL_SIGNALS_H_INCLUDED_ */
