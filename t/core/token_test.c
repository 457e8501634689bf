
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "referral_token.h"
#include "referral_uuid.h"


static void keyring_reads(void **state);
static void keyring_refuses(void **state);
static void keyring_limits(void **state);
static void token_mac(void **state);
static void token_mac_lengths(void **state);
static void token_vectors(void **state);
static void token_round_trip(void **state);
static void token_longest(void **state);
static void token_every_bit(void **state);
static void token_malformed(void **state);
static void token_not_canonical(void **state);
static void token_rotation(void **state);
static void token_age(void **state);
static void token_first_age(void **state);
static void ring_of(referral_keyring_t *ring, const char *text);
static size_t sign(const referral_keyring_t *ring, const char *text,
    char *signed_);


/*
 * The README's vectors.  The macs were made with
 *
 *   printf %s "$TEXT" | openssl dgst -sha256 -mac HMAC -binary \
 *     -macopt hexkey:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f \
 *     | head -c 16 | base64 | tr +/ -_ | tr -d =
 */

#define VECTOR_KEY  "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

#define VECTOR_ONE                                                           \
    "v1.k1.SUMMER25.0197f3c2a4007abc8def0123456789ab"                        \
    ".SUMMER25.0197f3c2a4007abc8def0123456789ab.."                           \
    "V3n2uifp6Au0ENxbxpcTBg"

#define VECTOR_TWO                                                           \
    "v1.k1.SUMMER25.0197f3c2a4007abc8def0123456789ab"                        \
    ".JUAN2025.0197f3c2b7887abc8def0123456789ac"                             \
    ".6f1a2b3c4d5e4f708192a3b4c5d6e7f8"                                      \
    ".e4ep018vCpj-RGFH9Sdgrw"

#define FIRST  1752141308928
#define LAST   1752141313928


static char  error[REFERRAL_ERROR_LEN];


static void
ring_of(referral_keyring_t *ring, const char *text)
{
    if (referral_keyring_parse(ring, (u_char *) text, strlen(text), error)
        != REFERRAL_OK)
    {
        fail_msg("%s", error);
    }
}


/* signs any text as referral_token_make() would, to get past the mac */

static size_t
sign(const referral_keyring_t *ring, const char *text, char *signed_)
{
    size_t       i, len;
    u_char       mac[18];
    unsigned     bits;

    static const char  digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    len = strlen(text);
    memcpy(signed_, text, len);

    memset(mac, 0, sizeof(mac));
    referral_token_mac(&ring->keys[0], (u_char *) text, len, mac);

    signed_[len++] = '.';

    for (i = 0; i < 22; i++) {
        bits = (unsigned) mac[i * 6 / 8] << 8 | mac[i * 6 / 8 + 1];
        signed_[len++] = digits[bits >> (10 - i * 6 % 8) & 63];
    }

    return len;
}


static void
keyring_reads(void **state)
{
    referral_keyring_t  ring;

    ring_of(&ring, "# made 2025-07-10\n"
                   "\n"
                   "2025b:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\r\n"
                   "   \n"
                   "old_-1:-_-_-_-_-_-_-_-_-_-_-w  \n"
                   "x:+/+/+/+/+/+/+/+/+/+/+w==");

    assert_int_equal(ring.n, 3);
    assert_int_equal(ring.keys[0].id_len, 5);
    assert_memory_equal(ring.keys[0].id, "2025b", 5);
    assert_memory_equal(ring.keys[1].id, "old_-1", 6);

    ring_of(&ring, "\n" VECTOR_KEY);
    assert_int_equal(ring.n, 1);
}


/* the message has the line and never a part of the secret */

