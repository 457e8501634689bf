
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_rule.h"
#include "referral_destination.h"
#include "referral_utf8.h"

#include <stdio.h>
#include <string.h>


#define REFERRAL_RULES_LEN  8192

/* the first second of the year 10000 */

#define REFERRAL_TIME_MAX   253402300800LL


static int referral_rule_number(unsigned field, const referral_str_t *value,
    uint64_t limit, uint64_t *number, char *error);
static int referral_rule_state(referral_rule_t *rule,
    const referral_str_t *value, char *error);
static int referral_rule_campaign(referral_rule_t *rule,
    const referral_str_t *value, char *error);
static int referral_rule_rules(referral_rule_t *rule,
    const referral_str_t *value, char *error);


const referral_str_t  referral_rule_fields[REFERRAL_RULE_FIELDS] = {
    referral_string("url"),
    referral_string("state"),
    referral_string("not_before"),
    referral_string("expires"),
    referral_string("version"),
    referral_string("code_id"),
    referral_string("program_id"),
    referral_string("referrer_id"),
    referral_string("campaign"),
    referral_string("rules")
};


static const referral_str_t  referral_rule_states[] = {
    referral_string("active"),
    referral_string("inactive"),
    referral_string("exhausted")
};


int
referral_rule_set(referral_rule_t *rule, unsigned field,
    const referral_str_t *value, char *error)
{
    int        rc;
    char       why[REFERRAL_ERROR_LEN];
    int64_t   *n;
    uint64_t   limit, number;

    if (value->len == 0) {
        return REFERRAL_OK;
    }

    limit = INT64_MAX;

    switch (field) {

    case REFERRAL_RULE_URL:

        if (referral_destination_check(value, why) != REFERRAL_OK) {
            (void) snprintf(error, REFERRAL_ERROR_LEN, "url: %.480s", why);
            return REFERRAL_ERROR;
        }

        rule->url = *value;
        return REFERRAL_OK;

    case REFERRAL_RULE_STATE:
        return referral_rule_state(rule, value, error);

    case REFERRAL_RULE_NOT_BEFORE:
        n = &rule->not_before;
        limit = REFERRAL_TIME_MAX - 1;
        break;

    case REFERRAL_RULE_EXPIRES:
        n = &rule->expires;
        limit = REFERRAL_TIME_MAX - 1;
        break;

    case REFERRAL_RULE_VERSION:
        return referral_rule_number(field, value, UINT64_MAX, &rule->version,
                                    error);

    case REFERRAL_RULE_CODE_ID:
        n = &rule->code_id;
        break;

    case REFERRAL_RULE_PROGRAM_ID:
        n = &rule->program_id;
        break;

    case REFERRAL_RULE_REFERRER_ID:
        n = &rule->referrer_id;
        break;

    case REFERRAL_RULE_CAMPAIGN:
        return referral_rule_campaign(rule, value, error);

    case REFERRAL_RULE_RULES:
        return referral_rule_rules(rule, value, error);

    default:
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "a rule has no field number %u", field);
        return REFERRAL_ERROR;
    }

    rc = referral_rule_number(field, value, limit, &number, error);

    if (rc == REFERRAL_OK) {
        *n = (int64_t) number;
    }

    return rc;
}


static int
referral_rule_number(unsigned field, const referral_str_t *value,
    uint64_t limit, uint64_t *number, char *error)
{
    size_t       i;
    unsigned     digit;
    uint64_t     n;
    const char  *name, *what;

    name = (const char *) referral_rule_fields[field].data;

    what = (field == REFERRAL_RULE_NOT_BEFORE
            || field == REFERRAL_RULE_EXPIRES)
           ? "a time in Unix seconds" : "a number";

    n = 0;

    for (i = 0; i < value->len; i++) {

        if (value->data[i] < '0' || value->data[i] > '9') {
            (void) snprintf(error, REFERRAL_ERROR_LEN,
                            "%s: byte %zu is not a digit, %s of decimal "
                            "digits only is expected", name, i, what);
            return REFERRAL_ERROR;
        }

        digit = (unsigned) (value->data[i] - '0');

        if (n > (limit - digit) / 10) {
            (void) snprintf(error, REFERRAL_ERROR_LEN,
                            "%s: too large, %s of at most %llu is expected",
                            name, what, (unsigned long long) limit);
            return REFERRAL_ERROR;
        }

        n = n * 10 + digit;
    }

    *number = n;

    return REFERRAL_OK;
}


