
/*
 * Copyright (C) The nginx referral module authors
 *
 * referralctl code: the hashes referral:code:<CODE> in Redis, and the verbs
 * that can be asked of Postgres, too.
 */


#ifndef _CTL_CODE_H_INCLUDED_
#define _CTL_CODE_H_INCLUDED_


#include "ctl.h"


int ctl_code_set(ctl_options_t *o);
int ctl_code_show(ctl_options_t *o);
int ctl_code_list(ctl_options_t *o);
int ctl_code_remove(ctl_options_t *o);

int ctl_code_show_where(ctl_options_t *o);
int ctl_code_list_where(ctl_options_t *o);


#endif /* _CTL_CODE_H_INCLUDED_ */
