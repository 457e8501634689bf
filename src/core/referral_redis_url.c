
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_redis_url.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <arpa/inet.h>


#define REFERRAL_REDIS_PORT  6379


static int referral_redis_url_unix(referral_redis_url_t *u, const u_char *p,
    size_t len, char *error);
static int referral_redis_url_tcp(referral_redis_url_t *u, const u_char *p,
    size_t len, char *error);
static int referral_redis_url_user(referral_redis_url_t *u, const u_char *p,
    size_t len, char *error);
static int referral_redis_url_host(referral_redis_url_t *u, const u_char *p,
    size_t len, char *error);
static int referral_redis_url_decode(char *dst, size_t size, const u_char *p,
    size_t len);
static int referral_redis_url_number(const u_char *p, size_t len,
    unsigned max, unsigned *number);


int
referral_redis_url_parse(referral_redis_url_t *u, const u_char *text,
    size_t len, char *error)
{
    size_t  i;

    memset(u, 0, sizeof(referral_redis_url_t));

    for (i = 0; i < len; i++) {
        if (text[i] < 0x21 || text[i] == 0x7f) {
            (void) snprintf(error, REFERRAL_ERROR_LEN,
                            "a space or control character at byte %zu of the "
                            "address of Redis", i);
            return REFERRAL_ERROR;
        }
    }

    if (len >= 5 && strncasecmp((const char *) text, "unix:", 5) == 0) {
        return referral_redis_url_unix(u, text + 5, len - 5, error);
    }

    if (len >= 8 && strncasecmp((const char *) text, "redis://", 8) == 0) {
        return referral_redis_url_tcp(u, text + 8, len - 8, error);
    }

    if (len >= 9 && strncasecmp((const char *) text, "rediss://", 9) == 0) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "rediss:// (TLS) is not supported, use redis:// to a "
                        "local TLS proxy, or unix:");
        return REFERRAL_ERROR;
    }

    (void) snprintf(error, REFERRAL_ERROR_LEN,
                    "the address of Redis must be "
                    "redis://[user[:password]@]host[:port][/db] or "
                    "unix:/path[:db]");

    return REFERRAL_ERROR;
}


static int
referral_redis_url_unix(referral_redis_url_t *u, const u_char *p, size_t len,
    char *error)
{
    size_t         n;
    const u_char  *slash, *colon;

    if (len == 0 || p[0] != '/') {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "the path of Redis' unix socket must begin with /");
        return REFERRAL_ERROR;
    }

    slash = memrchr(p, '/', len);
    colon = memchr(slash, ':', len - (size_t) (slash - p));
    n = colon == NULL ? len : (size_t) (colon - p);

    if (slash + 1 == p + n) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "the path of Redis' unix socket has no file name");
        return REFERRAL_ERROR;
    }

    if (n >= sizeof(u->path)) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "the path of Redis' unix socket has %zu bytes, at "
                        "most %zu are possible", n, sizeof(u->path) - 1);
        return REFERRAL_ERROR;
    }

    if (colon != NULL
        && !referral_redis_url_number(colon + 1, len - n - 1, INT32_MAX,
                                      &u->db))
    {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "the database after the path of Redis' unix socket "
                        "must be a number, unix:/path:db");
        return REFERRAL_ERROR;
    }

    memcpy(u->path, p, n);

    (void) snprintf(u->display, sizeof(u->display),
                    u->db ? "unix:%s:%u" : "unix:%s", u->path, u->db);

    return REFERRAL_OK;
}


static int
referral_redis_url_tcp(referral_redis_url_t *u, const u_char *p, size_t len,
    char *error)
{
    size_t         n;
    const u_char  *at, *slash;

    slash = memchr(p, '/', len);
    n = slash == NULL ? len : (size_t) (slash - p);

    if (slash != NULL && n + 1 < len
        && !referral_redis_url_number(slash + 1, len - n - 1, INT32_MAX,
                                      &u->db))
    {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "the database after the host of Redis must be a "
                        "number; in user and password / is written %%2F");
        return REFERRAL_ERROR;
    }

    at = n ? memrchr(p, '@', n) : NULL;

    if (at != NULL) {

        if (referral_redis_url_user(u, p, (size_t) (at - p), error)
            != REFERRAL_OK)
        {
            return REFERRAL_ERROR;
        }

        n -= (size_t) (at + 1 - p);
        p = at + 1;
    }

    if (referral_redis_url_host(u, p, n, error) != REFERRAL_OK) {
        memset(u, 0, sizeof(referral_redis_url_t));
        return REFERRAL_ERROR;
    }

    n = (size_t) snprintf(u->display, sizeof(u->display),
                          strchr(u->host, ':') == NULL ? "redis://%s:%u"
                                                       : "redis://[%s]:%u",
                          u->host, u->port);

    if (u->db) {
        (void) snprintf(u->display + n, sizeof(u->display) - n, "/%u", u->db);
    }

    return REFERRAL_OK;
}


