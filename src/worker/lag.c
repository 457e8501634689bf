
/*
 * Copyright (C) The nginx referral module authors
 */


#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "referral_record.h"
#include "referral_uuid.h"
#include "lag.h"
#include "signals.h"
#include "stat.h"


#define REFERRAL_LAG_LOOK   1000           /* ms */
#define REFERRAL_LAG_HOLES  16             /* before the oldest record */


typedef struct {
    uint64_t                   records;
    uint64_t                   ms;         /* age of the oldest, 0: none */
    uint64_t                   live;
    uint64_t                   final;
    uint64_t                   aside;
    size_t                     n;
    referral_stat_stream_t     streams[REFERRAL_STAT_STREAMS];
} referral_lag_sum_t;


static void referral_lag_run(void *data);
static void referral_lag_look(referral_lag_t *l);
static int referral_lag_open(referral_lag_t *l);
static uint64_t referral_lag_stream(referral_stream_t *s, uint64_t *committed);
static void referral_lag_keep(referral_lag_sum_t *sum,
    const referral_stat_stream_t *stream);
static uint64_t referral_lag_age(referral_lag_t *l, const u_char *id,
    uint64_t seq);
static uint64_t referral_lag_oldest(referral_lag_t *l, const u_char *id,
    uint64_t seq);


int
referral_lag_start(referral_lag_t *l, const char *path)
{
    memset(l, 0, sizeof(referral_lag_t));

    l->path = path;

    l->thread.name = "lag";
    l->thread.run = referral_lag_run;
    l->thread.data = l;

    return referral_thread_start(&l->thread);
}


int
referral_lag_stop(referral_lag_t *l)
{
    return referral_thread_stop(&l->thread);
}


static void
referral_lag_run(void *data)
{
    referral_lag_t  *l;

    l = data;

    while (!referral_stopping()) {
        referral_lag_look(l);
        (void) referral_wait("", -1, 0, REFERRAL_LAG_LOOK, 1);
    }

    if (l->journal != NULL) {
        referral_journal_close(l->journal);
    }
}


/* what can not be read is told of by the flush; here it is only not counted */

static void
referral_lag_look(referral_lag_t *l)
{
    size_t                   i, n;
    uint64_t                 committed;
    referral_stream_t       *s;
    referral_lag_sum_t       sum;
    referral_stat_stream_t   stream;

    if (referral_lag_open(l) != REFERRAL_OK) {
        return;
    }

    memset(&sum, 0, sizeof(referral_lag_sum_t));
    n = referral_journal_streams(l->journal);

    for (i = 0; i < n; i++) {
        s = referral_journal_stream(l->journal, i);

        if (s->state == REFERRAL_STREAM_SET_ASIDE) {
            sum.aside++;
            continue;
        }

        sum.live += s->state == REFERRAL_STREAM_LIVE;
        sum.final += s->state == REFERRAL_STREAM_FINAL;

        memcpy(stream.id, s->id, REFERRAL_UUID_LEN);
        stream.records = referral_lag_stream(s, &committed);

        if (referral_stopping()) {
            return;
        }

        stream.ms = stream.records ? referral_lag_age(l, s->id, committed + 1)
                                   : 0;

        sum.records += stream.records;

        if (stream.ms > sum.ms) {
            sum.ms = stream.ms;
        }

        referral_lag_keep(&sum, &stream);
    }

    referral_stat_set(lag_records, sum.records);
    referral_stat_set(lag_ms, sum.ms);
    referral_stat_set(streams_live, sum.live);
    referral_stat_set(streams_final, sum.final);
    referral_stat_set(streams_aside, sum.aside);
    referral_stat_streams(sum.streams, sum.n);
}


/* when there is no room, in place of the one with the fewest records */

static void
referral_lag_keep(referral_lag_sum_t *sum,
    const referral_stat_stream_t *stream)
{
    size_t  i, least;

    if (sum->n < REFERRAL_STAT_STREAMS) {
        sum->streams[sum->n++] = *stream;
        return;
    }

    least = 0;

    for (i = 1; i < sum->n; i++) {
        if (sum->streams[i].records < sum->streams[least].records) {
            least = i;
        }
    }

    if (stream->records > sum->streams[least].records) {
        sum->streams[least] = *stream;
    }
}


