
/*
 * Copyright (C) The nginx referral module authors
 *
 * referralctl NOUN import and export: CSV from and to Postgres.
 */


#ifndef _CTL_IMPORT_H_INCLUDED_
#define _CTL_IMPORT_H_INCLUDED_


#include "ctl.h"


int ctl_import_orgs(ctl_options_t *o);
int ctl_import_programs(ctl_options_t *o);
int ctl_import_codes(ctl_options_t *o);
int ctl_import_referrers(ctl_options_t *o);

int ctl_export_orgs(ctl_options_t *o);
int ctl_export_programs(ctl_options_t *o);
int ctl_export_codes(ctl_options_t *o);
int ctl_export_referrers(ctl_options_t *o);


#endif /* _CTL_IMPORT_H_INCLUDED_ */
