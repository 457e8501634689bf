
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_record.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>


static char    error[REFERRAL_ERROR_LEN];
static u_char  buf[REFERRAL_RECORD_MAX];

#define texts(rec)                                                           \
    { &rec.type, &rec.code, &rec.campaign, &rec.visitor_hash, &rec.country,  \
      &rec.region, &rec.city, &rec.time_zone, &rec.latitude,                 \
      &rec.longitude, &rec.user_agent, &rec.referer_host, &rec.referer,      \
      &rec.host, &rec.path, &rec.language, &rec.destination }

#define NTEXTS  17

static const size_t  limits[NTEXTS] = {
    128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 512, 255, 1024, 255,
    1024, 128, 2048
};


static void
set(referral_str_t *s, const char *text)
{
    s->len = strlen(text);
    s->data = (u_char *) text;
}


static void
equal(const referral_str_t *a, const referral_str_t *b)
{
    assert_int_equal(a->len, b->len);

    if (a->len) {
        assert_memory_equal(a->data, b->data, a->len);
    }
}


static void
roundtrip(void **state)
{
    size_t              len;
    unsigned            i;
    referral_record_t   rec, got;
    referral_str_t     *a[NTEXTS] = texts(rec), *b[NTEXTS] = texts(got);

    static const char  *const words[NTEXTS] = {
        "click", "SUMMER25", "spring", "\1\2\0\3", "UY", "MO", "Montevideo",
        "America/Montevideo", "-34.9", "-56.2", "Mozilla/5.0 (X11)",
        "search.example", "https://search.example/?q=1", "www.example.com",
        "/pricing", "es-UY", "https://example.com/summer"
    };

    memset(&rec, 0, sizeof(rec));
    memset(rec.id, 1, REFERRAL_UUID_LEN);
    memset(rec.visitor, 2, REFERRAL_UUID_LEN);
    memset(rec.original, 3, REFERRAL_UUID_LEN);

    for (i = 0; i < NTEXTS; i++) {
        set(a[i], words[i]);
    }

    rec.verdict = REFERRAL_VERDICT_UNVERIFIED;
    rec.via = REFERRAL_VIA_PARAMETER;
    rec.cache = REFERRAL_CACHE_STALE;
    rec.signals = 0x8001;
    rec.code_id = -1;
    rec.program_id = INT64_MAX;
    rec.referrer_id = 1;
    rec.version = UINT64_MAX;
    rec.has_visitor = 1;
    rec.has_original = 1;
    rec.asn = 0xfffffffe;
    rec.ip.len = 16;
    rec.ip.prefix = 48;
    memset(rec.ip.bytes, 0x20, 6);
    rec.nargs = 3;
    set(&rec.args[0].name, "utm_source");
    set(&rec.args[0].value, "newsletter");
    set(&rec.args[1].name, "gclid");
    set(&rec.args[2].name, "x");
    set(&rec.args[2].value, "y");

    len = referral_record_encode(&rec, buf);
    assert_true(len <= referral_record_size(&rec));

    assert_int_equal(referral_record_decode(&got, buf, len, error),
                     REFERRAL_OK);

    for (i = 0; i < NTEXTS; i++) {
        equal(a[i], b[i]);
    }

    assert_memory_equal(got.id, rec.id, REFERRAL_UUID_LEN);
    assert_memory_equal(got.visitor, rec.visitor, REFERRAL_UUID_LEN);
    assert_memory_equal(got.original, rec.original, REFERRAL_UUID_LEN);
    assert_int_equal(got.has_visitor, 1);
    assert_int_equal(got.has_original, 1);
    assert_int_equal(got.verdict, rec.verdict);
    assert_int_equal(got.via, rec.via);
    assert_int_equal(got.cache, rec.cache);
    assert_int_equal(got.signals, rec.signals);
    assert_int_equal(got.code_id, rec.code_id);
    assert_int_equal(got.program_id, rec.program_id);
    assert_int_equal(got.referrer_id, rec.referrer_id);
    assert_true(got.version == rec.version);
    assert_int_equal(got.asn, rec.asn);
    assert_memory_equal(&got.ip, &rec.ip, sizeof(rec.ip));
    assert_int_equal(got.nargs, 3);

    for (i = 0; i < 3; i++) {
        equal(&got.args[i].name, &rec.args[i].name);
        equal(&got.args[i].value, &rec.args[i].value);
    }
}


