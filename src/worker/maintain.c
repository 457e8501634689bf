
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "referral_fault.h"
#include "log.h"
#include "maintain.h"
#include "signals.h"


/* milliseconds */

#define REFERRAL_MAINTAIN_PARTITIONS    3600000
#define REFERRAL_MAINTAIN_RETENTION     3600000
#define REFERRAL_MAINTAIN_AGAIN         60000   /* after a failure */

#define REFERRAL_MAINTAIN_AHEAD         "3"     /* days */


static int referral_maintain_failed(referral_pg_t *pg, const char *work,
    int rc);
static int referral_maintain_partitions(referral_pg_t *pg);
static int referral_maintain_retention(referral_pg_t *pg);
static int referral_maintain_expire(referral_pg_t *pg, const char *name,
    unsigned attached, unsigned detaching);
static int referral_maintain_query(referral_pg_t *pg, const char *sql);


void
referral_maintain_connected(referral_maintain_t *m)
{
    memset(m, 0, sizeof(referral_maintain_t));
}


int
referral_maintain(referral_maintain_t *m, referral_pg_t *pg)
{
    int       rc;
    uint64_t  now;

    now = referral_now();
    rc = REFERRAL_OK;

    if (now >= m->partitions) {
        rc = referral_maintain_partitions(pg);
        m->partitions = now + (rc == REFERRAL_OK
                               ? REFERRAL_MAINTAIN_PARTITIONS
                               : REFERRAL_MAINTAIN_AGAIN);
        rc = referral_maintain_failed(pg, "partitions", rc);
    }

    if (rc == REFERRAL_OK && now >= m->retention) {
        m->retention = now + REFERRAL_MAINTAIN_RETENTION;

        if (pg->settings->retention_interactions[0] != '\0') {
            rc = referral_maintain_retention(pg);
        }
    }

    return rc;
}


/*
 * What the server refused is tried again later, and the clicks do not wait
 * for it.  A lost connection is an error, as everywhere.
 */

static int
referral_maintain_failed(referral_pg_t *pg, const char *work, int rc)
{
    if (rc == REFERRAL_OK || !referral_pg_connected(pg)) {
        return rc;
    }

    referral_log(pg->class == REFERRAL_PG_RETRY ? REFERRAL_LOG_WARN
                                                : REFERRAL_LOG_ERROR,
                 "maintain-failed", pg->error, "work=%s sqlstate=%s", work,
                 pg->sqlstate);

    return REFERRAL_OK;
}


static int
referral_maintain_partitions(referral_pg_t *pg)
{
    int        made;
    PGresult  *res;

    if (referral_pg_query(pg, "SELECT referral.partitions_ahead("
                          REFERRAL_MAINTAIN_AHEAD ")", 0, NULL, &res)
        != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    made = atoi(PQgetvalue(res, 0, 0));
    PQclear(res);

    if (made) {
        referral_log(REFERRAL_LOG_INFO, "partitions-ahead", NULL, "made=%d",
                     made);
    }

    return REFERRAL_OK;
}


/*
 * Only whole days go.  A reader that holds a partition makes us give up until
 * the next time, so that the flush does not wait for it.
 */

static int
referral_maintain_retention(referral_pg_t *pg)
{
    int          i, n, rc;
    char         sql[160];
    PGresult    *res;
    const char  *values[1];

    values[0] = pg->settings->retention_interactions;

    if (referral_pg_query(pg, "SELECT name, attached, detaching"
                          " FROM referral.interaction_partition"
                          " WHERE day < ((now() AT TIME ZONE 'UTC')"
                          " - $1::interval)::date"
                          " AND (attached OR expired) ORDER BY day",
                          1, values, &res)
        != REFERRAL_OK)
    {
        return referral_maintain_failed(pg, "retention", REFERRAL_ERROR);
    }

    n = PQntuples(res);

    if (n == 0) {
        PQclear(res);
        return REFERRAL_OK;
    }

    snprintf(sql, sizeof(sql), "SET ROLE referral_partitions;"
             "SET statement_timeout = %llu",
             (unsigned long long) pg->settings->lock_timeout * 2);

    rc = referral_pg_query(pg, sql, 0, NULL, NULL);

    for (i = 0; i < n && rc == REFERRAL_OK && !referral_quit; i++) {
        rc = referral_maintain_expire(pg, PQgetvalue(res, i, 0),
                                      PQgetvalue(res, i, 1)[0] == 't',
                                      PQgetvalue(res, i, 2)[0] == 't');
    }

    PQclear(res);

    if (!referral_pg_connected(pg)) {
        return REFERRAL_ERROR;
    }

    snprintf(sql, sizeof(sql), "RESET ROLE; SET statement_timeout = %llu",
             (unsigned long long) pg->settings->statement_timeout);

    if (rc != REFERRAL_OK) {
        referral_log(pg->class == REFERRAL_PG_RETRY ? REFERRAL_LOG_INFO
                                                    : REFERRAL_LOG_ERROR,
                     "retention-failed", pg->error, "sqlstate=%s",
                     pg->sqlstate);
    }

    return referral_pg_query(pg, sql, 0, NULL, NULL);
}


/*
 * The comment tells our detached tables from those that somebody detached to
 * keep them, when we are stopped between the steps.
 */

static int
referral_maintain_expire(referral_pg_t *pg, const char *name,
    unsigned attached, unsigned detaching)
{
    char  sql[256];

    if (attached) {
        snprintf(sql, sizeof(sql),
                 "COMMENT ON TABLE referral.%s IS 'expired'", name);

        if (referral_maintain_query(pg, sql) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }

        referral_fault("partition-expired");

        snprintf(sql, sizeof(sql), "ALTER TABLE referral.interaction"
                 " DETACH PARTITION referral.%s %s", name,
                 detaching ? "FINALIZE" : "CONCURRENTLY");

        if (referral_maintain_query(pg, sql) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }

        referral_fault("partition-detached");
    }

    snprintf(sql, sizeof(sql), "DROP TABLE referral.%s", name);

    if (referral_maintain_query(pg, sql) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    referral_fault("partition-dropped");

    referral_log(REFERRAL_LOG_INFO, "partition-expired", NULL, "table=%s",
                 name);

    return REFERRAL_OK;
}


static int
referral_maintain_query(referral_pg_t *pg, const char *sql)
{
    return referral_pg_query(pg, sql, 0, NULL, NULL);
}