static int
referral_rule_state(referral_rule_t *rule, const referral_str_t *value,
    char *error)
{
    unsigned               i;
    const referral_str_t  *word;

    for (i = 0; i <= REFERRAL_STATE_EXHAUSTED; i++) {
        word = &referral_rule_states[i];

        if (word->len == value->len
            && memcmp(word->data, value->data, word->len) == 0)
        {
            rule->state = (referral_state_e) i;
            return REFERRAL_OK;
        }
    }

    (void) snprintf(error, REFERRAL_ERROR_LEN,
                    "state: unknown word of %zu bytes, active, inactive or "
                    "exhausted is expected", value->len);

    return REFERRAL_ERROR;
}


static int
referral_rule_campaign(referral_rule_t *rule, const referral_str_t *value,
    char *error)
{
    size_t  i;

    if (value->len > REFERRAL_CAMPAIGN_LEN) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "campaign: %zu bytes, at most %d are accepted",
                        value->len, REFERRAL_CAMPAIGN_LEN);
        return REFERRAL_ERROR;
    }

    for (i = 0; i < value->len; i++) {
        if (value->data[i] < 0x20 || value->data[i] == 0x7f) {
            (void) snprintf(error, REFERRAL_ERROR_LEN,
                            "campaign: byte %zu is a control character, "
                            "text without them is expected", i);
            return REFERRAL_ERROR;
        }
    }

    if (!referral_utf8_valid(value->data, value->len)) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "campaign: not valid UTF-8, which is expected");
        return REFERRAL_ERROR;
    }

    rule->campaign = *value;

    return REFERRAL_OK;
}


static int
referral_rule_rules(referral_rule_t *rule, const referral_str_t *value,
    char *error)
{
    if (value->len > REFERRAL_RULES_LEN) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "rules: %zu bytes, at most %d are accepted",
                        value->len, REFERRAL_RULES_LEN);
        return REFERRAL_ERROR;
    }

    if (value->data[0] != '{') {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "rules: no JSON object, a text that begins with { "
                        "is expected");
        return REFERRAL_ERROR;
    }

    if (!referral_utf8_valid(value->data, value->len)) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "rules: not valid UTF-8, which is expected");
        return REFERRAL_ERROR;
    }

    rule->rules = *value;

    return REFERRAL_OK;
}


int
referral_rule_check(const referral_rule_t *rule, char *error)
{
    if (rule->url.len == 0) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "url: missing, an absolute http or https URL is "
                        "needed");
        return REFERRAL_ERROR;
    }

    if (rule->expires && rule->expires <= rule->not_before) {
        (void) snprintf(error, REFERRAL_ERROR_LEN,
                        "expires: %lld is not later than not_before, %lld",
                        (long long) rule->expires,
                        (long long) rule->not_before);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


referral_verdict_e
referral_rule_judge(const referral_rule_t *rule, int64_t now)
{
    if (rule->state == REFERRAL_STATE_INACTIVE) {
        return REFERRAL_VERDICT_INACTIVE;
    }

    if (rule->state == REFERRAL_STATE_EXHAUSTED) {
        return REFERRAL_VERDICT_EXHAUSTED;
    }

    if (now < rule->not_before) {
        return REFERRAL_VERDICT_EARLY;
    }

    if (rule->expires && now >= rule->expires) {
        return REFERRAL_VERDICT_EXPIRED;
    }

    return REFERRAL_VERDICT_VALID;
}
