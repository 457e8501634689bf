
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "referral_csv.h"


static void csv_is(const char *given, unsigned last, const char *wanted);
static void csv_fields(void **state);
static void csv_ends(void **state);
static void csv_again(void **state);
static void csv_errors(void **state);
static void csv_many(void **state);


/* "4/1: a|b" is 4 bytes, 1 line end, two fields; "4/1 error: ..." */

static void
csv_is(const char *given, unsigned last, const char *wanted)
{
    int             n;
    char            text[256], got[512];
    size_t          i;
    ssize_t         rc;
    referral_csv_t  csv;

    memcpy(text, given, strlen(given));

    rc = referral_csv_record(&csv, (u_char *) text, strlen(given), last);

    if (rc == REFERRAL_AGAIN) {
        assert_string_equal("again", wanted);
        assert_memory_equal(text, given, strlen(given));
        return;
    }

    n = snprintf(got, sizeof(got), "%zd/%zu%s%s:", rc, csv.lines,
                 csv.error ? " " : csv.blank ? " blank" : "",
                 csv.error ? csv.error : "");

    for (i = 0; csv.error == NULL && i < csv.nfields; i++) {
        n += snprintf(&got[n], sizeof(got) - n, "%s%.*s", i ? "|" : " ",
                      (int) csv.fields[i].len, csv.fields[i].data);
    }

    assert_string_equal(got, wanted);
}


static void
csv_fields(void **state)
{
    csv_is("a,b\n", 0, "4/1: a|b");
    csv_is("a,b\nc,d\n", 0, "4/1: a|b");
    csv_is("a,,b,\n", 0, "6/1: a||b|");
    csv_is(",\n", 0, "2/1: |");
    csv_is(" a , b \n", 0, "8/1:  a | b ");
    csv_is("\"a\",\"b\"\n", 0, "8/1: a|b");
    csv_is("\"a,b\",c\n", 0, "8/1: a,b|c");
    csv_is("\"say \"\"yes\"\"\"\n", 0, "14/1: say \"yes\"");
    csv_is("\"\",\"\"\"\"\n", 0, "8/1: |\"");
    csv_is("\"a\nb\r\nc\",d\n", 0, "11/3: a\nb\r\nc|d");
}


static void
csv_ends(void **state)
{
    csv_is("a,b\r\nc", 0, "5/1: a|b");
    csv_is("\"a\"\r\n", 0, "5/1: a");
    csv_is("a,b", 1, "3/0: a|b");
    csv_is("a,\"b\"", 1, "5/0: a|b");
    csv_is("a,", 1, "2/0: a|");
    csv_is("", 1, "0/0:");
    csv_is("\n", 0, "1/1 blank: ");
    csv_is("\r\nx", 0, "2/1 blank: ");
}


static void
csv_again(void **state)
{
    csv_is("", 0, "again");
    csv_is("a,b", 0, "again");
    csv_is("a,b\r", 0, "again");
    csv_is("\"a\"\"", 0, "again");
    csv_is("\"a\"", 0, "again");
    csv_is("\"a\n", 0, "again");
}


static void
csv_errors(void **state)
{
    csv_is("a\"b,c\nd", 0, "6/1 a quote stands inside a field that does not "
                           "begin with one:");
    csv_is("\"a\"b,c\nd", 0, "7/1 something follows a closing quote:");
    csv_is("\"a\" ,\"c\nd\"\n", 0, "8/1 something follows a closing quote:");
    csv_is("a\rb\n", 0, "4/1 a carriage return stands outside of quotes:");
    csv_is("a\r", 1, "2/0 a carriage return stands outside of quotes:");
    csv_is("\"a\nb", 1, "4/1 its quote is never closed:");
    csv_is("\"", 1, "1/0 its quote is never closed:");
}


static void
csv_many(void **state)
{
    u_char          text[2 * REFERRAL_CSV_FIELDS + 2];
    referral_csv_t  csv;

    memset(text, ',', sizeof(text));
    text[REFERRAL_CSV_FIELDS - 1] = '\n';

    assert_int_equal(referral_csv_record(&csv, text, sizeof(text), 0),
                     REFERRAL_CSV_FIELDS);
    assert_null(csv.error);
    assert_int_equal(csv.nfields, REFERRAL_CSV_FIELDS);

    text[REFERRAL_CSV_FIELDS - 1] = ',';
    text[REFERRAL_CSV_FIELDS] = '\n';

    assert_int_equal(referral_csv_record(&csv, text, sizeof(text), 0),
                     REFERRAL_CSV_FIELDS + 1);
    assert_string_equal(csv.error, "there are more than 64 fields");
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(csv_fields),
        cmocka_unit_test(csv_ends),
        cmocka_unit_test(csv_again),
        cmocka_unit_test(csv_errors),
        cmocka_unit_test(csv_many)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
