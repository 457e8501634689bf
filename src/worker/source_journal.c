
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "referral_utf8.h"
#include "referral_uuid.h"
#include "log.h"
#include "signals.h"
#include "source_journal.h"


/* a directory that did not change is looked at again after this, ms */

#define REFERRAL_SCAN_INTERVAL  1000


static int referral_source_journal_scan(referral_source_t *src, char *error);
static int referral_source_journal_due(referral_source_journal_t *j);
static referral_journal_stream_t *referral_source_journal_find(
    referral_source_journal_t *j, const u_char *id);
static referral_journal_stream_t *referral_source_journal_add(
    referral_source_journal_t *j, const referral_stream_t *s);
static void referral_source_journal_sweep(referral_source_journal_t *j);
static int referral_source_journal_seek(referral_source_t *src,
    referral_source_stream_t *st, uint64_t seq, char *error);
static int referral_source_journal_next(referral_source_t *src,
    referral_source_stream_t *st, referral_frame_t *frame, char *error);
static int referral_source_journal_freed(referral_source_t *src,
    referral_source_stream_t *st, uint64_t seq);
static int referral_source_journal_save(referral_source_t *src,
    referral_source_stream_t *st, char *error);
static int referral_source_journal_set_aside(referral_source_t *src,
    referral_source_stream_t *st, const char *reason, char *error);


