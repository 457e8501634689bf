
/*
 * Copyright (C) The nginx referral module authors
 *
 * Webhooks: deliveries are claimed in Postgres under a lease, sent, and their
 * results recorded; all rules are in sql/0013_outbox.sql.  A thread, which
 * may die at any moment: what it had claimed is due again when its lease is
 * over.
 */


#ifndef _REFERRAL_WEBHOOK_H_INCLUDED_
#define _REFERRAL_WEBHOOK_H_INCLUDED_


#include "pg.h"
#include "send.h"
#include "thread.h"


typedef struct {
    referral_thread_t          thread;
    const referral_settings_t *settings;

    referral_pg_t              pg;
    referral_send_t            send;
    referral_buf_t             results;

    uint64_t                   looked;     /* for deliveries, monotonic ms */
    unsigned                   look:1;     /* there may be some */

    uint64_t                   since;      /* of the lines about dead ones */
    unsigned                   lines;
} referral_webhook_t;


/* REFERRAL_ERROR: logged; the settings must not change before it is stopped */
int referral_webhook_start(referral_webhook_t *w,
    const referral_settings_t *settings);

/* as referral_thread_stop() */
int referral_webhook_stop(referral_webhook_t *w);


#endif /* _REFERRAL_WEBHOOK_H_INCLUDED_ */
