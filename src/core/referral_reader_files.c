
/*
 * Copyright (C) The nginx referral module authors
 *
 * What readers change: segments and streams that are done with go, streams
 * that are not to be read are marked.
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_fault.h"
#include "referral_reader_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>


int
referral_stream_unlink(referral_stream_t *s, size_t n, char *error)
{
    int                  dir, rc;
    uint64_t             bytes;
    referral_segment_t  *seg;

    if (n >= s->nsegments) {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\" has no segment %zu",
                 s->journal->path, s->name, n);
        return REFERRAL_ERROR;
    }

    seg = &s->segments[n];
    dir = referral_stream_open_dir(s);

    if (dir == -1) {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\" cannot be opened: %s",
                 s->journal->path, s->name, strerror(errno));
        return REFERRAL_ERROR;
    }

    rc = referral_stream_look(s, dir, error);

    /* in a live stream that name may stand for the next one by now */

    if (rc == REFERRAL_OK && s->cursor->live
        && (n + 1 == s->nused || strcmp(seg->name, REFERRAL_SPARE) == 0))
    {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "\"%s/%s/%s\" is in use by its writer", s->journal->path,
                 s->name, seg->name);
        rc = REFERRAL_ERROR;
    }

    if (rc == REFERRAL_OK) {
        referral_fault("segment-unlinking");
    }

    if (rc == REFERRAL_OK
        && (referral_fault_fails("segment-unlink-eio")
            || unlinkat(dir, seg->name, 0) == -1)
        && errno != ENOENT)
    {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s/%s\" cannot be "
                 "removed: %s", s->journal->path, s->name, seg->name,
                 strerror(errno));
        rc = REFERRAL_ERROR;
    }

    (void) close(dir);

    if (rc != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    referral_fault("segment-unlinked");

    bytes = seg->allocated > seg->size ? seg->allocated : seg->size;

    s->journal->bytes -= bytes < s->journal->bytes ? bytes
                                                   : s->journal->bytes;
    s->nused -= seg->used;
    s->nsegments--;
    memmove(seg, seg + 1, (s->nsegments - n) * sizeof(referral_segment_t));

    return REFERRAL_OK;
}


int
referral_stream_written(const referral_stream_t *s)
{
    return s->cursor->live;
}


int
referral_stream_remove(referral_stream_t *s, char *error)
{
    int          dir, rc;
    size_t       i;
    static const char  *const names[] = {
        REFERRAL_STREAM_STATE, REFERRAL_STREAM_STATE_NEW,
        REFERRAL_STREAM_ASIDE, REFERRAL_STREAM_LOCK
    };

    rc = referral_stream_refresh(s, error);

    if (rc != REFERRAL_OK) {
        return rc == REFERRAL_DECLINED ? REFERRAL_OK : REFERRAL_ERROR;
    }

    if (s->cursor->live || s->nsegments) {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\" is still %s",
                 s->journal->path, s->name,
                 s->cursor->live ? "in use by its writer" : "not empty");
        return REFERRAL_ERROR;
    }

    dir = referral_stream_open_dir(s);

    for (i = 0; dir != -1 && i < sizeof(names) / sizeof(names[0]); i++) {
        (void) unlinkat(dir, names[i], 0);
    }

    if (dir != -1) {
        (void) close(dir);
    }

    referral_fault("stream-removing");

    if (unlinkat(s->journal->dir, s->name, AT_REMOVEDIR) == -1
        && errno != ENOENT)
    {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\" cannot be removed: %s",
                 s->journal->path, s->name, strerror(errno));
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


int
referral_stream_set_aside(referral_stream_t *s, const char *reason,
    char *error)
{
    int      dir, fd;
    size_t   len;
    ssize_t  n;

    n = -1;
    len = strlen(reason);
    dir = referral_stream_open_dir(s);
    fd = dir == -1 ? -1
                   : openat(dir, REFERRAL_STREAM_ASIDE,
                            O_WRONLY|O_CREAT|O_TRUNC|O_NOFOLLOW|O_CLOEXEC,
                            0660);
    if (fd != -1) {
        referral_fault("aside-made");
        n = write(fd, reason, len);
    }

    if (n != (ssize_t) len || fdatasync(fd) == -1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "\"%s/%s/%s\" cannot be written: %s", s->journal->path,
                 s->name, REFERRAL_STREAM_ASIDE,
                 n == -1 ? strerror(errno) : "no space");
        n = -1;

    } else {
        s->state = REFERRAL_STREAM_SET_ASIDE;
    }

    if (fd != -1) {
        (void) close(fd);
    }

    if (dir != -1) {
        (void) close(dir);
    }

    return n == -1 ? REFERRAL_ERROR : REFERRAL_OK;
}
