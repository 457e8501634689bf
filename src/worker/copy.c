
/*
 * Copyright (C) The nginx referral module authors
 */


#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "referral_utf8.h"
#include "referral_uuid.h"
#include "copy.h"


/* Postgres counts from 2000-01-01 */

#define REFERRAL_PG_EPOCH_DAYS  10957
#define REFERRAL_PG_EPOCH_MS    (REFERRAL_PG_EPOCH_DAYS * INT64_C(86400000))

/* of inet, utils/inet.h of the server: its own numbers, not the system's */

#define REFERRAL_PG_AF_INET     2
#define REFERRAL_PG_AF_INET6    3

#define REFERRAL_PG_TEXTOID     25


static inline u_char *referral_buf_room(referral_buf_t *b, size_t len);
static u_char *referral_buf_grow(referral_buf_t *b, size_t len);
static void referral_buf_int16(referral_buf_t *b, int16_t n);
static void referral_buf_int32(referral_buf_t *b, int32_t n);
static void referral_buf_int64(referral_buf_t *b, int64_t n);
static void referral_buf_text(referral_buf_t *b, const referral_str_t *text);
static void referral_copy_value(referral_buf_t *b, const referral_value_t *v);
static void referral_copy_inet(referral_buf_t *b, const referral_ip_t *ip);
static void referral_copy_signals(referral_buf_t *b, int64_t bits);


void
referral_value_int(referral_value_t *v, referral_value_e type, int64_t number)
{
    v->type = type;
    v->number = number;
}


void
referral_value_id(referral_value_t *v, int64_t id)
{
    v->type = id ? REFERRAL_VALUE_INT8 : REFERRAL_VALUE_NULL;
    v->number = id;
}


void
referral_value_text(referral_value_t *v, const referral_str_t *text)
{
    v->type = text->len ? REFERRAL_VALUE_TEXT : REFERRAL_VALUE_NULL;
    v->text = *text;
}


void
referral_value_bytes(referral_value_t *v, referral_value_e type,
    const u_char *data, size_t len)
{
    v->type = type;
    v->text.data = (u_char *) data;
    v->text.len = len;
}


void
referral_buf_add(referral_buf_t *b, const void *data, size_t len)
{
    u_char  *p;

    p = referral_buf_room(b, len);

    if (p != NULL && len) {
        memcpy(p, data, len);
        b->len += len;
    }
}


void
referral_buf_string(referral_buf_t *b, const char *text)
{
    referral_buf_add(b, text, strlen(text));
}


void
referral_buf_free(referral_buf_t *b)
{
    free(b->data);
    memset(b, 0, sizeof(referral_buf_t));
}


void
referral_buf_json(referral_buf_t *b, const referral_str_t *text)
{
    u_char          ch, *p, *dst;
    size_t          i, len, start;
    referral_buf_t  clean;

    static const u_char  hex[] = "0123456789abcdef";

    memset(&clean, 0, sizeof(referral_buf_t));
    referral_buf_text(&clean, text);

    /* the longest escape is \u00XX */

    dst = referral_buf_room(b, clean.len * 6 + 2);

    if (clean.failed || dst == NULL) {
        b->failed = 1;
        referral_buf_free(&clean);
        return;
    }

    p = dst;
    *p++ = '"';

    start = 0;
    len = clean.len;

    for (i = 0; i < len; i++) {
        ch = clean.data[i];

        if (ch >= 0x20 && ch != '"' && ch != '\\') {
            continue;
        }

        memcpy(p, clean.data + start, i - start);
        p += i - start;
        start = i + 1;

        *p++ = '\\';

        if (ch >= 0x20) {
            *p++ = ch;

        } else {
            *p++ = 'u';
            *p++ = '0';
            *p++ = '0';
            *p++ = hex[ch >> 4];
            *p++ = hex[ch & 0xf];
        }
    }

    if (len > start) {
        memcpy(p, clean.data + start, len - start);
        p += len - start;
    }

    *p++ = '"';

    b->len += p - dst;

    referral_buf_free(&clean);
}


