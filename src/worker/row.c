
/*
 * Copyright (C) The nginx referral module authors
 */


#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "referral_uuid.h"
#include "row.h"


enum {
    REFERRAL_ROW_ID = 0,
    REFERRAL_ROW_OCCURRED_AT,
    REFERRAL_ROW_STREAM,
    REFERRAL_ROW_SEQ,
    REFERRAL_ROW_TYPE,
    REFERRAL_ROW_VERDICT,
    REFERRAL_ROW_VIA,
    REFERRAL_ROW_CODE,
    REFERRAL_ROW_CODE_ID,
    REFERRAL_ROW_PROGRAM_ID,
    REFERRAL_ROW_REFERRER_ID,
    REFERRAL_ROW_VISITOR,
    REFERRAL_ROW_VISITOR_HASH,
    REFERRAL_ROW_IP,
    REFERRAL_ROW_COUNTRY,
    REFERRAL_ROW_REGION,
    REFERRAL_ROW_CITY,
    REFERRAL_ROW_ASN,
    REFERRAL_ROW_USER_AGENT,
    REFERRAL_ROW_REFERER_HOST,
    REFERRAL_ROW_HOST,
    REFERRAL_ROW_PATH,
    REFERRAL_ROW_ARGS,
    REFERRAL_ROW_LANGUAGE,
    REFERRAL_ROW_SOURCE,
    REFERRAL_ROW_SIGNALS,
    REFERRAL_ROW_DESTINATION,
    REFERRAL_ROW_METADATA,
    REFERRAL_ROW_MAX
};


/* what the values of a row point to besides the record */

typedef struct {
    referral_value_t     values[REFERRAL_ROW_MAX];
    referral_buf_t       args;
    referral_buf_t       metadata;
    u_char               source[REFERRAL_RECORD_ARG_LEN];
} referral_row_t;


static void referral_row_fill(referral_row_t *row,
    const referral_record_t *rec, uint64_t occurred, int32_t stream,
    uint64_t seq);
static void referral_row_args(referral_row_t *row,
    const referral_record_t *rec);
static void referral_row_metadata(referral_row_t *row,
    const referral_record_t *rec);
static void referral_row_pair(referral_buf_t *b, const char *name,
    const referral_str_t *value);


static const referral_str_t  referral_row_click = referral_string("click");


/* only one row is made at a time; its buffers are kept for the next one */

static referral_row_t  referral_row;


static const char  *referral_row_names[REFERRAL_ROW_MAX] = {
    "id", "occurred_at", "stream", "seq", "type", "verdict", "via", "code",
    "code_id", "program_id", "referrer_id", "visitor", "visitor_hash", "ip",
    "country", "region", "city", "asn", "user_agent", "referer_host", "host",
    "path", "args", "language", "source", "signals", "destination", "metadata"
};


void
referral_row_copy(referral_buf_t *b, const referral_record_t *rec,
    uint64_t occurred, int32_t stream, uint64_t seq)
{
    referral_row_fill(&referral_row, rec, occurred, stream, seq);
    referral_copy_row(b, referral_row.values, REFERRAL_ROW_MAX);

    b->failed |= referral_row.args.failed | referral_row.metadata.failed;
}


void
referral_row_json(referral_buf_t *b, const referral_record_t *rec,
    uint64_t occurred, int32_t stream, uint64_t seq)
{
    size_t  i;

    referral_row_fill(&referral_row, rec, occurred, stream, seq);

    /* jsonb_populate_record() knows no defaults: kind must be said */

    referral_buf_string(b, "{\"kind\":\"unknown\"");

    for (i = 0; i < REFERRAL_ROW_MAX; i++) {
        referral_buf_string(b, ",\"");
        referral_buf_string(b, referral_row_names[i]);
        referral_buf_string(b, "\":");
        referral_copy_json(b, &referral_row.values[i]);
    }

    referral_buf_string(b, "}");

    b->failed |= referral_row.args.failed | referral_row.metadata.failed;
}


const referral_str_t *
referral_row_type(const referral_record_t *rec)
{
    return rec->type.len ? &rec->type : &referral_row_click;
}


