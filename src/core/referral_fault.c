
/*
 * Copyright (C) The nginx referral module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_fault.h"


#if (REFERRAL_FAULTS)


#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


#define REFERRAL_FAULT_MAX   8             /* points armed in one process */


typedef struct {
    const referral_fault_t  *fault;
    uint64_t                 nth;
    uint64_t                 times;        /* 0: for ever */
    uint64_t                 passed;
} referral_fault_armed_t;


static int referral_fault_arm(const char *word, size_t len, char *error);
static int referral_fault_number(const char **p, const char *end,
    uint64_t *n);
static int referral_fault_lift(const char *word, size_t len, char *error);
static int referral_fault_words(const char *name,
    int (*take)(const char *word, size_t len, char *error), char *error);
static const referral_fault_t *referral_fault_find(
    const referral_fault_t *table, const char *name, size_t len);
static referral_fault_armed_t *referral_fault_due(const char *point);
static int referral_fault_mark(const char *point);
static void referral_fault_kill(void);


static const referral_fault_t  referral_points[] = {

    /* the writer, in its order */

    { "stream-directory",
      "the directory of a new stream is made, its lock is not", 0 },

    { "stream-locked",
      "a new stream is locked and has no segment", 0 },

    { "stream-unnamed",
      "a new stream has its first segment, and its name ends with .new", 0 },

    { "stream-named",
      "a new stream has its name, its helper does not run", 0 },

    { "segment-allocated",
      "a spare is allocated and has no header", 0 },

    { "segment-made",
      "a spare has its header and is not used yet", 0 },

    { "segment-beginning",
      "the first number of a segment is stored, its checksum is not", 0 },

    { "segment-begun",
      "a segment is in use, with the name of the spare, and the one before"
      " is not given to the helper", 0 },

    { "segment-rolled",
      "the writer uses the next segment, which is not renamed", 0 },

    { "segment-renamed",
      "a segment in use got its name, the directory is not synced", 0 },

    { "record-written",
      "payload and number of a record are stored, its length is not", 0 },

    { "record-published",
      "a record can be read, and nobody was answered", 0 },

    { "segment-unsynced",
      "fdatasync of a segment is due", 0 },

    { "segment-synced",
      "a segment is on disk, that is not said to the owner", 0 },

    { "segment-retired",
      "a full segment is not mapped any more and not cut to its length", 0 },

    { "segment-cut",
      "a full segment is cut to its length and still open", 0 },

    { "writer-closing",
      "a writer that ends has stopped its helper, its files are open", 0 },

    { "stream-clearing",
      "the files of a stream without records are gone, its directory is not",
      0 },

    { "segment-fallocate-enospc",
      "fallocate() of a segment fails: no space", ENOSPC },

    { "segment-fallocate-eio",
      "fallocate() of a segment fails: input/output error", EIO },

    { "segment-header-eio",
      "the header of a segment cannot be written or synced", EIO },

    { "segment-rename-eio",
      "a segment in use cannot be given its name", EIO },

    { "segment-fdatasync-enospc",
      "fdatasync() of records fails: no space", ENOSPC },

    { "segment-fdatasync-eio",
      "fdatasync() of records fails: input/output error", EIO },

    /* nginx's zone */

    { "zone-memory-enomem",
      "the zone has no memory, with nothing left to evict", ENOMEM },

    /* readers: the worker and referralctl */

    { "journal-read-eio",
      "pread() of a journal's file fails", EIO },

    { "position-half",
      "half of the position is written to committed.new", 0 },

    { "position-written",
      "committed.new is written and not renamed", 0 },

    { "position-saved",
      "the position is saved", 0 },

    { "position-enospc",
      "the position cannot be saved: no space", ENOSPC },

    { "segment-unlinking",
      "the position says that a segment is freed, its file is there", 0 },

    { "segment-unlinked",
      "the file of a freed segment is gone", 0 },

    { "segment-unlink-eio",
      "the file of a freed segment cannot be removed", EIO },

    { "stream-removing",
      "the files of a stream that is done are gone, its directory is not",
      0 },

    { "aside-made",
      "the file that sets a stream aside is there, and empty", 0 },

    /* the worker, in its order */

    { "worker-connected",
      "a session with Postgres is open, nothing is known of it", 0 },

    { "worker-cursor",
      "the cursor row of a new stream is made, with nothing behind it", 0 },

    { "worker-read",
      "a batch is read from the journal", 0 },

    { "worker-begun",
      "the transaction is begun", 0 },

    { "worker-moved",
      "the cursor is moved in the transaction, its rows are not sent", 0 },

    { "worker-copying",
      "a part of the rows is sent (up to 1 KB at a time), COPY not ended",
      0 },

    { "worker-copied",
      "the interactions are sent, the counters are not", 0 },

    { "worker-refused",
      "a row that Postgres refuses was found, in a bisect", 0 },

    { "worker-commit",
      "all is sent but COMMIT", 0 },

    { "worker-commit-sent",
      "COMMIT is sent, its answer is not read", 0 },

    { "worker-committed",
      "the answer to COMMIT is read, no position is saved", 0 },

    { "partition-sent",
      "the statement that makes a partition is sent, its answer not read",
      0 },

    { "partition-made",
      "a partition that was missing is made, the batch is to be sent again",
      0 },

    { "partition-expired",
      "an old partition is marked to be dropped, and attached", 0 },

    { "partition-detach-sent",
      "DETACH is sent, its answer is not read", 0 },

    { "partition-detached",
      "an old partition is detached and not dropped", 0 },

    { "partition-dropped",
      "an old partition is dropped", 0 },

    /* the publisher, in its order */

    { "publish-locked",
      "the publisher's lock is taken, its fence is not in Redis", 0 },

    { "publish-taken",
      "the fence is in Redis, nothing is known of what else is there", 0 },

    { "publish-begun",
      "a generation is in Postgres, and not in Redis", 0 },

    { "publish-reset",
      "a generation is begun in Redis, none of its codes is there", 0 },

    { "publish-off",
      "referral:off is changed, no code is written", 0 },

    { "publish-collected",
      "a batch of codes is read, none of them is written", 0 },

    { "publish-stop",
      "the process is stopped (SIGSTOP) before up to 50 codes are sent",
      EINTR },

    { "publish-chunk",
      "up to 50 codes are sent, their answer is not read", 0 },

    { "publish-last",
      "all scripts of a batch are answered but the last, which is not sent",
      0 },

    { "publish-written",
      "a batch is in Redis, Postgres does not know of it", 0 },

    { "publish-done",
      "a batch is in Redis, and Postgres knows", 0 },

    { "publish-searched",
      "all codes are in Redis and no others, which is not ready", 0 },

    /* webhooks */

    { "webhook-claimed",
      "deliveries are leased, none of them is sent", 0 },

    { "webhook-sent",
      "receivers have answered, and Postgres does not know", 0 },

    /* referralctl journal adopt */

    { "adopt-copied",
      "a batch (500) of a stream set aside is copied to a new stream that"
      " nobody sees", 0 },

    { "adopt-unnamed",
      "the new stream is complete and synced, and nobody sees it", 0 },

    { "adopt-named",
      "the new stream is there, and so is the one that was set aside", 0 },

    { "adopt-removing",
      "a segment of the stream that was set aside is removed", 0 },

    { NULL, NULL, 0 }
};


