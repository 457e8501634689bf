
/*
 * Copyright (C) The nginx referral module authors
 *
 * Addresses of Redis: redis://[user[:password]@]host[:port][/db] and
 * unix:/path[:db].
 */


#ifndef _REFERRAL_REDIS_URL_H_INCLUDED_
#define _REFERRAL_REDIS_URL_H_INCLUDED_


#include "referral_core.h"


typedef struct {
    char                 host[256];        /* name or address, "" for unix */
    char                 path[108];        /* of the unix socket, or "" */
    char                 user[128];        /* percent-decoded */
    char                 password[256];    /* percent-decoded */
    uint16_t             port;             /* 6379 by default */
    unsigned             db;               /* 0 by default */
    char                 display[400];     /* for messages: no password */
} referral_redis_url_t;


/*
 * "redis://:secret@host" gives a password without a user; IPv6 addresses
 * stand in brackets.  REFERRAL_ERROR with a sentence in error[] that never
 * repeats the password.
 */
int referral_redis_url_parse(referral_redis_url_t *u, const u_char *text,
    size_t len, char *error);

/*
 * Takes the password from the first line of a file.  REFERRAL_ERROR with a
 * sentence that names the file.
 */
int referral_redis_url_password(referral_redis_url_t *u, const char *path,
    char *error);


#endif /* _REFERRAL_REDIS_URL_H_INCLUDED_ */
