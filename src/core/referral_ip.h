
/*
 * Copyright (C) The nginx referral module authors
 *
 * Client addresses: both families, masking, networks as limiter keys.
 */


#ifndef _REFERRAL_IP_H_INCLUDED_
#define _REFERRAL_IP_H_INCLUDED_


#include "referral_core.h"

#include <sys/socket.h>


#define REFERRAL_IP_TEXT_LEN                                                  \
    (sizeof("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128") - 1)


typedef struct {
    u_char               bytes[16];        /* network byte order */
    uint8_t              len;              /* 4, 16, or 0: no address */
    uint8_t              prefix;           /* bits that are kept */
} referral_ip_t;


/*
 * IPv4-mapped IPv6 addresses (::ffff:0:0/96) become IPv4.  Other families
 * (unix sockets) give REFERRAL_DECLINED and an ip of len 0.
 */
int referral_ip_from_sockaddr(referral_ip_t *ip, const struct sockaddr *sa);

/* from text, with or without /prefix */
int referral_ip_parse(referral_ip_t *ip, const u_char *text, size_t len);

/* zeroes the bits beyond v4 or v6 bits, by family, and sets the prefix */
void referral_ip_mask(referral_ip_t *ip, unsigned v4, unsigned v6);

/*
 * The text form; /prefix only when it is shorter than the address.  Returns
 * the length, at most REFERRAL_IP_TEXT_LEN; no NUL is written.
 */
size_t referral_ip_text(const referral_ip_t *ip, u_char *text);


#endif /* _REFERRAL_IP_H_INCLUDED_ */
