
/*
 * Copyright (C) The nginx referral module authors
 *
 * referralctl publish: asks the worker to publish, or compares what is in
 * Redis with what should be.
 */


#ifndef _CTL_PUBLISH_H_INCLUDED_
#define _CTL_PUBLISH_H_INCLUDED_


#include "ctl.h"


int ctl_publish(ctl_options_t *o);
int ctl_publish_check(ctl_options_t *o);


#endif /* _CTL_PUBLISH_H_INCLUDED_ */