static void
keyring_refuses(void **state)
{
    size_t              i;
    referral_keyring_t  ring;

    static const char  *bad[][2] = {
        { "", "no key" },
        { "\n# k:AAAA\n \n", "no key" },
        { "AAECAwQFBgcICQoLDA0ODw==", "line 1: no" },
        { VECTOR_KEY "\n:AAECAwQFBgcICQoLDA0ODw", "line 2: the key id" },
        { "\n\nk.1:AAECAwQFBgcICQoLDA0ODw", "line 3: the key id" },
        { " k1:AAECAwQFBgcICQoLDA0ODw", "line 1: the key id" },
        { "12345678901234567:AAECAwQFBgcICQoLDA0ODw", "line 1: the key id" },
        { "k:", "0 bytes, 16 to 64" },
        { "k:AAECAwQFBgcICQoLDA0O", "15 bytes, 16 to 64" },
        { "k:AAECAwQFBgcICQoLDA0OD", "not valid base64" },
        { "k:AAECAwQFBgcICQoLDA0ODx", "not valid base64" },
        { "k:AAECAwQFBgcICQoLDA0ODw=", "not valid base64" },
        { "k:AAECAwQFBgcICQoLDA0ODw===", "not valid base64" },
        { "k:AAECAwQFBgcICQoL DA0ODw==", "not valid base64" },
        { "k: AAECAwQFBgcICQoLDA0ODw==", "not valid base64" },
        { "k:AAECAwQF.gcICQoLDA0ODw==", "not valid base64" },
        { "k:====", "not valid base64" },
        { VECTOR_KEY "\n" VECTOR_KEY, "line 2: a key above" }
    };

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        error[0] = '\0';

        assert_int_equal(referral_keyring_parse(&ring, (u_char *) bad[i][0],
                                                strlen(bad[i][0]), error),
                         REFERRAL_ERROR);

        if (strstr(error, bad[i][1]) == NULL) {
            fail_msg("\"%s\", not \"%s\"", error, bad[i][1]);
        }

        assert_null(strstr(error, "AAECAw"));
        assert_int_equal(ring.n, 0);
    }

    assert_int_equal(referral_keyring_parse(&ring, NULL, 0, error),
                     REFERRAL_ERROR);
}


static void
keyring_limits(void **state)
{
    char                text[2048], *p;
    unsigned            i;
    referral_keyring_t  ring;

    /* 64 bytes are 86 digits */

    memset(text, 'A', sizeof(text));
    memcpy(text, "k:", 2);
    text[88] = '\0';
    ring_of(&ring, text);

    text[88] = 'A';
    text[89] = '\0';
    assert_int_equal(referral_keyring_parse(&ring, (u_char *) text, 89,
                                            error), REFERRAL_ERROR);
    assert_non_null(strstr(error, "65 bytes"));

    p = text;

    for (i = 0; i < 17; i++) {
        p[0] = (char) ('a' + i);
        memcpy(p + 1, ":AAECAwQFBgcICQoLDA0ODw\n", 24);
        p += 25;
    }

    assert_int_equal(referral_keyring_parse(&ring, (u_char *) text, 16 * 25,
                                            error), REFERRAL_OK);
    assert_int_equal(ring.n, 16);

    assert_int_equal(referral_keyring_parse(&ring, (u_char *) text, 17 * 25,
                                            error), REFERRAL_ERROR);
    assert_non_null(strstr(error, "line 17: more than 16"));
}


/* RFC 4231, test cases 1, 3 and 4, cut to 128 bits */

static void
token_mac(void **state)
{
    u_char              mac[17], data[50];
    referral_keyring_t  ring;

    mac[16] = '#';

    ring_of(&ring, "a:CwsLCwsLCwsLCwsLCwsLCwsLCws=\n"
                   "b:qqqqqqqqqqqqqqqqqqqqqqqqqqo=\n"
                   "c:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGQ==\n");

    referral_token_mac(&ring.keys[0], (u_char *) "Hi There", 8, mac);
    assert_memory_equal(mac, "\xb0\x34\x4c\x61\xd8\xdb\x38\x53"
                             "\x5c\xa8\xaf\xce\xaf\x0b\xf1\x2b#", 17);

    memset(data, 0xdd, sizeof(data));
    referral_token_mac(&ring.keys[1], data, sizeof(data), mac);
    assert_memory_equal(mac, "\x77\x3e\xa9\x1e\x36\x80\x0e\x46"
                             "\x85\x4d\xb8\xeb\xd0\x91\x81\xa7#", 17);

    memset(data, 0xcd, sizeof(data));
    referral_token_mac(&ring.keys[2], data, sizeof(data), mac);
    assert_memory_equal(mac, "\x82\x55\x8a\x38\x9a\x44\x3c\x0e"
                             "\xa4\xcc\x81\x98\x99\xf2\x08\x3a#", 17);
}


