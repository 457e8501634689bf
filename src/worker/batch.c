
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdlib.h>
#include <string.h>

#include "referral_crc32c.h"
#include "referral_uuid.h"
#include "batch.h"
#include "row.h"


/* a batch ends at so many bytes, whatever the number of its records */

#define REFERRAL_BATCH_ARENA  (8 * 1024 * 1024)
#define REFERRAL_BATCH_SLACK  (64 * 1024)

#if (REFERRAL_FAULTS)
#define REFERRAL_BATCH_PIECE  1024         /* to be stopped half way */
#else
#define REFERRAL_BATCH_PIECE  (32 * 1024)
#endif

#define REFERRAL_BATCH_DAY    UINT64_C(86400000)

#define REFERRAL_BATCH_STEPS  64           /* of a search for a counter */

/* plausible times; referral.plausible() has the same window */

#define REFERRAL_BATCH_PAST    (90 * REFERRAL_BATCH_DAY)
#define REFERRAL_BATCH_FUTURE  (5 * UINT64_C(60000))


static void referral_batch_take(referral_batch_t *b,
    const referral_frame_t *frame);
static const char *referral_batch_text(referral_batch_t *b, const char *text);
static void referral_batch_judge_item(referral_batch_t *b,
    referral_item_t *item, uint64_t now);
static void referral_batch_encode_until(referral_batch_t *b, int32_t stream,
    size_t len);
static void referral_batch_deltas(referral_batch_t *b);
static uint32_t referral_batch_hash(const referral_item_t *item);
static int referral_batch_same(const referral_item_t *one,
    const referral_item_t *two);
static void referral_batch_delta(referral_batch_t *b,
    const referral_item_t *item, uint64_t n);
static void referral_batch_dead_letter(referral_batch_t *b,
    const referral_item_t *item, int32_t stream);
static void referral_batch_quarantine(referral_batch_t *b,
    const referral_item_t *item, int32_t stream);
static void referral_batch_gap(referral_batch_t *b,
    const referral_item_t *item, int32_t stream);
static void referral_batch_reset(referral_buf_t *b);


