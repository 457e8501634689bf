
/*
 * Copyright (C) The nginx referral module authors
 *
 * Inside the reader: directories and segments (referral_reader.c), records
 * (referral_cursor.c), the saved position (referral_position.c) and what is
 * changed on disk (referral_reader_files.c).
 */


#ifndef _REFERRAL_READER_PRIVATE_H_INCLUDED_
#define _REFERRAL_READER_PRIVATE_H_INCLUDED_


#include "referral_reader.h"

#include <sys/types.h>


#define REFERRAL_STREAM_STATE_NEW  "committed.new"


struct referral_journal_s {
    char                *path;
    int                  dir;
    int                  lock;             /* -1: not held */
    referral_stream_t  **streams;
    size_t               nstreams;
    size_t               room;
    uint64_t             bytes;
    uint64_t             limit;
    uint64_t             newest;           /* ms, of the header with limit */
};


/* a place in a segment; it is parked (fd -1) at the end of a stream */

typedef struct referral_cursor_s {
    int                  fd;
    uint64_t             inode;            /* 0: no place yet */
    char                 name[64];
    uint64_t             first;
    uint64_t             offset;           /* where record next may stand */
    uint64_t             expect;           /* the number that belongs there */
    uint32_t             salt;
    unsigned             polls;            /* tails seen */
    unsigned             live:1;           /* the lock was held, last look */

    u_char              *buf;
    uint64_t             start;            /* offset of buf[0] */
    size_t               filled;
} referral_cursor_t;


/* an fd, or -1 and errno */
int referral_stream_open_dir(const referral_stream_t *s);

/*
 * Looks at the state first and then at the segments, so that what stands in
 * the segments of a stream that is seen final is all there will ever be.
 * REFERRAL_DECLINED: the directory is gone.
 */
int referral_stream_refresh(referral_stream_t *s, char *error);

/* the state alone, in the open directory dir */
int referral_stream_look(referral_stream_t *s, int dir, char *error);

/* reads up to len bytes, fewer only at the end of the file; -1 and errno */
ssize_t referral_read_at(int fd, u_char *buf, size_t len, uint64_t offset);

/* closes the file and frees the buffer; the place stays */
void referral_cursor_park(referral_cursor_t *c);


#endif /* _REFERRAL_READER_PRIVATE_H_INCLUDED_ */
