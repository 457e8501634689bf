
/*
 * Copyright (C) The nginx referral module authors
 *
 * Partitions: those ahead, and the end of old ones.  The worker's role does
 * it, on the connection of the flush, which needs them.
 */


#ifndef _REFERRAL_MAINTAIN_H_INCLUDED_
#define _REFERRAL_MAINTAIN_H_INCLUDED_


#include "pg.h"


typedef struct {
    uint64_t             partitions;       /* when each is due, monotonic ms */
    uint64_t             retention;
} referral_maintain_t;


/* all is due at once after a connection was made */
void referral_maintain_connected(referral_maintain_t *m);

/* does what is due; REFERRAL_ERROR: Postgres failed */
int referral_maintain(referral_maintain_t *m, referral_pg_t *pg);


#endif /* _REFERRAL_MAINTAIN_H_INCLUDED_ */
