
/*
 * Copyright (C) The nginx referral module authors
 *
 * UUID version 7 (RFC 9562 section 5.7): 48 bits of Unix milliseconds, then
 * 74 random bits.  The time inside the id is the time of the click.
 */


#ifndef _REFERRAL_UUID_H_INCLUDED_
#define _REFERRAL_UUID_H_INCLUDED_


#include "referral_core.h"


/* one per process, made after fork: random bytes are drawn in advance */

typedef struct {
    uint64_t             last;             /* ms of the newest id */
    size_t               used;             /* bytes of pool[] spent */
    u_char               pool[1024];
} referral_uuid_source_t;


/* REFERRAL_ERROR when the system has no randomness to give */
int referral_uuid_source_init(referral_uuid_source_t *s);

/*
 * Makes an id for the time now, in Unix milliseconds.  The time in ids does
 * not go back, unless the clock was stepped back by more than 10 seconds:
 * then ids follow it.
 */
int referral_uuid7(referral_uuid_source_t *s, uint64_t now, u_char *id);

/* random version 4 id, for streams and visitors */
int referral_uuid4(referral_uuid_source_t *s, u_char *id);

/* Unix milliseconds of a version 7 id; 0 when it is no version 7 id */
uint64_t referral_uuid_time(const u_char *id);

/* REFERRAL_UUID_TEXT_LEN and REFERRAL_UUID_HEX_LEN bytes, no NUL */
void referral_uuid_text(const u_char *id, u_char *text);
void referral_uuid_hex(const u_char *id, u_char *text);

/* takes both forms in either case; REFERRAL_DECLINED for anything else */
int referral_uuid_parse(const u_char *text, size_t len, u_char *id);


#endif /* _REFERRAL_UUID_H_INCLUDED_ */