static void
referral_row_fill(referral_row_t *row, const referral_record_t *rec,
    uint64_t occurred, int32_t stream, uint64_t seq)
{
    referral_value_t  *v;

    v = row->values;
    memset(v, 0, sizeof(row->values));

    referral_value_bytes(&v[REFERRAL_ROW_ID], REFERRAL_VALUE_UUID, rec->id,
                         REFERRAL_UUID_LEN);
    referral_value_int(&v[REFERRAL_ROW_OCCURRED_AT], REFERRAL_VALUE_TIME,
                       (int64_t) occurred);
    referral_value_int(&v[REFERRAL_ROW_STREAM], REFERRAL_VALUE_INT4, stream);
    referral_value_int(&v[REFERRAL_ROW_SEQ], REFERRAL_VALUE_INT8,
                       (int64_t) seq);

    referral_value_text(&v[REFERRAL_ROW_TYPE], referral_row_type(rec));
    referral_value_text(&v[REFERRAL_ROW_VERDICT],
                        referral_verdict_word(rec->verdict));
    referral_value_text(&v[REFERRAL_ROW_VIA], referral_via_word(rec->via));
    referral_value_text(&v[REFERRAL_ROW_CODE], &rec->code);

    referral_value_id(&v[REFERRAL_ROW_CODE_ID], rec->code_id);
    referral_value_id(&v[REFERRAL_ROW_PROGRAM_ID], rec->program_id);
    referral_value_id(&v[REFERRAL_ROW_REFERRER_ID], rec->referrer_id);

    if (rec->has_visitor) {
        referral_value_bytes(&v[REFERRAL_ROW_VISITOR], REFERRAL_VALUE_UUID,
                             rec->visitor, REFERRAL_UUID_LEN);
    }

    if (rec->visitor_hash.len) {
        referral_value_bytes(&v[REFERRAL_ROW_VISITOR_HASH],
                             REFERRAL_VALUE_BYTEA, rec->visitor_hash.data,
                             rec->visitor_hash.len);
    }

    if (rec->ip.len) {
        v[REFERRAL_ROW_IP].type = REFERRAL_VALUE_INET;
        v[REFERRAL_ROW_IP].ip = &rec->ip;
    }

    referral_value_text(&v[REFERRAL_ROW_COUNTRY], &rec->country);
    referral_value_text(&v[REFERRAL_ROW_REGION], &rec->region);
    referral_value_text(&v[REFERRAL_ROW_CITY], &rec->city);
    referral_value_id(&v[REFERRAL_ROW_ASN], rec->asn);
    referral_value_text(&v[REFERRAL_ROW_USER_AGENT], &rec->user_agent);
    referral_value_text(&v[REFERRAL_ROW_REFERER_HOST], &rec->referer_host);
    referral_value_text(&v[REFERRAL_ROW_HOST], &rec->host);
    referral_value_text(&v[REFERRAL_ROW_PATH], &rec->path);
    referral_value_text(&v[REFERRAL_ROW_LANGUAGE], &rec->language);
    referral_value_text(&v[REFERRAL_ROW_DESTINATION], &rec->destination);

    referral_value_int(&v[REFERRAL_ROW_SIGNALS], REFERRAL_VALUE_SIGNALS,
                       rec->signals);

    referral_row_args(row, rec);
    referral_row_metadata(row, rec);
}


static void
referral_row_args(referral_row_t *row, const referral_record_t *rec)
{
    size_t                        j;
    unsigned                      i;
    referral_buf_t               *b;
    referral_str_t                source;
    const referral_record_arg_t  *arg;

    if (rec->nargs == 0) {
        return;
    }

    b = &row->args;
    b->len = 0;
    b->failed = 0;

    for (i = 0; i < rec->nargs; i++) {
        arg = &rec->args[i];

        referral_buf_string(b, i ? "," : "{");
        referral_buf_json(b, &arg->name);
        referral_buf_string(b, ":");
        referral_buf_json(b, &arg->value);

        if (arg->name.len == sizeof("utm_source") - 1
            && memcmp(arg->name.data, "utm_source", arg->name.len) == 0
            && arg->value.len <= sizeof(row->source))
        {
            for (j = 0; j < arg->value.len; j++) {
                row->source[j] = arg->value.data[j] < 0x80
                                 ? (u_char) tolower(arg->value.data[j])
                                 : arg->value.data[j];
            }

            source.data = row->source;
            source.len = arg->value.len;
            referral_value_text(&row->values[REFERRAL_ROW_SOURCE], &source);
        }
    }

    referral_buf_string(b, "}");

    referral_value_bytes(&row->values[REFERRAL_ROW_ARGS],
                         REFERRAL_VALUE_JSON, b->data, b->len);
}


static void
referral_row_metadata(referral_row_t *row, const referral_record_t *rec)
{
    char             text[64];
    u_char           id[REFERRAL_UUID_TEXT_LEN];
    referral_buf_t  *b;
    referral_str_t   original;

    b = &row->metadata;
    b->len = 0;
    b->failed = 0;

    referral_row_pair(b, "time_zone", &rec->time_zone);
    referral_row_pair(b, "latitude", &rec->latitude);
    referral_row_pair(b, "longitude", &rec->longitude);
    referral_row_pair(b, "referer", &rec->referer);
    referral_row_pair(b, "campaign", &rec->campaign);
    referral_row_pair(b, "cache", referral_cache_word(rec->cache));

    if (rec->has_original) {
        referral_uuid_text(rec->original, id);
        original.data = id;
        original.len = sizeof(id);
        referral_row_pair(b, "original", &original);
    }

    if (rec->version) {
        snprintf(text, sizeof(text), "%s\"version\":%llu", b->len ? "," : "{",
                 (unsigned long long) rec->version);
        referral_buf_string(b, text);
    }

    if (b->len == 0) {
        return;
    }

    referral_buf_string(b, "}");

    referral_value_bytes(&row->values[REFERRAL_ROW_METADATA],
                         REFERRAL_VALUE_JSON, b->data, b->len);
}


static void
referral_row_pair(referral_buf_t *b, const char *name,
    const referral_str_t *value)
{
    if (value->len == 0) {
        return;
    }

    referral_buf_string(b, b->len ? ",\"" : "{\"");
    referral_buf_string(b, name);
    referral_buf_string(b, "\":");
    referral_buf_json(b, value);
}
