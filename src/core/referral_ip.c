
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_ip.h"

#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>


static void referral_ip_unmap(referral_ip_t *ip);


static const u_char  referral_ip_mapped[12] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff
};


int
referral_ip_from_sockaddr(referral_ip_t *ip, const struct sockaddr *sa)
{
    struct sockaddr_in   sin;
    struct sockaddr_in6  sin6;

    memset(ip, 0, sizeof(referral_ip_t));

    switch (sa->sa_family) {

    case AF_INET:
        memcpy(&sin, sa, sizeof(struct sockaddr_in));
        memcpy(ip->bytes, &sin.sin_addr, 4);
        ip->len = 4;
        ip->prefix = 32;
        return REFERRAL_OK;

    case AF_INET6:
        memcpy(&sin6, sa, sizeof(struct sockaddr_in6));
        memcpy(ip->bytes, &sin6.sin6_addr, 16);
        ip->len = 16;
        ip->prefix = 128;
        referral_ip_unmap(ip);
        return REFERRAL_OK;

    default:
        return REFERRAL_DECLINED;
    }
}


/* ip is masked: a network wider than ::ffff:0:0/96 does not look mapped */

static void
referral_ip_unmap(referral_ip_t *ip)
{
    if (memcmp(ip->bytes, referral_ip_mapped, 12) != 0) {
        return;
    }

    memmove(ip->bytes, &ip->bytes[12], 4);
    memset(&ip->bytes[4], 0, 12);

    ip->len = 4;
    ip->prefix = (uint8_t) (ip->prefix - 96);
}


int
referral_ip_parse(referral_ip_t *ip, const u_char *text, size_t len)
{
    char           buf[INET6_ADDRSTRLEN];
    size_t         i;
    unsigned       prefix, max;
    const u_char  *slash;

    memset(ip, 0, sizeof(referral_ip_t));

    slash = len ? memchr(text, '/', len) : NULL;
    i = slash == NULL ? len : (size_t) (slash - text);

    if (i == 0 || i >= sizeof(buf) || memchr(text, '\0', i) != NULL) {
        return REFERRAL_DECLINED;
    }

    memcpy(buf, text, i);
    buf[i] = '\0';

    if (inet_pton(AF_INET, buf, ip->bytes) == 1) {
        ip->len = 4;
        max = 32;

    } else if (inet_pton(AF_INET6, buf, ip->bytes) == 1) {
        ip->len = 16;
        max = 128;

    } else {
        memset(ip, 0, sizeof(referral_ip_t));
        return REFERRAL_DECLINED;
    }

    prefix = max;

    if (slash != NULL) {
        prefix = 0;
        i++;

        if (i == len || len - i > 3) {
            goto declined;
        }

        for ( /* void */ ; i < len; i++) {

            if (text[i] < '0' || text[i] > '9') {
                goto declined;
            }

            prefix = prefix * 10 + (text[i] - '0');
        }

        if (prefix > max) {
            goto declined;
        }
    }

    ip->prefix = (uint8_t) max;
    referral_ip_mask(ip, prefix, prefix);
    referral_ip_unmap(ip);

    return REFERRAL_OK;

declined:

    memset(ip, 0, sizeof(referral_ip_t));

    return REFERRAL_DECLINED;
}


void
referral_ip_mask(referral_ip_t *ip, unsigned v4, unsigned v6)
{
    size_t    i;
    unsigned  bits;

    bits = ip->len == 4 ? v4 : v6;

    if (bits >= ip->prefix) {
        return;
    }

    ip->prefix = (uint8_t) bits;

    for (i = 0; i < ip->len; i++) {

        if (bits >= 8) {
            bits -= 8;
            continue;
        }

        ip->bytes[i] &= (u_char) (0xff00 >> bits);
        bits = 0;
    }
}


size_t
referral_ip_text(const referral_ip_t *ip, u_char *text)
{
    char      buf[INET6_ADDRSTRLEN];
    size_t    len;
    unsigned  n;

    if (ip->len != 4 && ip->len != 16) {
        return 0;
    }

    if (inet_ntop(ip->len == 4 ? AF_INET : AF_INET6, ip->bytes, buf,
                  sizeof(buf))
        == NULL)
    {
        return 0;
    }

    len = strlen(buf);
    memcpy(text, buf, len);

    n = ip->prefix;

    if (n >= ip->len * 8U) {
        return len;
    }

    text[len++] = '/';

    if (n >= 100) {
        text[len++] = (u_char) ('0' + n / 100);
    }

    if (n >= 10) {
        text[len++] = (u_char) ('0' + n / 10 % 10);
    }

    text[len++] = (u_char) ('0' + n % 10);

    return len;
}
