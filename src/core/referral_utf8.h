
/*
 * Copyright (C) The nginx referral module authors
 *
 * Text that Postgres accepts: valid UTF-8 (RFC 3629: no overlong forms, no
 * surrogates, nothing above U+10FFFF) without NUL.
 */


#ifndef _REFERRAL_UTF8_H_INCLUDED_
#define _REFERRAL_UTF8_H_INCLUDED_


#include "referral_core.h"


/* 1 when the text needs no cleaning */
int referral_utf8_valid(const u_char *src, size_t len);

/*
 * Copies src to dst: each maximal invalid sequence and each NUL becomes
 * U+FFFD.  dst must hold 3 * len bytes.  Returns the length.
 */
size_t referral_utf8_clean(u_char *dst, const u_char *src, size_t len);

/* the longest prefix of at most max bytes that cuts no sequence */
size_t referral_utf8_cut(const u_char *src, size_t len, size_t max);


#endif /* _REFERRAL_UTF8_H_INCLUDED_ */
