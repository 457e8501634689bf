
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "referral_rule.h"
#include "str_aid.h"


static void rule_fields(void **state);
static void rule_empty_is_absent(void **state);
static void rule_accepts(void **state);
static void rule_refuses(void **state);
static void rule_limits(void **state);
static void rule_checks_the_whole(void **state);
static void rule_judges(void **state);
static int set(referral_rule_t *rule, unsigned field, const char *value);


static char  error[REFERRAL_ERROR_LEN];


static int
set(referral_rule_t *rule, unsigned field, const char *value)
{
    referral_str_t  v;

    v = str(value);
    error[0] = '\0';

    return referral_rule_set(rule, field, &v, error);
}


static void
rule_fields(void **state)
{
    size_t  i;

    static const char  *names[REFERRAL_RULE_FIELDS] = {
        "url", "state", "not_before", "expires", "version", "code_id",
        "program_id", "referrer_id", "campaign", "rules"
    };

    for (i = 0; i < REFERRAL_RULE_FIELDS; i++) {
        assert_string_equal((char *) referral_rule_fields[i].data, names[i]);
        assert_int_equal(referral_rule_fields[i].len, strlen(names[i]));
    }
}


static void
rule_empty_is_absent(void **state)
{
    unsigned         i;
    referral_rule_t  rule, before;

    memset(&rule, 0x5a, sizeof(rule));
    before = rule;

    for (i = 0; i < REFERRAL_RULE_FIELDS; i++) {
        assert_int_equal(set(&rule, i, ""), REFERRAL_OK);
    }

    assert_memory_equal(&rule, &before, sizeof(rule));
}


static void
rule_accepts(void **state)
{
    referral_rule_t  rule;

    memset(&rule, 0, sizeof(rule));

    assert_int_equal(set(&rule, REFERRAL_RULE_URL, "https://example.com/"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_STATE, "exhausted"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_NOT_BEFORE, "1752141308"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_EXPIRES, "253402300799"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_VERSION,
                         "18446744073709551615"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_CODE_ID,
                         "9223372036854775807"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_PROGRAM_ID, "007"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_REFERRER_ID, "0"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_CAMPAIGN,
                         "\xc3\xa9t\xc3\xa9 25"), 0);
    assert_int_equal(set(&rule, REFERRAL_RULE_RULES, "{\"split\": []}"), 0);

    assert_int_equal(rule.url.len, 20);
    assert_int_equal(rule.state, REFERRAL_STATE_EXHAUSTED);
    assert_int_equal(rule.not_before, 1752141308);
    assert_int_equal(rule.expires, 253402300799);
    assert_true(rule.version == UINT64_MAX);
    assert_true(rule.code_id == INT64_MAX);
    assert_int_equal(rule.program_id, 7);
    assert_int_equal(rule.referrer_id, 0);
    assert_int_equal(rule.campaign.len, 8);
    assert_int_equal(rule.rules.len, 13);

    assert_int_equal(set(&rule, REFERRAL_RULE_STATE, "active"), 0);
    assert_int_equal(rule.state, REFERRAL_STATE_ACTIVE);
    assert_int_equal(set(&rule, REFERRAL_RULE_STATE, "inactive"), 0);
    assert_int_equal(rule.state, REFERRAL_STATE_INACTIVE);
}


/* each refusal names the field and leaves the rule as it was */

static void
rule_refuses(void **state)
{
    size_t           i;
    unsigned         field;
    referral_rule_t  rule, before;

    static const struct {
        unsigned     field;
        const char  *value;
    } bad[] = {
        { REFERRAL_RULE_URL, "example.com" },
        { REFERRAL_RULE_URL, "javascript:alert(1)" },
        { REFERRAL_RULE_STATE, "Active" },
        { REFERRAL_RULE_STATE, "activ" },
        { REFERRAL_RULE_STATE, "active " },
        { REFERRAL_RULE_STATE, "off" },
        { REFERRAL_RULE_NOT_BEFORE, "253402300800" },
        { REFERRAL_RULE_NOT_BEFORE, "-1" },
        { REFERRAL_RULE_NOT_BEFORE, "2025-07-10" },
        { REFERRAL_RULE_NOT_BEFORE, " 1" },
        { REFERRAL_RULE_EXPIRES, "+1" },
        { REFERRAL_RULE_EXPIRES, "1e9" },
        { REFERRAL_RULE_EXPIRES, "1752141308928000" },
        { REFERRAL_RULE_EXPIRES, "99999999999999999999999999" },
        { REFERRAL_RULE_VERSION, "18446744073709551616" },
        { REFERRAL_RULE_VERSION, "0x10" },
        { REFERRAL_RULE_VERSION, "1.5" },
        { REFERRAL_RULE_CODE_ID, "9223372036854775808" },
        { REFERRAL_RULE_CODE_ID, "12345678901234567890" },
        { REFERRAL_RULE_PROGRAM_ID, "-5" },
        { REFERRAL_RULE_REFERRER_ID, "five" },
        { REFERRAL_RULE_CAMPAIGN, "line\nfeed" },
        { REFERRAL_RULE_CAMPAIGN, "del\x7f" },
        { REFERRAL_RULE_CAMPAIGN, "latin1 \xe9" },
        { REFERRAL_RULE_RULES, "[]" },
        { REFERRAL_RULE_RULES, " {}" },
        { REFERRAL_RULE_RULES, "{\"\xff\"}" }
    };

    memset(&rule, 0x5a, sizeof(rule));
    before = rule;

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        field = bad[i].field;

        if (set(&rule, field, bad[i].value) != REFERRAL_ERROR) {
            fail_msg("accepted: %s", bad[i].value);
        }

        assert_memory_equal(error, referral_rule_fields[field].data,
                            referral_rule_fields[field].len);
        assert_int_equal(error[referral_rule_fields[field].len], ':');
        assert_memory_equal(&rule, &before, sizeof(rule));
    }

    assert_int_equal(set(&rule, REFERRAL_RULE_FIELDS, "x"), REFERRAL_ERROR);
}


