
/*
 * Copyright (C) The nginx referral module authors
 *
 * referral-worker: carries interactions from the journal of this machine into
 * Postgres.
 */


#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "referral_fault.h"
#include "flush.h"
#include "free.h"
#include "housekeeping.h"
#include "lag.h"
#include "listen.h"
#include "log.h"
#include "maintain.h"
#include "notify.h"
#include "publish.h"
#include "signals.h"
#include "stat.h"
#include "webhook.h"


/* milliseconds */

#define REFERRAL_WORKER_RETRY    2000      /* of the journal */
#define REFERRAL_WORKER_FREE     1000
#define REFERRAL_WORKER_SUMMARY  60000
#define REFERRAL_WORKER_SWEEP    1000
#define REFERRAL_WORKER_LAG      60000     /* to be told of */

#define REFERRAL_WORKER_BATCHES  4         /* of one stream, in a row */


typedef struct {
    referral_settings_t        settings;
    const char                *file;

    referral_source_journal_t  journal;
    referral_pg_t              pg;
    referral_flush_t           flush;
    referral_maintain_t        maintain;
    referral_publish_t         publish;
    referral_webhook_t         webhook;
    referral_listen_t          listen;
    referral_housekeeping_t    housekeeping;
    referral_lag_t             lag;

    uint64_t                   freed;      /* when, monotonic ms */
    uint64_t                   summary;
    referral_flush_stat_t      last;       /* as of the last summary */
    uint64_t                   retries;
    size_t                     turn;       /* the stream that is first */

    unsigned                   opened:1;   /* the journal */
    unsigned                   waiting:1;  /* for it, and said so */
    unsigned                   replaced:1; /* its directory, and said so */
    unsigned                   behind:1;   /* the last sweep left some */
} referral_worker_t;


static int referral_worker_options(int argc, char **argv, const char **file,
    unsigned *test);
static int referral_worker_start(referral_worker_t *w);
static int referral_worker_threads(referral_worker_t *w);
static int referral_worker_join(referral_worker_t *w);
static void referral_worker_run(referral_worker_t *w);
static void referral_worker_reload(referral_worker_t *w);
static int referral_worker_open(referral_worker_t *w);
static int referral_worker_connect(referral_worker_t *w);
static int referral_worker_sweep(referral_worker_t *w);
static int referral_worker_scan(referral_worker_t *w);
static int referral_worker_stream(referral_worker_t *w,
    referral_source_stream_t *st);
static void referral_worker_failed(referral_worker_t *w);
static void referral_worker_save(referral_worker_t *w);
static int referral_worker_regular(referral_worker_t *w);
static void referral_worker_summary(referral_worker_t *w);
static int referral_worker_stop(referral_worker_t *w);


static const char  usage[] =
    "usage: referral-worker -c FILE [-t]\n"
    "\n"
    "  -c FILE    settings, \"name = value\" a line\n"
    "  -t         test the settings and exit\n"
    "  -V         print the version\n"
    "  -h         this text\n"
    "\n"
    "Example, which says whether the settings are good (see README.md):\n"
    "\n"
    "  referral-worker -c /etc/referral/referral-worker.conf -t\n";


int
main(int argc, char **argv)
{
    int                rc;
    char               error[REFERRAL_ERROR_LEN];
    unsigned           test;
    referral_worker_t  w;

    memset(&w, 0, sizeof(referral_worker_t));
    test = 0;

#if (REFERRAL_FAULTS)
    if (referral_fault_init(error) != REFERRAL_OK) {
        fprintf(stderr, "referral-worker: %s\n", error);
        return 2;
    }
#endif

    rc = referral_worker_options(argc, argv, &w.file, &test);
    if (rc != -1) {
        return rc;
    }

    if (referral_settings_read(&w.settings, w.file, error) != REFERRAL_OK) {
        fprintf(stderr, "referral-worker: %s\n", error);
        return 1;
    }

    if (test) {
        fprintf(stderr, "referral-worker: the settings in %s are ok\n",
                w.file);
        referral_settings_free(&w.settings);
        return 0;
    }

    if (referral_worker_start(&w) != REFERRAL_OK) {

        /* threads may be there already, which exit() would pull apart */

        _exit(1);
    }

    referral_worker_run(&w);

    if (referral_worker_stop(&w) != REFERRAL_OK) {

        /* a thread is still there, and what it uses must be, too */

        _exit(0);
    }

    return 0;
}


