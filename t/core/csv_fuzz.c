
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdlib.h>
#include <string.h>

#include "referral_csv.h"


#define check(condition)  if (!(condition)) abort()


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t csv_write(u_char *out, const referral_csv_t *csv);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t          i, len, pos, lines;
    u_char         *text, *copy, *out;
    ssize_t         n, m;
    referral_csv_t  csv, again;

    text = malloc(size + 1);
    copy = malloc(size + 1);
    out = malloc(2 * size + 3 * REFERRAL_CSV_FIELDS + 1);
    lines = 0;

    for (pos = 0; pos < size; pos += n) {

        len = size - pos;

        /* exact sizes: a byte too far is seen by the sanitizer */

        text = realloc(text, len);
        memcpy(text, data + pos, len);

        m = referral_csv_record(&again, text, len, 0);

        if (m == REFERRAL_AGAIN) {
            check(memcmp(text, data + pos, len) == 0);
        }

        memcpy(text, data + pos, len);
        n = referral_csv_record(&csv, text, len, 1);

        check(n > 0 && (size_t) n <= len);
        check(m == REFERRAL_AGAIN || m == n);

        lines += csv.lines;

        if (csv.error != NULL) {
            check((size_t) n == len || data[pos + n - 1] == '\n');
            continue;
        }

        check(csv.nfields >= 1 && csv.nfields <= REFERRAL_CSV_FIELDS);

        for (i = 0; i < csv.nfields; i++) {
            check(csv.fields[i].data >= text);
            check(csv.fields[i].data + csv.fields[i].len <= text + n);
        }

        /* what is written is read as the same */

        len = csv_write(out, &csv);
        copy = realloc(copy, len);
        memcpy(copy, out, len);

        check(referral_csv_record(&again, copy, len, 0) == (ssize_t) len);
        check(again.error == NULL && again.nfields == csv.nfields);

        for (i = 0; i < csv.nfields; i++) {
            check(again.fields[i].len == csv.fields[i].len);
            check(memcmp(again.fields[i].data, csv.fields[i].data,
                         csv.fields[i].len) == 0);
        }
    }

    for (i = 0; i < size; i++) {
        lines -= (data[i] == '\n');
    }

    check(lines == 0);

    free(text);
    free(copy);
    free(out);

    return 0;
}


static size_t
csv_write(u_char *out, const referral_csv_t *csv)
{
    size_t   i, j;
    u_char  *p;

    p = out;

    for (i = 0; i < csv->nfields; i++) {

        *p++ = '"';

        for (j = 0; j < csv->fields[i].len; j++) {

            if (csv->fields[i].data[j] == '"') {
                *p++ = '"';
            }

            *p++ = csv->fields[i].data[j];
        }

        *p++ = '"';
        *p++ = i + 1 < csv->nfields ? ',' : '\n';
    }

    return p - out;
}
