
/*
 * Copyright (C) The nginx referral module authors
 */


#include "referral_csv.h"

#include <string.h>


static ssize_t referral_csv_end(referral_csv_t *csv, const u_char *text,
    size_t len, unsigned last);
static const char *referral_csv_after(const u_char *p, const u_char *end);
static u_char *referral_csv_quoted(referral_str_t *field, u_char *p,
    const u_char *end);


ssize_t
referral_csv_record(referral_csv_t *csv, u_char *text, size_t len,
    unsigned last)
{
    u_char          *p, *end;
    ssize_t          n;
    referral_str_t  *field;

    memset(csv, 0, sizeof(referral_csv_t));

    n = referral_csv_end(csv, text, len, last);

    if (n <= 0 || csv->error != NULL) {
        return n;
    }

    /* what is left is known to be well-formed */

    end = text + n;

    if (end > text && end[-1] == '\n') {
        end--;

        if (end > text && end[-1] == '\r') {
            end--;
        }
    }

    csv->blank = (end == text);

    for (p = text; /* void */ ; p++) {

        if (csv->nfields == REFERRAL_CSV_FIELDS) {
            csv->error = "there are more than 64 fields";
            return n;
        }

        field = &csv->fields[csv->nfields++];

        if (p < end && *p == '"') {
            p = referral_csv_quoted(field, p + 1, end);

        } else {
            field->data = p;

            while (p < end && *p != ',') {
                p++;
            }

            field->len = p - field->data;
        }

        if (p >= end) {
            return n;
        }
    }
}


/* finds where the record ends, and counts lines; changes nothing */

static ssize_t
referral_csv_end(referral_csv_t *csv, const u_char *text, size_t len,
    unsigned last)
{
    const u_char  *p, *end;

    enum {
        csv_start = 0,
        csv_plain,
        csv_quoted,
        csv_skip                           /* to the end of a bad line */
    } state;

    state = csv_start;
    end = text + len;

    for (p = text; p < end; p++) {

        if (state == csv_quoted) {

            if (*p == '\n') {
                csv->lines++;

            } else if (*p == '"') {

                if (p + 1 == end && !last) {
                    return REFERRAL_AGAIN;
                }

                if (p + 1 < end && p[1] == '"') {
                    p++;
                    continue;
                }

                csv->error = referral_csv_after(p + 1, end);
                state = csv->error ? csv_skip : csv_plain;
            }

            continue;
        }

        if (*p == '\n') {
            csv->lines++;
            return p + 1 - text;
        }

        if (state == csv_skip) {
            continue;
        }

        if (*p == '"') {

            if (state == csv_start) {
                state = csv_quoted;
                continue;
            }

            csv->error = "a quote stands inside a field that does not begin "
                         "with one";
            state = csv_skip;

        } else if (*p == '\r' && (p + 1 == end ? last : p[1] != '\n')) {
            csv->error = "a carriage return stands outside of quotes";
            state = csv_skip;

        } else {
            state = *p == ',' ? csv_start : csv_plain;
        }
    }

    if (!last) {
        return REFERRAL_AGAIN;
    }

    if (state == csv_quoted) {
        csv->error = "its quote is never closed";
    }

    return len;
}


/* what follows a closing quote; more of it is looked at when it is there */

static const char *
referral_csv_after(const u_char *p, const u_char *end)
{
    if (p == end || *p == ',' || *p == '\n' || *p == '\r') {
        return NULL;
    }

    return "something follows a closing quote";
}


/* p is behind the quote; returns what stands behind the closing one */

static u_char *
referral_csv_quoted(referral_str_t *field, u_char *p, const u_char *end)
{
    u_char  *q;

    field->data = p;

    for (q = p; /* void */ ; p++) {

        if (*p == '"') {
            p++;

            if (p == end || *p != '"') {
                break;
            }
        }

        *q++ = *p;
    }

    field->len = q - field->data;

    return p;
}
