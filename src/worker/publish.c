
/*
 * Copyright (C) The nginx referral module authors
 */


#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "referral_fault.h"
#include "log.h"
#include "publish_private.h"
#include "signals.h"
#include "stat.h"


/* milliseconds */

#define REFERRAL_PUBLISH_LOOK       1000
#define REFERRAL_PUBLISH_ALIVE      10000
#define REFERRAL_PUBLISH_PRUNE      60000
#define REFERRAL_PUBLISH_REMIND     60000
#define REFERRAL_PUBLISH_PAUSE_MIN  100
#define REFERRAL_PUBLISH_PAUSE_MAX  5000

#define REFERRAL_PUBLISH_ABSURD     1000000000000

#define REFERRAL_PUBLISH_SLICE      "1000" /* codes written behind, a batch */


static void referral_publish_run(void *data);
static int referral_publish_session(referral_publish_t *p);
static int referral_publish_redis(referral_publish_t *p);
static int referral_publish_info(referral_publish_t *p);
static int referral_publish_postgres(referral_publish_t *p);
static int referral_publish_lock(referral_publish_t *p, int64_t above);
static int referral_publish_open(referral_publish_t *p);
static int referral_publish_begin(referral_publish_t *p, int64_t above,
    const char *why);
static int referral_publish_serve(referral_publish_t *p);
static int referral_publish_step(referral_publish_t *p, unsigned *more);
static int referral_publish_act(referral_publish_t *p, const PGresult *res,
    unsigned *more);
static int referral_publish_batch(referral_publish_t *p, const PGresult *res,
    unsigned ready, uint64_t start);
static int referral_publish_done(referral_publish_t *p, const PGresult *res,
    unsigned ready);
static void referral_publish_full(referral_publish_t *p);
static int referral_publish_asked(referral_publish_t *p, const PGresult *res);
static int referral_publish_discard(referral_publish_t *p);
static int referral_publish_regular(referral_publish_t *p);
static int referral_publish_wait(referral_publish_t *p);
static unsigned referral_publish_told(referral_publish_t *p);
static void referral_publish_foreign(referral_publish_t *p);
static void referral_publish_failed(referral_publish_t *p);
static uint64_t referral_publish_pause(referral_publish_t *p);


void
referral_publish_start(referral_publish_t *p,
    const referral_settings_t *settings)
{
    if (settings->publish != REFERRAL_PUBLISH_ON || p->thread.running) {
        return;
    }

    memset(p, 0, sizeof(referral_publish_t));

    p->settings = settings;
    p->fenced = referral_guard("publish-fence");
    p->compared = referral_guard("publish-batch-compare");

    p->thread.name = "publish";
    p->thread.run = referral_publish_run;
    p->thread.data = p;

    (void) referral_thread_start(&p->thread);
}


int
referral_publish_stop(referral_publish_t *p)
{
    return referral_thread_stop(&p->thread);
}


static void
referral_publish_run(void *data)
{
    int                  rc;
    uint64_t             pause;
    referral_publish_t  *p;

    p = data;

    referral_pg_init(&p->pg, p->settings);
    p->pg.name = "referral-publisher";

    while (!referral_stopping()) {

        p->taken = 0;
        p->lost = 0;
        rc = referral_publish_session(p);

        if (rc == REFERRAL_ERROR) {
            referral_publish_failed(p);

        } else if (rc == REFERRAL_DECLINED && p->taken) {
            referral_publish_foreign(p);
        }

        /* the lock goes with the connection: who can reach Redis, may */

        referral_redis_close(&p->redis);
        referral_pg_close(&p->pg);

        free(p->off);
        p->off = NULL;

        if (rc == REFERRAL_DONE) {
            continue;
        }

        pause = referral_publish_pause(p);
        (void) referral_wait("publishing", -1, 0, pause, 1);
    }
}


