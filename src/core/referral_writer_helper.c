
/*
 * Copyright (C) The nginx referral module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_fault.h"
#include "referral_writer_private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>


static void referral_writer_wait(referral_writer_t *w);
static void referral_writer_work(referral_writer_t *w, int last);
static void referral_writer_blank(referral_writer_segment_t *s);
static void referral_writer_populate(referral_writer_segment_t *s);
static void referral_writer_take_retired(referral_writer_t *w);
static void referral_writer_sync(referral_writer_t *w,
    referral_writer_segment_t *active, uint64_t target, int last);
static int referral_writer_sync_segment(referral_writer_t *w,
    referral_writer_segment_t *s);
static void referral_writer_dispose(referral_writer_t *w);


void *
referral_writer_helper(void *data)
{
    referral_writer_t *w = data;

    int  last;

    do {
        referral_writer_wait(w);

        (void) pthread_mutex_lock(&w->mutex);
        last = w->quit;
        (void) pthread_mutex_unlock(&w->mutex);

        referral_writer_work(w, last);

    } while (!last);

    return NULL;
}


static void
referral_writer_wait(referral_writer_t *w)
{
    struct timespec  ts;

    if (w->again) {
        return;
    }

    ts.tv_sec = (time_t) (w->sync_due / 1000);
    ts.tv_nsec = (long) (w->sync_due % 1000) * 1000000;

    (void) pthread_mutex_lock(&w->mutex);

    while (!w->wake && !w->quit) {

        if (w->sync_due == 0) {
            referral_store(&w->asleep, 1);
            (void) pthread_cond_wait(&w->cond, &w->mutex);
            referral_store(&w->asleep, 0);
            continue;
        }

        if (pthread_cond_timedwait(&w->cond, &w->mutex, &ts) == ETIMEDOUT) {
            break;
        }
    }

    w->wake = 0;

    (void) pthread_mutex_unlock(&w->mutex);
}


static void
referral_writer_work(referral_writer_t *w, int last)
{
    int                         rc;
    char                        error[REFERRAL_ERROR_LEN];
    uint64_t                    now, target;
    referral_writer_segment_t  *active, *s;

    /*
     * In this order: every record up to target stands in active or in a
     * segment that take_retired() finds, whenever the owner rolls.
     */

    target = referral_load(&w->committed);
    active = referral_load(&w->active);
    referral_writer_take_retired(w);

    rc = REFERRAL_OK;

    if (active != NULL && !active->named) {
        rc = referral_writer_rename(w, active);
    }

    /*
     * A spare that the owner took keeps its file name until it was seen in
     * active and renamed: before that there is no room for another one.
     */

    if (rc == REFERRAL_OK && !last && !w->unnamed
        && referral_load(&w->spare) == NULL)
    {
        rc = referral_writer_allocate(w, &s, error);

        if (rc == REFERRAL_OK) {
            w->unnamed = 1;
            referral_writer_blank(s);
            referral_store(&w->spare, s);
            referral_writer_populate(s);

        } else if (rc == REFERRAL_ERROR) {
            referral_writer_say(w, REFERRAL_SAY_ALLOCATE, "%s", error);
        }
    }

    /* the first one was made by the owner */

    if (active != NULL && !last) {
        referral_writer_populate(active);
    }

    referral_writer_sync(w, active, target, last);
    referral_writer_dispose(w);

    now = referral_writer_now();

    if (!last && referral_writer_scan_due(w, now)) {
        referral_writer_scan(w);
    }

    /* rolled meanwhile: the next spare can not wait for a tick */

    w->again = (active != referral_load(&w->active));
}


/*
 * Zeros where zeros are, while nobody else has the segment.  What a write
 * brings into the page cache, the kernel keeps in folios of the write's length
 * where the file system can (ext4 since Linux 6.16, XFS long before): a third
 * of the time that single pages take to populate, sync and free together.
 * Not longer ones, since after each sync the first record makes a whole folio
 * dirty.  Where this fails, or the disk cannot follow and the owner may be
 * waiting for the segment, pages come as they did.
 */

