
/*
 * Copyright (C) The nginx referral module authors
 */


#include "journal.h"
#include "output.h"
#include "record.h"
#include "referral_uuid.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


#define CTL_TAIL_POLL   200                /* ms between looks at streams */
#define CTL_TAIL_SCAN   5                  /* looks for a new stream: each */
#define CTL_TAIL_BATCH  10000              /* records sorted at once */


typedef struct {
    char                  stream[REFERRAL_UUID_HEX_LEN + 1];
    uint64_t              number;
    u_char                id[REFERRAL_UUID_LEN];
    u_char               *payload;
    size_t                len;
} ctl_tail_record_t;


typedef struct {
    u_char                id[REFERRAL_UUID_LEN];
    unsigned              done:1;          /* read to its last record */
    unsigned              failing:1;       /* and said so */
} ctl_tail_stream_t;


typedef struct {
    ctl_journal_t         journal;
    int                   json;

    ctl_tail_record_t    *records;
    size_t                nrecords;
    size_t                size;

    ctl_tail_stream_t    *streams;         /* those seen */
    size_t                nstreams;
} ctl_tail_t;


static int ctl_tail_begin(ctl_tail_t *t, uint64_t lines);
static int ctl_tail_record(void *data, referral_stream_t *s,
    const referral_frame_t *frame, const referral_record_t *rec);
static void ctl_tail_problem(void *data, referral_stream_t *s,
    const ctl_journal_problem_t *problem);
static void ctl_tail_add(ctl_tail_t *t, const referral_stream_t *s,
    const referral_frame_t *frame, const u_char *id);
static void ctl_tail_hole(ctl_tail_t *t, referral_stream_t *s,
    const referral_frame_t *frame, const char *text);
static int ctl_tail_compare(const void *one, const void *two);
static void ctl_tail_print(ctl_tail_t *t, uint64_t lines);
static int ctl_tail_follow(ctl_tail_t *t);
static int ctl_tail_look(ctl_tail_t *t);
static int ctl_tail_read(ctl_tail_t *t, referral_stream_t *s,
    ctl_tail_stream_t *seen);
static ctl_tail_stream_t *ctl_tail_seen(ctl_tail_t *t,
    const referral_stream_t *s, int *fresh);
static void ctl_tail_signal(int signo);


static volatile sig_atomic_t  ctl_tail_quit;


int
ctl_journal_tail(ctl_options_t *o)
{
    int               rc;
    ctl_tail_t        t;
    struct sigaction  sa;

    memset(&t, 0, sizeof(ctl_tail_t));
    t.json = o->json;

    rc = ctl_journal_open(&t.journal, o, NULL);

    if (rc != CTL_DONE) {
        return rc;
    }

    if (o->follow) {
        memset(&sa, 0, sizeof(struct sigaction));
        sa.sa_handler = ctl_tail_signal;
        (void) sigaction(SIGINT, &sa, NULL);
        (void) sigaction(SIGTERM, &sa, NULL);
        (void) sigaction(SIGHUP, &sa, NULL);
    }

    rc = ctl_tail_begin(&t, o->lines);
    ctl_tail_print(&t, o->lines);

    if (o->follow) {
        rc = ctl_tail_follow(&t);
    }

    free(t.records);
    free(t.streams);
    ctl_journal_close(&t.journal);

    return rc;
}


/* the newest records of each stream are enough to find the newest of all */