static int
referral_publish_session(referral_publish_t *p)
{
    int  rc;

    rc = referral_publish_redis(p);

    if (rc == REFERRAL_OK) {
        rc = referral_publish_postgres(p);
    }

    if (rc == REFERRAL_OK) {
        rc = referral_publish_lock(p, 0);
    }

    while (rc == REFERRAL_AGAIN) {

        if (!p->standby) {
            referral_log(REFERRAL_LOG_INFO, "publish-standby", "another"
                         " worker publishes to this Redis; this one takes"
                         " over when that one goes", "redis=%s run_id=%s",
                         p->redis.url.display, p->run_id);
            p->standby = 1;
        }

        rc = referral_wait("publishing", -1, 0, REFERRAL_PUBLISH_LOOK, 1);

        /* a server that was started anew has another lock */

        if (rc == REFERRAL_AGAIN) {
            rc = referral_publish_info(p);
        }

        if (rc == REFERRAL_OK) {
            rc = referral_publish_lock(p, 0);
        }
    }

    p->standby = 0;

    if (rc == REFERRAL_OK) {
        rc = referral_publish_open(p);
    }

    return rc == REFERRAL_OK ? referral_publish_serve(p) : rc;
}


static int
referral_publish_redis(referral_publish_t *p)
{
    int  rc;

    rc = referral_redis_connect(&p->redis, p->settings->redis,
                                p->settings->redis_password_file);

    return rc == REFERRAL_OK ? referral_publish_info(p) : rc;
}


static int
referral_publish_info(referral_publish_t *p)
{
    int          rc;
    char        *value, *policy;
    size_t       len;
    redisReply  *reply;
    const char  *words[1];

    words[0] = "INFO";

    rc = referral_redis_command(&p->redis, 1, words, &reply);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    value = reply->str != NULL ? strstr(reply->str, "\nrun_id:") : NULL;

    if (value == NULL) {
        snprintf(p->redis.error, sizeof(p->redis.error),
                 "INFO does not say its run_id");
        rc = REFERRAL_ERROR;

    } else if (strstr(reply->str, "\nrole:slave") != NULL) {
        snprintf(p->redis.error, sizeof(p->redis.error),
                 "READONLY it is a replica (give an address that leads to the"
                 " master)");
        rc = REFERRAL_ERROR;

    } else if (strstr(reply->str, "\nloading:1") != NULL) {
        snprintf(p->redis.error, sizeof(p->redis.error),
                 "LOADING it is reading its data, which passes");
        rc = REFERRAL_ERROR;

    } else {
        value += sizeof("\nrun_id:") - 1;
        len = strcspn(value, "\r\n");

        snprintf(p->run_id, sizeof(p->run_id), "%.*s",
                 (int) (len < 64 ? len : 64), value);

        policy = strstr(reply->str, "\nmaxmemory_policy:allkeys-");

        if (policy != NULL && !p->warned) {
            referral_log(REFERRAL_LOG_WARN, "publish-eviction", "this Redis"
                         " removes any key when its memory is full, codes"
                         " among them: set maxmemory-policy to noeviction or"
                         " volatile-*", "redis=%s", p->redis.url.display);
            p->warned = 1;
        }
    }

    freeReplyObject(reply);

    return rc;
}


static int
referral_publish_postgres(referral_publish_t *p)
{
    int  rc;

    rc = referral_pg_connect(&p->pg);

    if (rc == REFERRAL_ERROR) {
        p->lost = 1;
        referral_pg_close(&p->pg);
    }

    if (rc == REFERRAL_OK) {
        rc = referral_publish_query(p, "LISTEN referral_publish", 0, NULL,
                                    NULL);
    }

    return rc;
}


/* REFERRAL_AGAIN: somebody else has it */

static int
referral_publish_lock(referral_publish_t *p, int64_t above)
{
    int          rc;
    char         text[24];
    PGresult    *res;
    const char  *values[2];

    snprintf(text, sizeof(text), "%" PRId64, above);
    values[0] = p->run_id;
    values[1] = text;

    rc = referral_publish_query(p, "SELECT referral.publish_lock($1, $2)", 2,
                                values, &res);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    if (PQgetisnull(res, 0, 0)) {
        rc = REFERRAL_AGAIN;

    } else {
        p->fence = strtoll(PQgetvalue(res, 0, 0), NULL, 10);
        referral_fault("publish-locked");
    }

    PQclear(res);

    return rc;
}


/* goes on with what is there, when it is what Postgres knows; or anew */