/* when the path names another directory, that is the journal from now on */

static int
referral_lag_open(referral_lag_t *l)
{
    char         error[REFERRAL_ERROR_LEN];
    struct stat  sb;

    if (stat(l->path, &sb) == -1) {
        return REFERRAL_ERROR;
    }

    if (l->journal != NULL && (sb.st_dev != l->dev || sb.st_ino != l->ino)) {
        referral_journal_close(l->journal);
        l->journal = NULL;
    }

    if (l->journal == NULL) {
        l->dev = sb.st_dev;
        l->ino = sb.st_ino;

        if (referral_journal_open(&l->journal, l->path, error)
            != REFERRAL_OK)
        {
            l->journal = NULL;
            return REFERRAL_ERROR;
        }
    }

    return referral_journal_scan(l->journal, error) == REFERRAL_ERROR
           ? REFERRAL_ERROR : REFERRAL_OK;
}


/* reads to the end; how many records are there that were not committed */

static uint64_t
referral_lag_stream(referral_stream_t *s, uint64_t *committed)
{
    int                   rc;
    char                  error[REFERRAL_ERROR_LEN];
    referral_frame_t      frame;
    referral_position_t   pos;

    if (referral_position_load(s, &pos, error) != REFERRAL_OK) {
        memset(&pos, 0, sizeof(referral_position_t));
    }

    *committed = pos.seq;

    /* nothing is learnt from what is committed */

    if (s->next <= pos.seq
        && referral_stream_seek(s, pos.seq + 1, &pos, error) != REFERRAL_OK)
    {
        return 0;
    }

    do {
        rc = referral_stream_next(s, &frame, error);

    } while ((rc == REFERRAL_OK || rc == REFERRAL_HOLE)
             && !referral_stopping());

    return s->next - 1 - pos.seq;
}


/* ms since record seq was written */

static uint64_t
referral_lag_age(referral_lag_t *l, const u_char *id, uint64_t seq)
{
    uint64_t         now, oldest;
    struct timespec  ts;

    oldest = referral_lag_oldest(l, id, seq);

    clock_gettime(CLOCK_REALTIME, &ts);
    now = (uint64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;

    return oldest && now > oldest ? now - oldest : 0;
}


/* when record seq, or the first that can be read behind it, was written */

static uint64_t
referral_lag_oldest(referral_lag_t *l, const u_char *id, uint64_t seq)
{
    int                   rc;
    char                  error[REFERRAL_ERROR_LEN];
    size_t                i;
    uint64_t              at;
    unsigned              holes;
    referral_frame_t      frame;
    referral_record_t     rec;
    referral_stream_t    *s;
    referral_journal_t   *journal;
    referral_position_t   pos;

    /* another reading: the first one stays at the end of the stream */

    if (referral_journal_open(&journal, l->path, error) != REFERRAL_OK) {
        return 0;
    }

    at = 0;

    for (i = 0; i < referral_journal_streams(journal); i++) {
        s = referral_journal_stream(journal, i);

        if (memcmp(s->id, id, REFERRAL_UUID_LEN) != 0) {
            continue;
        }

        rc = referral_position_load(s, &pos, error);

        rc = referral_stream_seek(s, seq, rc == REFERRAL_OK ? &pos : NULL,
                                  error);

        for (holes = 0; rc == REFERRAL_OK && holes < REFERRAL_LAG_HOLES;
             holes++)
        {
            rc = referral_stream_next(s, &frame, error);

            if (rc == REFERRAL_HOLE) {
                rc = REFERRAL_OK;
                continue;
            }

            if (rc == REFERRAL_OK
                && referral_record_decode(&rec, frame.payload, frame.len,
                                          error) == REFERRAL_OK)
            {
                at = referral_uuid_time(rec.id);
                break;
            }
        }

        break;
    }

    referral_journal_close(journal);

    return at;
}
