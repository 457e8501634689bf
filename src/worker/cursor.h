
/*
 * Copyright (C) The nginx referral module authors
 *
 * The row of referral.ingest_cursor: reading it, and judging whether it and
 * our records belong to the same stream.
 */


#ifndef _REFERRAL_CURSOR_H_INCLUDED_
#define _REFERRAL_CURSOR_H_INCLUDED_


#include "pg.h"
#include "source.h"


/*
 * Reads the row, if there is one, and compares it with the records that are
 * still here.  REFERRAL_OK; REFERRAL_DECLINED: the stream was set aside;
 * REFERRAL_AGAIN: the source could not be read; REFERRAL_ERROR: Postgres
 * failed.
 */
int referral_cursor_load(referral_pg_t *pg, referral_source_t *src,
    referral_source_stream_t *st);

/* makes the row when there is none, then st->stream is set */
int referral_cursor_create(referral_pg_t *pg, referral_source_stream_t *st);

/*
 * Moves the cursor inside a transaction.  REFERRAL_DECLINED: it does not
 * stand where we think it does.
 */
int referral_cursor_move(referral_pg_t *pg, const referral_source_stream_t *st,
    uint64_t seq, const u_char *last_id, const uint64_t counts[4]);

/* says it once, until st->failing is reset */
void referral_cursor_unreadable(referral_source_stream_t *st,
    const char *error);

/* in the same transaction: n of the rows became dead letters */
int referral_cursor_refuse(referral_pg_t *pg,
    const referral_source_stream_t *st, uint64_t n);


#endif /* _REFERRAL_CURSOR_H_INCLUDED_ */
