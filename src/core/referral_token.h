
/*
 * Copyright (C) The nginx referral module authors
 *
 * The attribution token, a signed first-party cookie value:
 *
 *   v1.<key id>.<first code>.<first click>.<last code>.<last click>.
 *       <visitor>.<mac>                                     (one line)
 *
 * Clicks and visitor are ids of 32 lower-case hex digits, the visitor may be
 * empty.  The mac is HMAC-SHA256 (RFC 2104, FIPS 198-1) with the key named,
 * over all bytes before the last dot, cut to its first 128 bits, in base64url
 * without padding (22 characters).
 */


#ifndef _REFERRAL_TOKEN_H_INCLUDED_
#define _REFERRAL_TOKEN_H_INCLUDED_


#include "referral_core.h"
#include "referral_code.h"

/*
 * The low-level interface is the only one whose states can be copied without
 * an allocation; OpenSSL 3 marks it as deprecated.
 */

#ifndef OPENSSL_SUPPRESS_DEPRECATED
#define OPENSSL_SUPPRESS_DEPRECATED
#endif

#include <openssl/sha.h>


#define REFERRAL_TOKEN_MAX      400        /* bytes, longer is refused */
#define REFERRAL_KEY_ID_LEN     16         /* [A-Za-z0-9_-]{1,16} */
#define REFERRAL_KEY_MIN        16         /* bytes of secret */
#define REFERRAL_KEY_MAX        64
#define REFERRAL_KEYS_MAX       16

#define REFERRAL_TOKEN_FUTURE   300000     /* ms a click may be ahead of us */


/* HMAC states after the key block: signing neither allocates nor re-keys */

typedef struct {
    u_char               id[REFERRAL_KEY_ID_LEN];
    size_t               id_len;
    SHA256_CTX           inner;
    SHA256_CTX           outer;
} referral_key_t;


typedef struct {
    size_t               n;                /* key 0 signs, all verify */
    referral_key_t       keys[REFERRAL_KEYS_MAX];
} referral_keyring_t;


typedef struct {
    u_char               code[REFERRAL_CODE_LEN];
    uint8_t              code_len;
    u_char               click[REFERRAL_UUID_LEN];
} referral_touch_t;


typedef struct {
    referral_touch_t     first;
    referral_touch_t     last;
    u_char               visitor[REFERRAL_UUID_LEN];
    unsigned             has_visitor:1;
    unsigned             key;              /* which key verified it */
} referral_token_t;


typedef enum {
    REFERRAL_TOKEN_VALID = 0,
    REFERRAL_TOKEN_MALFORMED,
    REFERRAL_TOKEN_UNKNOWN_KEY,
    REFERRAL_TOKEN_FORGED,                 /* the mac does not match */
    REFERRAL_TOKEN_EXPIRED
} referral_token_result_e;


/* a word for counters and messages: "valid", "malformed", ... */
const char *referral_token_result_word(referral_token_result_e result);

/*
 * Reads lines "id:base64" (RFC 4648, either alphabet, padding optional);
 * empty lines and lines that begin with # are skipped.  REFERRAL_ERROR with
 * the line's number and the problem in error[], never with the secret.
 */
int referral_keyring_parse(referral_keyring_t *ring, const u_char *text,
    size_t len, char *error);

/* first 16 bytes of HMAC-SHA256; also the primitive of the test vectors */
void referral_token_mac(const referral_key_t *key, const u_char *text,
    size_t len, u_char mac[16]);

/* writes at most REFERRAL_TOKEN_MAX bytes, signed with key 0; the length */
size_t referral_token_make(const referral_keyring_t *ring,
    const referral_token_t *token, u_char *text);

/*
 * Verifies in constant time.  now and max_age in milliseconds, max_age 0: no
 * limit.  The age is that of the last click; a first touch older than
 * max_age is replaced by the last one.  A last click that is more than
 * REFERRAL_TOKEN_FUTURE ahead of now is EXPIRED too.  Only the form that
 * referral_token_make() writes is accepted; token is set only when VALID.
 */
referral_token_result_e referral_token_verify(const referral_keyring_t *ring,
    const u_char *text, size_t len, uint64_t now, uint64_t max_age,
    referral_token_t *token);


#endif /* _REFERRAL_TOKEN_H_INCLUDED_ */
