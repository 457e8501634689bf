
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "referral_code.h"


static void code_folds(void **state);
static void code_lengths(void **state);
static void code_every_byte(void **state);


static void
code_folds(void **state)
{
    u_char  code[REFERRAL_CODE_LEN + 1];

    memset(code, '#', sizeof(code));

    assert_int_equal(referral_code_fold((u_char *) "summer_25-Ab", 12, code),
                     12);
    assert_memory_equal(code, "SUMMER_25-AB#", 13);
}


static void
code_lengths(void **state)
{
    u_char  src[REFERRAL_CODE_LEN + 1], code[REFERRAL_CODE_LEN + 1];

    memset(src, 'x', sizeof(src));
    memset(code, '#', sizeof(code));

    assert_int_equal(referral_code_fold(src, 0, code), REFERRAL_DECLINED);
    assert_int_equal(referral_code_fold(NULL, 0, code), REFERRAL_DECLINED);
    assert_int_equal(referral_code_fold(src, 65, code), REFERRAL_DECLINED);
    assert_int_equal(code[0], '#');

    assert_int_equal(referral_code_fold(src, 64, code), 64);
    assert_int_equal(code[63], 'X');
    assert_int_equal(code[64], '#');
}


static void
code_every_byte(void **state)
{
    size_t        i;
    u_char        ch, code[REFERRAL_CODE_LEN];
    ssize_t       n;
    const u_char  allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                              "abcdefghijklmnopqrstuvwxyz0123456789_-";

    for (i = 0; i < 256; i++) {
        ch = (u_char) i;
        n = referral_code_fold(&ch, 1, code);

        if (memchr(allowed, ch, sizeof(allowed) - 1) != NULL) {
            assert_int_equal(n, 1);
            assert_int_equal(code[0], ch >= 'a' && ch <= 'z' ? ch - 32 : ch);

        } else {
            assert_int_equal(n, REFERRAL_DECLINED);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(code_folds),
        cmocka_unit_test(code_lengths),
        cmocka_unit_test(code_every_byte)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
