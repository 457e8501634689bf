
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_crc32c.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>


/* bit by bit, as the definition has it */

static uint32_t
plain(uint32_t seed, const u_char *p, size_t len)
{
    unsigned  i;
    uint32_t  crc;

    crc = ~seed;

    while (len--) {
        crc ^= *p++;

        for (i = 0; i < 8; i++) {
            crc = (crc & 1) ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
        }
    }

    return ~crc;
}


/* RFC 3720 appendix B.4, and the usual check value */

static void
vectors(void **state)
{
    u_char    buf[32];
    unsigned  i;

    assert_int_equal(referral_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(referral_crc32c(0, "", 0), 0);

    memset(buf, 0, sizeof(buf));
    assert_int_equal(referral_crc32c(0, buf, 32), 0x8a9136aa);

    memset(buf, 0xff, sizeof(buf));
    assert_int_equal(referral_crc32c(0, buf, 32), 0x62a8ab43);

    for (i = 0; i < 32; i++) {
        buf[i] = (u_char) i;
    }

    assert_int_equal(referral_crc32c(0, buf, 32), 0x46dd794e);

    for (i = 0; i < 32; i++) {
        buf[i] = (u_char) (31 - i);
    }

    assert_int_equal(referral_crc32c(0, buf, 32), 0x113fdb5c);
}


/* both ways, every alignment and length, whole and continued */

static void
agreement(void **state)
{
    size_t    len, at;
    u_char    buf[160];
    uint32_t  crc, seed;

    seed = 1;

    for (len = 0; len < sizeof(buf); len++) {
        seed = seed * 1103515245 + 12345;
        buf[len] = (u_char) (seed >> 16);
    }

    for (at = 0; at < 9; at++) {
        for (len = 0; len < 150; len++) {
            crc = plain(seed, buf + at, len);

            assert_int_equal(referral_crc32c(seed, buf + at, len), crc);
            assert_int_equal(referral_crc32c_portable(seed, buf + at, len),
                             crc);
            assert_int_equal(referral_crc32c(
                                 referral_crc32c(seed, buf + at, len / 3),
                                 buf + at + len / 3, len - len / 3), crc);
        }
    }

    assert_int_not_equal(referral_crc32c(1, buf, 100),
                         referral_crc32c(2, buf, 100));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(vectors),
        cmocka_unit_test(agreement)
    };

    return cmocka_run_group_tests_name("crc32c", tests, NULL, NULL);
}
