
/*
 * Copyright (C) The nginx referral module authors
 *
 * How the memory of the zone is laid out.
 */


#ifndef _NGX_HTTP_REFERRAL_ZONE_PRIVATE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_ZONE_PRIVATE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_referral.h"
#include "ngx_http_referral_zone.h"
#include "ngx_http_referral_zone_cover.h"


#define NGX_HTTP_REFERRAL_ZONE_BLOCK  128          /* bytes */

/* workers whose subscriptions count, those of old cycles among them */

#define NGX_HTTP_REFERRAL_ZONE_SLOTS  128


typedef struct ngx_http_referral_zone_block_s  ngx_http_referral_zone_block_t;

struct ngx_http_referral_zone_block_s {
    ngx_http_referral_zone_block_t   *next;
    u_char                            data[NGX_HTTP_REFERRAL_ZONE_BLOCK
                                           - sizeof(void *)];
};


/* what a code and a network have in common, at the start of their blocks */

typedef struct {
    ngx_rbtree_node_t                 node;
    ngx_queue_t                       queue;
    ngx_http_referral_zone_block_t   *next;
} ngx_http_referral_zone_node_t;


/*
 * A code.  After the structure stand the code, then the rule, the url and
 * the campaign unless the code is absent; they flow over into more blocks.
 */

typedef struct {
    ngx_http_referral_zone_node_t     base;
    ngx_msec_t                        fetched;
    uint32_t                          epoch;       /* it was read in */
    uint32_t                          refreshed;   /* ms, low bits */
    uint16_t                          url_len;
    uint8_t                           campaign_len;
    uint8_t                           code_len;
    uint8_t                           blocks;
    uint8_t                           state;       /* referral_state_e */
    uint8_t                           absent;
    uint8_t                           used;        /* a second chance */
} ngx_http_referral_zone_code_t;


typedef struct {
    uint64_t                          version;
    int64_t                           not_before;
    int64_t                           expires;
    int64_t                           code_id;
    int64_t                           program_id;
    int64_t                           referrer_id;
} ngx_http_referral_zone_rule_t;


typedef struct {
    ngx_http_referral_zone_node_t     base;
    ngx_msec_t                        last;
    uint32_t                          excess;      /* 1 is 0.001 requests */
    u_char                            key[NGX_HTTP_REFERRAL_NETWORK_LEN];
} ngx_http_referral_zone_network_t;


/* entries in the order of their coming, their share of the zone */

typedef struct {
    ngx_queue_t                       queue;
    ngx_uint_t                        n;
    ngx_uint_t                        blocks;
    ngx_uint_t                        max;         /* blocks */
} ngx_http_referral_zone_list_t;


/*
 * Codes with the same low bits of their hash.  The floor is that of the code
 * announced last: one for each would need memory for every code there is.
 */

typedef struct {
    uint64_t                          tag;         /* of that code */
    uint64_t                          floor;       /* its version */
    uint32_t                          epoch;       /* the floor holds in */
    uint32_t                          generation;
} ngx_http_referral_zone_bucket_t;


/* a worker's unbroken subscription */

typedef struct {
    ngx_pid_t                         pid;         /* 0: free */
    ngx_msec_t                        since;
    ngx_msec_t                        proven;      /* see zone_cover.c */
} ngx_http_referral_zone_slot_t;


struct ngx_http_referral_zone_sh_s {
    uint32_t                          magic;
    uint32_t                          layout;

    /*
     * What each hit reads, in one line of the processor's cache.  There is a
     * tree of codes for each hash, rarely more than a node or two deep.
     */

    ngx_rbtree_node_t               **codes;       /* roots */
    uint32_t                          codes_mask;  /* roots - 1 */
    uint32_t                          epoch;
    uint32_t                          origin;      /* the source's first */
    uint32_t                          renewed;     /* by a generation */
    ngx_msec_t                        covered;     /* proven up to then */
    ngx_uint_t                        refused;     /* no subscription */
    ngx_uint_t                        noff;        /* keys of off */
    ngx_uint_t                        off_over;    /* it has more */

    size_t                            size;        /* of this structure */
    size_t                            stat_size;
    ngx_uint_t                        capacity;    /* blocks */
    ngx_http_referral_stat_t         *stat;

    ngx_rbtree_node_t                 codes_sentinel;
    ngx_rbtree_t                      networks;
    ngx_rbtree_node_t                 networks_sentinel;

    ngx_http_referral_zone_list_t     present;
    ngx_http_referral_zone_list_t     absent;
    ngx_http_referral_zone_list_t     network;

    /* what keeps entries true */

    ngx_http_referral_zone_bucket_t  *buckets;
    uint32_t                          mask;        /* buckets - 1 */
    uint32_t                          source;      /* which Redis */
    ngx_http_referral_zone_slot_t     slots[NGX_HTTP_REFERRAL_ZONE_SLOTS];

    uint64_t                          announced;   /* generation of "*" */
    ngx_msec_t                        announced_at;
    uint64_t                          generation;  /* of referral:publisher */
    ngx_uint_t                        publisher;   /* that key was seen */

    /* referral:off */

    uint64_t                         *off;         /* sorted keys */
    ngx_uint_t                        off_max;
    uint64_t                          off_asked;   /* number of the read */
    uint64_t                          off_applied;
    ngx_msec_t                        off_at;      /* asked */
};


void ngx_http_referral_zone_insert_network(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);

/* a block, NULL when nothing is left to evict; the caller has the lock */
void *ngx_http_referral_zone_alloc(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_list_t *list);

/* the same */
void ngx_http_referral_zone_cover_usage(ngx_http_referral_zone_sh_t *sh,
    ngx_http_referral_zone_usage_t *usage);
ngx_uint_t ngx_http_referral_zone_off_has(ngx_http_referral_zone_sh_t *sh,
    int64_t program_id, int64_t referrer_id);


/* a worker of an old cycle whose Redis is another one */

#define ngx_http_referral_zone_is_other(zcf)                                  \
    ((zcf)->source != (zcf)->sh->source)


/* whether a subscription hears of changes; without one entries only age */

#define ngx_http_referral_zone_is_covered(sh, now)                            \
    ((sh)->refused                                                            \
     || (ngx_msec_int_t) ((now) - (sh)->covered)                              \
        < NGX_HTTP_REFERRAL_ZONE_COVER)


#endif /* _NGX_HTTP_REFERRAL_ZONE_PRIVATE_H_INCLUDED_ */
