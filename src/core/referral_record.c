
/*
 * Copyright (C) The nginx referral module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_record.h"
#include "referral_utf8.h"

#include <endian.h>
#include <stdio.h>
#include <string.h>


/* written to journals: never renumber, never reuse */

typedef enum {
    REFERRAL_TAG_ID = 1,
    REFERRAL_TAG_TYPE,
    REFERRAL_TAG_VERDICT,
    REFERRAL_TAG_VIA,
    REFERRAL_TAG_CACHE,
    REFERRAL_TAG_SIGNALS,
    REFERRAL_TAG_CODE,
    REFERRAL_TAG_CODE_ID,
    REFERRAL_TAG_PROGRAM_ID,
    REFERRAL_TAG_REFERRER_ID,
    REFERRAL_TAG_VERSION,
    REFERRAL_TAG_CAMPAIGN,
    REFERRAL_TAG_VISITOR,
    REFERRAL_TAG_VISITOR_HASH,
    REFERRAL_TAG_IP,                       /* prefix u8 | 4 or 16 bytes */
    REFERRAL_TAG_COUNTRY,
    REFERRAL_TAG_REGION,
    REFERRAL_TAG_CITY,
    REFERRAL_TAG_TIME_ZONE,
    REFERRAL_TAG_ASN,
    REFERRAL_TAG_LATITUDE,
    REFERRAL_TAG_LONGITUDE,
    REFERRAL_TAG_USER_AGENT,
    REFERRAL_TAG_REFERER_HOST,
    REFERRAL_TAG_REFERER,
    REFERRAL_TAG_HOST,
    REFERRAL_TAG_PATH,
    REFERRAL_TAG_LANGUAGE,
    REFERRAL_TAG_DESTINATION,
    REFERRAL_TAG_ORIGINAL,
    REFERRAL_TAG_ARG                       /* name length u8 | name | value */
} referral_tag_e;


typedef enum {
    REFERRAL_FIELD_TEXT = 0,               /* cut at a character */
    REFERRAL_FIELD_BYTES,                  /* cut anywhere */
    REFERRAL_FIELD_U8,
    REFERRAL_FIELD_U16,
    REFERRAL_FIELD_U32,
    REFERRAL_FIELD_U64
} referral_field_e;


typedef struct {
    uint8_t                 tag;
    uint8_t                 kind;
    uint16_t                max;           /* bytes */
    uint16_t                offset;
} referral_field_t;


#define referral_field(tag, kind, max, name)                                 \
    { REFERRAL_TAG_##tag, REFERRAL_FIELD_##kind, max,                        \
      offsetof(referral_record_t, name) }

