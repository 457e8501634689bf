
/*
 * Copyright (C) The nginx referral module authors
 */


#include "journal.h"
#include "output.h"
#include "segment.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


#define CTL_TAIL_TRIES  3


static int ctl_journal_select(ctl_journal_t *j, const char *name);
static int ctl_journal_compare(const void *one, const void *two);
static uint64_t ctl_journal_created(const referral_stream_t *s);
static void ctl_journal_begin(const ctl_journal_t *j, referral_stream_t *s,
    uint64_t *from, const ctl_journal_walk_t *w, ctl_journal_sum_t *sum);
static int ctl_journal_record(referral_stream_t *s,
    const referral_frame_t *frame, const ctl_journal_walk_t *w,
    ctl_journal_sum_t *sum);
static void ctl_journal_hole(referral_stream_t *s,
    const referral_frame_t *frame, const ctl_journal_walk_t *w,
    ctl_journal_sum_t *sum);
static void ctl_journal_end(const ctl_journal_t *j, referral_stream_t *s,
    const ctl_journal_walk_t *w, ctl_journal_sum_t *sum);
static void ctl_journal_files(referral_stream_t *s,
    const ctl_journal_walk_t *w, ctl_journal_sum_t *sum);
static int ctl_journal_torn(const ctl_journal_t *j, referral_stream_t *s,
    ctl_segment_t *seg, const char *name);
static void ctl_journal_problem(referral_stream_t *s,
    const ctl_journal_walk_t *w, ctl_journal_sum_t *sum, const char *segment,
    uint64_t offset, uint64_t first, uint64_t last, const char *text);


int
ctl_journal_open(ctl_journal_t *j, const ctl_options_t *o, const char *name)
{
    char  *slash, error[REFERRAL_ERROR_LEN];
    int    rc;

    memset(j, 0, sizeof(ctl_journal_t));

    j->path = o->journal;

    if (name != NULL && strchr(name, '/') != NULL) {
        j->parent = ctl_dup(name, strlen(name));

        for (slash = j->parent + strlen(j->parent) - 1;
             slash > j->parent && *slash == '/';
             slash--)
        {
            *slash = '\0';
        }

        slash = strrchr(j->parent, '/');

        if (slash == NULL || slash == j->parent) {
            ctl_error("journal: %s is no stream", name);
            ctl_journal_close(j);
            return CTL_FOUND;
        }

        name = slash + 1;
        *slash = '\0';
        j->path = j->parent;
    }

    if (j->path == NULL) {
        ctl_error("which journal?  Give --journal DIR or set "
                  "REFERRAL_JOURNAL: the directory that referral_journal in "
                  "nginx.conf names");
        return CTL_USAGE;
    }

    if (referral_journal_open(&j->journal, j->path, error) != REFERRAL_OK
        || referral_journal_scan(j->journal, error) == REFERRAL_ERROR)
    {
        ctl_error("%s", error);
        ctl_journal_close(j);
        return CTL_FOUND;
    }

    rc = ctl_journal_select(j, name);

    if (rc != CTL_DONE) {
        ctl_journal_close(j);
    }

    return rc;
}


static int
ctl_journal_select(ctl_journal_t *j, const char *name)
{
    char                id[REFERRAL_UUID_TEXT_LEN + 1];
    size_t              i, n;
    referral_stream_t  *s;

    /* the worker's log and Postgres write it with dashes */

    if (name != NULL && strlen(name) <= REFERRAL_UUID_TEXT_LEN) {

        for (i = 0, n = 0; name[i] != '\0'; i++) {
            if (name[i] != '-') {
                id[n++] = name[i];
            }
        }

        id[n] = '\0';
        name = id;
    }

    n = referral_journal_streams(j->journal);
    j->streams = ctl_alloc(n * sizeof(referral_stream_t *));

    for (i = 0; i < n; i++) {
        s = referral_journal_stream(j->journal, i);

        if (name == NULL || strncasecmp(s->name, name, strlen(name)) == 0) {
            j->streams[j->nstreams++] = s;
        }
    }

    if (name != NULL && j->nstreams == 0) {
        ctl_error("journal %s: there is no stream %s; \"journal list\" "
                  "prints those that are", j->path, name);
        return CTL_FOUND;
    }

    if (name != NULL && j->nstreams > 1) {
        ctl_error("journal %s: %zu streams begin with \"%s\"", j->path,
                  j->nstreams, name);
        return CTL_USAGE;
    }

    if (j->nstreams) {
        qsort(j->streams, j->nstreams, sizeof(referral_stream_t *),
              ctl_journal_compare);
    }

    return CTL_DONE;
}


