
/*
 * Copyright (C) The nginx referral module authors
 *
 * The end of a full publish: keys of Redis that are no published codes.  What
 * has a code_id came from a database, and goes; what has none was written by
 * hand, and stays.
 */


#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "referral_code.h"
#include "publish_private.h"


#define REFERRAL_PUBLISH_COUNT   "2000"    /* keys of a slice, about */
#define REFERRAL_PUBLISH_PREFIX  "referral:code:"


static int referral_publish_names(referral_publish_t *p,
    const redisReply *keys, char **list, uint64_t *n);
static int referral_publish_strays(referral_publish_t *p,
    const PGresult *res);


int
referral_publish_search(referral_publish_t *p, unsigned *done)
{
    int          rc;
    char        *list;
    uint64_t     n;
    PGresult    *res;
    redisReply  *reply;
    const char  *words[6], *values[1];

    words[0] = "SCAN";
    words[1] = p->cursor;
    words[2] = "MATCH";
    words[3] = REFERRAL_PUBLISH_PREFIX "*";
    words[4] = "COUNT";
    words[5] = REFERRAL_PUBLISH_COUNT;

    rc = referral_redis_command(&p->redis, 6, words, &reply);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2
        || reply->element[0]->type != REDIS_REPLY_STRING
        || reply->element[1]->type != REDIS_REPLY_ARRAY)
    {
        freeReplyObject(reply);
        snprintf(p->redis.error, sizeof(p->redis.error),
                 "SCAN was answered with something else");
        return REFERRAL_ERROR;
    }

    snprintf(p->cursor, sizeof(p->cursor), "%.20s", reply->element[0]->str);
    *done = strcmp(p->cursor, "0") == 0;

    rc = referral_publish_names(p, reply->element[1], &list, &n);
    freeReplyObject(reply);

    if (rc != REFERRAL_OK) {
        return rc;
    }

    values[0] = list;
    rc = referral_publish_query(p, "SELECT referral.publish_missing($1)", 1,
                                values, &res);
    free(list);

    if (rc != REFERRAL_OK) {
        return rc;
    }

    p->found += n - PQntuples(res);

    rc = referral_publish_strays(p, res);
    PQclear(res);

    return rc;
}


/* an array for Postgres; what is no code is not ours, whatever it is */

static int
referral_publish_names(referral_publish_t *p, const redisReply *keys,
    char **list, uint64_t *n)
{
    char              *to;
    size_t             i, len;
    u_char             folded[REFERRAL_CODE_LEN];
    const char        *name;
    const redisReply  *key;

    *n = 0;
    *list = malloc(keys->elements * (REFERRAL_CODE_LEN + 3) + 3);

    if (*list == NULL) {
        snprintf(p->redis.error, sizeof(p->redis.error), "out of memory");
        return REFERRAL_ERROR;
    }

    to = *list;
    *to++ = '{';

    for (i = 0; i < keys->elements; i++) {
        key = keys->element[i];

        if (key->type != REDIS_REPLY_STRING
            || (size_t) key->len < sizeof(REFERRAL_PUBLISH_PREFIX))
        {
            continue;
        }

        name = key->str + sizeof(REFERRAL_PUBLISH_PREFIX) - 1;
        len = key->len - (sizeof(REFERRAL_PUBLISH_PREFIX) - 1);

        if (referral_code_fold((u_char *) name, len, folded) != (ssize_t) len
            || memcmp(folded, name, len) != 0)
        {
            continue;
        }

        /* quoted: a code may be NULL */

        if ((*n)++) {
            *to++ = ',';
        }

        *to++ = '"';
        to = (char *) memcpy(to, name, len) + len;
        *to++ = '"';
    }

    *to++ = '}';
    *to = '\0';

    return REFERRAL_OK;
}


static int
referral_publish_strays(referral_publish_t *p, const PGresult *res)
{
    int           i, n, rc;
    char          key[sizeof(REFERRAL_PUBLISH_PREFIX) + REFERRAL_CODE_LEN];
    size_t        nstrays;
    redisReply   *reply;
    const char   *words[3], **strays;

    n = PQntuples(res);
    nstrays = 0;

    if (n == 0) {
        return REFERRAL_OK;
    }

    strays = malloc(n * sizeof(char *));
    if (strays == NULL) {
        snprintf(p->redis.error, sizeof(p->redis.error), "out of memory");
        return REFERRAL_ERROR;
    }

    words[0] = "HGET";
    words[1] = key;
    words[2] = "code_id";
    rc = REFERRAL_OK;

    for (i = 0; rc == REFERRAL_OK && i < n; i++) {
        snprintf(key, sizeof(key), REFERRAL_PUBLISH_PREFIX "%.*s",
                 REFERRAL_CODE_LEN, PQgetvalue(res, i, 0));
        rc = referral_redis_send(&p->redis, 3, words, NULL);
    }

    for (i = 0; rc == REFERRAL_OK && i < n; i++) {

        rc = referral_redis_read(&p->redis, &reply);

        /* a key that is no hash is none of ours either */

        if (rc == REFERRAL_ERROR && referral_redis_connected(&p->redis)
            && strncmp(p->redis.error, "WRONGTYPE", 9) == 0)
        {
            p->foreign++;
            rc = REFERRAL_OK;
            continue;
        }

        if (rc != REFERRAL_OK) {
            break;
        }

        if (reply->type == REDIS_REPLY_NIL) {
            p->foreign++;

        } else {
            strays[nstrays++] = PQgetvalue(res, i, 0);
        }

        freeReplyObject(reply);
    }

    if (rc == REFERRAL_OK && nstrays) {
        rc = referral_publish_delete(p, strays, nstrays);
    }

    free(strays);

    return rc;
}
