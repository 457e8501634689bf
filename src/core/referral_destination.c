
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_destination.h"
#include "referral_args.h"
#include "referral_rule.h"
#include "referral_utf8.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <arpa/inet.h>


typedef enum {
    REFERRAL_MACRO_CLICK_ID = 0,
    REFERRAL_MACRO_CODE,
    REFERRAL_MACRO_COUNTRY,
    REFERRAL_MACRO_MAX
} referral_macro_e;


static size_t referral_destination_scheme(const referral_str_t *url);
static size_t referral_destination_authority(const referral_str_t *url,
    size_t start);
static int referral_destination_host(const referral_str_t *url, size_t start,
    size_t end, char *error);
static int referral_destination_literal(const u_char *p, size_t len);
static int referral_destination_port(const u_char *p, size_t len);
static int referral_destination_bytes(const referral_str_t *url,
    size_t authority, char *error);
static size_t referral_destination_macro(const u_char *p, size_t len,
    referral_macro_e *macro);
static const referral_str_t *referral_destination_value(
    const referral_destination_t *d, referral_macro_e macro);
static u_char *referral_destination_query(const referral_destination_t *d,
    const referral_str_t *query, int path, u_char *buf);
static u_char *referral_destination_expand(const referral_destination_t *d,
    const u_char *p, const u_char *last, u_char *buf);
static int referral_destination_passed(const referral_destination_t *d,
    const referral_str_t *name, const referral_str_t *query);
static u_char *referral_destination_escape(u_char *buf, u_char ch);
static int referral_destination_unsafe(u_char ch);
static int referral_destination_unreserved(u_char ch);


static const referral_str_t  referral_destination_macros[] = {
    referral_string("{click_id}"),
    referral_string("{code}"),
    referral_string("{country}")
};


static const referral_str_t  referral_destination_utm =
    referral_string("utm_");


static const char  referral_destination_refused[] = "\"'<>\\^`{|}#";


int
referral_destination_check(const referral_str_t *url, char *error)
{
    size_t  start, end;

    if (url->len == 0) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "empty, an absolute http or https URL is expected");
        return REFERRAL_ERROR;
    }

    if (url->len > REFERRAL_URL_LEN) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "%zu bytes, at most %d are accepted", url->len,
                        REFERRAL_URL_LEN);
        return REFERRAL_ERROR;
    }

    start = referral_destination_scheme(url);

    if (start == 0) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "does not begin with http:// or https://");
        return REFERRAL_ERROR;
    }

    end = referral_destination_authority(url, start);

    if (referral_destination_host(url, start, end, error) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    return referral_destination_bytes(url, end, error);
}


/* the offset of the authority; 0: another scheme or none */

static size_t
referral_destination_scheme(const referral_str_t *url)
{
    const char  *p;

    p = (const char *) url->data;

    if (url->len >= 7 && strncasecmp(p, "http://", 7) == 0) {
        return 7;
    }

    if (url->len >= 8 && strncasecmp(p, "https://", 8) == 0) {
        return 8;
    }

    return 0;
}


/* the offset of the authority's end */

static size_t
referral_destination_authority(const referral_str_t *url, size_t start)
{
    size_t  i;

    for (i = start; i < url->len; i++) {
        if (url->data[i] == '/' || url->data[i] == '?' || url->data[i] == '#')
        {
            break;
        }
    }

    return i;
}


/*
 * Narrower than RFC 3986: names of DNS only.  What else a host may contain
 * there is read differently by different clients, which is how a link ends
 * where its author did not mean it to.
 */

