
/*
 * Copyright (C) The nginx referral module authors
 *
 * The reading side of the journal: worker and referralctl.  Files are read
 * with pread(2), never mapped, and believed only where checksums hold.
 */


#ifndef _REFERRAL_READER_H_INCLUDED_
#define _REFERRAL_READER_H_INCLUDED_


#include "referral_core.h"
#include "referral_segment.h"


typedef struct referral_journal_s  referral_journal_t;


typedef enum {
    REFERRAL_STREAM_LIVE = 0,              /* its writer holds the lock */
    REFERRAL_STREAM_FINAL,                 /* never appended to again */
    REFERRAL_STREAM_SET_ASIDE              /* has the file "aside" */
} referral_stream_state_e;


typedef struct {
    char                       name[64];   /* file name */
    uint64_t                   first;      /* number, from the file */
    uint64_t                   size;       /* bytes of the file */
    uint64_t                   allocated;  /* bytes on disk */
    uint64_t                   inode;
    referral_segment_header_t  header;
    unsigned                   damaged:1;  /* header or begin block */
    unsigned                   used:1;     /* 0: a spare */
} referral_segment_t;


typedef struct {
    u_char                     id[REFERRAL_UUID_LEN];
    char                       name[REFERRAL_UUID_HEX_LEN + 1]; /* directory */
    referral_stream_state_e    state;
    referral_segment_t        *segments;   /* by first, unused spares last */
    size_t                     nsegments;  /* all */
    size_t                     nused;      /* of them in use */

    /* the position: the next record that referral_stream_next() gives */

    uint64_t                   next;

    /* private to the reader */

    struct referral_cursor_s  *cursor;
    referral_journal_t        *journal;
} referral_stream_t;


/* a record in its frame, or a hole in the numbers */

typedef struct {
    uint64_t                   number;     /* of the record; hole: first */
    uint64_t                   last;       /* hole: last, record: number */
    const u_char              *payload;    /* valid until the next call */
    size_t                     len;
    char                       segment[64];
    uint64_t                   offset;     /* of the frame */
    char                       problem[REFERRAL_ERROR_LEN];  /* of a hole */
} referral_frame_t;


/* the saved position, file "committed": a cache, Postgres wins */

typedef struct {
    uint64_t                   seq;        /* committed number */
    u_char                     last_id[REFERRAL_UUID_LEN];
    char                       segment[64];/* where seq + 1 begins */
    uint64_t                   offset;
    uint64_t                   freed;      /* numbers 1..freed are unlinked */
} referral_position_t;


/*
 * Opens and scans; REFERRAL_ERROR with a sentence that names the path.  A
 * stream that cannot be looked at is no error here.
 */
int referral_journal_open(referral_journal_t **j, const char *path,
    char *error);
void referral_journal_close(referral_journal_t *j);

/*
 * Takes reader.lock (OFD lock, O_CLOEXEC).  REFERRAL_DECLINED: another
 * process has it, error[] says which pid if that is known.
 */
int referral_journal_lock(referral_journal_t *j, char *error);

/*
 * Looks at the directory again: new streams appear, removed ones go,
 * segments and states are refreshed; positions stay.  Entries that are not
 * ours are skipped.  Streams keep their addresses until they go.
 *
 *   REFERRAL_OK     as above
 *   REFERRAL_AGAIN  the same, but a stream could not be looked at, which
 *                   error[] names; reading it says so again
 *   REFERRAL_ERROR  the directory could not be read
 */
int referral_journal_scan(referral_journal_t *j, char *error);

size_t referral_journal_streams(const referral_journal_t *j);
referral_stream_t *referral_journal_stream(const referral_journal_t *j,
    size_t n);

/*
 * Bytes of all segment files as of the last scan, less what was unlinked
 * since; the limit that the newest header names.
 */
uint64_t referral_journal_bytes(const referral_journal_t *j);
uint64_t referral_journal_limit(const referral_journal_t *j);


/*
 * The next call of referral_stream_next() gives record number seq, if it is
 * there.  hint (may be NULL) is a position that spares the scan of a segment
 * when it still fits.
 */
int referral_stream_seek(referral_stream_t *s, uint64_t seq,
    const referral_position_t *hint, char *error);

/*
 * The next record.
 *
 *   REFERRAL_OK        frame is set, next is one further
 *   REFERRAL_HOLE      records frame->number..frame->last are not there
 *                      (damaged, or freed, or a segment is gone) though later
 *                      ones are; next is behind the hole
 *   REFERRAL_AGAIN     the tail of a live stream: nothing more for now
 *   REFERRAL_DONE      the end of a final stream
 *   REFERRAL_ERROR     reading failed (errno in error[]); try again
 *
 * A stream is looked at again for its state before an unwritten frame is
 * believed to be the end.
 */
int referral_stream_next(referral_stream_t *s, referral_frame_t *frame,
    char *error);

/*
 * Where the next record begins, for the saved position: sets seq, segment and
 * offset; last_id and freed are the caller's.
 */
void referral_stream_position(const referral_stream_t *s,
    referral_position_t *pos);

/* the file "committed": written beside and renamed; read with its checksum */
int referral_position_save(referral_stream_t *s,
    const referral_position_t *pos, char *error);
int referral_position_load(referral_stream_t *s, referral_position_t *pos,
    char *error);

/*
 * Unlinks segment n, which must not be the last used one or a spare of a live
 * stream.  An absent file is no error.  Those behind it move up by one, and
 * the bytes of the journal become fewer.
 */
int referral_stream_unlink(referral_stream_t *s, size_t n, char *error);

/* 1: its writer had the lock at the last look, also of one set aside */
int referral_stream_written(const referral_stream_t *s);

/* removes a final stream without segments: its files and its directory */
int referral_stream_remove(referral_stream_t *s, char *error);

/* writes the file "aside" with the reason as its text */
int referral_stream_set_aside(referral_stream_t *s, const char *reason,
    char *error);


#endif /* _REFERRAL_READER_H_INCLUDED_ */
