
/*
 * Copyright (C) The nginx referral module authors
 *
 * A C string as the core takes it; the bytes are not copied.
 */


#ifndef _STR_AID_H_INCLUDED_
#define _STR_AID_H_INCLUDED_


#include "referral_core.h"

#include <string.h>


static referral_str_t
str(const char *s)
{
    referral_str_t  v;

    v.len = strlen(s);
    v.data = (u_char *) s;

    return v;
}


#endif /* _STR_AID_H_INCLUDED_ */
