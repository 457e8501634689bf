
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "referral_fault.h"
#include "cursor.h"
#include "flush.h"
#include "log.h"
#include "row.h"
#include "signals.h"
#include "stat.h"


#define REFERRAL_FLUSH_DAY    INT64_C(86400000)

/* how often a missing partition is made before somebody must look */

#define REFERRAL_FLUSH_TRIES  3

/* each batch after one that was shortened is longer by an eighth */

#define REFERRAL_FLUSH_GROW   8

/* lines about single records, in so many ms; of quarantine it is one */

#define REFERRAL_FLUSH_LINES  10
#define REFERRAL_FLUSH_WARN   60000


#define referral_flush_copy(table, columns)                                  \
    "COPY referral." table " (" columns ") FROM STDIN (FORMAT binary)"

#define REFERRAL_FLUSH_COPY                                                  \
    referral_flush_copy("interaction", REFERRAL_ROW_COLUMNS)


typedef struct {
    uint64_t                n;             /* 0: nothing for this table */
    const referral_buf_t   *data;
    const char             *sql;
} referral_flush_table_t;


static int referral_flush_read(referral_flush_t *f,
    referral_source_stream_t *st, char *error);
static void referral_flush_shorten(referral_flush_t *f);
static void referral_flush_lengthen(referral_flush_t *f);
static int referral_flush_commit(referral_flush_t *f,
    referral_source_stream_t *st);
static int referral_flush_again(referral_flush_t *f,
    const referral_source_stream_t *st, unsigned *careful, unsigned *tries);
static int referral_flush_transaction(referral_flush_t *f,
    referral_source_stream_t *st, unsigned careful);
static int referral_flush_begin(referral_flush_t *f);
static int referral_flush_partitions(referral_flush_t *f);
static int referral_flush_partition(referral_flush_t *f, int64_t day);
static int referral_flush_known(const referral_flush_t *f, int64_t day);
static int referral_flush_interactions(referral_flush_t *f,
    referral_source_stream_t *st, unsigned careful);
static int referral_flush_more(void *ctx, const u_char **data, size_t *len);
static int referral_flush_bisect(referral_flush_t *f, size_t first, size_t n);
static int referral_flush_rest(referral_flush_t *f,
    referral_source_stream_t *st, unsigned careful);
static int referral_flush_end(referral_flush_t *f,
    referral_source_stream_t *st);
static void referral_flush_ahead(referral_flush_t *f,
    referral_source_stream_t *st);
static int referral_flush_memory(referral_flush_t *f);
static void referral_flush_committed(referral_flush_t *f,
    referral_source_stream_t *st);
static void referral_flush_report(referral_flush_t *f,
    const referral_source_stream_t *st);
static void referral_flush_report_gap(const referral_item_t *item,
    const referral_source_stream_t *st);
static int referral_flush_may_say(referral_flush_limit_t *l, uint64_t now,
    unsigned lines);
static void referral_flush_report_more(referral_flush_limit_t *l,
    const referral_source_stream_t *st, const char *text);


int
referral_flush_init(referral_flush_t *f, referral_pg_t *pg, size_t rows)
{
    memset(f, 0, sizeof(referral_flush_t));

    f->pg = pg;

    return referral_flush_resize(f, rows);
}


