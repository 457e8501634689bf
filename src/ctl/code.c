
/*
 * Copyright (C) The nginx referral module authors
 */


#include "code.h"
#include "output.h"
#include "redis.h"
#include "referral_code.h"
#include "referral_rule.h"
#include "time_text.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>


#define CTL_CODE_PREFIX   "referral:code:"
#define CTL_CODE_CHANNEL  "referral:invalidate"

#define CTL_CODE_TRIES    10               /* against concurrent writers */
#define CTL_CODE_BATCH    100              /* hashes read at once */


typedef struct {
    char                 name[REFERRAL_CODE_LEN + 1];
    char                 key[sizeof(CTL_CODE_PREFIX) + REFERRAL_CODE_LEN];

    char                *values[REFERRAL_RULE_FIELDS];   /* NULL: absent */
    size_t               lens[REFERRAL_RULE_FIELDS];

    referral_rule_t      rule;
    const char          *verdict;          /* word, as nginx would say now */
    char                 problem[REFERRAL_ERROR_LEN];    /* or "" */
} ctl_code_t;


typedef struct {
    char                *values[REFERRAL_RULE_FIELDS];   /* NULL: not given */
    uint64_t             version;          /* 0: not given */
} ctl_code_change_t;


static int ctl_code_name(ctl_code_t *code, const char *text);
static int ctl_code_change(ctl_code_change_t *change, char *pair);
static int ctl_code_time(ctl_code_change_t *change, unsigned field);
static int ctl_code_fetch(ctl_redis_t *r, ctl_code_t *code);
static void ctl_code_take(ctl_code_t *code, const redisReply *reply);
static void ctl_code_reset(ctl_code_t *code);
static void ctl_code_put(ctl_code_t *code, unsigned field, const char *value,
    size_t len);
static void ctl_code_judge(ctl_code_t *code);
static int ctl_code_apply(ctl_code_t *code, const ctl_code_change_t *change);
static int ctl_code_rules(const ctl_code_t *code);
static int ctl_code_write(ctl_redis_t *r, const ctl_code_t *code);
static int ctl_code_exec(ctl_redis_t *r, size_t queued);
static int ctl_code_exists(const ctl_code_t *code);
static void ctl_code_print(const ctl_code_t *code, int json,
    const char *title);
static json_t *ctl_code_json(const ctl_code_t *code);
static int ctl_code_scan(ctl_redis_t *r, const char *pattern, char ***keys,
    size_t *nkeys);
static int ctl_code_compare(const void *one, const void *two);
static int ctl_code_rows(ctl_redis_t *r, char **keys, size_t nkeys,
    size_t width, int json);
static void ctl_code_row(ctl_code_t *code, const char *key, const char *error,
    size_t width, int json);
static int ctl_code_drop(ctl_redis_t *r, ctl_code_t *code);


int
ctl_code_set(ctl_options_t *o)
{
    int                i, rc, tries;
    char               title[128];
    unsigned           f;
    ctl_code_t         code;
    ctl_redis_t        r;
    ctl_code_change_t  change;

    memset(&code, 0, sizeof(ctl_code_t));
    memset(&change, 0, sizeof(ctl_code_change_t));

    rc = ctl_code_name(&code, o->argv[0]);

    for (i = 1; rc == CTL_DONE && i < o->argc; i++) {
        rc = ctl_code_change(&change, o->argv[i]);
    }

    if (rc == CTL_DONE) {
        rc = ctl_redis_open(&r, o);
    }

    if (rc != CTL_DONE) {
        goto done;
    }

    rc = REFERRAL_AGAIN;

    for (tries = 0; rc == REFERRAL_AGAIN && tries < CTL_CODE_TRIES; tries++) {

        rc = ctl_code_fetch(&r, &code);

        if (rc == CTL_DONE) {
            rc = ctl_code_apply(&code, &change);
        }

        if (rc == CTL_DONE) {
            rc = ctl_code_write(&r, &code);
        }
    }

    ctl_redis_close(&r);

    if (rc == REFERRAL_AGAIN) {
        ctl_error("code %s: others change it all the time, nothing was "
                  "written: try again", code.name);
        rc = CTL_FOUND;
    }

    if (rc == CTL_DONE) {
        snprintf(title, sizeof(title), "%s is set", code.name);
        ctl_code_print(&code, o->json, title);
    }

done:

    ctl_code_reset(&code);

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {
        free(change.values[f]);
    }

    return rc;
}


