
/*
 * Copyright (C) The nginx referral module authors
 *
 * The worker's own HTTP endpoint, in a thread of libmicrohttpd: /metrics,
 * /healthz and /readyz.  It reads atomics and nothing else, so it answers
 * whatever the worker waits for.
 */


#ifndef _REFERRAL_LISTEN_H_INCLUDED_
#define _REFERRAL_LISTEN_H_INCLUDED_


#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "referral_core.h"


typedef struct {
    union {
        struct sockaddr       any;
        struct sockaddr_in    in;
        struct sockaddr_in6   in6;
        struct sockaddr_un    un;
    } u;

    socklen_t                 len;
} referral_listen_addr_t;


typedef struct {
    struct MHD_Daemon        *daemon;
    referral_listen_addr_t    addr;
    int                       fd;
} referral_listen_t;


/*
 * "127.0.0.1:PORT", "[::1]:PORT", "unix:/path"; an address that is not this
 * machine's own only with " public" behind it.  NULL, or what is wrong.
 */
const char *referral_listen_parse(referral_listen_addr_t *a,
    const char *text);

/* REFERRAL_ERROR: logged.  With text "" nothing is started. */
int referral_listen_start(referral_listen_t *l, const char *text);
void referral_listen_stop(referral_listen_t *l);


#endif /* _REFERRAL_LISTEN_H_INCLUDED_ */