/* the exit code, or -1 to go on */

static int
referral_worker_options(int argc, char **argv, const char **file,
    unsigned *test)
{
    int  c;

    static const struct option  options[] = {
        { "help",    no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },
        { NULL, 0, NULL, 0 }
    };

    while ((c = getopt_long(argc, argv, "c:thV", options, NULL)) != -1) {

        switch (c) {

        case 'c':
            *file = optarg;
            break;

        case 't':
            *test = 1;
            break;

        case 'h':
            fputs(usage, stdout);
            return 0;

        case 'V':
            printf("referral-worker %s%s\n", REFERRAL_VERSION,
                   REFERRAL_FAULT_BUILD);
            return 0;

        default:
            fputs(usage, stderr);
            return 2;
        }
    }

    if (*file == NULL || optind != argc) {
        fputs(usage, stderr);
        return 2;
    }

    return -1;
}


static int
referral_worker_start(referral_worker_t *w)
{
    referral_log_level = w->settings.log_level;

    if (referral_signals_init() != REFERRAL_OK) {
        referral_log(REFERRAL_LOG_ERROR, "start-failed",
                     "signal handlers could not be installed", NULL);
        return REFERRAL_ERROR;
    }

    referral_notify_init();
    referral_pg_init(&w->pg, &w->settings);

    if (referral_flush_init(&w->flush, &w->pg, w->settings.batch_rows)
        != REFERRAL_OK)
    {
        referral_log(REFERRAL_LOG_ERROR, "start-failed", "out of memory",
                     NULL);
        return REFERRAL_ERROR;
    }

    w->flush.source = &w->journal.base;
    w->summary = referral_now();

    referral_stat_set(postgres_away, w->summary);

    if (referral_send_global() != REFERRAL_OK) {
        referral_log(REFERRAL_LOG_ERROR, "start-failed",
                     "libcurl could not be initialised", NULL);
        return REFERRAL_ERROR;
    }

    /* what is likely to fail is first */

    if (referral_listen_start(&w->listen, w->settings.listen) != REFERRAL_OK
        || (w->settings.listen[0] != '\0'
            && referral_lag_start(&w->lag, w->settings.journal)
               != REFERRAL_OK)
        || referral_worker_threads(w) != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    referral_log(REFERRAL_LOG_INFO, "start", NULL, "version=%s journal=%s",
                 REFERRAL_VERSION, w->settings.journal);

    return REFERRAL_OK;
}


static int
referral_worker_threads(referral_worker_t *w)
{
    referral_housekeeping_start(&w->housekeeping, &w->settings);
    referral_publish_start(&w->publish, &w->settings);

    return referral_webhook_start(&w->webhook, &w->settings);
}


/* all are asked before one is waited for */

static int
referral_worker_join(referral_worker_t *w)
{
    int  rc;

    referral_thread_ask(&w->housekeeping.thread);
    referral_thread_ask(&w->publish.thread);
    referral_thread_ask(&w->webhook.thread);

    rc = referral_housekeeping_stop(&w->housekeeping);

    if (referral_publish_stop(&w->publish) != REFERRAL_OK) {
        rc = REFERRAL_AGAIN;
    }

    if (referral_webhook_stop(&w->webhook) != REFERRAL_OK) {
        rc = REFERRAL_AGAIN;
    }

    return rc;
}


/*
 * READY is sent when the first attempts were made, whatever came of them: an
 * absent Postgres is a wait, not a failed start.  The status says which.
 */

static void
referral_worker_run(referral_worker_t *w)
{
    int       rc;
    unsigned  ready;

    ready = 0;

    for ( ;; ) {

        if (referral_quit) {
            return;
        }

        if (referral_reload) {
            referral_worker_reload(w);
        }

        rc = referral_worker_open(w);

        if (rc == REFERRAL_OK) {
            rc = referral_worker_connect(w);
        }

        if (!ready) {
            referral_notify_ready();
            ready = 1;
        }

        if (rc == REFERRAL_OK) {
            rc = referral_worker_sweep(w);
        }

        referral_notify_alive();
        referral_worker_summary(w);

        if (rc == REFERRAL_AGAIN) {
            (void) referral_wait("idle", -1, 0, w->settings.batch_wait, 1);
        }
    }
}


static void
referral_worker_reload(referral_worker_t *w)
{
    char                  error[REFERRAL_ERROR_LEN];
    const char           *changed;
    referral_settings_t   fresh;

    referral_reload = 0;
    referral_notify_reloading();

    if (referral_settings_read(&fresh, w->file, error) != REFERRAL_OK) {
        referral_log(REFERRAL_LOG_ERROR, "reload-failed", error, NULL);
        referral_notify_ready();
        return;
    }

    /* their settings are about to go; one that is busy is asked again */

    if (referral_worker_join(w) != REFERRAL_OK) {
        referral_settings_free(&fresh);
        referral_reload = 1;
        return;
    }

    if (fresh.batch_rows != w->settings.batch_rows) {
        (void) referral_flush_resize(&w->flush, fresh.batch_rows);
    }

    referral_settings_reload(&w->settings, &fresh, &changed);

    if (changed != NULL) {
        referral_log(REFERRAL_LOG_WARN, "reload", "a changed setting needs a"
                     " restart", "setting=%s", changed);
    }

    referral_log_level = w->settings.log_level;

    /* the session was made with the old settings; back-off is over too */

    referral_pg_close(&w->pg);
    w->pg.retry = 0;

    (void) referral_worker_threads(w);

    referral_log(REFERRAL_LOG_INFO, "reload", NULL, NULL);
    referral_notify_ready();
}


/* REFERRAL_DONE: it waited, and the loop is to look at its signals */

static int
referral_worker_open(referral_worker_t *w)
{
    int          rc;
    char         error[REFERRAL_ERROR_LEN];
    const char  *what;

    if (w->opened) {
        return REFERRAL_OK;
    }

    rc = referral_source_journal_open(&w->journal, w->settings.journal,
                                      error);

    if (rc == REFERRAL_OK) {
        w->opened = 1;
        w->waiting = 0;
        referral_stat_set(journal_away, 0);
        referral_log(REFERRAL_LOG_INFO, "journal-open", NULL, "journal=%s",
                     w->settings.journal);
        return REFERRAL_OK;
    }

    what = rc == REFERRAL_DECLINED
           ? "waiting: another referral-worker has this journal"
           : "waiting for the journal";

    if (!w->waiting) {
        referral_log(rc == REFERRAL_DECLINED ? REFERRAL_LOG_WARN
                                             : REFERRAL_LOG_ERROR,
                     rc == REFERRAL_DECLINED ? "journal-taken"
                                             : "journal-failed",
                     error, "journal=%s", w->settings.journal);
        w->waiting = 1;
        referral_stat_set(journal_away, referral_now());
    }

    referral_notify_status(what);
    (void) referral_wait(what, -1, 0, REFERRAL_WORKER_RETRY, 1);

    return REFERRAL_DONE;
}


static int
referral_worker_connect(referral_worker_t *w)
{
    int       rc;
    uint64_t  now;

    if (referral_pg_connected(&w->pg)) {
        return REFERRAL_OK;
    }

    now = referral_now();

    if (w->pg.retry > now) {
        referral_notify_status("waiting for postgres");
        (void) referral_wait("waiting for postgres", -1, 0,
                             w->pg.retry - now, 1);
        return REFERRAL_DONE;
    }

    rc = referral_pg_connect(&w->pg);

    if (rc == REFERRAL_ERROR) {
        referral_worker_failed(w);
        return REFERRAL_DONE;
    }

    if (rc != REFERRAL_OK) {
        return REFERRAL_DONE;
    }

    referral_fault("worker-connected");

    referral_flush_connected(&w->flush);
    referral_maintain_connected(&w->maintain);
    w->freed = 0;

    return REFERRAL_OK;
}


/* REFERRAL_AGAIN: all that is there was carried; REFERRAL_OK: there is more */

static int
referral_worker_sweep(referral_worker_t *w)
{
    int       rc, more;
    size_t    i, n;
    uint64_t  end;

    if (referral_worker_scan(w) != REFERRAL_OK) {
        return REFERRAL_DONE;
    }

    more = 0;
    rc = referral_worker_regular(w);

    /*
     * A stream that fails must not keep the others from their turn, and many
     * that are behind must not keep journal space from being freed.
     */

    n = w->journal.base.nstreams;
    end = referral_now() + REFERRAL_WORKER_SWEEP;

    for (i = 0; rc != REFERRAL_ERROR && i < n && !referral_quit; i++) {

        if (referral_now() >= end) {
            more = 1;
            break;
        }

        rc = referral_worker_stream(w, w->journal.base.streams[++w->turn % n]);
        more |= rc == REFERRAL_OK;
    }

    referral_worker_save(w);

    if (rc == REFERRAL_ERROR) {
        referral_worker_failed(w);
        return REFERRAL_DONE;
    }

    referral_pg_recovered(&w->pg);
    referral_stat_set(postgres_away, 0);
    referral_stat_set(postgres_seen, 1);

    w->behind = more;
    referral_notify_status(more ? "catching up" : "idle");

    return more ? REFERRAL_OK : REFERRAL_AGAIN;
}


/*
 * When the path names another directory, the one that is open is read on
 * until its writers have left it: what they wrote would be forgotten else.
 */

static int
referral_worker_scan(referral_worker_t *w)
{
    char                error[REFERRAL_ERROR_LEN];
    size_t              i;
    referral_source_t  *src;

    src = &w->journal.base;

    if (src->scan(src, error) != REFERRAL_OK) {

        if (!w->waiting) {
            referral_log(REFERRAL_LOG_ERROR, "journal-failed", error,
                         "journal=%s", w->settings.journal);
            w->waiting = 1;
            referral_stat_set(journal_away, referral_now());
        }

        return REFERRAL_OK;
    }

    if (w->waiting) {
        w->waiting = 0;
        referral_stat_set(journal_away, 0);
    }

    if (!w->journal.replaced) {
        w->replaced = 0;
        return REFERRAL_OK;
    }

    if (!w->replaced) {
        referral_log(REFERRAL_LOG_WARN, "journal-replaced",
                     "the path names another directory now: the old one is "
                     "read to its end first, which nginx leaves at a reload",
                     "journal=%s", w->settings.journal);
        w->replaced = 1;
    }

    for (i = 0; i < src->nstreams; i++) {
        if (!src->streams[i]->aside
            && !(src->streams[i]->loaded && src->streams[i]->ended))
        {
            return REFERRAL_OK;
        }
    }

    referral_source_journal_close(&w->journal);
    w->opened = 0;
    w->replaced = 0;

    return REFERRAL_DONE;
}


/* a few batches of one stream, then it is the next one's turn */

static int
referral_worker_stream(referral_worker_t *w, referral_source_stream_t *st)
{
    int       rc;
    unsigned  i;

    rc = REFERRAL_AGAIN;

    for (i = 0; i < REFERRAL_WORKER_BATCHES && !referral_quit; i++) {

        rc = referral_flush_stream(&w->flush, st,
                                   i + 1 < REFERRAL_WORKER_BATCHES);

        if (rc != REFERRAL_OK) {
            break;
        }

        referral_notify_alive();
    }

    return rc;
}


static void
referral_worker_failed(referral_worker_t *w)
{
    referral_stat_retry(w->pg.sqlstate);

    if (referral_stat_get(postgres_away) == 0) {
        referral_stat_set(postgres_away, referral_now());
    }

    referral_pg_failed(&w->pg);
}


/* the saved position is a cache: failing to write it costs only time */

static void
referral_worker_save(referral_worker_t *w)
{
    char                       error[REFERRAL_ERROR_LEN];
    size_t                     i;
    referral_source_t         *src;
    referral_source_stream_t  *st;

    src = &w->journal.base;

    for (i = 0; i < src->nstreams; i++) {
        st = src->streams[i];

        if (!st->dirty || !st->placed) {
            continue;
        }

        st->dirty = 0;

        if (src->save(src, st, error) != REFERRAL_OK) {
            referral_log(REFERRAL_LOG_WARN, "save-failed", error, "stream=%s",
                         st->name);
        }
    }
}


static int
referral_worker_regular(referral_worker_t *w)
{
    uint64_t  now;

    if (referral_maintain(&w->maintain, &w->pg) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    now = referral_now();

    if (w->freed && now - w->freed < REFERRAL_WORKER_FREE) {
        return REFERRAL_OK;
    }

    w->freed = now;

    return referral_free(&w->journal, &w->pg, w->settings.retention);
}


static void
referral_worker_summary(referral_worker_t *w)
{
    size_t                  i;
    uint64_t                now, lag;
    unsigned                aside;
    struct timespec         ts;
    referral_flush_stat_t  *s, *last;

    now = referral_now();

    if (now - w->summary < REFERRAL_WORKER_SUMMARY) {
        return;
    }

    w->summary = now;
    s = &w->flush.stat;
    last = &w->last;
    aside = 0;

    for (i = 0; i < w->journal.base.nstreams; i++) {
        aside += w->journal.base.streams[i]->aside;
    }

    if (s->batches == last->batches && !aside) {
        return;
    }

    lag = 0;

    if (w->behind) {
        clock_gettime(CLOCK_REALTIME, &ts);
        lag = (uint64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
        lag = lag > w->flush.newest ? lag - w->flush.newest : 0;
    }

    referral_log(REFERRAL_LOG_INFO, "minute", NULL,
                 "rows=%llu batches=%llu quarantined=%llu dead=%llu gap=%llu"
                 " lag_ms=%llu streams=%zu aside=%u retries=%llu",
                 (unsigned long long) (s->rows - last->rows),
                 (unsigned long long) (s->batches - last->batches),
                 (unsigned long long) (s->quarantined - last->quarantined),
                 (unsigned long long) (s->dead - last->dead),
                 (unsigned long long) (s->gap - last->gap),
                 (unsigned long long) lag, w->journal.base.nstreams, aside,
                 (unsigned long long) (w->pg.retries - w->retries));

    if (lag > REFERRAL_WORKER_LAG) {
        referral_log(REFERRAL_LOG_WARN, "lag",
                     "clicks come faster than Postgres takes them, or it was"
                     " away: the journal keeps them; if this grows, see what"
                     " Postgres waits for (pg_stat_activity)",
                     "lag_ms=%llu", (unsigned long long) lag);
    }

    *last = *s;
    w->retries = w->pg.retries;
}


static int
referral_worker_stop(referral_worker_t *w)
{
    int  rc;

    referral_notify_stopping();

    referral_listen_stop(&w->listen);
    referral_thread_ask(&w->lag.thread);

    rc = referral_worker_join(w);

    if (referral_lag_stop(&w->lag) != REFERRAL_OK) {
        rc = REFERRAL_AGAIN;
    }

    referral_log(REFERRAL_LOG_INFO, "stop", NULL, "rows=%llu batches=%llu",
                 (unsigned long long) w->flush.stat.rows,
                 (unsigned long long) w->flush.stat.batches);

    referral_pg_close(&w->pg);

    if (w->opened) {
        referral_source_journal_close(&w->journal);
    }

    if (rc == REFERRAL_OK) {
        referral_flush_free(&w->flush);
        referral_settings_free(&w->settings);
    }

    return rc;
}
