
/*
 * Copyright (C) The nginx referral module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_fault.h"
#include "referral_record.h"
#include "referral_uuid.h"
#include "referral_writer_private.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


static int referral_writer_start(referral_writer_t *w, char *error);
static int referral_writer_first(referral_writer_t *w, char *error);
static int referral_writer_thread(referral_writer_t *w, char *error);
static void referral_writer_prefetch(referral_writer_segment_t *s, size_t pos);
static int referral_writer_roll(referral_writer_t *w);
static int64_t referral_writer_noise(const referral_writer_t *w);
static int referral_writer_needs(referral_writer_t *w, uint64_t now);
static void referral_writer_free(referral_writer_t *w);


int
referral_writer_open(referral_writer_t **wp,
    const referral_writer_conf_t *conf, char *error)
{
    pthread_condattr_t   attr;
    referral_writer_t   *w;

    *wp = NULL;

    if (referral_writer_check(conf, error) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    w = calloc(1, sizeof(referral_writer_t));
    if (w == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN, "journal \"%s\": no memory",
                 conf->path);
        return REFERRAL_ERROR;
    }

    w->root = -1;
    w->dir = -1;
    w->lock = -1;
    w->size = conf->size;
    w->limit = conf->limit ? conf->limit : conf->size;
    w->segment = conf->segment;
    w->sync = conf->sync;

    if (conf->id != NULL) {
        memcpy(w->id, conf->id, REFERRAL_UUID_LEN);
        w->hidden = 1;
    }

    if (conf->edge != NULL) {
        (void) snprintf(w->edge, sizeof(w->edge), "%.63s", conf->edge);
    }

    (void) pthread_mutex_init(&w->mutex, NULL);
    (void) pthread_mutex_init(&w->say_mutex, NULL);
    (void) pthread_condattr_init(&attr);
    (void) pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void) pthread_cond_init(&w->cond, &attr);
    (void) pthread_condattr_destroy(&attr);

    w->path = strdup(conf->path);

    if (w->path == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN, "journal \"%s\": no memory",
                 conf->path);
        referral_writer_free(w);
        return REFERRAL_ERROR;
    }

    if (referral_writer_start(w, error) != REFERRAL_OK) {
        referral_writer_free(w);
        return REFERRAL_ERROR;
    }

    *wp = w;

    return REFERRAL_OK;
}


static int
referral_writer_start(referral_writer_t *w, char *error)
{
    int          rc;
    char         name[REFERRAL_UUID_HEX_LEN + sizeof(REFERRAL_WRITER_HIDDEN)];
    const char  *shown;

    w->root = open(w->path, O_RDONLY|O_DIRECTORY|O_CLOEXEC);
    if (w->root == -1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\" cannot be opened as a directory: %s",
                 w->path, strerror(errno));
        return REFERRAL_ERROR;
    }

    referral_writer_sweep(w->root);

    if (w->hidden) {
        referral_uuid_hex(w->id, (u_char *) name);
        memcpy(name + REFERRAL_UUID_HEX_LEN, REFERRAL_WRITER_HIDDEN,
               sizeof(REFERRAL_WRITER_HIDDEN));

    } else if (referral_writer_identify(w->id, name, error, w->path)
               != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    memcpy(w->name, name, REFERRAL_UUID_HEX_LEN);
    shown = w->hidden ? name : w->name;

    rc = referral_writer_make_dir(w->root, w->path, name, &w->dir, error);
    if (rc != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    rc = referral_writer_take_lock(w->dir, w->path, &w->lock, error);

    if (rc == REFERRAL_OK) {
        referral_fault("stream-locked");
        rc = referral_writer_first(w, error);
    }

    if (rc == REFERRAL_OK) {
        referral_fault("stream-unnamed");
    }

    if (rc == REFERRAL_OK && shown != name
        && renameat(w->root, name, w->root, shown) == -1)
    {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": \"%s\" cannot be renamed: %s", w->path, name,
                 strerror(errno));
        rc = REFERRAL_ERROR;
    }

    if (rc != REFERRAL_OK) {
        referral_writer_clear(w->root, name, w->dir);
        return REFERRAL_ERROR;
    }

    referral_fault("stream-named");

    if (w->sync) {
        (void) fsync(w->root);
    }

    if (referral_writer_thread(w, error) != REFERRAL_OK) {
        referral_writer_clear(w->root, shown, w->dir);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


/*
 * A journal that is full now is not broken: the stream begins without a
 * segment, refuses records and recovers when there is space.
 */

