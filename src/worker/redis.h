
/*
 * Copyright (C) The nginx referral module authors
 *
 * The link to Redis: one connection, commands in flight, a deadline for each
 * answer.  Waits are done by referral_wait(), so a stop ends them.
 */


#ifndef _REFERRAL_REDIS_H_INCLUDED_
#define _REFERRAL_REDIS_H_INCLUDED_


#include <hiredis/hiredis.h>

#include "referral_core.h"
#include "referral_redis_url.h"


typedef struct {
    redisContext          *c;
    referral_redis_url_t   url;

    unsigned               in_flight;      /* commands without an answer */
    char                   error[REFERRAL_ERROR_LEN];
} referral_redis_t;


#define referral_redis_connected(r)  ((r)->c != NULL)


/*
 * Reads url and password file anew, connects, authenticates and selects the
 * database.  REFERRAL_OK; REFERRAL_ERROR with the sentence in r->error;
 * REFERRAL_DONE: asked to stop.  The same for all that follows; but for an
 * error reply the link is closed then.
 */
int referral_redis_connect(referral_redis_t *r, const char *url,
    const char *password_file);
void referral_redis_close(referral_redis_t *r);

/* queues a command, and sends what the socket takes at once */
int referral_redis_send(referral_redis_t *r, int n, const char **words,
    const size_t *lens);

/* the answer to the oldest command in flight; the caller frees it */
int referral_redis_read(referral_redis_t *r, redisReply **reply);

/* both, for one command with none in flight */
int referral_redis_command(referral_redis_t *r, int n, const char **words,
    redisReply **reply);


#endif /* _REFERRAL_REDIS_H_INCLUDED_ */
