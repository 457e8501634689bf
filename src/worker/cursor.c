
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "referral_fault.h"
#include "referral_record.h"
#include "referral_uuid.h"
#include "cursor.h"
#include "log.h"


#define REFERRAL_CURSOR_COUNT                                                \
    " last_id = $3::uuid, rows = rows + $4::bigint,"                         \
    " quarantined = quarantined + $5::bigint, dead = dead + $6::bigint,"     \
    " gap = gap + $7::bigint, updated_at = pg_catalog.now()"                 \
    " WHERE stream = $1::int"

#define REFERRAL_CURSOR_MOVE                                                 \
    "UPDATE referral.ingest_cursor SET seq = $2::bigint,"                    \
    REFERRAL_CURSOR_COUNT                                                    \
    " AND seq = $8::bigint AND last_id IS NOT DISTINCT FROM $9::uuid"

/* for tests: what it would be without the comparison */

#define REFERRAL_CURSOR_ADD                                                  \
    "UPDATE referral.ingest_cursor SET seq = seq + $2::bigint - $8::bigint," \
    REFERRAL_CURSOR_COUNT                                                    \
    " AND $9::uuid IS NOT DISTINCT FROM $9::uuid"


/* records that are looked at first, before the one that is damaged */

#define REFERRAL_CURSOR_NEAR  4096


static int referral_cursor_read(referral_pg_t *pg,
    referral_source_stream_t *st);
static int referral_cursor_verify(referral_pg_t *pg, referral_source_t *src,
    referral_source_stream_t *st);
static int referral_cursor_behind(referral_pg_t *pg, referral_source_t *src,
    referral_source_stream_t *st);
static unsigned referral_cursor_has_id(void);
static int referral_cursor_last(referral_source_t *src,
    referral_source_stream_t *st, uint64_t from, uint64_t *seq, u_char *id,
    char *error);
static int referral_cursor_ahead(referral_pg_t *pg, referral_source_t *src,
    referral_source_stream_t *st);
static int referral_cursor_recorded(referral_pg_t *pg,
    const referral_source_stream_t *st, uint64_t seq, const u_char *id,
    unsigned *recorded);
static int referral_cursor_set_aside(referral_source_t *src,
    referral_source_stream_t *st, const char *reason);
static int referral_cursor_id(const referral_frame_t *frame, u_char *id);