static int
referral_destination_host(const referral_str_t *url, size_t start, size_t end,
    char *error)
{
    u_char   ch;
    size_t   i;
    u_char  *p;

    p = url->data;

    if (memchr(&p[start], '@', end - start) != NULL) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "a user name at byte %zu, none is accepted", start);
        return REFERRAL_ERROR;
    }

    i = start;

    if (i < end && p[i] == '[') {

        while (i < end && p[i] != ']') {
            i++;
        }

        if (i == end
            || !referral_destination_literal(&p[start + 1], i - start - 1))
        {
            (void) snprintf(error, REFERRAL_ERROR_LEN,
                            "no IPv6 address in the brackets at byte %zu",
                            start);
            return REFERRAL_ERROR;
        }

        i++;

    } else {

        for ( /* void */ ; i < end && p[i] != ':'; i++) {
            ch = p[i];

            if (ch == '{') {
                (void) snprintf(error, REFERRAL_ERROR_LEN,
                                "a macro in the host at byte %zu, they are "
                                "accepted only after it", i);
                return REFERRAL_ERROR;
            }

            if (ch >= 0x80) {
                (void) snprintf(error, REFERRAL_ERROR_LEN,
                                "a non-ASCII byte in the host at byte %zu, "
                                "write its xn-- form", i);
                return REFERRAL_ERROR;
            }

            if (!((ch >= '0' && ch <= '9')
                  || ((ch | 0x20) >= 'a' && (ch | 0x20) <= 'z')
                  || ch == '-' || ch == '_'
                  || (ch == '.' && i > start && p[i - 1] != '.')))
            {
                (void) snprintf(error, REFERRAL_ERROR_LEN,
                                "byte %zu (0x%02x) does not belong in a host",
                                i, ch);
                return REFERRAL_ERROR;
            }
        }
    }

    if (i == start) {
        (void) snprintf(error, REFERRAL_ERROR_LEN, "no host at byte %zu",
                        start);
        return REFERRAL_ERROR;
    }

    if (i < end
        && (p[i] != ':'
            || !referral_destination_port(&p[i + 1], end - i - 1)))
    {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "no port 1 to 65535 at byte %zu", i);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


static int
referral_destination_literal(const u_char *p, size_t len)
{
    char    text[INET6_ADDRSTRLEN];
    u_char  address[16];

    if (len >= sizeof(text) || memchr(p, '\0', len) != NULL) {
        return 0;
    }

    memcpy(text, p, len);
    text[len] = '\0';

    return inet_pton(AF_INET6, text, address) == 1;
}


static int
referral_destination_port(const u_char *p, size_t len)
{
    size_t    i;
    unsigned  port;

    if (len == 0 || len > 5) {
        return 0;
    }

    port = 0;

    for (i = 0; i < len; i++) {

        if (p[i] < '0' || p[i] > '9') {
            return 0;
        }

        port = port * 10 + (unsigned) (p[i] - '0');
    }

    return port >= 1 && port <= 65535;
}


/* path, query and fragment */

static int
referral_destination_bytes(const referral_str_t *url, size_t authority,
    char *error)
{
    u_char            ch;
    size_t            i, n;
    referral_macro_e  macro;

    for (i = authority; i < url->len; i++) {
        ch = url->data[i];

        if (ch == '{') {
            n = referral_destination_macro(&url->data[i], url->len - i,
                                           &macro);

            if (n == 0) {
                (void) snprintf(error, REFERRAL_ERROR_LEN,
                                "no macro at byte %zu, {click_id}, {code} "
                                "and {country} are accepted, a brace is "
                                "written %%7B", i);
                return REFERRAL_ERROR;
            }

            i += n - 1;
            continue;
        }

        /* a single quote is legal in a URL, only passed ones are encoded */

        if (ch < 0x80 && ch != '\'' && ch != '#'
            && referral_destination_unsafe(ch))
        {
            (void) snprintf(error, REFERRAL_ERROR_LEN,
                            "byte %zu (0x%02x) is not accepted, write %%%02X",
                            i, ch, ch);
            return REFERRAL_ERROR;
        }
    }

    if (!referral_utf8_valid(url->data, url->len)) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "non-ASCII bytes that are not valid UTF-8");
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


