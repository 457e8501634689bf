
/*
 * Copyright (C) The nginx referral module authors
 */


#include "output.h"
#include "referral_utf8.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>


static unsigned ctl_utf8_char(const u_char *p, size_t *len);
static int ctl_hidden(unsigned c);
static size_t ctl_width(const char *text);
static void ctl_json_write(json_t *json, size_t flags);


void *
ctl_alloc(size_t size)
{
    return ctl_realloc(NULL, size);
}


void *
ctl_realloc(void *p, size_t size)
{
    void  *new;

    new = realloc(p, size ? size : 1);

    if (new == NULL) {
        ctl_error("out of memory (%zu bytes wanted)", size);
        exit(1);
    }

    if (p == NULL) {
        memset(new, 0, size ? size : 1);
    }

    return new;
}


char *
ctl_dup(const char *data, size_t len)
{
    char  *p;

    p = ctl_alloc(len + 1);

    if (len) {
        memcpy(p, data, len);
    }

    return p;
}


void
ctl_error(const char *fmt, ...)
{
    char     text[4096], *clean, *p;
    size_t   len;
    va_list  args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);

    fflush(stdout);

    /* libpq's messages have several lines */

    for (p = text; *p != '\0'; p++) {
        if (*p == '\n' || *p == '\t') {
            *p = ' ';
        }
    }

    len = p - text;

    while (len && text[len - 1] == ' ') {
        len--;
    }

    clean = ctl_clean(text, len);
    fprintf(stderr, "referralctl: %s\n", clean);
    free(clean);
}


char *
ctl_clean(const void *data, size_t len)
{
    char      *out, *q;
    u_char    *text, *p;
    size_t     n;
    unsigned   c;

    text = ctl_alloc(3 * len + 1);
    len = referral_utf8_clean(text, data, len);

    /* the longest escape, 6 bytes, can stand for one byte */

    out = ctl_alloc(6 * len + 1);
    q = out;

    for (p = text; p < text + len; p += n) {

        c = ctl_utf8_char(p, &n);

        if (c < 0x20 || c == 0x7f) {
            q += sprintf(q, "\\x%02x", c);

        } else if (ctl_hidden(c)) {
            q += sprintf(q, "\\u%04x", c);

        } else {
            memcpy(q, p, n);
            q += n;
        }
    }

    *q = '\0';
    free(text);

    return out;
}


/* the text is valid UTF-8 */

static unsigned
ctl_utf8_char(const u_char *p, size_t *len)
{
    if (p[0] < 0x80) {
        *len = 1;
        return p[0];
    }

    if (p[0] < 0xe0) {
        *len = 2;
        return (p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    }

    if (p[0] < 0xf0) {
        *len = 3;
        return (p[0] & 0x0f) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    }

    *len = 4;
    return (p[0] & 0x07) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6
           | (p[3] & 0x3f);
}


/* C1 controls, and marks that reorder or hide what stands beside them */

static int
ctl_hidden(unsigned c)
{
    return (c >= 0x80 && c <= 0x9f) || c == 0xad || c == 0x061c
           || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e)
           || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff
           || (c >= 0xfff9 && c <= 0xfffb);
}


/* columns that a text takes on a terminal */

static size_t
ctl_width(const char *text)
{
    int            w;
    size_t         n, len, width;
    const u_char  *p;

    width = 0;
    p = (const u_char *) text;
    len = strlen(text);

    for (p = (const u_char *) text; len; p += n, len -= n) {
        w = wcwidth((wchar_t) ctl_utf8_char(p, &n));

        if (n > len) {
            break;
        }

        /* negative: not known to this locale */

        width += w < 0 ? 1 : w;
    }

    return width;
}


void
ctl_pad(const char *text, size_t width, int right)
{
    int     fill;
    size_t  w;

    w = ctl_width(text);
    fill = w < width ? (int) (width - w) : 0;

    if (right) {
        printf("%*s%s", fill, "", text);

    } else {
        printf("%s%*s", text, fill, "");
    }
}


void
ctl_table_init(ctl_table_t *t, const ctl_column_t *columns, size_t n)
{
    memset(t, 0, sizeof(ctl_table_t));

    t->columns = columns;
    t->ncolumns = n;
}