/* the last block is full, has no room for the length, is another one */

static void
token_mac_lengths(void **state)
{
    size_t              len;
    u_char              mac[16], whole[EVP_MAX_MD_SIZE];
    u_char              text[REFERRAL_TOKEN_MAX];
    referral_keyring_t  ring;

    ring_of(&ring, "c:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGQ==\n");

    for (len = 0; len < sizeof(text); len++) {
        text[len] = (u_char) (len * 7 + 1);
    }

    for (len = 0; len <= sizeof(text); len++) {
        assert_non_null(HMAC(EVP_sha256(),
                             "\1\2\3\4\5\6\7\10\11\12\13\14\15\16\17"
                             "\20\21\22\23\24\25\26\27\30\31", 25,
                             text, len, whole, NULL));

        referral_token_mac(&ring.keys[0], text, len, mac);
        assert_memory_equal(mac, whole, sizeof(mac));
    }
}


static void
token_vectors(void **state)
{
    u_char              text[REFERRAL_TOKEN_MAX], id[REFERRAL_UUID_LEN];
    size_t              len;
    referral_token_t    t;
    referral_keyring_t  ring;

    ring_of(&ring, VECTOR_KEY);

    assert_int_equal(referral_token_verify(&ring, (u_char *) VECTOR_ONE,
                                           sizeof(VECTOR_ONE) - 1, FIRST, 0,
                                           &t),
                     REFERRAL_TOKEN_VALID);

    assert_int_equal(t.has_visitor, 0);
    assert_int_equal(t.key, 0);
    assert_int_equal(referral_uuid_time(t.last.click), FIRST);
    assert_memory_equal(&t.first, &t.last, sizeof(t.first));

    len = referral_token_make(&ring, &t, text);
    assert_int_equal(len, sizeof(VECTOR_ONE) - 1);
    assert_memory_equal(text, VECTOR_ONE, len);

    assert_int_equal(referral_token_verify(&ring, (u_char *) VECTOR_TWO,
                                           sizeof(VECTOR_TWO) - 1, LAST, 0,
                                           &t),
                     REFERRAL_TOKEN_VALID);

    assert_int_equal(t.has_visitor, 1);
    referral_uuid_parse((u_char *) "6f1a2b3c4d5e4f708192a3b4c5d6e7f8", 32,
                        id);
    assert_memory_equal(t.visitor, id, 16);
    assert_int_equal(t.first.code_len, 8);
    assert_memory_equal(t.first.code, "SUMMER25", 8);
    assert_int_equal(t.last.code_len, 8);
    assert_memory_equal(t.last.code, "JUAN2025", 8);
    assert_int_equal(referral_uuid_time(t.first.click), FIRST);
    assert_int_equal(referral_uuid_time(t.last.click), LAST);

    len = referral_token_make(&ring, &t, text);
    assert_int_equal(len, sizeof(VECTOR_TWO) - 1);
    assert_memory_equal(text, VECTOR_TWO, len);
}


