
/*
 * Copyright (C) The nginx referral module authors
 *
 * Giving journal space back.  Only what Postgres has, as a writable primary
 * just said, and only after it was seen there for as long as "retention":
 * that heals a failover to a server that lacks the last commits.  Space comes
 * before retention; nothing unread is ever freed.
 */


#ifndef _REFERRAL_FREE_H_INCLUDED_
#define _REFERRAL_FREE_H_INCLUDED_


#include "pg.h"
#include "source_journal.h"


/*
 * Reads the cursors of all streams and frees what may go.  A cursor that went
 * back makes the flush read it again.  REFERRAL_ERROR: Postgres failed.
 */
int referral_free(referral_source_journal_t *j, referral_pg_t *pg,
    uint64_t retention);


#endif /* _REFERRAL_FREE_H_INCLUDED_ */
