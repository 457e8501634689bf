
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "referral_redis_reply.h"
#include "referral_redis_url.h"


static void redis_url_hosts(void **state);
static void redis_url_users(void **state);
static void redis_url_sockets(void **state);
static void redis_url_refused(void **state);
static void redis_url_keeps_secrets(void **state);
static void redis_url_lengths(void **state);
static int parse(referral_redis_url_t *u, const char *text);


static char  error[REFERRAL_ERROR_LEN];


static int
parse(referral_redis_url_t *u, const char *text)
{
    error[0] = '\0';

    return referral_redis_url_parse(u, (u_char *) text, strlen(text), error);
}


static void
redis_url_hosts(void **state)
{
    size_t                i;
    referral_redis_url_t  u;

    static const struct {
        const char  *text;
        const char  *host;
        unsigned     port;
        unsigned     db;
        const char  *display;
    } urls[] = {
        { "redis://localhost", "localhost", 6379, 0,
          "redis://localhost:6379" },
        { "REDIS://127.0.0.1:7000", "127.0.0.1", 7000, 0,
          "redis://127.0.0.1:7000" },
        { "redis://redis-1.example/", "redis-1.example", 6379, 0,
          "redis://redis-1.example:6379" },
        { "redis://a_b:65535/15", "a_b", 65535, 15, "redis://a_b:65535/15" },
        { "redis://h/2147483647", "h", 6379, 2147483647,
          "redis://h:6379/2147483647" },
        { "redis://[::1]", "::1", 6379, 0, "redis://[::1]:6379" },
        { "redis://[2001:db8::1]:1/2", "2001:db8::1", 1, 2,
          "redis://[2001:db8::1]:1/2" }
    };

    for (i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {

        if (parse(&u, urls[i].text) != REFERRAL_OK) {
            fail_msg("%s: %s", urls[i].text, error);
        }

        assert_string_equal(u.host, urls[i].host);
        assert_int_equal(u.port, urls[i].port);
        assert_int_equal(u.db, urls[i].db);
        assert_string_equal(u.display, urls[i].display);
        assert_string_equal(u.path, "");
        assert_string_equal(u.user, "");
        assert_string_equal(u.password, "");
    }
}


static void
redis_url_users(void **state)
{
    size_t                i;
    referral_redis_url_t  u;

    static const char  *urls[][3] = {
        { "redis://:secret@h", "", "secret" },
        { "redis://edge:secret@h", "edge", "secret" },
        { "redis://edge@h", "edge", "" },
        { "redis://edge:@h", "edge", "" },
        { "redis://@h", "", "" },
        { "redis://e%64ge:p%40%3a%2F%25@h", "edge", "p@:/%" },
        { "redis://edge:a:b@h", "edge", "a:b" },
        { "redis://edge:a@b@h", "edge", "a@b" },
        { "redis://:%0a@h", "", "\n" }
    };

    for (i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {

        if (parse(&u, urls[i][0]) != REFERRAL_OK) {
            fail_msg("%s: %s", urls[i][0], error);
        }

        assert_string_equal(u.user, urls[i][1]);
        assert_string_equal(u.password, urls[i][2]);
        assert_string_equal(u.host, "h");
        assert_string_equal(u.display, "redis://h:6379");
    }
}


static void
redis_url_sockets(void **state)
{
    size_t                i;
    referral_redis_url_t  u;

    static const struct {
        const char  *text;
        const char  *path;
        unsigned     db;
        const char  *display;
    } urls[] = {
        { "unix:/run/redis/redis.sock", "/run/redis/redis.sock", 0,
          "unix:/run/redis/redis.sock" },
        { "unix:/run/redis.sock:3", "/run/redis.sock", 3,
          "unix:/run/redis.sock:3" },
        { "unix:/run/redis.sock:0", "/run/redis.sock", 0,
          "unix:/run/redis.sock" },
        { "unix:/run/a:b/redis.sock", "/run/a:b/redis.sock", 0,
          "unix:/run/a:b/redis.sock" },
        { "unix:///run/redis.sock", "///run/redis.sock", 0,
          "unix:///run/redis.sock" }
    };

    for (i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {

        if (parse(&u, urls[i].text) != REFERRAL_OK) {
            fail_msg("%s: %s", urls[i].text, error);
        }

        assert_string_equal(u.path, urls[i].path);
        assert_int_equal(u.db, urls[i].db);
        assert_string_equal(u.display, urls[i].display);
        assert_string_equal(u.host, "");
    }
}


static void
redis_url_refused(void **state)
{
    size_t                i;
    referral_redis_url_t  u;

    static const char  *bad[][2] = {
        { "", "must be redis://" },
        { "localhost:6379", "must be redis://" },
        { "http://localhost", "must be redis://" },
        { "redis:localhost", "must be redis://" },
        { "rediss://localhost", "TLS" },
        { "redis://", "host" },
        { "redis://:6379", "host" },
        { "redis:///0", "host" },
        { "redis://user@", "host" },
        { "redis://ho%73t", "host" },
        { "redis://h?db=1", "host" },
        { "redis://::1", "host" },
        { "redis://[::1", "host" },
        { "redis://[", "host" },
        { "redis://[]", "host" },
        { "redis://[127.0.0.1]", "host" },
        { "redis://[::1]6379", "port" },
        { "redis://h:", "port" },
        { "redis://h:0", "port" },
        { "redis://h:65536", "port" },
        { "redis://h:99999999999999999999", "port" },
        { "redis://h:+1", "port" },
        { "redis://h:63a", "port" },
        { "redis://h/x", "database" },
        { "redis://h/-1", "database" },
        { "redis://h/1/", "database" },
        { "redis://h/2147483648", "database" },
        { "redis://h/00000000001", "database" },
        { "redis://h ", "byte 9" },
        { "redis://h\r\n", "byte 9" },
        { "redis://us\ter@h", "byte 10" },
        { "redis://%zz@h", "user" },
        { "redis://:%4@h", "password" },
        { "redis://:a%00b@h", "password" },
        { "unix:", "begin with /" },
        { "unix:redis.sock", "begin with /" },
        { "unix:/", "file name" },
        { "unix:/run/", "file name" },
        { "unix:/run/:1", "file name" },
        { "unix:/run/redis.sock:", "database" },
        { "unix:/run/redis.sock:x", "database" },
        { "unix:/run/redis.sock:1:2", "database" }
    };

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {

        if (parse(&u, bad[i][0]) != REFERRAL_ERROR) {
            fail_msg("accepted: %s", bad[i][0]);
        }

        if (strstr(error, bad[i][1]) == NULL) {
            fail_msg("%s: \"%s\", not \"%s\"", bad[i][0], error, bad[i][1]);
        }
    }

    assert_int_equal(referral_redis_url_parse(&u, (u_char *) "redis://h\0", 10,
                                              error), REFERRAL_ERROR);
    assert_int_equal(referral_redis_url_parse(&u, NULL, 0, error),
                     REFERRAL_ERROR);
}


/* a password that was not encoded ends anywhere, but not in a message */

static void
redis_url_keeps_secrets(void **state)
{
    size_t                i;
    referral_redis_url_t  u;

    static const char  *bad[] = {
        "redis://edge:hunter2/x@h",
        "redis://edge:a/hunter2@h",
        "redis://edge:hunter2",
        "redis://edge:%hunter2@h",
        "redis://:hunter2@h:x",
        "redis://:hunter2@h:1/x",
        "redis://:hunter2@",
        "redis://:hun\ter2@h hunter2",
        "redis://hunter2?@h?hunter2",
        "rediss://:hunter2@h",
        "http://:hunter2@h"
    };

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(parse(&u, bad[i]), REFERRAL_ERROR);
        assert_int_not_equal(error[0], '\0');
        assert_null(strstr(error, "hunter2"));
    }

    assert_int_equal(parse(&u, "redis://hunter2:hunter2@h"), REFERRAL_OK);
    assert_null(strstr(u.display, "hunter2"));
}


static void
redis_url_lengths(void **state)
{
    char                  text[1024];
    referral_redis_url_t  u;

    memset(text, 'x', sizeof(text));
    memcpy(text, "redis://", 8);
    text[8 + 255] = '\0';
    assert_int_equal(parse(&u, text), REFERRAL_OK);
    assert_int_equal(strlen(u.host), 255);
    assert_int_equal(strlen(u.display), 8 + 255 + 5);

    text[8 + 255] = 'x';
    text[8 + 256] = '\0';
    assert_int_equal(parse(&u, text), REFERRAL_ERROR);

    memset(text, 'x', sizeof(text));
    memcpy(text, "unix:/", 6);
    text[5 + 107] = '\0';
    assert_int_equal(parse(&u, text), REFERRAL_OK);
    assert_int_equal(strlen(u.path), 107);

    text[5 + 107] = 'x';
    text[5 + 108] = '\0';
    assert_int_equal(parse(&u, text), REFERRAL_ERROR);

    memset(text, 'x', sizeof(text));
    memcpy(text, "redis://:", 9);
    memcpy(text + 9 + 255, "@h", 3);
    assert_int_equal(parse(&u, text), REFERRAL_OK);
    assert_int_equal(strlen(u.password), 255);

    memset(text, 'x', sizeof(text));
    memcpy(text, "redis://:", 9);
    memcpy(text + 9 + 256, "@h", 3);
    assert_int_equal(parse(&u, text), REFERRAL_ERROR);

    memset(text, 'x', sizeof(text));
    memcpy(text, "redis://", 8);
    memcpy(text + 8 + 128, ":p@h", 5);
    assert_int_equal(parse(&u, text), REFERRAL_ERROR);
}


static void
redis_url_password(void **state)
{
    int                    fd;
    char                   error[REFERRAL_ERROR_LEN], name[] = "/tmp/pwXXXXXX";
    char                   full[300];
    size_t                 i;
    referral_redis_url_t   u;

    static const struct {
        const char        *text;
        const char        *password;       /* NULL: refused */
    } files[] = {
        { "geheim\n", "geheim" },
        { "geheim", "geheim" },
        { "ge heim\r\nmore\n", "ge heim" },
        { "", NULL },
        { "\n", NULL },
        { "\ngeheim\n", NULL }
    };

    memset(&u, 0, sizeof(u));

    fd = mkstemp(name);
    assert_true(fd >= 0);

    for (i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_true(pwrite(fd, files[i].text, strlen(files[i].text), 0)
                    == (ssize_t) strlen(files[i].text));

        if (files[i].password == NULL) {
            assert_int_equal(referral_redis_url_password(&u, name, error),
                             REFERRAL_ERROR);
            assert_non_null(strstr(error, name));
            continue;
        }

        assert_int_equal(referral_redis_url_password(&u, name, error),
                         REFERRAL_OK);
        assert_string_equal(u.password, files[i].password);
    }

    /* a secret that does not fit is not cut */

    memset(full, 'x', sizeof(full));
    assert_true(pwrite(fd, full, sizeof(full), 0) == sizeof(full));
    assert_int_equal(referral_redis_url_password(&u, name, error),
                     REFERRAL_ERROR);
    assert_null(strstr(error, "xxx"));

    close(fd);
    unlink(name);

    assert_int_equal(referral_redis_url_password(&u, name, error),
                     REFERRAL_ERROR);
}


static void
redis_reply_advice(void **state)
{
    assert_non_null(strstr(referral_redis_advice("NOAUTH Authentication"
                                                 " required."), "password"));
    assert_non_null(strstr(referral_redis_advice("READONLY You can't write"),
                           "master"));
    assert_non_null(strstr(referral_redis_advice("OOM command not allowed"),
                           "maxmemory"));
    assert_null(referral_redis_advice("ERR unknown command"));
    assert_null(referral_redis_advice(""));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(redis_url_hosts),
        cmocka_unit_test(redis_url_users),
        cmocka_unit_test(redis_url_sockets),
        cmocka_unit_test(redis_url_refused),
        cmocka_unit_test(redis_url_keeps_secrets),
        cmocka_unit_test(redis_url_lengths),
        cmocka_unit_test(redis_url_password),
        cmocka_unit_test(redis_reply_advice)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
