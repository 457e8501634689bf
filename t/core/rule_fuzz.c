
/*
 * Copyright (C) The nginx referral module authors
 *
 * The first byte chooses a field, the rest is its value; then the whole
 * input as a hash, fields and values separated by NUL.
 */


#include <stdlib.h>
#include <string.h>

#include "referral_destination.h"
#include "referral_rule.h"
#include "referral_utf8.h"


#define check(condition)  if (!(condition)) abort()


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
static int fuzz_set(referral_rule_t *rule, unsigned field,
    const uint8_t *data, size_t size);
static void fuzz_rule(const referral_rule_t *rule);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t           i, n;
    unsigned         field;
    referral_rule_t  rule;

    if (size == 0) {
        return 0;
    }

    memset(&rule, 0, sizeof(rule));

    (void) fuzz_set(&rule, data[0] % (REFERRAL_RULE_FIELDS + 1), data + 1,
                    size - 1);

    memset(&rule, 0, sizeof(rule));

    for (i = 0; i < size; i += n + 1) {
        const uint8_t  *nul;

        nul = memchr(data + i, '\0', size - i);
        n = nul == NULL ? size - i : (size_t) (nul - (data + i));

        if (n == 0) {
            continue;
        }

        field = data[i] % REFERRAL_RULE_FIELDS;

        (void) fuzz_set(&rule, field, data + i + 1, n - 1);
    }

    fuzz_rule(&rule);

    return 0;
}


static int
fuzz_set(referral_rule_t *rule, unsigned field, const uint8_t *data,
    size_t size)
{
    int              rc;
    char             error[REFERRAL_ERROR_LEN];
    size_t           i, len;
    referral_str_t   value;
    referral_rule_t  before;

    value.data = (u_char *) data;
    value.len = size;

    memcpy(&before, rule, sizeof(before));
    memset(error, 0x7f, sizeof(error));

    rc = referral_rule_set(rule, field, &value, error);

    if (rc == REFERRAL_OK) {
        return rc;
    }

    /* refused: the rule is as it was, and the message fit for a log */

    check(rc == REFERRAL_ERROR);
    check(memcmp(&before, rule, sizeof(before)) == 0);

    len = strnlen(error, sizeof(error));
    check(len > 0 && len < sizeof(error));

    for (i = 0; i < len; i++) {
        check(error[i] >= 0x20 && error[i] < 0x7f);
    }

    return rc;
}


static void
fuzz_rule(const referral_rule_t *rule)
{
    char                error[REFERRAL_ERROR_LEN];
    int64_t             now;
    referral_verdict_e  verdict;

    check(rule->not_before >= 0 && rule->not_before < 253402300800);
    check(rule->expires >= 0 && rule->expires < 253402300800);
    check(rule->code_id >= 0);
    check(rule->program_id >= 0);
    check(rule->referrer_id >= 0);
    check(rule->campaign.len <= REFERRAL_CAMPAIGN_LEN);

    if (rule->campaign.len) {
        check(referral_utf8_valid(rule->campaign.data, rule->campaign.len));
    }

    if (referral_rule_check(rule, error) != REFERRAL_OK) {
        return;
    }

    check(referral_destination_check(&rule->url, error) == REFERRAL_OK);

    for (now = rule->not_before - 1; now < rule->not_before + 2; now++) {
        verdict = referral_rule_judge(rule, now);

        switch (verdict) {

        case REFERRAL_VERDICT_VALID:
            check(rule->state == REFERRAL_STATE_ACTIVE);
            check(now >= rule->not_before);
            check(rule->expires == 0 || now < rule->expires);
            break;

        case REFERRAL_VERDICT_INACTIVE:
        case REFERRAL_VERDICT_EXHAUSTED:
            check(rule->state != REFERRAL_STATE_ACTIVE);
            break;

        case REFERRAL_VERDICT_EARLY:
            check(now < rule->not_before);
            break;

        case REFERRAL_VERDICT_EXPIRED:
            check(rule->expires && now >= rule->expires);
            break;

        default:
            abort();
        }
    }
}
