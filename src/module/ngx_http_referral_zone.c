
/*
 * Copyright (C) The nginx referral module authors
 *
 * Everything in the zone is made of blocks of one size.  So memory does not
 * fragment into size classes: whatever is evicted makes room for whatever
 * comes, and a zone filled with short entries still takes a long one.
 */


#include "ngx_http_referral_zone_private.h"

#include "referral_fault.h"


/* entries that one eviction may pass over because they were used */

#define NGX_HTTP_REFERRAL_ZONE_CHANCES  16

/* one caller in this time is asked to refresh a stale entry */

#define NGX_HTTP_REFERRAL_ZONE_REFRESH  1000       /* ms */

/* with too many switched off to be held here, Redis is asked so often */

#define NGX_HTTP_REFERRAL_ZONE_DOUBT    1000       /* ms */

#define NGX_HTTP_REFERRAL_ZONE_TEXT                                          \
    (REFERRAL_URL_LEN + REFERRAL_CAMPAIGN_LEN)


/* a place in a chain of blocks, for writing or reading */

typedef struct {
    u_char                           *pos;
    u_char                           *end;
    ngx_http_referral_zone_block_t   *next;
} ngx_http_referral_zone_cursor_t;


static ngx_http_referral_zone_code_t *ngx_http_referral_zone_find(
    ngx_http_referral_zone_sh_t *sh, ngx_uint_t hash, ngx_str_t *code);
static ngx_int_t ngx_http_referral_zone_age(
    ngx_http_referral_zone_conf_t *zcf, ngx_http_referral_zone_code_t *zc,
    ngx_msec_t now);
static ngx_uint_t ngx_http_referral_zone_refresh(
    ngx_http_referral_zone_code_t *zc, ngx_uint_t aged, ngx_msec_t now);
static void ngx_http_referral_zone_insert(ngx_http_referral_zone_sh_t *sh,
    ngx_http_referral_zone_code_t *zc);
static void ngx_http_referral_zone_insert_code(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);
static void ngx_http_referral_zone_delete(ngx_http_referral_zone_sh_t *sh,
    ngx_http_referral_zone_code_t *zc);
static ngx_http_referral_zone_bucket_t *ngx_http_referral_zone_bucket(
    ngx_http_referral_zone_sh_t *sh, ngx_uint_t hash);
static uint64_t ngx_http_referral_zone_tag(ngx_uint_t hash, ngx_str_t *code);
static ngx_int_t ngx_http_referral_zone_check(
    ngx_http_referral_zone_conf_t *zcf, ngx_uint_t hash, ngx_str_t *code,
    referral_rule_t *rule, ngx_http_referral_zone_token_t *token);
static uint64_t ngx_http_referral_zone_version(
    ngx_http_referral_zone_code_t *zc);
static ngx_http_referral_zone_code_t *ngx_http_referral_zone_alloc_code(
    ngx_http_referral_zone_conf_t *zcf, ngx_http_referral_zone_list_t *list,
    size_t len);
static ngx_int_t ngx_http_referral_zone_evict(
    ngx_http_referral_zone_conf_t *zcf, ngx_http_referral_zone_list_t *list);
static void ngx_http_referral_zone_drop(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_code_t *zc);
static void ngx_http_referral_zone_free_chain(
    ngx_http_referral_zone_conf_t *zcf, ngx_http_referral_zone_node_t *zn);
static void ngx_http_referral_zone_open(
    ngx_http_referral_zone_cursor_t *cursor,
    ngx_http_referral_zone_code_t *zc);
static void ngx_http_referral_zone_write(
    ngx_http_referral_zone_cursor_t *cursor, const void *data, size_t len);
static void ngx_http_referral_zone_read(
    ngx_http_referral_zone_cursor_t *cursor, void *data, size_t len);
static ngx_int_t ngx_http_referral_zone_cmp(ngx_str_t *code,
    ngx_http_referral_zone_code_t *zc);


/* both lines of a block: slabs of pages are aligned to its size */

#define ngx_http_referral_zone_fetch(block)                                  \
    __builtin_prefetch((u_char *) (block));                                  \
    __builtin_prefetch((u_char *) (block) + NGX_HTTP_REFERRAL_ZONE_BLOCK / 2)