static void
token_round_trip(void **state)
{
    u_char                  text[REFERRAL_TOKEN_MAX];
    size_t                  len;
    unsigned                i;
    referral_token_t        t, back;
    referral_keyring_t      ring;
    referral_uuid_source_t  source;

    ring_of(&ring, VECTOR_KEY);
    assert_int_equal(referral_uuid_source_init(&source), REFERRAL_OK);

    for (i = 1; i <= REFERRAL_CODE_LEN; i++) {
        memset(&t, 0, sizeof(t));

        memset(t.first.code, 'A' + (int) i % 26, i);
        t.first.code_len = (uint8_t) i;
        referral_uuid7(&source, FIRST + i, t.first.click);

        memset(t.last.code, '0' + (int) i % 10, 65 - i);
        t.last.code_len = (uint8_t) (65 - i);
        referral_uuid7(&source, LAST + i, t.last.click);

        t.has_visitor = i & 1;

        if (t.has_visitor) {
            referral_uuid4(&source, t.visitor);
        }

        len = referral_token_make(&ring, &t, text);

        assert_int_equal(referral_token_verify(&ring, text, len, LAST, 10000,
                                               &back),
                         REFERRAL_TOKEN_VALID);
        assert_memory_equal(&back, &t, sizeof(t));
    }
}


static void
token_longest(void **state)
{
    u_char                  text[REFERRAL_TOKEN_MAX + 1];
    size_t                  len;
    referral_token_t        t, back;
    referral_keyring_t      ring;
    referral_uuid_source_t  source;

    ring_of(&ring, "1234567890123456:AAECAwQFBgcICQoLDA0ODw");
    assert_int_equal(referral_uuid_source_init(&source), REFERRAL_OK);

    memset(&t, 0, sizeof(t));
    memset(t.first.code, 'Z', REFERRAL_CODE_LEN);
    t.first.code_len = REFERRAL_CODE_LEN;
    referral_uuid7(&source, FIRST, t.first.click);
    t.last = t.first;
    t.has_visitor = 1;

    memset(text, '#', sizeof(text));
    len = referral_token_make(&ring, &t, text);

    assert_int_equal(len, 271);
    assert_int_equal(text[len], '#');
    assert_int_equal(referral_token_verify(&ring, text, len, FIRST, 0, &back),
                     REFERRAL_TOKEN_VALID);
}


/* no single bit can be changed, removed or added */

static void
token_every_bit(void **state)
{
    u_char              text[sizeof(VECTOR_TWO) + 1];
    size_t              i, len;
    unsigned            bit;
    referral_token_t    t;
    referral_keyring_t  ring;

    ring_of(&ring, VECTOR_KEY);

    len = sizeof(VECTOR_TWO) - 1;

    for (i = 0; i < len; i++) {

        for (bit = 0; bit < 8; bit++) {
            memcpy(text, VECTOR_TWO, len);
            text[i] ^= (u_char) (1 << bit);

            assert_int_not_equal(referral_token_verify(&ring, text, len,
                                                       LAST, 0, &t),
                                 REFERRAL_TOKEN_VALID);
        }

        assert_int_equal(referral_token_verify(&ring, (u_char *) VECTOR_TWO,
                                               i, LAST, 0, &t),
                         REFERRAL_TOKEN_MALFORMED);
    }

    memcpy(text, VECTOR_TWO, len);

    for (i = 0; i < 256; i++) {
        text[len] = (u_char) i;
        assert_int_equal(referral_token_verify(&ring, text, len + 1, LAST, 0,
                                               &t),
                         REFERRAL_TOKEN_MALFORMED);
    }
}


