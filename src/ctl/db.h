
/*
 * Copyright (C) The nginx referral module authors
 *
 * referralctl db: the schema's migrations.
 */


#ifndef _CTL_DB_H_INCLUDED_
#define _CTL_DB_H_INCLUDED_


#include "ctl.h"


int ctl_db_upgrade(ctl_options_t *o);
int ctl_db_status(ctl_options_t *o);


#endif /* _CTL_DB_H_INCLUDED_ */
