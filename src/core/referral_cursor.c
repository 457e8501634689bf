
/*
 * Copyright (C) The nginx referral module authors
 *
 * Records in their order.  A place is a segment, known by its inode since
 * names change, and an offset; what is expected there is record s->next.
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_reader_private.h"
#include "referral_record.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


#define REFERRAL_CURSOR_FRAME   (REFERRAL_FRAME_HEAD + REFERRAL_RECORD_MAX)
#define REFERRAL_CURSOR_BUFFER  (256 * 1024 + REFERRAL_CURSOR_FRAME)

#define REFERRAL_CURSOR_LEAST   24         /* bytes of the shortest frame */

#define REFERRAL_CURSOR_TRIES   64
#define REFERRAL_CURSOR_POLLS   64         /* tails between two scans */


static int referral_cursor_enter(referral_stream_t *s,
    referral_frame_t *frame, char *error);
static int referral_cursor_open(referral_stream_t *s,
    const referral_segment_t *seg, char *error);
static int referral_cursor_reopen(referral_stream_t *s, char *error);
static void referral_cursor_reset(referral_cursor_t *c);
static int referral_cursor_view(referral_stream_t *s, uint64_t offset,
    int fresh, const u_char **p, size_t *avail, char *error);
static int referral_cursor_look(referral_stream_t *s, int fresh,
    uint64_t *number, const u_char **payload, size_t *len, char *error);
static int referral_cursor_tail(referral_stream_t *s,
    referral_frame_t *frame, char *error);
static int referral_cursor_gap(referral_stream_t *s, int bad,
    const referral_segment_t *seg, const referral_segment_t *after,
    referral_frame_t *frame, char *error);
static int referral_cursor_damage(referral_stream_t *s, int bad,
    uint64_t limit, referral_frame_t *frame, char *error);
static int referral_cursor_resync(referral_stream_t *s, uint64_t limit,
    uint64_t *found, uint64_t *number, char *error);
static int referral_cursor_hole(referral_stream_t *s, referral_frame_t *frame,
    uint64_t last, const char *what);
static const referral_segment_t *referral_segment_of(
    const referral_stream_t *s, uint64_t number);
static const referral_segment_t *referral_segment_after(
    const referral_stream_t *s, uint64_t number);


#define referral_cursor_is_bad(rc)                                           \
    ((rc) == REFERRAL_AGAIN || (rc) == REFERRAL_DECLINED)


int
referral_stream_seek(referral_stream_t *s, uint64_t seq,
    const referral_position_t *hint, char *error)
{
    int                  rc;
    size_t               i, len;
    uint64_t             number;
    const u_char        *p;
    referral_cursor_t   *c;
    referral_segment_t  *seg;

    if (seq == 0 || seq > INT64_MAX) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "\"%s/%s\": %llu is no record number", s->journal->path,
                 s->name, (unsigned long long) seq);
        return REFERRAL_ERROR;
    }

    c = s->cursor;
    s->next = seq;
    referral_cursor_reset(c);

    if (hint == NULL || hint->seq + 1 != seq
        || hint->offset < REFERRAL_SEGMENT_DATA || hint->offset % 8 != 0)
    {
        return REFERRAL_OK;
    }

    for (i = 0; i < s->nused; i++) {
        seg = &s->segments[i];

        if (strcmp(seg->name, hint->segment) != 0 || seg->header.salt == 0
            || seg->first > seq || hint->offset >= seg->size)
        {
            continue;
        }

        rc = referral_cursor_open(s, seg, error);

        if (rc == REFERRAL_OK) {
            c->offset = hint->offset;
            c->expect = seq;
            rc = referral_cursor_look(s, 1, &number, &p, &len, error);

            if (rc == REFERRAL_OK && number == seq) {
                return REFERRAL_OK;
            }
        }

        /* it does not fit any more: the segment is read from its beginning */

        referral_cursor_reset(c);
        break;
    }

    return REFERRAL_OK;
}


