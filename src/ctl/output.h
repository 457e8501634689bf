
/*
 * Copyright (C) The nginx referral module authors
 *
 * What referralctl prints: messages, tables for people, JSON for programs.
 * Text that came from clients is never given to a terminal as it is.
 */


#ifndef _CTL_OUTPUT_H_INCLUDED_
#define _CTL_OUTPUT_H_INCLUDED_


#include "referral_core.h"

#include <jansson.h>
#include <stdio.h>


#define CTL_SIZE_LEN  32                   /* size of ctl_size_text()'s buf */


typedef struct {
    const char          *title;
    unsigned             right:1;          /* aligned, for numbers */
} ctl_column_t;


typedef struct {
    const ctl_column_t  *columns;
    size_t               ncolumns;
    char               **cells;            /* rows of ncolumns */
    size_t               ncells;
    size_t               size;
    size_t              *widths;           /* NULL: nothing was printed yet */
} ctl_table_t;


/* memory or the end of the program, which is short-lived */
void *ctl_alloc(size_t size);
void *ctl_realloc(void *p, size_t size);
char *ctl_dup(const char *data, size_t len);

/* "referralctl: ..." on stderr */
void ctl_error(const char *fmt, ...) __attribute__ ((format(printf, 1, 2)));

/*
 * The text as it may be shown: valid UTF-8, control, formatting and
 * direction characters written as \x1b or \u202e.  To be freed.
 */
char *ctl_clean(const void *data, size_t len);

/* prints the text and spaces up to the width */
void ctl_pad(const char *text, size_t width, int right);

/* one text per column; NULL is "-".  Texts are cleaned and copied. */
void ctl_table_init(ctl_table_t *t, const ctl_column_t *columns, size_t n);
void ctl_table_row(ctl_table_t *t, const char **texts);
void ctl_table_print(ctl_table_t *t);      /* and frees */

/* prints the rows so far; columns do not become narrower afterwards */
void ctl_table_part(ctl_table_t *t);
void ctl_table_free(ctl_table_t *t);

/* "4.0 MB" */
const char *ctl_size_text(uint64_t bytes, char *buf);

/* a string with what is no UTF-8 replaced, or null when it is empty */
json_t *ctl_json_text(const void *data, size_t len);

/* null for 0 */
json_t *ctl_json_id(int64_t n);

/* prints and releases: a document on many lines, or one line */
void ctl_json_print(json_t *json);
void ctl_json_line(json_t *json);

/* the same line without its end, for parts of an array */
void ctl_json_part(json_t *json);

/*
 * Flushes.  REFERRAL_ERROR: nobody reads any more, or the output could not
 * be written, which is said.
 */
int ctl_flush(void);


#endif /* _CTL_OUTPUT_H_INCLUDED_ */
