
/*
 * Copyright (C) The nginx referral module authors
 */


#include "record.h"
#include "output.h"
#include "referral_uuid.h"
#include "time_text.h"

#include <stdlib.h>
#include <string.h>


#define CTL_CODE_WIDTH     14
#define CTL_VERDICT_WIDTH  10
#define CTL_VIA_WIDTH      9
#define CTL_PLACE_WIDTH    16
#define CTL_IP_WIDTH       18


static json_t *ctl_record_text(const referral_str_t *s);
static json_t *ctl_record_uuid(const u_char *id);
static json_t *ctl_record_hex(const referral_str_t *s);
static json_t *ctl_record_ip(const referral_ip_t *ip);
static json_t *ctl_record_signals(unsigned signals);
static json_t *ctl_record_args(const referral_record_t *rec);
static void ctl_record_cell(const void *data, size_t len, size_t width);


json_t *
ctl_record_json(const char *stream, uint64_t number,
    const referral_record_t *rec)
{
    char     time[CTL_TIME_LEN];
    size_t   i;
    json_t  *json;

    struct {
        const char            *name;
        const referral_str_t  *value;
    } texts[] = {
        { "type", &rec->type },
        { "verdict", referral_verdict_word(rec->verdict) },
        { "via", referral_via_word(rec->via) },
        { "cache", referral_cache_word(rec->cache) },
        { "code", &rec->code },
        { "campaign", &rec->campaign },
        { "country", &rec->country },
        { "region", &rec->region },
        { "city", &rec->city },
        { "time_zone", &rec->time_zone },
        { "latitude", &rec->latitude },
        { "longitude", &rec->longitude },
        { "user_agent", &rec->user_agent },
        { "referer_host", &rec->referer_host },
        { "referer", &rec->referer },
        { "host", &rec->host },
        { "path", &rec->path },
        { "language", &rec->language },
        { "destination", &rec->destination }
    };

    json = json_object();

    json_object_set_new(json, "stream", json_string(stream));
    json_object_set_new(json, "seq", json_integer((json_int_t) number));
    json_object_set_new(json, "id", ctl_record_uuid(rec->id));
    json_object_set_new(json, "occurred_at",
              json_string(ctl_time_iso(referral_uuid_time(rec->id), time)));

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        json_object_set_new(json, texts[i].name,
                            ctl_record_text(texts[i].value));
    }

    json_object_set_new(json, "code_id", ctl_json_id(rec->code_id));
    json_object_set_new(json, "program_id", ctl_json_id(rec->program_id));
    json_object_set_new(json, "referrer_id", ctl_json_id(rec->referrer_id));
    json_object_set_new(json, "version",
                        ctl_json_id(rec->version <= INT64_MAX
                                    ? (int64_t) rec->version : INT64_MAX));
    json_object_set_new(json, "signals", ctl_record_signals(rec->signals));
    json_object_set_new(json, "visitor",
              rec->has_visitor ? ctl_record_uuid(rec->visitor) : json_null());
    json_object_set_new(json, "visitor_hash",
                        ctl_record_hex(&rec->visitor_hash));
    json_object_set_new(json, "ip", ctl_record_ip(&rec->ip));
    json_object_set_new(json, "asn", ctl_json_id(rec->asn));
    json_object_set_new(json, "original",
            rec->has_original ? ctl_record_uuid(rec->original) : json_null());
    json_object_set_new(json, "args", ctl_record_args(rec));

    return json;
}


static json_t *
ctl_record_text(const referral_str_t *s)
{
    return ctl_json_text(s->data, s->len);
}


static json_t *
ctl_record_uuid(const u_char *id)
{
    u_char  text[REFERRAL_UUID_TEXT_LEN];

    referral_uuid_text(id, text);

    return json_stringn((char *) text, REFERRAL_UUID_TEXT_LEN);
}