int
referral_stream_next(referral_stream_t *s, referral_frame_t *frame,
    char *error)
{
    int                 rc;
    size_t              len;
    uint64_t            number, offset;
    unsigned            tries;
    const u_char       *p;
    referral_cursor_t  *c;

    c = s->cursor;

    for (tries = 0; tries < REFERRAL_CURSOR_TRIES; /* void */ ) {

        if (c->fd == -1) {
            rc = referral_cursor_enter(s, frame, error);

            if (rc != REFERRAL_OK) {
                return rc;
            }
        }

        rc = referral_cursor_look(s, 0, &number, &p, &len, error);

        if (referral_cursor_is_bad(rc)) {
            rc = referral_cursor_look(s, 1, &number, &p, &len, error);
        }

        if (rc == REFERRAL_ERROR) {
            return REFERRAL_ERROR;
        }

        if (rc == REFERRAL_OK) {

            if (number > s->next) {
                return referral_cursor_hole(s, frame, number - 1,
                                            "numbers are missing");
            }

            if (number >= c->expect) {
                c->expect = number + 1;
            }

            if (number < s->next) {
                c->offset += referral_frame_size(len);
                continue;
            }

            frame->number = number;
            frame->last = number;
            frame->payload = p;
            frame->len = len;
            frame->offset = c->offset;
            frame->problem[0] = '\0';
            memcpy(frame->segment, c->name, sizeof(frame->segment));

            c->offset += referral_frame_size(len);
            c->polls = 0;
            s->next++;

            return REFERRAL_OK;
        }

        offset = c->offset;
        rc = referral_cursor_tail(s, frame, error);

        if (rc != REFERRAL_OK) {
            return rc;
        }

        tries = c->offset == offset ? tries + 1 : 0;
    }

    snprintf(error, REFERRAL_ERROR_LEN,
             "\"%s/%s\" changes faster than it can be read",
             s->journal->path, s->name);

    return REFERRAL_ERROR;
}


void
referral_stream_position(const referral_stream_t *s, referral_position_t *pos)
{
    pos->seq = s->next - 1;
    pos->offset = s->cursor->inode ? s->cursor->offset : 0;

    memset(pos->segment, 0, sizeof(pos->segment));

    if (s->cursor->inode) {
        memcpy(pos->segment, s->cursor->name, sizeof(pos->segment));
    }
}


/*
 * Opens the segment of record s->next: where the cursor was parked, or from
 * its beginning.
 */

static int
referral_cursor_enter(referral_stream_t *s, referral_frame_t *frame,
    char *error)
{
    int                        rc;
    unsigned                   tries;
    const referral_segment_t  *seg, *after;

    if (s->cursor->inode) {
        rc = referral_cursor_reopen(s, error);

        if (rc != REFERRAL_DECLINED) {
            return rc;
        }
    }

    /* the first time with what is known, then with what is there */

    for (tries = 0; tries < REFERRAL_CURSOR_TRIES; tries++) {

        if (tries > 0) {
            rc = referral_stream_refresh(s, error);

            if (rc == REFERRAL_DECLINED) {
                return REFERRAL_DONE;
            }

            if (rc != REFERRAL_OK) {
                return REFERRAL_ERROR;
            }
        }

        seg = referral_segment_of(s, s->next);

        if (seg != NULL && seg->header.salt) {
            rc = referral_cursor_open(s, seg, error);

            if (rc != REFERRAL_DECLINED) {
                return rc;
            }

            continue;
        }

        /* two looks: a listing may miss a file that is being renamed */

        if (tries < 2) {
            continue;
        }

        after = referral_segment_after(s, s->next);

        if (after == NULL) {
            return s->cursor->live ? REFERRAL_AGAIN : REFERRAL_DONE;
        }

        return referral_cursor_hole(s, frame, after->first - 1,
                                    seg != NULL ? "the header is damaged"
                                                : "the segment is gone");
    }

    snprintf(error, REFERRAL_ERROR_LEN,
             "\"%s/%s\" changes faster than it can be read",
             s->journal->path, s->name);

    return REFERRAL_ERROR;
}


/* REFERRAL_DECLINED: it is not there any more */