static int
ctl_code_name(ctl_code_t *code, const char *text)
{
    ssize_t  n;

    n = referral_code_fold((u_char *) text, strlen(text),
                           (u_char *) code->name);

    if (n < 0) {
        ctl_error("code \"%s\": a code is 1 to %d of A-Z a-z 0-9 _ and -",
                  text, REFERRAL_CODE_LEN);
        return CTL_USAGE;
    }

    code->name[n] = '\0';
    snprintf(code->key, sizeof(code->key), CTL_CODE_PREFIX "%s", code->name);

    return CTL_DONE;
}


static int
ctl_code_change(ctl_code_change_t *change, char *pair)
{
    size_t                 len;
    unsigned               f;
    const referral_str_t  *name;

    len = strcspn(pair, "=");

    if (pair[len] == '\0') {
        ctl_error("\"%s\": FIELD=VALUE is expected, \"%s=\" removes the field",
                  pair, pair);
        return CTL_USAGE;
    }

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {
        name = &referral_rule_fields[f];

        if (name->len == len && memcmp(name->data, pair, len) == 0) {
            break;
        }
    }

    if (f == REFERRAL_RULE_FIELDS) {
        ctl_error("unknown field \"%.*s\"; the fields are url, state, "
                  "not_before, expires, version, code_id, program_id, "
                  "referrer_id, campaign and rules", (int) len, pair);
        return CTL_USAGE;
    }

    if (change->values[f] != NULL) {
        ctl_error("%.*s is given twice", (int) len, pair);
        return CTL_USAGE;
    }

    change->values[f] = ctl_dup(&pair[len + 1], strlen(&pair[len + 1]));

    if (f == REFERRAL_RULE_NOT_BEFORE || f == REFERRAL_RULE_EXPIRES) {
        return ctl_code_time(change, f);
    }

    return CTL_DONE;
}


static int
ctl_code_time(ctl_code_change_t *change, unsigned field)
{
    char     text[CTL_TIME_LEN], *value;
    int64_t  seconds;

    value = change->values[field];

    if (*value == '\0') {
        return CTL_DONE;
    }

    if (ctl_time_parse(value, &seconds) != REFERRAL_OK) {
        ctl_error("%s: \"%s\" is no time: Unix seconds or ISO 8601 as in "
                  "2026-12-31 or 2026-12-31T23:59:59Z",
                  referral_rule_fields[field].data, value);
        return CTL_USAGE;
    }

    snprintf(text, sizeof(text), "%" PRId64, seconds);

    free(value);
    change->values[field] = ctl_dup(text, strlen(text));

    return CTL_DONE;
}


/* reads the code and watches it */

static int
ctl_code_fetch(ctl_redis_t *r, ctl_code_t *code)
{
    int          rc;
    redisReply  *reply;

    reply = ctl_redis_command(r, &rc,
                              (const char *[]) { "WATCH", code->key, NULL });
    if (reply == NULL) {
        return rc;
    }

    freeReplyObject(reply);

    reply = ctl_redis_command(r, &rc,
                              (const char *[]) { "HGETALL", code->key, NULL });
    if (reply == NULL) {
        return rc;
    }

    ctl_code_reset(code);
    ctl_code_take(code, reply);
    freeReplyObject(reply);

    return CTL_DONE;
}


static void
ctl_code_take(ctl_code_t *code, const redisReply *reply)
{
    size_t                 i;
    unsigned               f;
    const redisReply      *name, *value;
    const referral_str_t  *field;

    for (i = 0; i + 1 < reply->elements; i += 2) {

        name = reply->element[i];
        value = reply->element[i + 1];

        if (name->type != REDIS_REPLY_STRING
            || value->type != REDIS_REPLY_STRING)
        {
            continue;
        }

        for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {
            field = &referral_rule_fields[f];

            if (field->len == (size_t) name->len
                && memcmp(field->data, name->str, field->len) == 0)
            {
                ctl_code_put(code, f, value->str, value->len);
            }
        }
    }
}


static void
ctl_code_reset(ctl_code_t *code)
{
    unsigned  f;

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {
        free(code->values[f]);
        code->values[f] = NULL;
        code->lens[f] = 0;
    }
}


static void
ctl_code_put(ctl_code_t *code, unsigned field, const char *value, size_t len)
{
    free(code->values[field]);

    code->values[field] = len ? ctl_dup(value, len) : NULL;
    code->lens[field] = len;
}


/* what nginx makes of it: the first bad field makes the code inactive */

