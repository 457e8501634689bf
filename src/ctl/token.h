
/*
 * Copyright (C) The nginx referral module authors
 *
 * referralctl token and secret: attribution tokens and the keys that sign
 * them.
 */


#ifndef _CTL_TOKEN_H_INCLUDED_
#define _CTL_TOKEN_H_INCLUDED_


#include "ctl.h"


int ctl_token_verify(ctl_options_t *o);
int ctl_secret_new(ctl_options_t *o);


#endif /* _CTL_TOKEN_H_INCLUDED_ */
