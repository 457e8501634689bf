
/*
 * Copyright (C) The nginx referral module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_token.h"
#include "referral_uuid.h"

#include <endian.h>
#include <stdio.h>
#include <string.h>
#include <openssl/crypto.h>


#define REFERRAL_TOKEN_FIELDS   8
#define REFERRAL_TOKEN_MAC      16         /* bytes */
#define REFERRAL_TOKEN_MAC_LEN  22         /* as base64url */


static int referral_keyring_line(referral_keyring_t *ring, const u_char *p,
    size_t len, unsigned line, char *error);
static int referral_key_id_valid(const u_char *id, size_t len);
static int referral_base64_decode(u_char *dst, size_t size, const u_char *src,
    size_t len, size_t *decoded);
static int referral_base64_value(u_char ch);
static void referral_key_init(referral_key_t *key, const u_char *id,
    size_t id_len, const u_char *secret, size_t len);
static void referral_token_blocks(SHA256_CTX *ctx, const u_char *text,
    size_t len);
static u_char *referral_token_touch(u_char *p, const referral_touch_t *touch);
static int referral_token_split(const u_char *text, size_t len,
    referral_str_t *fields);
static int referral_token_fields(const referral_str_t *fields,
    referral_token_t *token);
static int referral_token_read_touch(referral_touch_t *touch,
    const referral_str_t *code, const referral_str_t *click);
static int referral_token_read_id(u_char *id, const referral_str_t *field);


static const u_char  referral_base64url[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";


static const char  *referral_token_words[] = {
    "valid",
    "malformed",
    "unknown-key",
    "forged",
    "expired"
};


const char *
referral_token_result_word(referral_token_result_e result)
{
    return (unsigned) result <= REFERRAL_TOKEN_EXPIRED
           ? referral_token_words[result] : "";
}


int
referral_keyring_parse(referral_keyring_t *ring, const u_char *text,
    size_t len, char *error)
{
    size_t         i, n, end;
    unsigned       line;
    const u_char  *eol;

    ring->n = 0;

    line = 0;

    for (i = 0; i < len; i = end + 1) {
        line++;

        eol = memchr(&text[i], '\n', len - i);
        end = eol == NULL ? len : (size_t) (eol - text);

        n = end - i;

        while (n && (text[i + n - 1] == '\r' || text[i + n - 1] == ' '
                     || text[i + n - 1] == '\t'))
        {
            n--;
        }

        if (n == 0 || text[i] == '#') {
            continue;
        }

        if (referral_keyring_line(ring, &text[i], n, line, error)
            != REFERRAL_OK)
        {
            OPENSSL_cleanse(ring, sizeof(referral_keyring_t));
            return REFERRAL_ERROR;
        }
    }

    if (ring->n == 0) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "no key found, lines of the form id:base64 are "
                        "expected");
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


static int
referral_keyring_line(referral_keyring_t *ring, const u_char *p, size_t len,
    unsigned line, char *error)
{
    int            rc;
    size_t         i, n, id_len;
    u_char         secret[REFERRAL_KEY_MAX];
    const u_char  *colon;

    if (ring->n == REFERRAL_KEYS_MAX) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "line %u: more than %d keys", line,
                        REFERRAL_KEYS_MAX);
        return REFERRAL_ERROR;
    }

    colon = memchr(p, ':', len);

    if (colon == NULL) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "line %u: no \":\", id:base64 is expected", line);
        return REFERRAL_ERROR;
    }

    id_len = (size_t) (colon - p);

    if (!referral_key_id_valid(p, id_len)) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "line %u: the key id must be 1 to %d of A-Z, a-z, "
                        "0-9, _ and -", line, REFERRAL_KEY_ID_LEN);
        return REFERRAL_ERROR;
    }

    for (i = 0; i < ring->n; i++) {
        if (ring->keys[i].id_len == id_len
            && memcmp(ring->keys[i].id, p, id_len) == 0)
        {
            (void) snprintf(error, REFERRAL_ERROR_LEN,
                            "line %u: a key above has the same id", line);
            return REFERRAL_ERROR;
        }
    }

    rc = referral_base64_decode(secret, sizeof(secret), colon + 1,
                                len - id_len - 1, &n);

    if (rc != REFERRAL_OK) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "line %u: the secret is not valid base64", line);

    } else if (n < REFERRAL_KEY_MIN || n > REFERRAL_KEY_MAX) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "line %u: the secret has %zu bytes, %d to %d are "
                        "needed", line, n, REFERRAL_KEY_MIN,
                        REFERRAL_KEY_MAX);
        rc = REFERRAL_ERROR;

    } else {
        referral_key_init(&ring->keys[ring->n++], p, id_len, secret, n);
    }

    OPENSSL_cleanse(secret, sizeof(secret));

    return rc;
}