static void
ctl_code_judge(ctl_code_t *code)
{
    int                 rc;
    unsigned            f;
    referral_str_t      value;
    referral_verdict_e  verdict;

    rc = REFERRAL_OK;
    code->problem[0] = '\0';
    memset(&code->rule, 0, sizeof(referral_rule_t));

    for (f = 0; rc == REFERRAL_OK && f < REFERRAL_RULE_FIELDS; f++) {
        value.data = (u_char *) code->values[f];
        value.len = code->lens[f];
        rc = referral_rule_set(&code->rule, f, &value, code->problem);
    }

    if (rc == REFERRAL_OK) {
        rc = referral_rule_check(&code->rule, code->problem);
    }

    verdict = REFERRAL_VERDICT_INACTIVE;

    if (rc == REFERRAL_OK) {
        verdict = referral_rule_judge(&code->rule,
                                      (int64_t) (ctl_time_now() / 1000));
    }

    code->verdict = (const char *) referral_verdict_word(verdict)->data;
}


static int
ctl_code_apply(ctl_code_t *code, const ctl_code_change_t *change)
{
    char             text[32];
    unsigned         f;
    uint64_t         version;
    referral_str_t   value;
    referral_rule_t  rule;

    /* edges ignore what is older than what they have */

    memset(&rule, 0, sizeof(referral_rule_t));
    value.data = (u_char *) code->values[REFERRAL_RULE_VERSION];
    value.len = code->lens[REFERRAL_RULE_VERSION];

    (void) referral_rule_set(&rule, REFERRAL_RULE_VERSION, &value,
                             code->problem);

    if (rule.version == UINT64_MAX) {
        ctl_error("code %s: version: the stored one is the largest there is, "
                  "remove the code first", code->name);
        return CTL_FOUND;
    }

    version = rule.version + 1;

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {

        if (change->values[f] != NULL) {
            ctl_code_put(code, f, change->values[f],
                         strlen(change->values[f]));
        }
    }

    if (change->values[REFERRAL_RULE_VERSION] != NULL) {
        value.data = (u_char *) change->values[REFERRAL_RULE_VERSION];
        value.len = strlen(change->values[REFERRAL_RULE_VERSION]);
        rule.version = 0;

        if (referral_rule_set(&rule, REFERRAL_RULE_VERSION, &value,
                              code->problem)
            != REFERRAL_OK)
        {
            ctl_error("code %s: %s", code->name, code->problem);
            return CTL_USAGE;
        }

        if (rule.version > version) {
            version = rule.version;
        }
    }

    snprintf(text, sizeof(text), "%" PRIu64, version);
    ctl_code_put(code, REFERRAL_RULE_VERSION, text, strlen(text));

    ctl_code_judge(code);

    if (code->problem[0] != '\0') {
        ctl_error("code %s: %s; nothing was written", code->name,
                  code->problem);
        return CTL_USAGE;
    }

    return ctl_code_rules(code);
}


/* the module keeps rules as text; a broken object would be found too late */

static int
ctl_code_rules(const ctl_code_t *code)
{
    json_t        *json;
    json_error_t   error;

    if (code->values[REFERRAL_RULE_RULES] == NULL) {
        return CTL_DONE;
    }

    json = json_loadb(code->values[REFERRAL_RULE_RULES],
                      code->lens[REFERRAL_RULE_RULES], 0, &error);

    if (json == NULL) {
        ctl_error("code %s: rules: no JSON object: %s, at byte %d; nothing "
                  "was written", code->name, error.text, error.position);
        return CTL_USAGE;
    }

    json_decref(json);

    return CTL_DONE;
}


/*
 * HSET, HDEL and PUBLISH in one transaction: an edge that hears the message
 * reads the new hash.  REFERRAL_AGAIN when another writer was faster.
 */