static const referral_fault_t  referral_guards[] = {

    { "stream-lock",
      "writers lock their streams; without it a stream that is written looks"
      " finished", 0 },

    { "preallocation",
      "the space of a segment is allocated before it is mapped; without it"
      " files have holes", 0 },

    { "record-checksum",
      "readers compare the checksum of each record", 0 },

    { "salt",
      "each segment seeds its checksums with a random salt; without it that"
      " is 1 in all", 0 },

    { "cursor-compare",
      "the cursor moves only from the value that was read; without it"
      " whoever comes adds to it", 0 },

    { "last-id-compare",
      "the cursor knows the id of its last record; without it numbers alone"
      " are compared", 0 },

    { "free-after-commit",
      "segments are freed when all of their records are committed; without"
      " it when the retention is over", 0 },

    { "observed-retention",
      "the retention counts the time during which a segment was seen"
      " committed; without it the time since it was made", 0 },

    { "publish-fence",
      "scripts compare the fence of the publisher that sent them", 0 },

    { "publish-batch-compare",
      "Redis has to hold the batch that Postgres knows; without it the"
      " generation is enough", 0 },

    /* nginx: codes */

    { "zone-generation",
      "a reply is stored only if nothing was announced since its read was"
      " written; without it the last one stays", 0 },

    { NULL, NULL, 0 }
};


static referral_fault_armed_t  referral_armed[REFERRAL_FAULT_MAX];
static size_t                  referral_narmed;
static unsigned                referral_lifted;  /* bits, by place in table */
static char                   *referral_marks;   /* directory, or NULL */


int
referral_fault_init(char *error)
{
    const char  *marks;

    referral_narmed = 0;
    referral_lifted = 0;

    free(referral_marks);
    referral_marks = NULL;

    if (referral_fault_words("REFERRAL_FAULT", referral_fault_arm, error)
        != REFERRAL_OK
        || referral_fault_words("REFERRAL_NO_GUARD", referral_fault_lift,
                                error)
           != REFERRAL_OK)
    {
        referral_narmed = 0;
        referral_lifted = 0;
        return REFERRAL_ERROR;
    }

    marks = getenv("REFERRAL_FAULT_MARK");

    if (marks != NULL && marks[0] != '\0') {
        referral_marks = strdup(marks);
    }

    return REFERRAL_OK;
}


static int
referral_fault_words(const char *name,
    int (*take)(const char *word, size_t len, char *error), char *error)
{
    size_t       len;
    const char  *p;

    p = getenv(name);

    while (p != NULL && *p != '\0') {
        len = strcspn(p, ",");

        if (take(p, len, error) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }

        p += len;
        p += (*p == ',');
    }

    return REFERRAL_OK;
}


