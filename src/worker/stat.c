
/*
 * Copyright (C) The nginx referral module authors
 */


#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "stat.h"


typedef enum {
    REFERRAL_STAT_COUNTER = 0,
    REFERRAL_STAT_GAUGE,
    REFERRAL_STAT_SECONDS,                 /* a gauge, kept in ms */
    REFERRAL_STAT_TIMES                    /* a histogram */
} referral_stat_type_e;


typedef struct {
    const char               *name;        /* one name's lines are together */
    const char               *label;       /* name="value", or NULL */
    referral_stat_type_e      type;
    const void               *value;
    const char               *help;
} referral_stat_line_t;


static void referral_stat_stream_lines(referral_buf_t *b);
static void referral_stat_header(referral_buf_t *b,
    const referral_stat_line_t *line);
static void referral_stat_times(referral_buf_t *b,
    const referral_stat_line_t *line);
static void referral_stat_print(referral_buf_t *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));


referral_stat_t  referral_stat;


/* the streams of the last look */

static pthread_mutex_t         referral_stat_lock = PTHREAD_MUTEX_INITIALIZER;
static referral_stat_stream_t  referral_stat_table[REFERRAL_STAT_STREAMS];
static size_t                  referral_stat_nstreams;


/* microseconds */

static const uint64_t  referral_stat_bounds[REFERRAL_STAT_BOUNDS] = {
    1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000,
    1000000, 2500000, 5000000, 10000000, 30000000
};


#define referral_stat_counter(name, label, field, help)                      \
    { name, label, REFERRAL_STAT_COUNTER, &referral_stat.field, help }

#define referral_stat_gauge(name, label, field, help)                        \
    { name, label, REFERRAL_STAT_GAUGE, &referral_stat.field, help }


static const referral_stat_line_t  referral_stat_lines[] = {

    referral_stat_counter("referral_worker_rows_total", NULL, rows,
        "Records that became rows of interaction"),
    referral_stat_counter("referral_worker_batches_total", NULL, batches,
        "Transactions that carried records"),
    { "referral_worker_batch_seconds", NULL, REFERRAL_STAT_TIMES,
      &referral_stat.batch, "Time of a batch, from its first record read to"
      " its commit" },
    referral_stat_counter("referral_worker_quarantined_total", NULL,
        quarantined, "Records whose time can not be right"),
    referral_stat_counter("referral_worker_dead_letters_total", NULL, dead,
        "Records that Postgres refused or that could not be decoded"),
    referral_stat_counter("referral_worker_gap_records_total", NULL, gap,
        "Numbers of records that were not found in the journal"),

    referral_stat_counter("referral_worker_retries_total",
        "reason=\"connection\"", retry_connection,
        "Failed attempts of the flush, by reason"),
    referral_stat_counter("referral_worker_retries_total",
        "reason=\"conflict\"", retry_conflict, NULL),
    referral_stat_counter("referral_worker_retries_total",
        "reason=\"timeout\"", retry_timeout, NULL),
    referral_stat_counter("referral_worker_retries_total",
        "reason=\"resources\"", retry_resources, NULL),
    referral_stat_counter("referral_worker_retries_total",
        "reason=\"readonly\"", retry_readonly, NULL),
    referral_stat_counter("referral_worker_retries_total",
        "reason=\"alarm\"", retry_alarm, NULL),

    referral_stat_gauge("referral_worker_lag_records", NULL, lag_records,
        "Records of the journal that are not in Postgres"),
    { "referral_worker_lag_seconds", NULL, REFERRAL_STAT_SECONDS,
      &referral_stat.lag_ms, "Age of the oldest of them" },
    referral_stat_gauge("referral_worker_streams", "state=\"live\"",
        streams_live, "Streams of the journal"),
    referral_stat_gauge("referral_worker_streams", "state=\"final\"",
        streams_final, NULL),
    referral_stat_gauge("referral_worker_streams", "state=\"aside\"",
        streams_aside, NULL),

    referral_stat_counter("referral_worker_published_codes_total", NULL,
        published, "Codes written to Redis"),
    referral_stat_counter("referral_worker_publish_full_total", NULL,
        publish_full, "Publications of all codes"),
    referral_stat_counter("referral_worker_publish_failures_total", NULL,
        publish_failures, "Failed attempts of the publisher"),
    { "referral_worker_publish_seconds", NULL, REFERRAL_STAT_TIMES,
      &referral_stat.publish, "From the commit of a change to Redis" },

    referral_stat_counter("referral_worker_webhook_deliveries_total",
        "result=\"delivered\"", webhook_delivered,
        "Attempts to deliver events, by what came of them"),
    referral_stat_counter("referral_worker_webhook_deliveries_total",
        "result=\"retry\"", webhook_retry, NULL),
    referral_stat_counter("referral_worker_webhook_deliveries_total",
        "result=\"dead\"", webhook_dead, NULL),
    referral_stat_counter("referral_worker_webhook_deliveries_total",
        "result=\"disabled\"", webhook_disabled, NULL),
    referral_stat_counter("referral_worker_webhook_deliveries_total",
        "result=\"late\"", webhook_late, NULL),
    referral_stat_gauge("referral_worker_webhook_in_flight", NULL,
        webhook_in_flight, "Deliveries that are being sent"),
    { "referral_worker_webhook_seconds", NULL, REFERRAL_STAT_TIMES,
      &referral_stat.webhook, "Time of an attempt" }
};


