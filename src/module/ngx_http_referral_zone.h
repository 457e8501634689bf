
/*
 * Copyright (C) The nginx referral module authors
 *
 * The shared-memory zone: rules of codes, absent codes, networks of the miss
 * limit, counters.  What is not used goes first; a full zone is not an error.
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

/* and so may the networks of the miss limit */

#define NGX_HTTP_REFERRAL_ZONE_NETWORKS  8

/* a network: the length of its addresses, then their first 64 bits */

#define NGX_HTTP_REFERRAL_NETWORK_LEN    9


typedef struct ngx_http_referral_zone_sh_s  ngx_http_referral_zone_sh_t;


/* what a read of Redis has to find unchanged when its reply is stored */

typedef struct {
    uint32_t                      epoch;           /* of the zone */
    uint32_t                      generation;      /* of the code's bucket */
} ngx_http_referral_zone_token_t;


struct ngx_http_referral_zone_conf_s {
    ngx_shm_zone_t               *shm_zone;
    ngx_msec_t                    valid;
    ngx_msec_t                    invalid;
    ngx_msec_t                    stale;
    uint32_t                      source;          /* of this worker's codes */
    ngx_http_referral_zone_sh_t  *sh;              /* private to the file */
    ngx_slab_pool_t              *shpool;
};


/* what an entry says; strings live in the pool given */

typedef struct {
    ngx_http_referral_rule_t     rule;
    referral_verdict_e           verdict;          /* judged for now */
    unsigned                     fresh:1;          /* else stale: refresh */
    unsigned                     refresh:1;        /* and it is up to you */
    unsigned                     unsure:1;         /* changes were missed */
} ngx_http_referral_zone_entry_t;


/* how the zone is filled; sizes in blocks of memory */

typedef struct {
    ngx_uint_t                   codes;
    ngx_uint_t                   absent;           /* codes known as absent */
    ngx_uint_t                   networks;         /* of the miss limit */
    ngx_uint_t                   used;
    ngx_uint_t                   capacity;
    ngx_uint_t                   epoch;
    ngx_uint_t                   covered;          /* 0, 1 */
    ngx_uint_t                   off;              /* of referral:off */
} ngx_http_referral_zone_usage_t;


/* directive: referral_zone size [valid=time] [invalid=time] [stale=time] */
char *ngx_http_referral_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* makes the default zone when the directive is absent */
char *ngx_http_referral_zone_init_conf(ngx_conf_t *cf,
    ngx_http_referral_main_conf_t *rmcf);

/*
 * Takes a slot for this worker's counters.  When a reload names another Redis,
 * what the zone has is of the former one: unsure, and workers that are left
 * read it, but change it no more.
 */
void ngx_http_referral_zone_init_process(ngx_http_referral_main_conf_t *rmcf);

/* NGX_HTTP_REFERRAL_STAT_SLOTS slots to add up; NULL before the zone is */
ngx_http_referral_stat_t *ngx_http_referral_zone_stat(
    ngx_http_referral_zone_conf_t *zcf);

void ngx_http_referral_zone_usage(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_usage_t *usage);

/*
 * The hash of a code that will be asked for: where its entry stands is fetched
 * while the caller does something else.
 */
uint32_t ngx_http_referral_zone_expect(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code);

/* then the entry itself, if the caller has more to do */
void ngx_http_referral_zone_expect_entry(ngx_http_referral_zone_conf_t *zcf,
    uint32_t hash);

/*
 * NGX_OK: entry is set, copied to the pool.  NGX_DECLINED: nothing that could
 * be served.  NGX_ERROR: no memory in the pool.  A stale entry asks only one
 * caller a second to refresh it.  A code known as absent is served while
 * "invalid" lasts and no longer.  An unsure entry is the answer only when
 * Redis cannot be asked.
 */
ngx_int_t ngx_http_referral_zone_get(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, uint32_t hash, ngx_pool_t *pool,
    ngx_http_referral_zone_entry_t *entry);

/* to be taken before the read is written to Redis */
void ngx_http_referral_zone_token(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, ngx_http_referral_zone_token_t *token);

/*
 * Stores what Redis said; rule NULL: the code is absent.
 *
 *   NGX_OK        stored; or no memory, even after eviction: counted
 *   NGX_AGAIN     the code may have changed since the token was taken
 *   NGX_DECLINED  an older version than one that was announced, or that is
 *                 here, of this generation, and can still be served; version
 *                 0 (a hash written by hand) and absence are never older
 */
ngx_int_t ngx_http_referral_zone_set(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, referral_rule_t *rule,
    ngx_http_referral_zone_token_t *token);

/*
 * Takes one from the leaky bucket of a network; rate and burst in 0.001
 * requests (a second).  NGX_OK, or NGX_BUSY when nothing is left.
 */
ngx_int_t ngx_http_referral_zone_take(ngx_http_referral_zone_conf_t *zcf,
    u_char key[NGX_HTTP_REFERRAL_NETWORK_LEN], ngx_uint_t rate,
    ngx_uint_t burst);


#endif /* _NGX_HTTP_REFERRAL_ZONE_H_INCLUDED_ */