int
referral_flush_resize(referral_flush_t *f, size_t rows)
{
    referral_batch_t  batch, next;

    if (referral_batch_init(&batch, rows) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    if (referral_batch_init(&next, rows) != REFERRAL_OK) {
        referral_batch_free(&batch);
        return REFERRAL_ERROR;
    }

    referral_batch_free(&f->batch);
    referral_batch_free(&f->next);

    f->batch = batch;
    f->next = next;
    f->ahead = NULL;
    f->rows = rows;
    f->limit = rows;

    return REFERRAL_OK;
}


void
referral_flush_free(referral_flush_t *f)
{
    referral_batch_free(&f->batch);
    referral_batch_free(&f->next);
    referral_buf_free(&f->slice);
}


void
referral_flush_connected(referral_flush_t *f)
{
    size_t  i;

    f->ndays = 0;
    f->ahead = NULL;

    for (i = 0; i < f->source->nstreams; i++) {
        f->source->streams[i]->loaded = 0;
    }
}


int
referral_flush_stream(referral_flush_t *f, referral_source_stream_t *st,
    unsigned more)
{
    int   rc, last;
    char  error[REFERRAL_ERROR_LEN];

    if (st->aside || (st->loaded && st->ended)) {
        return REFERRAL_AGAIN;
    }

    if (!st->loaded) {
        rc = referral_cursor_load(f->pg, f->source, st);

        if (rc != REFERRAL_OK) {
            return rc == REFERRAL_ERROR ? REFERRAL_ERROR : REFERRAL_AGAIN;
        }
    }

    last = referral_flush_read(f, st, error);

    if (last == REFERRAL_ERROR) {
        referral_cursor_unreadable(st, error);
        st->placed = 0;

    } else {
        st->failing = 0;
    }

    if (f->batch.n == 0) {
        st->ended = last == REFERRAL_DONE;
        return REFERRAL_AGAIN;
    }

    referral_fault("worker-read");

    f->more = more && last == REFERRAL_OK;
    f->sending = 0;

    rc = referral_flush_commit(f, st);

    if (rc != REFERRAL_OK) {
        f->ahead = NULL;
        st->placed = 0;
        referral_flush_shorten(f);
        return rc;
    }

    return last == REFERRAL_OK ? REFERRAL_OK : REFERRAL_AGAIN;
}


/* what was read ahead, or what the source has now */

static int
referral_flush_read(referral_flush_t *f, referral_source_stream_t *st,
    char *error)
{
    int                last;
    referral_batch_t   batch;
    referral_source_t  *src;

    src = f->source;

    if (f->ahead == st) {
        batch = f->batch;
        f->batch = f->next;
        f->next = batch;

        f->ahead = NULL;
        f->began = f->started;
        st->placed = 1;

        return f->last;
    }

    f->ahead = NULL;
    f->began = referral_stat_now();
    last = REFERRAL_OK;

    if (!st->placed) {
        last = src->seek(src, st, st->seq + 1, error);
    }

    if (last != REFERRAL_OK) {
        f->batch.n = 0;
        return last;
    }

    st->placed = 1;

    return referral_batch_read(&f->batch, f->limit, src, st, error);
}


/*
 * To a server that is slow or far away a COPY may take longer than a statement
 * may: the same batch would fail again and again.
 */

static void
referral_flush_shorten(referral_flush_t *f)
{
    if (f->sending && f->pg->class == REFERRAL_PG_RETRY) {
        f->limit = (f->batch.n + 1) / 2;
    }
}


static void
referral_flush_lengthen(referral_flush_t *f)
{
    if (f->limit == f->rows) {
        return;
    }

    f->limit += f->limit / REFERRAL_FLUSH_GROW + 1;

    if (f->limit > f->rows) {
        f->limit = f->rows;
    }
}


/* tries the transaction until it is done, or until this can not help */

static int
referral_flush_commit(referral_flush_t *f, referral_source_stream_t *st)
{
    int             rc;
    unsigned        careful, tries;
    referral_pg_t  *pg;

    pg = f->pg;

    if (st->stream == 0) {

        if (referral_cursor_create(pg, st) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }

        /* another process was first, and has begun */

        if (st->seq != 0) {
            st->loaded = 0;
            return REFERRAL_AGAIN;
        }
    }

    careful = 0;
    tries = 0;

    for ( ;; ) {
        f->copying = 0;

        rc = referral_flush_transaction(f, st, careful);

        if (rc == REFERRAL_OK) {
            referral_flush_committed(f, st);
            return REFERRAL_OK;
        }

        if (!referral_pg_connected(pg)
            || (rc != REFERRAL_ERROR
                && referral_pg_rollback(pg) != REFERRAL_OK))
        {
            return REFERRAL_ERROR;
        }

        if (rc == REFERRAL_DECLINED) {
            referral_log(REFERRAL_LOG_WARN, "cursor-moved",
                         "another process moved the cursor of this stream",
                         "stream=%s seq=%llu", st->name,
                         (unsigned long long) st->seq);
            st->loaded = 0;
            return REFERRAL_AGAIN;
        }

        if (rc == REFERRAL_AGAIN) {

            /* outside the transaction: it would hold the creators' lock */

            if (referral_flush_partitions(f) != REFERRAL_OK) {
                return REFERRAL_ERROR;
            }

            referral_fault("partition-made");

            continue;
        }

        if (referral_flush_again(f, st, &careful, &tries) != REFERRAL_OK
            || referral_pg_rollback(pg) != REFERRAL_OK)
        {
            return REFERRAL_ERROR;
        }
    }
}


/* what to do otherwise after a failure: REFERRAL_ERROR when there is nothing */

static int
referral_flush_again(referral_flush_t *f, const referral_source_stream_t *st,
    unsigned *careful, unsigned *tries)
{
    referral_pg_t  *pg;

    pg = f->pg;

    if (pg->class == REFERRAL_PG_DATA && f->copying && !*careful) {
        referral_log(REFERRAL_LOG_WARN, "row-refused", pg->error,
                     "stream=%s sqlstate=%s records=%zu", st->name,
                     pg->sqlstate, f->batch.n);
        *careful = 1;

        return REFERRAL_OK;
    }

    if (pg->class == REFERRAL_PG_PARTITION
        && ++*tries <= REFERRAL_FLUSH_TRIES)
    {
        f->ndays = 0;
        return REFERRAL_OK;
    }

    if (pg->class != REFERRAL_PG_RETRY) {
        pg->class = REFERRAL_PG_ALARM;
    }

    return REFERRAL_ERROR;
}


/*
 * REFERRAL_AGAIN: partitions must be made first; REFERRAL_DECLINED: the
 * cursor has moved.  In both cases, and after an error, the transaction is
 * still open.
 */

static int
referral_flush_transaction(referral_flush_t *f, referral_source_stream_t *st,
    unsigned careful)
{
    int                rc;
    uint64_t           counts[4];
    referral_item_t   *last;
    referral_batch_t  *b;

    b = &f->batch;

    rc = referral_flush_begin(f);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    referral_fault("worker-begun");

    last = &b->items[b->n - 1];

    counts[0] = b->rows;
    counts[1] = b->quarantined;
    counts[2] = b->dead;
    counts[3] = b->gap;

    rc = referral_cursor_move(f->pg, st, last->last,
                              last->has_id ? last->id : NULL, counts);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    referral_fault("worker-moved");

    f->sending = 1;

    if (referral_flush_interactions(f, st, careful) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    referral_fault("worker-copied");

    if (referral_flush_rest(f, st, careful) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    /* rows that were refused on the way are dead letters by now */

    if (counts[0] != b->rows
        && referral_cursor_refuse(f->pg, st, counts[0] - b->rows)
           != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    referral_fault("worker-commit");

    return referral_flush_end(f, st);
}


static int
referral_flush_begin(referral_flush_t *f)
{
    size_t     i;
    uint64_t   now;
    PGresult  *res;

    if (referral_pg_query(f->pg, "BEGIN ISOLATION LEVEL READ COMMITTED;"
                          "SELECT (extract(epoch FROM now())"
                          "        * 1000)::bigint", 0, NULL, &res)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    now = strtoull(PQgetvalue(res, 0, 0), NULL, 10);
    PQclear(res);

    referral_batch_judge(&f->batch, now);

    for (i = 0; i < f->batch.n; i++) {
        if (f->batch.items[i].kind == REFERRAL_ITEM_ROW
            && !referral_flush_known(f, f->batch.items[i].occurred
                                        / REFERRAL_FLUSH_DAY))
        {
            return REFERRAL_AGAIN;
        }
    }

    return REFERRAL_OK;
}


static int
referral_flush_partitions(referral_flush_t *f)
{
    size_t            i;
    int64_t           day;
    referral_item_t  *item;

    for (i = 0; i < f->batch.n; i++) {
        item = &f->batch.items[i];

        if (item->kind != REFERRAL_ITEM_ROW) {
            continue;
        }

        day = item->occurred / REFERRAL_FLUSH_DAY;

        if (!referral_flush_known(f, day)
            && referral_flush_partition(f, day) != REFERRAL_OK)
        {
            return REFERRAL_ERROR;
        }
    }

    return REFERRAL_OK;
}


static int
referral_flush_partition(referral_flush_t *f, int64_t day)
{
    char         text[32];
    time_t       sec;
    struct tm    tm;
    PGresult    *res;
    const char  *values[1];

    sec = day * 86400;
    gmtime_r(&sec, &tm);
    strftime(text, sizeof(text), "%Y-%m-%d", &tm);

    values[0] = text;

    if (referral_pg_query(f->pg, "SELECT referral.partition_ensure($1::date)",
                          1, values, &res)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    if (PQgetvalue(res, 0, 0)[0] == 't') {
        referral_log(REFERRAL_LOG_INFO, "partition-made", NULL, "day=%s",
                     text);
    }

    PQclear(res);

    /* the oldest knowledge goes when days are many */

    if (f->ndays == REFERRAL_FLUSH_DAYS) {
        f->ndays--;
        memmove(f->days, f->days + 1, f->ndays * sizeof(int64_t));
    }

    f->days[f->ndays++] = day;

    return REFERRAL_OK;
}


/* clicks come in order: the day asked for is nearly always the last one */

static int
referral_flush_known(const referral_flush_t *f, int64_t day)
{
    size_t  i;

    for (i = f->ndays; i > 0; i--) {
        if (f->days[i - 1] == day) {
            return 1;
        }
    }

    return 0;
}


/*
 * Rows are encoded while the server takes those before them, and so is all
 * the rest, unless it depends on what is refused.
 */

static int
referral_flush_interactions(referral_flush_t *f, referral_source_stream_t *st,
    unsigned careful)
{
    if (f->batch.rows == 0) {
        return REFERRAL_OK;
    }

    if (careful) {
        if (referral_batch_encode(&f->batch, st->stream) != REFERRAL_OK) {
            return referral_flush_memory(f);
        }

        return referral_flush_bisect(f, 0, f->batch.n);
    }

    f->stream = st->stream;
    referral_batch_rewind(&f->batch);

    if (referral_pg_copy_from(f->pg, REFERRAL_FLUSH_COPY, referral_flush_more,
                              f)
        != REFERRAL_OK)
    {
        f->copying = 1;
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


static int
referral_flush_more(void *ctx, const u_char **data, size_t *len)
{
    referral_flush_t  *f;

    f = ctx;

    if (referral_batch_more(&f->batch, f->stream, data, len) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    return *len ? REFERRAL_OK
                : referral_batch_encode_rest(&f->batch, f->stream);
}


/*
 * Rows that were accepted stay, under their savepoint, while the rest is
 * tried: so a row that only collides with another of the batch is found too.
 * One bad row among n costs about 2 log2(n) statements.
 */

static int
referral_flush_bisect(referral_flush_t *f, size_t first, size_t n)
{
    char              state[6], message[REFERRAL_ERROR_LEN];
    referral_item_t  *item;

    item = &f->batch.items[first];

    if (n == 0 || (n == 1 && item->kind != REFERRAL_ITEM_ROW)) {
        return REFERRAL_OK;
    }

    if (referral_batch_slice(&f->batch, first, n, &f->slice) != REFERRAL_OK) {
        return referral_flush_memory(f);
    }

    if (referral_pg_query(f->pg, "SAVEPOINT slice", 0, NULL, NULL)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    if (referral_pg_copy(f->pg, REFERRAL_FLUSH_COPY, f->slice.data,
                         f->slice.len)
        == REFERRAL_OK)
    {
        return referral_pg_query(f->pg, "RELEASE slice", 0, NULL, NULL);
    }

    if (!referral_pg_connected(f->pg) || f->pg->class != REFERRAL_PG_DATA) {
        return REFERRAL_ERROR;
    }

    memcpy(state, f->pg->sqlstate, sizeof(state));
    memcpy(message, f->pg->error, sizeof(message));

    if (referral_pg_query(f->pg, "ROLLBACK TO slice; RELEASE slice", 0, NULL,
                          NULL)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    if (n == 1) {
        referral_batch_refuse(&f->batch, item, state, message);
        referral_fault("worker-refused");
        return REFERRAL_OK;
    }

    if (referral_flush_bisect(f, first, n / 2) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    return referral_flush_bisect(f, first + n / 2, n - n / 2);
}


static int
referral_flush_rest(referral_flush_t *f, referral_source_stream_t *st,
    unsigned careful)
{
    size_t             i;
    referral_batch_t  *b;

    const referral_flush_table_t  tables[] = {
        { f->batch.rows, &f->batch.delta,
          referral_flush_copy("counter_delta", "program_id, referrer_id, code,"
                              " day, type, verdict, kind, n") },
        { f->batch.dead, &f->batch.dead_letter,
          referral_flush_copy("dead_letter", "stream, seq, reason, detail,"
                              " record") },
        { f->batch.quarantined, &f->batch.quarantine,
          referral_flush_copy("quarantine", "stream, seq, reason, record,"
                              " data") },
        { f->batch.gap, &f->batch.ingest_gap,
          referral_flush_copy("ingest_gap", "stream, from_seq, to_seq,"
                              " reason") }
    };

    b = &f->batch;

    if ((careful || b->rows == 0)
        && referral_batch_encode_rest(b, st->stream) != REFERRAL_OK)
    {
        return referral_flush_memory(f);
    }

    for (i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        if (tables[i].n
            && referral_pg_copy(f->pg, tables[i].sql, tables[i].data->data,
                                tables[i].data->len)
               != REFERRAL_OK)
        {
            return REFERRAL_ERROR;
        }
    }

    return REFERRAL_OK;
}


/* COMMIT of a transaction that failed is no error: it answers ROLLBACK */

static int
referral_flush_end(referral_flush_t *f, referral_source_stream_t *st)
{
    int        rc;
    PGresult  *res;

    if (referral_pg_send(f->pg, "COMMIT", 0, NULL) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    if (f->more) {
        referral_flush_ahead(f, st);
    }

    if (referral_pg_receive(f->pg, &res) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    referral_fault("worker-committed");

    rc = REFERRAL_OK;

    if (strcmp(PQcmdStatus(res), "COMMIT") != 0) {
        snprintf(f->pg->error, sizeof(f->pg->error),
                 "COMMIT was answered by \"%.64s\"", PQcmdStatus(res));
        snprintf(f->pg->sqlstate, sizeof(f->pg->sqlstate), "25P02");
        f->pg->class = REFERRAL_PG_ALARM;
        rc = REFERRAL_ERROR;
    }

    PQclear(res);

    return rc;
}


/*
 * The server writes its log to disk, and would wait for us after that.  Until
 * the batch is taken the source does not stand where the cursor does.
 */

static void
referral_flush_ahead(referral_flush_t *f, referral_source_stream_t *st)
{
    char  error[REFERRAL_ERROR_LEN];

    f->more = 0;
    f->started = referral_stat_now();
    f->last = referral_batch_read(&f->next, f->limit, f->source, st, error);

    st->placed = 0;

    /* what can not be read is read again in its turn, and reported then */

    f->ahead = f->last != REFERRAL_ERROR ? st : NULL;
}


static int
referral_flush_memory(referral_flush_t *f)
{
    snprintf(f->pg->error, sizeof(f->pg->error), "out of memory here");
    snprintf(f->pg->sqlstate, sizeof(f->pg->sqlstate), "53200");
    f->pg->class = REFERRAL_PG_RETRY;

    return REFERRAL_ERROR;
}


static void
referral_flush_committed(referral_flush_t *f, referral_source_stream_t *st)
{
    referral_item_t   *item;
    referral_batch_t  *b;

    b = &f->batch;
    item = &b->items[b->n - 1];

    st->seq = item->last;
    st->has_last_id = item->has_id;
    memcpy(st->last_id, item->id, REFERRAL_UUID_LEN);
    st->dirty = 1;

    referral_flush_lengthen(f);

    f->stat.batches++;
    f->stat.rows += b->rows;
    f->stat.quarantined += b->quarantined;
    f->stat.dead += b->dead;
    f->stat.gap += b->gap;

    referral_stat_add(batches, 1);
    referral_stat_add(rows, b->rows);
    referral_stat_add(quarantined, b->quarantined);
    referral_stat_add(dead, b->dead);
    referral_stat_add(gap, b->gap);
    referral_stat_time(batch, referral_stat_now() - f->began);

    if (item->has_id) {
        f->newest = item->occurred;
    }

    referral_log(REFERRAL_LOG_DEBUG, "batch", NULL,
                 "stream=%s seq=%llu rows=%llu", st->name,
                 (unsigned long long) st->seq, (unsigned long long) b->rows);

    if (b->rows != b->n) {
        referral_flush_report(f, st);
    }
}


/* what did not become a row, once that is a fact */

static void
referral_flush_report(referral_flush_t *f, const referral_source_stream_t *st)
{
    size_t             i;
    uint64_t           now;
    referral_item_t   *item;
    referral_batch_t  *b;

    b = &f->batch;
    now = referral_now();

    if (b->quarantined && referral_flush_may_say(&f->quarantines, now, 1)) {
        referral_log(REFERRAL_LOG_WARN, "quarantine",
                     "records whose time can not be right: is a clock wrong?"
                     "  They wait in referral.quarantine for"
                     " referral.requeue()",
                     "stream=%s records=%llu", st->name,
                     (unsigned long long) b->quarantined);
    }

    for (i = 0; i < b->n; i++) {
        item = &b->items[i];

        if (item->kind == REFERRAL_ITEM_GAP
            && referral_flush_may_say(&f->gaps, now, REFERRAL_FLUSH_LINES))
        {
            referral_flush_report_gap(item, st);
        }

        if (item->kind == REFERRAL_ITEM_DEAD
            && referral_flush_may_say(&f->letters, now, REFERRAL_FLUSH_LINES))
        {
            referral_log(REFERRAL_LOG_ERROR, "dead-letter", item->detail,
                         "stream=%s seq=%llu reason=%s", st->name,
                         (unsigned long long) item->number,
                         item->reason ? item->reason : "unknown");
        }
    }

    referral_flush_report_more(&f->gaps, st,
                               "more gaps: they are in referral.ingest_gap");
    referral_flush_report_more(&f->letters, st,
                               "more dead letters: with their bytes and"
                               " reasons they are in referral.dead_letter,"
                               " for 30 days");
}


static void
referral_flush_report_gap(const referral_item_t *item,
    const referral_source_stream_t *st)
{
    char  text[REFERRAL_ERROR_LEN + 160];

    snprintf(text, sizeof(text),
             "%s; these clicks are lost unless a copy has them: check the"
             " disk, and \"referralctl journal verify\"",
             item->reason ? item->reason : "missing");

    referral_log(REFERRAL_LOG_ERROR, "gap", text, "stream=%s from=%llu"
                 " to=%llu", st->name, (unsigned long long) item->number,
                 (unsigned long long) item->last);
}


/* up to so many lines a minute; what is not said is counted */

static int
referral_flush_may_say(referral_flush_limit_t *l, uint64_t now, unsigned lines)
{
    if (l->since == 0 || now - l->since >= REFERRAL_FLUSH_WARN) {
        l->since = now;
        l->lines = 0;
    }

    if (l->lines < lines) {
        l->lines++;
        return 1;
    }

    l->hidden++;

    return 0;
}


/* the first batch that has too much says how much, the others a minute on */

static void
referral_flush_report_more(referral_flush_limit_t *l,
    const referral_source_stream_t *st, const char *text)
{
    if (l->hidden == 0 || l->lines > REFERRAL_FLUSH_LINES) {
        return;
    }

    referral_log(REFERRAL_LOG_ERROR, "more", text, "stream=%s records=%llu",
                 st->name, (unsigned long long) l->hidden);

    l->hidden = 0;
    l->lines = REFERRAL_FLUSH_LINES + 1;
}
