
/*
 * Copyright (C) The nginx referral module authors
 */


#include "journal.h"
#include "output.h"
#include "record.h"
#include "segment.h"
#include "referral_uuid.h"
#include "time_text.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>


#define CTL_PROBLEMS_SHOWN  20


/* what is collected of a stream, or of a file */

typedef struct {
    ctl_journal_t            journal;
    u_char                  *first;        /* payloads */
    size_t                   first_len;
    uint64_t                 first_number;
    u_char                  *last;
    size_t                   last_len;
    uint64_t                 last_number;
    json_t                  *problems;     /* sentences */
} ctl_inspect_t;


static int ctl_inspect_stream(ctl_options_t *o);
static int ctl_inspect_file(ctl_options_t *o, const char *path);
static int ctl_inspect_record(void *data, referral_stream_t *s,
    const referral_frame_t *frame, const referral_record_t *rec);
static void ctl_inspect_problem(void *data, referral_stream_t *s,
    const ctl_journal_problem_t *problem);
static void ctl_inspect_frame(void *data, uint64_t number,
    const u_char *payload, size_t len);
static void ctl_inspect_bad(void *data, uint64_t offset, uint64_t len);
static void ctl_inspect_keep(ctl_inspect_t *ctx, uint64_t number,
    const u_char *payload, size_t len);
static void ctl_inspect_free(ctl_inspect_t *ctx);
static json_t *ctl_inspect_document(ctl_inspect_t *ctx, referral_stream_t *s,
    const ctl_journal_sum_t *sum);
static json_t *ctl_inspect_segments(ctl_inspect_t *ctx,
    referral_stream_t *s);
static json_t *ctl_inspect_segment(const ctl_segment_t *seg,
    const char *name);
static json_t *ctl_inspect_aside(ctl_inspect_t *ctx, referral_stream_t *s);
static json_t *ctl_inspect_payload(const char *stream, uint64_t number,
    const u_char *payload, size_t len);
static void ctl_inspect_show(ctl_inspect_t *ctx, json_t *doc);
static void ctl_inspect_show_position(json_t *pos);
static void ctl_inspect_show_segments(json_t *segments);
static void ctl_inspect_show_record(const char *title, const u_char *payload,
    size_t len);
static void ctl_inspect_line(const char *name, json_t *value);


static const ctl_column_t  ctl_inspect_columns[] = {
    { "FILE", 0 },
    { "FIRST", 1 },
    { "LAST", 1 },
    { "RECORDS", 1 },
    { "USED", 1 },
    { "SIZE", 1 },
    { "ON DISK", 1 },
    { "CREATED (UTC)", 0 },
    { "STATE", 0 }
};


int
ctl_journal_inspect(ctl_options_t *o)
{
    const char  *name;
    struct stat  st;

    name = o->argv[0];

    if (strlen(name) > 4 && strcmp(name + strlen(name) - 4, ".seg") == 0) {
        return ctl_inspect_file(o, name);
    }

    if (strchr(name, '/') != NULL && stat(name, &st) == 0
        && !S_ISDIR(st.st_mode))
    {
        return ctl_inspect_file(o, name);
    }

    return ctl_inspect_stream(o);
}


static int
ctl_inspect_stream(ctl_options_t *o)
{
    int                  rc;
    json_t              *doc;
    ctl_inspect_t        ctx;
    ctl_journal_sum_t    sum;
    referral_stream_t   *s;
    ctl_journal_walk_t   walk;

    memset(&ctx, 0, sizeof(ctl_inspect_t));

    rc = ctl_journal_open(&ctx.journal, o, o->argv[0]);

    if (rc != CTL_DONE) {
        return rc;
    }

    ctx.problems = json_array();
    s = ctx.journal.streams[0];

    walk.record = ctl_inspect_record;
    walk.problem = ctl_inspect_problem;
    walk.data = &ctx;

    if (ctl_journal_walk(&ctx.journal, s, 0, &walk, &sum) != REFERRAL_OK) {
        rc = CTL_FOUND;
    }

    doc = ctl_inspect_document(&ctx, s, &sum);

    if (o->json) {
        ctl_json_print(doc);

    } else {
        ctl_inspect_show(&ctx, doc);
        json_decref(doc);
    }

    ctl_journal_close(&ctx.journal);
    ctl_inspect_free(&ctx);

    return rc;
}


