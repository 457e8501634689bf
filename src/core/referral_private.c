
/*
 * Copyright (C) The nginx referral module authors
 */


#include <netinet/in.h>
#include <string.h>

#include "referral_private.h"


typedef struct {
    u_char               prefix[16];
    unsigned             bits;
} referral_private_net_t;


static int referral_private_match(const referral_private_net_t *nets, size_t n,
    const u_char *addr);


/* IANA's registry of special-purpose IPv4 addresses (RFC 6890), multicast */

static const referral_private_net_t  referral_private_v4[] = {
    { { 0 }, 8 },                          /* "this network" */
    { { 10 }, 8 },
    { { 100, 64 }, 10 },                   /* shared: carrier NAT */
    { { 127 }, 8 },
    { { 169, 254 }, 16 },                  /* link-local, clouds' metadata */
    { { 172, 16 }, 12 },
    { { 192, 0, 0 }, 24 },
    { { 192, 0, 2 }, 24 },
    { { 192, 88, 99 }, 24 },               /* 6to4 relays */
    { { 192, 168 }, 16 },
    { { 198, 18 }, 15 },                   /* benchmarks */
    { { 198, 51, 100 }, 24 },
    { { 203, 0, 113 }, 24 },
    { { 224 }, 3 }                         /* multicast, reserved, broadcast */
};


/* what is not global unicast, 2000::/3, is special; these are in there, too */

static const referral_private_net_t  referral_private_v6[] = {
    { { 0x20, 0x01, 0x00 }, 23 },          /* protocols, Teredo */
    { { 0x20, 0x01, 0x0d, 0xb8 }, 32 },    /* documentation */
    { { 0x3f, 0xff, 0x00 }, 20 }           /* documentation, RFC 9637 */
};


/* an IPv4 address follows: mapped, compatible, translated; 6to4 */

static const referral_private_net_t  referral_private_translated =
    { { 0x00, 0x64, 0xff, 0x9b }, 96 };

static const referral_private_net_t  referral_private_6to4 =
    { { 0x20, 0x02 }, 16 };


#define referral_private_count(nets)  (sizeof(nets) / sizeof((nets)[0]))

#define referral_private_in_v4(addr)                                         \
    referral_private_match(referral_private_v4,                              \
                           referral_private_count(referral_private_v4), addr)


int
referral_private_address(const struct sockaddr *sa)
{
    const u_char  *p;

    if (sa->sa_family == AF_INET) {
        p = (const u_char *) &((const struct sockaddr_in *) sa)->sin_addr;
        return referral_private_in_v4(p);
    }

    if (sa->sa_family != AF_INET6) {
        return 1;
    }

    p = (const u_char *) &((const struct sockaddr_in6 *) sa)->sin6_addr;

    if (IN6_IS_ADDR_V4MAPPED((const struct in6_addr *) p)
        || referral_private_match(&referral_private_translated, 1, p))
    {
        return referral_private_in_v4(p + 12);
    }

    if (referral_private_match(&referral_private_6to4, 1, p)) {
        return referral_private_in_v4(p + 2);
    }

    return (p[0] & 0xe0) != 0x20
           || referral_private_match(referral_private_v6,
                                  referral_private_count(referral_private_v6),
                                  p);
}


static int
referral_private_match(const referral_private_net_t *nets, size_t n,
    const u_char *addr)
{
    size_t    i;
    unsigned  bytes, rest;

    for (i = 0; i < n; i++) {
        bytes = nets[i].bits / 8;
        rest = nets[i].bits % 8;

        if (memcmp(nets[i].prefix, addr, bytes) == 0
            && (rest == 0
                || (nets[i].prefix[bytes] ^ addr[bytes]) >> (8 - rest) == 0))
        {
            return 1;
        }
    }

    return 0;
}
