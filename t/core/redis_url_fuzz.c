
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdlib.h>
#include <string.h>

#include "referral_redis_url.h"


#define check(condition)  if (!(condition)) abort()


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
static void fuzz_with_secret(const uint8_t *data, size_t size);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int                   rc;
    char                  error[REFERRAL_ERROR_LEN];
    referral_redis_url_t  u, again;

    memset(error, 0x7f, sizeof(error));

    rc = referral_redis_url_parse(&u, data, size, error);

    if (rc != REFERRAL_OK) {
        check(rc == REFERRAL_ERROR);
        check(memchr(error, '\0', sizeof(error)) != NULL);

    } else {
        check((u.host[0] == '\0') != (u.path[0] == '\0'));
        check(u.path[0] == '\0' || u.path[0] == '/');
        check(u.path[0] != '\0' || u.port != 0);

        /* what is shown leads to the same server */

        check(referral_redis_url_parse(&again, (u_char *) u.display,
                                       strlen(u.display), error)
              == REFERRAL_OK);
        check(strcmp(u.host, again.host) == 0);
        check(strcmp(u.path, again.path) == 0);
        check(u.port == again.port && u.db == again.db);
        check(again.user[0] == '\0' && again.password[0] == '\0');
        check(strcmp(u.display, again.display) == 0);
    }

    fuzz_with_secret(data, size);

    return 0;
}


/* the input around a password */

static void
fuzz_with_secret(const uint8_t *data, size_t size)
{
    char                  text[1024], error[REFERRAL_ERROR_LEN];
    size_t                n, len;
    referral_redis_url_t  u;

    static const char  secret[] = "Zq8#hunter2#Zq8";

    /* the fuzzer learns the word from the searches below */

    if (size == 0 || size > 512 || memmem(data, size, "hunter2", 7) != NULL) {
        return;
    }

    n = data[0] % size;

    memcpy(text, "redis://edge:", 13);
    memcpy(text + 13, data, n);
    memcpy(text + 13 + n, secret, sizeof(secret) - 1);
    len = 13 + n + sizeof(secret) - 1;
    memcpy(text + len, data + n, size - n);
    len += size - n;

    if (referral_redis_url_parse(&u, (u_char *) text, len, error)
        == REFERRAL_OK)
    {
        check(strstr(u.display, "hunter2") == NULL);
        return;
    }

    check(strstr(error, "hunter2") == NULL);
}