static int
ctl_journal_compare(const void *one, const void *two)
{
    uint64_t                  a, b;
    const referral_stream_t  *s, *t;

    s = *(referral_stream_t *const *) one;
    t = *(referral_stream_t *const *) two;

    a = ctl_journal_created(s);
    b = ctl_journal_created(t);

    return a != b ? (a < b ? -1 : 1) : strcmp(s->name, t->name);
}


static uint64_t
ctl_journal_created(const referral_stream_t *s)
{
    size_t  i;

    for (i = 0; i < s->nsegments; i++) {
        if (!s->segments[i].damaged) {
            return s->segments[i].header.created;
        }
    }

    return 0;
}


void
ctl_journal_close(ctl_journal_t *j)
{
    if (j->journal != NULL) {
        referral_journal_close(j->journal);
    }

    free(j->streams);
    free(j->parent);
    memset(j, 0, sizeof(ctl_journal_t));
}


int
ctl_journal_walk(const ctl_journal_t *j, referral_stream_t *s, uint64_t from,
    const ctl_journal_walk_t *w, ctl_journal_sum_t *sum)
{
    int               rc;
    char              error[REFERRAL_ERROR_LEN];
    uint64_t          start;
    referral_frame_t  frame;

    start = from;
    memset(sum, 0, sizeof(ctl_journal_sum_t));

    ctl_journal_begin(j, s, &start, w, sum);

    if (referral_stream_seek(s, start, NULL, error) != REFERRAL_OK) {
        ctl_error("%s", error);
        return REFERRAL_ERROR;
    }

    for ( ;; ) {
        rc = referral_stream_next(s, &frame, error);

        if (rc == REFERRAL_OK) {

            if (ctl_journal_record(s, &frame, w, sum) == REFERRAL_DONE) {
                return REFERRAL_OK;
            }

            continue;
        }

        if (rc == REFERRAL_HOLE) {
            ctl_journal_hole(s, &frame, w, sum);
            continue;
        }

        break;
    }

    if (rc == REFERRAL_ERROR) {
        ctl_journal_problem(s, w, sum, "", 0, 0, 0, error);

        if (w->problem == NULL) {
            ctl_error("%s", error);
        }

        return REFERRAL_ERROR;
    }

    if (from == 0) {
        ctl_journal_end(j, s, w, sum);
    }

    return REFERRAL_OK;
}


static void
ctl_journal_begin(const ctl_journal_t *j, referral_stream_t *s,
    uint64_t *from, const ctl_journal_walk_t *w, ctl_journal_sum_t *sum)
{
    int       lost;
    char      path[PATH_MAX], error[REFERRAL_ERROR_LEN];
    uint64_t  first;

    lost = 0;

    if (referral_position_load(s, &sum->pos, error) != REFERRAL_OK) {

        memset(&sum->pos, 0, sizeof(referral_position_t));
        snprintf(path, sizeof(path), "%s/%s/%s", j->path, s->name,
                 REFERRAL_STREAM_STATE);

        /* it is absent until a worker has committed something */

        lost = (access(path, F_OK) == 0);

        if (lost && *from == 0) {
            ctl_journal_problem(s, w, sum, REFERRAL_STREAM_STATE, 0, 0, 0,
                                "the saved position can not be read");
        }
    }

    first = s->nused ? s->segments[0].first : 1;

    if (*from == 0 && !lost && first > sum->pos.freed + 1) {
        ctl_journal_problem(s, w, sum, "", 0, sum->pos.freed + 1, first - 1,
                            "the files are gone though nothing says that "
                            "they were freed");
    }

    if (*from < first) {
        *from = first;
    }
}


