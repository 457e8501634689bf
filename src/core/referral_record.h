
/*
 * Copyright (C) The nginx referral module authors
 *
 * One interaction as it stands in the journal: a version byte, then fields
 *
 *   tag u8 | length u16 | bytes        (all numbers little-endian)
 *
 * A reader skips tags it does not know, so fields may be added at any time;
 * tags are never reused.  The journal's frame around it has the checksum.
 */


#ifndef _REFERRAL_RECORD_H_INCLUDED_
#define _REFERRAL_RECORD_H_INCLUDED_


#include "referral_core.h"
#include "referral_ip.h"


#define REFERRAL_RECORD_VERSION   1

#define REFERRAL_RECORD_ARGS      16       /* recorded arguments, most */

/* text is cut to these lengths, at a character, when it is recorded */

#define REFERRAL_RECORD_UA_LEN        512
#define REFERRAL_RECORD_REFERER_LEN   1024
#define REFERRAL_RECORD_HOST_LEN      255
#define REFERRAL_RECORD_PATH_LEN      1024
#define REFERRAL_RECORD_ARG_LEN       256
#define REFERRAL_RECORD_TEXT_LEN      128  /* city, language, ... */
#define REFERRAL_RECORD_URL_LEN       2048

/* of a place that is encoded once: texts and degrees, and all of it */

#define REFERRAL_RECORD_PLACE_TEXT    64
#define REFERRAL_RECORD_PLACE_DEGREE  16
#define REFERRAL_RECORD_PLACE                                                \
    (3 + 2 + 3 * (3 + REFERRAL_RECORD_PLACE_TEXT)                            \
     + 2 * (3 + REFERRAL_RECORD_PLACE_DEGREE) + 3 + 4)

/* no encoded record is longer */

#define REFERRAL_RECORD_MAX       16384


typedef struct {
    referral_str_t       name;
    referral_str_t       value;            /* decoded */
} referral_record_arg_t;


typedef struct {
    u_char                  id[REFERRAL_UUID_LEN];   /* version 7: the time */

    referral_str_t          type;          /* "click", ... */
    uint8_t                 verdict;       /* referral_verdict_e */
    uint8_t                 via;           /* referral_via_e */
    uint8_t                 cache;         /* referral_cache_e */
    uint16_t                signals;       /* REFERRAL_SIGNAL_* */

    referral_str_t          code;          /* folded; malformed: as sent */
    int64_t                 code_id;       /* 0: not known, as are all ids */
    int64_t                 program_id;
    int64_t                 referrer_id;
    uint64_t                version;       /* of the code's rule */
    referral_str_t          campaign;

    unsigned                has_visitor:1;
    u_char                  visitor[REFERRAL_UUID_LEN];
    referral_str_t          visitor_hash;  /* bytes */

    referral_ip_t           ip;            /* masked already; len 0: none */
    referral_str_t          country;       /* ISO 3166-1 alpha-2 */
    referral_str_t          region;        /* ISO 3166-2 part or a name */
    referral_str_t          city;
    referral_str_t          time_zone;
    uint32_t                asn;           /* 0: not known */
    referral_str_t          latitude;      /* decimal text, only on request */
    referral_str_t          longitude;
    referral_str_t          place;         /* see referral_record_place() */

    referral_str_t          user_agent;
    referral_str_t          referer_host;
    referral_str_t          referer;       /* whole, only on request */
    referral_str_t          host;
    referral_str_t          path;
    referral_str_t          language;
    referral_str_t          destination;
    u_char                  original[REFERRAL_UUID_LEN];  /* of a duplicate */
    unsigned                has_original:1;

    unsigned                nargs;
    referral_record_arg_t   args[REFERRAL_RECORD_ARGS];
} referral_record_t;


/* an upper bound of the encoded length, <= REFERRAL_RECORD_MAX */
size_t referral_record_size(const referral_record_t *rec);

/* writes the payload, cutting long texts; returns its length */
size_t referral_record_encode(const referral_record_t *rec, u_char *buf);

/*
 * Encodes country to longitude once for many records of one place: writes at
 * most REFERRAL_RECORD_PLACE bytes and lets the texts point to them.  What it
 * wrote is the field place of other records, which have none of these then.
 * No text may be longer than REFERRAL_RECORD_PLACE_TEXT, the country than 2,
 * degrees than REFERRAL_RECORD_PLACE_DEGREE.
 */
size_t referral_record_place(referral_record_t *rec, u_char *buf);

/*
 * Reads a payload; strings point into it.  REFERRAL_ERROR with the reason in
 * error[] for another version, a cut field, a field of a wrong length or a
 * missing id.
 */
int referral_record_decode(referral_record_t *rec, const u_char *buf,
    size_t len, char *error);


#endif /* _REFERRAL_RECORD_H_INCLUDED_ */
