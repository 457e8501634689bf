
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral_stat.h"


/* counts are safe to make in processes that have no zone, and before init */

static ngx_http_referral_stat_t  ngx_http_referral_stat_none;

ngx_http_referral_stat_t  *ngx_http_referral_stat =
    &ngx_http_referral_stat_none;


const ngx_uint_t
    ngx_http_referral_stat_bounds[NGX_HTTP_REFERRAL_STAT_BUCKETS - 1] =
{
    100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000,
    500000, 1000000
};


void
ngx_http_referral_stat_init_process(ngx_http_referral_stat_t *slots)
{
    ngx_uint_t           i;
    ngx_atomic_uint_t    pid;

    /* of workers that were killed */

    for (i = 0; i < NGX_HTTP_REFERRAL_STAT_SLOTS; i++) {
        pid = slots[i].pid;

        if (pid != 0 && kill((ngx_pid_t) pid, 0) == -1
            && ngx_errno == NGX_ESRCH)
        {
            (void) ngx_atomic_cmp_set(&slots[i].pid, pid, 0);
        }
    }

    for (i = 0; i < NGX_HTTP_REFERRAL_STAT_SLOTS; i++) {

        if (slots[i].pid == 0
            && ngx_atomic_cmp_set(&slots[i].pid, 0, ngx_pid))
        {
            break;
        }
    }

    if (i == NGX_HTTP_REFERRAL_STAT_SLOTS) {
        ngx_http_referral_stat = &slots[ngx_worker
                                        % NGX_HTTP_REFERRAL_STAT_SLOTS];
        return;
    }

    ngx_http_referral_stat = &slots[i];

    ngx_memzero((void *) &slots[i].unsynced,
                offsetof(ngx_http_referral_stat_t, padding)
                - offsetof(ngx_http_referral_stat_t, unsynced));
}


void
ngx_http_referral_stat_exit_process(void)
{
    (void) ngx_atomic_cmp_set(&ngx_http_referral_stat->pid, ngx_pid, 0);
}


uint64_t
ngx_http_referral_stat_clock(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}


void
ngx_http_referral_stat_latency(uint64_t started)
{
    uint64_t    us;
    ngx_uint_t  i;

    us = ngx_http_referral_stat_clock() - started;

    for (i = 0; i < NGX_HTTP_REFERRAL_STAT_BUCKETS - 1; i++) {
        if (us <= ngx_http_referral_stat_bounds[i]) {
            break;
        }
    }

    ngx_http_referral_count(latency[i]);
    ngx_http_referral_count_n(latency_sum, us);
}