static int
ctl_tail_begin(ctl_tail_t *t, uint64_t lines)
{
    int                  fresh, rc;
    size_t               i;
    uint64_t             from;
    ctl_journal_sum_t    sum;
    referral_stream_t   *s;
    ctl_journal_walk_t   walk;

    rc = CTL_DONE;

    for (i = 0; i < t->journal.nstreams; i++) {

        s = t->journal.streams[i];
        (void) ctl_tail_seen(t, s, &fresh);

        memset(&walk, 0, sizeof(ctl_journal_walk_t));

        from = s->nused ? s->segments[s->nused - 1].first : 1;

        if (ctl_journal_walk(&t->journal, s, from, &walk, &sum)
            != REFERRAL_OK)
        {
            rc = CTL_FOUND;
            continue;
        }

        if (lines == 0) {
            continue;
        }

        if (sum.last == 0) {
            sum.last = from - 1;
        }

        from = sum.last >= lines ? sum.last - lines + 1 : 1;

        walk.record = ctl_tail_record;
        walk.problem = ctl_tail_problem;
        walk.data = t;

        if (ctl_journal_walk(&t->journal, s, from, &walk, &sum)
            != REFERRAL_OK)
        {
            rc = CTL_FOUND;
        }
    }

    return rc;
}


static int
ctl_tail_record(void *data, referral_stream_t *s,
    const referral_frame_t *frame, const referral_record_t *rec)
{
    ctl_tail_add(data, s, frame, rec->id);

    return REFERRAL_OK;
}


static void
ctl_tail_problem(void *data, referral_stream_t *s,
    const ctl_journal_problem_t *problem)
{
    ctl_tail_t  *t;

    t = data;

    ctl_journal_complain(&t->journal, s, problem);
}


static void
ctl_tail_add(ctl_tail_t *t, const referral_stream_t *s,
    const referral_frame_t *frame, const u_char *id)
{
    ctl_tail_record_t  *r;

    if (t->nrecords == t->size) {
        t->size = 2 * t->size + 64;
        t->records = ctl_realloc(t->records,
                                 t->size * sizeof(ctl_tail_record_t));
    }

    r = &t->records[t->nrecords++];

    memcpy(r->stream, s->name, sizeof(r->stream));
    memcpy(r->id, id, REFERRAL_UUID_LEN);

    r->number = frame->number;
    r->payload = (u_char *) ctl_dup((char *) frame->payload, frame->len);
    r->len = frame->len;
}


static void
ctl_tail_hole(ctl_tail_t *t, referral_stream_t *s,
    const referral_frame_t *frame, const char *text)
{
    ctl_journal_problem_t  problem;

    problem.segment = frame->segment;
    problem.offset = frame->offset;
    problem.first = frame->number;
    problem.last = frame->last;
    problem.text = text;

    ctl_journal_complain(&t->journal, s, &problem);
}


static int
ctl_tail_compare(const void *one, const void *two)
{
    int                       rc;
    uint64_t                  a, b;
    const ctl_tail_record_t  *r, *q;

    r = one;
    q = two;

    a = referral_uuid_time(r->id);
    b = referral_uuid_time(q->id);

    if (a != b) {
        return a < b ? -1 : 1;
    }

    rc = strcmp(r->stream, q->stream);

    if (rc != 0) {
        return rc;
    }

    return r->number < q->number ? -1 : 1;
}


/* prints the last lines of what was collected, and forgets it */

static void
ctl_tail_print(ctl_tail_t *t, uint64_t lines)
{
    char                error[REFERRAL_ERROR_LEN];
    size_t              i;
    ctl_tail_record_t  *r;
    referral_record_t   rec;

    if (t->nrecords) {
        qsort(t->records, t->nrecords, sizeof(ctl_tail_record_t),
              ctl_tail_compare);
    }

    for (i = 0; i < t->nrecords; i++) {

        r = &t->records[i];

        if (t->nrecords - i <= lines
            && referral_record_decode(&rec, r->payload, r->len, error)
               == REFERRAL_OK)
        {
            if (t->json) {
                ctl_json_line(ctl_record_json(r->stream, r->number, &rec));

            } else {
                ctl_record_line(&rec);
            }
        }

        free(r->payload);
    }

    t->nrecords = 0;
    fflush(stdout);
}


