
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "referral_uuid.h"


static void uuid7_layout(void **state);
static void uuid7_goes_forward(void **state);
static void uuid7_follows_a_step(void **state);
static void uuid_randomness(void **state);
static void uuid4_layout(void **state);
static void uuid_time(void **state);
static void uuid_forms(void **state);
static void uuid_refused(void **state);


/* RFC 9562, appendix A.6 */

static u_char  example[REFERRAL_UUID_LEN] = {
    0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0, 0x7c, 0xc3,
    0x98, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f
};


static void
uuid7_layout(void **state)
{
    u_char                  id[REFERRAL_UUID_LEN];
    referral_uuid_source_t  s;

    assert_int_equal(referral_uuid_source_init(&s), REFERRAL_OK);
    assert_int_equal(referral_uuid7(&s, 0x017f22e279b0, id), REFERRAL_OK);

    assert_memory_equal(id, example, 6);
    assert_int_equal(id[6] & 0xf0, 0x70);
    assert_int_equal(id[8] & 0xc0, 0x80);
    assert_int_equal(referral_uuid_time(id), 0x017f22e279b0);
}


static void
uuid7_goes_forward(void **state)
{
    u_char                  id[REFERRAL_UUID_LEN];
    uint64_t                now, last;
    unsigned                i;
    referral_uuid_source_t  s;

    assert_int_equal(referral_uuid_source_init(&s), REFERRAL_OK);

    now = 1752141308928;
    last = 0;

    for (i = 0; i < 1000; i++) {
        assert_int_equal(referral_uuid7(&s, now - i % 10 * 1000, id), 0);
        assert_true(referral_uuid_time(id) >= last);
        last = referral_uuid_time(id);
    }

    assert_int_equal(last, now);

    assert_int_equal(referral_uuid7(&s, now - 10000, id), 0);
    assert_int_equal(referral_uuid_time(id), now);
}


static void
uuid7_follows_a_step(void **state)
{
    u_char                  id[REFERRAL_UUID_LEN];
    referral_uuid_source_t  s;

    assert_int_equal(referral_uuid_source_init(&s), REFERRAL_OK);

    assert_int_equal(referral_uuid7(&s, 1752141308928, id), 0);
    assert_int_equal(referral_uuid7(&s, 1752141308928 - 10001, id), 0);
    assert_int_equal(referral_uuid_time(id), 1752141308928 - 10001);

    assert_int_equal(referral_uuid7(&s, 1752141308928, id), 0);
    assert_int_equal(referral_uuid_time(id), 1752141308928);
}


/* over several refills of the pool, no byte stands still and none repeats */

static void
uuid_randomness(void **state)
{
    u_char                  ids[400][REFERRAL_UUID_LEN], ones[10], zeros[10];
    unsigned                i, k;
    referral_uuid_source_t  s;

    assert_int_equal(referral_uuid_source_init(&s), REFERRAL_OK);

    memset(ones, 0xff, sizeof(ones));
    memset(zeros, 0, sizeof(zeros));

    for (i = 0; i < 400; i++) {

        assert_int_equal(referral_uuid7(&s, 1752141308928, ids[i]), 0);

        for (k = 0; k < i; k++) {
            assert_memory_not_equal(&ids[i][8], &ids[k][8], 8);
        }

        for (k = 0; k < 10; k++) {
            ones[k] &= ids[i][6 + k];
            zeros[k] |= ids[i][6 + k];
        }
    }

    for (k = 0; k < 10; k++) {
        assert_int_equal(ones[k], k == 0 ? 0x70 : k == 2 ? 0x80 : 0);
        assert_int_equal(zeros[k], k == 0 ? 0x7f : k == 2 ? 0xbf : 0xff);
    }
}