static void
token_malformed(void **state)
{
    size_t              i;
    u_char              text[REFERRAL_TOKEN_MAX * 2];
    referral_token_t    t;
    referral_keyring_t  ring;

    static const char  *bad[] = {
        "", ".", ".......", "........", "v1", "v1.k1",
        "GA1.2.123456789.1752141308",
        "v1.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.V3n2uifp6Au0ENxbxpcTBg",
        "v1.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab...V3n2uifp6Au0ENxbxpcTBg",
        "\"" VECTOR_ONE "\""
    };

    ring_of(&ring, VECTOR_KEY);

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(referral_token_verify(&ring, (u_char *) bad[i],
                                               strlen(bad[i]), LAST, 0, &t),
                         REFERRAL_TOKEN_MALFORMED);
    }

    assert_int_equal(referral_token_verify(&ring, NULL, 0, LAST, 0, &t),
                     REFERRAL_TOKEN_MALFORMED);

    memset(text, 'x', sizeof(text));
    memcpy(text, "v1.k1.", 6);

    for (i = 6; i <= sizeof(text); i++) {
        assert_int_equal(referral_token_verify(&ring, text, i, LAST, 0, &t),
                         REFERRAL_TOKEN_MALFORMED);
    }
}


/* even well signed, a text that is not what make() writes is refused */

static void
token_not_canonical(void **state)
{
    char                signed_[512];
    size_t              i, len;
    referral_token_t    t;
    referral_keyring_t  ring;

    static const char  *bad[] = {
        "v2.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.",
        "V1.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.",
        "v1..A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.",
        "v1.k1.a.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.",
        "v1.k1..0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.",
        "v1.k1.A.0197F3C2A4007ABC8DEF0123456789AB"
            ".A.0197f3c2a4007abc8def0123456789ab.",
        "v1.k1.A.0197f3c2-a400-7abc-8def-0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.",
        "v1.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4004abc8def0123456789ab.",
        "v1.k1.A.0197f3c2a4004abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.",
        "v1.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abccdef0123456789ab.",
        "v1.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A%20.0197f3c2a4007abc8def0123456789ab.",
        "v1.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab.0",
        "v1.k1.A.0197f3c2a4007abc8def0123456789ab"
            ".A.0197f3c2a4007abc8def0123456789ab"
            ".6F1A2B3C4D5E4F708192A3B4C5D6E7F8"
    };

    ring_of(&ring, VECTOR_KEY);

    len = sign(&ring, "v1.k1.A.0197f3c2a4007abc8def0123456789ab"
                      ".A.0197f3c2a4007abc8def0123456789ab.", signed_);
    assert_int_equal(referral_token_verify(&ring, (u_char *) signed_, len,
                                           FIRST, 0, &t),
                     REFERRAL_TOKEN_VALID);

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        len = sign(&ring, bad[i], signed_);

        if (referral_token_verify(&ring, (u_char *) signed_, len, FIRST, 0,
                                  &t)
            != REFERRAL_TOKEN_MALFORMED)
        {
            fail_msg("%s", bad[i]);
        }
    }

    /* the last digit of a mac carries two bits: 15 of 16 others are spare */

    len = sizeof(VECTOR_ONE) - 1;
    memcpy(signed_, VECTOR_ONE, len);
    signed_[len - 1] = 'h';
    assert_int_equal(referral_token_verify(&ring, (u_char *) signed_, len,
                                           FIRST, 0, &t),
                     REFERRAL_TOKEN_MALFORMED);

    /* the other alphabet */

    len = sizeof(VECTOR_TWO) - 1;
    memcpy(signed_, VECTOR_TWO, len);
    *strchr(strrchr(VECTOR_TWO, '.') - VECTOR_TWO + signed_, '-') = '+';
    assert_int_equal(referral_token_verify(&ring, (u_char *) signed_, len,
                                           LAST, 0, &t),
                     REFERRAL_TOKEN_MALFORMED);
}


