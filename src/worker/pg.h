
/*
 * Copyright (C) The nginx referral module authors
 *
 * The connection to Postgres: one struct owns the connection, what its last
 * error was and when to try again.  Nothing here blocks beyond a deadline,
 * except name resolution inside libpq.
 */


#ifndef _REFERRAL_PG_H_INCLUDED_
#define _REFERRAL_PG_H_INCLUDED_


#include <libpq-fe.h>

#include "referral_core.h"
#include "settings.h"


/* what an error means to the flush, by its SQLSTATE */

typedef enum {
    REFERRAL_PG_RETRY = 0,      /* outage, conflict, no space: it will pass */
    REFERRAL_PG_ALARM,          /* rights, schema: somebody must act */
    REFERRAL_PG_PARTITION,      /* no partition for the row */
    REFERRAL_PG_DATA            /* a row that will never be accepted */
} referral_pg_class_e;


typedef struct {
    PGconn                     *conn;
    const referral_settings_t  *settings;
    const char                 *name;      /* application_name */
    unsigned                    quiet:1;   /* another tells of outages */

    unsigned                    host;      /* which of several is next */
    unsigned                    nhosts;

    char                        sqlstate[6];
    referral_pg_class_e         class;     /* of the last error */
    char                        error[REFERRAL_ERROR_LEN];

    uint64_t                    pause;     /* ms, of the last back-off */
    uint64_t                    retry;     /* when to try again */

    uint64_t                    failures;  /* in a row */
    uint64_t                    since;     /* of the first of them */
    uint64_t                    logged;
    char                        reason[6]; /* SQLSTATE as last logged */
    uint32_t                    text;      /* checksum of the text logged */
    uint64_t                    retries;   /* ever */
} referral_pg_t;


#define referral_pg_connected(pg)  ((pg)->conn != NULL)


void referral_pg_init(referral_pg_t *pg, const referral_settings_t *settings);

/*
 * Connects and prepares the session.  REFERRAL_OK; REFERRAL_ERROR, the error
 * is kept; REFERRAL_DONE: asked to stop.
 */
int referral_pg_connect(referral_pg_t *pg);
void referral_pg_close(referral_pg_t *pg);

/*
 * After a failure: closes the connection (all state of a session is suspect
 * then, and a new one reads its cursors again), logs a change of state, and
 * sets the time of the next attempt.
 */
void referral_pg_failed(referral_pg_t *pg);

/* after a success of what had failed */
void referral_pg_recovered(referral_pg_t *pg);

/* libpq said that the connection is lost: keeps that, is REFERRAL_ERROR */
int referral_pg_broken(referral_pg_t *pg);

/*
 * Runs a query.  With no values it may hold several statements, the result is
 * the last one's.  *res (res may be NULL) is to be cleared by the caller, and
 * is NULL unless REFERRAL_OK was returned.
 */
int referral_pg_query(referral_pg_t *pg, const char *sql, int n,
    const char *const *values, PGresult **res);

/* the same in two steps, between which the server has something to do */
int referral_pg_send(referral_pg_t *pg, const char *sql, int n,
    const char *const *values);
int referral_pg_receive(referral_pg_t *pg, PGresult **res);

/* COPY ... FROM STDIN of all the data */
int referral_pg_copy(referral_pg_t *pg, const char *sql, const u_char *data,
    size_t len);

/*
 * The same with data that is made while the server takes what it has: more()
 * sets the next piece, one of length 0 at the end.
 */
typedef int (*referral_pg_more_pt)(void *ctx, const u_char **data,
    size_t *len);

int referral_pg_copy_from(referral_pg_t *pg, const char *sql,
    referral_pg_more_pt more, void *ctx);

/* ends a transaction that failed, when the connection still lives */
int referral_pg_rollback(referral_pg_t *pg);


#endif /* _REFERRAL_PG_H_INCLUDED_ */
