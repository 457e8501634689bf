
/*
 * Copyright (C) The nginx referral module authors
 *
 * The journal in nginx: this worker's stream and the timer that serves it.
 */


#ifndef _NGX_HTTP_REFERRAL_JOURNAL_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_JOURNAL_H_INCLUDED_


#include "ngx_http_referral.h"
#include "referral_record.h"
#include "referral_writer.h"


struct ngx_http_referral_journal_conf_s {
    ngx_str_t                    path;             /* NUL-terminated */
    off_t                        size;
    size_t                       segment;
    ngx_msec_t                   sync;             /* 0: off */
};


/* directive: referral_journal path [size=] [segment=] [sync=time|off] */
char *ngx_http_referral_journal(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/*
 * Tests the path as the worker user would use it, in a child process, and
 * the size against worker_processes.  To be called when both are known, and
 * not by "nginx -s": while zones are initialised.
 */
ngx_int_t ngx_http_referral_journal_check(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf);

void ngx_http_referral_journal_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf);
void ngx_http_referral_journal_exit_process(void);

/*
 * Encodes and appends.  NGX_OK: accepted.  NGX_DECLINED: over the noise
 * budget, counted.  NGX_ERROR: full or broken, counted, logged once a
 * second.  No system call.
 */
ngx_int_t ngx_http_referral_journal_append(referral_record_t *rec);

/* NULL when there is no stream in this process */
referral_writer_t *ngx_http_referral_journal_writer(void);


#endif /* _NGX_HTTP_REFERRAL_JOURNAL_H_INCLUDED_ */
