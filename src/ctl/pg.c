
/*
 * Copyright (C) The nginx referral module authors
 */


#include "pg.h"
#include "output.h"

#include <string.h>


static void ctl_pg_notice(void *data, const PGresult *result);
static const char *ctl_pg_advice(const char *state, const char *hint);


int
ctl_pg_open(PGconn **pg, const ctl_options_t *o)
{
    size_t       n;
    const char  *names[8], *values[8];

    n = 0;

    names[n] = "connect_timeout";
    values[n++] = "10";
    names[n] = "fallback_application_name";
    values[n++] = "referralctl";

    /* what stands in the conninfo comes later, and wins */

    if (o->db != NULL) {
        names[n] = "dbname";
        values[n++] = o->db;
    }

    names[n] = NULL;
    values[n] = NULL;

    *pg = PQconnectdbParams(names, values, 1);

    if (*pg == NULL || PQstatus(*pg) != CONNECTION_OK) {
        ctl_error("postgres: %s", *pg ? PQerrorMessage(*pg)
                                      : "out of memory");
        PQfinish(*pg);
        *pg = NULL;
        return CTL_UNREACHABLE;
    }

    PQsetNoticeReceiver(*pg, ctl_pg_notice, NULL);

    return CTL_DONE;
}


static void
ctl_pg_notice(void *data, const PGresult *result)
{
    const char  *severity, *text;

    severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);
    text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

    if (severity != NULL && text != NULL && strcmp(severity, "WARNING") == 0) {
        ctl_error("postgres warns: %s", text);
    }
}


PGresult *
ctl_pg_query(PGconn *pg, int *rc, const char *sql, int n,
    const char **params)
{
    PGresult  *result;

    *rc = CTL_DONE;
    result = PQexecParams(pg, sql, n, NULL, params, NULL, NULL, 0);

    if (PQresultStatus(result) == PGRES_TUPLES_OK
        || PQresultStatus(result) == PGRES_COMMAND_OK)
    {
        return result;
    }

    *rc = ctl_pg_failed(pg, result, NULL);
    PQclear(result);

    return NULL;
}


int
ctl_pg_run(PGconn *pg, const char *sql, const char *what)
{
    int        rc;
    PGresult  *result;

    rc = CTL_DONE;
    result = PQexec(pg, sql);

    if (PQresultStatus(result) != PGRES_TUPLES_OK
        && PQresultStatus(result) != PGRES_COMMAND_OK
        && PQresultStatus(result) != PGRES_COPY_OUT)
    {
        rc = ctl_pg_failed(pg, result, what);
    }

    PQclear(result);

    return rc;
}


int
ctl_pg_failed(PGconn *pg, const PGresult *result, const char *what)
{
    const char  *state, *text, *detail, *hint;

    state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);
    hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);

    /* the schema's own errors are written to be read as they are */

    if (state != NULL && text != NULL && strncmp(state, "RF", 2) == 0) {
        ctl_error("%s%s%s (%s)%s%s%s%s", what ? what : "", what ? ": " : "",
                  text, state, detail ? "; " : "", detail ? detail : "",
                  hint ? ". " : "", hint ? hint : "");
        return CTL_FOUND;
    }

    hint = ctl_pg_advice(state, hint);

    ctl_error("postgres: %s%s%s%s%s%s%s%s%s%s", what ? what : "",
              what ? ": " : "", text ? text : PQerrorMessage(pg),
              state ? " (SQLSTATE " : "", state ? state : "",
              state ? ")" : "", detail ? "; " : "", detail ? detail : "",
              hint ? "; " : "", hint ? hint : "");

    /* a server that shuts down says so before the connection is gone */

    if (PQstatus(pg) != CONNECTION_OK
        || (state != NULL && (strncmp(state, "57P0", 4) == 0
                              || strncmp(state, "08", 2) == 0)))
    {
        return CTL_UNREACHABLE;
    }

    return CTL_FOUND;
}


static const char *
ctl_pg_advice(const char *state, const char *hint)
{
    size_t  i;

    static const struct {
        const char  *state;
        const char  *advice;
    } advices[] = {
        { "3F000", "is this the database?  referralctl db upgrade makes the "
                   "schema" },
        { "42P01", "referralctl db upgrade brings the schema up to date" },
        { "42883", "referralctl db upgrade brings the schema up to date" },
        { "42501", "log in as a role that was granted referral_app" }
    };

    for (i = 0; state && i < sizeof(advices) / sizeof(advices[0]); i++) {

        if (strcmp(state, advices[i].state) == 0) {
            return advices[i].advice;
        }
    }

    return hint;
}
