
/*
 * Copyright (C) The nginx referral module authors
 *
 * Where the flush reads from.  Today that is the journal of this machine; a
 * relay's stream is to stand behind the same face.
 */


#ifndef _REFERRAL_SOURCE_H_INCLUDED_
#define _REFERRAL_SOURCE_H_INCLUDED_


#include "referral_core.h"
#include "referral_reader.h"


typedef struct referral_source_s         referral_source_t;
typedef struct referral_source_stream_s  referral_source_stream_t;


struct referral_source_stream_s {
    u_char               id[REFERRAL_UUID_LEN];
    char                 name[REFERRAL_UUID_TEXT_LEN + 1];
    char                 edge[64];

    /* kept by the source */

    unsigned             aside:1;          /* not to be read */

    /* kept by the flush: the row of referral.ingest_cursor */

    int32_t              stream;
    uint64_t             seq;
    u_char               last_id[REFERRAL_UUID_LEN];
    unsigned             has_last_id:1;

    unsigned             loaded:1;         /* since the connection was made */
    unsigned             placed:1;         /* the source stands at seq + 1 */
    unsigned             ended:1;          /* final, and all of it committed */
    unsigned             dirty:1;          /* seq moved since it was saved */
    unsigned             failing:1;        /* reading failed, and was logged */
};


struct referral_source_s {

    /* finds new streams, forgets those that are gone */
    int (*scan)(referral_source_t *src, char *error);

    /* the next call of next() gives record number seq */
    int (*seek)(referral_source_t *src, referral_source_stream_t *st,
        uint64_t seq, char *error);

    /* as referral_stream_next() */
    int (*next)(referral_source_t *src, referral_source_stream_t *st,
        referral_frame_t *frame, char *error);

    /* 1 when record seq was here and is freed: it can not be compared */
    int (*freed)(referral_source_t *src, referral_source_stream_t *st,
        uint64_t seq);

    /* remembers the committed position: only a cache */
    int (*save)(referral_source_t *src, referral_source_stream_t *st,
        char *error);

    /* takes the stream out of the flush, for ever */
    int (*set_aside)(referral_source_t *src, referral_source_stream_t *st,
        const char *reason, char *error);

    /* kept by the implementation */

    referral_source_stream_t  **streams;
    size_t                      nstreams;
};


#endif /* _REFERRAL_SOURCE_H_INCLUDED_ */
