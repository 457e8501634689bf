
/*
 * Copyright (C) The nginx referral module authors
 *
 * Referral codes: 1 to 64 of A-Z a-z 0-9 _ and -, kept in upper case (which
 * QR symbols encode in fewer modules).
 */


#ifndef _REFERRAL_CODE_H_INCLUDED_
#define _REFERRAL_CODE_H_INCLUDED_


#include "referral_core.h"


#define REFERRAL_CODE_LEN  64


/*
 * Folds src into code, at least REFERRAL_CODE_LEN bytes.  Returns the length,
 * which is len, or REFERRAL_DECLINED for a malformed code.
 */
ssize_t referral_code_fold(const u_char *src, size_t len, u_char *code);


#endif /* _REFERRAL_CODE_H_INCLUDED_ */
