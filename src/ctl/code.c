
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


#define CTL_CODE_TRIES    10               /* against concurrent writers */


typedef struct {
    char                *values[REFERRAL_RULE_FIELDS];   /* NULL: not given */
} ctl_code_change_t;


static int ctl_code_change(ctl_code_change_t *change, char *pair);
static int ctl_code_time(ctl_code_change_t *change, unsigned field);
static int ctl_code_apply(ctl_code_t *code, const ctl_code_change_t *change);
static int ctl_code_rules(const ctl_code_t *code);
static int ctl_code_write(ctl_redis_t *r, const ctl_code_t *code);
static int ctl_code_exec(ctl_redis_t *r, size_t queued);
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