static void
uuid4_layout(void **state)
{
    u_char                  id[REFERRAL_UUID_LEN], ones[16], zeros[16];
    unsigned                i, k;
    referral_uuid_source_t  s;

    assert_int_equal(referral_uuid_source_init(&s), REFERRAL_OK);

    memset(ones, 0xff, sizeof(ones));
    memset(zeros, 0, sizeof(zeros));

    for (i = 0; i < 400; i++) {
        assert_int_equal(referral_uuid4(&s, id), REFERRAL_OK);

        for (k = 0; k < 16; k++) {
            ones[k] &= id[k];
            zeros[k] |= id[k];
        }
    }

    for (k = 0; k < 16; k++) {
        assert_int_equal(ones[k], k == 6 ? 0x40 : k == 8 ? 0x80 : 0);
        assert_int_equal(zeros[k], k == 6 ? 0x4f : k == 8 ? 0xbf : 0xff);
    }
}


static void
uuid_time(void **state)
{
    u_char  id[REFERRAL_UUID_LEN];

    assert_int_equal(referral_uuid_time(example), 1645557742000);

    memcpy(id, example, sizeof(id));
    id[6] = 0x4c;
    assert_int_equal(referral_uuid_time(id), 0);

    memcpy(id, example, sizeof(id));
    id[8] = 0xd8;
    assert_int_equal(referral_uuid_time(id), 0);
}


static void
uuid_forms(void **state)
{
    u_char  text[REFERRAL_UUID_TEXT_LEN + 1], id[REFERRAL_UUID_LEN];

    text[REFERRAL_UUID_TEXT_LEN] = '#';
    referral_uuid_text(example, text);
    assert_memory_equal(text, "017f22e2-79b0-7cc3-98c4-dc0c0c07398f#", 37);

    assert_int_equal(referral_uuid_parse(text, 36, id), REFERRAL_OK);
    assert_memory_equal(id, example, sizeof(id));

    text[REFERRAL_UUID_HEX_LEN] = '#';
    referral_uuid_hex(example, text);
    assert_memory_equal(text, "017f22e279b07cc398c4dc0c0c07398f#", 33);

    assert_int_equal(referral_uuid_parse(text, 32, id), REFERRAL_OK);
    assert_memory_equal(id, example, sizeof(id));

    assert_int_equal(referral_uuid_parse(
                         (u_char *) "017F22E2-79B0-7cc3-98C4-DC0C0C07398F",
                         36, id), REFERRAL_OK);
    assert_memory_equal(id, example, sizeof(id));
}


static void
uuid_refused(void **state)
{
    size_t   i;
    u_char   id[REFERRAL_UUID_LEN], before[REFERRAL_UUID_LEN];

    static const char  *bad[] = {
        "",
        "017f22e279b07cc398c4dc0c0c07398",
        "017f22e279b07cc398c4dc0c0c07398f0",
        "017f22e279b07cc398c4dc0c0c07398g",
        "g17f22e279b07cc398c4dc0c0c07398f",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398",
        "017f22e2-79b0-7cc3-98c4+dc0c0c07398f",
        "017f22e27-9b0-7cc3-98c4-dc0c0c07398f",
        "{17f22e2-79b0-7cc3-98c4-dc0c0c07398}",
        "017f22e2 79b0 7cc3 98c4 dc0c0c07398f"
    };

    memset(before, 0xaa, sizeof(before));

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        memcpy(id, before, sizeof(id));
        assert_int_equal(referral_uuid_parse((u_char *) bad[i],
                                             strlen(bad[i]), id),
                         REFERRAL_DECLINED);
        assert_memory_equal(id, before, sizeof(id));
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(uuid7_layout),
        cmocka_unit_test(uuid7_goes_forward),
        cmocka_unit_test(uuid7_follows_a_step),
        cmocka_unit_test(uuid_randomness),
        cmocka_unit_test(uuid4_layout),
        cmocka_unit_test(uuid_time),
        cmocka_unit_test(uuid_forms),
        cmocka_unit_test(uuid_refused)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
