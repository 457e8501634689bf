
/*
 * Copyright (C) The nginx referral module authors
 *
 * The shared-memory zone: rules of codes, absent codes, networks of the miss
 * limit, counters.  LRU; a full zone is not an error.
 */


#ifndef _NGX_HTTP_REFERRAL_ZONE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_ZONE_H_INCLUDED_


#include "ngx_http_referral.h"
#include "ngx_http_referral_stat.h"


#define NGX_HTTP_REFERRAL_ZONE_SIZE     (16 * 1024 * 1024)
#define NGX_HTTP_REFERRAL_ZONE_VALID    60000      /* ms */
#define NGX_HTTP_REFERRAL_ZONE_INVALID  5000
#define NGX_HTTP_REFERRAL_ZONE_STALE    3600000

/* absent codes may take this part of the zone's entries */

#define NGX_HTTP_REFERRAL_ZONE_NEGATIVE  8


struct ngx_http_referral_zone_conf_s {
    ngx_shm_zone_t              *shm_zone;
    ngx_msec_t                   valid;
    ngx_msec_t                   invalid;
    ngx_msec_t                   stale;
    void                        *sh;               /* private */
    ngx_slab_pool_t             *shpool;
};


/* what an entry says; strings live in the pool given */

typedef struct {
    ngx_http_referral_rule_t     rule;
    referral_verdict_e           verdict;          /* judged for now */
    unsigned                     fresh:1;          /* else stale: refresh */
    unsigned                     refresh:1;        /* and it is up to you */
} ngx_http_referral_zone_entry_t;


/* directive: referral_zone size [valid=time] [invalid=time] [stale=time] */
char *ngx_http_referral_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* makes the default zone when the directive is absent */
char *ngx_http_referral_zone_init_conf(ngx_conf_t *cf,
    ngx_http_referral_main_conf_t *rmcf);

/* points ngx_http_referral_stat at this worker's slot */
void ngx_http_referral_zone_init_process(ngx_http_referral_main_conf_t *rmcf);

/*
 * NGX_OK: entry is set, copied to the pool.  NGX_DECLINED: nothing that could
 * be served.  NGX_ERROR: no memory in the pool.  A stale entry asks only one
 * caller a second to refresh it.
 */
ngx_int_t ngx_http_referral_zone_get(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, ngx_pool_t *pool, ngx_http_referral_zone_entry_t *entry);

/*
 * Stores what Redis said; rule NULL: the code is absent.  An older version
 * does not replace a newer one.  No memory, even after eviction: nothing is
 * stored, counted.
 */
void ngx_http_referral_zone_set(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, referral_rule_t *rule);


#endif /* _NGX_HTTP_REFERRAL_ZONE_H_INCLUDED_ */