static void
empty(void **state)
{
    size_t             len;
    referral_record_t  rec, got;

    memset(&rec, 0, sizeof(rec));
    memset(rec.id, 9, REFERRAL_UUID_LEN);

    len = referral_record_encode(&rec, buf);
    assert_int_equal(len, 1 + 3 + 16);
    assert_int_equal(referral_record_decode(&got, buf, len, error),
                     REFERRAL_OK);
    assert_memory_equal(&rec, &got, sizeof(rec));
}


/* everything too long: cut at a character, and never above the maximum */

static void
long_texts(void **state)
{
    size_t              len, i;
    u_char             *text;
    referral_record_t   rec, got;
    referral_str_t     *a[NTEXTS] = texts(rec), *b[NTEXTS] = texts(got);

    /* a byte, then characters of two: limits that are even fall inside one */

    text = malloc(10001);
    assert_non_null(text);
    text[0] = 'a';

    for (i = 1; i < 10001; i += 2) {
        text[i] = 0xc3;
        text[i + 1] = 0xa9;
    }

    memset(&rec, 0, sizeof(rec));
    memset(rec.visitor, 1, REFERRAL_UUID_LEN);
    rec.has_visitor = 1;
    rec.has_original = 1;
    rec.code_id = rec.program_id = rec.referrer_id = -1;
    rec.version = UINT64_MAX;
    rec.signals = 0xffff;
    rec.asn = UINT32_MAX;
    rec.verdict = rec.via = rec.cache = 255;
    rec.ip.len = 16;
    rec.ip.prefix = 128;

    for (i = 0; i < NTEXTS; i++) {
        a[i]->data = text;
        a[i]->len = 10001;
    }

    rec.nargs = REFERRAL_RECORD_ARGS;

    for (i = 0; i < REFERRAL_RECORD_ARGS; i++) {
        rec.args[i].name.data = text;
        rec.args[i].name.len = 10001;
        rec.args[i].value.data = text;
        rec.args[i].value.len = 10001;
    }

    assert_true(referral_record_size(&rec) <= REFERRAL_RECORD_MAX);
    len = referral_record_encode(&rec, buf);
    assert_true(len <= referral_record_size(&rec));

    assert_int_equal(referral_record_decode(&got, buf, len, error),
                     REFERRAL_OK);

    for (i = 0; i < NTEXTS; i++) {
        /* the hash is bytes, not text */
        assert_int_equal(b[i]->len, i == 3 ? limits[i]
                                           : (limits[i] - 1) / 2 * 2 + 1);
        assert_memory_equal(b[i]->data, text, b[i]->len);
    }

    assert_int_equal(got.nargs, REFERRAL_RECORD_ARGS);
    assert_int_equal(got.args[15].name.len, 127);
    assert_int_equal(got.args[15].value.len, 255);

    free(text);
}


/* every prefix of a record is refused or is a record of whole fields */

static void
cut(void **state)
{
    size_t             len, n, good;
    u_char            *copy;
    referral_record_t  rec, got;

    memset(&rec, 0, sizeof(rec));
    set(&rec.code, "SUMMER25");
    set(&rec.path, "/pricing");
    rec.asn = 7;
    rec.ip.len = 4;
    rec.ip.prefix = 24;
    rec.nargs = 1;
    set(&rec.args[0].name, "utm_source");

    len = referral_record_encode(&rec, buf);
    good = 0;

    for (n = 0; n < len; n++) {
        copy = malloc(n ? n : 1);
        assert_non_null(copy);
        memcpy(copy, buf, n);

        if (referral_record_decode(&got, copy, n, error) == REFERRAL_OK) {
            good++;

        } else {
            assert_int_not_equal(error[0], '\0');
        }

        free(copy);
    }

    /* after the id and after each field but the last */

    assert_int_equal(good, 5);
}