static void
rule_limits(void **state)
{
    char             text[8194];
    referral_rule_t  rule;

    memset(&rule, 0, sizeof(rule));

    memset(text, 'x', sizeof(text));
    text[128] = '\0';
    assert_int_equal(set(&rule, REFERRAL_RULE_CAMPAIGN, text), REFERRAL_OK);

    text[128] = 'x';
    text[129] = '\0';
    assert_int_equal(set(&rule, REFERRAL_RULE_CAMPAIGN, text),
                     REFERRAL_ERROR);

    memset(text, ' ', sizeof(text));
    text[0] = '{';
    text[8192] = '\0';
    assert_int_equal(set(&rule, REFERRAL_RULE_RULES, text), REFERRAL_OK);

    text[8192] = ' ';
    text[8193] = '\0';
    assert_int_equal(set(&rule, REFERRAL_RULE_RULES, text), REFERRAL_ERROR);

    memset(text, 'x', sizeof(text));
    memcpy(text, "http://h/", 9);
    text[REFERRAL_URL_LEN] = '\0';
    assert_int_equal(set(&rule, REFERRAL_RULE_URL, text), REFERRAL_OK);

    text[REFERRAL_URL_LEN] = 'x';
    text[REFERRAL_URL_LEN + 1] = '\0';
    assert_int_equal(set(&rule, REFERRAL_RULE_URL, text), REFERRAL_ERROR);
}


static void
rule_checks_the_whole(void **state)
{
    referral_rule_t  rule;

    memset(&rule, 0, sizeof(rule));

    assert_int_equal(referral_rule_check(&rule, error), REFERRAL_ERROR);
    assert_memory_equal(error, "url:", 4);

    set(&rule, REFERRAL_RULE_URL, "https://example.com/");
    assert_int_equal(referral_rule_check(&rule, error), REFERRAL_OK);

    rule.not_before = 100;
    assert_int_equal(referral_rule_check(&rule, error), REFERRAL_OK);

    rule.expires = 101;
    assert_int_equal(referral_rule_check(&rule, error), REFERRAL_OK);

    rule.expires = 100;
    assert_int_equal(referral_rule_check(&rule, error), REFERRAL_ERROR);
    assert_memory_equal(error, "expires:", 8);
}


static void
rule_judges(void **state)
{
    referral_rule_t  rule;

    memset(&rule, 0, sizeof(rule));

    assert_int_equal(referral_rule_judge(&rule, 0), REFERRAL_VERDICT_VALID);

    rule.not_before = 100;
    rule.expires = 200;

    assert_int_equal(referral_rule_judge(&rule, 99), REFERRAL_VERDICT_EARLY);
    assert_int_equal(referral_rule_judge(&rule, 100), REFERRAL_VERDICT_VALID);
    assert_int_equal(referral_rule_judge(&rule, 199), REFERRAL_VERDICT_VALID);
    assert_int_equal(referral_rule_judge(&rule, 200),
                     REFERRAL_VERDICT_EXPIRED);

    rule.expires = 0;
    assert_int_equal(referral_rule_judge(&rule, INT64_MAX),
                     REFERRAL_VERDICT_VALID);

    rule.state = REFERRAL_STATE_EXHAUSTED;
    assert_int_equal(referral_rule_judge(&rule, 99),
                     REFERRAL_VERDICT_EXHAUSTED);

    rule.state = REFERRAL_STATE_INACTIVE;
    assert_int_equal(referral_rule_judge(&rule, 99),
                     REFERRAL_VERDICT_INACTIVE);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(rule_fields),
        cmocka_unit_test(rule_empty_is_absent),
        cmocka_unit_test(rule_accepts),
        cmocka_unit_test(rule_refuses),
        cmocka_unit_test(rule_limits),
        cmocka_unit_test(rule_checks_the_whole),
        cmocka_unit_test(rule_judges)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