void
referral_copy_begin(referral_buf_t *b)
{
    /* signature, flags, length of the header's extension */

    referral_buf_add(b, "PGCOPY\n\377\r\n\0", 11);
    referral_buf_int32(b, 0);
    referral_buf_int32(b, 0);
}


void
referral_copy_row(referral_buf_t *b, const referral_value_t *values, size_t n)
{
    size_t  i;

    referral_buf_int16(b, (int16_t) n);

    for (i = 0; i < n; i++) {
        referral_copy_value(b, &values[i]);
    }
}


void
referral_copy_end(referral_buf_t *b)
{
    referral_buf_int16(b, -1);
}


static void
referral_copy_value(referral_buf_t *b, const referral_value_t *v)
{
    size_t   start, len;
    int32_t  n;

    start = b->len;
    referral_buf_int32(b, -1);

    switch (v->type) {

    case REFERRAL_VALUE_NULL:
        return;

    case REFERRAL_VALUE_INT2:
        referral_buf_int16(b, (int16_t) v->number);
        break;

    case REFERRAL_VALUE_INT4:
        referral_buf_int32(b, (int32_t) v->number);
        break;

    case REFERRAL_VALUE_INT8:
        referral_buf_int64(b, v->number);
        break;

    case REFERRAL_VALUE_DATE:
        referral_buf_int32(b, (int32_t) (v->number - REFERRAL_PG_EPOCH_DAYS));
        break;

    case REFERRAL_VALUE_TIME:
        referral_buf_int64(b, (v->number - REFERRAL_PG_EPOCH_MS) * 1000);
        break;

    case REFERRAL_VALUE_UUID:
    case REFERRAL_VALUE_BYTEA:
        referral_buf_add(b, v->text.data, v->text.len);
        break;

    case REFERRAL_VALUE_TEXT:
        referral_buf_text(b, &v->text);
        break;

    case REFERRAL_VALUE_INET:
        referral_copy_inet(b, v->ip);
        break;

    case REFERRAL_VALUE_JSON:
        referral_buf_add(b, "\1", 1);      /* version of the binary format */
        referral_buf_add(b, v->text.data, v->text.len);
        break;

    case REFERRAL_VALUE_SIGNALS:
        referral_copy_signals(b, v->number);
        break;
    }

    if (b->failed) {
        return;
    }

    len = b->len - start - sizeof(int32_t);
    n = (int32_t) htobe32((uint32_t) len);
    memcpy(b->data + start, &n, sizeof(int32_t));
}


static void
referral_copy_inet(referral_buf_t *b, const referral_ip_t *ip)
{
    u_char  head[4];

    head[0] = ip->len == 4 ? REFERRAL_PG_AF_INET : REFERRAL_PG_AF_INET6;
    head[1] = ip->prefix;
    head[2] = 0;                           /* not cidr */
    head[3] = ip->len;

    referral_buf_add(b, head, sizeof(head));
    referral_buf_add(b, ip->bytes, ip->len);
}


static void
referral_copy_signals(referral_buf_t *b, int64_t bits)
{
    int32_t                i, n;
    const referral_str_t  *word;

    n = 0;

    for (i = 0; i < REFERRAL_SIGNAL_COUNT; i++) {
        n += (bits >> i) & 1;
    }

    /* dimensions (an empty array has none), flags, type of the elements */

    referral_buf_int32(b, n ? 1 : 0);
    referral_buf_int32(b, 0);
    referral_buf_int32(b, REFERRAL_PG_TEXTOID);

    if (n == 0) {
        return;
    }

    referral_buf_int32(b, n);
    referral_buf_int32(b, 1);              /* the lower bound */

    for (i = 0; i < REFERRAL_SIGNAL_COUNT; i++) {

        if ((bits >> i) & 1) {
            word = referral_signal_word(i);
            referral_buf_int32(b, (int32_t) word->len);
            referral_buf_add(b, word->data, word->len);
        }
    }
}