static int
ctl_journal_record(referral_stream_t *s, const referral_frame_t *frame,
    const ctl_journal_walk_t *w, ctl_journal_sum_t *sum)
{
    char               error[REFERRAL_ERROR_LEN];
    char               text[REFERRAL_ERROR_LEN + 64];
    referral_record_t  rec;

    if (sum->first == 0) {
        sum->first = frame->number;
    }

    sum->last = frame->number;
    sum->records++;

    if (referral_record_decode(&rec, frame->payload, frame->len, error)
        != REFERRAL_OK)
    {
        snprintf(text, sizeof(text), "the record can not be read: %s", error);
        ctl_journal_problem(s, w, sum, frame->segment, frame->offset,
                            frame->number, frame->number, text);
        return REFERRAL_OK;
    }

    return w->record ? w->record(w->data, s, frame, &rec) : REFERRAL_OK;
}


static void
ctl_journal_hole(referral_stream_t *s, const referral_frame_t *frame,
    const ctl_journal_walk_t *w, ctl_journal_sum_t *sum)
{
    char                 error[REFERRAL_ERROR_LEN];
    char                 text[REFERRAL_ERROR_LEN];
    uint64_t             first;
    referral_position_t  pos;

    first = frame->number;

    /* a worker may have freed this while we were reading */

    if (referral_position_load(s, &pos, error) == REFERRAL_OK
        && pos.freed >= first)
    {
        if (pos.freed >= frame->last) {
            return;
        }

        first = pos.freed + 1;
    }

    if (sum->first == 0) {
        sum->first = first;
    }

    sum->last = frame->last;

    ctl_journal_problem(s, w, sum, frame->segment, frame->offset, first,
                        frame->last, ctl_journal_reason(s, frame, text));
}


/*
 * The reader's sentence names numbers and place too, which stand beside it
 * here: "records A to B are not there: REASON in "FILE" at OFFSET".
 */

const char *
ctl_journal_reason(const referral_stream_t *s, const referral_frame_t *frame,
    char *text)
{
    char        *p;
    size_t       i;
    const char  *reason;

    for (i = 0; i < s->nsegments; i++) {
        if (strcmp(s->segments[i].name, frame->segment) == 0
            && s->segments[i].size <= frame->offset)
        {
            return "the file ends here: it was cut, or the next one is gone";
        }
    }

    reason = strstr(frame->problem, ": ");
    snprintf(text, REFERRAL_ERROR_LEN, "%s",
             reason ? reason + 2 : "not there");

    p = strstr(text, " in \"");

    if (p != NULL) {
        *p = '\0';
    }

    return text;
}


/* what the reader rightly takes for the end may hide damage */

static void
ctl_journal_end(const ctl_journal_t *j, referral_stream_t *s,
    const ctl_journal_walk_t *w, ctl_journal_sum_t *sum)
{
    char                 error[REFERRAL_ERROR_LEN];
    ctl_segment_t        seg;
    referral_segment_t  *last;
    referral_position_t  pos;

    /* a worker may have freed the rest, and the stream, while we read */

    if (referral_position_load(s, &pos, error) != REFERRAL_OK && sum->pos.seq)
    {
        return;
    }

    if (sum->last < sum->pos.seq) {

        if (s->nused && pos.freed < sum->pos.seq) {
            ctl_journal_problem(s, w, sum, "", 0, sum->last + 1,
                                sum->pos.seq,
                                "committed to Postgres, but not here");
        }

        sum->last = sum->pos.seq;
    }

    ctl_journal_files(s, w, sum);

    if (s->nused == 0) {
        return;
    }

    last = &s->segments[s->nused - 1];

    if (last->header.salt && ctl_journal_torn(j, s, &seg, last->name)) {
        ctl_journal_problem(s, w, sum, last->name, seg.end, 0, 0,
                            "a damaged or cut record ends the stream");
    }
}