static int
ctl_code_write(ctl_redis_t *r, const ctl_code_t *code)
{
    int          rc;
    char         message[REFERRAL_CODE_LEN + 32];
    size_t       nset, ndel, queued;
    unsigned     f;
    const char  *set[2 + 2 * REFERRAL_RULE_FIELDS + 1];
    const char  *del[2 + REFERRAL_RULE_FIELDS + 1];

    nset = 0;
    ndel = 0;
    set[nset++] = "HSET";
    set[nset++] = code->key;
    del[ndel++] = "HDEL";
    del[ndel++] = code->key;

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {

        if (code->values[f] == NULL) {
            del[ndel++] = (const char *) referral_rule_fields[f].data;
            continue;
        }

        /* checked fields have no NUL */

        set[nset++] = (const char *) referral_rule_fields[f].data;
        set[nset++] = code->values[f];
    }

    set[nset] = NULL;
    del[ndel] = NULL;
    queued = 2;

    snprintf(message, sizeof(message), "%s %s", code->name,
             code->values[REFERRAL_RULE_VERSION]);

    if (ctl_redis_send(r, &rc, (const char *[]) { "MULTI", NULL }) != CTL_DONE
        || ctl_redis_send(r, &rc, set) != CTL_DONE)
    {
        return rc;
    }

    if (ndel > 2) {
        queued++;

        if (ctl_redis_send(r, &rc, del) != CTL_DONE) {
            return rc;
        }
    }

    if (ctl_redis_send(r, &rc, (const char *[]) { "PUBLISH", CTL_CODE_CHANNEL,
                                                  message, NULL })
        != CTL_DONE)
    {
        return rc;
    }

    return ctl_code_exec(r, queued + 1);
}


/* sends EXEC and reads all the replies of a transaction */

static int
ctl_code_exec(ctl_redis_t *r, size_t queued)
{
    int          rc;
    size_t       i;
    redisReply  *reply;

    if (ctl_redis_send(r, &rc, (const char *[]) { "EXEC", NULL }) != CTL_DONE)
    {
        return rc;
    }

    for (i = 0; i < queued; i++) {
        reply = ctl_redis_read(r, &rc);

        if (reply == NULL) {
            return rc;
        }

        freeReplyObject(reply);
    }

    reply = ctl_redis_read(r, &rc);

    if (reply == NULL) {
        return rc;
    }

    if (reply->type == REDIS_REPLY_NIL) {
        rc = REFERRAL_AGAIN;
    }

    for (i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++) {

        if (reply->element[i]->type == REDIS_REPLY_ERROR) {
            ctl_error("redis %s: %s", r->url.display, reply->element[i]->str);
            rc = CTL_FOUND;
        }
    }

    freeReplyObject(reply);

    return rc;
}


static int
ctl_code_exists(const ctl_code_t *code)
{
    unsigned  f;

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {
        if (code->values[f] != NULL) {
            return 1;
        }
    }

    return 0;
}


static void
ctl_code_print(const ctl_code_t *code, int json, const char *title)
{
    char       *clean, time[CTL_TIME_LEN];
    int64_t     seconds;
    unsigned    f;

    if (json) {
        ctl_json_print(ctl_code_json(code));
        return;
    }

    printf("%s, now %s:\n", title, code->verdict);

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {

        if (code->values[f] == NULL) {
            continue;
        }

        clean = ctl_clean(code->values[f], code->lens[f]);
        printf("  %-12s %s", referral_rule_fields[f].data, clean);
        free(clean);

        seconds = f == REFERRAL_RULE_NOT_BEFORE ? code->rule.not_before
                  : f == REFERRAL_RULE_EXPIRES ? code->rule.expires : 0;

        if (seconds) {
            printf("  (%s UTC)",
                   ctl_time_text((uint64_t) seconds * 1000, time));
        }

        printf("\n");
    }

    if (code->problem[0] != '\0') {
        printf("  problem      %s\n", code->problem);
    }
}


/* fields that could not be read as numbers are given as the text they are */

static json_t *
ctl_code_json(const ctl_code_t *code)
{
    json_t    *json;
    int64_t    numbers[REFERRAL_RULE_FIELDS];
    unsigned   f;

    memset(numbers, 0, sizeof(numbers));

    numbers[REFERRAL_RULE_NOT_BEFORE] = code->rule.not_before;
    numbers[REFERRAL_RULE_EXPIRES] = code->rule.expires;
    numbers[REFERRAL_RULE_CODE_ID] = code->rule.code_id;
    numbers[REFERRAL_RULE_PROGRAM_ID] = code->rule.program_id;
    numbers[REFERRAL_RULE_REFERRER_ID] = code->rule.referrer_id;

    if (code->rule.version <= INT64_MAX) {
        numbers[REFERRAL_RULE_VERSION] = (int64_t) code->rule.version;
    }

    json = json_object();
    json_object_set_new(json, "code", ctl_json_text(code->name,
                                                    strlen(code->name)));
    json_object_set_new(json, "verdict", json_string(code->verdict));

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {
        json_object_set_new(json, (const char *) referral_rule_fields[f].data,
                            numbers[f] ? json_integer(numbers[f])
                                       : ctl_json_text(code->values[f],
                                                       code->lens[f]));
    }

    json_object_set_new(json, "problem",
                        ctl_json_text(code->problem, strlen(code->problem)));

    return json;
}


