
/*
 * Copyright (C) The nginx referral module authors
 *
 * referralctl journal adopt: gives the records of a stream that was set
 * aside, those that Postgres does not know, to a new stream.
 *
 * It may be stopped at any point and started again.  The new stream is made
 * where nobody sees it and gets its name in one step; that name follows from
 * the last record of the old one, so a later run finds it here, or its cursor
 * in Postgres, and knows that only the old stream is to be removed.  Its
 * segments go from the first to the last: the last record stays to the end.
 */


#include "journal.h"
#include "output.h"
#include "pg.h"

#include "referral_fault.h"
#include "referral_uuid.h"
#include "referral_writer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


#define CTL_ADOPT_BATCH    500             /* records of one question */
#define CTL_ADOPT_PATIENCE 10000           /* ms, for space or a sync */
#define CTL_ADOPT_SYNC     200             /* ms */
#define CTL_ADOPT_SEGMENT  (4 * 1024 * 1024)
#define CTL_ADOPT_LIMIT    ((uint64_t) 1024 * 1024 * 1024)


/*
 * Rows that were refused are kept as they were recorded, and known by that.
 * What can not be decoded has no id.
 */

#define CTL_ADOPT_KNOWN                                                      \
    "SELECT r.n FROM unnest($1::uuid[], $2::bytea[])"                        \
    " WITH ORDINALITY r (id, record, n)"                                     \
    " WHERE EXISTS (SELECT FROM referral.interaction i WHERE i.id = r.id"    \
    "               AND i.occurred_at = referral.uuid_time(r.id))"           \
    " OR EXISTS (SELECT FROM referral.quarantine q"                          \
    "            WHERE q.data ->> 'id' = r.id::text)"                        \
    " OR EXISTS (SELECT FROM referral.dead_letter d"                         \
    "            WHERE d.record = r.record)"


typedef struct {
    u_char                  *payload;
    size_t                   len;
    u_char                   id[REFERRAL_UUID_LEN];
    unsigned                 has_id:1;
    unsigned                 noise:1;
    unsigned                 known:1;
} ctl_adopt_record_t;


typedef struct {
    char                    *data;
    size_t                   len;
    size_t                   size;
} ctl_adopt_text_t;


typedef struct {
    ctl_journal_t            journal;
    referral_stream_t       *s;
    int                      root;         /* the journal's directory */
    int                      lock;         /* the file "aside" */
    PGconn                  *pg;

    /* the new stream */

    u_char                   id[REFERRAL_UUID_LEN];
    char                     name[REFERRAL_UUID_HEX_LEN + 1];
    referral_writer_t       *writer;

    ctl_adopt_record_t       batch[CTL_ADOPT_BATCH];
    size_t                   n;
    ctl_adopt_text_t         ids;
    ctl_adopt_text_t         records;

    uint64_t                 total;
    uint64_t                 adopted;
    uint64_t                 known;
    uint64_t                 unreadable;
    uint64_t                 files;        /* that cannot be read at all */
    unsigned                 before:1;     /* by an earlier run */
    unsigned                 removed:1;
} ctl_adopt_t;


static int ctl_adopt_stream(ctl_adopt_t *a, const ctl_options_t *o);
static int ctl_adopt_lock(ctl_adopt_t *a);
static int ctl_adopt_survey(ctl_adopt_t *a);
static void ctl_adopt_files(ctl_adopt_t *a);
static void ctl_adopt_identify(ctl_adopt_t *a, const referral_frame_t *frame);
static int ctl_adopt_before(ctl_adopt_t *a);
static int ctl_adopt_copy(ctl_adopt_t *a);
static void ctl_adopt_take(ctl_adopt_t *a, const referral_frame_t *frame);
static int ctl_adopt_batch(ctl_adopt_t *a);
static int ctl_adopt_ask(ctl_adopt_t *a);
static void ctl_adopt_add(ctl_adopt_text_t *t, const char *data, size_t len);
static int ctl_adopt_append(ctl_adopt_t *a, const ctl_adopt_record_t *rec);
static int ctl_adopt_open(ctl_adopt_t *a);
static int ctl_adopt_finish(ctl_adopt_t *a);
static void ctl_adopt_messages(ctl_adopt_t *a);
static void ctl_adopt_clear(ctl_adopt_t *a);
static int ctl_adopt_remove(ctl_adopt_t *a);
static void ctl_adopt_report(const ctl_adopt_t *a, unsigned json);


