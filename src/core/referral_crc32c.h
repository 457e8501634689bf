
/*
 * Copyright (C) The nginx referral module authors
 *
 * CRC-32C (Castagnoli, polynomial 0x1EDC6F41, reflected; RFC 3720 B.4).
 */


#ifndef _REFERRAL_CRC32C_H_INCLUDED_
#define _REFERRAL_CRC32C_H_INCLUDED_


#include "referral_core.h"


/*
 * Continues a checksum: seed 0 starts the standard one, any other value
 * binds the result to that value.  referral_crc32c(0, "123456789", 9)
 * is 0xe3069283.  The machine's instruction is used where there is one.
 */
uint32_t referral_crc32c(uint32_t seed, const void *buf, size_t len);

/* the same without the machine's instruction; tests compare them */
uint32_t referral_crc32c_portable(uint32_t seed, const void *buf, size_t len);


#endif /* _REFERRAL_CRC32C_H_INCLUDED_ */