static int
referral_cursor_open(referral_stream_t *s, const referral_segment_t *seg,
    char *error)
{
    int                 dir, fd, rc, err;
    struct stat         st;
    referral_cursor_t  *c;

    c = s->cursor;
    fd = -1;
    dir = referral_stream_open_dir(s);

    if (dir != -1) {
        fd = openat(dir, seg->name, O_RDONLY|O_NOFOLLOW|O_NONBLOCK|O_CLOEXEC);
    }

    err = errno;

    if (dir != -1) {
        (void) close(dir);
    }

    if (fd == -1) {

        if (err == ENOENT) {
            return REFERRAL_DECLINED;
        }

        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s/%s\" cannot be read: %s",
                 s->journal->path, s->name, seg->name, strerror(err));
        return REFERRAL_ERROR;
    }

    rc = fstat(fd, &st);

    if (rc == -1 || st.st_ino != seg->inode) {
        (void) close(fd);
        return REFERRAL_DECLINED;
    }

    if (c->fd != -1) {
        (void) close(c->fd);
    }

    c->fd = fd;
    c->inode = seg->inode;
    c->first = seg->first;
    c->salt = seg->header.salt;
    c->offset = REFERRAL_SEGMENT_DATA;
    c->expect = seg->first;
    c->filled = 0;
    memcpy(c->name, seg->name, sizeof(c->name));

    return REFERRAL_OK;
}


static int
referral_cursor_reopen(referral_stream_t *s, char *error)
{
    int                        rc;
    size_t                     i;
    uint64_t                   offset, expect;
    const referral_segment_t  *seg;

    rc = referral_stream_refresh(s, error);

    if (rc == REFERRAL_DECLINED) {
        return REFERRAL_DONE;
    }

    if (rc != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    offset = s->cursor->offset;
    expect = s->cursor->expect;

    for (i = 0; i < s->nused; i++) {
        seg = &s->segments[i];

        if (seg->inode == s->cursor->inode && seg->header.salt) {
            rc = referral_cursor_open(s, seg, error);

            if (rc == REFERRAL_OK) {
                s->cursor->offset = offset;
                s->cursor->expect = expect;
            }

            return rc;
        }
    }

    return REFERRAL_DECLINED;
}


void
referral_cursor_park(referral_cursor_t *c)
{
    if (c->fd != -1) {
        (void) close(c->fd);
        c->fd = -1;
    }

    free(c->buf);

    c->buf = NULL;
    c->filled = 0;
}


static void
referral_cursor_reset(referral_cursor_t *c)
{
    if (c->fd != -1) {
        (void) close(c->fd);
        c->fd = -1;
    }

    c->inode = 0;
    c->filled = 0;
    c->offset = 0;
    c->name[0] = '\0';
}


/*
 * Bytes of the segment from offset on: a whole frame of the longest kind, or
 * all up to the end of the file as it was when it was read.
 */

static int
referral_cursor_view(referral_stream_t *s, uint64_t offset, int fresh,
    const u_char **p, size_t *avail, char *error)
{
    ssize_t             n;
    uint64_t            end;
    referral_cursor_t  *c;

    c = s->cursor;
    end = c->start + c->filled;

    if (fresh || c->buf == NULL || c->filled == 0 || offset < c->start
        || offset > end
        || (c->filled == REFERRAL_CURSOR_BUFFER
            && end - offset < REFERRAL_CURSOR_FRAME))
    {
        if (c->buf == NULL) {
            c->buf = malloc(REFERRAL_CURSOR_BUFFER);

            if (c->buf == NULL) {
                snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\": no memory",
                         s->journal->path, s->name);
                return REFERRAL_ERROR;
            }
        }

        c->filled = 0;
        n = referral_read_at(c->fd, c->buf, REFERRAL_CURSOR_BUFFER, offset);

        if (n == -1) {
            snprintf(error, REFERRAL_ERROR_LEN,
                     "\"%s/%s/%s\" cannot be read at %llu: %s",
                     s->journal->path, s->name, c->name,
                     (unsigned long long) offset, strerror(errno));
            return REFERRAL_ERROR;
        }

        c->start = offset;
        c->filled = (size_t) n;
        end = offset + c->filled;
    }

    *p = c->buf + (offset - c->start);
    *avail = (size_t) (end - offset);

    return REFERRAL_OK;
}