int
referral_batch_init(referral_batch_t *b, size_t max)
{
    memset(b, 0, sizeof(referral_batch_t));

    b->size = REFERRAL_BATCH_ARENA;
    b->table_size = 1;

    while (b->table_size < max * 2) {
        b->table_size *= 2;
    }

    b->items = calloc(max, sizeof(referral_item_t));
    b->arena = malloc(b->size);
    b->table = malloc(b->table_size * sizeof(uint32_t));

    if (b->items == NULL || b->arena == NULL || b->table == NULL) {
        referral_batch_free(b);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


void
referral_batch_free(referral_batch_t *b)
{
    free(b->items);
    free(b->arena);
    free(b->table);

    referral_buf_free(&b->interaction);
    referral_buf_free(&b->delta);
    referral_buf_free(&b->dead_letter);
    referral_buf_free(&b->quarantine);
    referral_buf_free(&b->ingest_gap);

    memset(b, 0, sizeof(referral_batch_t));
}


int
referral_batch_read(referral_batch_t *b, size_t limit,
    referral_source_t *src, referral_source_stream_t *st, char *error)
{
    int               rc;
    referral_frame_t  frame;

    b->n = 0;
    b->used = 0;

    while (b->n < limit
           && b->size - b->used > REFERRAL_RECORD_MAX + REFERRAL_BATCH_SLACK)
    {
        rc = src->next(src, st, &frame, error);

        if (rc != REFERRAL_OK && rc != REFERRAL_HOLE) {
            return rc;
        }

        if (rc == REFERRAL_OK) {
            frame.last = frame.number;
            frame.problem[0] = '\0';

        } else {
            frame.payload = NULL;
            frame.len = 0;
        }

        referral_batch_take(b, &frame);
    }

    return REFERRAL_OK;
}


static void
referral_batch_take(referral_batch_t *b, const referral_frame_t *frame)
{
    char                error[REFERRAL_ERROR_LEN];
    referral_item_t    *item;
    referral_record_t   rec;

    item = &b->items[b->n++];
    memset(item, 0, sizeof(referral_item_t));

    item->number = frame->number;
    item->last = frame->last;

    if (frame->payload == NULL) {
        item->kind = REFERRAL_ITEM_GAP;
        item->reason = referral_batch_text(b, frame->problem[0]
                                           ? frame->problem : "missing");
        return;
    }

    /* no record of ours is longer: what is kept of it is for a person */

    item->len = frame->len < REFERRAL_RECORD_MAX ? frame->len
                                                 : REFERRAL_RECORD_MAX;
    item->payload = b->arena + b->used;
    memcpy(item->payload, frame->payload, item->len);
    b->used += item->len;

    item->kind = REFERRAL_ITEM_DEAD;
    item->reason = "undecodable";

    if (frame->len > REFERRAL_RECORD_MAX) {
        item->detail = "the record is too long";
        return;
    }

    if (referral_record_decode(&rec, item->payload, item->len, error)
        != REFERRAL_OK)
    {
        item->detail = referral_batch_text(b, error);
        return;
    }

    memcpy(item->id, rec.id, REFERRAL_UUID_LEN);
    item->has_id = 1;

    item->occurred = referral_uuid_time(rec.id);

    if (item->occurred == 0) {
        item->detail = "the id has no time in it";
        return;
    }

    item->kind = REFERRAL_ITEM_ROW;
    item->reason = NULL;
    item->code = rec.code;
    item->type = *referral_row_type(&rec);
    item->program_id = rec.program_id;
    item->referrer_id = rec.referrer_id;
    item->verdict = rec.verdict;
}


/* a copy of the text in the arena, NULL when that is full */

static const char *
referral_batch_text(referral_batch_t *b, const char *text)
{
    char    *p;
    size_t   len;

    len = strlen(text) + 1;

    if (len > b->size - b->used) {
        return NULL;
    }

    p = (char *) b->arena + b->used;
    memcpy(p, text, len);
    b->used += len;

    return p;
}


void
referral_batch_judge(referral_batch_t *b, uint64_t now)
{
    size_t            i;
    referral_item_t  *item;

    b->rows = 0;
    b->quarantined = 0;
    b->dead = 0;
    b->gap = 0;

    for (i = 0; i < b->n; i++) {
        item = &b->items[i];

        referral_batch_judge_item(b, item, now);

        switch (item->kind) {

        case REFERRAL_ITEM_ROW:
            b->rows++;
            break;

        case REFERRAL_ITEM_QUARANTINE:
            b->quarantined++;
            break;

        case REFERRAL_ITEM_DEAD:
            b->dead++;
            break;

        case REFERRAL_ITEM_GAP:
            b->gap += item->last - item->number + 1;
            break;
        }
    }
}


/* a transaction that is tried again judges again, by a later clock */

static void
referral_batch_judge_item(referral_batch_t *b, referral_item_t *item,
    uint64_t now)
{
    if (item->kind == REFERRAL_ITEM_GAP || item->kind == REFERRAL_ITEM_DEAD) {
        return;
    }

    item->kind = REFERRAL_ITEM_QUARANTINE;

    if (item->occurred > now + REFERRAL_BATCH_FUTURE) {
        item->reason = "future";
        return;
    }

    if (item->occurred + REFERRAL_BATCH_PAST < now) {
        item->reason = "past";
        return;
    }

    item->kind = REFERRAL_ITEM_ROW;
    item->reason = NULL;
}


void
referral_batch_refuse(referral_batch_t *b, referral_item_t *item,
    const char *sqlstate, const char *message)
{
    item->kind = REFERRAL_ITEM_DEAD;
    item->reason = referral_batch_text(b, sqlstate);
    item->detail = referral_batch_text(b, message);

    b->rows--;
    b->dead++;
}


int
referral_batch_encode(referral_batch_t *b, int32_t stream)
{
    referral_batch_rewind(b);
    referral_batch_encode_until(b, stream, SIZE_MAX);

    return b->interaction.failed ? REFERRAL_ERROR : REFERRAL_OK;
}


void
referral_batch_rewind(referral_batch_t *b)
{
    referral_batch_reset(&b->interaction);

    b->encoded = 0;
}


int
referral_batch_more(referral_batch_t *b, int32_t stream, const u_char **data,
    size_t *len)
{
    referral_batch_reset(&b->interaction);
    referral_batch_encode_until(b, stream, REFERRAL_BATCH_PIECE);

    *data = b->interaction.data;
    *len = b->interaction.len;

    return b->interaction.failed ? REFERRAL_ERROR : REFERRAL_OK;
}


static void
referral_batch_encode_until(referral_batch_t *b, int32_t stream, size_t len)
{
    char                error[REFERRAL_ERROR_LEN];
    referral_item_t    *item;
    referral_record_t   rec;

    if (b->encoded == 0) {
        referral_copy_begin(&b->interaction);
    }

    while (b->encoded < b->n && b->interaction.len < len) {
        item = &b->items[b->encoded++];
        item->offset = b->interaction.len;

        if (item->kind == REFERRAL_ITEM_ROW) {
            (void) referral_record_decode(&rec, item->payload, item->len,
                                          error);

            referral_row_copy(&b->interaction, &rec, item->occurred, stream,
                              item->number);
        }

        if (b->encoded == b->n) {
            referral_copy_end(&b->interaction);
        }

        if (b->interaction.failed) {
            return;
        }
    }
}


int
referral_batch_slice(referral_batch_t *b, size_t first, size_t n,
    referral_buf_t *out)
{
    size_t  i, start, end;

    referral_batch_reset(out);
    referral_copy_begin(out);

    for (i = first; i < first + n; i++) {

        /* offsets of what is no row are those of the next row */

        start = b->items[i].offset;
        end = i + 1 < b->n ? b->items[i + 1].offset : b->interaction.len - 2;

        if (b->items[i].kind == REFERRAL_ITEM_ROW) {
            referral_buf_add(out, b->interaction.data + start, end - start);
        }
    }

    referral_copy_end(out);

    return out->failed ? REFERRAL_ERROR : REFERRAL_OK;
}


int
referral_batch_encode_rest(referral_batch_t *b, int32_t stream)
{
    size_t            i;
    referral_item_t  *item;

    referral_batch_reset(&b->delta);
    referral_batch_reset(&b->dead_letter);
    referral_batch_reset(&b->quarantine);
    referral_batch_reset(&b->ingest_gap);

    referral_copy_begin(&b->delta);
    referral_copy_begin(&b->dead_letter);
    referral_copy_begin(&b->quarantine);
    referral_copy_begin(&b->ingest_gap);

    referral_batch_deltas(b);

    for (i = 0; i < b->n; i++) {
        item = &b->items[i];

        switch (item->kind) {

        case REFERRAL_ITEM_ROW:
            break;

        case REFERRAL_ITEM_DEAD:
            referral_batch_dead_letter(b, item, stream);
            break;

        case REFERRAL_ITEM_QUARANTINE:
            referral_batch_quarantine(b, item, stream);
            break;

        case REFERRAL_ITEM_GAP:
            referral_batch_gap(b, item, stream);
            break;
        }
    }

    referral_copy_end(&b->delta);
    referral_copy_end(&b->dead_letter);
    referral_copy_end(&b->quarantine);
    referral_copy_end(&b->ingest_gap);

    return (b->delta.failed || b->dead_letter.failed || b->quarantine.failed
            || b->ingest_gap.failed) ? REFERRAL_ERROR : REFERRAL_OK;
}


/*
 * The table holds numbers of items plus one, each the first of its key, which
 * counts all of them.  It is never more than half full.  Codes may be chosen
 * so that their hashes are the same: after some steps an item counts alone,
 * as deltas of one key are added up anyway.
 */

static void
referral_batch_deltas(referral_batch_t *b)
{
    size_t    i, slot, first;
    uint32_t  other;
    unsigned  step;

    memset(b->table, 0, b->table_size * sizeof(uint32_t));

    for (i = 0; i < b->n; i++) {

        b->items[i].count = 0;

        if (b->items[i].kind != REFERRAL_ITEM_ROW) {
            continue;
        }

        slot = referral_batch_hash(&b->items[i]) & (b->table_size - 1);

        first = i;

        for (step = 0; step < REFERRAL_BATCH_STEPS; step++) {
            other = b->table[slot];

            if (other == 0) {
                b->table[slot] = (uint32_t) i + 1;
                break;
            }

            if (referral_batch_same(&b->items[i], &b->items[other - 1])) {
                first = other - 1;
                break;
            }

            slot = (slot + 1) & (b->table_size - 1);
        }

        b->items[first].count++;
    }

    for (i = 0; i < b->n; i++) {
        if (b->items[i].count) {
            referral_batch_delta(b, &b->items[i], b->items[i].count);
        }
    }
}


static uint32_t
referral_batch_hash(const referral_item_t *item)
{
    uint32_t  hash;

    hash = referral_crc32c(item->verdict + 1, item->code.data,
                           item->code.len);
    hash = referral_crc32c(hash, &item->program_id, sizeof(int64_t));

    return referral_crc32c(hash, &item->referrer_id, sizeof(int64_t));
}


static int
referral_batch_same(const referral_item_t *one, const referral_item_t *two)
{
    return one->code.len == two->code.len
           && one->type.len == two->type.len
           && one->verdict == two->verdict
           && one->program_id == two->program_id
           && one->referrer_id == two->referrer_id
           && one->occurred / REFERRAL_BATCH_DAY
              == two->occurred / REFERRAL_BATCH_DAY
           && (one->code.len == 0
               || memcmp(one->code.data, two->code.data, one->code.len) == 0)
           && memcmp(one->type.data, two->type.data, one->type.len) == 0;
}


static void
referral_batch_delta(referral_batch_t *b, const referral_item_t *item,
    uint64_t n)
{
    referral_value_t  v[8];

    static const referral_str_t  kind = referral_string("unknown");

    memset(v, 0, sizeof(v));

    referral_value_id(&v[0], item->program_id);
    referral_value_id(&v[1], item->referrer_id);
    referral_value_text(&v[2], &item->code);
    referral_value_int(&v[3], REFERRAL_VALUE_DATE,
                       (int64_t) (item->occurred / REFERRAL_BATCH_DAY));
    referral_value_text(&v[4], &item->type);
    referral_value_text(&v[5], referral_verdict_word(item->verdict));
    referral_value_text(&v[6], &kind);
    referral_value_int(&v[7], REFERRAL_VALUE_INT8, (int64_t) n);

    referral_copy_row(&b->delta, v, 8);
}


static void
referral_batch_dead_letter(referral_batch_t *b, const referral_item_t *item,
    int32_t stream)
{
    referral_str_t    text;
    referral_value_t  v[5];

    memset(v, 0, sizeof(v));

    referral_value_int(&v[0], REFERRAL_VALUE_INT4, stream);
    referral_value_int(&v[1], REFERRAL_VALUE_INT8, (int64_t) item->number);

    text.data = (u_char *) (item->reason ? item->reason : "unknown");
    text.len = strlen((char *) text.data);
    referral_value_text(&v[2], &text);

    text.data = (u_char *) (item->detail ? item->detail : "");
    text.len = strlen((char *) text.data);
    referral_value_text(&v[3], &text);

    referral_value_bytes(&v[4], REFERRAL_VALUE_BYTEA, item->payload,
                         item->len);

    referral_copy_row(&b->dead_letter, v, 5);
}


static void
referral_batch_quarantine(referral_batch_t *b, const referral_item_t *item,
    int32_t stream)
{
    char               error[REFERRAL_ERROR_LEN];
    referral_buf_t     json;
    referral_str_t     text;
    referral_value_t   v[5];
    referral_record_t  rec;

    memset(v, 0, sizeof(v));
    memset(&json, 0, sizeof(referral_buf_t));

    (void) referral_record_decode(&rec, item->payload, item->len, error);
    referral_row_json(&json, &rec, item->occurred, stream, item->number);

    text.data = (u_char *) item->reason;
    text.len = strlen(item->reason);

    referral_value_int(&v[0], REFERRAL_VALUE_INT4, stream);
    referral_value_int(&v[1], REFERRAL_VALUE_INT8, (int64_t) item->number);
    referral_value_text(&v[2], &text);
    referral_value_bytes(&v[3], REFERRAL_VALUE_BYTEA, item->payload,
                         item->len);
    referral_value_bytes(&v[4], REFERRAL_VALUE_JSON, json.data, json.len);

    referral_copy_row(&b->quarantine, v, 5);
    b->quarantine.failed |= json.failed;

    referral_buf_free(&json);
}


static void
referral_batch_gap(referral_batch_t *b, const referral_item_t *item,
    int32_t stream)
{
    referral_str_t    text;
    referral_value_t  v[4];

    memset(v, 0, sizeof(v));

    text.data = (u_char *) (item->reason ? item->reason : "missing");
    text.len = strlen((char *) text.data);

    referral_value_int(&v[0], REFERRAL_VALUE_INT4, stream);
    referral_value_int(&v[1], REFERRAL_VALUE_INT8, (int64_t) item->number);
    referral_value_int(&v[2], REFERRAL_VALUE_INT8, (int64_t) item->last);
    referral_value_text(&v[3], &text);

    referral_copy_row(&b->ingest_gap, v, 4);
}


static void
referral_batch_reset(referral_buf_t *b)
{
    b->len = 0;
    b->failed = 0;
}
