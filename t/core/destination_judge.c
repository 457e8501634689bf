
/*
 * Copyright (C) The nginx referral module authors
 *
 * Reads URLs from stdin, one a line in hex, and writes for each whether
 * referral_destination_check() accepts it: "1", or "0" and the reason.  For
 * comparing it with referral.destination_problem() of the schema.
 */


#include "referral_destination.h"
#include "referral_rule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>


#define JUDGE_URL_LEN  (2 * REFERRAL_URL_LEN)


static int judge_digit(int ch);
static int judge_line(const char *line);


int
main(int argc, char **argv)
{
    static char  line[2 * JUDGE_URL_LEN + 2];

    while (fgets(line, sizeof(line), stdin) != NULL) {

        if (judge_line(line) != 0) {
            fprintf(stderr, "destination_judge: no hex: %s\n", line);
            return 1;
        }
    }

    return 0;
}


static int
judge_line(const char *line)
{
    int             high, low;
    char            error[REFERRAL_ERROR_LEN];
    u_char          buf[JUDGE_URL_LEN];
    size_t          i, len;
    referral_str_t  url;

    len = strcspn(line, "\n");

    if (len % 2 != 0 || len > 2 * sizeof(buf)) {
        return -1;
    }

    for (i = 0; i < len; i += 2) {
        high = judge_digit(line[i]);
        low = judge_digit(line[i + 1]);

        if (high < 0 || low < 0) {
            return -1;
        }

        buf[i / 2] = (u_char) (high << 4 | low);
    }

    url.data = buf;
    url.len = len / 2;

    if (referral_destination_check(&url, error) == REFERRAL_OK) {
        puts("1");

    } else {
        printf("0 %s\n", error);
    }

    return 0;
}


static int
judge_digit(int ch)
{
    if (ch >= '0' && ch <= '9') {
        return ch - '0';
    }

    if (ch >= 'a' && ch <= 'f') {
        return ch - 'a' + 10;
    }

    return -1;
}