void
ctl_table_row(ctl_table_t *t, const char **texts)
{
    size_t       i;
    const char  *text;

    if (t->ncells + t->ncolumns > t->size) {
        t->size = 2 * t->size + 16 * t->ncolumns;
        t->cells = ctl_realloc(t->cells, t->size * sizeof(char *));
    }

    for (i = 0; i < t->ncolumns; i++) {
        text = (texts[i] && texts[i][0]) ? texts[i] : "-";
        t->cells[t->ncells++] = ctl_clean(text, strlen(text));
    }
}


void
ctl_table_print(ctl_table_t *t)
{
    ctl_table_part(t);
    ctl_table_free(t);
}


void
ctl_table_part(ctl_table_t *t)
{
    int     last;
    size_t  i, w, titles;

    titles = 0;

    if (t->widths == NULL) {
        t->widths = ctl_alloc(t->ncolumns * sizeof(size_t));
        titles = t->ncolumns;

        for (i = 0; i < t->ncolumns; i++) {
            t->widths[i] = ctl_width(t->columns[i].title);
        }
    }

    for (i = 0; i < t->ncells; i++) {
        w = ctl_width(t->cells[i]);

        if (w > t->widths[i % t->ncolumns]) {
            t->widths[i % t->ncolumns] = w;
        }
    }

    for (i = 0; i < titles + t->ncells; i++) {

        last = (i % t->ncolumns == t->ncolumns - 1);

        ctl_pad(i < titles ? t->columns[i].title : t->cells[i - titles],
                last && !t->columns[i % t->ncolumns].right
                     ? 0 : t->widths[i % t->ncolumns],
                t->columns[i % t->ncolumns].right);

        fputs(last ? "\n" : "  ", stdout);
    }

    for (i = 0; i < t->ncells; i++) {
        free(t->cells[i]);
    }

    t->ncells = 0;
}


void
ctl_table_free(ctl_table_t *t)
{
    free(t->cells);
    free(t->widths);

    t->cells = NULL;
    t->widths = NULL;
}


const char *
ctl_size_text(uint64_t bytes, char *buf)
{
    double       n;
    size_t       i;

    static const char *units[] = { "B", "KB", "MB", "GB", "TB" };

    n = (double) bytes;

    for (i = 0; n >= 1024 && i < 4; i++) {
        n /= 1024;
    }

    snprintf(buf, CTL_SIZE_LEN, i ? "%.1f %s" : "%.0f %s", n, units[i]);

    return buf;
}


json_t *
ctl_json_text(const void *data, size_t len)
{
    json_t  *json;
    u_char  *text;

    if (len == 0) {
        return json_null();
    }

    text = ctl_alloc(3 * len);
    len = referral_utf8_clean(text, data, len);
    json = json_stringn((char *) text, len);
    free(text);

    return json ? json : json_null();
}


json_t *
ctl_json_id(int64_t n)
{
    return n ? json_integer(n) : json_null();
}


void
ctl_json_print(json_t *json)
{
    ctl_json_write(json, JSON_INDENT(2)|JSON_ENCODE_ANY);
    (void) putchar('\n');
}


void
ctl_json_line(json_t *json)
{
    ctl_json_write(json, JSON_COMPACT);
    (void) putchar('\n');
}


void
ctl_json_part(json_t *json)
{
    ctl_json_write(json, JSON_COMPACT);
}


/* JSON leaves some characters bare that a terminal would obey */

static void
ctl_json_write(json_t *json, size_t flags)
{
    char      *text;
    size_t     n;
    u_char    *p, *run;
    unsigned   c;

    text = json_dumps(json, flags);
    json_decref(json);

    if (text == NULL) {
        ctl_error("out of memory");
        exit(1);
    }

    run = (u_char *) text;

    for (p = run; *p != '\0'; p += n) {

        n = 1;

        if (*p < 0x7f) {
            continue;
        }

        c = ctl_utf8_char(p, &n);

        if (c == 0x7f || ctl_hidden(c)) {
            (void) fwrite(run, 1, p - run, stdout);
            printf("\\u%04x", c);
            run = p + n;
        }
    }

    (void) fwrite(run, 1, p - run, stdout);
    free(text);
}


int
ctl_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) {
        return REFERRAL_OK;
    }

    if (errno != EPIPE) {
        ctl_error("the output could not be written: %s", strerror(errno));
    }

    return REFERRAL_ERROR;
}
