
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "referral_utf8.h"


static void utf8_cleans(void **state);
static void utf8_agrees(void **state);
static void utf8_words(void **state);
static void utf8_cuts(void **state);


#define R  "\xef\xbf\xbd"


static void
utf8_cleans(void **state)
{
    size_t  i, len;
    u_char  out[128];

    /* the third is the example of Unicode 15, table 3-8 and following */

    static const struct {
        const char  *in;
        size_t       len;
        const char  *out;
    } texts[] = {
        { "", 0, "" },
        { "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8d\x8b", 14,
          "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8d\x8b" },
        { "\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", 9,
          R R R R R R R R "A" },
        { "\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", 9,
          R R R R R R R R "A" },
        { "\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", 9,
          R R R R R "A" R R "B" },
        { "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", 9, R R R R "A" },
        { "a\0b", 3, "a" R "b" },
        { "\xe2\x82", 2, R },
        { "x\xf0\x9f\x8d", 4, "x" R },
        { "\xf4\x8f\xbf\xbf", 4, "\xf4\x8f\xbf\xbf" },
        { "\xed\x9f\xbf\xee\x80\x80", 6, "\xed\x9f\xbf\xee\x80\x80" }
    };

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        len = referral_utf8_clean(out, (u_char *) texts[i].in, texts[i].len);
        out[len] = '\0';

        assert_true(len <= 3 * texts[i].len);
        assert_string_equal((char *) out, texts[i].out);
        assert_int_equal(referral_utf8_valid((u_char *) texts[i].in,
                                             texts[i].len),
                         len == texts[i].len
                         && memcmp(out, texts[i].in, len) == 0);
    }
}


/* every text of one and two bytes, and every three beginning with E0..F4 */

static void
utf8_agrees(void **state)
{
    int       valid;
    u_char    in[3], out[9];
    size_t    len, n;
    unsigned  i, k;

    for (i = 0; i < 0x1000000; i++) {

        in[0] = (u_char) (i >> 16);
        in[1] = (u_char) (i >> 8);
        in[2] = (u_char) i;

        n = in[0] >= 0xe0 ? 3 : 2;

        if (n == 2) {
            i |= 0xff;
        }

        valid = 1;

        for (k = 0; k < n; /* void */ ) {

            if (in[k] != 0 && in[k] < 0x80) {
                k++;

            } else if (n - k >= 2 && in[k] >= 0xc2 && in[k] <= 0xdf
                       && in[k + 1] >> 6 == 2)
            {
                k += 2;

            } else if (n - k == 3 && in[0] >> 4 == 14
                       && in[1] >> 6 == 2 && in[2] >> 6 == 2
                       && (in[0] != 0xe0 || in[1] >= 0xa0)
                       && (in[0] != 0xed || in[1] < 0xa0))
            {
                k += 3;

            } else {
                valid = 0;
                break;
            }
        }

        if (referral_utf8_valid(in, n) != valid) {
            fail_msg("%02x %02x %02x: not %d", in[0], in[1], in[2], valid);
        }

        if (i % 251 == 0) {
            len = referral_utf8_clean(out, in, n);
            assert_true(referral_utf8_valid(out, len));
        }
    }
}


/* eight bytes are looked at in one step: every byte at every place */

static void
utf8_words(void **state)
{
    size_t    at, len;
    u_char    text[20];
    unsigned  ch;

    for (len = 1; len <= sizeof(text); len++) {
        for (at = 0; at < len; at++) {
            for (ch = 0; ch < 256; ch++) {
                memset(text, ch & 1 ? 0x01 : 0x7f, sizeof(text));
                text[at] = (u_char) ch;

                if (referral_utf8_valid(text, len) != (ch != 0 && ch < 0x80)) {
                    fail_msg("%02x at %zu of %zu", ch, at, len);
                }
            }
        }
    }

    memset(text, 'a', sizeof(text));
    memcpy(text + 6, "\xe2\x82\xac", 3);

    assert_int_equal(referral_utf8_valid(text, sizeof(text)), 1);
    assert_int_equal(referral_utf8_valid(text, 8), 0);
}


static void
utf8_cuts(void **state)
{
    size_t        max, n;
    const u_char  text[] = "a\xc3\xa9" "b\xe2\x82\xac" "c\xf0\x9f\x8d\x8b" "d";
    const size_t  cut[] = { 0, 1, 1, 3, 4, 4, 4, 7, 8, 8, 8, 8, 12, 13, 13 };

    for (max = 0; max < sizeof(cut) / sizeof(cut[0]); max++) {
        n = referral_utf8_cut(text, sizeof(text) - 1, max);

        assert_int_equal(n, cut[max]);
        assert_true(referral_utf8_valid(text, n));
    }

    /* what is no sequence anyway need not be spared */

    assert_int_equal(referral_utf8_cut((u_char *) "\x80\x80\x80\x80", 4, 2),
                     2);
    assert_int_equal(referral_utf8_cut((u_char *) "\xe2\x82\x41", 3, 2), 2);
    assert_int_equal(referral_utf8_cut((u_char *) "\xe2\x82\x41", 3, 1), 1);
    assert_int_equal(referral_utf8_cut(NULL, 0, 5), 0);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(utf8_cleans),
        cmocka_unit_test(utf8_agrees),
        cmocka_unit_test(utf8_words),
        cmocka_unit_test(utf8_cuts)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
