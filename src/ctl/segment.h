
/*
 * Copyright (C) The nginx referral module authors
 *
 * One segment file, looked at by itself.
 */


#ifndef _CTL_SEGMENT_H_INCLUDED_
#define _CTL_SEGMENT_H_INCLUDED_


#include "referral_segment.h"


typedef struct {
    uint64_t                   size;       /* of the file */
    uint64_t                   allocated;  /* on disk */
    referral_segment_header_t  header;
    int                        begin;      /* referral_segment_begin_decode */
    uint64_t                   begin_first;

    uint64_t                   records;    /* good frames */
    uint64_t                   first;      /* number of the first, 0: none */
    uint64_t                   last;
    uint64_t                   bytes;      /* of the good frames */
    uint64_t                   end;        /* offset behind the last one */

    unsigned                   damaged:1;  /* the header: nothing else known */
    unsigned                   torn:1;     /* a bad frame stands at end */
    char                       error[REFERRAL_ERROR_LEN];  /* if damaged */
} ctl_segment_t;


/* to look at good frames and at what is bad between them; may be NULL */

typedef struct {
    void                     (*frame)(void *data, uint64_t number,
                                   const u_char *payload, size_t len);
    void                     (*bad)(void *data, uint64_t offset,
                                  uint64_t len);
    void                      *data;
} ctl_segment_scan_t;


/* REFERRAL_ERROR with a sentence when the file cannot be read */
int ctl_segment_scan(ctl_segment_t *seg, const char *path,
    const ctl_segment_scan_t *scan, char *error);


#endif /* _CTL_SEGMENT_H_INCLUDED_ */