static int
referral_key_id_valid(const u_char *id, size_t len)
{
    size_t  i;

    if (len == 0 || len > REFERRAL_KEY_ID_LEN) {
        return 0;
    }

    for (i = 0; i < len; i++) {

        if (!((id[i] >= 'A' && id[i] <= 'Z') || (id[i] >= 'a' && id[i] <= 'z')
              || (id[i] >= '0' && id[i] <= '9')
              || id[i] == '_' || id[i] == '-'))
        {
            return 0;
        }
    }

    return 1;
}


/*
 * Either alphabet, padding optional, spare bits must be zero: a secret that
 * lost its end is refused.  *decoded may be more than size, then only size
 * bytes were written.
 */

static int
referral_base64_decode(u_char *dst, size_t size, const u_char *src,
    size_t len, size_t *decoded)
{
    int       value;
    size_t    i, n;
    unsigned  bits, nbits;

    if (len && len % 4 == 0 && src[len - 1] == '=') {
        len -= src[len - 2] == '=' ? 2 : 1;
    }

    n = 0;
    bits = 0;
    nbits = 0;

    for (i = 0; i < len; i++) {
        value = referral_base64_value(src[i]);

        if (value < 0) {
            return REFERRAL_ERROR;
        }

        bits = (bits << 6 | (unsigned) value) & 0xffff;
        nbits += 6;

        if (nbits >= 8) {
            nbits -= 8;

            if (n < size) {
                dst[n] = (u_char) (bits >> nbits);
            }

            n++;
        }
    }

    *decoded = n;

    return (nbits == 6 || (bits & ((1U << nbits) - 1)) != 0) ? REFERRAL_ERROR
                                                             : REFERRAL_OK;
}


static int
referral_base64_value(u_char ch)
{
    if (ch >= 'A' && ch <= 'Z') {
        return ch - 'A';
    }

    if (ch >= 'a' && ch <= 'z') {
        return ch - 'a' + 26;
    }

    if (ch >= '0' && ch <= '9') {
        return ch - '0' + 52;
    }

    if (ch == '-' || ch == '+') {
        return 62;
    }

    return (ch == '_' || ch == '/') ? 63 : -1;
}


static void
referral_key_init(referral_key_t *key, const u_char *id, size_t id_len,
    const u_char *secret, size_t len)
{
    size_t  i;
    u_char  block[SHA256_CBLOCK];

    memcpy(key->id, id, id_len);
    key->id_len = id_len;

    memset(block, 0x36, sizeof(block));

    for (i = 0; i < len; i++) {
        block[i] ^= secret[i];
    }

    SHA256_Init(&key->inner);
    SHA256_Update(&key->inner, block, sizeof(block));

    for (i = 0; i < sizeof(block); i++) {
        block[i] ^= 0x36 ^ 0x5c;
    }

    SHA256_Init(&key->outer);
    SHA256_Update(&key->outer, block, sizeof(block));

    OPENSSL_cleanse(block, sizeof(block));
}


/*
 * HMAC (RFC 2104), its blocks padded here: SHA256_Update() and _Final() would
 * copy and clear buffers for a third of what the three blocks of a token take
 * on a processor with instructions for them.
 */

void
referral_token_mac(const referral_key_t *key, const u_char *text, size_t len,
    u_char mac[16])
{
    size_t      i;
    u_char      digest[SHA256_DIGEST_LENGTH];
    uint32_t    word;
    SHA256_CTX  ctx;

    ctx = key->inner;
    referral_token_blocks(&ctx, text, len);

    for (i = 0; i < 8; i++) {
        word = htobe32(ctx.h[i]);
        memcpy(&digest[4 * i], &word, 4);
    }

    ctx = key->outer;
    referral_token_blocks(&ctx, digest, sizeof(digest));

    for (i = 0; i < REFERRAL_TOKEN_MAC / 4; i++) {
        word = htobe32(ctx.h[i]);
        memcpy(&mac[4 * i], &word, 4);
    }
}


