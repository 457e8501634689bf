
/*
 * Copyright (C) The nginx referral module authors
 */


#include "code_hash.h"
#include "output.h"
#include "time_text.h"

#include <stdlib.h>
#include <string.h>


int
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


/* reads the code and watches it */

int
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


void
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


void
ctl_code_reset(ctl_code_t *code)
{
    unsigned  f;

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {
        free(code->values[f]);
        code->values[f] = NULL;
        code->lens[f] = 0;
    }
}


void
ctl_code_put(ctl_code_t *code, unsigned field, const char *value, size_t len)
{
    free(code->values[field]);

    code->values[field] = len ? ctl_dup(value, len) : NULL;
    code->lens[field] = len;
}


/* the fields that can be read are, the first problem is kept */

void
ctl_code_judge(ctl_code_t *code)
{
    int                 rc;
    char                error[REFERRAL_ERROR_LEN];
    unsigned            f;
    referral_str_t      value;
    referral_verdict_e  verdict;

    rc = REFERRAL_OK;
    code->problem[0] = '\0';
    memset(&code->rule, 0, sizeof(referral_rule_t));

    for (f = 0; f < REFERRAL_RULE_FIELDS; f++) {

        value.data = (u_char *) code->values[f];
        value.len = code->lens[f];

        if (referral_rule_set(&code->rule, f, &value, error) != REFERRAL_OK
            && rc == REFERRAL_OK)
        {
            memcpy(code->problem, error, REFERRAL_ERROR_LEN);
            rc = REFERRAL_ERROR;
        }
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


int
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


void
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

json_t *
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
