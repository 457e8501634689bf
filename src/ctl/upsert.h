
/*
 * Copyright (C) The nginx referral module authors
 *
 * A row of an import for which the schema has no import function: it is
 * found by its slug and changed, or made.
 */


#ifndef _CTL_UPSERT_H_INCLUDED_
#define _CTL_UPSERT_H_INCLUDED_


#include "ctl.h"

#include <jansson.h>
#include <libpq-fe.h>


/*
 * Parameters: $1 the parent's id or null, $2 the slug; find gives the id and
 * what it is like, as text.  create and update: $3 is an object of what is
 * given; status: $3 is the one wanted.
 */

typedef struct {
    const char          *find;
    const char          *create;
    const char          *update;
    const char          *status;
} ctl_upsert_t;


extern const ctl_upsert_t  ctl_upsert_org;
extern const ctl_upsert_t  ctl_upsert_program;


/*
 * Inside a transaction, which stays good: *outcome is created, updated,
 * unchanged or error, and message then says why.  Not CTL_DONE when the
 * connection is gone, which was said.
 */
int ctl_upsert(PGconn *pg, const ctl_upsert_t *u, const char *parent,
    json_t *row, const char **outcome, char *message, size_t size);


#endif /* _CTL_UPSERT_H_INCLUDED_ */