static int
referral_publish_open(referral_publish_t *p)
{
    int          rc;
    char         texts[3][24];
    int64_t      generation, batch, above;
    unsigned     ready;
    PGresult    *res;
    const char  *values[4];

    do {
        generation = -1;
        batch = -1;
        ready = 0;

        rc = referral_publish_take(p, &generation, &batch, &ready, &above);

        /* Postgres is an older copy; its session says whether it has us yet */

        if (rc == REFERRAL_OK && above > 0) {
            rc = referral_publish_lock(p, above);
        }

        if (rc != REFERRAL_OK) {
            return rc == REFERRAL_AGAIN ? REFERRAL_DECLINED : rc;
        }

    } while (above > 0);

    referral_fault("publish-taken");

    if (generation < 0) {
        return referral_publish_begin(p, 0, "there is nothing of a publisher"
                                            " in Redis");
    }

    snprintf(texts[0], sizeof(texts[0]), "%" PRId64, generation);
    snprintf(texts[1], sizeof(texts[1]), "%" PRId64, batch);
    snprintf(texts[2], sizeof(texts[2]), "%" PRId64, p->fence);

    values[0] = texts[0];
    values[1] = texts[1];
    values[2] = texts[2];
    values[3] = p->run_id;

    rc = referral_publish_query(p,
             p->compared
             ? "SELECT referral.publish_open($1, $2, $3, $4), $2::bigint"
             : "SELECT referral.publish_open($1, b, $3, $4), b"
               " FROM (SELECT max(batch) AS b FROM referral.publications"
               "           WHERE generation = $1 AND $2 <> '') l",
             4, values, &res);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    if (PQgetisnull(res, 0, 0)
        || (PQgetvalue(res, 0, 0)[0] == 't') != (ready == 1))
    {
        PQclear(res);
        return referral_publish_begin(p, generation, "Redis has not what this"
                                      " database wrote last: it, or this"
                                      " database, is an older copy, or a"
                                      " publisher died in a batch");
    }

    p->generation = generation;
    p->batch = strtoll(PQgetvalue(res, 0, 1), NULL, 10);
    p->ready = ready;
    p->begun = referral_now();
    p->found = 0;
    p->foreign = 0;
    snprintf(p->cursor, sizeof(p->cursor), "0");

    PQclear(res);

    referral_log(REFERRAL_LOG_INFO, "publish-open", NULL,
                 "redis=%s generation=%" PRId64 " batch=%" PRId64
                 " fence=%" PRId64 " ready=%u", p->redis.url.display,
                 p->generation, p->batch, p->fence, ready);

    return REFERRAL_OK;
}


static int
referral_publish_begin(referral_publish_t *p, int64_t above, const char *why)
{
    int          rc;
    char         texts[2][24];
    PGresult    *res;
    const char  *values[3];

    /* no publisher made such a number, and it must not be counted from */

    if (above >= REFERRAL_PUBLISH_ABSURD) {
        above = 0;
    }

    snprintf(texts[0], sizeof(texts[0]), "%" PRId64, p->fence);
    snprintf(texts[1], sizeof(texts[1]), "%" PRId64, above);

    values[0] = p->run_id;
    values[1] = texts[0];
    values[2] = texts[1];

    rc = referral_publish_query(p,
                                "SELECT referral.publish_begin($1, $2, $3)",
                                3, values, &res);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    p->generation = strtoll(PQgetvalue(res, 0, 0), NULL, 10);
    p->batch = 0;
    p->ready = 0;
    p->taken = 0;
    p->begun = referral_now();
    p->found = 0;
    p->foreign = 0;
    p->looked = 0;
    snprintf(p->cursor, sizeof(p->cursor), "0");

    PQclear(res);

    referral_log(REFERRAL_LOG_INFO, "publish-full", why,
                 "redis=%s generation=%" PRId64 " fence=%" PRId64,
                 p->redis.url.display, p->generation, p->fence);

    referral_fault("publish-begun");

    rc = referral_publish_reset(p);

    if (rc == REFERRAL_OK) {
        referral_fault("publish-reset");
    }

    return rc;
}


static int
referral_publish_serve(referral_publish_t *p)
{
    int       rc;
    unsigned  more;

    p->looked = 0;
    p->alive = referral_now();

    for ( ;; ) {

        if (referral_stopping()) {
            return REFERRAL_DONE;
        }

        more = 0;
        rc = referral_publish_step(p, &more);

        /* what Redis lost is written again, unless somebody else is there */

        if (rc == REFERRAL_OK) {
            rc = referral_publish_regular(p);
        }

        if (rc == REFERRAL_DECLINED && !p->taken) {
            rc = referral_publish_discard(p);

            if (rc == REFERRAL_OK) {
                rc = referral_publish_begin(p, p->generation,
                                            "what is there is not relied on");
            }

            more = 1;
        }

        if (rc == REFERRAL_OK && !more) {
            rc = referral_publish_wait(p);
        }

        if (rc != REFERRAL_OK) {
            return rc;
        }
    }
}


