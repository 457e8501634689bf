
/*
 * Copyright (C) The nginx referral module authors
 *
 * Rows as COPY takes them (FORMAT binary), and the same rows as JSON.
 */


#ifndef _REFERRAL_COPY_H_INCLUDED_
#define _REFERRAL_COPY_H_INCLUDED_


#include "referral_core.h"
#include "referral_ip.h"


/*
 * A growing buffer.  Running out of memory sets failed and makes all further
 * additions do nothing: one check at the end is enough.
 */

typedef struct {
    u_char              *data;
    size_t               len;
    size_t               size;
    unsigned             failed;
} referral_buf_t;


typedef enum {
    REFERRAL_VALUE_NULL = 0,
    REFERRAL_VALUE_INT2,
    REFERRAL_VALUE_INT4,
    REFERRAL_VALUE_INT8,
    REFERRAL_VALUE_DATE,                   /* days since 1970 */
    REFERRAL_VALUE_TIME,                   /* Unix milliseconds */
    REFERRAL_VALUE_UUID,
    REFERRAL_VALUE_BYTEA,
    REFERRAL_VALUE_TEXT,                   /* cleaned when it is written */
    REFERRAL_VALUE_INET,
    REFERRAL_VALUE_JSON,                   /* valid JSON, as it is */
    REFERRAL_VALUE_SIGNALS                 /* bits, as an array of words */
} referral_value_e;


typedef struct {
    referral_value_e     type;
    int64_t              number;           /* INT*, DATE, TIME, SIGNALS */
    referral_str_t       text;             /* UUID, BYTEA, TEXT, JSON */
    const referral_ip_t *ip;
} referral_value_t;


/* setters; the text ones make an empty text a null */

void referral_value_int(referral_value_t *v, referral_value_e type,
    int64_t number);
void referral_value_id(referral_value_t *v, int64_t id);  /* 0: null */
void referral_value_text(referral_value_t *v, const referral_str_t *text);
void referral_value_bytes(referral_value_t *v, referral_value_e type,
    const u_char *data, size_t len);


void referral_buf_add(referral_buf_t *b, const void *data, size_t len);
void referral_buf_string(referral_buf_t *b, const char *text);
void referral_buf_free(referral_buf_t *b);

/* "text", cleaned and escaped, with its quotes (RFC 8259) */
void referral_buf_json(referral_buf_t *b, const referral_str_t *text);


void referral_copy_begin(referral_buf_t *b);
void referral_copy_row(referral_buf_t *b, const referral_value_t *values,
    size_t n);
void referral_copy_end(referral_buf_t *b);

/* the value as JSON for jsonb_populate_record() */
void referral_copy_json(referral_buf_t *b, const referral_value_t *v);


#endif /* _REFERRAL_COPY_H_INCLUDED_ */
