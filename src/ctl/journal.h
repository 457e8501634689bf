
/*
 * Copyright (C) The nginx referral module authors
 *
 * referralctl journal: reads without locks and never writes, so it works on
 * live journals, on copies and on damaged ones, for anyone who may read.
 * Only adopt writes.
 */


#ifndef _CTL_JOURNAL_H_INCLUDED_
#define _CTL_JOURNAL_H_INCLUDED_


#include "ctl.h"
#include "referral_reader.h"
#include "referral_record.h"


/* what a walk over a stream found */

typedef struct {
    uint64_t                 first;        /* number, 0: none */
    uint64_t                 last;
    uint64_t                 records;
    uint64_t                 problems;
    referral_position_t      pos;          /* as it was before the walk */
} ctl_journal_sum_t;


/* a damaged or missing part; valid during the call only */

typedef struct {
    const char              *segment;      /* file name, or "" */
    uint64_t                 offset;
    uint64_t                 first;        /* records, 0: not known which */
    uint64_t                 last;
    const char              *text;
} ctl_journal_problem_t;


/* REFERRAL_DONE from record() ends the walk; both may be NULL */

typedef struct {
    int                    (*record)(void *data, referral_stream_t *s,
                                 const referral_frame_t *frame,
                                 const referral_record_t *rec);
    void                   (*problem)(void *data, referral_stream_t *s,
                                 const ctl_journal_problem_t *problem);
    void                    *data;
} ctl_journal_walk_t;


/* a journal and the streams asked for, oldest first */

typedef struct {
    referral_journal_t      *journal;
    const char              *path;
    char                    *parent;       /* storage of path, or NULL */
    referral_stream_t      **streams;
    size_t                   nstreams;
} ctl_journal_t;


int ctl_journal_list(ctl_options_t *o);
int ctl_journal_inspect(ctl_options_t *o);
int ctl_journal_verify(ctl_options_t *o);
int ctl_journal_export(ctl_options_t *o);
int ctl_journal_tail(ctl_options_t *o);
int ctl_journal_adopt(ctl_options_t *o);

/*
 * Opens the journal; name (or NULL: all) is the beginning of a stream's id,
 * or the path of its directory.  CTL_DONE, or the exit code after saying
 * what is wrong.
 */
int ctl_journal_open(ctl_journal_t *j, const ctl_options_t *o,
    const char *name);
void ctl_journal_close(ctl_journal_t *j);

/*
 * Reads the stream from record number from (0: its beginning) to its end.
 * REFERRAL_ERROR, after saying so, when reading failed.
 */
int ctl_journal_walk(const ctl_journal_t *j, referral_stream_t *s,
    uint64_t from, const ctl_journal_walk_t *w, ctl_journal_sum_t *sum);

/* says a problem on stderr */
void ctl_journal_complain(const ctl_journal_t *j, const referral_stream_t *s,
    const ctl_journal_problem_t *problem);

/* why records are not there; text has REFERRAL_ERROR_LEN bytes */
const char *ctl_journal_reason(const referral_stream_t *s,
    const referral_frame_t *frame, char *text);

const char *ctl_journal_state(const referral_stream_t *s);

/* the newest header that tells edge and pid, or NULL */
const referral_segment_header_t *ctl_journal_header(
    const referral_stream_t *s);


#endif /* _CTL_JOURNAL_H_INCLUDED_ */