/* the last blocks of a message whose first was the key's (FIPS 180-4, 5.1) */

static void
referral_token_blocks(SHA256_CTX *ctx, const u_char *text, size_t len)
{
    size_t    n;
    u_char    block[2 * SHA256_CBLOCK];
    uint64_t  bits;

    bits = htobe64((uint64_t) (SHA256_CBLOCK + len) * 8);

    for ( /* void */ ; len >= SHA256_CBLOCK; len -= SHA256_CBLOCK) {
        SHA256_Transform(ctx, text);
        text += SHA256_CBLOCK;
    }

    n = len + 1 + sizeof(bits) > SHA256_CBLOCK ? 2 * SHA256_CBLOCK
                                               : SHA256_CBLOCK;

    memset(block, 0, sizeof(block));
    memcpy(block, text, len);
    block[len] = 0x80;
    memcpy(&block[n - sizeof(bits)], &bits, sizeof(bits));

    SHA256_Transform(ctx, block);

    if (n > SHA256_CBLOCK) {
        SHA256_Transform(ctx, &block[SHA256_CBLOCK]);
    }
}


size_t
referral_token_make(const referral_keyring_t *ring,
    const referral_token_t *token, u_char *text)
{
    size_t                 i;
    u_char                *p, *first, mac[REFERRAL_TOKEN_MAC];
    unsigned               bits;
    const referral_key_t  *key;

    key = &ring->keys[0];
    p = text;

    *p++ = 'v';
    *p++ = '1';
    *p++ = '.';

    memcpy(p, key->id, key->id_len);
    p += key->id_len;

    first = p;
    p = referral_token_touch(p, &token->first);

    /* of a new visitor both are the same */

    if (memcmp(&token->first, &token->last, sizeof(referral_touch_t)) == 0) {
        p = mempcpy(p, first, (size_t) (p - first));

    } else {
        p = referral_token_touch(p, &token->last);
    }

    *p++ = '.';

    if (token->has_visitor) {
        referral_uuid_hex(token->visitor, p);
        p += REFERRAL_UUID_HEX_LEN;
    }

    referral_token_mac(key, text, (size_t) (p - text), mac);

    *p++ = '.';

    for (i = 0; i < REFERRAL_TOKEN_MAC - 1; i += 3) {
        bits = (unsigned) mac[i] << 16 | (unsigned) mac[i + 1] << 8
               | mac[i + 2];

        *p++ = referral_base64url[bits >> 18];
        *p++ = referral_base64url[bits >> 12 & 0x3f];
        *p++ = referral_base64url[bits >> 6 & 0x3f];
        *p++ = referral_base64url[bits & 0x3f];
    }

    *p++ = referral_base64url[mac[i] >> 2];
    *p++ = referral_base64url[mac[i] << 4 & 0x3f];

    return (size_t) (p - text);
}


static u_char *
referral_token_touch(u_char *p, const referral_touch_t *touch)
{
    *p++ = '.';

    memcpy(p, touch->code, touch->code_len);
    p += touch->code_len;

    *p++ = '.';

    referral_uuid_hex(touch->click, p);

    return p + REFERRAL_UUID_HEX_LEN;
}