void
referral_copy_json(referral_buf_t *b, const referral_value_t *v)
{
    char            text[REFERRAL_IP_TEXT_LEN + 32];
    size_t          i, n;
    time_t          sec;
    struct tm       tm;
    referral_str_t  str;

    str.data = (u_char *) text;
    str.len = 0;

    switch (v->type) {

    case REFERRAL_VALUE_NULL:
        referral_buf_string(b, "null");
        return;

    case REFERRAL_VALUE_JSON:
        referral_buf_add(b, v->text.data, v->text.len);
        return;

    case REFERRAL_VALUE_TEXT:
        referral_buf_json(b, &v->text);
        return;

    case REFERRAL_VALUE_INT2:
    case REFERRAL_VALUE_INT4:
    case REFERRAL_VALUE_INT8:
    case REFERRAL_VALUE_DATE:
        snprintf(text, sizeof(text), "%lld", (long long) v->number);
        referral_buf_string(b, text);
        return;

    case REFERRAL_VALUE_TIME:
        sec = v->number / 1000;
        gmtime_r(&sec, &tm);
        str.len = snprintf(text, sizeof(text),
                           "%04d-%02d-%02d %02d:%02d:%02d.%03d+00",
                           tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday,
                           tm.tm_hour, tm.tm_min, tm.tm_sec,
                           (int) (v->number % 1000));
        break;

    case REFERRAL_VALUE_UUID:
        referral_uuid_text(v->text.data, str.data);
        str.len = REFERRAL_UUID_TEXT_LEN;
        break;

    case REFERRAL_VALUE_INET:
        str.len = referral_ip_text(v->ip, str.data);
        break;

    case REFERRAL_VALUE_BYTEA:
        referral_buf_string(b, "\"\\\\x");

        for (i = 0; i < v->text.len; i++) {
            snprintf(text, sizeof(text), "%02x", v->text.data[i]);
            referral_buf_string(b, text);
        }

        referral_buf_string(b, "\"");
        return;

    case REFERRAL_VALUE_SIGNALS:
        referral_buf_string(b, "[");

        for (i = 0, n = 0; i < REFERRAL_SIGNAL_COUNT; i++) {
            if ((v->number >> i) & 1) {
                referral_buf_string(b, n++ ? "," : "");
                referral_buf_json(b, referral_signal_word(i));
            }
        }

        referral_buf_string(b, "]");
        return;
    }

    referral_buf_json(b, &str);
}


static inline u_char *
referral_buf_room(referral_buf_t *b, size_t len)
{
    if (b->size - b->len >= len && b->data != NULL && !b->failed) {
        return b->data + b->len;
    }

    return referral_buf_grow(b, len);
}


static u_char *
referral_buf_grow(referral_buf_t *b, size_t len)
{
    size_t   size;
    u_char  *data;

    if (b->failed) {
        return NULL;
    }

    size = b->size ? b->size : 1024;

    while (size - b->len < len) {
        size *= 2;
    }

    data = realloc(b->data, size);
    if (data == NULL) {
        b->failed = 1;
        return NULL;
    }

    b->data = data;
    b->size = size;

    return data + b->len;
}


static void
referral_buf_int16(referral_buf_t *b, int16_t n)
{
    uint16_t  be;

    be = htobe16((uint16_t) n);
    referral_buf_add(b, &be, sizeof(be));
}


static void
referral_buf_int32(referral_buf_t *b, int32_t n)
{
    uint32_t  be;

    be = htobe32((uint32_t) n);
    referral_buf_add(b, &be, sizeof(be));
}


static void
referral_buf_int64(referral_buf_t *b, int64_t n)
{
    uint64_t  be;

    be = htobe64((uint64_t) n);
    referral_buf_add(b, &be, sizeof(be));
}


/* text that Postgres takes: what is not UTF-8, and NUL, becomes U+FFFD */

static void
referral_buf_text(referral_buf_t *b, const referral_str_t *text)
{
    u_char  *p;

    if (referral_utf8_valid(text->data, text->len)) {
        referral_buf_add(b, text->data, text->len);
        return;
    }

    p = referral_buf_room(b, text->len * 3);

    if (p != NULL) {
        b->len += referral_utf8_clean(p, text->data, text->len);
    }
}