int
ctl_journal_adopt(ctl_options_t *o)
{
    int           rc;
    size_t        i;
    ctl_adopt_t  *a;

    a = ctl_alloc(sizeof(ctl_adopt_t));
    memset(a, 0, sizeof(ctl_adopt_t));

    a->root = -1;
    a->lock = -1;

    rc = ctl_journal_open(&a->journal, o, o->argv[0]);

    if (rc == CTL_DONE) {
        a->s = a->journal.streams[0];
        rc = ctl_adopt_stream(a, o);

        if (a->lock != -1) {
            (void) close(a->lock);
        }

        if (a->root != -1) {
            (void) close(a->root);
        }

        PQfinish(a->pg);
        ctl_journal_close(&a->journal);
    }

    for (i = 0; i < CTL_ADOPT_BATCH; i++) {
        free(a->batch[i].payload);
    }

    free(a->ids.data);
    free(a->records.data);
    free(a);

    return rc;
}


static int
ctl_adopt_stream(ctl_adopt_t *a, const ctl_options_t *o)
{
    int  rc;

    rc = ctl_adopt_lock(a);

    if (rc == CTL_DONE) {
        rc = ctl_adopt_survey(a);
    }

    if (rc == CTL_DONE) {
        rc = ctl_pg_open(&a->pg, o);
    }

    if (rc == CTL_DONE) {
        rc = ctl_adopt_before(a);
    }

    if (rc == CTL_DONE && !a->before) {
        rc = ctl_adopt_copy(a);
    }

    if (rc != CTL_DONE) {
        return rc;
    }

    /* the only copy of what could not be read stays for a person */

    if (a->unreadable || a->files) {
        ctl_error("journal %s: %s is kept, for what cannot be read of it: "
                  "move it elsewhere", a->journal.path, a->s->name);
        rc = CTL_FOUND;

    } else {
        rc = ctl_adopt_remove(a);
    }

    ctl_adopt_report(a, o->json);

    return rc;
}


static int
ctl_adopt_lock(ctl_adopt_t *a)
{
    char          path[PATH_MAX];
    struct stat   st;
    struct flock  fl;

    if (referral_stream_written(a->s)) {
        ctl_error("journal %s: %s is live, nginx writes to it: reload or stop "
                  "nginx first", a->journal.path, a->s->name);
        return CTL_FOUND;
    }

    if (a->s->state != REFERRAL_STREAM_SET_ASIDE) {
        ctl_error("journal %s: %s was not set aside: referral-worker carries "
                  "it", a->journal.path, a->s->name);
        return CTL_FOUND;
    }

    a->root = open(a->journal.path, O_RDONLY|O_DIRECTORY|O_CLOEXEC);

    snprintf(path, sizeof(path), "%s/%s", a->s->name, REFERRAL_STREAM_ASIDE);

    if (a->root != -1) {
        a->lock = openat(a->root, path, O_RDWR|O_NOFOLLOW|O_CLOEXEC);
    }

    if (a->lock == -1) {
        ctl_error("journal %s: %s cannot be opened: %s", a->journal.path,
                  a->root == -1 ? "it" : path, strerror(errno));
        return CTL_FOUND;
    }

    memset(&fl, 0, sizeof(struct flock));
    fl.l_type = F_WRLCK;
    fl.l_whence = SEEK_SET;

    if (fcntl(a->lock, F_OFD_SETLK, &fl) == -1
        || fstat(a->lock, &st) == -1 || st.st_nlink == 0)
    {
        ctl_error("journal %s: %s is being adopted by another process",
                  a->journal.path, a->s->name);
        return CTL_FOUND;
    }

    return CTL_DONE;
}