static int
ctl_inspect_file(ctl_options_t *o, const char *path)
{
    char                error[REFERRAL_ERROR_LEN];
    char                hex[REFERRAL_UUID_HEX_LEN + 1];
    json_t             *doc, *segments;
    const char         *name;
    ctl_inspect_t       ctx;
    ctl_segment_t       seg;
    ctl_segment_scan_t  scan;

    memset(&ctx, 0, sizeof(ctl_inspect_t));
    ctx.problems = json_array();

    scan.frame = ctl_inspect_frame;
    scan.bad = ctl_inspect_bad;
    scan.data = &ctx;

    if (ctl_segment_scan(&seg, path, &scan, error) != REFERRAL_OK) {
        ctl_error("journal: %s", error);
        ctl_inspect_free(&ctx);
        return CTL_FOUND;
    }

    if (seg.torn) {
        ctl_inspect_bad(&ctx, seg.end, seg.size - seg.end);
    }

    if (seg.damaged) {
        json_array_append_new(ctx.problems, json_sprintf("header: %s",
                                                         seg.error));
    }

    doc = json_object();
    hex[0] = '\0';

    if (!seg.damaged) {
        referral_uuid_hex(seg.header.stream, (u_char *) hex);
        hex[REFERRAL_UUID_HEX_LEN] = '\0';

        json_object_set_new(doc, "stream", json_string(hex));
        json_object_set_new(doc, "edge",
                            ctl_json_text(seg.header.edge,
                                          strlen(seg.header.edge)));
        json_object_set_new(doc, "pid", json_integer(seg.header.pid));
        json_object_set_new(doc, "limit", json_integer(seg.header.limit));
        json_object_set_new(doc, "salt",
                            json_sprintf("%08x", seg.header.salt));
    }

    name = strrchr(path, '/');
    segments = json_array();
    json_array_append_new(segments, ctl_inspect_segment(&seg, name ? name + 1
                                                                   : path));
    json_object_set_new(doc, "segments", segments);
    json_object_set_new(doc, "first_record",
                        ctl_inspect_payload(hex, ctx.first_number, ctx.first,
                                            ctx.first_len));
    json_object_set_new(doc, "last_record",
                        ctl_inspect_payload(hex, ctx.last_number, ctx.last,
                                            ctx.last_len));
    json_object_set(doc, "problems", ctx.problems);

    if (o->json) {
        ctl_json_print(doc);

    } else {
        ctl_inspect_show(&ctx, doc);
        json_decref(doc);
    }

    ctl_inspect_free(&ctx);

    return CTL_DONE;
}


static int
ctl_inspect_record(void *data, referral_stream_t *s,
    const referral_frame_t *frame, const referral_record_t *rec)
{
    ctl_inspect_keep(data, frame->number, frame->payload, frame->len);

    return REFERRAL_OK;
}


static void
ctl_inspect_problem(void *data, referral_stream_t *s,
    const ctl_journal_problem_t *problem)
{
    json_t         *text;
    ctl_inspect_t  *ctx;

    ctx = data;

    if (problem->first) {
        text = json_sprintf("%s at %" PRIu64 ": %" PRIu64 " to %" PRIu64
                            ": %s",
                            problem->segment[0] ? problem->segment : "stream",
                            problem->offset, problem->first, problem->last,
                            problem->text);

    } else {
        text = json_sprintf("%s at %" PRIu64 ": %s",
                            problem->segment[0] ? problem->segment : "stream",
                            problem->offset, problem->text);
    }

    json_array_append_new(ctx->problems, text ? text : json_string("?"));
}


static void
ctl_inspect_frame(void *data, uint64_t number, const u_char *payload,
    size_t len)
{
    ctl_inspect_keep(data, number, payload, len);
}


static void
ctl_inspect_bad(void *data, uint64_t offset, uint64_t len)
{
    ctl_inspect_t  *ctx;

    ctx = data;

    json_array_append_new(ctx->problems,
              json_sprintf("%" PRIu64 " bytes at %" PRIu64
                           " are no records", len, offset));
}


static void
ctl_inspect_keep(ctl_inspect_t *ctx, uint64_t number, const u_char *payload,
    size_t len)
{
    if (ctx->first == NULL) {
        ctx->first = (u_char *) ctl_dup((char *) payload, len);
        ctx->first_len = len;
        ctx->first_number = number;
        ctx->last = ctl_alloc(65536);
    }

    /* frames are never longer, but this is read from a file */

    if (len > 65536) {
        len = 65536;
    }

    memcpy(ctx->last, payload, len);
    ctx->last_len = len;
    ctx->last_number = number;
}


static void
ctl_inspect_free(ctl_inspect_t *ctx)
{
    free(ctx->first);
    free(ctx->last);
    json_decref(ctx->problems);
}


