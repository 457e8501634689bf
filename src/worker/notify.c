
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "notify.h"
#include "signals.h"
#include "stat.h"


static void referral_notify_send(const char *text);


static int                 referral_notify_fd = -1;
static struct sockaddr_un  referral_notify_addr;
static socklen_t           referral_notify_addr_len;

static uint64_t            referral_notify_interval;   /* ms, 0: none */
static uint64_t            referral_notify_last;


void
referral_notify_init(void)
{
    char        *path, *usec, *pid;
    size_t       len;
    long long    n;

    path = getenv("NOTIFY_SOCKET");

    if (path == NULL || (path[0] != '/' && path[0] != '@')) {
        return;
    }

    len = strlen(path);

    if (len < 2 || len >= sizeof(referral_notify_addr.sun_path)) {
        return;
    }

    referral_notify_addr.sun_family = AF_UNIX;
    memcpy(referral_notify_addr.sun_path, path, len);
    referral_notify_addr_len = offsetof(struct sockaddr_un, sun_path) + len;

    if (path[0] == '@') {

        /* the abstract namespace: its names are not NUL-terminated */

        referral_notify_addr.sun_path[0] = '\0';

    } else {
        referral_notify_addr_len++;
    }

    referral_notify_fd = socket(AF_UNIX, SOCK_DGRAM|SOCK_CLOEXEC|SOCK_NONBLOCK,
                                0);

    usec = getenv("WATCHDOG_USEC");
    pid = getenv("WATCHDOG_PID");

    if (usec == NULL || (pid != NULL && atol(pid) != (long) getpid())) {
        return;
    }

    n = atoll(usec);

    if (n > 0) {
        referral_notify_interval = n / 1000 / 3 + 1;
    }
}


void
referral_notify_ready(void)
{
    referral_notify_send("READY=1");
}


void
referral_notify_reloading(void)
{
    char             text[64];
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%llu",
             (unsigned long long) ts.tv_sec * 1000000 + ts.tv_nsec / 1000);

    referral_notify_send(text);
}


void
referral_notify_stopping(void)
{
    referral_notify_send("STOPPING=1");
}


void
referral_notify_status(const char *status)
{
    char         text[320];

    static char  last[256];

    if (referral_notify_fd == -1
        || strncmp(last, status, sizeof(last) - 1) == 0)
    {
        return;
    }

    snprintf(last, sizeof(last), "%s", status);
    snprintf(text, sizeof(text), "STATUS=%s", last);

    referral_notify_send(text);
}


void
referral_notify_alive(void)
{
    uint64_t  now;

    now = referral_now();
    referral_stat_set(alive, now);

    if (referral_notify_interval == 0) {
        return;
    }

    if (now - referral_notify_last >= referral_notify_interval) {
        referral_notify_last = now;
        referral_notify_send("WATCHDOG=1");
    }
}


static void
referral_notify_send(const char *text)
{
    ssize_t  rc;

    if (referral_notify_fd == -1) {
        return;
    }

    /* nobody to tell when this fails, and nothing to be done */

    rc = sendto(referral_notify_fd, text, strlen(text), MSG_NOSIGNAL,
                (struct sockaddr *) &referral_notify_addr,
                referral_notify_addr_len);
    (void) rc;
}
