
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "referral_fault.h"
#include "referral_uuid.h"
#include "copy.h"
#include "free.h"
#include "log.h"
#include "signals.h"


/* readings further apart than this show nothing about the time between, ms */

#define REFERRAL_FREE_STEP  5000


static int referral_free_read(referral_source_journal_t *j, referral_pg_t *pg);
static void referral_free_observe(referral_journal_stream_t *st, uint64_t seq,
    uint64_t now);
static uint64_t referral_free_since(const referral_segment_t *seg);
static void referral_free_reset(referral_journal_stream_t *st);
static referral_segment_age_t *referral_free_age(
    referral_journal_stream_t *st, const char *name);
static int referral_free_committed(const referral_journal_stream_t *st,
    size_t n);
static void referral_free_old(referral_source_journal_t *j,
    uint64_t retention);
static void referral_free_space(referral_source_journal_t *j);
static int referral_free_unlink(referral_source_journal_t *j,
    referral_journal_stream_t *st, size_t n, const char *why);
static void referral_free_streams(referral_source_journal_t *j);


int
referral_free(referral_source_journal_t *j, referral_pg_t *pg,
    uint64_t retention)
{
    if (j->base.nstreams == 0) {
        return REFERRAL_OK;
    }

    if (referral_free_read(j, pg) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    referral_free_old(j, retention);
    referral_free_space(j);
    referral_free_streams(j);

    return REFERRAL_OK;
}


/*
 * One statement for the question and the condition: the server that answered
 * is the one that has these cursors.
 */

static int
referral_free_read(referral_source_journal_t *j, referral_pg_t *pg)
{
    int                         row, n;
    size_t                      i;
    u_char                      id[REFERRAL_UUID_LEN];
    uint64_t                    now, seq;
    PGresult                   *res;
    const char                 *values[1];
    referral_buf_t              list;
    referral_journal_stream_t  *st;

    memset(&list, 0, sizeof(referral_buf_t));

    for (i = 0; i < j->base.nstreams; i++) {
        referral_buf_string(&list, i ? "," : "{");
        referral_buf_string(&list, j->base.streams[i]->name);
    }

    referral_buf_add(&list, "}", sizeof("}"));

    if (list.failed) {
        referral_buf_free(&list);
        return REFERRAL_OK;
    }

    values[0] = (char *) list.data;

    n = referral_pg_query(pg, "SELECT stream_id, seq"
                          " FROM referral.ingest_cursor"
                          " WHERE stream_id = ANY ($1::uuid[])"
                          " AND NOT pg_is_in_recovery()"
                          " AND current_setting('transaction_read_only')"
                          "     = 'off'", 1, values, &res);

    referral_buf_free(&list);

    if (n != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    now = referral_now();
    n = PQntuples(res);

    for (i = 0; i < j->base.nstreams; i++) {
        st = (referral_journal_stream_t *) j->base.streams[i];
        seq = 0;

        for (row = 0; row < n; row++) {
            if (referral_uuid_parse((u_char *) PQgetvalue(res, row, 0),
                                    PQgetlength(res, row, 0), id)
                == REFERRAL_OK
                && memcmp(id, st->base.id, REFERRAL_UUID_LEN) == 0)
            {
                seq = strtoull(PQgetvalue(res, row, 1), NULL, 10);
                break;
            }
        }

        referral_free_observe(st, seq, now);
    }

    PQclear(res);

    return REFERRAL_OK;
}


static void
referral_free_observe(referral_journal_stream_t *st, uint64_t seq,
    uint64_t now)
{
    size_t                   i;
    uint64_t                 step;
    referral_segment_age_t  *age;

    if (seq < st->observed) {
        referral_free_reset(st);
    }

    /* the flush compares both with what it believes, and says so */

    if (seq < st->base.seq) {
        st->base.loaded = 0;
    }

    step = st->when ? now - st->when : 0;

    st->observed = seq;
    st->when = now;

    if (step > REFERRAL_FREE_STEP) {
        step = 0;
    }

    for (i = 0; i < st->s->nused; i++) {

        if (!referral_free_committed(st, i)) {
            break;
        }

        age = referral_free_age(st, st->s->segments[i].name);

        if (age != NULL) {
            age->age = referral_guard("observed-retention")
                       ? age->age + step
                       : referral_free_since(&st->s->segments[i]);
        }
    }
}


/* ms since a segment was made, for tests: no sign that it was committed */

static uint64_t
referral_free_since(const referral_segment_t *seg)
{
    uint64_t         now;
    struct timespec  ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    now = (uint64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;

    return now > seg->header.created ? now - seg->header.created : 0;
}


static void
referral_free_reset(referral_journal_stream_t *st)
{
    size_t  i;

    for (i = 0; i < st->nages; i++) {
        st->ages[i].age = 0;
    }

    st->when = 0;
}


/* the age of a segment, made when it is new; forgotten with its file */

static referral_segment_age_t *
referral_free_age(referral_journal_stream_t *st, const char *name)
{
    size_t                   i;
    referral_segment_age_t  *ages;

    for (i = 0; i < st->nages; i++) {
        if (strcmp(st->ages[i].name, name) == 0) {
            return &st->ages[i];
        }
    }

    ages = realloc(st->ages, (st->nages + 1) * sizeof(referral_segment_age_t));
    if (ages == NULL) {
        return NULL;
    }

    st->ages = ages;
    memset(&ages[st->nages], 0, sizeof(referral_segment_age_t));
    memcpy(ages[st->nages].name, name, sizeof(ages->name));

    return &ages[st->nages++];
}


/*
 * All records of segment n are below the one that the next segment begins
 * with.  The last segment of a live stream is being written; that of a final
 * one is known to be read to its end when the flush says so.
 *
 * The flush has its word because a cursor may be beyond it: then another
 * process moved it, and whether those were our records is not known yet.
 */

static int
referral_free_committed(const referral_journal_stream_t *st, size_t n)
{
    size_t                    i;
    uint64_t                  seq;
    const referral_stream_t  *s;

    s = st->s;

    if (st->base.aside || !st->base.loaded) {
        return 0;
    }

    seq = st->observed < st->base.seq ? st->observed : st->base.seq;

    if (!referral_guard("free-after-commit")) {
        seq = INT64_MAX;
    }

    /* a damaged one says nothing: what follows it does */

    for (i = n + 1; i < s->nused; i++) {
        if (!s->segments[i].damaged && s->segments[i].first > 0) {
            return s->segments[i].first - 1 <= seq;
        }
    }

    return s->state == REFERRAL_STREAM_FINAL && st->base.ended
           && st->observed >= st->base.seq;
}


static void
referral_free_old(referral_source_journal_t *j, uint64_t retention)
{
    size_t                      i;
    referral_segment_age_t     *age;
    referral_journal_stream_t  *st;

    for (i = 0; i < j->base.nstreams; i++) {
        st = (referral_journal_stream_t *) j->base.streams[i];

        while (st->s->nused && referral_free_committed(st, 0)) {
            age = referral_free_age(st, st->s->segments[0].name);

            if (age == NULL || age->age < retention
                || referral_free_unlink(j, st, 0, "retention") != REFERRAL_OK)
            {
                break;
            }
        }
    }
}


/* beyond three quarters of the journal's limit the oldest goes at once */

static void
referral_free_space(referral_source_journal_t *j)
{
    size_t                      i;
    uint64_t                    limit, oldest;
    referral_journal_stream_t  *st, *found;

    limit = referral_journal_limit(j->journal);

    if (limit == 0) {
        return;
    }

    while (referral_journal_bytes(j->journal) > limit - limit / 4) {
        found = NULL;
        oldest = 0;

        for (i = 0; i < j->base.nstreams; i++) {
            st = (referral_journal_stream_t *) j->base.streams[i];

            if (st->s->nused == 0 || !referral_free_committed(st, 0)) {
                continue;
            }

            if (found == NULL
                || st->s->segments[0].header.created < oldest)
            {
                found = st;
                oldest = st->s->segments[0].header.created;
            }
        }

        if (found == NULL
            || referral_free_unlink(j, found, 0, "space") != REFERRAL_OK)
        {
            return;
        }
    }
}


static int
referral_free_unlink(referral_source_journal_t *j,
    referral_journal_stream_t *st, size_t n, const char *why)
{
    char                 error[REFERRAL_ERROR_LEN], name[64];
    size_t               i;
    uint64_t             before;
    referral_position_t  pos;

    memcpy(name, st->s->segments[n].name, sizeof(name));

    /* what is freed is written down first: absent is then no damage */

    before = n + 1 < st->s->nused ? st->s->segments[n + 1].first - 1
                                  : st->base.seq;

    if (referral_position_load(st->s, &pos, error) == REFERRAL_OK
        && pos.freed < before)
    {
        pos.freed = before;
        (void) referral_position_save(st->s, &pos, error);
    }

    if (referral_stream_unlink(st->s, n, error) != REFERRAL_OK) {
        referral_log(REFERRAL_LOG_WARN, "free-failed", error, "stream=%s",
                     st->base.name);
        return REFERRAL_ERROR;
    }

    referral_log(REFERRAL_LOG_DEBUG, "segment-freed", NULL,
                 "stream=%s segment=%s why=%s", st->base.name, name, why);

    for (i = 0; i < st->nages; i++) {
        if (strcmp(st->ages[i].name, name) == 0) {
            st->ages[i] = st->ages[--st->nages];
            break;
        }
    }

    return REFERRAL_OK;
}


/* a final stream without records: its spares go, then the stream */

static void
referral_free_streams(referral_source_journal_t *j)
{
    char                        error[REFERRAL_ERROR_LEN];
    size_t                      i;
    referral_journal_stream_t  *st;

    for (i = 0; i < j->base.nstreams; i++) {
        st = (referral_journal_stream_t *) j->base.streams[i];

        if (st->s->state != REFERRAL_STREAM_FINAL || !st->base.ended
            || !st->base.loaded || st->observed < st->base.seq)
        {
            continue;
        }

        while (st->s->nsegments > st->s->nused) {
            if (referral_free_unlink(j, st, st->s->nsegments - 1, "unused")
                != REFERRAL_OK)
            {
                return;
            }
        }

        if (st->s->nsegments) {
            continue;
        }

        if (referral_stream_remove(st->s, error) != REFERRAL_OK) {
            referral_log(REFERRAL_LOG_WARN, "free-failed", error,
                         "stream=%s", st->base.name);
            continue;
        }

        referral_log(REFERRAL_LOG_INFO, "stream-done", NULL,
                     "stream=%s records=%llu", st->base.name,
                     (unsigned long long) st->base.seq);

        j->scanned = 0;
    }
}