static void
ctl_journal_files(referral_stream_t *s, const ctl_journal_walk_t *w,
    ctl_journal_sum_t *sum)
{
    size_t               i;
    const char          *text;
    referral_segment_t  *seg;

    for (i = 0; i < s->nsegments; i++) {

        seg = &s->segments[i];

        if (!seg->damaged) {
            continue;
        }

        if (!seg->used) {
            text = "no segment of this stream, or its header is damaged";

        } else if (seg->header.salt) {
            text = "the begin block is damaged, the records are read "
                   "nevertheless";

        } else if (i == s->nused - 1) {
            text = "the header is damaged, nothing in this file can be read";

        } else {
            continue;                      /* a hole says it, with numbers */
        }

        ctl_journal_problem(s, w, sum, seg->name, 0, 0, 0, text);
    }
}


static int
ctl_journal_torn(const ctl_journal_t *j, referral_stream_t *s,
    ctl_segment_t *seg, const char *name)
{
    int   i;
    char  path[PATH_MAX], error[REFERRAL_ERROR_LEN];

    snprintf(path, sizeof(path), "%s/%s/%s", j->path, s->name, name);

    /* a live writer may publish while we read: the same place, three times */

    for (i = 0; i < CTL_TAIL_TRIES; i++) {

        if (i > 0) {
            usleep(20 * 1000);
        }

        if (ctl_segment_scan(seg, path, NULL, error) != REFERRAL_OK
            || !seg->torn)
        {
            return 0;
        }

        if (s->state != REFERRAL_STREAM_LIVE) {
            break;
        }
    }

    return 1;
}


static void
ctl_journal_problem(referral_stream_t *s, const ctl_journal_walk_t *w,
    ctl_journal_sum_t *sum, const char *segment, uint64_t offset,
    uint64_t first, uint64_t last, const char *text)
{
    ctl_journal_problem_t  problem;

    sum->problems++;

    if (w->problem == NULL) {
        return;
    }

    problem.segment = segment;
    problem.offset = offset;
    problem.first = first;
    problem.last = last;
    problem.text = text;

    w->problem(w->data, s, &problem);
}


void
ctl_journal_complain(const ctl_journal_t *j, const referral_stream_t *s,
    const ctl_journal_problem_t *problem)
{
    char  where[128], which[64];

    where[0] = '\0';
    which[0] = '\0';

    if (problem->segment[0] != '\0') {
        snprintf(where, sizeof(where), "/%s at %" PRIu64, problem->segment,
                 problem->offset);
    }

    if (problem->first && problem->first == problem->last) {
        snprintf(which, sizeof(which), "record %" PRIu64 ": ",
                 problem->first);

    } else if (problem->first) {
        snprintf(which, sizeof(which), "records %" PRIu64 " to %" PRIu64
                 ": ", problem->first, problem->last);
    }

    ctl_error("journal %s: %s%s: %s%s", j->path, s->name, where, which,
              problem->text);
}


const char *
ctl_journal_state(const referral_stream_t *s)
{
    static const char  *states[] = { "live", "final", "aside" };

    return states[s->state];
}


const referral_segment_header_t *
ctl_journal_header(const referral_stream_t *s)
{
    size_t                            i;
    const referral_segment_header_t  *h;

    h = NULL;

    for (i = 0; i < s->nsegments; i++) {

        if (!s->segments[i].damaged
            && (h == NULL || s->segments[i].header.created >= h->created))
        {
            h = &s->segments[i].header;
        }
    }

    return h;
}
