
/*
 * Copyright (C) The nginx referral module authors
 *
 * Addresses that are no public host: where a URL that somebody else gave must
 * not lead, or our own network could be asked through us (SSRF).
 */


#ifndef _REFERRAL_PRIVATE_H_INCLUDED_
#define _REFERRAL_PRIVATE_H_INCLUDED_


#include <sys/socket.h>

#include "referral_core.h"


/*
 * 1 when the address is special: loopback, private, link-local, shared,
 * multicast, documentation, reserved or unspecified, or an IPv6 address that
 * carries such an IPv4 address; and for every family but these two.
 */
int referral_private_address(const struct sockaddr *sa);


#endif /* _REFERRAL_PRIVATE_H_INCLUDED_ */
