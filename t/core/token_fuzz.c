
/*
 * Copyright (C) The nginx referral module authors
 *
 * The input is a token, and the token of a touch made from it; what verifies
 * must be what make() writes, and no other bit pattern may verify.
 */


#include <stdlib.h>
#include <string.h>

#include "referral_token.h"
#include "referral_uuid.h"


#define NOW  1752141308928

#define check(condition)  if (!(condition)) abort()


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
static void fuzz_verify(const referral_keyring_t *ring, const uint8_t *data,
    size_t size);
static void fuzz_make(const referral_keyring_t *ring, const uint8_t *data,
    size_t size);
static void fuzz_keyring(const uint8_t *data, size_t size);


static const char  keys[] = "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
                            "k2:ICEiIyQlJicoKSorLC0uLw";


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char                       error[REFERRAL_ERROR_LEN];
    static referral_keyring_t  ring;

    if (ring.n == 0) {
        check(referral_keyring_parse(&ring, (u_char *) keys, sizeof(keys) - 1,
                                     error)
              == REFERRAL_OK);
    }

    fuzz_verify(&ring, data, size);
    fuzz_make(&ring, data, size);
    fuzz_keyring(data, size);

    return 0;
}


static void
fuzz_verify(const referral_keyring_t *ring, const uint8_t *data, size_t size)
{
    u_char                   text[REFERRAL_TOKEN_MAX];
    size_t                   len;
    referral_token_t         t;
    referral_keyring_t       one;
    referral_token_result_e  result;

    result = referral_token_verify(ring, data, size, NOW, 0, &t);

    check(referral_token_result_word(result)[0] != '\0');

    if (result != REFERRAL_TOKEN_VALID) {
        return;
    }

    one.n = 1;
    one.keys[0] = ring->keys[t.key];

    len = referral_token_make(&one, &t, text);

    check(len == size && memcmp(text, data, len) == 0);
}


static void
fuzz_make(const referral_keyring_t *ring, const uint8_t *data, size_t size)
{
    size_t             i, len, bit;
    u_char             text[REFERRAL_TOKEN_MAX];
    referral_token_t   t, back;

    if (size < 4 + 3 * REFERRAL_UUID_LEN) {
        return;
    }

    memset(&t, 0, sizeof(t));

    memcpy(t.first.click, data + 4, REFERRAL_UUID_LEN);
    memcpy(t.last.click, data + 20, REFERRAL_UUID_LEN);

    if (referral_uuid_time(t.first.click) == 0
        || referral_uuid_time(t.last.click) == 0)
    {
        t.first.click[0] = 1;
        t.first.click[6] = 0x70;
        t.first.click[8] = 0x80;
        t.last = t.first;
    }

    /* long before now */

    t.last.click[0] = 0;

    if (referral_uuid_time(t.last.click) == 0) {
        t.last.click[5] = 1;
    }

    if (data[0] & 1) {
        t.has_visitor = 1;
        memcpy(t.visitor, data + 36, REFERRAL_UUID_LEN);
    }

    t.first.code_len = (uint8_t) (data[1] % REFERRAL_CODE_LEN + 1);
    t.last.code_len = (uint8_t) (data[2] % REFERRAL_CODE_LEN + 1);

    for (i = 0; i < REFERRAL_CODE_LEN; i++) {
        t.first.code[i] = i < t.first.code_len
                          ? (u_char) ('A' + data[i % size] % 26) : 0;
        t.last.code[i] = i < t.last.code_len
                         ? (u_char) ('0' + data[i * 7 % size] % 10) : 0;
    }

    len = referral_token_make(ring, &t, text);

    check(len <= REFERRAL_TOKEN_MAX);
    check(referral_token_verify(ring, text, len, NOW, 0, &back)
          == REFERRAL_TOKEN_VALID);
    check(memcmp(&t, &back, sizeof(t)) == 0);

    bit = (size_t) (data[2] << 8 | data[3]) % (len * 8);
    text[bit / 8] ^= (u_char) (1 << bit % 8);

    check(referral_token_verify(ring, text, len, NOW, 0, &back)
          != REFERRAL_TOKEN_VALID);
}


static void
fuzz_keyring(const uint8_t *data, size_t size)
{
    char                error[REFERRAL_ERROR_LEN];
    size_t              i;
    referral_keyring_t  ring;

    if (referral_keyring_parse(&ring, data, size, error) != REFERRAL_OK) {
        check(ring.n == 0);
        check(memchr(error, '\0', sizeof(error)) != NULL);
        return;
    }

    check(ring.n >= 1 && ring.n <= REFERRAL_KEYS_MAX);

    for (i = 0; i < ring.n; i++) {
        check(ring.keys[i].id_len >= 1);
        check(ring.keys[i].id_len <= REFERRAL_KEY_ID_LEN);
    }
}
