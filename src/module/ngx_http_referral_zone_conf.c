
/*
 * Copyright (C) The nginx referral module authors
 *
 * The directive "referral_zone", and the zone when it is made or taken over.
 */


#include "ngx_http_referral_zone_private.h"

#include "ngx_http_referral_redis.h"


#define NGX_HTTP_REFERRAL_ZONE_MAGIC   0x5246315a
#define NGX_HTTP_REFERRAL_ZONE_LAYOUT  4

/* the smallest zone that is of use, beside the counters */

#define NGX_HTTP_REFERRAL_ZONE_PAGES   16

/* buckets of codes: one for so many bytes of the zone, a power of two */

#define NGX_HTTP_REFERRAL_ZONE_SHARE   1024
#define NGX_HTTP_REFERRAL_ZONE_LEAST   64
#define NGX_HTTP_REFERRAL_ZONE_MOST    65536

/* a root of codes for so many, about one for each code of a full zone */

#define NGX_HTTP_REFERRAL_ZONE_ROOT    256

/* one member of referral:off for so many */

#define NGX_HTTP_REFERRAL_ZONE_MEMBER  128


static ngx_int_t ngx_http_referral_zone_init(ngx_shm_zone_t *shm_zone,
    void *data);
static ngx_int_t ngx_http_referral_zone_init_codes(
    ngx_http_referral_zone_sh_t *sh, ngx_slab_pool_t *shpool, size_t size);
static ngx_int_t ngx_http_referral_zone_init_cover(
    ngx_http_referral_zone_sh_t *sh, ngx_slab_pool_t *shpool, size_t size);
static ngx_http_referral_zone_conf_t *ngx_http_referral_zone_create(
    ngx_conf_t *cf, size_t size);
static size_t ngx_http_referral_zone_min_size(void);


