
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


#define NGX_HTTP_REFERRAL_ZONE_BLOCK  128          /* bytes */


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
    uint32_t                          touched;     /* ms, low bits */
    uint32_t                          refreshed;   /* ms, low bits */
    uint16_t                          url_len;
    uint8_t                           campaign_len;
    uint8_t                           code_len;
    uint8_t                           blocks;
    uint8_t                           state;       /* referral_state_e */
    uint8_t                           absent;
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


/* an LRU list, its share of the zone */

typedef struct {
    ngx_queue_t                       queue;
    ngx_uint_t                        n;
    ngx_uint_t                        blocks;
    ngx_uint_t                        max;         /* blocks */
} ngx_http_referral_zone_list_t;


struct ngx_http_referral_zone_sh_s {
    uint32_t                          magic;
    uint32_t                          layout;
    size_t                            size;        /* of this structure */
    size_t                            stat_size;
    ngx_uint_t                        capacity;    /* blocks */
    ngx_http_referral_stat_t         *stat;

    ngx_rbtree_t                      codes;
    ngx_rbtree_node_t                 codes_sentinel;
    ngx_rbtree_t                      networks;
    ngx_rbtree_node_t                 networks_sentinel;

    ngx_http_referral_zone_list_t     present;
    ngx_http_referral_zone_list_t     absent;
    ngx_http_referral_zone_list_t     network;
};


void ngx_http_referral_zone_insert_code(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);
void ngx_http_referral_zone_insert_network(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);


#endif /* _NGX_HTTP_REFERRAL_ZONE_PRIVATE_H_INCLUDED_ */