static json_t *
ctl_inspect_document(ctl_inspect_t *ctx, referral_stream_t *s,
    const ctl_journal_sum_t *sum)
{
    json_t                           *doc, *pos;
    const referral_segment_header_t  *h;

    h = ctl_journal_header(s);

    doc = json_object();
    pos = json_object();

    json_object_set_new(pos, "seq", json_integer(sum->pos.seq));
    json_object_set_new(pos, "file",
                        ctl_json_text(sum->pos.segment,
                                      strlen(sum->pos.segment)));
    json_object_set_new(pos, "offset", json_integer(sum->pos.offset));
    json_object_set_new(pos, "freed", json_integer(sum->pos.freed));

    json_object_set_new(doc, "stream", json_string(s->name));
    json_object_set_new(doc, "edge",
                        h ? ctl_json_text(h->edge, strlen(h->edge))
                          : json_null());
    json_object_set_new(doc, "pid", h ? json_integer(h->pid) : json_null());
    json_object_set_new(doc, "state", json_string(ctl_journal_state(s)));
    json_object_set_new(doc, "aside", ctl_inspect_aside(ctx, s));
    json_object_set_new(doc, "limit",
                        h ? json_integer(h->limit) : json_null());
    json_object_set_new(doc, "first", json_integer(sum->first));
    json_object_set_new(doc, "last", json_integer(sum->last));
    json_object_set_new(doc, "records", json_integer(sum->records));
    json_object_set_new(doc, "committed", pos);
    json_object_set_new(doc, "lag",
                        json_integer(sum->last > sum->pos.seq
                                     ? sum->last - sum->pos.seq : 0));
    json_object_set_new(doc, "segments", ctl_inspect_segments(ctx, s));
    json_object_set_new(doc, "first_record",
                        ctl_inspect_payload(s->name, ctx->first_number,
                                            ctx->first, ctx->first_len));
    json_object_set_new(doc, "last_record",
                        ctl_inspect_payload(s->name, ctx->last_number,
                                            ctx->last, ctx->last_len));
    json_object_set(doc, "problems", ctx->problems);

    return doc;
}


static json_t *
ctl_inspect_segments(ctl_inspect_t *ctx, referral_stream_t *s)
{
    char           path[PATH_MAX], error[REFERRAL_ERROR_LEN];
    size_t         i;
    json_t        *list;
    ctl_segment_t  seg;

    list = json_array();

    for (i = 0; i < s->nsegments; i++) {

        snprintf(path, sizeof(path), "%s/%s/%s", ctx->journal.path, s->name,
                 s->segments[i].name);

        /* freed or renamed since we looked at the directory */

        if (ctl_segment_scan(&seg, path, NULL, error) != REFERRAL_OK) {
            continue;
        }

        json_array_append_new(list,
                              ctl_inspect_segment(&seg, s->segments[i].name));
    }

    return list;
}


static json_t *
ctl_inspect_segment(const ctl_segment_t *seg, const char *name)
{
    char         created[CTL_TIME_LEN];
    json_t      *json;
    const char  *state;

    if (seg->damaged) {
        state = "damaged header";

    } else if (seg->begin == REFERRAL_ERROR) {
        state = "damaged begin";

    } else if (seg->torn) {
        state = "damaged end";

    } else if (seg->begin == REFERRAL_DECLINED) {
        state = "spare";

    } else {
        state = "used";
    }

    json = json_object();

    json_object_set_new(json, "file", ctl_json_text(name, strlen(name)));
    json_object_set_new(json, "first", ctl_json_id(seg->first));
    json_object_set_new(json, "last", ctl_json_id(seg->last));
    json_object_set_new(json, "records", json_integer(seg->records));
    json_object_set_new(json, "used", json_integer(seg->bytes));
    json_object_set_new(json, "size", json_integer(seg->size));
    json_object_set_new(json, "allocated", json_integer(seg->allocated));
    json_object_set_new(json, "created",
                        seg->damaged ? json_null()
                         : json_string(ctl_time_iso(seg->header.created,
                                                    created)));
    json_object_set_new(json, "state", json_string(state));

    return json;
}


/* the reason that a worker wrote down, or null */

static json_t *
ctl_inspect_aside(ctl_inspect_t *ctx, referral_stream_t *s)
{
    char    path[PATH_MAX], text[1024];
    FILE   *f;
    size_t  n;

    if (s->state != REFERRAL_STREAM_SET_ASIDE) {
        return json_null();
    }

    snprintf(path, sizeof(path), "%s/%s/%s", ctx->journal.path, s->name,
             REFERRAL_STREAM_ASIDE);

    f = fopen(path, "re");

    if (f == NULL) {
        return json_null();
    }

    n = fread(text, 1, sizeof(text), f);
    fclose(f);

    while (n && text[n - 1] == '\n') {
        n--;
    }

    return ctl_json_text(text, n);
}