static int
referral_publish_step(referral_publish_t *p, unsigned *more)
{
    int          rc;
    char         texts[2][24];
    uint64_t     now;
    PGresult    *res;
    const char  *values[3];

    snprintf(texts[0], sizeof(texts[0]), "%" PRId64, p->generation);
    snprintf(texts[1], sizeof(texts[1]), "%" PRId64, p->batch);

    values[0] = texts[0];
    values[1] = texts[1];
    values[2] = REFERRAL_PUBLISH_SLICE;

    rc = referral_publish_query(p, "SELECT * FROM"
                                " referral.publish_collect($1, $2, $3)", 3,
                                values, &res);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    if (PQntuples(res) == 0) {

        PQclear(res);
        return referral_publish_answer(p, "row");
    }

    now = referral_now();

    if (p->looked == 0 || now - p->looked >= REFERRAL_PUBLISH_LOOK) {
        rc = referral_publish_look(p);

        if (rc == REFERRAL_OK) {
            p->looked = now;
            free(p->off);
            p->off = NULL;
        }
    }

    if (rc == REFERRAL_OK) {
        rc = referral_publish_act(p, res, more);
    }

    PQclear(res);

    return rc;
}


static int
referral_publish_act(referral_publish_t *p, const PGresult *res,
    unsigned *more)
{
    int          rc;
    uint64_t     start;
    unsigned     done;
    const char  *off;

    start = referral_stat_now();

    if (p->ready
        && strcmp(PQgetvalue(res, 0, REFERRAL_PUBLISH_WHOLE), "0") != 0)
    {
        *more = 1;
        return referral_publish_begin(p, p->generation, "somebody asked for"
                                                        " it");
    }

    off = PQgetvalue(res, 0, REFERRAL_PUBLISH_OFF_SET);

    if (p->off == NULL || strcmp(p->off, off) != 0) {
        rc = referral_publish_off(p, off);
        if (rc != REFERRAL_OK) {
            return rc;
        }

        referral_fault("publish-off");

        free(p->off);
        p->off = strdup(off);
    }

    *more = referral_publish_is(res, REFERRAL_PUBLISH_MORE)
            || referral_publish_is(res, REFERRAL_PUBLISH_SCAN)
            || off[0] != '\0';

    if (referral_publish_is(res, REFERRAL_PUBLISH_WORK)) {
        return referral_publish_batch(p, res, 0, start);
    }

    if (!referral_publish_is(res, REFERRAL_PUBLISH_SCAN)) {
        return referral_publish_asked(p, res);
    }

    rc = referral_publish_search(p, &done);

    if (rc == REFERRAL_OK && done) {
        referral_fault("publish-searched");
        rc = referral_publish_batch(p, res, 1, start);
    }

    return rc;
}


static int
referral_publish_batch(referral_publish_t *p, const PGresult *res,
    unsigned ready, uint64_t start)
{
    int          rc;
    uint64_t     end;
    const char  *waited;

    /* Redis with a batch that Postgres lacks would be written anew */

    p->thread.holding = 1;

    rc = referral_publish_write(p, res, ready);
    end = referral_stat_now();

    if (rc == REFERRAL_OK) {
        rc = referral_publish_done(p, res, ready);
    }

    p->thread.holding = 0;

    if (rc != REFERRAL_OK) {
        return rc;
    }

    referral_stat_add(published, PQntuples(res) - 1);

    waited = PQgetvalue(res, 0, REFERRAL_PUBLISH_WAITED);

    if (waited[0] != '\0') {
        referral_stat_time(publish, strtoull(waited, NULL, 10)
                                    + end - start);
    }

    if (ready) {
        referral_publish_full(p);
    }

    return REFERRAL_OK;
}


