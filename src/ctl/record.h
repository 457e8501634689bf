
/*
 * Copyright (C) The nginx referral module authors
 *
 * A journal's record, for programs and for people.
 */


#ifndef _CTL_RECORD_H_INCLUDED_
#define _CTL_RECORD_H_INCLUDED_


#include "referral_record.h"

#include <jansson.h>


/*
 * All fields, named as the columns of referral.interaction; absent ones are
 * null.  Text is made valid UTF-8.
 */
json_t *ctl_record_json(const char *stream, uint64_t number,
    const referral_record_t *rec);

/* one line on stdout, safe for a terminal */
void ctl_record_line(const referral_record_t *rec);


#endif /* _CTL_RECORD_H_INCLUDED_ */
