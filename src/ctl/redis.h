
/*
 * Copyright (C) The nginx referral module authors
 *
 * One blocking connection to Redis, with deadlines.
 */


#ifndef _CTL_REDIS_H_INCLUDED_
#define _CTL_REDIS_H_INCLUDED_


#include "ctl.h"
#include "referral_redis_url.h"

#include <hiredis/hiredis.h>


typedef struct {
    redisContext          *c;
    referral_redis_url_t   url;
} ctl_redis_t;


/*
 * Connects, authenticates and selects the database.  Returns CTL_DONE, or
 * the exit code after saying what failed.
 */
int ctl_redis_open(ctl_redis_t *r, const ctl_options_t *o);
void ctl_redis_close(ctl_redis_t *r);

/*
 * A command, its words NUL-terminated, the last one NULL.  NULL after saying
 * what failed; error replies are failures.  *rc is the exit code then.  The
 * reply is the caller's to free.
 */
redisReply *ctl_redis_command(ctl_redis_t *r, int *rc, const char **words);

/* the same in two steps, for many commands on the way at once */
int ctl_redis_send(ctl_redis_t *r, int *rc, const char **words);
redisReply *ctl_redis_read(ctl_redis_t *r, int *rc);

/* error replies are given to the caller, nothing is said about them */
redisReply *ctl_redis_reply(ctl_redis_t *r, int *rc);


#endif /* _CTL_REDIS_H_INCLUDED_ */
