
/*
 * Copyright (C) The nginx referral module authors
 *
 * The writing side of the journal: one stream, owned by one process for its
 * life.  Appending is a copy into mapped memory; everything that can block
 * (allocation, renaming, syncing) is done by a helper thread of the writer,
 * which has all signals blocked.
 *
 * Threads: every function here is for the owner's thread only.  The helper
 * hands over through atomics; what it has to say (errors) is fetched with
 * referral_writer_message().
 */


#ifndef _REFERRAL_WRITER_H_INCLUDED_
#define _REFERRAL_WRITER_H_INCLUDED_


#include "referral_core.h"


typedef struct referral_writer_s  referral_writer_t;


typedef struct {
    const char          *path;             /* the journal directory */
    uint64_t             size;             /* limit of the whole journal */
    size_t               segment;          /* bytes, multiple of the page */
    unsigned             sync;             /* milliseconds, 0: off */
    const char          *edge;             /* host name */

    /*
     * For a stream that takes the place of another one: its id, instead of a
     * random one.  The directory's name has REFERRAL_WRITER_HIDDEN behind the
     * id then: nobody reads it before the caller, having closed the stream,
     * renames it.
     */

    const u_char        *id;               /* NULL: random */
    uint64_t             limit;            /* for headers, 0: size */
} referral_writer_conf_t;


#define REFERRAL_WRITER_HIDDEN  ".adopt"


typedef struct {
    uint64_t             appended;         /* records = the last number */
    uint64_t             bytes;            /* frames with padding */
    uint64_t             segments;         /* taken into use */
    uint64_t             full;             /* reservations refused */
    uint64_t             synced;           /* number known to be on disk */
    uint64_t             errors;           /* of allocation and sync */
    uint64_t             journal;          /* all streams' bytes, last scan */
    uint64_t             noise;            /* of these, not-valid records */
} referral_writer_stat_t;


/*
 * Tests that a stream could be made in the directory: it exists, is a
 * directory, can be written, locked and preallocated with fallocate(2).
 * Leaves nothing behind.  REFERRAL_ERROR with a sentence that names the path
 * and the step.
 */
int referral_writer_probe(const referral_writer_conf_t *conf, char *error);

/*
 * Makes a new stream: directory, lock, first segment, helper thread.  Called
 * after fork in the process that will append.  On failure *w is NULL and
 * error[] has a sentence.
 */
int referral_writer_open(referral_writer_t **w,
    const referral_writer_conf_t *conf, char *error);

/*
 * Space for a payload of at most len bytes, in the mapping; NULL when the
 * journal is full or broken.  No system call.  Nothing is promised before
 * referral_writer_commit(), and a second reserve forgets the first.
 */
u_char *referral_writer_reserve(referral_writer_t *w, size_t len);

/* bytes of payload that a reserve gets without another segment */
size_t referral_writer_room(const referral_writer_t *w);

/*
 * Publishes the reserved payload, now len bytes long, and returns its number
 * (1, 2, 3, ...).  noise is 1 for verdicts other than valid.
 */
uint64_t referral_writer_commit(referral_writer_t *w, size_t len, int noise);

/*
 * 1 when records that are noise have used their tenth of the journal, as
 * last seen: the caller counts them instead of appending.
 */
int referral_writer_noise_full(const referral_writer_t *w);

/*
 * Work that is due soon, off the request path: wakes the helper.  Returns the
 * milliseconds after which it wants to be called again, 0 when not before the
 * next commit or refused reserve.
 */
unsigned referral_writer_tick(referral_writer_t *w);

/*
 * The oldest message that was not fetched yet: a sentence for the log, or
 * REFERRAL_DECLINED.  Repeated failures are one message a second.
 */
int referral_writer_message(referral_writer_t *w, char *text, size_t size);

/* 32 hex digits, NUL-terminated */
const char *referral_writer_stream(const referral_writer_t *w);

void referral_writer_stat(const referral_writer_t *w,
    referral_writer_stat_t *stat);

/*
 * Syncs once, gives the unused space back, removes an empty stream, releases
 * the lock.  Waits for the helper, at most for one fdatasync.
 */
void referral_writer_close(referral_writer_t *w);


#endif /* _REFERRAL_WRITER_H_INCLUDED_ */
