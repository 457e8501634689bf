
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "referral_args.h"
#include "str_aid.h"


static void args_pieces(void **state);
static void args_decodes(void **state);
static void args_names(void **state);
static void args_removes(void **state);


static void
args_pieces(void **state)
{
    size_t          i;
    referral_str_t  rest, name, value, piece;

    static const char  *expected[][3] = {
        { "a", "1", "a=1" },
        { "b", "", "b" },
        { "", "c", "=c" },
        { "d", "=x", "d==x" },
        { "e%26", "%3D+", "e%26=%3D+" }
    };

    rest = str("&&a=1&b&&=c&d==x&e%26=%3D+&");

    for (i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        assert_int_equal(referral_args_next(&rest, &name, &value, &piece), 1);

        assert_int_equal(name.len, strlen(expected[i][0]));
        assert_memory_equal(name.data, expected[i][0], name.len);
        assert_int_equal(value.len, strlen(expected[i][1]));
        assert_memory_equal(value.data, expected[i][1], value.len);
        assert_int_equal(piece.len, strlen(expected[i][2]));
        assert_memory_equal(piece.data, expected[i][2], piece.len);
    }

    assert_int_equal(referral_args_next(&rest, &name, &value, NULL), 0);
    assert_int_equal(referral_args_next(&rest, &name, &value, NULL), 0);

    rest.len = 0;
    rest.data = NULL;
    assert_int_equal(referral_args_next(&rest, &name, &value, NULL), 0);
}


static void
args_decodes(void **state)
{
    size_t          i, len;
    u_char          buf[32];
    referral_str_t  src;

    static const char  *texts[][2] = {
        { "", "" },
        { "plain", "plain" },
        { "a+b%20c", "a b c" },
        { "%4a%4B%2b", "JK+" },
        { "%", "%" },
        { "%4", "%4" },
        { "%g1%1g%%41", "%g1%1g%A" },
        { "caf%c3%A9", "caf\xc3\xa9" },
        { "%2541", "%41" }
    };

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        src = str(texts[i][0]);

        len = referral_args_decode(buf, &src);
        assert_int_equal(len, strlen(texts[i][1]));
        assert_memory_equal(buf, texts[i][1], len);

        /* in place */

        memcpy(buf, src.data, src.len);
        src.data = buf;
        assert_int_equal(referral_args_decode(buf, &src), len);
        assert_memory_equal(buf, texts[i][1], len);
    }

    /* digits behind the end are none of ours */

    src = str("a%41");
    src.len = 3;
    assert_int_equal(referral_args_decode(buf, &src), 3);
    assert_memory_equal(buf, "a%4", 3);

    src = str("a%00b");
    assert_int_equal(referral_args_decode(buf, &src), 3);
    assert_memory_equal(buf, "a\0b", 3);
}


static void
args_names(void **state)
{
    referral_str_t  ref, name, other;

    ref = str("ref");

    name = str("ref");
    assert_int_equal(referral_args_name_is(&name, &ref), 1);
    name = str("%72e%66");
    assert_int_equal(referral_args_name_is(&name, &ref), 1);
    name = str("Ref");
    assert_int_equal(referral_args_name_is(&name, &ref), 0);
    name = str("re");
    assert_int_equal(referral_args_name_is(&name, &ref), 0);
    name = str("refe");
    assert_int_equal(referral_args_name_is(&name, &ref), 0);
    name = str("");
    assert_int_equal(referral_args_name_is(&name, &ref), 0);

    other = str("utm_");
    name = str("ut%6d_source");
    assert_int_equal(referral_args_name_begins(&name, &other), 1);
    name = str("utm_");
    assert_int_equal(referral_args_name_begins(&name, &other), 1);
    name = str("utm%5");
    assert_int_equal(referral_args_name_begins(&name, &other), 0);
    name = str("utm");
    assert_int_equal(referral_args_name_begins(&name, &other), 0);

    name = str("a%2Bb+");
    other = str("%61+b%20");
    assert_int_equal(referral_args_name_equal(&name, &other), 0);
    other = str("%61%2bb%20");
    assert_int_equal(referral_args_name_equal(&name, &other), 1);
    other = str("%61%2bb");
    assert_int_equal(referral_args_name_equal(&name, &other), 0);
    assert_int_equal(referral_args_name_equal(&other, &name), 0);
}


static void
args_removes(void **state)
{
    size_t          i, len;
    u_char          buf[64];
    referral_str_t  args, names[2];

    static const char  *texts[][2] = {
        { "ref=X", "" },
        { "ref", "" },
        { "a=1&ref=X&b=2", "a=1&b=2" },
        { "ref=X&a=%72ef", "a=%72ef" },
        { "a=1&%72ef=X", "a=1" },
        { "ref=X&ref=Y&r=Z&a", "a" },
        { "a=ref&refx=1&xref=2", "a=ref&refx=1&xref=2" },
        { "b=+%20&&ref=1&&c==&", "b=+%20&c==" },
        { "", "" }
    };

    names[0] = str("ref");
    names[1] = str("r");

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        args = str(texts[i][0]);

        len = referral_args_without(buf, &args, names, 2);
        assert_true(len <= args.len);
        assert_int_equal(len, strlen(texts[i][1]));
        assert_memory_equal(buf, texts[i][1], len);
    }

    args = str("a=1&ref=X");
    len = referral_args_without(buf, &args, names, 0);
    assert_int_equal(len, 9);
    assert_memory_equal(buf, "a=1&ref=X", 9);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(args_pieces),
        cmocka_unit_test(args_decodes),
        cmocka_unit_test(args_names),
        cmocka_unit_test(args_removes)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