static void
token_rotation(void **state)
{
    u_char              text[REFERRAL_TOKEN_MAX];
    size_t              len;
    referral_token_t    t;
    referral_keyring_t  ring;

    ring_of(&ring, "k2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n"
                   VECTOR_KEY);

    assert_int_equal(referral_token_verify(&ring, (u_char *) VECTOR_TWO,
                                           sizeof(VECTOR_TWO) - 1, LAST, 0,
                                           &t),
                     REFERRAL_TOKEN_VALID);
    assert_int_equal(t.key, 1);

    len = referral_token_make(&ring, &t, text);
    assert_memory_equal(text, "v1.k2.", 6);

    assert_int_equal(referral_token_verify(&ring, text, len, LAST, 0, &t),
                     REFERRAL_TOKEN_VALID);
    assert_int_equal(t.key, 0);

    ring_of(&ring, VECTOR_KEY);
    assert_int_equal(referral_token_verify(&ring, text, len, LAST, 0, &t),
                     REFERRAL_TOKEN_UNKNOWN_KEY);

    ring_of(&ring, "k2:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    assert_int_equal(referral_token_verify(&ring, text, len, LAST, 0, &t),
                     REFERRAL_TOKEN_FORGED);

    assert_string_equal(referral_token_result_word(REFERRAL_TOKEN_VALID),
                        "valid");
    assert_string_equal(
        referral_token_result_word(REFERRAL_TOKEN_UNKNOWN_KEY),
        "unknown-key");
    assert_string_equal(referral_token_result_word(REFERRAL_TOKEN_EXPIRED),
                        "expired");
}


static void
token_age(void **state)
{
    size_t              i;
    referral_token_t    t;
    referral_keyring_t  ring;

    static const struct {
        uint64_t                 now;
        uint64_t                 max_age;
        referral_token_result_e  result;
    } times[] = {
        { LAST, 1, REFERRAL_TOKEN_VALID },
        { LAST + 1000, 1000, REFERRAL_TOKEN_VALID },
        { LAST + 1001, 1000, REFERRAL_TOKEN_EXPIRED },
        { UINT64_MAX, 0, REFERRAL_TOKEN_VALID },
        { UINT64_MAX, UINT64_MAX, REFERRAL_TOKEN_VALID },
        { LAST - 300000, 1000, REFERRAL_TOKEN_VALID },
        { LAST - 300001, 1000, REFERRAL_TOKEN_EXPIRED },
        { LAST - 300001, 0, REFERRAL_TOKEN_EXPIRED },
        { 0, 0, REFERRAL_TOKEN_EXPIRED }
    };

    ring_of(&ring, VECTOR_KEY);

    for (i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
        assert_int_equal(referral_token_verify(&ring, (u_char *) VECTOR_TWO,
                                               sizeof(VECTOR_TWO) - 1,
                                               times[i].now,
                                               times[i].max_age, &t),
                         times[i].result);
    }
}


/* the touches are five seconds apart */

static void
token_first_age(void **state)
{
    referral_token_t    t;
    referral_keyring_t  ring;

    ring_of(&ring, VECTOR_KEY);

    assert_int_equal(referral_token_verify(&ring, (u_char *) VECTOR_TWO,
                                           sizeof(VECTOR_TWO) - 1,
                                           FIRST + 7000, 7000, &t),
                     REFERRAL_TOKEN_VALID);
    assert_memory_equal(t.first.code, "SUMMER25", 8);

    assert_int_equal(referral_token_verify(&ring, (u_char *) VECTOR_TWO,
                                           sizeof(VECTOR_TWO) - 1,
                                           FIRST + 7001, 7000, &t),
                     REFERRAL_TOKEN_VALID);
    assert_memory_equal(t.first.code, "JUAN2025", 8);
    assert_memory_equal(&t.first, &t.last, sizeof(t.first));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(keyring_reads),
        cmocka_unit_test(keyring_refuses),
        cmocka_unit_test(keyring_limits),
        cmocka_unit_test(token_mac),
        cmocka_unit_test(token_mac_lengths),
        cmocka_unit_test(token_vectors),
        cmocka_unit_test(token_round_trip),
        cmocka_unit_test(token_longest),
        cmocka_unit_test(token_every_bit),
        cmocka_unit_test(token_malformed),
        cmocka_unit_test(token_not_canonical),
        cmocka_unit_test(token_rotation),
        cmocka_unit_test(token_age),
        cmocka_unit_test(token_first_age)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
