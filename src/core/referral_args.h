
/*
 * Copyright (C) The nginx referral module authors
 *
 * Query strings: iteration, percent-decoding, removal of parameters.
 */


#ifndef _REFERRAL_ARGS_H_INCLUDED_
#define _REFERRAL_ARGS_H_INCLUDED_


#include "referral_core.h"


/*
 * Takes the next name=value off *rest.  Empty pieces ("&&") are skipped; a
 * piece without "=" has an empty value.  name and value are undecoded parts
 * of the query; *piece (may be NULL) is all of "name=value".  Returns 0 at
 * the end, 1 otherwise.
 */
int referral_args_next(referral_str_t *rest, referral_str_t *name,
    referral_str_t *value, referral_str_t *piece);

/*
 * Percent-decodes ("+" is a space; a "%" without two hex digits stays as it
 * is).  dst needs src->len bytes and may be src->data.  Returns the length.
 */
size_t referral_args_decode(u_char *dst, const referral_str_t *src);

/* 1 when the undecoded name, once decoded, is exactly the wanted one */
int referral_args_name_is(const referral_str_t *name,
    const referral_str_t *wanted);

/* 1 when the undecoded name, once decoded, begins with the prefix */
int referral_args_name_begins(const referral_str_t *name,
    const referral_str_t *prefix);

/* 1 when two undecoded names are the same once decoded */
int referral_args_name_equal(const referral_str_t *one,
    const referral_str_t *two);

/*
 * Copies args without the parameters of the names given; the others keep
 * their order and bytes.  dst needs args->len bytes.  Returns the length.
 */
size_t referral_args_without(u_char *dst, const referral_str_t *args,
    const referral_str_t *names, size_t n);


#endif /* _REFERRAL_ARGS_H_INCLUDED_ */