uint64_t
referral_stat_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}


void
referral_stat_observe(referral_stat_times_t *t, uint64_t us)
{
    unsigned  i;

    for (i = 0; i < REFERRAL_STAT_BOUNDS; i++) {
        if (us <= referral_stat_bounds[i]) {
            break;
        }
    }

    (void) __atomic_fetch_add(&t->buckets[i], 1, __ATOMIC_RELAXED);
    (void) __atomic_fetch_add(&t->sum, us, __ATOMIC_RELAXED);
}


void
referral_stat_retry(const char *sqlstate)
{
    if (strncmp(sqlstate, "40", 2) == 0 || strcmp(sqlstate, "55P03") == 0) {
        referral_stat_add(retry_conflict, 1);

    } else if (strcmp(sqlstate, "57014") == 0
               || strcmp(sqlstate, "25P03") == 0)
    {
        referral_stat_add(retry_timeout, 1);

    } else if (strncmp(sqlstate, "08", 2) == 0
               || strncmp(sqlstate, "57P", 3) == 0)
    {
        referral_stat_add(retry_connection, 1);

    } else if (strncmp(sqlstate, "53", 2) == 0
               || strncmp(sqlstate, "58", 2) == 0)
    {
        referral_stat_add(retry_resources, 1);

    } else if (strcmp(sqlstate, "25006") == 0) {
        referral_stat_add(retry_readonly, 1);

    } else {
        referral_stat_add(retry_alarm, 1);
    }
}


void
referral_stat_streams(const referral_stat_stream_t *streams, size_t n)
{
    (void) pthread_mutex_lock(&referral_stat_lock);

    memcpy(referral_stat_table, streams, n * sizeof(referral_stat_stream_t));
    referral_stat_nstreams = n;

    (void) pthread_mutex_unlock(&referral_stat_lock);
}


void
referral_stat_prometheus(referral_buf_t *b)
{
    size_t                       i;
    uint64_t                     n;
    const char                  *name;
    const referral_stat_line_t  *line;

    name = "";

    for (i = 0;
         i < sizeof(referral_stat_lines) / sizeof(referral_stat_lines[0]);
         i++)
    {
        line = &referral_stat_lines[i];

        if (strcmp(line->name, name) != 0) {
            name = line->name;
            referral_stat_header(b, line);
        }

        if (line->type == REFERRAL_STAT_TIMES) {
            referral_stat_times(b, line);
            continue;
        }

        n = __atomic_load_n((const uint64_t *) line->value, __ATOMIC_RELAXED);

        referral_stat_print(b, "%s%s%s%s ", line->name,
                            line->label ? "{" : "",
                            line->label ? line->label : "",
                            line->label ? "}" : "");

        if (line->type == REFERRAL_STAT_SECONDS) {
            referral_stat_print(b, "%" PRIu64 ".%03u\n", n / 1000,
                                (unsigned) (n % 1000));

        } else {
            referral_stat_print(b, "%" PRIu64 "\n", n);
        }
    }

    referral_stat_stream_lines(b);

    referral_stat_print(b, "# HELP referral_worker_build_info The version\n"
                        "# TYPE referral_worker_build_info gauge\n"
                        "referral_worker_build_info{version=\"%s\"} 1\n",
                        REFERRAL_VERSION);
}


