
/*
 * Copyright (C) The nginx referral module authors
 *
 * Networks of the miss limit, in the zone.
 */


#include "ngx_http_referral_zone_private.h"


/* the longest pause that is counted when a bucket leaks */

#define NGX_HTTP_REFERRAL_ZONE_LEAK  86400000      /* ms */


static ngx_http_referral_zone_network_t *ngx_http_referral_zone_network(
    ngx_http_referral_zone_conf_t *zcf, u_char *key);


/*
 * The bucket of ngx_http_limit_req_module: excess leaks at the rate, and a
 * request that would lift it over the burst is refused and costs nothing.
 */

ngx_int_t
ngx_http_referral_zone_take(ngx_http_referral_zone_conf_t *zcf,
    u_char key[NGX_HTTP_REFERRAL_NETWORK_LEN], ngx_uint_t rate,
    ngx_uint_t burst)
{
    int64_t                            excess;
    ngx_int_t                          rc;
    ngx_msec_t                         now;
    ngx_msec_int_t                     ms;
    ngx_http_referral_zone_network_t  *zn;

    now = ngx_current_msec;
    rc = NGX_OK;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    zn = ngx_http_referral_zone_network(zcf, key);

    if (zn == NULL) {
        ngx_shmtx_unlock(&zcf->shpool->mutex);
        ngx_http_referral_count(zone_nomem);
        return NGX_OK;
    }

    ngx_queue_remove(&zn->base.queue);
    ngx_queue_insert_head(&zcf->sh->network.queue, &zn->base.queue);

    ms = (ngx_msec_int_t) (now - zn->last);

    /* workers read the clock at different moments */

    if (ms < -60000) {
        ms = 1;

    } else if (ms < 0) {
        ms = 0;

    } else if (ms > NGX_HTTP_REFERRAL_ZONE_LEAK) {
        ms = NGX_HTTP_REFERRAL_ZONE_LEAK;
    }

    excess = (int64_t) zn->excess - (int64_t) rate * ms / 1000 + 1000;

    if (excess < 0) {
        excess = 0;
    }

    if (excess > (int64_t) burst) {
        rc = NGX_BUSY;

    } else {
        zn->excess = (uint32_t) excess;

        if (ms) {
            zn->last = now;
        }
    }

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return rc;
}


static ngx_http_referral_zone_network_t *
ngx_http_referral_zone_network(ngx_http_referral_zone_conf_t *zcf,
    u_char *key)
{
    ngx_int_t                          rc;
    ngx_uint_t                         hash;
    ngx_rbtree_node_t                 *node, *sentinel;
    ngx_http_referral_zone_sh_t       *sh;
    ngx_http_referral_zone_network_t  *zn;

    sh = zcf->sh;

    hash = ngx_murmur_hash2(key, NGX_HTTP_REFERRAL_NETWORK_LEN);

    node = sh->networks.root;
    sentinel = sh->networks.sentinel;

    while (node != sentinel) {

        if (hash != node->key) {
            node = (hash < node->key) ? node->left : node->right;
            continue;
        }

        zn = (ngx_http_referral_zone_network_t *) node;

        rc = ngx_memcmp(key, zn->key, NGX_HTTP_REFERRAL_NETWORK_LEN);

        if (rc == 0) {
            return zn;
        }

        node = (rc < 0) ? node->left : node->right;
    }

    zn = ngx_http_referral_zone_alloc(zcf, &sh->network);
    if (zn == NULL) {
        return NULL;
    }

    ngx_memzero(zn, sizeof(ngx_http_referral_zone_network_t));

    zn->base.node.key = hash;

    /* the first request of a network finds the bucket empty */

    zn->last = ngx_current_msec - NGX_HTTP_REFERRAL_ZONE_LEAK;

    ngx_memcpy(zn->key, key, NGX_HTTP_REFERRAL_NETWORK_LEN);

    ngx_rbtree_insert(&sh->networks, &zn->base.node);
    ngx_queue_insert_head(&sh->network.queue, &zn->base.queue);

    sh->network.n++;
    sh->network.blocks++;

    return zn;
}


void
ngx_http_referral_zone_insert_network(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel)
{
    ngx_rbtree_node_t                 **p;
    ngx_http_referral_zone_network_t   *zn, *znt;

    zn = (ngx_http_referral_zone_network_t *) node;

    for ( ;; ) {

        if (node->key != temp->key) {
            p = (node->key < temp->key) ? &temp->left : &temp->right;

        } else {
            znt = (ngx_http_referral_zone_network_t *) temp;

            p = (ngx_memcmp(zn->key, znt->key, NGX_HTTP_REFERRAL_NETWORK_LEN)
                 < 0)
                ? &temp->left : &temp->right;
        }

        if (*p == sentinel) {
            break;
        }

        temp = *p;
    }

    *p = node;
    node->parent = temp;
    node->left = sentinel;
    node->right = sentinel;
    ngx_rbt_red(node);
}
