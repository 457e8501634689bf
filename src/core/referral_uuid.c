
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_uuid.h"

#include <endian.h>
#include <string.h>
#include <openssl/rand.h>


/* a clock that goes back by more than this, in ms, is followed */

#define REFERRAL_UUID_STEP  10000

#define REFERRAL_UUID_MS    0xffffffffffffULL


static const u_char *referral_uuid_random(referral_uuid_source_t *s,
    size_t n);


static const u_char  referral_uuid_digits[] = "0123456789abcdef";


int
referral_uuid_source_init(referral_uuid_source_t *s)
{
    s->last = 0;
    s->used = sizeof(s->pool);

    return referral_uuid_random(s, 0) == NULL ? REFERRAL_ERROR : REFERRAL_OK;
}


/*
 * The generator is asked once for some sixty ids: a call of its own for each
 * would cost more than the rest of the id.
 */

static const u_char *
referral_uuid_random(referral_uuid_source_t *s, size_t n)
{
    const u_char  *p;

    if (n > sizeof(s->pool) - s->used || s->used == sizeof(s->pool)) {

        if (RAND_bytes(s->pool, (int) sizeof(s->pool)) != 1) {
            s->used = sizeof(s->pool);
            return NULL;
        }

        s->used = 0;
    }

    p = &s->pool[s->used];
    s->used += n;

    return p;
}


int
referral_uuid7(referral_uuid_source_t *s, uint64_t now, u_char *id)
{
    uint64_t       ms;
    const u_char  *random;

    random = referral_uuid_random(s, 10);

    if (random == NULL) {
        return REFERRAL_ERROR;
    }

    ms = now & REFERRAL_UUID_MS;

    if (ms < s->last && s->last - ms <= REFERRAL_UUID_STEP) {
        ms = s->last;
    }

    s->last = ms;

    id[0] = (u_char) (ms >> 40);
    id[1] = (u_char) (ms >> 32);
    id[2] = (u_char) (ms >> 24);
    id[3] = (u_char) (ms >> 16);
    id[4] = (u_char) (ms >> 8);
    id[5] = (u_char) ms;

    memcpy(&id[6], random, 10);

    id[6] = (u_char) (0x70 | (id[6] & 0x0f));
    id[8] = (u_char) (0x80 | (id[8] & 0x3f));

    return REFERRAL_OK;
}


int
referral_uuid4(referral_uuid_source_t *s, u_char *id)
{
    const u_char  *random;

    random = referral_uuid_random(s, REFERRAL_UUID_LEN);

    if (random == NULL) {
        return REFERRAL_ERROR;
    }

    memcpy(id, random, REFERRAL_UUID_LEN);

    id[6] = (u_char) (0x40 | (id[6] & 0x0f));
    id[8] = (u_char) (0x80 | (id[8] & 0x3f));

    return REFERRAL_OK;
}


uint64_t
referral_uuid_time(const u_char *id)
{
    size_t    i;
    uint64_t  ms;

    if ((id[6] & 0xf0) != 0x70 || (id[8] & 0xc0) != 0x80) {
        return 0;
    }

    ms = 0;

    for (i = 0; i < 6; i++) {
        ms = ms << 8 | id[i];
    }

    return ms;
}


void
referral_uuid_text(const u_char *id, u_char *text)
{
    size_t  i;

    for (i = 0; i < REFERRAL_UUID_LEN; i++) {

        if (i == 4 || i == 6 || i == 8 || i == 10) {
            *text++ = '-';
        }

        *text++ = referral_uuid_digits[id[i] >> 4];
        *text++ = referral_uuid_digits[id[i] & 0x0f];
    }
}


/*
 * Four bytes, that is eight digits, in one word: a third of the time that
 * looking each digit up takes, and a token has four ids.
 */

void
referral_uuid_hex(const u_char *id, u_char *text)
{
    size_t    i;
    uint64_t  n, letters;

    for (i = 0; i < REFERRAL_UUID_LEN; i += 4) {

        n = (uint64_t) id[i] | (uint64_t) id[i + 1] << 16
            | (uint64_t) id[i + 2] << 32 | (uint64_t) id[i + 3] << 48;

        /* a digit in each byte, the first in the lowest */

        n = (n >> 4 & 0x000f000f000f000full)
            | (n & 0x000f000f000f000full) << 8;

        letters = (n + 0x0606060606060606ull) >> 4 & 0x0101010101010101ull;

        n += 0x3030303030303030ull + letters * ('a' - '0' - 10);
        n = htole64(n);

        memcpy(text, &n, sizeof(uint64_t));
        text += sizeof(uint64_t);
    }
}


int
referral_uuid_parse(const u_char *text, size_t len, u_char *id)
{
    int     high, low;
    size_t  i;
    u_char  buf[REFERRAL_UUID_LEN];

    if (len != REFERRAL_UUID_TEXT_LEN && len != REFERRAL_UUID_HEX_LEN) {
        return REFERRAL_DECLINED;
    }

    for (i = 0; i < REFERRAL_UUID_LEN; i++) {

        if (len == REFERRAL_UUID_TEXT_LEN
            && (i == 4 || i == 6 || i == 8 || i == 10)
            && *text++ != '-')
        {
            return REFERRAL_DECLINED;
        }

        high = referral_hex_digit(*text++);
        low = referral_hex_digit(*text++);

        if (high < 0 || low < 0) {
            return REFERRAL_DECLINED;
        }

        buf[i] = (u_char) (high << 4 | low);
    }

    memcpy(id, buf, REFERRAL_UUID_LEN);

    return REFERRAL_OK;
}