/* counts what is there; the last record names the new stream */

static int
ctl_adopt_survey(ctl_adopt_t *a)
{
    int                     rc;
    char                    error[REFERRAL_ERROR_LEN];
    char                    text[REFERRAL_ERROR_LEN];
    uint64_t                first;
    referral_frame_t        frame;
    ctl_journal_problem_t   problem;

    first = a->s->nused ? a->s->segments[0].first : 1;

    rc = referral_stream_seek(a->s, first, NULL, error);

    while (rc == REFERRAL_OK || rc == REFERRAL_HOLE) {
        rc = referral_stream_next(a->s, &frame, error);

        if (rc == REFERRAL_OK) {
            a->total++;
            ctl_adopt_identify(a, &frame);

        } else if (rc == REFERRAL_HOLE) {
            a->unreadable += frame.last - frame.number + 1;

            problem.segment = frame.segment;
            problem.offset = frame.offset;
            problem.first = frame.number;
            problem.last = frame.last;
            problem.text = ctl_journal_reason(a->s, &frame, text);

            ctl_journal_complain(&a->journal, a->s, &problem);
        }
    }

    if (rc == REFERRAL_DONE) {
        ctl_adopt_files(a);
        return CTL_DONE;
    }

    ctl_error("%s", rc == REFERRAL_ERROR ? error : "the stream is written");

    return CTL_FOUND;
}


/* records may stand in files that say nothing, and no hole tells */

static void
ctl_adopt_files(ctl_adopt_t *a)
{
    size_t               i;
    referral_segment_t  *seg;

    for (i = 0; i < a->s->nsegments; i++) {
        seg = &a->s->segments[i];

        if (seg->damaged && (seg->header.salt == 0 || !seg->used)) {
            ctl_error("journal %s: %s/%s: the header is damaged, nothing in "
                      "this file can be read", a->journal.path, a->s->name,
                      seg->name);
            a->files++;
        }
    }
}


/*
 * Copies of a machine may set the same stream aside, each with another end:
 * the stream's id alone would make them one.
 */

static void
ctl_adopt_identify(ctl_adopt_t *a, const referral_frame_t *frame)
{
    u_char  buf[REFERRAL_UUID_LEN + sizeof(uint64_t) + REFERRAL_RECORD_MAX];
    u_char  digest[SHA256_DIGEST_LENGTH];

    memcpy(buf, a->s->id, REFERRAL_UUID_LEN);
    memcpy(buf + REFERRAL_UUID_LEN, &frame->number, sizeof(uint64_t));
    memcpy(buf + REFERRAL_UUID_LEN + sizeof(uint64_t), frame->payload,
           frame->len);

    (void) SHA256(buf, REFERRAL_UUID_LEN + sizeof(uint64_t) + frame->len,
                  digest);

    /* version 8, RFC 9562 */

    memcpy(a->id, digest, REFERRAL_UUID_LEN);
    a->id[6] = (a->id[6] & 0x0f) | 0x80;
    a->id[8] = (a->id[8] & 0x3f) | 0x80;

    referral_uuid_hex(a->id, (u_char *) a->name);
}


/*
 * Looks for the directory first: it goes only when its cursor is there.  A
 * standby does not know what was committed last, and would double it.
 */

static int
ctl_adopt_before(ctl_adopt_t *a)
{
    int           rc;
    PGresult     *result;
    struct stat   st;
    const char   *params[1];

    if (a->total == 0) {
        a->before = 1;
        return CTL_DONE;
    }

    a->before = (fstatat(a->root, a->name, &st, AT_SYMLINK_NOFOLLOW) == 0);

    params[0] = a->name;

    result = ctl_pg_query(a->pg, &rc,
                          "SELECT pg_is_in_recovery(), EXISTS (SELECT"
                          " FROM referral.ingest_cursor"
                          " WHERE stream_id = $1::uuid)", 1, params);
    if (result == NULL) {
        return rc;
    }

    if (PQgetvalue(result, 0, 0)[0] == 't') {
        ctl_error("postgres: this server is a standby; adopt needs the "
                  "primary");
        rc = CTL_FOUND;
    }

    if (PQgetvalue(result, 0, 1)[0] == 't') {
        a->before = 1;
    }

    PQclear(result);

    return rc;
}


