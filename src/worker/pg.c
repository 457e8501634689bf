
/*
 * Copyright (C) The nginx referral module authors
 */


#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "referral_crc32c.h"
#include "referral_fault.h"
#include "log.h"
#include "pg.h"
#include "signals.h"


/* milliseconds */

#define REFERRAL_PG_PAUSE_MIN   100
#define REFERRAL_PG_PAUSE_MAX   5000
#define REFERRAL_PG_REMIND      60000
#define REFERRAL_PG_REWORD      5000       /* same SQLSTATE, another text */
#define REFERRAL_PG_CONNECT     10000

/* a server that honours statement_timeout answers within this of it */

#define REFERRAL_PG_GRACE       10000

#define REFERRAL_PG_PIECE       65536      /* bytes a time, in COPY */

#define REFERRAL_PG_OPTIONS     64


typedef struct {
    const u_char               *data;
    size_t                      len;
} referral_pg_rest_t;


static int referral_pg_start(referral_pg_t *pg, uint64_t *timeout);
static char *referral_pg_pick(const char *list, unsigned n, unsigned *count);
static int referral_pg_session(referral_pg_t *pg);
static int referral_pg_copy_rest(void *ctx, const u_char **data, size_t *len);
static int referral_pg_put(referral_pg_t *pg, const u_char *data, size_t len,
    uint64_t deadline);
static int referral_pg_flush(referral_pg_t *pg, uint64_t deadline);
static PGresult *referral_pg_next(referral_pg_t *pg, uint64_t deadline);
static int referral_pg_finish(referral_pg_t *pg, PGresult **res,
    uint64_t deadline);
static int referral_pg_wait(referral_pg_t *pg, short events,
    uint64_t deadline);
static uint64_t referral_pg_deadline(const referral_pg_t *pg);
static void referral_pg_result_error(referral_pg_t *pg, const PGresult *res);
static void referral_pg_lost(referral_pg_t *pg, const char *what);
static void referral_pg_refused(referral_pg_t *pg);
static referral_pg_class_e referral_pg_classify(const char *sqlstate,
    const char *constraint);
static void referral_pg_notice(void *data, const PGresult *res);

#if (REFERRAL_FAULTS)
static void referral_pg_sent(const char *sql);
#endif


void
referral_pg_init(referral_pg_t *pg, const referral_settings_t *settings)
{
    memset(pg, 0, sizeof(referral_pg_t));

    pg->settings = settings;
    pg->name = "referral-worker";
    pg->nhosts = 1;
}


