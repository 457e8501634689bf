
/*
 * Copyright (C) The nginx referral module authors
 *
 * Destinations: absolute http or https URLs with macros, and what a short
 * link's own arguments add to them.
 */


#ifndef _REFERRAL_DESTINATION_H_INCLUDED_
#define _REFERRAL_DESTINATION_H_INCLUDED_


#include "referral_core.h"


typedef enum {
    REFERRAL_PASSTHROUGH_OFF = 0,
    REFERRAL_PASSTHROUGH_UTM,              /* utm_* only */
    REFERRAL_PASSTHROUGH_ALL
} referral_passthrough_e;


typedef struct {
    referral_str_t          url;           /* checked before */
    referral_str_t          code;          /* {code} */
    referral_str_t          click_id;      /* {click_id}, "" if not accepted */
    referral_str_t          country;       /* {country} */
    referral_str_t          args;          /* the request's, undecoded */
    const referral_str_t   *drop;          /* names that are never passed */
    size_t                  ndrop;
    referral_passthrough_e  passthrough;
} referral_destination_t;


/*
 * An absolute http or https URL, at most REFERRAL_URL_LEN bytes, with a
 * host, without control characters, spaces, quotes, backslashes or user
 * names; macros only after the authority and only {click_id}, {code},
 * {country}.  Otherwise REFERRAL_ERROR with a sentence in error[].
 */
int referral_destination_check(const referral_str_t *url, char *error);

/*
 * 1 when referral_destination_build() would write the URL as it stands, which
 * is how most are: nothing to build then.
 */
int referral_destination_plain(const referral_destination_t *d);

/* an upper bound for referral_destination_build() */
size_t referral_destination_size(const referral_destination_t *d);

/*
 * Writes the Location: macros percent-encoded, then the arguments to pass,
 * before the fragment.  An argument whose name (percent-decoded) the
 * destination already has is not added.  Bytes that a header must not carry
 * are percent-encoded.  Returns the end.
 */
u_char *referral_destination_build(const referral_destination_t *d,
    u_char *buf);


#endif /* _REFERRAL_DESTINATION_H_INCLUDED_ */