static int
referral_fault_arm(const char *word, size_t len, char *error)
{
    const char              *p, *end;
    referral_fault_armed_t  *a;

    if (referral_narmed == REFERRAL_FAULT_MAX) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "REFERRAL_FAULT: more than %d points", REFERRAL_FAULT_MAX);
        return REFERRAL_ERROR;
    }

    a = &referral_armed[referral_narmed];
    memset(a, 0, sizeof(referral_fault_armed_t));

    a->nth = 1;
    a->times = 1;

    end = word + len;
    p = memchr(word, ':', len);

    a->fault = referral_fault_find(referral_points, word,
                                   p ? (size_t) (p - word) : len);
    if (a->fault == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "REFERRAL_FAULT: there is no point \"%.*s\"", (int) len,
                 word);
        return REFERRAL_ERROR;
    }

    if (p != NULL
        && (referral_fault_number(&p, end, &a->nth) != REFERRAL_OK
            || a->nth == 0
            || (p != end
                && (a->fault->error == 0
                    || referral_fault_number(&p, end, &a->times)
                       != REFERRAL_OK))
            || p != end))
    {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "REFERRAL_FAULT: \"%.*s\" is not %s:NTH%s", (int) len, word,
                 a->fault->name, a->fault->error ? "[:TIMES]" : "");
        return REFERRAL_ERROR;
    }

    referral_narmed++;

    return REFERRAL_OK;
}


/* *p is at the colon before the number, then behind it */

static int
referral_fault_number(const char **p, const char *end, uint64_t *n)
{
    const char  *q;

    *n = 0;

    for (q = *p + 1; q < end && *q >= '0' && *q <= '9' && q - *p < 19; q++) {
        *n = *n * 10 + (uint64_t) (*q - '0');
    }

    if (q == *p + 1 || (q < end && *q != ':')) {
        return REFERRAL_ERROR;
    }

    *p = q;

    return REFERRAL_OK;
}


static int
referral_fault_lift(const char *word, size_t len, char *error)
{
    const referral_fault_t  *guard;

    guard = referral_fault_find(referral_guards, word, len);

    if (guard == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "REFERRAL_NO_GUARD: there is no guard \"%.*s\"", (int) len,
                 word);
        return REFERRAL_ERROR;
    }

    referral_lifted |= 1u << (guard - referral_guards);

    return REFERRAL_OK;
}


static const referral_fault_t *
referral_fault_find(const referral_fault_t *table, const char *name,
    size_t len)
{
    for ( /* void */ ; table->name != NULL; table++) {
        if (strlen(table->name) == len && memcmp(table->name, name, len) == 0)
        {
            return table;
        }
    }

    return NULL;
}


const referral_fault_t *
referral_fault_points(void)
{
    return referral_points;
}


const referral_fault_t *
referral_fault_guards(void)
{
    return referral_guards;
}


void
referral_fault_pass(const char *point)
{
    if (referral_fault_due(point) != NULL
        && referral_fault_mark(point) == REFERRAL_OK)
    {
        referral_fault_kill();
    }
}


int
referral_fault_call(const char *point)
{
    referral_fault_armed_t  *a;

    a = referral_fault_due(point);

    if (a == NULL) {
        return 0;
    }

    (void) referral_fault_mark(point);
    errno = a->fault->error;

    return 1;
}


void
referral_fault_write(const char *point, int fd, const void *buf, size_t len)
{
    if (referral_fault_due(point) == NULL
        || referral_fault_mark(point) != REFERRAL_OK)
    {
        return;
    }

    if (write(fd, buf, len / 2) == -1) {
        /* then there is nothing, which is less than half */
    }

    referral_fault_kill();
}


int
referral_fault_guard(const char *guard)
{
    const referral_fault_t  *g;

    if (referral_lifted == 0) {
        return 1;
    }

    g = referral_fault_find(referral_guards, guard, strlen(guard));

    if (g == NULL) {
        abort();
    }

    return (referral_lifted >> (g - referral_guards) & 1) == 0;
}


/* counts the passage; threads of a process count together */

static referral_fault_armed_t *
referral_fault_due(const char *point)
{
    size_t                   i;
    uint64_t                 n;
    referral_fault_armed_t  *a;

    for (i = 0; i < referral_narmed; i++) {
        a = &referral_armed[i];

        if (strcmp(a->fault->name, point) != 0) {
            continue;
        }

        n = __atomic_add_fetch(&a->passed, 1, __ATOMIC_RELAXED);

        if (n >= a->nth && (a->times == 0 || n - a->nth < a->times)) {
            return a;
        }
    }

    return NULL;
}


/* REFERRAL_DECLINED: it is there already */

static int
referral_fault_mark(const char *point)
{
    int   fd;
    char  path[REFERRAL_ERROR_LEN];

    if (referral_marks == NULL) {
        return REFERRAL_OK;
    }

    snprintf(path, sizeof(path), "%s/%s", referral_marks, point);

    fd = open(path, O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0666);

    if (fd == -1) {
        return errno == EEXIST ? REFERRAL_DECLINED : REFERRAL_OK;
    }

    (void) close(fd);

    return REFERRAL_OK;
}


static void
referral_fault_kill(void)
{
    (void) kill(getpid(), SIGKILL);
    (void) pause();
}


#endif