/*
 * The frame at the cursor: REFERRAL_AGAIN when it is not written,
 * REFERRAL_DECLINED when it is bad, REFERRAL_ERROR when reading failed.
 */

static int
referral_cursor_look(referral_stream_t *s, int fresh, uint64_t *number,
    const u_char **payload, size_t *len, char *error)
{
    int            rc;
    size_t         avail;
    const u_char  *p;

    if (referral_cursor_view(s, s->cursor->offset, fresh, &p, &avail, error)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    rc = referral_frame_check(p, avail, s->cursor->salt, number, len);

    if (rc == REFERRAL_ERROR
        || (rc == REFERRAL_OK && (*number == 0 || *number >= INT64_MAX)))
    {
        return REFERRAL_DECLINED;
    }

    *payload = p + REFERRAL_FRAME_HEAD;

    return rc;
}


/*
 * No good frame at the cursor.  REFERRAL_OK: look again, there may be one
 * now.  The order matters: the lock is looked at first, then the directory,
 * then the frame again, so that the end is believed only when it is final,
 * and a hole only when a record behind it was seen before.
 */

static int
referral_cursor_tail(referral_stream_t *s, referral_frame_t *frame,
    char *error)
{
    int                        rc, bad;
    size_t                     len;
    uint64_t                   number;
    const u_char              *p;
    referral_cursor_t         *c;
    const referral_segment_t  *seg, *after;

    c = s->cursor;

    rc = referral_stream_refresh(s, error);

    if (rc == REFERRAL_DECLINED) {
        return REFERRAL_DONE;
    }

    if (rc != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    bad = referral_cursor_look(s, 1, &number, &p, &len, error);

    if (!referral_cursor_is_bad(bad)) {
        return bad;
    }

    seg = referral_segment_of(s, s->next);

    if (seg != NULL && seg->inode == c->inode) {
        memcpy(c->name, seg->name, sizeof(c->name));

    } else if (seg != NULL
               && (seg->first > c->first
                   || (seg->first == c->first
                       && c->offset == REFERRAL_SEGMENT_DATA)))
    {
        if (seg->header.salt == 0) {
            referral_cursor_reset(c);
            return REFERRAL_OK;
        }

        rc = referral_cursor_open(s, seg, error);
        return rc == REFERRAL_DECLINED ? REFERRAL_OK : rc;
    }

    after = referral_segment_after(s, s->next);

    /*
     * Behind the tail of a live stream stand zeroes, and they are many: what
     * may stand behind them is looked for now and then.
     */

    if (after != NULL || !c->live || bad == REFERRAL_DECLINED
        || ++c->polls % REFERRAL_CURSOR_POLLS == 0)
    {
        rc = referral_cursor_damage(s, bad,
                                    after != NULL ? after->first : INT64_MAX,
                                    frame, error);

        if (rc != REFERRAL_DECLINED) {
            return rc;
        }
    }

    if (after != NULL) {
        return referral_cursor_gap(s, bad, seg, after, frame, error);
    }

    if (c->live) {
        return REFERRAL_AGAIN;
    }

    referral_cursor_park(c);

    return REFERRAL_DONE;
}


/* are there good frames behind a bad one?  REFERRAL_DECLINED: no */

static int
referral_cursor_damage(referral_stream_t *s, int bad, uint64_t limit,
    referral_frame_t *frame, char *error)
{
    int                 rc;
    size_t              len;
    uint64_t            found, number, n;
    const u_char       *p;
    referral_cursor_t  *c;

    c = s->cursor;

    rc = referral_cursor_resync(s, limit, &found, &number, error);

    if (rc != REFERRAL_OK) {
        return rc;
    }

    /* written before the one that was found, if it was written meanwhile */

    rc = referral_cursor_look(s, 1, &n, &p, &len, error);

    if (!referral_cursor_is_bad(rc)) {
        return rc;
    }

    rc = REFERRAL_OK;

    if (number > s->next) {
        rc = referral_cursor_hole(s, frame, number - 1,
                                  bad == REFERRAL_DECLINED
                                  ? "the checksum is wrong"
                                  : "nothing is written");
    }

    c->offset = found;
    c->expect = number;

    return rc;
}


/*
 * Numbers grow by one from frame to frame, and no frame is shorter than 24
 * bytes: that leaves few numbers that a frame at some place may have.
 */

static int
referral_cursor_resync(referral_stream_t *s, uint64_t limit, uint64_t *found,
    uint64_t *number, char *error)
{
    size_t              avail, len;
    uint64_t            offset, n;
    const u_char       *p;
    referral_cursor_t  *c;

    c = s->cursor;

    for (offset = c->offset + 8; offset < REFERRAL_SEGMENT_MAX; offset += 8) {

        if (referral_cursor_view(s, offset, 0, &p, &avail, error)
            != REFERRAL_OK)
        {
            return REFERRAL_ERROR;
        }

        if (avail < REFERRAL_FRAME_HEAD) {
            break;
        }

        memcpy(&n, p + 8, sizeof(n));
        n = le64toh(n);

        if (n < c->expect || n >= limit
            || n - c->expect > (offset - c->offset) / REFERRAL_CURSOR_LEAST)
        {
            continue;
        }

        if (referral_frame_check(p, avail, c->salt, number, &len)
            == REFERRAL_OK)
        {
            *found = offset;
            return REFERRAL_OK;
        }
    }

    return REFERRAL_DECLINED;
}


/*
 * Records up to the next segment are not there.  Listings can miss a file
 * that is being renamed, so this is believed when it is seen twice.
 */

static int
referral_cursor_gap(referral_stream_t *s, int bad,
    const referral_segment_t *seg, const referral_segment_t *after,
    referral_frame_t *frame, char *error)
{
    int       rc;
    uint64_t  inode, first;

    inode = seg != NULL ? seg->inode : 0;
    first = after->first;

    rc = referral_stream_refresh(s, error);

    if (rc != REFERRAL_OK) {
        return rc == REFERRAL_DECLINED ? REFERRAL_DONE : REFERRAL_ERROR;
    }

    seg = referral_segment_of(s, s->next);
    after = referral_segment_after(s, s->next);

    if (after == NULL || after->first != first
        || (seg != NULL ? seg->inode : 0) != inode)
    {
        return REFERRAL_OK;
    }

    rc = referral_cursor_hole(s, frame, first - 1,
                              bad == REFERRAL_DECLINED
                              ? "the checksum is wrong"
                              : "nothing is written");

    referral_cursor_reset(s->cursor);

    return rc;
}


static int
referral_cursor_hole(referral_stream_t *s, referral_frame_t *frame,
    uint64_t last, const char *what)
{
    referral_cursor_t         *c;
    const referral_segment_t  *seg;

    c = s->cursor;

    memset(frame, 0, sizeof(referral_frame_t));

    frame->number = s->next;
    frame->last = last;

    if (c->inode) {
        frame->offset = c->offset;
        memcpy(frame->segment, c->name, sizeof(frame->segment));

    } else {
        seg = referral_segment_of(s, s->next);

        if (seg != NULL) {
            memcpy(frame->segment, seg->name, sizeof(frame->segment));
        }
    }

    (void) snprintf(frame->problem, sizeof(frame->problem),
                    "records %llu to %llu are not there: %s in "
                    "\"%s/%s%s%s\" at %llu",
                    (unsigned long long) s->next, (unsigned long long) last,
                    what, s->journal->path, s->name,
                    frame->segment[0] ? "/" : "", frame->segment,
                    (unsigned long long) frame->offset);

    s->next = last + 1;

    return REFERRAL_HOLE;
}


/* the segment in use where record number must stand, if it is anywhere */

static const referral_segment_t *
referral_segment_of(const referral_stream_t *s, uint64_t number)
{
    size_t  n;

    for (n = s->nused; n > 0; n--) {
        if (s->segments[n - 1].first <= number) {
            return &s->segments[n - 1];
        }
    }

    return NULL;
}


static const referral_segment_t *
referral_segment_after(const referral_stream_t *s, uint64_t number)
{
    size_t  n;

    for (n = 0; n < s->nused; n++) {
        if (s->segments[n].first > number) {
            return &s->segments[n];
        }
    }

    return NULL;
}
