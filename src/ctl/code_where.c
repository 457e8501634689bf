
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "code.h"
#include "output.h"

#include <stdlib.h>


static int ctl_code_where(const ctl_options_t *o, const char *verb,
    unsigned *where);
static int ctl_code_env(void);


int
ctl_code_show_where(ctl_options_t *o)
{
    int       rc;
    unsigned  where;

    rc = ctl_code_where(o, "show", &where);

    if (rc != CTL_DONE) {
        return rc;
    }

    return where == CTL_OPT_DB ? ctl_call_run(o) : ctl_code_show(o);
}


int
ctl_code_list_where(ctl_options_t *o)
{
    int       rc;
    unsigned  where;

    rc = ctl_code_where(o, "list", &where);

    if (rc != CTL_DONE) {
        return rc;
    }

    if (where == CTL_OPT_DB) {
        return ctl_call_run(o);
    }

    if (o->argc > 1) {
        ctl_error("code list: \"%s\" is too much", o->argv[1]);
        return CTL_USAGE;
    }

    return ctl_code_list(o);
}


/* the command line decides, then the environment, where Postgres is first */

static int
ctl_code_where(const ctl_options_t *o, const char *verb, unsigned *where)
{
    unsigned  given;

    given = o->given & (CTL_OPT_DB|CTL_OPT_REDIS);

    if (given == (CTL_OPT_DB|CTL_OPT_REDIS)) {
        ctl_error("code %s asks Postgres with --db or Redis with --redis, not "
                  "both", verb);
        return CTL_USAGE;
    }

    if (given == 0) {
        given = (o->db != NULL || ctl_code_env()) ? CTL_OPT_DB
                : o->redis != NULL ? CTL_OPT_REDIS : 0;
    }

    if (given == 0) {
        ctl_error("where?  Give --db CONNINFO for Postgres or --redis URL for "
                  "Redis, or set REFERRAL_DB or REFERRAL_REDIS");
        return CTL_USAGE;
    }

    *where = given;

    return CTL_DONE;
}


/* libpq finds the server by itself */

static int
ctl_code_env(void)
{
    return getenv("PGHOST") != NULL || getenv("PGDATABASE") != NULL
           || getenv("PGSERVICE") != NULL;
}