/* the length of the macro at p, or 0 */

static size_t
referral_destination_macro(const u_char *p, size_t len,
    referral_macro_e *macro)
{
    unsigned               i;
    const referral_str_t  *name;

    for (i = 0; i < REFERRAL_MACRO_MAX; i++) {
        name = &referral_destination_macros[i];

        if (len >= name->len && memcmp(p, name->data, name->len) == 0) {
            *macro = (referral_macro_e) i;
            return name->len;
        }
    }

    return 0;
}


static const referral_str_t *
referral_destination_value(const referral_destination_t *d,
    referral_macro_e macro)
{
    switch (macro) {

    case REFERRAL_MACRO_CLICK_ID:
        return &d->click_id;

    case REFERRAL_MACRO_CODE:
        return &d->code;

    default:
        return &d->country;
    }
}


/* the highest bit of each byte of a word: set where a byte is 0, or below n */

#define REFERRAL_BYTES         0x0101010101010101ull
#define referral_zero(x)       (((x) - REFERRAL_BYTES) & ~(x)                \
                                & REFERRAL_BYTES * 0x80)
#define referral_below(x, n)   (((x) - REFERRAL_BYTES * (n)) & ~(x)          \
                                & REFERRAL_BYTES * 0x80)


/* not 0 where a byte is a brace, a space, a control character or not ASCII */

static inline uint64_t
referral_destination_other(uint64_t word)
{
    return (word & REFERRAL_BYTES * 0x80) | referral_below(word, 0x21)
           | referral_zero(word ^ REFERRAL_BYTES * 0x7f)
           | referral_zero(word ^ REFERRAL_BYTES * '{');
}


/* eight bytes at a time: a tenth of what building the URL takes */

int
referral_destination_plain(const referral_destination_t *d)
{
    size_t         n;
    uint64_t       word, other;
    const u_char  *p;

    if (d->passthrough != REFERRAL_PASSTHROUGH_OFF && d->args.len) {
        return 0;
    }

    other = 0;
    p = d->url.data;

    for (n = d->url.len; n >= sizeof(word); n -= sizeof(word)) {
        memcpy(&word, p, sizeof(word));
        p += sizeof(word);

        other |= referral_destination_other(word);
    }

    if (n) {
        word = REFERRAL_BYTES * 'x';
        memcpy(&word, p, n);

        other |= referral_destination_other(word);
    }

    return other == 0;
}


size_t
referral_destination_size(const referral_destination_t *d)
{
    size_t            i, n, size;
    referral_macro_e  macro;

    /* "/?" or "&", then each "&" between arguments counts as its own byte */

    size = sizeof("/?") + 3 * d->args.len;
    macro = 0;

    for (i = 0; i < d->url.len; i += n) {
        n = 0;

        if (d->url.data[i] == '{') {
            n = referral_destination_macro(&d->url.data[i], d->url.len - i,
                                           &macro);
        }

        if (n) {
            size += 3 * referral_destination_value(d, macro)->len;
            continue;
        }

        n = 1;
        size += 3;
    }

    return size;
}


u_char *
referral_destination_build(const referral_destination_t *d, u_char *buf)
{
    size_t           start, end;
    u_char          *p, *path, *last, *fragment;
    referral_str_t   query;

    last = d->url.data + d->url.len;

    start = referral_destination_scheme(&d->url);
    end = referral_destination_authority(&d->url, start);

    path = d->url.data + end;
    fragment = memchr(path, '#', d->url.len - end);

    if (fragment == NULL) {
        fragment = last;
    }

    query.len = 0;
    query.data = memchr(path, '?', (size_t) (fragment - path));

    if (query.data != NULL) {
        query.data++;
        query.len = (size_t) (fragment - query.data);
    }

    p = referral_destination_expand(d, d->url.data, fragment - query.len,
                                    buf);

    p = referral_destination_query(d, &query, path < fragment, p);

    return referral_destination_expand(d, fragment, last, p);
}