static json_t *
ctl_inspect_payload(const char *stream, uint64_t number,
    const u_char *payload, size_t len)
{
    char               error[REFERRAL_ERROR_LEN];
    referral_record_t  rec;

    if (payload == NULL
        || referral_record_decode(&rec, payload, len, error) != REFERRAL_OK)
    {
        return json_null();
    }

    return ctl_record_json(stream, number, &rec);
}


static void
ctl_inspect_show(ctl_inspect_t *ctx, json_t *doc)
{
    size_t  i;

    static const char  *lines[] = {
        "stream", "edge", "pid", "state", "aside", "first", "last",
        "records", "lag", "salt"
    };

    for (i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        ctl_inspect_line(lines[i], json_object_get(doc, lines[i]));
    }

    ctl_inspect_show_position(json_object_get(doc, "committed"));

    ctl_inspect_show_record("oldest", ctx->first, ctx->first_len);
    ctl_inspect_show_record("newest", ctx->last, ctx->last_len);

    printf("\n");
    ctl_inspect_show_segments(json_object_get(doc, "segments"));

    for (i = 0; i < json_array_size(ctx->problems); i++) {

        if (i == CTL_PROBLEMS_SHOWN) {
            printf("and %zu more: see journal verify\n",
                   json_array_size(ctx->problems) - i);
            break;
        }

        if (i == 0) {
            printf("\n");
        }

        ctl_inspect_line("problem", json_array_get(ctx->problems, i));
    }
}


static void
ctl_inspect_show_position(json_t *pos)
{
    long long    seq, freed, offset;
    const char  *file;

    if (pos == NULL) {
        return;
    }

    seq = json_integer_value(json_object_get(pos, "seq"));
    freed = json_integer_value(json_object_get(pos, "freed"));
    offset = json_integer_value(json_object_get(pos, "offset"));
    file = json_string_value(json_object_get(pos, "file"));

    if (seq == 0) {
        printf("committed  nothing yet\n");

    } else if (file == NULL) {
        printf("committed  %lld, freed %lld\n", seq, freed);

    } else {
        printf("committed  %lld, freed %lld; the next one is in %s at %lld\n",
               seq, freed, file, offset);
    }
}


static void
ctl_inspect_show_segments(json_t *segments)
{
    char          numbers[6][CTL_SIZE_LEN], created[CTL_TIME_LEN];
    size_t        i, n;
    json_t       *seg, *value;
    const char   *texts[9], *iso;
    ctl_table_t   table;

    static const char  *names[] = {
        "first", "last", "records", "used", "size", "allocated"
    };

    ctl_table_init(&table, ctl_inspect_columns,
                sizeof(ctl_inspect_columns) / sizeof(ctl_inspect_columns[0]));

    for (i = 0; i < json_array_size(segments); i++) {

        seg = json_array_get(segments, i);
        texts[0] = json_string_value(json_object_get(seg, "file"));

        for (n = 0; n < 6; n++) {
            value = json_object_get(seg, names[n]);

            if (n < 3) {
                snprintf(numbers[n], CTL_SIZE_LEN, "%lld",
                         (long long) json_integer_value(value));

            } else {
                (void) ctl_size_text(json_integer_value(value), numbers[n]);
            }

            texts[1 + n] = json_is_integer(value) ? numbers[n] : NULL;
        }

        iso = json_string_value(json_object_get(seg, "created"));
        created[0] = '\0';

        if (iso != NULL) {
            snprintf(created, sizeof(created), "%.10s %.8s", iso, iso + 11);
        }

        texts[7] = created;
        texts[8] = json_string_value(json_object_get(seg, "state"));

        ctl_table_row(&table, texts);
    }

    ctl_table_print(&table);
}


static void
ctl_inspect_show_record(const char *title, const u_char *payload, size_t len)
{
    char               error[REFERRAL_ERROR_LEN];
    referral_record_t  rec;

    if (payload == NULL) {
        return;
    }

    printf("%-10s ", title);

    if (referral_record_decode(&rec, payload, len, error) != REFERRAL_OK) {
        printf("%s\n", error);
        return;
    }

    ctl_record_line(&rec);
}


static void
ctl_inspect_line(const char *name, json_t *value)
{
    char  *clean;

    if (json_is_string(value)) {
        clean = ctl_clean(json_string_value(value),
                          json_string_length(value));
        printf("%-10s %s\n", name, clean);
        free(clean);

    } else if (json_is_integer(value)) {
        printf("%-10s %lld\n", name,
               (long long) json_integer_value(value));
    }
}
