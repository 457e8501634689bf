
/*
 * Copyright (C) The nginx referral module authors
 */


#include "code.h"
#include "code_hash.h"
#include "output.h"
#include "time_text.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>


#define CTL_CODE_BATCH    100              /* hashes read at once */


static int ctl_code_scan(ctl_redis_t *r, const char *pattern, char ***keys,
    size_t *nkeys);
static int ctl_code_compare(const void *one, const void *two);
static int ctl_code_rows(ctl_redis_t *r, char **keys, size_t nkeys,
    size_t width, int json);
static void ctl_code_row(ctl_code_t *code, const char *key, const char *error,
    size_t width, int json);


int
ctl_code_list(ctl_options_t *o)
{
    int           rc;
    char        **keys;
    size_t        i, len, n, nkeys, width;
    ctl_redis_t   r;

    rc = ctl_redis_open(&r, o);

    if (rc != CTL_DONE) {
        return rc;
    }

    keys = NULL;
    nkeys = 0;

    rc = ctl_code_scan(&r, o->argc ? o->argv[0] : "*", &keys, &nkeys);

    width = sizeof("CODE") - 1;

    for (i = 0; i < nkeys; i++) {
        len = strlen(keys[i]) - (sizeof(CTL_CODE_PREFIX) - 1);

        if (len > width) {
            width = len;
        }
    }

    if (rc == CTL_DONE && !o->json && nkeys) {
        printf("%-*s  %-10s  %-19s  %8s  %s\n", (int) width, "CODE", "NOW",
               "EXPIRES (UTC)", "VERSION", "URL");
    }

    for (i = 0; rc == CTL_DONE && i < nkeys; i += n) {
        n = nkeys - i > CTL_CODE_BATCH ? CTL_CODE_BATCH : nkeys - i;
        rc = ctl_code_rows(&r, &keys[i], n, width, o->json);
    }

    if (rc == CTL_DONE && !o->json && nkeys == 0) {
        printf("no codes\n");
    }

    for (i = 0; i < nkeys; i++) {
        free(keys[i]);
    }

    free(keys);
    ctl_redis_close(&r);

    return rc;
}


/* SCAN may give a key more than once */

static int
ctl_code_scan(ctl_redis_t *r, const char *pattern, char ***keys,
    size_t *nkeys)
{
    int           rc;
    char         *cursor, *match;
    size_t        i, n, size;
    redisReply   *reply, *list;

    size = 0;
    cursor = ctl_dup("0", 1);
    match = ctl_alloc(sizeof(CTL_CODE_PREFIX) + strlen(pattern));

    memcpy(match, CTL_CODE_PREFIX, sizeof(CTL_CODE_PREFIX));

    /* codes stand in upper case */

    for (i = 0; pattern[i] != '\0'; i++) {
        match[sizeof(CTL_CODE_PREFIX) - 1 + i] =
            (pattern[i] >= 'a' && pattern[i] <= 'z') ? pattern[i] - 'a' + 'A'
                                                     : pattern[i];
    }

    do {
        reply = ctl_redis_command(r, &rc, (const char *[])
                                  { "SCAN", cursor, "MATCH", match, "COUNT",
                                    "1000", NULL });
        if (reply == NULL) {
            break;
        }

        if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2
            || reply->element[0]->type != REDIS_REPLY_STRING
            || reply->element[1]->type != REDIS_REPLY_ARRAY)
        {
            ctl_error("redis %s: this is no answer to SCAN", r->url.display);
            freeReplyObject(reply);
            rc = CTL_UNREACHABLE;
            break;
        }

        free(cursor);
        cursor = ctl_dup(reply->element[0]->str, reply->element[0]->len);
        list = reply->element[1];

        for (i = 0; i < list->elements; i++) {

            if (*nkeys == size) {
                size = 2 * size + 1024;
                *keys = ctl_realloc(*keys, size * sizeof(char *));
            }

            (*keys)[(*nkeys)++] = ctl_dup(list->element[i]->str,
                                          list->element[i]->len);
        }

        freeReplyObject(reply);

    } while (strcmp(cursor, "0") != 0);

    free(cursor);
    free(match);

    if (*nkeys) {
        qsort(*keys, *nkeys, sizeof(char *), ctl_code_compare);
    }

    for (i = 0, n = 0; i < *nkeys; i++) {

        if (n && strcmp((*keys)[n - 1], (*keys)[i]) == 0) {
            free((*keys)[i]);
            continue;
        }

        (*keys)[n++] = (*keys)[i];
    }

    *nkeys = n;

    return rc;
}


static int
ctl_code_compare(const void *one, const void *two)
{
    return strcmp(*(char *const *) one, *(char *const *) two);
}


static int
ctl_code_rows(ctl_redis_t *r, char **keys, size_t nkeys, size_t width,
    int json)
{
    int          rc;
    size_t       i;
    ctl_code_t   code;
    redisReply  *reply;

    for (i = 0; i < nkeys; i++) {

        if (ctl_redis_send(r, &rc, (const char *[]) { "HGETALL", keys[i],
                                                      NULL })
            != CTL_DONE)
        {
            return rc;
        }
    }

    for (i = 0; i < nkeys; i++) {

        memset(&code, 0, sizeof(ctl_code_t));
        reply = ctl_redis_reply(r, &rc);

        if (reply == NULL) {
            return rc;
        }

        if (reply->type == REDIS_REPLY_ERROR) {
            ctl_code_row(&code, keys[i], reply->str, width, json);

        } else if (reply->elements) {
            ctl_code_take(&code, reply);
            ctl_code_row(&code, keys[i], NULL, width, json);
        }

        freeReplyObject(reply);
        ctl_code_reset(&code);
    }

    return CTL_DONE;
}


static void
ctl_code_row(ctl_code_t *code, const char *key, const char *error,
    size_t width, int json)
{
    char        *name, *url, expires[CTL_TIME_LEN];
    size_t       len;
    const char  *text;

    text = key + sizeof(CTL_CODE_PREFIX) - 1;
    len = strlen(text);

    ctl_code_judge(code);

    if (error != NULL) {
        snprintf(code->problem, sizeof(code->problem), "%.200s", error);
    }

    /* nginx folds what it is asked, so it never looks at such a key */

    if (len > REFERRAL_CODE_LEN
        || referral_code_fold((u_char *) text, len, (u_char *) code->name)
           != (ssize_t) len
        || memcmp(text, code->name, len) != 0)
    {
        snprintf(code->problem, sizeof(code->problem), "never used: the key "
                 "is no code in upper case");
        code->verdict = "unknown";
    }

    name = ctl_clean(text, len);

    if (json) {
        snprintf(code->name, sizeof(code->name), "%s", name);
        ctl_json_line(ctl_code_json(code));
        free(name);
        return;
    }

    url = ctl_clean(code->values[REFERRAL_RULE_URL],
                    code->lens[REFERRAL_RULE_URL]);

    if (code->rule.expires) {
        (void) ctl_time_text((uint64_t) code->rule.expires * 1000, expires);

    } else {
        snprintf(expires, sizeof(expires), "-");
    }

    ctl_pad(name, width, 0);
    printf("  %-10s  %-19s  %8" PRIu64 "  %s%s%s%s\n", code->verdict, expires,
           code->rule.version, url[0] ? url : "-",
           code->problem[0] ? "  (" : "", code->problem,
           code->problem[0] ? ")" : "");

    free(name);
    free(url);
}