/*
 * The destination's own query, which has no data when there is no "?", and
 * what is passed.  path: something follows the host.
 */

static u_char *
referral_destination_query(const referral_destination_t *d,
    const referral_str_t *query, int path, u_char *buf)
{
    size_t           i;
    u_char          *begin;
    referral_str_t   rest, name, value, piece;

    begin = NULL;

    if (query->data != NULL) {
        begin = buf;
        buf = referral_destination_expand(d, query->data,
                                          query->data + query->len, buf);
    }

    if (d->passthrough == REFERRAL_PASSTHROUGH_OFF) {
        return buf;
    }

    rest = d->args;

    while (referral_args_next(&rest, &name, &value, &piece)) {

        if (!referral_destination_passed(d, &name, query)) {
            continue;
        }

        if (begin == NULL) {

            /* without a path: what browsers make of such a URL */

            if (!path) {
                *buf++ = '/';
            }

            *buf++ = '?';
            begin = buf;

        } else if (buf != begin && buf[-1] != '&') {
            *buf++ = '&';
        }

        for (i = 0; i < piece.len; i++) {

            if (referral_destination_unsafe(piece.data[i])) {
                buf = referral_destination_escape(buf, piece.data[i]);
                continue;
            }

            *buf++ = piece.data[i];
        }
    }

    return buf;
}


static u_char *
referral_destination_expand(const referral_destination_t *d, const u_char *p,
    const u_char *last, u_char *buf)
{
    size_t                 i, n;
    referral_macro_e       macro;
    const referral_str_t  *value;

    while (p < last) {

        if (*p == '{') {
            n = referral_destination_macro(p, (size_t) (last - p), &macro);

            if (n) {
                value = referral_destination_value(d, macro);

                for (i = 0; i < value->len; i++) {

                    if (referral_destination_unreserved(value->data[i])) {
                        *buf++ = value->data[i];
                        continue;
                    }

                    buf = referral_destination_escape(buf, value->data[i]);
                }

                p += n;
                continue;
            }
        }

        if (*p < 0x21 || *p >= 0x7f) {
            buf = referral_destination_escape(buf, *p++);
            continue;
        }

        *buf++ = *p++;
    }

    return buf;
}


static int
referral_destination_passed(const referral_destination_t *d,
    const referral_str_t *name, const referral_str_t *query)
{
    size_t          i;
    referral_str_t  rest, own, value;

    if (d->passthrough == REFERRAL_PASSTHROUGH_UTM
        && !referral_args_name_begins(name, &referral_destination_utm))
    {
        return 0;
    }

    for (i = 0; i < d->ndrop; i++) {
        if (referral_args_name_is(name, &d->drop[i])) {
            return 0;
        }
    }

    rest = *query;

    while (referral_args_next(&rest, &own, &value, NULL)) {
        if (referral_args_name_equal(name, &own)) {
            return 0;
        }
    }

    return 1;
}


static u_char *
referral_destination_escape(u_char *buf, u_char ch)
{
    static const u_char  hex[] = "0123456789ABCDEF";

    *buf++ = '%';
    *buf++ = hex[ch >> 4];
    *buf++ = hex[ch & 0x0f];

    return buf;
}


/* what must not stand as it is in a Location or would end the query */

static int
referral_destination_unsafe(u_char ch)
{
    return ch < 0x21 || ch >= 0x7f
           || memchr(referral_destination_refused, ch,
                     sizeof(referral_destination_refused) - 1)
              != NULL;
}


/* RFC 3986 section 2.3 */

static int
referral_destination_unreserved(u_char ch)
{
    return (ch >= '0' && ch <= '9')
           || (ch >= 'A' && ch <= 'Z')
           || (ch >= 'a' && ch <= 'z')
           || ch == '-' || ch == '.' || ch == '_' || ch == '~';
}