static void
referral_writer_blank(referral_writer_segment_t *s)
{
    size_t               pos;
    ssize_t              len;
    uint64_t             start;
    static const u_char  zeros[REFERRAL_WRITER_FOLIO];

    start = referral_writer_now();

    for (pos = REFERRAL_SEGMENT_DATA; pos < s->size; pos += (size_t) len) {

        /* folios are aligned to their length */

        len = (ssize_t) (REFERRAL_WRITER_FOLIO - pos % REFERRAL_WRITER_FOLIO);

        if ((size_t) len > s->size - pos) {
            len = (ssize_t) (s->size - pos);
        }

        len = pwrite(s->fd, zeros, (size_t) len, (off_t) pos);

        if (len <= 0 || referral_writer_now() - start > REFERRAL_WRITER_BLANK)
        {
            return;
        }
    }
}


/*
 * A store to a page that is not there yet is a fault of half a microsecond,
 * and the owner answers requests meanwhile.  In windows, so that a fault of
 * the owner's need not wait for the whole.  Where the kernel has no such
 * advice, stores fault as they always did.
 */

static void
referral_writer_populate(referral_writer_segment_t *s)
{
    size_t  pos, len;

    if (s->populated) {
        return;
    }

    s->populated = 1;

    for (pos = 0; pos < s->size; pos += len) {
        len = s->size - pos;

        if (len > REFERRAL_WRITER_WINDOW) {
            len = REFERRAL_WRITER_WINDOW;
        }

        if (madvise(s->map + pos, len, MADV_POPULATE_WRITE) == -1) {
            return;
        }
    }
}


static void
referral_writer_take_retired(referral_writer_t *w)
{
    referral_writer_segment_t  *s, *next;

    s = __atomic_exchange_n(&w->retired, NULL, __ATOMIC_ACQ_REL);

    while (s != NULL) {
        next = s->next;

        s->retired = 1;
        s->next = w->old;
        w->old = s;

        s = next;
    }
}


int
referral_writer_rename(referral_writer_t *w, referral_writer_segment_t *s)
{
    char  name[64];

    (void) snprintf(name, sizeof(name), REFERRAL_SEGMENT_NAME,
                    (unsigned long long) s->first);

    if (referral_fault_fails("segment-rename-eio")
        || renameat(w->dir, REFERRAL_SPARE, w->dir, name) == -1)
    {

        referral_add(&w->errors, 1);
        referral_writer_say(w, REFERRAL_SAY_RENAME,
                            "journal \"%s/%s\": \"%s\" cannot be renamed to "
                            "\"%s\": %s", w->path, w->name, REFERRAL_SPARE,
                            name, strerror(errno));

        /* removed under our hands: the next segment must not wait for it */

        if (errno != ENOENT) {
            referral_store(&w->allocated, referral_writer_now());
            return REFERRAL_ERROR;
        }
    }

    referral_fault("segment-renamed");

    if (w->sync) {
        (void) fsync(w->dir);
    }

    s->named = 1;
    w->unnamed = 0;

    return REFERRAL_OK;
}


static void
referral_writer_sync(referral_writer_t *w, referral_writer_segment_t *active,
    uint64_t target, int last)
{
    int                         rc;
    uint64_t                    now;
    referral_writer_segment_t  *s;

    if (w->sync == 0) {
        return;
    }

    now = referral_writer_now();
    w->sync_due = 0;

    if (w->old == NULL && target == w->synced) {
        return;
    }

    /* a record that comes alone is synced at once, more each sync */

    if (!last && now < w->sync_last + w->sync) {
        w->sync_due = w->sync_last + w->sync;
        return;
    }

    rc = REFERRAL_OK;

    for (s = w->old; s != NULL; s = s->next) {
        if (referral_writer_sync_segment(w, s) != REFERRAL_OK) {
            rc = REFERRAL_ERROR;
        }
    }

    if (active != NULL && !active->retired) {

        if (last) {
            active->retired = 1;
            active->used = w->pos;
        }

        if (referral_writer_sync_segment(w, active) != REFERRAL_OK) {
            rc = REFERRAL_ERROR;
        }
    }

    w->sync_last = referral_writer_now();

    if (rc == REFERRAL_OK) {
        referral_store(&w->synced, target);
    }

    if (rc != REFERRAL_OK || referral_load(&w->committed) != target) {
        w->sync_due = w->sync_last + w->sync;
    }
}


