
/*
 * Copyright (C) The nginx referral module authors
 *
 * Postgres: a connection, and statements that must succeed.
 */


#ifndef _CTL_PG_H_INCLUDED_
#define _CTL_PG_H_INCLUDED_


#include "ctl.h"

#include <libpq-fe.h>


/* CTL_DONE, or the exit code after saying what failed */
int ctl_pg_open(PGconn **pg, const ctl_options_t *o);

/*
 * A statement with text parameters.  NULL after saying what failed: *rc is
 * CTL_UNREACHABLE when the connection is gone, else CTL_FOUND.
 */
PGresult *ctl_pg_query(PGconn *pg, int *rc, const char *sql, int n,
    const char **params);

/*
 * Says why a statement failed; what, if any, names it.  The result may be
 * NULL.  Returns the exit code.
 */
int ctl_pg_failed(PGconn *pg, const PGresult *result, const char *what);

/* statements without parameters, many at once; what names them in messages */
int ctl_pg_run(PGconn *pg, const char *sql, const char *what);


#endif /* _CTL_PG_H_INCLUDED_ */