static void
wrong(void **state)
{
    unsigned           i;
    referral_record_t  got;

    static const struct {
        const char  *bytes;
        size_t       len;
    } bad[] = {
        { "\2", 1 },                                 /* version */
        { "\0", 1 },
        { "\1", 1 },                                 /* no id */
        { "\1\1\17\0aaaaaaaaaaaaaaa", 19 },          /* id of 15 */
        { "\1\1\21\0aaaaaaaaaaaaaaaaa", 21 },        /* id of 17 */
        { "\1\1\20\0aaaaaaaaaaaaaaaa\3\2\0aa", 25 }, /* verdict of 2 */
        { "\1\1\20\0aaaaaaaaaaaaaaaa\10\4\0aaaa", 27 },  /* code_id of 4 */
        { "\1\1\20\0aaaaaaaaaaaaaaaa\17\0\0", 23 },  /* ip of 0 */
        { "\1\1\20\0aaaaaaaaaaaaaaaa\17\5\0\41aaaa", 28 }, /* prefix 33 */
        { "\1\1\20\0aaaaaaaaaaaaaaaa\37\0\0", 23 },  /* arg of 0 */
        { "\1\1\20\0aaaaaaaaaaaaaaaa\37\2\0\2a", 25 },   /* arg cut */
        { "\1\1\20\0aaaaaaaaaaaaaaaa\37\1\0\0", 24 }     /* no name */
    };

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        error[0] = '\0';

        if (referral_record_decode(&got, (u_char *) bad[i].bytes, bad[i].len,
                                   error) != REFERRAL_ERROR)
        {
            fail_msg("record %u was accepted", i);
        }

        assert_int_not_equal(error[0], '\0');
    }

    assert_int_equal(referral_record_decode(&got, buf, 0, error),
                     REFERRAL_ERROR);
}


/* fields and arguments of later versions */

static void
unknown(void **state)
{
    u_char            *p;
    unsigned           i;
    referral_record_t  rec, got;

    memset(&rec, 0, sizeof(rec));
    rec.nargs = REFERRAL_RECORD_ARGS;

    for (i = 0; i < REFERRAL_RECORD_ARGS; i++) {
        set(&rec.args[i].name, "a");
    }

    p = buf + referral_record_encode(&rec, buf);

    memcpy(p, "\xfe\3\0abc\0\1\0x\37\2\0\1b\4\1\0\2", 19);
    p += 19;

    assert_int_equal(referral_record_decode(&got, buf, p - buf, error),
                     REFERRAL_OK);
    assert_int_equal(got.nargs, REFERRAL_RECORD_ARGS);
    assert_int_equal(got.via, REFERRAL_VIA_PARAMETER);
}


/* encoded apart, it is the same record in another order */

static void
place(void **state)
{
    size_t              len, apart;
    u_char              text[REFERRAL_RECORD_PLACE];
    referral_record_t   rec, other, got;

    memset(&rec, 0, sizeof(rec));
    memset(rec.id, 1, REFERRAL_UUID_LEN);
    other = rec;

    set(&rec.code, "SUMMER25");
    set(&rec.country, "UY");
    set(&rec.city, "Montevideo");
    set(&rec.time_zone, "America/Montevideo");
    set(&rec.longitude, "-56.2");
    set(&rec.host, "www.example.com");
    rec.asn = 6057;

    len = referral_record_encode(&rec, buf);

    set(&other.code, "SUMMER25");
    set(&other.host, "www.example.com");

    other.place.len = referral_record_place(&rec, text);
    other.place.data = text;

    assert_in_range(other.place.len, 1, REFERRAL_RECORD_PLACE);
    assert_true(rec.city.data > text
                && rec.city.data < text + other.place.len);
    assert_memory_equal(rec.city.data, "Montevideo", 10);
    assert_memory_equal(rec.country.data, "UY", 2);

    apart = referral_record_encode(&other, buf);

    assert_int_equal(apart, len);
    assert_true(apart <= referral_record_size(&other));
    assert_int_equal(referral_record_decode(&got, buf, apart, error),
                     REFERRAL_OK);

    equal(&got.country, &rec.country);
    equal(&got.region, &rec.region);
    equal(&got.city, &rec.city);
    equal(&got.time_zone, &rec.time_zone);
    equal(&got.latitude, &rec.latitude);
    equal(&got.longitude, &rec.longitude);
    equal(&got.host, &rec.host);
    assert_int_equal(got.asn, rec.asn);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(roundtrip),
        cmocka_unit_test(empty),
        cmocka_unit_test(place),
        cmocka_unit_test(long_texts),
        cmocka_unit_test(cut),
        cmocka_unit_test(wrong),
        cmocka_unit_test(unknown)
    };

    return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