#define ngx_http_referral_zone_code_data(zc)                                 \
    ((u_char *) (zc) + sizeof(ngx_http_referral_zone_code_t))

#define NGX_HTTP_REFERRAL_ZONE_FIRST                                         \
    (NGX_HTTP_REFERRAL_ZONE_BLOCK - sizeof(ngx_http_referral_zone_code_t))


uint32_t
ngx_http_referral_zone_expect(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code)
{
    uint32_t  hash;

    hash = ngx_murmur_hash2(code->data, code->len);

    __builtin_prefetch(&zcf->sh->codes[hash & zcf->sh->codes_mask]);

    return hash;
}


/* without the lock: what the root leads to may be gone, but is not read */

void
ngx_http_referral_zone_expect_entry(ngx_http_referral_zone_conf_t *zcf,
    uint32_t hash)
{
    u_char  *p;

    p = (u_char *) __atomic_load_n(&zcf->sh->codes[hash & zcf->sh->codes_mask],
                                   __ATOMIC_RELAXED);

    /* a second block is most often the next one */

    ngx_http_referral_zone_fetch(p);
    ngx_http_referral_zone_fetch(p + NGX_HTTP_REFERRAL_ZONE_BLOCK);
}


ngx_int_t
ngx_http_referral_zone_get(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, uint32_t hash, ngx_pool_t *pool,
    ngx_http_referral_zone_entry_t *entry)
{
    size_t                            url_len, campaign_len;
    u_char                           *p;
    u_char                            text[NGX_HTTP_REFERRAL_ZONE_TEXT];
    ngx_int_t                         rc;
    ngx_msec_t                        now;
    ngx_uint_t                        absent;
    referral_rule_t                   rule;
    ngx_http_referral_zone_sh_t      *sh;
    ngx_http_referral_zone_rule_t     zr;
    ngx_http_referral_zone_code_t    *zc;
    ngx_http_referral_zone_cursor_t   cursor;

    now = ngx_current_msec;
    sh = zcf->sh;

    ngx_memzero(entry, sizeof(ngx_http_referral_zone_entry_t));
    ngx_memzero(&rule, sizeof(referral_rule_t));

    ngx_shmtx_lock(&zcf->shpool->mutex);

    zc = ngx_http_referral_zone_find(sh, hash, code);

    if (zc == NULL) {
        ngx_shmtx_unlock(&zcf->shpool->mutex);
        return NGX_DECLINED;
    }

    rc = ngx_http_referral_zone_age(zcf, zc, now);

    if (rc == NGX_DECLINED) {
        ngx_shmtx_unlock(&zcf->shpool->mutex);
        return NGX_DECLINED;
    }

    if (ngx_http_referral_zone_is_covered(sh, now)) {
        entry->unsure = (zc->epoch != sh->epoch);
        entry->fresh = (rc == NGX_OK && !entry->unsure);
    }

    if ((int32_t) (zc->epoch - sh->origin) < 0) {
        entry->unsure = 1;
    }

    /* nothing else is written: a hit fetches no entry but its own */

    if (!zc->used) {
        zc->used = 1;
    }

    absent = zc->absent;
    url_len = zc->url_len;
    campaign_len = zc->campaign_len;
    rule.state = zc->state;

    if (!absent) {

        /* to the stack: the pool may have to call malloc() */

        ngx_http_referral_zone_open(&cursor, zc);
        ngx_http_referral_zone_read(&cursor, NULL, zc->code_len);
        ngx_http_referral_zone_read(&cursor, &zr, sizeof(zr));
        ngx_http_referral_zone_read(&cursor, text, url_len + campaign_len);

        if (ngx_http_referral_zone_off_has(sh, zr.program_id,
                                           zr.referrer_id))
        {
            rule.state = REFERRAL_STATE_INACTIVE;

        } else if (sh->off_over && (zr.program_id || zr.referrer_id)
                   && now - zc->fetched >= NGX_HTTP_REFERRAL_ZONE_DOUBT)
        {
            entry->fresh = 0;
            entry->unsure = 1;
        }
    }

    if (!entry->fresh) {
        entry->refresh = ngx_http_referral_zone_refresh(zc, rc == NGX_AGAIN,
                                                        now);
    }

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    if (absent) {
        entry->verdict = REFERRAL_VERDICT_UNKNOWN;
        return NGX_OK;
    }

    p = ngx_pnalloc(pool, url_len + campaign_len + 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_memcpy(p, text, url_len + campaign_len);

    rule.url.len = url_len;
    rule.url.data = p;
    rule.campaign.len = campaign_len;
    rule.campaign.data = p + url_len;
    rule.not_before = zr.not_before;
    rule.expires = zr.expires;

    entry->rule.url.len = url_len;
    entry->rule.url.data = p;
    entry->rule.campaign.len = campaign_len;
    entry->rule.campaign.data = p + url_len;
    entry->rule.code_id = zr.code_id;
    entry->rule.program_id = zr.program_id;
    entry->rule.referrer_id = zr.referrer_id;
    entry->rule.version = zr.version;

    entry->verdict = referral_rule_judge(&rule, ngx_time());

    return NGX_OK;
}


void
ngx_http_referral_zone_token(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, ngx_http_referral_zone_token_t *token)
{
    ngx_uint_t                    hash;
    ngx_http_referral_zone_sh_t  *sh;

    hash = ngx_murmur_hash2(code->data, code->len);
    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    token->epoch = sh->epoch;
    token->generation = ngx_http_referral_zone_bucket(sh, hash)->generation;

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


ngx_int_t
ngx_http_referral_zone_set(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, referral_rule_t *rule,
    ngx_http_referral_zone_token_t *token)
{
    size_t                            len;
    ngx_int_t                         rc;
    ngx_msec_t                        now;
    ngx_uint_t                        hash;
    ngx_http_referral_zone_sh_t      *sh;
    ngx_http_referral_zone_rule_t     zr;
    ngx_http_referral_zone_code_t    *zc;
    ngx_http_referral_zone_list_t    *list;
    ngx_http_referral_zone_cursor_t   cursor;

    if (code->len == 0 || code->len > REFERRAL_CODE_LEN
        || (rule && (rule->url.len > REFERRAL_URL_LEN
                     || rule->campaign.len > REFERRAL_CAMPAIGN_LEN)))
    {
        return NGX_OK;
    }

    hash = ngx_murmur_hash2(code->data, code->len);
    now = ngx_current_msec;
    sh = zcf->sh;

    list = rule ? &sh->present : &sh->absent;
    len = code->len;

    if (rule != NULL) {
        len += sizeof(zr) + rule->url.len + rule->campaign.len;
    }

    ngx_shmtx_lock(&zcf->shpool->mutex);

    rc = ngx_http_referral_zone_check(zcf, hash, code, rule, token);

    if (rc != NGX_OK) {
        ngx_shmtx_unlock(&zcf->shpool->mutex);
        return rc;
    }

    zc = ngx_http_referral_zone_alloc_code(zcf, list, len);

    if (zc == NULL) {
        ngx_shmtx_unlock(&zcf->shpool->mutex);
        ngx_http_referral_count(zone_nomem);
        return NGX_OK;
    }

    zc->base.node.key = hash;
    zc->fetched = now;
    zc->epoch = sh->epoch;
    zc->refreshed = (uint32_t) now;
    zc->code_len = (uint8_t) code->len;
    zc->absent = (rule == NULL);

    ngx_http_referral_zone_open(&cursor, zc);
    ngx_http_referral_zone_write(&cursor, code->data, code->len);

    if (rule != NULL) {
        zc->url_len = (uint16_t) rule->url.len;
        zc->campaign_len = (uint8_t) rule->campaign.len;
        zc->state = (uint8_t) rule->state;

        zr.version = rule->version;
        zr.not_before = rule->not_before;
        zr.expires = rule->expires;
        zr.code_id = rule->code_id;
        zr.program_id = rule->program_id;
        zr.referrer_id = rule->referrer_id;

        ngx_http_referral_zone_write(&cursor, &zr, sizeof(zr));
        ngx_http_referral_zone_write(&cursor, rule->url.data, rule->url.len);
        ngx_http_referral_zone_write(&cursor, rule->campaign.data,
                                     rule->campaign.len);
    }

    ngx_http_referral_zone_insert(sh, zc);
    ngx_queue_insert_head(&list->queue, &zc->base.queue);

    list->n++;
    list->blocks += zc->blocks;

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return NGX_OK;
}


/* whether what Redis said may be stored; makes room for it */

static ngx_int_t
ngx_http_referral_zone_check(ngx_http_referral_zone_conf_t *zcf,
    ngx_uint_t hash, ngx_str_t *code, referral_rule_t *rule,
    ngx_http_referral_zone_token_t *token)
{
    ngx_http_referral_zone_sh_t      *sh;
    ngx_http_referral_zone_code_t    *zc;
    ngx_http_referral_zone_bucket_t  *bucket;

    sh = zcf->sh;
    bucket = ngx_http_referral_zone_bucket(sh, hash);

    if (ngx_http_referral_zone_is_other(zcf)) {
        return NGX_AGAIN;
    }

    if (referral_guard("zone-generation")
        && (token->epoch != sh->epoch
            || token->generation != bucket->generation))
    {
        ngx_http_referral_count(zone_changed);
        return NGX_AGAIN;
    }

    if (rule && rule->version && bucket->epoch == sh->epoch
        && rule->version < bucket->floor
        && bucket->tag == ngx_http_referral_zone_tag(hash, code))
    {
        ngx_http_referral_count(zone_older);
        return NGX_DECLINED;
    }

    zc = ngx_http_referral_zone_find(sh, hash, code);

    if (zc == NULL) {
        return NGX_OK;
    }

    /*
     * Replies may be older than what is known already: a replica that lags,
     * a restored dump.  What cannot be served any more is no argument, nor is
     * a version of another generation: a database that was restored counts
     * from where it was then.
     */

    if (rule && rule->version && !zc->absent
        && (int32_t) (zc->epoch - sh->renewed) >= 0
        && ngx_http_referral_zone_age(zcf, zc, ngx_current_msec)
           != NGX_DECLINED
        && rule->version < ngx_http_referral_zone_version(zc))
    {
        /* Redis was asked in this epoch, and knows nothing newer */

        zc->epoch = sh->epoch;

        ngx_http_referral_count(zone_older);
        return NGX_DECLINED;
    }

    ngx_http_referral_zone_drop(zcf, zc);

    return NGX_OK;
}


void
ngx_http_referral_zone_invalidate(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, uint64_t version)
{
    uint64_t                          tag;
    ngx_uint_t                        hash;
    ngx_http_referral_zone_sh_t      *sh;
    ngx_http_referral_zone_code_t    *zc;
    ngx_http_referral_zone_bucket_t  *bucket;

    hash = ngx_murmur_hash2(code->data, code->len);
    tag = ngx_http_referral_zone_tag(hash, code);
    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    if (ngx_http_referral_zone_is_other(zcf)) {
        ngx_shmtx_unlock(&zcf->shpool->mutex);
        return;
    }

    bucket = ngx_http_referral_zone_bucket(sh, hash);

    bucket->generation++;

    if (bucket->tag != tag || bucket->epoch != sh->epoch
        || bucket->floor < version)
    {
        bucket->tag = tag;
        bucket->epoch = sh->epoch;
        bucket->floor = version;
    }

    /* another worker heard the same before, and the code was read again */

    zc = ngx_http_referral_zone_find(sh, hash, code);

    if (zc != NULL
        && (zc->absent || version == 0
            || ngx_http_referral_zone_version(zc) < version))
    {
        ngx_http_referral_zone_drop(zcf, zc);
    }

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


void
ngx_http_referral_zone_usage(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_usage_t *usage)
{
    ngx_http_referral_zone_sh_t  *sh;

    ngx_memzero(usage, sizeof(ngx_http_referral_zone_usage_t));

    sh = zcf->sh;

    if (sh == NULL) {
        return;
    }

    ngx_shmtx_lock(&zcf->shpool->mutex);

    usage->codes = sh->present.n;
    usage->absent = sh->absent.n;
    usage->networks = sh->network.n;
    usage->used = sh->present.blocks + sh->absent.blocks
                  + sh->network.blocks;
    usage->capacity = sh->capacity;

    ngx_http_referral_zone_cover_usage(sh, usage);

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


ngx_http_referral_stat_t *
ngx_http_referral_zone_stat(ngx_http_referral_zone_conf_t *zcf)
{
    return (zcf != NULL && zcf->sh != NULL) ? zcf->sh->stat : NULL;
}


static ngx_http_referral_zone_code_t *
ngx_http_referral_zone_find(ngx_http_referral_zone_sh_t *sh, ngx_uint_t hash,
    ngx_str_t *code)
{
    ngx_int_t                       rc;
    ngx_rbtree_node_t              *node, *sentinel;
    ngx_http_referral_zone_code_t  *zc;

    node = sh->codes[hash & sh->codes_mask];
    sentinel = &sh->codes_sentinel;

    while (node != sentinel) {

        /*
         * Of many codes most are in no cache of the processor: what will be
         * read next is fetched at one time and not one after the other.
         */

        ngx_http_referral_zone_fetch(node);

        if (hash != node->key) {
            node = (hash < node->key) ? node->left : node->right;
            continue;
        }

        zc = (ngx_http_referral_zone_code_t *) node;

        if (zc->base.next != NULL) {
            ngx_http_referral_zone_fetch(zc->base.next);
        }

        rc = ngx_http_referral_zone_cmp(code, zc);

        if (rc == 0) {
            return zc;
        }

        node = (rc < 0) ? node->left : node->right;
    }

    return NULL;
}


/*
 * NGX_OK: fresh.  NGX_AGAIN: stale.  NGX_DECLINED: too old to be served.
 * Only the time of the fetch is stored, so a reload may change the limits.
 */

static ngx_int_t
ngx_http_referral_zone_age(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_code_t *zc, ngx_msec_t now)
{
    ngx_msec_int_t  ms;

    ms = (ngx_msec_int_t) (now - zc->fetched);

    if (ms < -60000) {
        return NGX_DECLINED;
    }

    if (ms < 0) {
        ms = 0;
    }

    if (zc->absent) {
        return ((ngx_msec_t) ms < zcf->invalid) ? NGX_OK : NGX_DECLINED;
    }

    if ((ngx_msec_t) ms < zcf->valid) {
        return NGX_OK;
    }

    if ((ngx_msec_t) ms - zcf->valid < zcf->stale) {
        return NGX_AGAIN;
    }

    return NGX_DECLINED;
}


/*
 * One caller a second; at once when age alone made it stale, but not when an
 * entry is never fresh: each refresh would ask for the next.
 */

static ngx_uint_t
ngx_http_referral_zone_refresh(ngx_http_referral_zone_code_t *zc,
    ngx_uint_t aged, ngx_msec_t now)
{
    if ((uint32_t) now - zc->refreshed < NGX_HTTP_REFERRAL_ZONE_REFRESH
        && (!aged || zc->refreshed != (uint32_t) zc->fetched))
    {
        return 0;
    }

    zc->refreshed = (uint32_t) now;

    return 1;
}


static void
ngx_http_referral_zone_insert(ngx_http_referral_zone_sh_t *sh,
    ngx_http_referral_zone_code_t *zc)
{
    ngx_rbtree_t         tree;
    ngx_rbtree_node_t  **root;

    root = &sh->codes[zc->base.node.key & sh->codes_mask];

    tree.root = *root;
    tree.sentinel = &sh->codes_sentinel;
    tree.insert = ngx_http_referral_zone_insert_code;

    ngx_rbtree_insert(&tree, &zc->base.node);

    *root = tree.root;
}


static void
ngx_http_referral_zone_insert_code(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel)
{
    u_char                            data[REFERRAL_CODE_LEN];
    ngx_str_t                         code;
    ngx_rbtree_node_t               **p;
    ngx_http_referral_zone_code_t    *zc;
    ngx_http_referral_zone_cursor_t   cursor;

    zc = (ngx_http_referral_zone_code_t *) node;

    ngx_http_referral_zone_open(&cursor, zc);
    ngx_http_referral_zone_read(&cursor, data, zc->code_len);

    code.len = zc->code_len;
    code.data = data;

    for ( ;; ) {

        if (node->key != temp->key) {
            p = (node->key < temp->key) ? &temp->left : &temp->right;

        } else {
            zc = (ngx_http_referral_zone_code_t *) temp;

            p = (ngx_http_referral_zone_cmp(&code, zc) < 0) ? &temp->left
                                                            : &temp->right;
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


static void
ngx_http_referral_zone_delete(ngx_http_referral_zone_sh_t *sh,
    ngx_http_referral_zone_code_t *zc)
{
    ngx_rbtree_t         tree;
    ngx_rbtree_node_t  **root;

    root = &sh->codes[zc->base.node.key & sh->codes_mask];

    tree.root = *root;
    tree.sentinel = &sh->codes_sentinel;
    tree.insert = ngx_http_referral_zone_insert_code;

    ngx_rbtree_delete(&tree, &zc->base.node);

    *root = tree.root;
}


static ngx_http_referral_zone_bucket_t *
ngx_http_referral_zone_bucket(ngx_http_referral_zone_sh_t *sh,
    ngx_uint_t hash)
{
    return &sh->buckets[hash & sh->mask];
}


/* two hashes: what tells codes of one bucket from each other */

static uint64_t
ngx_http_referral_zone_tag(ngx_uint_t hash, ngx_str_t *code)
{
    return ((uint64_t) ngx_crc32_short(code->data, code->len) << 32)
           | (uint32_t) hash;
}


/* of a code that is not absent */

static uint64_t
ngx_http_referral_zone_version(ngx_http_referral_zone_code_t *zc)
{
    ngx_http_referral_zone_rule_t    zr;
    ngx_http_referral_zone_cursor_t  cursor;

    ngx_http_referral_zone_open(&cursor, zc);
    ngx_http_referral_zone_read(&cursor, NULL, zc->code_len);
    ngx_http_referral_zone_read(&cursor, &zr, sizeof(zr));

    return zr.version;
}


static ngx_http_referral_zone_code_t *
ngx_http_referral_zone_alloc_code(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_list_t *list, size_t len)
{
    ngx_uint_t                       i, n;
    ngx_http_referral_zone_code_t   *zc;
    ngx_http_referral_zone_block_t  *block, **last;

    n = 0;

    if (len > NGX_HTTP_REFERRAL_ZONE_FIRST) {
        len -= NGX_HTTP_REFERRAL_ZONE_FIRST;
        n = (len + sizeof(block->data) - 1) / sizeof(block->data);
    }

    zc = ngx_http_referral_zone_alloc(zcf, list);
    if (zc == NULL) {
        return NULL;
    }

    ngx_memzero(zc, sizeof(ngx_http_referral_zone_code_t));

    zc->blocks = (uint8_t) (n + 1);
    last = &zc->base.next;

    for (i = 0; i < n; i++) {

        block = ngx_http_referral_zone_alloc(zcf, list);

        if (block == NULL) {
            ngx_http_referral_zone_free_chain(zcf, &zc->base);
            return NULL;
        }

        block->next = NULL;

        *last = block;
        last = &block->next;
    }

    return zc;
}


/* evicts when the zone is full or the list has its share */

void *
ngx_http_referral_zone_alloc(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_list_t *list)
{
    void                         *p;
    ngx_http_referral_zone_sh_t  *sh;

    sh = zcf->sh;

    if (referral_fault_fails("zone-memory-enomem")) {
        return NULL;
    }

    if (list->blocks >= list->max) {
        (void) ngx_http_referral_zone_evict(zcf, list);
    }

    for ( ;; ) {

        p = ngx_slab_alloc_locked(zcf->shpool, NGX_HTTP_REFERRAL_ZONE_BLOCK);

        if (p != NULL) {
            return p;
        }

        if (ngx_http_referral_zone_evict(zcf, &sh->present) != NGX_OK
            && ngx_http_referral_zone_evict(zcf, &sh->absent) != NGX_OK
            && ngx_http_referral_zone_evict(zcf, &sh->network) != NGX_OK)
        {
            return NULL;
        }
    }
}


/*
 * The oldest goes, unless it was used since it came or was passed over here:
 * then it counts as new (the second chance, or clock, algorithm).  Nearly as
 * good as LRU, and it is the rare eviction that moves entries, not each hit.
 */

static ngx_int_t
ngx_http_referral_zone_evict(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_list_t *list)
{
    ngx_uint_t                      i;
    ngx_queue_t                    *q;
    ngx_http_referral_zone_node_t  *zn;
    ngx_http_referral_zone_code_t  *zc;

    if (ngx_queue_empty(&list->queue)) {
        return NGX_DECLINED;
    }

    q = ngx_queue_last(&list->queue);
    zn = ngx_queue_data(q, ngx_http_referral_zone_node_t, queue);

    if (list == &zcf->sh->network) {
        ngx_queue_remove(q);
        ngx_rbtree_delete(&zcf->sh->networks, &zn->node);
        ngx_slab_free_locked(zcf->shpool, zn);

        list->n--;
        list->blocks--;

        return NGX_OK;
    }

    zc = (ngx_http_referral_zone_code_t *) zn;

    for (i = 0; zc->used && i < NGX_HTTP_REFERRAL_ZONE_CHANCES; i++) {
        zc->used = 0;

        ngx_queue_remove(q);
        ngx_queue_insert_head(&list->queue, q);

        q = ngx_queue_last(&list->queue);
        zc = (ngx_http_referral_zone_code_t *)
                 ngx_queue_data(q, ngx_http_referral_zone_node_t, queue);
    }

    ngx_http_referral_zone_drop(zcf, zc);

    ngx_http_referral_count(zone_evicted);

    return NGX_OK;
}


static void
ngx_http_referral_zone_drop(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_code_t *zc)
{
    ngx_http_referral_zone_list_t  *list;

    list = zc->absent ? &zcf->sh->absent : &zcf->sh->present;

    list->n--;
    list->blocks -= zc->blocks;

    ngx_queue_remove(&zc->base.queue);
    ngx_http_referral_zone_delete(zcf->sh, zc);

    ngx_http_referral_zone_free_chain(zcf, &zc->base);
}


static void
ngx_http_referral_zone_free_chain(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_node_t *zn)
{
    ngx_http_referral_zone_block_t  *block, *next;

    for (block = zn->next; block; block = next) {
        next = block->next;
        ngx_slab_free_locked(zcf->shpool, block);
    }

    ngx_slab_free_locked(zcf->shpool, zn);
}


static void
ngx_http_referral_zone_open(ngx_http_referral_zone_cursor_t *cursor,
    ngx_http_referral_zone_code_t *zc)
{
    cursor->pos = ngx_http_referral_zone_code_data(zc);
    cursor->end = (u_char *) zc + NGX_HTTP_REFERRAL_ZONE_BLOCK;
    cursor->next = zc->base.next;
}


static void
ngx_http_referral_zone_write(ngx_http_referral_zone_cursor_t *cursor,
    const void *data, size_t len)
{
    size_t         n;
    const u_char  *p;

    p = data;

    while (len) {

        if (cursor->pos == cursor->end) {
            cursor->pos = cursor->next->data;
            cursor->end = cursor->pos + sizeof(cursor->next->data);
            cursor->next = cursor->next->next;
        }

        n = ngx_min(len, (size_t) (cursor->end - cursor->pos));

        cursor->pos = ngx_cpymem(cursor->pos, p, n);
        p += n;
        len -= n;
    }
}


/* data NULL: skips */

static void
ngx_http_referral_zone_read(ngx_http_referral_zone_cursor_t *cursor,
    void *data, size_t len)
{
    size_t   n;
    u_char  *p;

    p = data;

    while (len) {

        if (cursor->pos == cursor->end) {
            cursor->pos = cursor->next->data;
            cursor->end = cursor->pos + sizeof(cursor->next->data);
            cursor->next = cursor->next->next;
        }

        n = ngx_min(len, (size_t) (cursor->end - cursor->pos));

        if (p != NULL) {
            p = ngx_cpymem(p, cursor->pos, n);
        }

        cursor->pos += n;
        len -= n;
    }
}


static ngx_int_t
ngx_http_referral_zone_cmp(ngx_str_t *code,
    ngx_http_referral_zone_code_t *zc)
{
    u_char                           data[REFERRAL_CODE_LEN];
    ngx_http_referral_zone_cursor_t  cursor;

    if (code->len != zc->code_len) {
        return (ngx_int_t) code->len - (ngx_int_t) zc->code_len;
    }

    if (code->len <= NGX_HTTP_REFERRAL_ZONE_FIRST) {
        return ngx_memcmp(code->data, ngx_http_referral_zone_code_data(zc),
                          code->len);
    }

    ngx_http_referral_zone_open(&cursor, zc);
    ngx_http_referral_zone_read(&cursor, data, code->len);

    return ngx_memcmp(code->data, data, code->len);
}