static int
referral_publish_done(referral_publish_t *p, const PGresult *res,
    unsigned ready)
{
    int          rc;
    char         texts[4][24];
    PGresult    *answer;
    const char  *values[7];

    snprintf(texts[0], sizeof(texts[0]), "%" PRId64, p->generation);
    snprintf(texts[1], sizeof(texts[1]), "%" PRId64, p->batch - 1);
    snprintf(texts[2], sizeof(texts[2]), "%" PRId64, p->fence);
    snprintf(texts[3], sizeof(texts[3]), "%" PRIu64, p->found);

    values[0] = texts[0];
    values[1] = texts[1];
    values[2] = texts[2];
    values[3] = PQgetvalue(res, 0, REFERRAL_PUBLISH_SNAPSHOT);
    values[4] = PQgetvalue(res, 0, REFERRAL_PUBLISH_PENDING);
    values[5] = PQgetvalue(res, 0, REFERRAL_PUBLISH_ASKED);
    values[6] = ready ? texts[3] : NULL;

    rc = referral_publish_query(p, "SELECT referral.publish_done($1, $2, $3,"
                                " $4, $5, $6, $7)", 7, values, &answer);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    if (PQgetvalue(answer, 0, 0)[0] != 't') {
        rc = referral_publish_answer(p, "row");
    }

    PQclear(answer);
    referral_fault("publish-done");

    return rc;
}


static void
referral_publish_full(referral_publish_t *p)
{
    p->ready = 1;
    referral_stat_add(publish_full, 1);

    referral_log(REFERRAL_LOG_INFO, "publish-ready", NULL,
                 "redis=%s generation=%" PRId64 " codes=%" PRIu64
                 " by_hand=%" PRIu64 " ms=%" PRIu64, p->redis.url.display,
                 p->generation, p->found, p->foreign,
                 referral_now() - p->begun);
}


/* asked, and nothing was to be done */

static int
referral_publish_asked(referral_publish_t *p, const PGresult *res)
{
    char         text[24];
    const char  *values[2];

    values[1] = PQgetvalue(res, 0, REFERRAL_PUBLISH_ASKED);

    if (strcmp(values[1], "0") == 0
        || strcmp(PQgetvalue(res, 0, REFERRAL_PUBLISH_PENDING), "[]") != 0)
    {
        return REFERRAL_OK;
    }

    snprintf(text, sizeof(text), "%" PRId64, p->generation);
    values[0] = text;

    return referral_publish_query(p,
                                  "SELECT referral.publish_answered($1, $2)",
                                  2, values, NULL);
}


/* answers of scripts that were sent together with one that was refused */

static int
referral_publish_discard(referral_publish_t *p)
{
    int          rc;
    redisReply  *reply;

    while (p->redis.in_flight) {
        rc = referral_redis_read(&p->redis, &reply);

        if (rc == REFERRAL_OK) {
            freeReplyObject(reply);

        } else if (!referral_redis_connected(&p->redis)) {
            return rc;
        }
    }

    return REFERRAL_OK;
}


static int
referral_publish_regular(referral_publish_t *p)
{
    int          rc;
    char         texts[2][24];
    uint64_t     now;
    PGresult    *res;
    const char  *values[2];

    now = referral_now();
    rc = REFERRAL_OK;

    if (p->failures) {
        referral_log(REFERRAL_LOG_INFO, "publish-back", NULL,
                     "redis=%s attempts=%" PRIu64 " after_ms=%" PRIu64,
                     p->redis.url.display, p->failures, now - p->since);
        p->failures = 0;
        p->reason[0] = '\0';
    }

    referral_pg_recovered(&p->pg);

    if (now - p->alive >= REFERRAL_PUBLISH_ALIVE) {
        p->alive = now;

        snprintf(texts[0], sizeof(texts[0]), "%" PRId64, p->generation);
        snprintf(texts[1], sizeof(texts[1]), "%" PRId64, p->fence);
        values[0] = texts[0];
        values[1] = texts[1];

        rc = referral_publish_query(p,
                                    "SELECT referral.publish_alive($1, $2)",
                                    2, values, &res);

        if (rc == REFERRAL_OK) {

            if (PQgetvalue(res, 0, 0)[0] != 't') {
                rc = referral_publish_answer(p, "row");
            }

            PQclear(res);
        }
    }

    if (rc == REFERRAL_OK && now - p->pruned >= REFERRAL_PUBLISH_PRUNE) {
        p->pruned = now;
        rc = referral_publish_query(p, "SELECT referral.publish_prune()", 0,
                                    NULL, NULL);
    }

    return rc;
}


/* until something was committed, or it is time to look anyway */

