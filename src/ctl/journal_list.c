
/*
 * Copyright (C) The nginx referral module authors
 */


#include "journal.h"
#include "output.h"

#include <inttypes.h>
#include <string.h>


#define CTL_ID_SHORT  12                   /* digits, enough to tell */


static json_t *ctl_list_json(const referral_stream_t *s,
    const ctl_journal_sum_t *sum, uint64_t bytes);
static void ctl_list_row(ctl_table_t *table, const referral_stream_t *s,
    const ctl_journal_sum_t *sum, uint64_t bytes);
static uint64_t ctl_list_lag(const ctl_journal_sum_t *sum);


static const ctl_column_t  ctl_list_columns[] = {
    { "STREAM", 0 },
    { "EDGE", 0 },
    { "PID", 1 },
    { "STATE", 0 },
    { "FIRST", 1 },
    { "LAST", 1 },
    { "COMMITTED", 1 },
    { "LAG", 1 },
    { "RECORDS", 1 },
    { "SIZE", 1 },
    { "PROBLEMS", 1 }
};


int
ctl_journal_list(ctl_options_t *o)
{
    int                  rc;
    json_t              *json;
    size_t               i, n;
    uint64_t             bytes;
    ctl_table_t          table;
    ctl_journal_t        j;
    ctl_journal_sum_t    sum;
    referral_stream_t   *s;
    ctl_journal_walk_t   walk;

    rc = ctl_journal_open(&j, o, NULL);

    if (rc != CTL_DONE) {
        return rc;
    }

    json = json_array();
    memset(&walk, 0, sizeof(ctl_journal_walk_t));
    ctl_table_init(&table, ctl_list_columns,
                   sizeof(ctl_list_columns) / sizeof(ctl_list_columns[0]));

    for (i = 0; i < j.nstreams; i++) {

        s = j.streams[i];

        if (ctl_journal_walk(&j, s, 0, &walk, &sum) != REFERRAL_OK) {
            rc = CTL_FOUND;
        }

        bytes = 0;

        for (n = 0; n < s->nsegments; n++) {
            bytes += s->segments[n].size;
        }

        if (o->json) {
            json_array_append_new(json, ctl_list_json(s, &sum, bytes));

        } else {
            ctl_list_row(&table, s, &sum, bytes);
        }
    }

    if (o->json) {
        ctl_json_print(json_incref(json));

    } else if (j.nstreams) {
        ctl_table_print(&table);

    } else {
        printf("no streams in %s\n", j.path);
    }

    json_decref(json);
    ctl_journal_close(&j);

    return rc;
}


static json_t *
ctl_list_json(const referral_stream_t *s, const ctl_journal_sum_t *sum,
    uint64_t bytes)
{
    json_t                           *json;
    const referral_segment_header_t  *h;

    h = ctl_journal_header(s);

    json = json_object();

    json_object_set_new(json, "stream", json_string(s->name));
    json_object_set_new(json, "edge",
                        h ? ctl_json_text(h->edge, strlen(h->edge))
                          : json_null());
    json_object_set_new(json, "pid", h ? json_integer(h->pid) : json_null());
    json_object_set_new(json, "state", json_string(ctl_journal_state(s)));
    json_object_set_new(json, "first", json_integer(sum->first));
    json_object_set_new(json, "last", json_integer(sum->last));
    json_object_set_new(json, "committed", json_integer(sum->pos.seq));
    json_object_set_new(json, "freed", json_integer(sum->pos.freed));
    json_object_set_new(json, "bytes", json_integer(bytes));
    json_object_set_new(json, "records", json_integer(sum->records));
    json_object_set_new(json, "lag", json_integer(ctl_list_lag(sum)));
    json_object_set_new(json, "problems", json_integer(sum->problems));

    return json;
}


static void
ctl_list_row(ctl_table_t *table, const referral_stream_t *s,
    const ctl_journal_sum_t *sum, uint64_t bytes)
{
    char                              numbers[7][24], size[CTL_SIZE_LEN];
    char                              id[CTL_ID_SHORT + 1];
    size_t                            i;
    const char                       *texts[11];
    const referral_segment_header_t  *h;

    h = ctl_journal_header(s);

    const uint64_t  values[7] = {
        h ? h->pid : 0, sum->first, sum->last, sum->pos.seq,
        ctl_list_lag(sum), sum->records, sum->problems
    };

    for (i = 0; i < 7; i++) {
        snprintf(numbers[i], sizeof(numbers[i]), "%" PRIu64, values[i]);
    }

    snprintf(id, sizeof(id), "%.*s", CTL_ID_SHORT, s->name);

    texts[0] = id;
    texts[1] = h ? h->edge : NULL;
    texts[2] = h ? numbers[0] : NULL;
    texts[3] = ctl_journal_state(s);
    texts[4] = numbers[1];
    texts[5] = numbers[2];
    texts[6] = numbers[3];
    texts[7] = numbers[4];
    texts[8] = numbers[5];
    texts[9] = ctl_size_text(bytes, size);
    texts[10] = numbers[6];

    ctl_table_row(table, texts);
}


static uint64_t
ctl_list_lag(const ctl_journal_sum_t *sum)
{
    return sum->last > sum->pos.seq ? sum->last - sum->pos.seq : 0;
}