static int
referral_redis_url_user(referral_redis_url_t *u, const u_char *p, size_t len,
    char *error)
{
    size_t         n;
    const u_char  *colon;

    colon = memchr(p, ':', len);
    n = colon == NULL ? len : (size_t) (colon - p);

    if (!referral_redis_url_decode(u->user, sizeof(u->user), p, n)) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "the user for Redis must have at most %zu bytes and "
                        "no broken %% sequence", sizeof(u->user) - 1);
        return REFERRAL_ERROR;
    }

    if (colon != NULL
        && !referral_redis_url_decode(u->password, sizeof(u->password),
                                      colon + 1, len - n - 1))
    {
        memset(u, 0, sizeof(referral_redis_url_t));
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "the password for Redis must have at most %zu bytes "
                        "and no broken %% sequence",
                        sizeof(u->password) - 1);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


/*
 * What fails here may be the rest of a password that was not encoded, so no
 * message repeats it.
 */

static int
referral_redis_url_host(referral_redis_url_t *u, const u_char *p, size_t len,
    char *error)
{
    u_char         ch, address[16];
    size_t         i, n;
    unsigned       port;
    const u_char  *host;

    host = p;

    if (len && p[0] == '[') {

        for (i = 1; i < len && p[i] != ']'; i++) { /* void */ }

        host = p + 1;
        n = i - 1;

        if (i == len || n >= INET6_ADDRSTRLEN) {
            goto host;
        }

        memcpy(u->host, host, n);

        if (inet_pton(AF_INET6, u->host, address) != 1) {
            goto host;
        }

        i++;

    } else {

        for (i = 0; i < len && p[i] != ':'; i++) {
            ch = p[i];

            if (!((ch >= '0' && ch <= '9')
                  || ((ch | 0x20) >= 'a' && (ch | 0x20) <= 'z')
                  || ch == '-' || ch == '_' || ch == '.'))
            {
                goto host;
            }
        }

        if (i == 0 || i >= sizeof(u->host)) {
            goto host;
        }

        memcpy(u->host, host, i);
    }

    port = REFERRAL_REDIS_PORT;

    if (i < len
        && (p[i] != ':'
            || !referral_redis_url_number(&p[i + 1], len - i - 1, 65535,
                                          &port)
            || port == 0))
    {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "the port of Redis must be 1 to 65535; in user and "
                        "password @ : / are written %%40 %%3A %%2F");
        return REFERRAL_ERROR;
    }

    u->port = (uint16_t) port;

    return REFERRAL_OK;

host:

    (void) snprintf(error, REFERRAL_ERROR_LEN,
                    "the host of Redis must be a name, an IPv4 address or an "
                    "IPv6 address in brackets; in user and password @ : / "
                    "are written %%40 %%3A %%2F");

    return REFERRAL_ERROR;
}


static int
referral_redis_url_decode(char *dst, size_t size, const u_char *p, size_t len)
{
    int     high, low;
    size_t  i, n;

    n = 0;

    for (i = 0; i < len; i++) {

        if (n == size - 1) {
            return 0;
        }

        if (p[i] != '%') {
            dst[n++] = (char) p[i];
            continue;
        }

        if (len - i < 3) {
            return 0;
        }

        high = referral_hex_digit(p[i + 1]);
        low = referral_hex_digit(p[i + 2]);

        if (high < 0 || low < 0 || (high | low) == 0) {
            return 0;
        }

        dst[n++] = (char) (high << 4 | low);
        i += 2;
    }

    dst[n] = '\0';

    return 1;
}


static int
referral_redis_url_number(const u_char *p, size_t len, unsigned max,
    unsigned *number)
{
    size_t    i;
    uint64_t  n;

    if (len == 0 || len > 10) {
        return 0;
    }

    n = 0;

    for (i = 0; i < len; i++) {

        if (p[i] < '0' || p[i] > '9') {
            return 0;
        }

        n = n * 10 + (uint64_t) (p[i] - '0');
    }

    if (n > max) {
        return 0;
    }

    *number = (unsigned) n;

    return 1;
}


int
referral_redis_url_password(referral_redis_url_t *u, const char *path,
    char *error)
{
    int    failed;
    FILE  *f;

    f = fopen(path, "re");

    if (f == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN, "%.256s: %s", path,
                 strerror(errno));
        return REFERRAL_ERROR;
    }

    failed = (fgets(u->password, sizeof(u->password), f) == NULL);
    fclose(f);

    if (failed) {
        u->password[0] = '\0';

    } else if (strlen(u->password) == sizeof(u->password) - 1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "%.256s: its first line is too long", path);
        return REFERRAL_ERROR;
    }

    u->password[strcspn(u->password, "\r\n")] = '\0';

    if (u->password[0] == '\0') {
        snprintf(error, REFERRAL_ERROR_LEN, "%.256s: its first line is empty",
                 path);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}
