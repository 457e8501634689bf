
/*
 * Copyright (C) The nginx referral module authors
 *
 * What every file of the core shares: byte strings, return codes and the
 * words that a click is described with.  The core is plain C: it knows no
 * nginx, no Redis and no Postgres, never writes to a log and never exits.
 */


#ifndef _REFERRAL_CORE_H_INCLUDED_
#define _REFERRAL_CORE_H_INCLUDED_


#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>


#define REFERRAL_OK          0
#define REFERRAL_ERROR      -1    /* failed, the error text says why */
#define REFERRAL_AGAIN      -2    /* nothing yet, try later */
#define REFERRAL_DONE       -4    /* nothing more, ever */
#define REFERRAL_DECLINED   -5    /* absent or not acceptable */
#define REFERRAL_HOLE       -6    /* records are missing or damaged here */

#define REFERRAL_UUID_LEN       16    /* bytes */
#define REFERRAL_UUID_TEXT_LEN  36    /* 8-4-4-4-12, lower case */
#define REFERRAL_UUID_HEX_LEN   32    /* without dashes */

#define REFERRAL_ERROR_LEN      512   /* size of error text buffers */


/* the layout of ngx_str_t: not NUL-terminated, data may be NULL when len 0 */

typedef struct {
    size_t               len;
    u_char              *data;
} referral_str_t;


#define referral_string(s)  { sizeof(s) - 1, (u_char *) s }


/*
 * The numbers below are written to journals: never renumber, only append.
 * referral_words.c holds the words, in the same order.
 */

typedef enum {
    REFERRAL_VERDICT_NONE = 0,
    REFERRAL_VERDICT_VALID,
    REFERRAL_VERDICT_UNKNOWN,
    REFERRAL_VERDICT_MALFORMED,
    REFERRAL_VERDICT_INACTIVE,
    REFERRAL_VERDICT_EARLY,
    REFERRAL_VERDICT_EXPIRED,
    REFERRAL_VERDICT_EXHAUSTED,
    REFERRAL_VERDICT_UNVERIFIED,
    REFERRAL_VERDICT_MAX
} referral_verdict_e;


typedef enum {
    REFERRAL_VIA_NONE = 0,
    REFERRAL_VIA_REDIRECT,
    REFERRAL_VIA_PARAMETER,
    REFERRAL_VIA_SCAN,
    REFERRAL_VIA_BEACON,
    REFERRAL_VIA_EVENT,
    REFERRAL_VIA_MAX
} referral_via_e;


typedef enum {
    REFERRAL_CACHE_NONE = 0,
    REFERRAL_CACHE_HIT,
    REFERRAL_CACHE_STALE,
    REFERRAL_CACHE_MISS,
    REFERRAL_CACHE_OFF,
    REFERRAL_CACHE_MAX
} referral_cache_e;


/* bits of a record's signals */

#define REFERRAL_SIGNAL_HEAD         0x0001
#define REFERRAL_SIGNAL_PREFETCH     0x0002
#define REFERRAL_SIGNAL_PREVIEW      0x0004
#define REFERRAL_SIGNAL_GPC          0x0008
#define REFERRAL_SIGNAL_DNT          0x0010
#define REFERRAL_SIGNAL_NO_CONSENT   0x0020
#define REFERRAL_SIGNAL_NEW_VISITOR  0x0040
#define REFERRAL_SIGNAL_DUPLICATE    0x0080

#define REFERRAL_SIGNAL_COUNT        8


/* 0 to 15, or -1 for what is no hexadecimal digit */

static inline int
referral_hex_digit(u_char ch)
{
    if (ch >= '0' && ch <= '9') {
        return ch - '0';
    }

    ch |= 0x20;

    return (ch >= 'a' && ch <= 'f') ? ch - 'a' + 10 : -1;
}


/* "" for NONE and for numbers this version does not know */

const referral_str_t *referral_verdict_word(unsigned verdict);
const referral_str_t *referral_via_word(unsigned via);
const referral_str_t *referral_cache_word(unsigned cache);

/* the word of bit number n, 0 <= n < REFERRAL_SIGNAL_COUNT */
const referral_str_t *referral_signal_word(unsigned n);


#endif /* _REFERRAL_CORE_H_INCLUDED_ */
