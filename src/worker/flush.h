
/*
 * Copyright (C) The nginx referral module authors
 *
 * Carrying records into Postgres, once and only once.  The position of a
 * stream moves in the transaction that writes its rows, from the value that
 * was read: a batch sent twice, a second worker and a commit whose answer was
 * lost all find that it has moved.
 */


#ifndef _REFERRAL_FLUSH_H_INCLUDED_
#define _REFERRAL_FLUSH_H_INCLUDED_


#include "batch.h"
#include "pg.h"
#include "source.h"


#define REFERRAL_FLUSH_DAYS  128


typedef struct {
    uint64_t                    rows;
    uint64_t                    quarantined;
    uint64_t                    dead;
    uint64_t                    gap;
    uint64_t                    batches;
} referral_flush_stat_t;


/* of one kind of log line */

typedef struct {
    uint64_t                    since;     /* monotonic ms */
    uint64_t                    hidden;
    unsigned                    lines;
} referral_flush_limit_t;


typedef struct {
    referral_pg_t              *pg;
    referral_source_t          *source;
    referral_batch_t            batch;
    referral_batch_t            next;      /* read while the batch commits */
    referral_source_stream_t   *ahead;     /* whose it is, NULL: nobody's */
    int                         last;      /* what ended its reading */
    uint64_t                    started;   /* of it, monotonic us */
    referral_buf_t              slice;

    size_t                      rows;      /* of a batch, at most */
    size_t                      limit;     /* of the next one */

    int64_t                     days[REFERRAL_FLUSH_DAYS];  /* since 1970, */
    size_t                      ndays;     /* whose partitions are there */

    int32_t                     stream;    /* of the COPY under way */
    unsigned                    copying:1; /* the failed statement was COPY */
    unsigned                    sending:1; /* rows, or what is none */
    unsigned                    more:1;    /* read ahead */

    referral_flush_stat_t       stat;
    uint64_t                    newest;    /* Unix ms of the last row */
    uint64_t                    began;     /* the batch, monotonic us */

    referral_flush_limit_t      gaps;
    referral_flush_limit_t      letters;
    referral_flush_limit_t      quarantines;
} referral_flush_t;


int referral_flush_init(referral_flush_t *f, referral_pg_t *pg, size_t rows);

/* at most so many rows a batch, from the next one on */
int referral_flush_resize(referral_flush_t *f, size_t rows);
void referral_flush_free(referral_flush_t *f);

/* nothing that an earlier connection said is believed */
void referral_flush_connected(referral_flush_t *f);

/*
 * One batch of one stream.  With more the next call is for the same stream:
 * what follows is read while the server commits.
 *
 *   REFERRAL_OK     committed, and there may be more
 *   REFERRAL_AGAIN  nothing more for now
 *   REFERRAL_ERROR  Postgres failed
 */
int referral_flush_stream(referral_flush_t *f, referral_source_stream_t *st,
    unsigned more);


#endif /* _REFERRAL_FLUSH_H_INCLUDED_ */