static json_t *
ctl_record_hex(const referral_str_t *s)
{
    char    *text;
    size_t   i;
    json_t  *json;

    if (s->len == 0) {
        return json_null();
    }

    text = ctl_alloc(2 * s->len + 1);

    for (i = 0; i < s->len; i++) {
        sprintf(text + 2 * i, "%02x", s->data[i]);
    }

    json = json_string(text);
    free(text);

    return json;
}


static json_t *
ctl_record_ip(const referral_ip_t *ip)
{
    u_char  text[REFERRAL_IP_TEXT_LEN];

    if (ip->len == 0) {
        return json_null();
    }

    return json_stringn((char *) text, referral_ip_text(ip, text));
}


static json_t *
ctl_record_signals(unsigned signals)
{
    json_t    *json;
    unsigned   n;

    json = json_array();

    for (n = 0; n < REFERRAL_SIGNAL_COUNT; n++) {
        if (signals & (1 << n)) {
            json_array_append_new(json,
                                  ctl_record_text(referral_signal_word(n)));
        }
    }

    return json;
}


/* an empty value is a value; of equal names the first one counts */

static json_t *
ctl_record_args(const referral_record_t *rec)
{
    char                         *name;
    json_t                       *json, *value;
    unsigned                      i;
    const referral_record_arg_t  *arg;

    json = json_object();

    for (i = 0; i < rec->nargs; i++) {
        arg = &rec->args[i];

        value = ctl_record_text(&arg->name);
        name = ctl_dup(json_is_string(value) ? json_string_value(value) : "",
                       json_string_length(value));
        json_decref(value);

        if (json_object_get(json, name) == NULL) {
            value = ctl_record_text(&arg->value);

            if (json_is_null(value)) {
                json_decref(value);
                value = json_string("");
            }

            json_object_set_new(json, name, value);
        }

        free(name);
    }

    return json;
}


void
ctl_record_line(const referral_record_t *rec)
{
    char                   time[CTL_TIME_LEN], text[512];
    u_char                 ip[REFERRAL_IP_TEXT_LEN];
    unsigned               n;
    const referral_str_t  *word;

    printf("%s  ", ctl_time_text(referral_uuid_time(rec->id), time));

    ctl_record_cell(rec->code.data, rec->code.len, CTL_CODE_WIDTH);

    word = referral_verdict_word(rec->verdict);
    ctl_record_cell(word->data, word->len, CTL_VERDICT_WIDTH);

    word = referral_via_word(rec->via);
    ctl_record_cell(word->data, word->len, CTL_VIA_WIDTH);

    n = snprintf(text, sizeof(text), "%.*s%s%.*s",
                 (int) rec->country.len, (char *) rec->country.data,
                 rec->country.len && rec->city.len ? " " : "",
                 (int) rec->city.len, (char *) rec->city.data);
    ctl_record_cell(text, n < sizeof(text) ? n : sizeof(text) - 1,
                    CTL_PLACE_WIDTH);

    ctl_record_cell(ip, rec->ip.len ? referral_ip_text(&rec->ip, ip) : 0,
                    CTL_IP_WIDTH);

    ctl_record_cell(rec->path.data, rec->path.len, 0);

    if (rec->destination.len) {
        printf(" \xe2\x86\x92 ");
        ctl_record_cell(rec->destination.data, rec->destination.len, 0);
    }

    /* what is unusual */

    if (rec->type.len != 5 || memcmp(rec->type.data, "click", 5) != 0) {
        printf("  ");
        ctl_record_cell(rec->type.data, rec->type.len, 0);
    }

    for (n = 0; n < REFERRAL_SIGNAL_COUNT; n++) {
        if (rec->signals & (1 << n)) {
            printf("  %s", (char *) referral_signal_word(n)->data);
        }
    }

    printf("\n");
}


/* width 0: the text as it is */

static void
ctl_record_cell(const void *data, size_t len, size_t width)
{
    char  *text;

    text = len ? ctl_clean(data, len) : ctl_dup("-", 1);

    ctl_pad(text, width, 0);

    if (width) {
        printf("  ");
    }

    free(text);
}