static int
referral_writer_first(referral_writer_t *w, char *error)
{
    int                         rc;
    referral_writer_segment_t  *s;

    rc = referral_writer_allocate(w, &s, error);

    if (rc == REFERRAL_AGAIN) {
        return REFERRAL_OK;
    }

    if (rc != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    /* the helper populates the rest while records come already */

    (void) madvise(s->map,
                   s->size < REFERRAL_WRITER_WINDOW ? s->size
                                                    : REFERRAL_WRITER_WINDOW,
                   MADV_POPULATE_WRITE);

    w->spare = s;
    (void) referral_writer_roll(w);

    if (referral_writer_rename(w, s) != REFERRAL_OK) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": the first segment cannot be renamed: %s",
                 w->path, strerror(errno));
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


static int
referral_writer_thread(referral_writer_t *w, char *error)
{
    int             rc;
    sigset_t        all, old;
    pthread_attr_t  attr;

    w->wake = 1;

    (void) sigfillset(&all);
    (void) pthread_sigmask(SIG_SETMASK, &all, &old);

    (void) pthread_attr_init(&attr);
    (void) pthread_attr_setstacksize(&attr, REFERRAL_WRITER_STACK);

    rc = pthread_create(&w->thread, &attr, referral_writer_helper, w);

    (void) pthread_attr_destroy(&attr);
    (void) pthread_sigmask(SIG_SETMASK, &old, NULL);

    if (rc != 0) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": a thread cannot be started: %s", w->path,
                 strerror(rc));
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


u_char *
referral_writer_reserve(referral_writer_t *w, size_t len)
{
    size_t                      size;
    referral_writer_segment_t  *s;

    w->reserved = 0;

    if (len == 0 || len > REFERRAL_RECORD_MAX) {
        w->full++;
        return NULL;
    }

    s = w->current;
    size = referral_frame_size(len);

    if (s == NULL || s->size - w->pos < size || referral_load(&s->failed)) {

        if (size > w->segment - REFERRAL_SEGMENT_DATA
            || referral_writer_roll(w) != REFERRAL_OK)
        {
            w->full++;
            return NULL;
        }

        s = w->current;
    }

    w->reserved = len;

    return s->map + w->pos + REFERRAL_FRAME_HEAD;
}


size_t
referral_writer_room(const referral_writer_t *w)
{
    size_t  left;

    left = w->current ? w->current->size - w->pos : 0;

    return left > REFERRAL_FRAME_HEAD ? left - REFERRAL_FRAME_HEAD : 0;
}


uint64_t
referral_writer_commit(referral_writer_t *w, size_t len, int noise)
{
    u_char                     *frame;
    size_t                      size;
    uint64_t                   *counter;
    referral_writer_segment_t  *s;

    if (len == 0 || len > w->reserved) {
        return 0;
    }

    s = w->current;
    frame = s->map + w->pos;
    size = referral_frame_size(len);

    w->reserved = 0;
    w->pos += size;
    w->bytes += size;
    w->number++;

    /* a longer reservation may have left bytes where the next frame begins */

    if (s->size - w->pos >= sizeof(uint64_t)) {
        memset(s->map + w->pos, 0, sizeof(uint64_t));
    }

    referral_frame_publish(frame, s->salt, w->number, len);

    referral_fault("record-published");

    referral_writer_prefetch(s, w->pos);

    if (noise) {
        counter = (uint64_t *) (void *) (s->map + REFERRAL_SEGMENT_NOISE);
        referral_store(counter, htole64(le64toh(*counter) + size));
        referral_store(&w->noise_own, w->noise_own + size);
    }

    referral_store(&w->committed, w->number);

    return w->number;
}


/*
 * The lines that the next record will fill were last written by the helper's
 * processor: fetched now, they are here before that record is.
 */

static void
referral_writer_prefetch(referral_writer_segment_t *s, size_t pos)
{
    size_t  end;

    end = pos + REFERRAL_WRITER_AHEAD;

    if (end > s->size) {
        end = s->size;
    }

    for ( /* void */ ; pos < end; pos += REFERRAL_WRITER_LINE) {
        __builtin_prefetch(s->map + pos, 1);
    }
}


static int
referral_writer_roll(referral_writer_t *w)
{
    referral_writer_segment_t  *s, *old;

    if (referral_load(&w->spare) == NULL) {
        return REFERRAL_DECLINED;
    }

    s = __atomic_exchange_n(&w->spare, NULL, __ATOMIC_ACQ_REL);

    s->first = w->number + 1;
    referral_segment_begin_publish(s->map + REFERRAL_SEGMENT_BEGIN, s->salt,
                                   s->first);

    referral_fault("segment-begun");

    old = w->current;

    if (old != NULL) {
        old->used = w->pos;
        old->next = referral_load(&w->retired);

        while (!__atomic_compare_exchange_n(&w->retired, &old->next, old, 0,
                                            __ATOMIC_ACQ_REL,
                                            __ATOMIC_ACQUIRE))
        {
            /* void */
        }
    }

    w->current = s;
    w->pos = REFERRAL_SEGMENT_DATA;
    w->segments++;

    /* after retired: the helper must not sync the new one alone */

    referral_store(&w->active, s);

    referral_fault("segment-rolled");

    return REFERRAL_OK;
}


int
referral_writer_noise_full(const referral_writer_t *w)
{
    return referral_writer_noise(w)
           >= (int64_t) (w->size / REFERRAL_WRITER_NOISE);
}


static int64_t
referral_writer_noise(const referral_writer_t *w)
{
    return referral_load(&w->noise_others)
           + (int64_t) referral_load(&w->noise_own);
}


unsigned
referral_writer_tick(referral_writer_t *w)
{
    unsigned  next;
    uint64_t  now;

    now = referral_writer_now();
    next = 0;

    if (referral_writer_needs(w, now)) {

        /* the helper holds the mutex only to look whether it may sleep */

        if (pthread_mutex_trylock(&w->mutex) == 0) {
            w->wake = 1;
            (void) pthread_cond_signal(&w->cond);
            (void) pthread_mutex_unlock(&w->mutex);

        } else {
            next = 1;
        }
    }

    if (next == 0 && w->ticked != w->number) {
        next = REFERRAL_WRITER_BUSY;
    }

    w->ticked = w->number;

    if (next == 0 && referral_load(&w->spare) == NULL) {
        next = REFERRAL_WRITER_RETRY;
    }

    /* records may come before the next call: it must not be far */

    if (next == 0
        && ((w->sync && referral_load(&w->synced) != w->number)
            || referral_writer_noise_full(w)))
    {
        next = REFERRAL_WRITER_NEAR;
    }

    if (next == 0 && referral_load(&w->said)) {
        next = REFERRAL_WRITER_BUSY;
    }

    return next;
}


static int
referral_writer_needs(referral_writer_t *w, uint64_t now)
{
    if (referral_load(&w->retired) != NULL) {
        return 1;
    }

    if (referral_load(&w->spare) == NULL
        && now - referral_load(&w->allocated) >= REFERRAL_WRITER_RETRY)
    {
        return 1;
    }

    if (w->sync && referral_load(&w->asleep)
        && referral_load(&w->synced) != w->number)
    {
        return 1;
    }

    return referral_writer_scan_due(w, now);
}


int
referral_writer_message(referral_writer_t *w, char *text, size_t size)
{
    if (referral_load(&w->said) == 0
        || pthread_mutex_trylock(&w->say_mutex) != 0)
    {
        return REFERRAL_DECLINED;
    }

    (void) snprintf(text, size, "%s", w->say[w->say_first]);

    w->say_first = (w->say_first + 1) % REFERRAL_WRITER_MESSAGES;
    w->say_count--;
    referral_store(&w->said, w->say_count);

    (void) pthread_mutex_unlock(&w->say_mutex);

    return REFERRAL_OK;
}


const char *
referral_writer_stream(const referral_writer_t *w)
{
    return w->name;
}


void
referral_writer_stat(const referral_writer_t *w, referral_writer_stat_t *stat)
{
    int64_t  noise;

    noise = referral_writer_noise(w);

    stat->appended = w->number;
    stat->bytes = w->bytes;
    stat->segments = w->segments;
    stat->full = w->full;
    stat->synced = referral_load(&w->synced);
    stat->errors = referral_load(&w->errors);
    stat->journal = referral_load(&w->journal);
    stat->noise = noise > 0 ? (uint64_t) noise : 0;
}


void
referral_writer_close(referral_writer_t *w)
{
    referral_writer_segment_t  *s;

    if (w == NULL) {
        return;
    }

    (void) pthread_mutex_lock(&w->mutex);
    w->quit = 1;
    (void) pthread_cond_signal(&w->cond);
    (void) pthread_mutex_unlock(&w->mutex);

    (void) pthread_join(w->thread, NULL);

    referral_fault("writer-closing");

    /* from here on there is one thread */

    s = w->spare;

    if (s != NULL) {
        w->spare = NULL;

        /* one that could not be renamed still has the spare's name */

        if (w->current == NULL || w->current->named) {
            (void) unlinkat(w->dir, REFERRAL_SPARE, 0);
        }

        referral_writer_destroy(s);
    }

    if (w->number == 0 && !w->hidden) {
        referral_writer_clear(w->root, w->name, w->dir);
    }

    referral_writer_free(w);
}


/* truncates what is left to what was used */

static void
referral_writer_free(referral_writer_t *w)
{
    referral_writer_segment_t  *s;

    s = w->current;

    if (s != NULL) {
        s->used = w->pos;
        referral_writer_destroy(s);
    }

    while (w->old != NULL) {
        s = w->old;
        w->old = s->next;
        referral_writer_destroy(s);
    }

    if (w->lock != -1) {
        (void) close(w->lock);
    }

    if (w->dir != -1) {
        (void) close(w->dir);
    }

    if (w->root != -1) {
        (void) close(w->root);
    }

    (void) pthread_cond_destroy(&w->cond);
    (void) pthread_mutex_destroy(&w->say_mutex);
    (void) pthread_mutex_destroy(&w->mutex);

    free(w->path);
    free(w);
}
