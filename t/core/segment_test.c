
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_record.h"
#include "referral_segment.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>


#define SALT  0x12345678


static char  error[REFERRAL_ERROR_LEN];


static void
fill_header(referral_segment_header_t *h)
{
    memset(h, 0, sizeof(referral_segment_header_t));

    memset(h->stream, 0xab, REFERRAL_UUID_LEN);
    h->salt = SALT;
    h->size = 4 * 1024 * 1024;
    h->limit = 1ULL << 40;
    h->created = 1700000000123;
    h->pid = 4242;
    (void) strcpy(h->edge, "edge-a.example.com");
}


static void
header(void **state)
{
    u_char                     buf[REFERRAL_SEGMENT_BEGIN];
    unsigned                   i;
    referral_segment_header_t  h, got;

    fill_header(&h);
    referral_segment_header_encode(&h, buf);
    assert_int_equal(referral_segment_header_decode(&got, buf, error),
                     REFERRAL_OK);
    assert_memory_equal(&h, &got, sizeof(h));

    for (i = 0; i < sizeof(buf); i++) {
        buf[i] ^= 1;
        assert_int_equal(referral_segment_header_decode(&got, buf, error),
                         REFERRAL_ERROR);
        buf[i] ^= 1;
    }

    memset(buf, 0, sizeof(buf));
    assert_int_equal(referral_segment_header_decode(&got, buf, error),
                     REFERRAL_ERROR);

    /* a good checksum does not make nonsense good */

    h.salt = 0;
    referral_segment_header_encode(&h, buf);
    assert_int_equal(referral_segment_header_decode(&got, buf, error),
                     REFERRAL_ERROR);

    h.salt = 1;
    h.size = REFERRAL_SEGMENT_MAX + 1ULL;
    referral_segment_header_encode(&h, buf);
    assert_int_equal(referral_segment_header_decode(&got, buf, error),
                     REFERRAL_ERROR);

    h.size = 0;
    referral_segment_header_encode(&h, buf);
    assert_int_equal(referral_segment_header_decode(&got, buf, error),
                     REFERRAL_ERROR);

    /* a host name that fills its field is cut, and ends */

    fill_header(&h);
    memset(h.edge, 'x', sizeof(h.edge));
    referral_segment_header_encode(&h, buf);
    assert_int_equal(referral_segment_header_decode(&got, buf, error),
                     REFERRAL_OK);
    assert_int_equal(strlen(got.edge), sizeof(h.edge) - 1);
}


static void
begin(void **state)
{
    u_char    buf[16] __attribute__((aligned(8)));
    unsigned  i;
    uint64_t  first;

    memset(buf, 0, sizeof(buf));
    assert_int_equal(referral_segment_begin_decode(buf, SALT, &first),
                     REFERRAL_DECLINED);

    /* killed between the stores: the number is there, the word is not */

    buf[8] = 7;
    assert_int_equal(referral_segment_begin_decode(buf, SALT, &first),
                     REFERRAL_DECLINED);

    referral_segment_begin_publish(buf, SALT, 0x0102030405060708);
    assert_int_equal(referral_segment_begin_decode(buf, SALT, &first),
                     REFERRAL_OK);
    assert_int_equal(first, 0x0102030405060708);

    assert_int_equal(referral_segment_begin_decode(buf, SALT + 1, &first),
                     REFERRAL_ERROR);

    for (i = 0; i < 16; i++) {
        buf[i] ^= 0x10;
        assert_int_equal(referral_segment_begin_decode(buf, SALT, &first),
                         REFERRAL_ERROR);
        buf[i] ^= 0x10;
    }

    referral_segment_begin_publish(buf, SALT, 0);
    assert_int_equal(referral_segment_begin_decode(buf, SALT, &first),
                     REFERRAL_ERROR);
}


static void
frame(void **state)
{
    size_t    len;
    u_char    buf[256] __attribute__((aligned(8)));
    unsigned  i;
    uint64_t  number;

    memset(buf, 0, sizeof(buf));
    assert_int_equal(referral_frame_check(buf, 256, SALT, &number, &len),
                     REFERRAL_AGAIN);

    memset(buf + REFERRAL_FRAME_HEAD, 'p', 101);
    assert_int_equal(referral_frame_check(buf, 256, SALT, &number, &len),
                     REFERRAL_AGAIN);

    referral_frame_publish(buf, SALT, 99, 101);
    assert_int_equal(referral_frame_check(buf, 256, SALT, &number, &len),
                     REFERRAL_OK);
    assert_int_equal(number, 99);
    assert_int_equal(len, 101);
    assert_int_equal(referral_frame_size(101), 120);

    /* exactly as many bytes as it has, and fewer */

    assert_int_equal(referral_frame_check(buf, 117, SALT, &number, &len),
                     REFERRAL_OK);

    for (i = 0; i < 117; i++) {
        assert_int_equal(referral_frame_check(buf, i, SALT, &number, &len),
                         REFERRAL_AGAIN);
    }

    assert_int_equal(referral_frame_check(buf, 256, SALT ^ 1, &number, &len),
                     REFERRAL_ERROR);

    for (i = 0; i < 117; i++) {
        buf[i] ^= 0x80;
        assert_int_not_equal(referral_frame_check(buf, 256, SALT, &number,
                                                  &len), REFERRAL_OK);
        buf[i] ^= 0x80;
    }

    /* lengths out of range */

    referral_frame_publish(buf, SALT, 1, 0);
    assert_int_equal(referral_frame_check(buf, 256, SALT, &number, &len),
                     REFERRAL_ERROR);

    memset(buf, 0, 16);
    buf[4] = (REFERRAL_RECORD_MAX + 1) & 0xff;
    buf[5] = (REFERRAL_RECORD_MAX + 1) >> 8;
    assert_int_equal(referral_frame_check(buf, 256, SALT, &number, &len),
                     REFERRAL_ERROR);

    memset(buf + 4, 0xff, 4);
    assert_int_equal(referral_frame_check(buf, 256, SALT, &number, &len),
                     REFERRAL_ERROR);
}


/* the bytes themselves: a journal is read by other versions and machines */

static void
layout(void **state)
{
    u_char                     buf[REFERRAL_SEGMENT_BEGIN];
    u_char                     f[32] __attribute__((aligned(8)));
    referral_segment_header_t  h;

    fill_header(&h);
    referral_segment_header_encode(&h, buf);

    assert_memory_equal(buf, "RFRLSEG\n\1\0\0\0", 12);
    assert_memory_equal(buf + 16, h.stream, 16);
    assert_memory_equal(buf + 32, "\x78\x56\x34\x12\x92\x10\0\0", 8);
    assert_memory_equal(buf + 40, "\0\0\x40\0\0\0\0\0\0\0\0\0\0\1\0\0", 16);
    assert_memory_equal(buf + 64, "edge-a.example.com", 19);

    memset(f, 0, sizeof(f));
    memcpy(f + REFERRAL_FRAME_HEAD, "hello", 5);
    referral_frame_publish(f, SALT, 0x0102030405060708, 5);

    assert_memory_equal(f + 4, "\5\0\0\0\x8\7\6\5\4\3\2\1hello\0\0\0", 20);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(header),
        cmocka_unit_test(begin),
        cmocka_unit_test(frame),
        cmocka_unit_test(layout)
    };

    return cmocka_run_group_tests_name("segment", tests, NULL, NULL);
}