#define referral_text(tag, max, name)                                        \
    referral_field(tag, TEXT, REFERRAL_RECORD_##max##_LEN, name)

#define REFERRAL_FIELD_HEAD  3


static inline u_char *referral_record_put(u_char *p, const referral_field_t *f,
    const void *field);
static size_t referral_record_text_len(const referral_field_t *f,
    const referral_str_t *s);
static u_char *referral_record_head(u_char *p, unsigned tag, size_t len);
static u_char *referral_record_number(u_char *p, const referral_field_t *f,
    const void *field);
static u_char *referral_record_arg(u_char *p,
    const referral_record_arg_t *arg);
static int referral_record_field(referral_record_t *rec, unsigned *next,
    unsigned tag, const u_char *p, size_t len);
static int referral_record_value(void *field, const referral_field_t *f,
    const u_char *p, size_t len);
static int referral_record_ip(referral_ip_t *ip, const u_char *p, size_t len);
static int referral_record_read_arg(referral_record_t *rec, const u_char *p,
    size_t len);


static const referral_field_t  referral_fields[] = {
    referral_text(TYPE, TEXT, type),
    referral_field(VERDICT, U8, 1, verdict),
    referral_field(VIA, U8, 1, via),
    referral_field(CACHE, U8, 1, cache),
    referral_field(SIGNALS, U16, 2, signals),
    referral_text(CODE, TEXT, code),
    referral_field(CODE_ID, U64, 8, code_id),
    referral_field(PROGRAM_ID, U64, 8, program_id),
    referral_field(REFERRER_ID, U64, 8, referrer_id),
    referral_field(VERSION, U64, 8, version),
    referral_text(CAMPAIGN, TEXT, campaign),
    referral_field(VISITOR_HASH, BYTES, REFERRAL_RECORD_TEXT_LEN,
                   visitor_hash),
    referral_text(USER_AGENT, UA, user_agent),
    referral_text(REFERER_HOST, HOST, referer_host),
    referral_text(REFERER, REFERER, referer),
    referral_text(HOST, HOST, host),
    referral_text(PATH, PATH, path),
    referral_text(LANGUAGE, TEXT, language),
    referral_text(DESTINATION, URL, destination),

    /* the place, see referral_record_place() */

    referral_text(COUNTRY, TEXT, country),
    referral_text(REGION, TEXT, region),
    referral_text(CITY, TEXT, city),
    referral_text(TIME_ZONE, TEXT, time_zone),
    referral_field(ASN, U32, 4, asn),
    referral_text(LATITUDE, TEXT, latitude),
    referral_text(LONGITUDE, TEXT, longitude)
};

#define REFERRAL_NFIELDS  (sizeof(referral_fields) / sizeof(referral_field_t))
#define REFERRAL_PLACE    (REFERRAL_NFIELDS - 7)   /* where it begins */


/* version, identifiers, address, then every text and argument at its most */

_Static_assert(1 + 3 * (REFERRAL_FIELD_HEAD + REFERRAL_UUID_LEN)
               + REFERRAL_FIELD_HEAD + 17
               + REFERRAL_NFIELDS * REFERRAL_FIELD_HEAD
               + 3 + 2 + 4 + 4 * 8 + 12 * REFERRAL_RECORD_TEXT_LEN
               + REFERRAL_RECORD_UA_LEN + 2 * REFERRAL_RECORD_HOST_LEN
               + REFERRAL_RECORD_REFERER_LEN + REFERRAL_RECORD_PATH_LEN
               + REFERRAL_RECORD_URL_LEN
               + REFERRAL_RECORD_ARGS * (REFERRAL_FIELD_HEAD + 1
               + REFERRAL_RECORD_TEXT_LEN + REFERRAL_RECORD_ARG_LEN)
               + REFERRAL_RECORD_PLACE
               <= REFERRAL_RECORD_MAX, "a record may become too long");


size_t
referral_record_size(const referral_record_t *rec)
{
    size_t                        size;
    unsigned                      i, n;
    const referral_str_t         *s;
    const referral_field_t       *f;
    const referral_record_arg_t  *arg;

    size = 1 + 3 * (REFERRAL_FIELD_HEAD + REFERRAL_UUID_LEN)
           + REFERRAL_FIELD_HEAD + 17 + rec->place.len;

    for (i = 0; i < REFERRAL_NFIELDS; i++) {
        f = &referral_fields[i];
        size += REFERRAL_FIELD_HEAD;

        if (f->kind > REFERRAL_FIELD_BYTES) {
            size += f->max;
            continue;
        }

        s = (const referral_str_t *) (const void *)
                                           ((const u_char *) rec + f->offset);
        size += s->len < f->max ? s->len : f->max;
    }

    n = rec->nargs < REFERRAL_RECORD_ARGS ? rec->nargs : REFERRAL_RECORD_ARGS;

    for (i = 0; i < n; i++) {
        arg = &rec->args[i];
        size += REFERRAL_FIELD_HEAD + 1;
        size += arg->name.len < REFERRAL_RECORD_TEXT_LEN
                ? arg->name.len : REFERRAL_RECORD_TEXT_LEN;
        size += arg->value.len < REFERRAL_RECORD_ARG_LEN
                ? arg->value.len : REFERRAL_RECORD_ARG_LEN;
    }

    return size;
}


size_t
referral_record_encode(const referral_record_t *rec, u_char *buf)
{
    u_char                  *p;
    unsigned                 i, n;
    const referral_field_t  *f;

    p = buf;
    *p++ = REFERRAL_RECORD_VERSION;

    p = referral_record_head(p, REFERRAL_TAG_ID, REFERRAL_UUID_LEN);
    p = mempcpy(p, rec->id, REFERRAL_UUID_LEN);

    n = rec->place.len ? REFERRAL_PLACE : REFERRAL_NFIELDS;

    for (i = 0; i < n; i++) {
        f = &referral_fields[i];
        p = referral_record_put(p, f, (const u_char *) rec + f->offset);
    }

    if (rec->place.len) {
        p = mempcpy(p, rec->place.data, rec->place.len);
    }

    if (rec->has_visitor) {
        p = referral_record_head(p, REFERRAL_TAG_VISITOR, REFERRAL_UUID_LEN);
        p = mempcpy(p, rec->visitor, REFERRAL_UUID_LEN);
    }

    if (rec->has_original) {
        p = referral_record_head(p, REFERRAL_TAG_ORIGINAL, REFERRAL_UUID_LEN);
        p = mempcpy(p, rec->original, REFERRAL_UUID_LEN);
    }

    if (rec->ip.len == 4 || rec->ip.len == 16) {
        p = referral_record_head(p, REFERRAL_TAG_IP, 1 + rec->ip.len);
        *p++ = rec->ip.prefix;
        p = mempcpy(p, rec->ip.bytes, rec->ip.len);
    }

    for (i = 0; i < rec->nargs && i < REFERRAL_RECORD_ARGS; i++) {
        p = referral_record_arg(p, &rec->args[i]);
    }

    return p - buf;
}


size_t
referral_record_place(referral_record_t *rec, u_char *buf)
{
    u_char                  *p, *field;
    unsigned                 i;
    referral_str_t          *s;
    const referral_field_t  *f;

    p = buf;

    for (i = REFERRAL_PLACE; i < REFERRAL_NFIELDS; i++) {
        f = &referral_fields[i];
        field = (u_char *) rec + f->offset;
        p = referral_record_put(p, f, field);

        if (f->kind == REFERRAL_FIELD_TEXT) {
            s = (referral_str_t *) (void *) field;
            s->data = p - s->len;
        }
    }

    return p - buf;
}


/* nothing when the field is empty or 0 */

static inline u_char *
referral_record_put(u_char *p, const referral_field_t *f, const void *field)
{
    size_t                 len;
    const referral_str_t  *s;

    if (f->kind > REFERRAL_FIELD_BYTES) {
        return referral_record_number(p, f, field);
    }

    s = field;

    if (s->len == 0) {
        return p;
    }

    len = s->len <= f->max ? s->len : referral_record_text_len(f, s);

    if (len == 0) {
        return p;
    }

    p = referral_record_head(p, f->tag, len);

    return mempcpy(p, s->data, len);
}


static size_t
referral_record_text_len(const referral_field_t *f, const referral_str_t *s)
{
    if (f->kind == REFERRAL_FIELD_BYTES) {
        return f->max;
    }

    return referral_utf8_cut(s->data, s->len, f->max);
}


static u_char *
referral_record_head(u_char *p, unsigned tag, size_t len)
{
    *p++ = (u_char) tag;
    *p++ = (u_char) len;
    *p++ = (u_char) (len >> 8);

    return p;
}


/* the length of each copy is known to the compiler: none is a call */

static u_char *
referral_record_number(u_char *p, const referral_field_t *f, const void *field)
{
    uint16_t  n16;
    uint32_t  n32;
    uint64_t  n64;

    switch (f->kind) {

    case REFERRAL_FIELD_U8:

        if (*(const uint8_t *) field == 0) {
            return p;
        }

        p = referral_record_head(p, f->tag, 1);
        *p++ = *(const uint8_t *) field;

        return p;

    case REFERRAL_FIELD_U16:
        n16 = htole16(*(const uint16_t *) field);

        if (n16 == 0) {
            return p;
        }

        p = referral_record_head(p, f->tag, 2);

        return mempcpy(p, &n16, 2);

    case REFERRAL_FIELD_U32:
        n32 = htole32(*(const uint32_t *) field);

        if (n32 == 0) {
            return p;
        }

        p = referral_record_head(p, f->tag, 4);

        return mempcpy(p, &n32, 4);

    default: /* REFERRAL_FIELD_U64 */
        n64 = htole64(*(const uint64_t *) field);

        if (n64 == 0) {
            return p;
        }

        p = referral_record_head(p, f->tag, 8);

        return mempcpy(p, &n64, 8);
    }
}


static u_char *
referral_record_arg(u_char *p, const referral_record_arg_t *arg)
{
    size_t  name, value;

    name = arg->name.len;
    value = arg->value.len;

    if (name > REFERRAL_RECORD_TEXT_LEN) {
        name = referral_utf8_cut(arg->name.data, name,
                                 REFERRAL_RECORD_TEXT_LEN);
    }

    if (value > REFERRAL_RECORD_ARG_LEN) {
        value = referral_utf8_cut(arg->value.data, value,
                                  REFERRAL_RECORD_ARG_LEN);
    }

    if (name == 0) {
        return p;
    }

    p = referral_record_head(p, REFERRAL_TAG_ARG, 1 + name + value);
    *p++ = (u_char) name;
    p = mempcpy(p, arg->name.data, name);

    return value ? mempcpy(p, arg->value.data, value) : p;
}


int
referral_record_decode(referral_record_t *rec, const u_char *buf, size_t len,
    char *error)
{
    size_t         n;
    unsigned       tag, next, has_id;
    const u_char  *p, *end;

    memset(rec, 0, sizeof(referral_record_t));

    if (len == 0) {
        snprintf(error, REFERRAL_ERROR_LEN, "record is empty");
        return REFERRAL_ERROR;
    }

    if (buf[0] != REFERRAL_RECORD_VERSION) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "record version %u is not known, only %d", buf[0],
                 REFERRAL_RECORD_VERSION);
        return REFERRAL_ERROR;
    }

    has_id = 0;
    next = 0;
    end = buf + len;

    for (p = buf + 1; p < end; p += n) {

        if (end - p < REFERRAL_FIELD_HEAD) {
            snprintf(error, REFERRAL_ERROR_LEN,
                     "record is cut inside a field's head");
            return REFERRAL_ERROR;
        }

        tag = p[0];
        n = (size_t) p[1] | (size_t) p[2] << 8;
        p += REFERRAL_FIELD_HEAD;

        if (n > (size_t) (end - p)) {
            snprintf(error, REFERRAL_ERROR_LEN,
                     "record is cut inside field %u", tag);
            return REFERRAL_ERROR;
        }

        if (referral_record_field(rec, &next, tag, p, n) != REFERRAL_OK) {
            snprintf(error, REFERRAL_ERROR_LEN,
                     "field %u of the record has a wrong length (%zu)", tag,
                     n);
            return REFERRAL_ERROR;
        }

        has_id |= (tag == REFERRAL_TAG_ID);
    }

    if (!has_id) {
        snprintf(error, REFERRAL_ERROR_LEN, "record has no id");
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


/* fields are written in the order of the table: *next is looked at first */

static int
referral_record_field(referral_record_t *rec, unsigned *next, unsigned tag,
    const u_char *p, size_t len)
{
    u_char                  *id;
    unsigned                 i, n;
    const referral_field_t  *f;

    switch (tag) {

    case REFERRAL_TAG_ID:
        id = rec->id;
        break;

    case REFERRAL_TAG_VISITOR:
        id = rec->visitor;
        rec->has_visitor = 1;
        break;

    case REFERRAL_TAG_ORIGINAL:
        id = rec->original;
        rec->has_original = 1;
        break;

    case REFERRAL_TAG_IP:
        return referral_record_ip(&rec->ip, p, len);

    case REFERRAL_TAG_ARG:
        return referral_record_read_arg(rec, p, len);

    default:

        n = *next;

        for (i = 0; i < REFERRAL_NFIELDS; i++) {
            f = &referral_fields[n];

            if (++n == REFERRAL_NFIELDS) {
                n = 0;
            }

            if (f->tag == tag) {
                *next = n;
                return referral_record_value((u_char *) rec + f->offset, f, p,
                                             len);
            }
        }

        return REFERRAL_OK;
    }

    if (len != REFERRAL_UUID_LEN) {
        return REFERRAL_ERROR;
    }

    memcpy(id, p, REFERRAL_UUID_LEN);

    return REFERRAL_OK;
}


static int
referral_record_value(void *field, const referral_field_t *f, const u_char *p,
    size_t len)
{
    uint64_t         n;
    unsigned         i;
    referral_str_t  *s;

    if (f->kind <= REFERRAL_FIELD_BYTES) {
        s = field;
        s->len = len;
        s->data = (u_char *) p;
        return REFERRAL_OK;
    }

    if (len != f->max) {
        return REFERRAL_ERROR;
    }

    n = 0;

    for (i = 0; i < len; i++) {
        n |= (uint64_t) p[i] << 8 * i;
    }

    switch (f->kind) {

    case REFERRAL_FIELD_U8:
        *(uint8_t *) field = (uint8_t) n;
        break;

    case REFERRAL_FIELD_U16:
        *(uint16_t *) field = (uint16_t) n;
        break;

    case REFERRAL_FIELD_U32:
        *(uint32_t *) field = (uint32_t) n;
        break;

    default: /* REFERRAL_FIELD_U64 */
        *(uint64_t *) field = n;
        break;
    }

    return REFERRAL_OK;
}


static int
referral_record_ip(referral_ip_t *ip, const u_char *p, size_t len)
{
    if ((len != 5 && len != 17) || p[0] > 8 * (len - 1)) {
        return REFERRAL_ERROR;
    }

    memset(ip, 0, sizeof(referral_ip_t));

    ip->prefix = p[0];
    ip->len = (uint8_t) (len - 1);
    memcpy(ip->bytes, p + 1, ip->len);

    return REFERRAL_OK;
}


static int
referral_record_read_arg(referral_record_t *rec, const u_char *p, size_t len)
{
    referral_record_arg_t  *arg;

    if (len == 0 || p[0] == 0 || p[0] > len - 1) {
        return REFERRAL_ERROR;
    }

    /* a later version may record more of them */

    if (rec->nargs == REFERRAL_RECORD_ARGS) {
        return REFERRAL_OK;
    }

    arg = &rec->args[rec->nargs++];

    arg->name.len = p[0];
    arg->name.data = (u_char *) p + 1;
    arg->value.len = len - 1 - p[0];
    arg->value.data = (u_char *) p + 1 + p[0];

    return REFERRAL_OK;
}