static int
ctl_tail_follow(ctl_tail_t *t)
{
    char           error[REFERRAL_ERROR_LEN];
    unsigned       n;
    struct pollfd  out;

    for (n = 0; !ctl_tail_quit && !ferror(stdout); n++) {

        if (n % CTL_TAIL_SCAN == 0
            && referral_journal_scan(t->journal.journal, error)
               == REFERRAL_ERROR)
        {
            ctl_error("%s", error);
            return CTL_FOUND;
        }

        if (ctl_tail_look(t) != REFERRAL_OK) {
            return CTL_FOUND;
        }

        ctl_tail_print(t, UINT64_MAX);

        /* a pipe whose reader went away is told by POLLERR */

        out.fd = STDOUT_FILENO;
        out.events = 0;
        out.revents = 0;

        if (poll(&out, 1, CTL_TAIL_POLL) > 0
            && (out.revents & (POLLERR|POLLHUP|POLLNVAL)))
        {
            break;
        }
    }

    return CTL_DONE;
}


static int
ctl_tail_look(ctl_tail_t *t)
{
    int                 fresh;
    char                error[REFERRAL_ERROR_LEN];
    size_t              i;
    ctl_tail_stream_t  *seen;
    referral_stream_t  *s;

    for (i = 0; i < referral_journal_streams(t->journal.journal); i++) {

        s = referral_journal_stream(t->journal.journal, i);
        seen = ctl_tail_seen(t, s, &fresh);

        if (seen->done) {
            continue;
        }

        if (fresh && s->nused
            && referral_stream_seek(s, s->segments[0].first, NULL, error)
               != REFERRAL_OK)
        {
            ctl_error("%s", error);
            return REFERRAL_ERROR;
        }

        if (ctl_tail_read(t, s, seen) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }
    }

    return REFERRAL_OK;
}


static int
ctl_tail_read(ctl_tail_t *t, referral_stream_t *s, ctl_tail_stream_t *seen)
{
    int                rc;
    char               error[REFERRAL_ERROR_LEN];
    referral_frame_t   frame;
    referral_record_t  rec;

    while (t->nrecords < CTL_TAIL_BATCH) {

        rc = referral_stream_next(s, &frame, error);

        if (rc == REFERRAL_HOLE) {
            ctl_tail_hole(t, s, &frame,
                          ctl_journal_reason(s, &frame, error));
            continue;
        }

        if (rc == REFERRAL_DONE) {
            seen->done = 1;
            break;
        }

        if (rc == REFERRAL_ERROR) {

            /* the others go on, and this one may come back */

            if (!seen->failing) {
                ctl_error("%s", error);
            }

            seen->failing = 1;
            break;
        }

        if (rc != REFERRAL_OK) {
            break;
        }

        seen->failing = 0;

        if (referral_record_decode(&rec, frame.payload, frame.len, error)
            != REFERRAL_OK)
        {
            ctl_tail_hole(t, s, &frame, error);
            continue;
        }

        ctl_tail_add(t, s, &frame, rec.id);
    }

    return REFERRAL_OK;
}


static ctl_tail_stream_t *
ctl_tail_seen(ctl_tail_t *t, const referral_stream_t *s, int *fresh)
{
    size_t              i;
    ctl_tail_stream_t  *seen;

    *fresh = 0;

    for (i = 0; i < t->nstreams; i++) {
        if (memcmp(t->streams[i].id, s->id, REFERRAL_UUID_LEN) == 0) {
            return &t->streams[i];
        }
    }

    *fresh = 1;
    t->streams = ctl_realloc(t->streams,
                             (t->nstreams + 1) * sizeof(ctl_tail_stream_t));

    seen = &t->streams[t->nstreams++];
    memset(seen, 0, sizeof(ctl_tail_stream_t));
    memcpy(seen->id, s->id, REFERRAL_UUID_LEN);

    return seen;
}


static void
ctl_tail_signal(int signo)
{
    ctl_tail_quit = 1;
}
