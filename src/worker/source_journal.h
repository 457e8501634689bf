
/*
 * Copyright (C) The nginx referral module authors
 *
 * The journal as a source, and the freeing of its space.
 */


#ifndef _REFERRAL_SOURCE_JOURNAL_H_INCLUDED_
#define _REFERRAL_SOURCE_JOURNAL_H_INCLUDED_


#include <sys/types.h>

#include "source.h"


/* how long a segment was seen committed */

typedef struct {
    char                        name[64];
    uint64_t                    age;       /* ms */
} referral_segment_age_t;


typedef struct {
    referral_source_stream_t    base;      /* first: they are cast */

    referral_stream_t          *s;
    unsigned                    seen:1;    /* by the scan that runs */

    /* of free.c */

    uint64_t                    observed;  /* seq of the last reading */
    uint64_t                    when;      /* of it, 0: none */
    referral_segment_age_t     *ages;
    size_t                      nages;
} referral_journal_stream_t;


typedef struct {
    referral_source_t           base;
    referral_journal_t         *journal;

    uint64_t                    scanned;   /* when, monotonic ms */
    uint64_t                    changed;   /* mtime of the directory, ns */
    const char                 *path;
    dev_t                       dev;       /* of the directory that is open */
    ino_t                       ino;
    unsigned                    replaced:1;  /* the path names another one */
} referral_source_journal_t;


/* opens and locks; REFERRAL_DECLINED: another process has the journal */
int referral_source_journal_open(referral_source_journal_t *j,
    const char *path, char *error);
void referral_source_journal_close(referral_source_journal_t *j);


#endif /* _REFERRAL_SOURCE_JOURNAL_H_INCLUDED_ */