int
referral_pg_connect(referral_pg_t *pg)
{
    int                        rc;
    short                      events;
    uint64_t                   deadline, now, timeout;
    PostgresPollingStatusType  status;

    if (referral_pg_start(pg, &timeout) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    deadline = referral_now() + timeout;
    status = PGRES_POLLING_WRITING;

    for ( ;; ) {

        if (status == PGRES_POLLING_OK) {
            break;
        }

        if (status == PGRES_POLLING_FAILED) {
            referral_pg_lost(pg, NULL);
            return REFERRAL_ERROR;
        }

        now = referral_now();
        events = status == PGRES_POLLING_READING ? POLLIN : POLLOUT;

        rc = referral_wait("connecting to postgres", PQsocket(pg->conn),
                           events, now < deadline ? deadline - now : 0, 1);

        if (rc == REFERRAL_DONE) {
            referral_pg_close(pg);
            return REFERRAL_DONE;
        }

        if (rc == REFERRAL_AGAIN) {
            referral_pg_lost(pg, "no answer within connect_timeout");
            return REFERRAL_ERROR;
        }

        status = PQconnectPoll(pg->conn);
    }

    return referral_pg_session(pg);
}


/*
 * Several hosts are tried one an attempt, not all in one: PQconnectPoll()
 * keeps no timeout by itself, and a host that accepts but does not answer
 * would hide those behind it.
 */

static int
referral_pg_start(referral_pg_t *pg, uint64_t *timeout)
{
    char              *host, *hostaddr, *port, *message;
    unsigned           n, count;
    const char        *keys[REFERRAL_PG_OPTIONS], *values[REFERRAL_PG_OPTIONS];
    PQconninfoOption  *options, *opt;

    referral_pg_close(pg);

    *timeout = REFERRAL_PG_CONNECT;
    host = NULL;
    hostaddr = NULL;
    port = NULL;

    options = PQconninfoParse(pg->settings->postgres, &message);
    if (options == NULL) {
        PQfreemem(message);
        referral_pg_lost(pg, "the connection string could not be parsed");
        return REFERRAL_ERROR;
    }

    pg->nhosts = 1;
    n = 0;

    /* ours, unless the connection string says otherwise (later ones win) */

    keys[n] = "application_name";   values[n++] = pg->name;
    keys[n] = "tcp_user_timeout";   values[n++] = "10000";
    keys[n] = "keepalives_idle";    values[n++] = "10";
    keys[n] = "keepalives_interval"; values[n++] = "5";
    keys[n] = "keepalives_count";   values[n++] = "3";

    for (opt = options; opt->keyword && n < REFERRAL_PG_OPTIONS - 4; opt++) {

        if (opt->val == NULL || opt->val[0] == '\0') {
            continue;
        }

        count = 1;
        keys[n] = opt->keyword;
        values[n] = opt->val;

        if (strcmp(opt->keyword, "host") == 0) {
            host = referral_pg_pick(opt->val, pg->host, &count);
            values[n] = host;

        } else if (strcmp(opt->keyword, "hostaddr") == 0) {
            hostaddr = referral_pg_pick(opt->val, pg->host, &count);
            values[n] = hostaddr;

        } else if (strcmp(opt->keyword, "port") == 0) {
            port = referral_pg_pick(opt->val, pg->host, &count);
            values[n] = port;
            count = 1;

        } else if (strcmp(opt->keyword, "connect_timeout") == 0
                   && atoi(opt->val) > 0)
        {
            *timeout = (uint64_t) atoi(opt->val) * 1000;
        }

        if (count > pg->nhosts) {
            pg->nhosts = count;
        }

        n++;
    }

    keys[n] = "target_session_attrs";  values[n++] = "read-write";
    keys[n] = "client_encoding";       values[n++] = "UTF8";
    keys[n] = NULL;                    values[n] = NULL;

    pg->conn = PQconnectStartParams(keys, values, 0);

    free(host);
    free(hostaddr);
    free(port);
    PQconninfoFree(options);

    if (pg->conn == NULL) {
        referral_pg_lost(pg, "out of memory");
        return REFERRAL_ERROR;
    }

    if (PQstatus(pg->conn) == CONNECTION_BAD) {
        referral_pg_lost(pg, NULL);
        return REFERRAL_ERROR;
    }

    PQsetNoticeReceiver(pg->conn, referral_pg_notice, pg);

    /* the only way to learn why a server refuses a connection */

    (void) PQsetErrorVerbosity(pg->conn, PQERRORS_VERBOSE);

    return REFERRAL_OK;
}


/* element n (modulo their number) of a list with commas, allocated */

static char *
referral_pg_pick(const char *list, unsigned n, unsigned *count)
{
    size_t       len;
    unsigned     i;
    const char  *p;

    *count = 1;

    for (p = list; *p; p++) {
        if (*p == ',') {
            (*count)++;
        }
    }

    p = list;

    for (i = 0; i < n % *count; i++) {
        p = strchr(p, ',') + 1;
    }

    len = strcspn(p, ",");

    return strndup(p, len);
}


/*
 * synchronous_commit: journal space is freed for what a commit reported, so
 * an asynchronous commit would lose clicks in a crash of the server.
 */

static int
referral_pg_session(referral_pg_t *pg)
{
    char  sql[640];

    (void) PQsetErrorVerbosity(pg->conn, PQERRORS_DEFAULT);

    if (PQsetnonblocking(pg->conn, 1) == -1) {
        referral_pg_lost(pg, NULL);
        return REFERRAL_ERROR;
    }

    snprintf(sql, sizeof(sql),
             "SELECT set_config('synchronous_commit',"
             " CASE current_setting('synchronous_commit')"
             "      WHEN 'off' THEN 'on'"
             "      ELSE current_setting('synchronous_commit') END, false),"
             " set_config('statement_timeout', '%llu', false),"
             " set_config('lock_timeout', '%llu', false),"
             " set_config('idle_in_transaction_session_timeout', '%llu',"
             "            false),"
             " set_config('default_transaction_isolation', 'read committed',"
             "            false),"
             " set_config('TimeZone', 'UTC', false),"
             " set_config('search_path', 'pg_catalog', false)",
             (unsigned long long) pg->settings->statement_timeout,
             (unsigned long long) pg->settings->lock_timeout,
             (unsigned long long) pg->settings->statement_timeout);

    return referral_pg_query(pg, sql, 0, NULL, NULL);
}


void
referral_pg_close(referral_pg_t *pg)
{
    if (pg->conn != NULL) {
        PQfinish(pg->conn);
        pg->conn = NULL;
    }
}


/*
 * The pause is "decorrelated jitter": random between the least and three
 * times the last one, so that many workers do not come back at once (Brooker,
 * "Exponential Backoff And Jitter", AWS 2015).
 */

void
referral_pg_failed(referral_pg_t *pg)
{
    uint32_t              r, text;
    uint64_t              now, top;
    referral_log_level_e  level;

    referral_pg_close(pg);

    now = referral_now();
    text = referral_crc32c(0, pg->error, strlen(pg->error));

    if (pg->failures++ == 0) {
        pg->since = now;
        pg->pause = REFERRAL_PG_PAUSE_MIN;
    }

    pg->retries++;
    pg->host++;

    if (getrandom(&r, sizeof(r), GRND_NONBLOCK) != sizeof(r)) {
        r = (uint32_t) now * 2654435761u;
    }

    top = pg->pause * 3;
    pg->pause = REFERRAL_PG_PAUSE_MIN + r % (top - REFERRAL_PG_PAUSE_MIN);

    if (pg->pause > REFERRAL_PG_PAUSE_MAX) {
        pg->pause = REFERRAL_PG_PAUSE_MAX;
    }

    /* the next of several hosts is worth an attempt at once */

    pg->retry = pg->failures % pg->nhosts ? now : now + pg->pause;

    if (strcmp(pg->reason, pg->sqlstate) != 0
        || (text != pg->text && now - pg->logged >= REFERRAL_PG_REWORD)
        || now - pg->logged >= REFERRAL_PG_REMIND)
    {
        pg->text = text;
        snprintf(pg->reason, sizeof(pg->reason), "%s", pg->sqlstate);
        pg->logged = now;

        level = pg->class != REFERRAL_PG_RETRY ? REFERRAL_LOG_ERROR
                : pg->quiet ? REFERRAL_LOG_DEBUG : REFERRAL_LOG_WARN;

        referral_log(level, "postgres-failed", pg->error,
                     "sqlstate=%s kind=%s attempts=%llu since_ms=%llu"
                     " name=%s",
                     pg->sqlstate,
                     pg->class == REFERRAL_PG_RETRY ? "outage" : "alarm",
                     (unsigned long long) pg->failures,
                     (unsigned long long) (now - pg->since), pg->name);
    }
}


void
referral_pg_recovered(referral_pg_t *pg)
{
    if (pg->failures) {
        referral_log(pg->quiet ? REFERRAL_LOG_DEBUG : REFERRAL_LOG_INFO,
                     "postgres-back", NULL,
                     "attempts=%llu after_ms=%llu",
                     (unsigned long long) pg->failures,
                     (unsigned long long) (referral_now() - pg->since));
    }

    pg->failures = 0;
    pg->reason[0] = '\0';
}


int
referral_pg_query(referral_pg_t *pg, const char *sql, int n,
    const char *const *values, PGresult **res)
{
    if (res != NULL) {
        *res = NULL;
    }

    if (referral_pg_send(pg, sql, n, values) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    return referral_pg_receive(pg, res);
}


int
referral_pg_send(referral_pg_t *pg, const char *sql, int n,
    const char *const *values)
{
    int  rc;

    if (n == 0) {
        rc = PQsendQuery(pg->conn, sql);

    } else {
        rc = PQsendQueryParams(pg->conn, sql, n, NULL, values, NULL, NULL, 0);
    }

    if (rc == 0) {
        referral_pg_lost(pg, NULL);
        return REFERRAL_ERROR;
    }

    if (referral_pg_flush(pg, referral_pg_deadline(pg)) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

#if (REFERRAL_FAULTS)
    referral_pg_sent(sql);
#endif

    return REFERRAL_OK;
}


int
referral_pg_receive(referral_pg_t *pg, PGresult **res)
{
    if (res != NULL) {
        *res = NULL;
    }

    return referral_pg_finish(pg, res, referral_pg_deadline(pg));
}


#if (REFERRAL_FAULTS)

/* a statement that was sent, and its answer may never be read */

static void
referral_pg_sent(const char *sql)
{
    if (strcmp(sql, "COMMIT") == 0) {
        referral_fault("worker-commit-sent");

    } else if (strstr(sql, "partition_ensure") != NULL) {
        referral_fault("partition-sent");

    } else if (strstr(sql, "DETACH PARTITION") != NULL) {
        referral_fault("partition-detach-sent");
    }
}

#endif


int
referral_pg_copy(referral_pg_t *pg, const char *sql, const u_char *data,
    size_t len)
{
    referral_pg_rest_t  rest;

    rest.data = data;
    rest.len = len;

    return referral_pg_copy_from(pg, sql, referral_pg_copy_rest, &rest);
}


static int
referral_pg_copy_rest(void *ctx, const u_char **data, size_t *len)
{
    referral_pg_rest_t  *rest;

    rest = ctx;

    *data = rest->data;
    *len = rest->len < REFERRAL_PG_PIECE ? rest->len : REFERRAL_PG_PIECE;

    rest->data += *len;
    rest->len -= *len;

    return REFERRAL_OK;
}


int
referral_pg_copy_from(referral_pg_t *pg, const char *sql,
    referral_pg_more_pt more, void *ctx)
{
    int            rc;
    size_t         len;
    uint64_t       deadline;
    PGresult      *res;
    const u_char  *data;

    deadline = referral_pg_deadline(pg);

    if (PQsendQuery(pg->conn, sql) == 0) {
        referral_pg_lost(pg, NULL);
        return REFERRAL_ERROR;
    }

    if (referral_pg_flush(pg, deadline) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    res = referral_pg_next(pg, deadline);
    if (res == NULL) {
        return REFERRAL_ERROR;
    }

    if (PQresultStatus(res) != PGRES_COPY_IN) {
        referral_pg_result_error(pg, res);
        PQclear(res);
        (void) referral_pg_finish(pg, NULL, deadline);
        return REFERRAL_ERROR;
    }

    PQclear(res);

    for ( ;; ) {

        if (more(ctx, &data, &len) != REFERRAL_OK) {
            referral_pg_lost(pg, "out of memory here");
            return REFERRAL_ERROR;
        }

        if (len == 0) {
            break;
        }

        if (referral_pg_put(pg, data, len, deadline) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }

        referral_fault("worker-copying");
    }

    for ( ;; ) {
        rc = PQputCopyEnd(pg->conn, NULL);

        if (rc == -1) {
            referral_pg_lost(pg, NULL);
            return REFERRAL_ERROR;
        }

        if (referral_pg_flush(pg, deadline) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }

        if (rc == 1) {
            break;
        }
    }

    return referral_pg_finish(pg, NULL, deadline);
}


static int
referral_pg_put(referral_pg_t *pg, const u_char *data, size_t len,
    uint64_t deadline)
{
    int  rc;

    do {
        rc = PQputCopyData(pg->conn, (const char *) data, (int) len);

        if (rc == -1) {
            referral_pg_lost(pg, NULL);
            return REFERRAL_ERROR;
        }

        if (referral_pg_flush(pg, deadline) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }

    } while (rc == 0);

    return REFERRAL_OK;
}


int
referral_pg_rollback(referral_pg_t *pg)
{
    if (pg->conn == NULL || PQstatus(pg->conn) != CONNECTION_OK) {
        return REFERRAL_ERROR;
    }

    if (PQtransactionStatus(pg->conn) == PQTRANS_IDLE) {
        return REFERRAL_OK;
    }

    return referral_pg_query(pg, "ROLLBACK", 0, NULL, NULL);
}


static int
referral_pg_flush(referral_pg_t *pg, uint64_t deadline)
{
    int  rc;

    for ( ;; ) {
        rc = PQflush(pg->conn);

        if (rc == 0) {
            return REFERRAL_OK;
        }

        /*
         * reading too: the server may be blocked on sending us something, and
         * would not read more before that
         */

        if (rc == -1 || referral_pg_wait(pg, POLLIN|POLLOUT, deadline)
                        != REFERRAL_OK)
        {
            if (rc == -1) {
                referral_pg_lost(pg, NULL);
            }

            return REFERRAL_ERROR;
        }

        if (PQconsumeInput(pg->conn) == 0) {
            referral_pg_lost(pg, NULL);
            return REFERRAL_ERROR;
        }
    }
}


/* the next result; NULL with the error kept when there is none to come */

static PGresult *
referral_pg_next(referral_pg_t *pg, uint64_t deadline)
{
    PGresult  *res;

    while (PQisBusy(pg->conn)) {

        if (referral_pg_wait(pg, POLLIN, deadline) != REFERRAL_OK) {
            return NULL;
        }

        if (PQconsumeInput(pg->conn) == 0) {
            referral_pg_lost(pg, NULL);
            return NULL;
        }
    }

    res = PQgetResult(pg->conn);

    if (res == NULL) {
        referral_pg_lost(pg, "the server answered nothing");
    }

    return res;
}


/* takes all results; the first error counts, else the last result */

static int
referral_pg_finish(referral_pg_t *pg, PGresult **res, uint64_t deadline)
{
    int              rc;
    PGresult        *r, *last;
    ExecStatusType   status;

    rc = REFERRAL_OK;
    last = NULL;

    for ( ;; ) {

        while (PQisBusy(pg->conn)) {

            if (referral_pg_wait(pg, POLLIN, deadline) != REFERRAL_OK) {
                PQclear(last);
                return REFERRAL_ERROR;
            }

            if (PQconsumeInput(pg->conn) == 0) {
                referral_pg_lost(pg, NULL);
                PQclear(last);
                return REFERRAL_ERROR;
            }
        }

        r = PQgetResult(pg->conn);
        if (r == NULL) {
            break;
        }

        status = PQresultStatus(r);

        if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK
            && rc == REFERRAL_OK)
        {
            referral_pg_result_error(pg, r);
            rc = REFERRAL_ERROR;
        }

        PQclear(last);
        last = r;

        /* a server that fell into COPY would be waited for without end */

        if (status == PGRES_COPY_IN || status == PGRES_COPY_OUT
            || status == PGRES_COPY_BOTH)
        {
            referral_pg_lost(pg, "unexpected COPY");
            PQclear(last);
            return REFERRAL_ERROR;
        }
    }

    if (rc != REFERRAL_OK || res == NULL) {
        PQclear(last);

    } else {
        *res = last;
    }

    return rc;
}


static int
referral_pg_wait(referral_pg_t *pg, short events, uint64_t deadline)
{
    uint64_t  now;

    now = referral_now();

    if (referral_wait("waiting for postgres", PQsocket(pg->conn), events,
                      now < deadline ? deadline - now : 0, 0)
        == REFERRAL_OK)
    {
        return REFERRAL_OK;
    }

    referral_pg_lost(pg, "the server did not answer in time");

    return REFERRAL_ERROR;
}


static uint64_t
referral_pg_deadline(const referral_pg_t *pg)
{
    return referral_now() + pg->settings->statement_timeout
           + REFERRAL_PG_GRACE;
}


static void
referral_pg_result_error(referral_pg_t *pg, const PGresult *res)
{
    const char  *state, *message, *detail;

    state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
    message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
    detail = PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL);

    if (state == NULL) {
        referral_pg_lost(pg, NULL);
        return;
    }

    snprintf(pg->sqlstate, sizeof(pg->sqlstate), "%.5s", state);

    pg->class = referral_pg_classify(pg->sqlstate,
                          PQresultErrorField(res, PG_DIAG_CONSTRAINT_NAME));

    /* details of refused rows may repeat them: personal data, in a log */

    if (pg->class == REFERRAL_PG_DATA) {
        detail = NULL;
    }

    snprintf(pg->error, sizeof(pg->error), "%.300s%s%.160s",
             message ? message : "no message", detail ? ": " : "",
             detail ? detail : "");
}


int
referral_pg_broken(referral_pg_t *pg)
{
    referral_pg_lost(pg, NULL);

    return REFERRAL_ERROR;
}


/*
 * The connection is gone, or of no more use.  It is closed here, so that no
 * caller can go on with it; what makes the error text must be read before.
 */

static void
referral_pg_lost(referral_pg_t *pg, const char *what)
{
    const char  *message;

    message = pg->conn != NULL ? PQerrorMessage(pg->conn) : "";

    snprintf(pg->error, sizeof(pg->error), "%.490s", what ? what : message);
    snprintf(pg->sqlstate, sizeof(pg->sqlstate), "08006");

    pg->class = REFERRAL_PG_RETRY;

    if (what == NULL) {
        referral_pg_refused(pg);
    }

    referral_pg_close(pg);
}


/*
 * The text of a refused connection is "SEVERITY:  SQLSTATE: message" and a
 * line about the server's source; no other text has such a place.
 */

static void
referral_pg_refused(referral_pg_t *pg)
{
    char  *p;

    for (p = strstr(pg->error, ":  "); p; p = strstr(p + 1, ":  ")) {
        if (strspn(p + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5
            && p[8] == ':' && p[9] == ' ')
        {
            break;
        }
    }

    if (p == NULL) {
        return;
    }

    memcpy(pg->sqlstate, p + 3, 5);
    pg->class = referral_pg_classify(pg->sqlstate, NULL);

    memmove(p + 3, p + 10, strlen(p + 10) + 1);
    p[strcspn(p, "\n")] = '\0';
}


static referral_pg_class_e
referral_pg_classify(const char *sqlstate, const char *constraint)
{
    size_t  i;

    static const struct {
        const char           *prefix;
        referral_pg_class_e   class;
    } classes[] = {
        { "22",    REFERRAL_PG_DATA },
        { "23",    REFERRAL_PG_DATA },
        { "54",    REFERRAL_PG_DATA },
        { "08",    REFERRAL_PG_RETRY },
        { "57014", REFERRAL_PG_RETRY },    /* statement_timeout, cancel */
        { "57P",   REFERRAL_PG_RETRY },    /* shutdown, starting up */
        { "53",    REFERRAL_PG_RETRY },    /* disk, memory, connections */
        { "40",    REFERRAL_PG_RETRY },    /* serialization, deadlock */
        { "55P03", REFERRAL_PG_RETRY },    /* lock_timeout */
        { "25006", REFERRAL_PG_RETRY },    /* read-only: a standby */
        { "25P03", REFERRAL_PG_RETRY },    /* idle in transaction */
        { "58",    REFERRAL_PG_RETRY }     /* input or output failed there */
    };

    /* "no partition" is a check violation of no constraint */

    if (strcmp(sqlstate, "23514") == 0 && constraint == NULL) {
        return REFERRAL_PG_PARTITION;
    }

    for (i = 0; i < sizeof(classes) / sizeof(classes[0]); i++) {
        if (strncmp(sqlstate, classes[i].prefix, strlen(classes[i].prefix))
            == 0)
        {
            return classes[i].class;
        }
    }

    return REFERRAL_PG_ALARM;
}


static void
referral_pg_notice(void *data, const PGresult *res)
{
    const char  *message;

    message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

    referral_log(REFERRAL_LOG_DEBUG, "postgres-notice",
                 message ? message : "", NULL);
}