static int
referral_publish_wait(referral_publish_t *p)
{
    int  rc;

    /* what came with the answers of this step may be news to it */

    if (referral_publish_told(p)) {
        return REFERRAL_OK;
    }

    rc = referral_wait("publishing", PQsocket(p->pg.conn), POLLIN,
                       REFERRAL_PUBLISH_LOOK, 1);

    if (rc == REFERRAL_DONE) {
        return REFERRAL_DONE;
    }

    /* an error shows itself in the next query */

    if (rc == REFERRAL_OK) {
        (void) PQconsumeInput(p->pg.conn);
        (void) referral_publish_told(p);
    }

    return REFERRAL_OK;
}


static unsigned
referral_publish_told(referral_publish_t *p)
{
    unsigned   told;
    PGnotify  *notify;

    told = 0;

    while ((notify = PQnotifies(p->pg.conn)) != NULL) {
        PQfreemem(notify);
        told = 1;
    }

    return told;
}


int
referral_publish_query(referral_publish_t *p, const char *sql, int n,
    const char *const *values, PGresult **res)
{
    if (referral_pg_query(&p->pg, sql, n, values, res) == REFERRAL_OK) {
        return REFERRAL_OK;
    }

    if (referral_stopping()) {
        return REFERRAL_DONE;
    }

    p->lost = 1;
    referral_pg_close(&p->pg);

    return REFERRAL_ERROR;
}


/*
 * A higher fence in Redis.  Usually the session with Postgres was lost, and
 * with it the lock; while it is alive nobody else can have that.
 */

static void
referral_publish_foreign(referral_publish_t *p)
{
    uint64_t  now;

    now = referral_now();

    if (referral_pg_connected(&p->pg)
        && referral_publish_query(p, "SELECT 1", 0, NULL, NULL)
           == REFERRAL_OK)
    {
        if (p->failures++ == 0) {
            p->since = now;
            p->pause = REFERRAL_PUBLISH_PAUSE_MIN;
        }

        if (p->logged == 0 || now - p->logged >= REFERRAL_PUBLISH_REMIND) {
            p->logged = now;
            referral_log(REFERRAL_LOG_ERROR, "publish-foreign", "another"
                         " database publishes to this Redis, a copy of this"
                         " one? set \"publish = off\" in the worker of one"
                         " of them", "redis=%s", p->redis.url.display);
        }

        referral_stat_add(publish_failures, 1);
        return;
    }

    referral_log(REFERRAL_LOG_WARN, "publish-fenced", "another worker has"
                 " taken over; this one waits for its turn", "redis=%s",
                 p->redis.url.display);
}


/* a change of state is logged once, and again each minute */

static void
referral_publish_failed(referral_publish_t *p)
{
    uint64_t  now;

    referral_stat_add(publish_failures, 1);

    if (p->lost) {
        referral_pg_failed(&p->pg);
        return;
    }

    now = referral_now();

    if (p->failures++ == 0) {
        p->since = now;
        p->pause = REFERRAL_PUBLISH_PAUSE_MIN;
    }

    if (strcmp(p->reason, p->redis.error) != 0
        || now - p->logged >= REFERRAL_PUBLISH_REMIND)
    {
        snprintf(p->reason, sizeof(p->reason), "%s", p->redis.error);
        p->logged = now;

        referral_log(REFERRAL_LOG_WARN, "publish-failed", p->redis.error,
                     "redis=%s attempts=%" PRIu64 " since_ms=%" PRIu64,
                     p->redis.url.display, p->failures, now - p->since);
    }
}


/* decorrelated jitter, as in pg.c */

static uint64_t
referral_publish_pause(referral_publish_t *p)
{
    uint32_t  r;
    uint64_t  now, top;

    now = referral_now();

    if (p->lost) {
        return p->pg.retry > now ? p->pg.retry - now : 0;
    }

    if (p->failures == 0) {
        return REFERRAL_PUBLISH_PAUSE_MIN;
    }

    if (getrandom(&r, sizeof(r), GRND_NONBLOCK) != sizeof(r)) {
        r = (uint32_t) now * 2654435761u;
    }

    top = p->pause * 3;
    p->pause = REFERRAL_PUBLISH_PAUSE_MIN
               + r % (top - REFERRAL_PUBLISH_PAUSE_MIN);

    if (p->pause > REFERRAL_PUBLISH_PAUSE_MAX) {
        p->pause = REFERRAL_PUBLISH_PAUSE_MAX;
    }

    return p->pause;
}
