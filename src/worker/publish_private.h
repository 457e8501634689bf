
/*
 * Copyright (C) The nginx referral module authors
 *
 * What the files of the publisher share.  Functions return REFERRAL_OK;
 * REFERRAL_ERROR when a server failed (both connections are given up);
 * REFERRAL_DONE when the thread is to stop; REFERRAL_DECLINED when what Redis
 * or Postgres has is not what was left there: everything is read again.
 */


#ifndef _REFERRAL_PUBLISH_PRIVATE_H_INCLUDED_
#define _REFERRAL_PUBLISH_PRIVATE_H_INCLUDED_


#include "publish.h"


/* columns of referral.publish_collect() */

typedef enum {
    REFERRAL_PUBLISH_SNAPSHOT = 0,
    REFERRAL_PUBLISH_PENDING,
    REFERRAL_PUBLISH_OFF_SET,
    REFERRAL_PUBLISH_VERSION,
    REFERRAL_PUBLISH_WORK,
    REFERRAL_PUBLISH_MORE,
    REFERRAL_PUBLISH_SCAN,
    REFERRAL_PUBLISH_WAITED,
    REFERRAL_PUBLISH_WHOLE,
    REFERRAL_PUBLISH_ASKED,
    REFERRAL_PUBLISH_CODE,
    REFERRAL_PUBLISH_URL,
    REFERRAL_PUBLISH_STATE,
    REFERRAL_PUBLISH_NOT_BEFORE,
    REFERRAL_PUBLISH_EXPIRES,
    REFERRAL_PUBLISH_CODE_ID,
    REFERRAL_PUBLISH_PROGRAM_ID,
    REFERRAL_PUBLISH_REFERRER_ID,
    REFERRAL_PUBLISH_CAMPAIGN,
    REFERRAL_PUBLISH_RULES,
    REFERRAL_PUBLISH_LOUD
} referral_publish_column_e;


#define referral_publish_is(res, column)                                     \
    (PQgetvalue(res, 0, column)[0] == 't')


/* publish_script.c: what is sent to Redis */

/*
 * Takes the fence.  generation and batch are what Redis has, -1: nothing;
 * above is set when it has that fence or a higher one, which was left alone.
 */
int referral_publish_take(referral_publish_t *p, int64_t *generation,
    int64_t *batch, unsigned *ready, int64_t *above);

/* a new generation that is not ready */
int referral_publish_reset(referral_publish_t *p);

/* compares what Redis says about itself */
int referral_publish_look(referral_publish_t *p);

/* makes referral:off what it has to be */
int referral_publish_off(referral_publish_t *p, const char *members);

/*
 * Writes the codes of the result (from row 1 on) as the next batch; ready:
 * with it the generation is.
 */
int referral_publish_write(referral_publish_t *p, const PGresult *res,
    unsigned ready);

/* deletes hashes, in no batch */
int referral_publish_delete(referral_publish_t *p, const char **codes,
    size_t n);

/* REFERRAL_DECLINED for an answer of a script that is not "ok" */
int referral_publish_answer(referral_publish_t *p, const char *word);


/* publish_search.c: a slice of all keys; *done after the last one */
int referral_publish_search(referral_publish_t *p, unsigned *done);


/* publish.c */

/* a query with numbers and texts; an error is REFERRAL_ERROR */
int referral_publish_query(referral_publish_t *p, const char *sql, int n,
    const char *const *values, PGresult **res);


#endif /* _REFERRAL_PUBLISH_PRIVATE_H_INCLUDED_ */
