
/*
 * Copyright (C) The nginx referral module authors
 *
 * What Redis's own words mean to somebody who has to act on them.
 */


#ifndef _REFERRAL_REDIS_REPLY_H_INCLUDED_
#define _REFERRAL_REDIS_REPLY_H_INCLUDED_


#include "referral_core.h"


/*
 * What to do about an error reply that says that this server cannot be used,
 * now or as this user; NULL for all others.
 */
const char *referral_redis_advice(const char *reply);


#endif /* _REFERRAL_REDIS_REPLY_H_INCLUDED_ */
