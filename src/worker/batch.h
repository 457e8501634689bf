
/*
 * Copyright (C) The nginx referral module authors
 *
 * The records of one transaction: read from a source, judged, and encoded
 * for COPY.
 */


#ifndef _REFERRAL_BATCH_H_INCLUDED_
#define _REFERRAL_BATCH_H_INCLUDED_


#include "copy.h"
#include "source.h"


/* where an item goes */

typedef enum {
    REFERRAL_ITEM_ROW = 0,
    REFERRAL_ITEM_QUARANTINE,
    REFERRAL_ITEM_DEAD,
    REFERRAL_ITEM_GAP
} referral_item_e;


typedef struct {
    uint64_t             number;           /* of a gap: the first */
    uint64_t             last;
    referral_item_e      kind;

    u_char              *payload;
    size_t               len;

    unsigned             has_id:1;
    u_char               id[REFERRAL_UUID_LEN];
    uint64_t             occurred;         /* Unix ms */

    const char          *reason;
    const char          *detail;

    /* the key of its counter */

    referral_str_t       code;
    referral_str_t       type;
    int64_t              program_id;
    int64_t              referrer_id;
    uint8_t              verdict;
    uint32_t             count;            /* kept by the first of its key */

    size_t               offset;           /* of the row in interaction */
} referral_item_t;


typedef struct {
    referral_item_t     *items;
    size_t               n;

    u_char              *arena;            /* payloads and texts */
    size_t               used;
    size_t               size;

    /* numbers of records, by referral_batch_judge() */

    uint64_t             rows;
    uint64_t             quarantined;
    uint64_t             dead;
    uint64_t             gap;

    /* by referral_batch_encode() */

    referral_buf_t       interaction;      /* all, or the last piece */
    size_t               encoded;          /* items */
    referral_buf_t       delta;
    referral_buf_t       dead_letter;
    referral_buf_t       quarantine;
    referral_buf_t       ingest_gap;

    uint32_t            *table;            /* hash of counter keys */
    size_t               table_size;
} referral_batch_t;


/* for at most max records */
int referral_batch_init(referral_batch_t *b, size_t max);
void referral_batch_free(referral_batch_t *b);

/*
 * Reads what there is, limit records of it at most, which is not more than
 * max.  REFERRAL_OK: the batch is full; otherwise what ended the reading:
 * REFERRAL_AGAIN, REFERRAL_DONE, REFERRAL_ERROR.
 */
int referral_batch_read(referral_batch_t *b, size_t limit,
    referral_source_t *src, referral_source_stream_t *st, char *error);

/* decides where every item goes; now: the clock of Postgres, Unix ms */
void referral_batch_judge(referral_batch_t *b, uint64_t now);

/* Postgres refused the item: it will be a dead letter */
void referral_batch_refuse(referral_batch_t *b, referral_item_t *item,
    const char *sqlstate, const char *message);

/*
 * Encodes the interactions: all at once, or, after referral_batch_rewind(), a
 * piece at a time, of no length at the end, each in the place of the one
 * before.
 */
int referral_batch_encode(referral_batch_t *b, int32_t stream);
void referral_batch_rewind(referral_batch_t *b);
int referral_batch_more(referral_batch_t *b, int32_t stream,
    const u_char **data, size_t *len);

/* encodes the rest, once it is settled which items are rows */
int referral_batch_encode_rest(referral_batch_t *b, int32_t stream);

/*
 * A COPY of items first to first + n - 1, rows only, into *out, after
 * referral_batch_encode().
 */
int referral_batch_slice(referral_batch_t *b, size_t first, size_t n,
    referral_buf_t *out);


#endif /* _REFERRAL_BATCH_H_INCLUDED_ */