int
ctl_code_show(ctl_options_t *o)
{
    int          rc;
    ctl_code_t   code;
    ctl_redis_t  r;

    memset(&code, 0, sizeof(ctl_code_t));

    rc = ctl_code_name(&code, o->argv[0]);

    if (rc == CTL_DONE) {
        rc = ctl_redis_open(&r, o);
    }

    if (rc != CTL_DONE) {
        return rc;
    }

    rc = ctl_code_fetch(&r, &code);
    ctl_redis_close(&r);

    if (rc == CTL_DONE && !ctl_code_exists(&code)) {
        ctl_error("redis %s: there is no code %s", r.url.display, code.name);
        rc = CTL_FOUND;
    }

    if (rc == CTL_DONE) {
        ctl_code_judge(&code);
        ctl_code_print(&code, o->json, code.name);
    }

    ctl_code_reset(&code);

    return rc;
}


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

    strcpy(match, CTL_CODE_PREFIX);

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
        strcpy(expires, "-");
    }

    ctl_pad(name, width, 0);
    printf("  %-10s  %-19s  %8" PRIu64 "  %s%s%s%s\n", code->verdict, expires,
           code->rule.version, url[0] ? url : "-",
           code->problem[0] ? "  (" : "", code->problem,
           code->problem[0] ? ")" : "");

    free(name);
    free(url);
}


int
ctl_code_remove(ctl_options_t *o)
{
    int           i, rc, found;
    json_t       *json;
    ctl_code_t   *codes;
    ctl_redis_t   r;

    codes = ctl_alloc(o->argc * sizeof(ctl_code_t));
    rc = CTL_DONE;
    found = CTL_DONE;
    json = json_array();

    for (i = 0; rc == CTL_DONE && i < o->argc; i++) {
        rc = ctl_code_name(&codes[i], o->argv[i]);
    }

    if (rc == CTL_DONE) {
        rc = ctl_redis_open(&r, o);
    }

    if (rc != CTL_DONE) {
        goto done;
    }

    for (i = 0; i < o->argc; i++) {
        rc = ctl_code_drop(&r, &codes[i]);

        if (rc == CTL_FOUND) {
            ctl_error("redis %s: there is no code %s", r.url.display,
                      codes[i].name);
            found = CTL_FOUND;
            continue;
        }

        if (rc != CTL_DONE) {
            break;
        }

        json_array_append_new(json, json_string(codes[i].name));

        if (!o->json) {
            printf("%s is removed\n", codes[i].name);
        }
    }

    ctl_redis_close(&r);

    if (o->json) {
        ctl_json_line(json_incref(json));
    }

    if (rc <= CTL_FOUND) {
        rc = found;
    }

done:

    for (i = 0; i < o->argc; i++) {
        ctl_code_reset(&codes[i]);
    }

    json_decref(json);
    free(codes);

    return rc;
}


/* CTL_FOUND: there was none */

static int
ctl_code_drop(ctl_redis_t *r, ctl_code_t *code)
{
    int        rc, tries;
    char       message[REFERRAL_CODE_LEN + 32];
    uint64_t   version;

    rc = REFERRAL_AGAIN;

    for (tries = 0; rc == REFERRAL_AGAIN && tries < CTL_CODE_TRIES; tries++) {

        rc = ctl_code_fetch(r, code);

        if (rc != CTL_DONE) {
            break;
        }

        if (!ctl_code_exists(code)) {
            return CTL_FOUND;
        }

        ctl_code_judge(code);
        version = code->rule.version;

        snprintf(message, sizeof(message), "%s %" PRIu64, code->name,
                 version + (version < UINT64_MAX));

        if (ctl_redis_send(r, &rc, (const char *[]) { "MULTI", NULL })
                != CTL_DONE
            || ctl_redis_send(r, &rc, (const char *[]) { "DEL", code->key,
                                                         NULL })
                != CTL_DONE
            || ctl_redis_send(r, &rc, (const char *[]) { "PUBLISH",
                                                         CTL_CODE_CHANNEL,
                                                         message, NULL })
                != CTL_DONE)
        {
            break;
        }

        rc = ctl_code_exec(r, 3);
    }

    if (rc == REFERRAL_AGAIN) {
        ctl_error("code %s: others change it all the time, it was not "
                  "removed: try again", code->name);
        rc = CTL_UNREACHABLE;
    }

    return rc;
}
