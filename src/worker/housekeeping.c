
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdlib.h>
#include <string.h>

#include "housekeeping.h"
#include "log.h"
#include "signals.h"


/* milliseconds */

#define REFERRAL_HOUSEKEEPING_PAUSE  60000

/* full slices of one part in a row, before the others have their turn */

#define REFERRAL_HOUSEKEEPING_TURNS  100


static void referral_housekeeping_run(void *data);
static int referral_housekeeping_round(referral_pg_t *pg);
static int referral_housekeeping_part(referral_pg_t *pg, const char *part,
    long slice);
static int referral_housekeeping_failed(referral_pg_t *pg, const char *part);


void
referral_housekeeping_start(referral_housekeeping_t *h,
    const referral_settings_t *settings)
{
    if (h->thread.running) {
        return;
    }

    memset(h, 0, sizeof(referral_housekeeping_t));

    referral_pg_init(&h->pg, settings);
    h->pg.name = "referral-housekeeping";
    h->pg.quiet = 1;

    h->thread.name = "housekeeping";
    h->thread.run = referral_housekeeping_run;
    h->thread.data = h;

    (void) referral_thread_start(&h->thread);
}


int
referral_housekeeping_stop(referral_housekeeping_t *h)
{
    return referral_thread_stop(&h->thread);
}


static void
referral_housekeeping_run(void *data)
{
    int                       rc;
    uint64_t                  now;
    referral_housekeeping_t  *h;

    h = data;

    while (!referral_stopping()) {

        now = referral_now();

        if (now < h->pg.retry) {
            (void) referral_wait("postgres", -1, 0, h->pg.retry - now, 1);
            continue;
        }

        rc = REFERRAL_OK;

        if (!referral_pg_connected(&h->pg)) {
            rc = referral_pg_connect(&h->pg);
        }

        if (rc == REFERRAL_OK) {
            rc = referral_housekeeping_round(&h->pg);
        }

        if (rc == REFERRAL_ERROR) {
            referral_pg_failed(&h->pg);
            continue;
        }

        if (rc == REFERRAL_OK) {
            referral_pg_recovered(&h->pg);
            (void) referral_wait("housekeeping", -1, 0,
                                 REFERRAL_HOUSEKEEPING_PAUSE, 1);
        }
    }

    referral_pg_close(&h->pg);
}


static int
referral_housekeeping_round(referral_pg_t *pg)
{
    int        i, n, rc;
    PGresult  *res;

    rc = referral_pg_query(pg, "SELECT part, coalesce(slice, 0)"
                           " FROM referral.housekeeping_part ORDER BY place",
                           0, NULL, &res);
    if (rc != REFERRAL_OK) {
        return referral_housekeeping_failed(pg, "list");
    }

    n = PQntuples(res);

    for (i = 0; i < n && rc == REFERRAL_OK; i++) {

        if (referral_stopping()) {
            rc = REFERRAL_DONE;
            break;
        }

        rc = referral_housekeeping_part(pg, PQgetvalue(res, i, 0),
                                        atol(PQgetvalue(res, i, 1)));
    }

    PQclear(res);

    return rc;
}


/* a full slice: there is more */

static int
referral_housekeeping_part(referral_pg_t *pg, const char *part, long slice)
{
    long         done;
    PGresult    *res;
    unsigned     i;
    const char  *values[1];

    values[0] = part;

    for (i = 0; i < REFERRAL_HOUSEKEEPING_TURNS; i++) {

        if (referral_pg_query(pg, "SELECT done"
                              " FROM referral.housekeeping(now(), $1)",
                              1, values, &res)
            != REFERRAL_OK)
        {
            return referral_housekeeping_failed(pg, part);
        }

        done = atol(PQgetvalue(res, 0, 0));
        PQclear(res);

        if (slice == 0 || done < slice || referral_stopping()) {
            break;
        }
    }

    return REFERRAL_OK;
}


/*
 * What the server refused is tried again in the next round, and the other
 * parts do not wait for it.  A lost connection is an error, as everywhere.
 */

static int
referral_housekeeping_failed(referral_pg_t *pg, const char *part)
{
    if (!referral_pg_connected(pg)) {
        return REFERRAL_ERROR;
    }

    referral_log(pg->class == REFERRAL_PG_RETRY ? REFERRAL_LOG_WARN
                                                : REFERRAL_LOG_ERROR,
                 "housekeeping-failed", pg->error, "part=%s sqlstate=%s",
                 part, pg->sqlstate);

    return REFERRAL_OK;
}