/*
 * After a failed writeback the kernel calls the pages clean: a second
 * fdatasync() would succeed and mean nothing.  So the owner leaves the
 * segment, and it is written again from the mapping before that.
 */

static int
referral_writer_sync_segment(referral_writer_t *w,
    referral_writer_segment_t *s)
{
    size_t   n;
    ssize_t  len;

    if (s->synced) {
        return REFERRAL_OK;
    }

    if (s->failed) {

        if (!s->retired) {
            return REFERRAL_ERROR;
        }

        for (n = 0; n < s->used; n += (size_t) len) {
            len = pwrite(s->fd, s->map + n, s->used - n, (off_t) n);

            if (len <= 0) {
                goto failed;
            }
        }
    }

    referral_fault("segment-unsynced");

    if (referral_fault_fails("segment-fdatasync-enospc")
        || referral_fault_fails("segment-fdatasync-eio")
        || fdatasync(s->fd) == -1)
    {
        goto failed;
    }

    referral_fault("segment-synced");

    s->synced = s->retired;

    return REFERRAL_OK;

failed:

    referral_store(&s->failed, 1);
    referral_add(&w->errors, 1);
    referral_writer_say(w, REFERRAL_SAY_SYNC,
                        "journal \"%s/%s\": records from %llu on cannot be "
                        "written to disk: %s; the next segment is used, this "
                        "one is tried again", w->path, w->name,
                        (unsigned long long) s->first, strerror(errno));

    return REFERRAL_ERROR;
}


static void
referral_writer_dispose(referral_writer_t *w)
{
    referral_writer_segment_t  *s, **sp;

    sp = &w->old;

    while (*sp != NULL) {
        s = *sp;

        if (w->sync && !s->synced) {
            sp = &s->next;
            continue;
        }

        *sp = s->next;
        referral_writer_destroy(s);
    }
}


/* a mapped file is never made shorter: that would be SIGBUS */

void
referral_writer_destroy(referral_writer_segment_t *s)
{
    (void) munmap(s->map, s->size);

    referral_fault("segment-retired");

    if (s->used && ftruncate(s->fd, (off_t) s->used) == -1) {
        /* the space stays allocated until the segment is freed */
    }

    referral_fault("segment-cut");

    (void) close(s->fd);
    free(s);
}


void
referral_writer_say(referral_writer_t *w, referral_say_e kind, const char *fmt,
    ...)
{
    unsigned  n;
    va_list   args;
    uint64_t  now;

    now = referral_writer_now();

    if (w->say_last[kind]
        && now - w->say_last[kind] < REFERRAL_WRITER_SECOND)
    {
        return;
    }

    (void) pthread_mutex_lock(&w->say_mutex);

    if (w->say_count < REFERRAL_WRITER_MESSAGES) {
        n = (w->say_first + w->say_count) % REFERRAL_WRITER_MESSAGES;

        va_start(args, fmt);
        (void) vsnprintf(w->say[n], REFERRAL_ERROR_LEN, fmt, args);
        va_end(args);

        w->say_last[kind] = now;
        w->say_count++;
        referral_store(&w->said, w->say_count);
    }

    (void) pthread_mutex_unlock(&w->say_mutex);
}


/* ms */

uint64_t
referral_writer_now(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000 + (uint64_t) ts.tv_nsec / 1000000;
}
