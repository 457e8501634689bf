
/*
 * Copyright (C) The nginx referral module authors
 *
 * The input up to the first NUL is a name, the rest a query.
 */


#include <stdlib.h>
#include <string.h>

#include "referral_args.h"


#define check(condition)  if (!(condition)) abort()


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
static void fuzz_pieces(const referral_str_t *args);
static void fuzz_name(const referral_str_t *name);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t          len, again;
    u_char         *buf;
    const uint8_t  *nul;
    referral_str_t  wanted, args, rest, name, value;

    nul = size ? memchr(data, '\0', size) : NULL;

    if (nul == NULL) {
        return 0;
    }

    wanted.data = (u_char *) data;
    wanted.len = (size_t) (nul - data);

    args.data = (u_char *) nul + 1;
    args.len = size - wanted.len - 1;

    fuzz_pieces(&args);

    /* what was removed is gone, and a second time changes nothing */

    buf = malloc(args.len + 1);
    check(buf != NULL);

    len = referral_args_without(buf, &args, &wanted, 1);
    check(len <= args.len);

    rest.data = buf;
    rest.len = len;

    while (referral_args_next(&rest, &name, &value, NULL)) {
        check(!referral_args_name_is(&name, &wanted));
    }

    rest.data = buf;
    rest.len = len;

    again = referral_args_without(buf, &rest, &wanted, 1);
    check(again == len);

    free(buf);

    return 0;
}


static void
fuzz_pieces(const referral_str_t *args)
{
    u_char         *end;
    referral_str_t  rest, name, value, piece;

    rest = *args;
    end = args->data;

    while (referral_args_next(&rest, &name, &value, &piece)) {
        check(piece.len > 0 && piece.data >= end);
        check(memchr(piece.data, '&', piece.len) == NULL);
        check(name.data == piece.data && name.len <= piece.len);
        check(memchr(name.data, '=', name.len) == NULL);
        check(value.data + value.len == piece.data + piece.len);

        end = piece.data + piece.len;
        check(rest.data == end && end + rest.len == args->data + args->len);

        fuzz_name(&name);
    }
}


static void
fuzz_name(const referral_str_t *name)
{
    size_t          len;
    u_char         *buf;
    referral_str_t  decoded;

    buf = malloc(name->len + 1);
    check(buf != NULL);

    len = referral_args_decode(buf, name);
    check(len <= name->len);

    decoded.data = buf;
    decoded.len = len;

    check(referral_args_name_is(name, &decoded));
    check(referral_args_name_begins(name, &decoded));
    check(referral_args_name_equal(name, name));

    buf[len] = 'x';
    decoded.len++;
    check(!referral_args_name_is(name, &decoded));
    check(!referral_args_name_begins(name, &decoded));

    if (len) {
        decoded.len = len - 1;
        check(!referral_args_name_is(name, &decoded));
        check(referral_args_name_begins(name, &decoded));

        buf[0] ^= 1;
        decoded.len = len;
        check(!referral_args_name_is(name, &decoded));
    }

    free(buf);
}