static int
ctl_adopt_copy(ctl_adopt_t *a)
{
    int               rc, rv;
    char              error[REFERRAL_ERROR_LEN];
    uint64_t          first;
    referral_frame_t  frame;

    ctl_adopt_clear(a);

    rc = CTL_DONE;
    first = a->s->nused ? a->s->segments[0].first : 1;
    rv = referral_stream_seek(a->s, first, NULL, error);

    while (rc == CTL_DONE && (rv == REFERRAL_OK || rv == REFERRAL_HOLE)) {
        rv = referral_stream_next(a->s, &frame, error);

        if (rv == REFERRAL_OK) {
            ctl_adopt_take(a, &frame);
        }

        if (a->n == CTL_ADOPT_BATCH || rv == REFERRAL_DONE) {
            rc = ctl_adopt_batch(a);
        }
    }

    if (rv == REFERRAL_ERROR) {
        ctl_error("%s", error);
        rc = CTL_FOUND;
    }

    if (rc == CTL_DONE && a->known + a->adopted != a->total) {
        ctl_error("journal %s: %s has changed", a->journal.path, a->s->name);
        rc = CTL_FOUND;
    }

    if (rc == CTL_DONE && a->writer != NULL) {
        rc = ctl_adopt_finish(a);
    }

    if (a->writer != NULL) {
        ctl_adopt_messages(a);
        referral_writer_close(a->writer);
        a->writer = NULL;
    }

    if (rc != CTL_DONE) {
        ctl_adopt_clear(a);
    }

    return rc;
}


static void
ctl_adopt_take(ctl_adopt_t *a, const referral_frame_t *frame)
{
    char                 error[REFERRAL_ERROR_LEN];
    referral_record_t    rec;
    ctl_adopt_record_t  *r;

    r = &a->batch[a->n++];

    free(r->payload);
    memset(r, 0, sizeof(ctl_adopt_record_t));

    r->len = frame->len;
    r->payload = ctl_alloc(frame->len);
    memcpy(r->payload, frame->payload, frame->len);

    r->noise = 1;

    if (referral_record_decode(&rec, r->payload, r->len, error) == REFERRAL_OK)
    {
        memcpy(r->id, rec.id, REFERRAL_UUID_LEN);
        r->has_id = 1;
        r->noise = rec.verdict != REFERRAL_VERDICT_VALID;
    }
}


static int
ctl_adopt_batch(ctl_adopt_t *a)
{
    int     rc;
    size_t  i;

    rc = ctl_adopt_ask(a);

    for (i = 0; rc == CTL_DONE && i < a->n; i++) {

        if (a->batch[i].known) {
            a->known++;
            continue;
        }

        rc = ctl_adopt_append(a, &a->batch[i]);
        a->adopted++;
    }

    a->n = 0;

    referral_fault("adopt-copied");

    return rc;
}


