
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_utf8.h"

#include <string.h>


#define REFERRAL_UTF8_ONES   UINT64_C(0x0101010101010101)
#define REFERRAL_UTF8_HIGHS  UINT64_C(0x8080808080808080)


static size_t referral_utf8_sequence(const u_char *p, size_t len, int *good);


/*
 * Length of the well-formed sequence at p (Unicode table 3-7), or, when
 * *good becomes 0, of the maximal part that cannot be continued.
 */

static size_t
referral_utf8_sequence(const u_char *p, size_t len, int *good)
{
    u_char  low, high;
    size_t  i, n;

    *good = 1;

    if (p[0] < 0x80) {
        *good = p[0] != '\0';
        return 1;
    }

    low = 0x80;
    high = 0xbf;

    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        n = 2;

    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        n = 3;

        if (p[0] == 0xe0) {
            low = 0xa0;

        } else if (p[0] == 0xed) {
            high = 0x9f;
        }

    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        n = 4;

        if (p[0] == 0xf0) {
            low = 0x90;

        } else if (p[0] == 0xf4) {
            high = 0x8f;
        }

    } else {
        *good = 0;
        return 1;
    }

    for (i = 1; i < n; i++) {

        if (i == len || p[i] < low || p[i] > high) {
            *good = 0;
            return i;
        }

        low = 0x80;
        high = 0xbf;
    }

    return n;
}


/*
 * Most texts are ASCII, and eight bytes are looked at in one step: none has
 * its high bit set, and none is 0, or the borrow would set one.
 */

int
referral_utf8_valid(const u_char *src, size_t len)
{
    int       good;
    size_t    i;
    uint64_t  word;

    for (i = 0; i < len; /* void */ ) {

        if (len - i >= sizeof(word)) {
            memcpy(&word, &src[i], sizeof(word));

            if (((word | (word - REFERRAL_UTF8_ONES)) & REFERRAL_UTF8_HIGHS)
                == 0)
            {
                i += sizeof(word);
                continue;
            }
        }

        if (src[i] < 0x80 && src[i] != '\0') {
            i++;
            continue;
        }

        i += referral_utf8_sequence(&src[i], len - i, &good);

        if (!good) {
            return 0;
        }
    }

    return 1;
}


size_t
referral_utf8_clean(u_char *dst, const u_char *src, size_t len)
{
    int      good;
    size_t   i, n;
    u_char  *p;

    p = dst;

    for (i = 0; i < len; i += n) {
        n = referral_utf8_sequence(&src[i], len - i, &good);

        if (good) {
            memcpy(p, &src[i], n);
            p += n;
            continue;
        }

        *p++ = 0xef;
        *p++ = 0xbf;
        *p++ = 0xbd;
    }

    return (size_t) (p - dst);
}


size_t
referral_utf8_cut(const u_char *src, size_t len, size_t max)
{
    int     good;
    size_t  i, n;

    if (len <= max) {
        return len;
    }

    /* no sequence is longer than 4 bytes */

    for (i = 1; i < 4 && i <= max; i++) {

        n = referral_utf8_sequence(&src[max - i], len - (max - i), &good);

        if (good && n > i) {
            return max - i;
        }
    }

    return max;
}
