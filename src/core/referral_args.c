
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_args.h"

#include <string.h>


static size_t referral_args_byte(const u_char *p, size_t len, u_char *byte);
static size_t referral_args_name_prefix(const referral_str_t *name,
    const referral_str_t *prefix);


int
referral_args_next(referral_str_t *rest, referral_str_t *name,
    referral_str_t *value, referral_str_t *piece)
{
    size_t   len;
    u_char  *p, *eq;

    while (rest->len && rest->data[0] == '&') {
        rest->data++;
        rest->len--;
    }

    if (rest->len == 0) {
        return 0;
    }

    p = memchr(rest->data, '&', rest->len);
    len = p == NULL ? rest->len : (size_t) (p - rest->data);

    name->data = rest->data;
    eq = memchr(rest->data, '=', len);

    if (eq == NULL) {
        name->len = len;
        value->data = rest->data + len;
        value->len = 0;

    } else {
        name->len = (size_t) (eq - rest->data);
        value->data = eq + 1;
        value->len = len - name->len - 1;
    }

    if (piece != NULL) {
        piece->data = rest->data;
        piece->len = len;
    }

    rest->data += len;
    rest->len -= len;

    return 1;
}


/* decodes one byte and returns how many it was made of */

static size_t
referral_args_byte(const u_char *p, size_t len, u_char *byte)
{
    int  high, low;

    if (p[0] == '%' && len > 2) {
        high = referral_hex_digit(p[1]);
        low = referral_hex_digit(p[2]);

        if (high >= 0 && low >= 0) {
            *byte = (u_char) (high << 4 | low);
            return 3;
        }
    }

    *byte = (u_char) (p[0] == '+' ? ' ' : p[0]);

    return 1;
}


size_t
referral_args_decode(u_char *dst, const referral_str_t *src)
{
    u_char  byte, *d;
    size_t  i;

    d = dst;

    for (i = 0; i < src->len; /* void */ ) {
        i += referral_args_byte(&src->data[i], src->len - i, &byte);
        *d++ = byte;
    }

    return (size_t) (d - dst);
}


int
referral_args_name_is(const referral_str_t *name,
    const referral_str_t *wanted)
{
    return referral_args_name_prefix(name, wanted) == name->len;
}


int
referral_args_name_begins(const referral_str_t *name,
    const referral_str_t *prefix)
{
    return referral_args_name_prefix(name, prefix) <= name->len;
}


/* how much of name makes up the prefix; more than name->len: it does not */

static size_t
referral_args_name_prefix(const referral_str_t *name,
    const referral_str_t *prefix)
{
    u_char  byte;
    size_t  i, n;

    i = 0;

    for (n = 0; n < prefix->len; n++) {

        if (i == name->len) {
            return name->len + 1;
        }

        i += referral_args_byte(&name->data[i], name->len - i, &byte);

        if (byte != prefix->data[n]) {
            return name->len + 1;
        }
    }

    return i;
}


int
referral_args_name_equal(const referral_str_t *one, const referral_str_t *two)
{
    u_char  a, b;
    size_t  i, k;

    i = 0;
    k = 0;

    while (i < one->len && k < two->len) {
        i += referral_args_byte(&one->data[i], one->len - i, &a);
        k += referral_args_byte(&two->data[k], two->len - k, &b);

        if (a != b) {
            return 0;
        }
    }

    return i == one->len && k == two->len;
}


size_t
referral_args_without(u_char *dst, const referral_str_t *args,
    const referral_str_t *names, size_t n)
{
    size_t          i;
    u_char         *d;
    referral_str_t  rest, name, value, piece;

    d = dst;
    rest = *args;

    while (referral_args_next(&rest, &name, &value, &piece)) {

        for (i = 0; i < n; i++) {
            if (referral_args_name_is(&name, &names[i])) {
                break;
            }
        }

        if (i < n) {
            continue;
        }

        if (d != dst) {
            *d++ = '&';
        }

        /* dst may be args->data */

        memmove(d, piece.data, piece.len);
        d += piece.len;
    }

    return (size_t) (d - dst);
}