static int
ctl_adopt_ask(ctl_adopt_t *a)
{
    int           rc;
    char          text[REFERRAL_UUID_TEXT_LEN + 1];
    char          hex[2 * REFERRAL_RECORD_MAX + 1];
    size_t        i, k, n;
    PGresult     *result;
    const char   *params[2];

    a->ids.len = 0;
    a->records.len = 0;

    for (i = 0; i < a->n; i++) {
        text[0] = i ? ',' : '{';
        ctl_adopt_add(&a->ids, text, 1);
        ctl_adopt_add(&a->records, text, 1);

        if (a->batch[i].has_id) {
            referral_uuid_text(a->batch[i].id, (u_char *) text);
            ctl_adopt_add(&a->ids, text, REFERRAL_UUID_TEXT_LEN);

        } else {
            ctl_adopt_add(&a->ids, "NULL", 4);
        }

        for (k = 0; k < a->batch[i].len; k++) {
            snprintf(hex + 2 * k, 3, "%02x", a->batch[i].payload[k]);
        }

        ctl_adopt_add(&a->records, "\"\\\\x", 4);
        ctl_adopt_add(&a->records, hex, 2 * k);
        ctl_adopt_add(&a->records, "\"", 1);
    }

    if (a->n == 0) {
        return CTL_DONE;
    }

    ctl_adopt_add(&a->ids, "}", 2);
    ctl_adopt_add(&a->records, "}", 2);

    params[0] = a->ids.data;
    params[1] = a->records.data;

    result = ctl_pg_query(a->pg, &rc, CTL_ADOPT_KNOWN, 2, params);
    if (result == NULL) {
        return rc;
    }

    for (k = 0; k < (size_t) PQntuples(result); k++) {
        n = strtoul(PQgetvalue(result, (int) k, 0), NULL, 10);

        if (n >= 1 && n <= a->n) {
            a->batch[n - 1].known = 1;
        }
    }

    PQclear(result);

    return CTL_DONE;
}


static void
ctl_adopt_add(ctl_adopt_text_t *t, const char *data, size_t len)
{
    if (t->size - t->len < len) {
        t->size = 2 * t->size + len + 4096;
        t->data = ctl_realloc(t->data, t->size);
    }

    memcpy(t->data + t->len, data, len);
    t->len += len;
}


/* space is allocated behind, by the writer's helper */

static int
ctl_adopt_append(ctl_adopt_t *a, const ctl_adopt_record_t *rec)
{
    u_char    *p;
    unsigned   ms;

    if (a->writer == NULL && ctl_adopt_open(a) != REFERRAL_OK) {
        return CTL_FOUND;
    }

    for (ms = 0; ms < CTL_ADOPT_PATIENCE; ms++) {
        p = referral_writer_reserve(a->writer, rec->len);

        if (p != NULL) {
            memcpy(p, rec->payload, rec->len);
            (void) referral_writer_commit(a->writer, rec->len, rec->noise);
            (void) referral_writer_tick(a->writer);
            return CTL_DONE;
        }

        (void) referral_writer_tick(a->writer);
        usleep(1000);
    }

    ctl_error("journal %s: there is no space for the records of %s",
              a->journal.path, a->s->name);

    return CTL_FOUND;
}


/*
 * The size does not limit it: the stream that it replaces has its place in
 * the journal already, and may fill it.
 */