int
referral_cursor_load(referral_pg_t *pg, referral_source_t *src,
    referral_source_stream_t *st)
{
    int       rc;
    int32_t   stream;
    uint64_t  seq;

    stream = st->stream;
    seq = st->seq;

    if (referral_cursor_read(pg, st) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    /* a server that lost its last commits, or was restored from a copy */

    if (stream && st->seq < seq) {
        referral_log(REFERRAL_LOG_WARN, "cursor-back",
                     "postgres knows fewer records than it had committed: "
                     "they are sent again",
                     "stream=%s from=%llu to=%llu", st->name,
                     (unsigned long long) seq, (unsigned long long) st->seq);
    }

    st->ended = 0;
    st->placed = 0;

    rc = referral_cursor_verify(pg, src, st);

    if (rc == REFERRAL_OK) {
        st->loaded = 1;
    }

    return rc;
}


static int
referral_cursor_read(referral_pg_t *pg, referral_source_stream_t *st)
{
    PGresult    *res;
    const char  *values[1];

    values[0] = st->name;

    if (referral_pg_query(pg, "SELECT stream, seq, last_id"
                          " FROM referral.ingest_cursor"
                          " WHERE stream_id = $1::uuid", 1, values, &res)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    st->stream = 0;
    st->seq = 0;
    st->has_last_id = 0;

    if (PQntuples(res) == 1) {
        st->stream = atoi(PQgetvalue(res, 0, 0));
        st->seq = strtoull(PQgetvalue(res, 0, 1), NULL, 10);

        st->has_last_id = !PQgetisnull(res, 0, 2)
                          && referral_uuid_parse(
                                 (u_char *) PQgetvalue(res, 0, 2),
                                 PQgetlength(res, 0, 2), st->last_id)
                             == REFERRAL_OK;
    }

    PQclear(res);

    return REFERRAL_OK;
}


/*
 * A machine that was resumed twice from one image has one stream with two
 * continuations.  The one that came first is in Postgres; ours must not be
 * taken for it.
 */

static int
referral_cursor_verify(referral_pg_t *pg, referral_source_t *src,
    referral_source_stream_t *st)
{
    int               rc;
    char              error[REFERRAL_ERROR_LEN];
    u_char            id[REFERRAL_UUID_LEN];
    referral_frame_t  frame;

    if (st->seq == 0 || src->freed(src, st, st->seq)) {
        return REFERRAL_OK;
    }

    rc = src->seek(src, st, st->seq, error);

    if (rc == REFERRAL_OK) {
        rc = src->next(src, st, &frame, error);
    }

    switch (rc) {

    case REFERRAL_OK:

        if (frame.number != st->seq || !st->has_last_id
            || referral_cursor_id(&frame, id) != REFERRAL_OK)
        {
            return referral_cursor_behind(pg, src, st);
        }

        if (memcmp(id, st->last_id, REFERRAL_UUID_LEN) == 0) {
            return REFERRAL_OK;
        }

        return referral_cursor_set_aside(src, st,
                   "the last committed record is not the one that is here: "
                   "this machine was started twice from one image");

    case REFERRAL_HOLE:
        return referral_cursor_behind(pg, src, st);

    case REFERRAL_AGAIN:
    case REFERRAL_DONE:
        return referral_cursor_ahead(pg, src, st);

    default:
        referral_cursor_unreadable(st, error);
        return REFERRAL_AGAIN;
    }
}


/*
 * The last committed record can not be compared: it is damaged, here or where
 * it was read.  Then the last one before it that can be read tells.
 */

static int
referral_cursor_behind(referral_pg_t *pg, referral_source_t *src,
    referral_source_stream_t *st)
{
    char      error[REFERRAL_ERROR_LEN];
    u_char    id[REFERRAL_UUID_LEN];
    uint64_t  seq, from;
    unsigned  recorded;

    if (!referral_cursor_has_id()) {
        return REFERRAL_OK;
    }

    from = st->seq > REFERRAL_CURSOR_NEAR ? st->seq - REFERRAL_CURSOR_NEAR : 1;

    for ( ;; ) {
        if (referral_cursor_last(src, st, from, &seq, id, error)
            != REFERRAL_OK)
        {
            referral_cursor_unreadable(st, error);
            return REFERRAL_AGAIN;
        }

        if (seq || from == 1) {
            break;
        }

        from = 1;
    }

    if (seq == 0) {
        return REFERRAL_OK;
    }

    if (referral_cursor_recorded(pg, st, seq, id, &recorded) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    if (recorded) {
        return REFERRAL_OK;
    }

    return referral_cursor_set_aside(src, st,
               "the last committed record is damaged, and the one before it "
               "is not known to postgres: this machine was started twice from "
               "one image");
}


/* always, but for a test of what happens else */

static unsigned
referral_cursor_has_id(void)
{
    return referral_guard("last-id-compare");
}


/* the last record from..(cursor - 1) that has an id; *seq is 0 if none has */

static int
referral_cursor_last(referral_source_t *src, referral_source_stream_t *st,
    uint64_t from, uint64_t *seq, u_char *id, char *error)
{
    int               rc;
    u_char            last[REFERRAL_UUID_LEN];
    referral_frame_t  frame;

    *seq = 0;

    rc = src->seek(src, st, from, error);

    while (rc == REFERRAL_OK || rc == REFERRAL_HOLE) {
        rc = src->next(src, st, &frame, error);

        if (rc == REFERRAL_HOLE) {
            continue;
        }

        if (rc != REFERRAL_OK || frame.number >= st->seq) {
            break;
        }

        if (referral_cursor_id(&frame, last) == REFERRAL_OK) {
            memcpy(id, last, REFERRAL_UUID_LEN);
            *seq = frame.number;
        }
    }

    return rc == REFERRAL_ERROR ? REFERRAL_ERROR : REFERRAL_OK;
}


/*
 * Postgres has more records than are here.  After a power loss that is right:
 * records that were committed, but not yet on disk, are gone, and the stream
 * is final.  The same happens on a copy of a disk whose original went on, and
 * then records may stand here that Postgres does not have.  The last one that
 * is here tells: streams are appended to, so if it is known, all are.
 */

static int
referral_cursor_ahead(referral_pg_t *pg, referral_source_t *src,
    referral_source_stream_t *st)
{
    int               rc;
    char              error[REFERRAL_ERROR_LEN];
    u_char            id[REFERRAL_UUID_LEN], last[REFERRAL_UUID_LEN];
    uint64_t          seq;
    unsigned          recorded;
    referral_frame_t  frame;

    seq = 0;

    rc = src->seek(src, st, 1, error);

    while (rc == REFERRAL_OK || rc == REFERRAL_HOLE) {
        rc = src->next(src, st, &frame, error);

        if (rc == REFERRAL_OK
            && referral_cursor_id(&frame, id) == REFERRAL_OK)
        {
            memcpy(last, id, REFERRAL_UUID_LEN);
            seq = frame.number;
        }

        /* it was written meanwhile */

        if (rc == REFERRAL_OK && frame.number >= st->seq) {
            return REFERRAL_AGAIN;
        }
    }

    if (rc == REFERRAL_ERROR) {
        referral_cursor_unreadable(st, error);
        return REFERRAL_AGAIN;
    }

    if (rc == REFERRAL_AGAIN) {
        return referral_cursor_set_aside(src, st,
                   "postgres has more records than this live stream: this "
                   "machine was started twice from one image");
    }

    if (seq == 0) {
        return REFERRAL_OK;
    }

    if (referral_cursor_recorded(pg, st, seq, last, &recorded)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    if (!recorded) {
        return referral_cursor_set_aside(src, st,
                   "postgres has more records than this stream, but not its "
                   "last one: a copy of this machine's disk went on");
    }

    referral_log(REFERRAL_LOG_WARN, "cursor-ahead",
                 "postgres has all records of this stream and some that were "
                 "lost here, as after a power loss",
                 "stream=%s here=%llu committed=%llu", st->name,
                 (unsigned long long) seq, (unsigned long long) st->seq);

    return REFERRAL_OK;
}


static int
referral_cursor_recorded(referral_pg_t *pg,
    const referral_source_stream_t *st, uint64_t seq, const u_char *id,
    unsigned *recorded)
{
    char         stream[16], number[24], text[REFERRAL_UUID_TEXT_LEN + 1];
    PGresult    *res;
    const char  *values[3];

    snprintf(stream, sizeof(stream), "%d", (int) st->stream);
    snprintf(number, sizeof(number), "%llu", (unsigned long long) seq);
    referral_uuid_text(id, (u_char *) text);
    text[REFERRAL_UUID_TEXT_LEN] = '\0';

    values[0] = stream;
    values[1] = number;
    values[2] = text;

    if (referral_pg_query(pg, "SELECT referral.recorded($1::int, $2::bigint,"
                          " $3::uuid)", 3, values, &res)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    *recorded = PQntuples(res) == 1 && PQgetvalue(res, 0, 0)[0] == 't';

    PQclear(res);

    return REFERRAL_OK;
}


static int
referral_cursor_set_aside(referral_source_t *src,
    referral_source_stream_t *st, const char *reason)
{
    char  error[REFERRAL_ERROR_LEN], text[REFERRAL_ERROR_LEN];

    snprintf(text, sizeof(text), "%s; its clicks wait: reload nginx here, then"
             " \"referralctl journal adopt %s\"", reason, st->name);

    referral_log(REFERRAL_LOG_ERROR, "stream-aside", text,
                 "stream=%s committed=%llu", st->name,
                 (unsigned long long) st->seq);

    if (src->set_aside(src, st, reason, error) != REFERRAL_OK) {
        referral_log(REFERRAL_LOG_ERROR, "stream-aside-failed", error,
                     "stream=%s", st->name);
    }

    return REFERRAL_DECLINED;
}


void
referral_cursor_unreadable(referral_source_stream_t *st, const char *error)
{
    char  text[REFERRAL_ERROR_LEN + 160];

    if (st->failing) {
        return;
    }

    snprintf(text, sizeof(text),
             "%s; the stream is tried again and again: check the disk, and who"
             " may read these files", error);

    referral_log(REFERRAL_LOG_ERROR, "journal-unreadable", text, "stream=%s",
                 st->name);

    st->failing = 1;
}


static int
referral_cursor_id(const referral_frame_t *frame, u_char *id)
{
    char               error[REFERRAL_ERROR_LEN];
    referral_record_t  rec;

    if (frame->len > REFERRAL_RECORD_MAX
        || referral_record_decode(&rec, frame->payload, frame->len, error)
           != REFERRAL_OK)
    {
        return REFERRAL_DECLINED;
    }

    memcpy(id, rec.id, REFERRAL_UUID_LEN);

    return REFERRAL_OK;
}


int
referral_cursor_create(referral_pg_t *pg, referral_source_stream_t *st)
{
    const char  *values[2];

    values[0] = st->name;
    values[1] = st->edge;

    if (referral_pg_query(pg, "INSERT INTO referral.ingest_cursor"
                          " (stream_id, edge) VALUES ($1::uuid, $2)"
                          " ON CONFLICT (stream_id) DO NOTHING",
                          2, values, NULL)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    referral_fault("worker-cursor");

    return referral_cursor_read(pg, st);
}


int
referral_cursor_move(referral_pg_t *pg, const referral_source_stream_t *st,
    uint64_t seq, const u_char *last_id, const uint64_t counts[4])
{
    char         text[9][REFERRAL_UUID_TEXT_LEN + 1];
    unsigned     i, moved, compare;
    PGresult    *res;
    const char  *values[9];

    snprintf(text[0], sizeof(text[0]), "%d", (int) st->stream);
    snprintf(text[1], sizeof(text[1]), "%llu", (unsigned long long) seq);

    for (i = 0; i < 4; i++) {
        snprintf(text[3 + i], sizeof(text[0]), "%llu",
                 (unsigned long long) counts[i]);
    }

    snprintf(text[7], sizeof(text[0]), "%llu", (unsigned long long) st->seq);

    for (i = 0; i < 9; i++) {
        values[i] = text[i];
    }

    values[2] = NULL;
    values[8] = NULL;

    compare = referral_cursor_has_id();

    if (last_id != NULL && compare) {
        referral_uuid_text(last_id, (u_char *) text[2]);
        text[2][REFERRAL_UUID_TEXT_LEN] = '\0';
        values[2] = text[2];
    }

    if (st->has_last_id && compare) {
        referral_uuid_text(st->last_id, (u_char *) text[8]);
        text[8][REFERRAL_UUID_TEXT_LEN] = '\0';
        values[8] = text[8];
    }

    if (referral_pg_query(pg, referral_guard("cursor-compare")
                              ? REFERRAL_CURSOR_MOVE : REFERRAL_CURSOR_ADD,
                          9, values, &res)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    moved = atoi(PQcmdTuples(res));

    PQclear(res);

    return moved == 1 ? REFERRAL_OK : REFERRAL_DECLINED;
}


int
referral_cursor_refuse(referral_pg_t *pg, const referral_source_stream_t *st,
    uint64_t n)
{
    char  sql[160];

    snprintf(sql, sizeof(sql),
             "UPDATE referral.ingest_cursor SET rows = rows - %llu,"
             " dead = dead + %llu WHERE stream = %d",
             (unsigned long long) n, (unsigned long long) n,
             (int) st->stream);

    return referral_pg_query(pg, sql, 0, NULL, NULL);
}