static ngx_int_t
ngx_http_referral_zone_init(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_referral_zone_conf_t  *ozcf = data;

    size_t                          len;
    ngx_slab_pool_t                *shpool;
    ngx_http_referral_zone_sh_t    *sh;
    ngx_http_referral_zone_conf_t  *zcf;

    zcf = shm_zone->data;
    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    zcf->shpool = shpool;

    if (ozcf || shm_zone->shm.exists) {

        sh = shpool->data;

        if (sh->magic != NGX_HTTP_REFERRAL_ZONE_MAGIC
            || sh->layout != NGX_HTTP_REFERRAL_ZONE_LAYOUT
            || sh->size != sizeof(ngx_http_referral_zone_sh_t)
            || sh->stat_size != sizeof(ngx_http_referral_stat_t))
        {
            ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, 0,
                          "the zone \"%V\" was made by another version of "
                          "the referral module: change the size in "
                          "\"referral_zone\", or restart nginx",
                          &shm_zone->shm.name);
            return NGX_ERROR;
        }

        zcf->sh = sh;

        return NGX_OK;
    }

    sh = ngx_slab_calloc(shpool, sizeof(ngx_http_referral_zone_sh_t));
    if (sh == NULL) {
        return NGX_ERROR;
    }

    sh->stat = ngx_slab_calloc(shpool, NGX_HTTP_REFERRAL_STAT_SLOTS
                                       * sizeof(ngx_http_referral_stat_t));
    if (sh->stat == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_referral_zone_init_codes(sh, shpool, shm_zone->shm.size)
        != NGX_OK
        || ngx_http_referral_zone_init_cover(sh, shpool, shm_zone->shm.size)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    len = sizeof(" in referral_zone") + 1;

    shpool->log_ctx = ngx_slab_alloc(shpool, len);
    if (shpool->log_ctx == NULL) {
        return NGX_ERROR;
    }

    ngx_sprintf(shpool->log_ctx, " in referral_zone%Z");

    /* a full zone is a normal state here */

    shpool->log_nomem = 0;

    sh->magic = NGX_HTTP_REFERRAL_ZONE_MAGIC;
    sh->layout = NGX_HTTP_REFERRAL_ZONE_LAYOUT;
    sh->size = sizeof(ngx_http_referral_zone_sh_t);
    sh->stat_size = sizeof(ngx_http_referral_stat_t);
    sh->capacity = shpool->pfree
                   * (ngx_pagesize / NGX_HTTP_REFERRAL_ZONE_BLOCK);

    ngx_rbtree_init(&sh->networks, &sh->networks_sentinel,
                    ngx_http_referral_zone_insert_network);

    ngx_queue_init(&sh->present.queue);
    ngx_queue_init(&sh->absent.queue);
    ngx_queue_init(&sh->network.queue);

    sh->present.max = sh->capacity;
    sh->absent.max = sh->capacity / NGX_HTTP_REFERRAL_ZONE_NEGATIVE;
    sh->network.max = sh->capacity / NGX_HTTP_REFERRAL_ZONE_NETWORKS;

    shpool->data = sh;
    zcf->sh = sh;

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_zone_init_codes(ngx_http_referral_zone_sh_t *sh,
    ngx_slab_pool_t *shpool, size_t size)
{
    ngx_uint_t  i, n;

    n = NGX_HTTP_REFERRAL_ZONE_LEAST;

    while (n <= NGX_MAX_UINT32_VALUE / 2
           && n * 2 <= size / NGX_HTTP_REFERRAL_ZONE_ROOT)
    {
        n *= 2;
    }

    sh->codes = ngx_slab_alloc(shpool, n * sizeof(ngx_rbtree_node_t *));
    if (sh->codes == NULL) {
        return NGX_ERROR;
    }

    sh->codes_mask = (uint32_t) (n - 1);

    ngx_rbtree_sentinel_init(&sh->codes_sentinel);

    for (i = 0; i < n; i++) {
        sh->codes[i] = &sh->codes_sentinel;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_zone_init_cover(ngx_http_referral_zone_sh_t *sh,
    ngx_slab_pool_t *shpool, size_t size)
{
    ngx_uint_t  n;

    n = NGX_HTTP_REFERRAL_ZONE_LEAST;

    while (n < NGX_HTTP_REFERRAL_ZONE_MOST
           && n * 2 <= size / NGX_HTTP_REFERRAL_ZONE_SHARE)
    {
        n *= 2;
    }

    sh->buckets = ngx_slab_calloc(shpool,
                                  n * sizeof(ngx_http_referral_zone_bucket_t));
    if (sh->buckets == NULL) {
        return NGX_ERROR;
    }

    sh->mask = (uint32_t) n - 1;

    sh->off_max = ngx_min(size / NGX_HTTP_REFERRAL_ZONE_MEMBER,
                          NGX_HTTP_REFERRAL_ZONE_OFF);

    sh->off = ngx_slab_calloc(shpool, sh->off_max * sizeof(uint64_t));
    if (sh->off == NULL) {
        return NGX_ERROR;
    }

    /* nothing is covered, and floors of epoch 0 are none */

    sh->covered = ngx_current_msec - NGX_HTTP_REFERRAL_ZONE_COVER;
    sh->off_at = ngx_current_msec;
    sh->epoch = 1;

    return NGX_OK;
}


void
ngx_http_referral_zone_init_process(ngx_http_referral_main_conf_t *rmcf)
{
    uint32_t     source;
    const char  *display;

    if (rmcf->zone == NULL || rmcf->zone->sh == NULL) {
        return;
    }

    ngx_http_referral_stat_init_process(rmcf->zone->sh->stat);

    source = 0;

    if (rmcf->redis != NULL) {
        display = rmcf->redis->url.display;
        source = ngx_crc32_short((u_char *) display, ngx_strlen(display));
    }

    ngx_http_referral_zone_cover_source(rmcf->zone, source);
}


char *
ngx_http_referral_zone_init_conf(ngx_conf_t *cf,
    ngx_http_referral_main_conf_t *rmcf)
{
    if (rmcf->zone != NULL) {
        return NGX_CONF_OK;
    }

    rmcf->zone = ngx_http_referral_zone_create(cf,
                                               NGX_HTTP_REFERRAL_ZONE_SIZE);

    return rmcf->zone ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static ngx_http_referral_zone_conf_t *
ngx_http_referral_zone_create(ngx_conf_t *cf, size_t size)
{
    ngx_str_t                       name = ngx_string("referral");
    ngx_http_referral_zone_conf_t  *zcf;

    zcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_zone_conf_t));
    if (zcf == NULL) {
        return NULL;
    }

    zcf->valid = NGX_HTTP_REFERRAL_ZONE_VALID;
    zcf->invalid = NGX_HTTP_REFERRAL_ZONE_INVALID;
    zcf->stale = NGX_HTTP_REFERRAL_ZONE_STALE;

    zcf->shm_zone = ngx_shared_memory_add(cf, &name, size,
                                          &ngx_http_referral_module);
    if (zcf->shm_zone == NULL) {
        return NULL;
    }

    zcf->shm_zone->init = ngx_http_referral_zone_init;
    zcf->shm_zone->data = zcf;

    return zcf;
}


static size_t
ngx_http_referral_zone_min_size(void)
{
    size_t  size;

    size = NGX_HTTP_REFERRAL_STAT_SLOTS * sizeof(ngx_http_referral_stat_t);

    return NGX_HTTP_REFERRAL_ZONE_PAGES * ngx_pagesize
           + ngx_align(size, ngx_pagesize);
}


char *
ngx_http_referral_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    size_t                          min;
    ssize_t                         size;
    ngx_int_t                       ms;
    ngx_str_t                      *value, s;
    ngx_uint_t                      i;
    ngx_msec_t                     *time;
    ngx_http_referral_main_conf_t  *rmcf;
    ngx_http_referral_zone_conf_t  *zcf;

    rmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_referral_module);

    if (rmcf->zone != NULL) {
        return "is duplicate";
    }

    value = cf->args->elts;

    size = ngx_parse_size(&value[1]);

    if (size == NGX_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid zone size \"%V\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    min = ngx_http_referral_zone_min_size();

    if ((size_t) size < min) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "zone size \"%V\" is too small, "
                           "the least is %uzk",
                           &value[1], (min + 1023) / 1024);
        return NGX_CONF_ERROR;
    }

    zcf = ngx_http_referral_zone_create(cf, size);
    if (zcf == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 2; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "valid=", 6) == 0) {
            s.data = value[i].data + 6;
            time = &zcf->valid;

        } else if (ngx_strncmp(value[i].data, "invalid=", 8) == 0) {
            s.data = value[i].data + 8;
            time = &zcf->invalid;

        } else if (ngx_strncmp(value[i].data, "stale=", 6) == 0) {
            s.data = value[i].data + 6;
            time = &zcf->stale;

        } else {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        s.len = value[i].data + value[i].len - s.data;

        ms = ngx_parse_time(&s, 0);

        if (ms == (ngx_int_t) NGX_ERROR) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid time in \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        *time = (ngx_msec_t) ms;
    }

    rmcf->zone = zcf;

    return NGX_CONF_OK;
}