static int
ctl_adopt_open(ctl_adopt_t *a)
{
    char                              error[REFERRAL_ERROR_LEN];
    referral_writer_conf_t            conf;
    const referral_segment_header_t  *h;

    h = ctl_journal_header(a->s);

    memset(&conf, 0, sizeof(referral_writer_conf_t));

    conf.path = a->journal.path;
    conf.size = INT64_MAX;
    conf.limit = referral_journal_limit(a->journal.journal);
    conf.segment = h ? h->size : CTL_ADOPT_SEGMENT;
    conf.edge = h ? h->edge : "";
    conf.sync = CTL_ADOPT_SYNC;
    conf.id = a->id;

    if (conf.limit == 0) {
        conf.limit = CTL_ADOPT_LIMIT;
    }

    if (referral_writer_open(&a->writer, &conf, error) != REFERRAL_OK) {
        ctl_error("%s", error);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


/* all of it on disk before it has a name, and the name before we go on */

static int
ctl_adopt_finish(ctl_adopt_t *a)
{
    char                    hidden[64];
    unsigned                ms;
    referral_writer_stat_t  stat;

    for (ms = 0; ms < CTL_ADOPT_PATIENCE; ms++) {
        (void) referral_writer_tick(a->writer);
        referral_writer_stat(a->writer, &stat);

        if (stat.synced == stat.appended) {
            break;
        }

        usleep(1000);
    }

    ctl_adopt_messages(a);

    if (stat.synced != stat.appended) {
        ctl_error("journal %s: the new stream cannot be written to disk",
                  a->journal.path);
        return CTL_FOUND;
    }

    referral_writer_close(a->writer);
    a->writer = NULL;

    referral_fault("adopt-unnamed");

    snprintf(hidden, sizeof(hidden), "%s%s", a->name, REFERRAL_WRITER_HIDDEN);

    if (renameat(a->root, hidden, a->root, a->name) == -1
        || fsync(a->root) == -1)
    {
        ctl_error("journal %s: %s cannot be renamed: %s", a->journal.path,
                  hidden, strerror(errno));
        return CTL_FOUND;
    }

    referral_fault("adopt-named");

    return CTL_DONE;
}


static void
ctl_adopt_messages(ctl_adopt_t *a)
{
    char  text[REFERRAL_ERROR_LEN];

    while (referral_writer_message(a->writer, text, sizeof(text))
           == REFERRAL_OK)
    {
        ctl_error("%s", text);
    }
}


/* what a run that was stopped left behind, or this one when it failed */

static void
ctl_adopt_clear(ctl_adopt_t *a)
{
    int             fd;
    DIR            *dp;
    char            hidden[64];
    struct dirent  *de;

    snprintf(hidden, sizeof(hidden), "%s%s", a->name, REFERRAL_WRITER_HIDDEN);

    fd = openat(a->root, hidden, O_RDONLY|O_DIRECTORY|O_NOFOLLOW|O_CLOEXEC);
    if (fd == -1) {
        return;
    }

    dp = fdopendir(fd);
    if (dp == NULL) {
        (void) close(fd);
        return;
    }

    while ((de = readdir(dp)) != NULL) {
        (void) unlinkat(fd, de->d_name, 0);
    }

    (void) closedir(dp);
    (void) unlinkat(a->root, hidden, AT_REMOVEDIR);
}


static int
ctl_adopt_remove(ctl_adopt_t *a)
{
    int   rc;
    char  error[REFERRAL_ERROR_LEN];

    rc = REFERRAL_OK;

    while (rc == REFERRAL_OK && a->s->nsegments) {
        rc = referral_stream_unlink(a->s, 0, error);
        referral_fault("adopt-removing");
    }

    if (rc == REFERRAL_OK) {
        rc = referral_stream_remove(a->s, error);
    }

    if (rc != REFERRAL_OK) {
        ctl_error("%s; run adopt again", error);
        return CTL_FOUND;
    }

    a->removed = 1;

    return CTL_DONE;
}


static void
ctl_adopt_report(const ctl_adopt_t *a, unsigned json)
{
    json_t      *doc;
    const char  *into;

    into = a->adopted || (a->before && a->total) ? a->name : NULL;

    if (json) {
        doc = json_object();

        json_object_set_new(doc, "stream", json_string(a->s->name));
        json_object_set_new(doc, "into", into ? json_string(into)
                                              : json_null());
        json_object_set_new(doc, "before", json_boolean(a->before && into));
        json_object_set_new(doc, "records", json_integer(a->total));
        json_object_set_new(doc, "adopted", json_integer(a->adopted));
        json_object_set_new(doc, "known", json_integer(a->known));
        json_object_set_new(doc, "unreadable", json_integer(a->unreadable));
        json_object_set_new(doc, "removed", json_boolean(a->removed));

        ctl_json_print(doc);
        return;
    }

    if (a->before && into) {
        printf("%s was adopted before, as %s\n", a->s->name, into);
        return;
    }

    printf("adopted %" PRIu64 ", known %" PRIu64 ", unreadable %" PRIu64,
           a->adopted, a->known, a->unreadable);

    if (into) {
        printf(": referral-worker carries %s", into);
    }

    printf("\n");
}