referral_token_result_e
referral_token_verify(const referral_keyring_t *ring, const u_char *text,
    size_t len, uint64_t now, uint64_t max_age, referral_token_t *token)
{
    size_t             i, n;
    u_char             sent[REFERRAL_TOKEN_MAC], mac[REFERRAL_TOKEN_MAC];
    uint64_t           first, last;
    referral_str_t     fields[REFERRAL_TOKEN_FIELDS];
    referral_token_t   t;

    if (referral_token_split(text, len, fields) != REFERRAL_OK
        || referral_token_fields(fields, &t) != REFERRAL_OK
        || fields[7].len != REFERRAL_TOKEN_MAC_LEN
        || memchr(fields[7].data, '+', REFERRAL_TOKEN_MAC_LEN) != NULL
        || memchr(fields[7].data, '/', REFERRAL_TOKEN_MAC_LEN) != NULL
        || referral_base64_decode(sent, sizeof(sent), fields[7].data,
                                  fields[7].len, &n)
           != REFERRAL_OK)
    {
        return REFERRAL_TOKEN_MALFORMED;
    }

    for (i = 0; i < ring->n; i++) {
        if (ring->keys[i].id_len == fields[1].len
            && memcmp(ring->keys[i].id, fields[1].data, fields[1].len) == 0)
        {
            break;
        }
    }

    if (i == ring->n) {
        return REFERRAL_TOKEN_UNKNOWN_KEY;
    }

    t.key = (unsigned) i;

    referral_token_mac(&ring->keys[i], text,
                       (size_t) (fields[7].data - 1 - text), mac);

    if (CRYPTO_memcmp(mac, sent, REFERRAL_TOKEN_MAC) != 0) {
        return REFERRAL_TOKEN_FORGED;
    }

    first = referral_uuid_time(t.first.click);
    last = referral_uuid_time(t.last.click);

    if (last > now && last - now > REFERRAL_TOKEN_FUTURE) {
        return REFERRAL_TOKEN_EXPIRED;
    }

    if (max_age) {

        if (last < now && now - last > max_age) {
            return REFERRAL_TOKEN_EXPIRED;
        }

        if (first < now && now - first > max_age) {
            t.first = t.last;
        }
    }

    *token = t;

    return REFERRAL_TOKEN_VALID;
}


static int
referral_token_split(const u_char *text, size_t len, referral_str_t *fields)
{
    size_t   i;
    u_char  *p, *last, *dot;

    if (len == 0 || len > REFERRAL_TOKEN_MAX) {
        return REFERRAL_DECLINED;
    }

    p = (u_char *) text;
    last = p + len;

    for (i = 0; i < REFERRAL_TOKEN_FIELDS - 1; i++) {
        dot = p < last ? memchr(p, '.', (size_t) (last - p)) : NULL;

        if (dot == NULL) {
            return REFERRAL_DECLINED;
        }

        fields[i].data = p;
        fields[i].len = (size_t) (dot - p);

        p = dot + 1;
    }

    /* a dot too many makes the last field no mac */

    fields[i].data = p;
    fields[i].len = (size_t) (last - p);

    return REFERRAL_OK;
}


static int
referral_token_fields(const referral_str_t *fields, referral_token_t *token)
{
    memset(token, 0, sizeof(referral_token_t));

    if (fields[0].len != 2 || memcmp(fields[0].data, "v1", 2) != 0
        || !referral_key_id_valid(fields[1].data, fields[1].len)
        || referral_token_read_touch(&token->first, &fields[2], &fields[3])
           != REFERRAL_OK
        || referral_token_read_touch(&token->last, &fields[4], &fields[5])
           != REFERRAL_OK)
    {
        return REFERRAL_DECLINED;
    }

    if (fields[6].len == 0) {
        return REFERRAL_OK;
    }

    token->has_visitor = 1;

    return referral_token_read_id(token->visitor, &fields[6]);
}


static int
referral_token_read_touch(referral_touch_t *touch, const referral_str_t *code,
    const referral_str_t *click)
{
    if (referral_code_fold(code->data, code->len, touch->code) < 0
        || memcmp(touch->code, code->data, code->len) != 0
        || referral_token_read_id(touch->click, click) != REFERRAL_OK
        || referral_uuid_time(touch->click) == 0)
    {
        return REFERRAL_DECLINED;
    }

    touch->code_len = (uint8_t) code->len;

    return REFERRAL_OK;
}


static int
referral_token_read_id(u_char *id, const referral_str_t *field)
{
    size_t  i;

    if (field->len != REFERRAL_UUID_HEX_LEN) {
        return REFERRAL_DECLINED;
    }

    for (i = 0; i < field->len; i++) {
        if (field->data[i] >= 'A' && field->data[i] <= 'F') {
            return REFERRAL_DECLINED;
        }
    }

    return referral_uuid_parse(field->data, field->len, id);
}