static void
referral_stat_stream_lines(referral_buf_t *b)
{
    size_t                  i, n;
    u_char                  id[REFERRAL_UUID_HEX_LEN];
    referral_stat_stream_t  streams[REFERRAL_STAT_STREAMS];

    static const referral_stat_line_t  records = {
        "referral_worker_stream_lag_records", NULL, REFERRAL_STAT_GAUGE, NULL,
        "Records of a stream that are not in Postgres"
    };

    static const referral_stat_line_t  seconds = {
        "referral_worker_stream_lag_seconds", NULL, REFERRAL_STAT_SECONDS,
        NULL, "Age of the oldest of them"
    };

    (void) pthread_mutex_lock(&referral_stat_lock);

    n = referral_stat_nstreams;
    memcpy(streams, referral_stat_table, n * sizeof(referral_stat_stream_t));

    (void) pthread_mutex_unlock(&referral_stat_lock);

    referral_stat_header(b, &records);

    for (i = 0; i < n; i++) {
        referral_uuid_hex(streams[i].id, id);
        referral_stat_print(b, "%s{stream=\"%.*s\"} %" PRIu64 "\n",
                            records.name, REFERRAL_UUID_HEX_LEN, id,
                            streams[i].records);
    }

    referral_stat_header(b, &seconds);

    for (i = 0; i < n; i++) {
        referral_uuid_hex(streams[i].id, id);
        referral_stat_print(b, "%s{stream=\"%.*s\"} %" PRIu64 ".%03u\n",
                            seconds.name, REFERRAL_UUID_HEX_LEN, id,
                            streams[i].ms / 1000,
                            (unsigned) (streams[i].ms % 1000));
    }
}


static void
referral_stat_header(referral_buf_t *b, const referral_stat_line_t *line)
{
    static const char  *types[] = { "counter", "gauge", "gauge", "histogram" };

    referral_stat_print(b, "# HELP %s %s\n# TYPE %s %s\n", line->name,
                        line->help, line->name, types[line->type]);
}


/* the buckets are read once: their sum is the count, whatever is added now */

static void
referral_stat_times(referral_buf_t *b, const referral_stat_line_t *line)
{
    unsigned                      i;
    uint64_t                      n, sum;
    const referral_stat_times_t  *t;

    t = line->value;
    n = 0;

    for (i = 0; i < REFERRAL_STAT_BOUNDS; i++) {
        n += __atomic_load_n(&t->buckets[i], __ATOMIC_RELAXED);
        referral_stat_print(b, "%s_bucket{le=\"%g\"} %" PRIu64 "\n",
                            line->name, referral_stat_bounds[i] / 1e6, n);
    }

    n += __atomic_load_n(&t->buckets[i], __ATOMIC_RELAXED);
    sum = __atomic_load_n(&t->sum, __ATOMIC_RELAXED);

    referral_stat_print(b, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n"
                        "%s_sum %" PRIu64 ".%06u\n"
                        "%s_count %" PRIu64 "\n", line->name, n, line->name,
                        sum / 1000000, (unsigned) (sum % 1000000), line->name,
                        n);
}


static void
referral_stat_print(referral_buf_t *b, const char *fmt, ...)
{
    int      n;
    char     text[512];
    va_list  args;

    va_start(args, fmt);
    n = vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);

    if (n > 0) {
        referral_buf_add(b, text, (size_t) n < sizeof(text)
                                  ? (size_t) n : sizeof(text) - 1);
    }
}