int
referral_source_journal_open(referral_source_journal_t *j, const char *path,
    char *error)
{
    int          rc;
    struct stat  sb;

    memset(j, 0, sizeof(referral_source_journal_t));

    /* before it is opened: another directory later is found at once */

    if (stat(path, &sb) == 0) {
        j->dev = sb.st_dev;
        j->ino = sb.st_ino;
    }

    if (referral_journal_open(&j->journal, path, error) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    rc = referral_journal_lock(j->journal, error);

    if (rc != REFERRAL_OK) {
        referral_journal_close(j->journal);
        j->journal = NULL;
        return rc;
    }

    j->path = path;

    j->base.scan = referral_source_journal_scan;
    j->base.seek = referral_source_journal_seek;
    j->base.next = referral_source_journal_next;
    j->base.freed = referral_source_journal_freed;
    j->base.save = referral_source_journal_save;
    j->base.set_aside = referral_source_journal_set_aside;

    return REFERRAL_OK;
}


void
referral_source_journal_close(referral_source_journal_t *j)
{
    size_t                      i;
    referral_journal_stream_t  *st;

    for (i = 0; i < j->base.nstreams; i++) {
        st = (referral_journal_stream_t *) j->base.streams[i];
        free(st->ages);
        free(st);
    }

    free(j->base.streams);

    if (j->journal != NULL) {
        referral_journal_close(j->journal);
    }

    memset(j, 0, sizeof(referral_source_journal_t));
}


static int
referral_source_journal_scan(referral_source_t *src, char *error)
{
    int                         rc;
    size_t                      i, n;
    referral_stream_t          *s;
    referral_source_journal_t  *j;
    referral_journal_stream_t  *st;

    j = (referral_source_journal_t *) src;

    if (!referral_source_journal_due(j)) {
        return REFERRAL_OK;
    }

    /* a stream that can not be looked at fails when it is read, alone */

    if (referral_journal_scan(j->journal, error) == REFERRAL_ERROR) {
        rc = REFERRAL_ERROR;
        j->scanned = 0;

    } else {
        rc = REFERRAL_OK;
    }

    for (i = 0; i < src->nstreams; i++) {
        st = (referral_journal_stream_t *) src->streams[i];
        st->seen = 0;
    }

    n = referral_journal_streams(j->journal);

    for (i = 0; i < n; i++) {
        s = referral_journal_stream(j->journal, i);

        st = referral_source_journal_find(j, s->id);

        if (st == NULL) {
            st = referral_source_journal_add(j, s);
            if (st == NULL) {
                strcpy(error, "out of memory");
                return REFERRAL_ERROR;
            }
        }

        st->s = s;
        st->seen = 1;
        st->base.aside = s->state == REFERRAL_STREAM_SET_ASIDE;
    }

    referral_source_journal_sweep(j);

    return rc;
}


/* new streams change the directory; the rest is seen by the regular scan */

static int
referral_source_journal_due(referral_source_journal_t *j)
{
    uint64_t     now, changed;
    struct stat  sb;

    now = referral_now();
    changed = 0;

    if (stat(j->path, &sb) == 0) {
        changed = (uint64_t) sb.st_mtim.tv_sec * 1000000000
                  + sb.st_mtim.tv_nsec;
        j->replaced = (sb.st_dev != j->dev || sb.st_ino != j->ino);
    }

    if (j->scanned && changed == j->changed
        && now - j->scanned < REFERRAL_SCAN_INTERVAL)
    {
        return 0;
    }

    j->scanned = now;
    j->changed = changed;

    return 1;
}


static referral_journal_stream_t *
referral_source_journal_find(referral_source_journal_t *j, const u_char *id)
{
    size_t  i;

    for (i = 0; i < j->base.nstreams; i++) {
        if (memcmp(j->base.streams[i]->id, id, REFERRAL_UUID_LEN) == 0) {
            return (referral_journal_stream_t *) j->base.streams[i];
        }
    }

    return NULL;
}


static referral_journal_stream_t *
referral_source_journal_add(referral_source_journal_t *j,
    const referral_stream_t *s)
{
    size_t                      i, len;
    char                       *edge;
    referral_journal_stream_t  *st;
    referral_source_stream_t  **streams;

    streams = realloc(j->base.streams, (j->base.nstreams + 1)
                                       * sizeof(referral_source_stream_t *));
    if (streams == NULL) {
        return NULL;
    }

    j->base.streams = streams;

    st = calloc(1, sizeof(referral_journal_stream_t));
    if (st == NULL) {
        return NULL;
    }

    memcpy(st->base.id, s->id, REFERRAL_UUID_LEN);
    referral_uuid_text(s->id, (u_char *) st->base.name);

    for (i = 0; i < s->nsegments; i++) {

        if (s->segments[i].damaged) {
            continue;
        }

        edge = st->base.edge;
        memcpy(edge, s->segments[i].header.edge, sizeof(st->base.edge));
        edge[sizeof(st->base.edge) - 1] = '\0';

        len = strlen(edge);

        if (!referral_utf8_valid((u_char *) edge, len)) {
            edge[0] = '\0';
        }

        break;
    }

    streams[j->base.nstreams++] = &st->base;

    if (s->state == REFERRAL_STREAM_SET_ASIDE) {
        referral_log(REFERRAL_LOG_WARN, "stream-aside-found",
                     "its clicks wait, for the reason in its file \"aside\":"
                     " see \"referralctl journal adopt --help\"",
                     "stream=%s", st->base.name);
    }

    return st;
}


static void
referral_source_journal_sweep(referral_source_journal_t *j)
{
    size_t                      i, n;
    referral_journal_stream_t  *st;

    n = 0;

    for (i = 0; i < j->base.nstreams; i++) {
        st = (referral_journal_stream_t *) j->base.streams[i];

        if (st->seen) {
            j->base.streams[n++] = &st->base;
            continue;
        }

        free(st->ages);
        free(st);
    }

    j->base.nstreams = n;
}


static int
referral_source_journal_seek(referral_source_t *src,
    referral_source_stream_t *st, uint64_t seq, char *error)
{
    referral_stream_t    *s;
    referral_position_t   pos;

    s = ((referral_journal_stream_t *) st)->s;

    if (referral_position_load(s, &pos, error) == REFERRAL_OK) {
        return referral_stream_seek(s, seq, &pos, error);
    }

    return referral_stream_seek(s, seq, NULL, error);
}


static int
referral_source_journal_next(referral_source_t *src,
    referral_source_stream_t *st, referral_frame_t *frame, char *error)
{
    referral_stream_t  *s;

    s = ((referral_journal_stream_t *) st)->s;

    return referral_stream_next(s, frame, error);
}


static int
referral_source_journal_freed(referral_source_t *src,
    referral_source_stream_t *st, uint64_t seq)
{
    referral_stream_t    *s;
    referral_position_t   pos;
    char                  error[REFERRAL_ERROR_LEN];

    s = ((referral_journal_stream_t *) st)->s;

    if (s->nused && s->segments[0].first > seq) {
        return 1;
    }

    /* every used segment may be gone */

    return referral_position_load(s, &pos, error) == REFERRAL_OK
           && pos.freed >= seq;
}


static int
referral_source_journal_save(referral_source_t *src,
    referral_source_stream_t *st, char *error)
{
    referral_stream_t    *s;
    referral_position_t   pos, old;

    s = ((referral_journal_stream_t *) st)->s;

    memset(&pos, 0, sizeof(referral_position_t));
    referral_stream_position(s, &pos);

    pos.seq = st->seq;

    if (st->has_last_id) {
        memcpy(pos.last_id, st->last_id, REFERRAL_UUID_LEN);
    }

    if (referral_position_load(s, &old, error) == REFERRAL_OK) {
        pos.freed = old.freed;
    }

    return referral_position_save(s, &pos, error);
}


static int
referral_source_journal_set_aside(referral_source_t *src,
    referral_source_stream_t *st, const char *reason, char *error)
{
    referral_stream_t  *s;

    s = ((referral_journal_stream_t *) st)->s;
    st->aside = 1;

    return referral_stream_set_aside(s, reason, error);
}
