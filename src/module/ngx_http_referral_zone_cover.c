
/*
 * Copyright (C) The nginx referral module authors
 *
 * A subscription proves itself by a ping: when its answer is here, so is all
 * that was announced before the ping was written.  Up to that time there was
 * no gap, if the subscription is older than the end of what was proven
 * before.  Times are of the one monotonic clock of the machine.
 */


#include "ngx_http_referral_zone_private.h"


/* the same "all changed", heard by another worker */

#define NGX_HTTP_REFERRAL_ZONE_ECHO   10000        /* ms */

/* a slot whose worker has gone without a word */

#define NGX_HTTP_REFERRAL_ZONE_GONE   60000        /* ms */


static ngx_http_referral_zone_slot_t *ngx_http_referral_zone_slot(
    ngx_http_referral_zone_conf_t *zcf, ngx_uint_t claim);
static ngx_uint_t ngx_http_referral_zone_live(
    ngx_http_referral_zone_slot_t *slot, ngx_msec_t now);
static ngx_uint_t ngx_http_referral_zone_goes_on(
    ngx_http_referral_zone_sh_t *sh, ngx_http_referral_zone_slot_t *but);
static int ngx_libc_cdecl ngx_http_referral_zone_off_cmp(const void *one,
    const void *two);


void
ngx_http_referral_zone_cover_source(ngx_http_referral_zone_conf_t *zcf,
    uint32_t source)
{
    ngx_http_referral_zone_sh_t  *sh;

    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    zcf->source = source;

    if (sh->source != source) {
        sh->source = source;

        sh->renewed = ++sh->epoch;
        sh->origin = sh->epoch;

        sh->announced = 0;
        sh->generation = 0;
        sh->publisher = 0;

        sh->noff = 0;
        sh->off_over = 0;

        sh->covered = ngx_current_msec - NGX_HTTP_REFERRAL_ZONE_COVER;
        sh->refused = 0;

        ngx_memzero(sh->slots, sizeof(sh->slots));
    }

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


void
ngx_http_referral_zone_invalidate_all(ngx_http_referral_zone_conf_t *zcf,
    uint64_t generation)
{
    ngx_msec_t                    now;
    ngx_http_referral_zone_sh_t  *sh;

    sh = zcf->sh;
    now = ngx_current_msec;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    if (ngx_http_referral_zone_is_other(zcf)) {
        goto done;
    }

    if (generation == 0
        || generation != sh->announced
        || (ngx_msec_int_t) (now - sh->announced_at)
           >= NGX_HTTP_REFERRAL_ZONE_ECHO)
    {
        sh->renewed = ++sh->epoch;
    }

    if (generation) {
        sh->announced = generation;
        sh->announced_at = now;
        sh->generation = generation;
    }

done:

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


ngx_int_t
ngx_http_referral_zone_publisher(ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_token_t *token, ngx_uint_t exists,
    uint64_t generation, ngx_uint_t ready)
{
    ngx_int_t                     rc;
    ngx_http_referral_zone_sh_t  *sh;

    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    if (ngx_http_referral_zone_is_other(zcf)) {
        rc = (ready || !exists) ? NGX_OK : NGX_DECLINED;

    } else if (!exists) {

        /* filled by hand, or emptied */

        rc = sh->publisher ? NGX_DECLINED : NGX_OK;

    } else if (!sh->publisher || generation == sh->generation) {
        sh->publisher = 1;
        sh->generation = generation;

        rc = ready ? NGX_OK : NGX_DECLINED;

    } else {

        /* a reply from before the last change is not the next one */

        if (token->epoch == sh->epoch) {
            sh->generation = generation;
            sh->renewed = ++sh->epoch;
        }

        rc = NGX_AGAIN;
    }

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return rc;
}


void
ngx_http_referral_zone_cover_begin(ngx_http_referral_zone_conf_t *zcf,
    ngx_msec_t since)
{
    ngx_http_referral_zone_sh_t    *sh;
    ngx_http_referral_zone_slot_t  *slot;

    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    slot = ngx_http_referral_zone_slot(zcf, 1);

    if (slot != NULL) {
        slot->since = since;
        slot->proven = since;

        sh->refused = 0;

        if (!ngx_http_referral_zone_goes_on(sh, slot)) {
            sh->epoch++;
            sh->covered = since;
        }
    }

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


void
ngx_http_referral_zone_cover_prove(ngx_http_referral_zone_conf_t *zcf,
    ngx_msec_t since, ngx_msec_t at)
{
    ngx_http_referral_zone_sh_t    *sh;
    ngx_http_referral_zone_slot_t  *slot;

    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    /* a worker that was stopped for long may have lost its slot */

    slot = ngx_http_referral_zone_slot(zcf, 1);

    if (slot == NULL) {
        goto done;
    }

    slot->since = since;

    if ((ngx_msec_int_t) (at - since) > 0) {
        slot->proven = at;
    }

    if ((ngx_msec_int_t) (since - sh->covered) <= 0) {

        if ((ngx_msec_int_t) (at - sh->covered) > 0) {
            sh->covered = at;
        }

    } else if (!ngx_http_referral_zone_goes_on(sh, slot)) {

        /* the one that had to prove the time before has died */

        sh->epoch++;
        sh->covered = slot->proven;
    }

done:

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


void
ngx_http_referral_zone_cover_end(ngx_http_referral_zone_conf_t *zcf)
{
    ngx_msec_t                      now;
    ngx_uint_t                      i;
    ngx_http_referral_zone_sh_t    *sh;
    ngx_http_referral_zone_slot_t  *slot, *last;

    sh = zcf->sh;
    now = ngx_current_msec;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    slot = ngx_http_referral_zone_slot(zcf, 0);

    if (slot == NULL) {
        goto done;
    }

    slot->pid = 0;

    if (ngx_http_referral_zone_goes_on(sh, NULL)) {
        goto done;
    }

    last = NULL;

    for (i = 0; i < NGX_HTTP_REFERRAL_ZONE_SLOTS; i++) {
        slot = &sh->slots[i];

        if (ngx_http_referral_zone_live(slot, now)
            && (last == NULL
                || (ngx_msec_int_t) (slot->proven - last->proven) > 0))
        {
            last = slot;
        }
    }

    if (last != NULL) {
        sh->epoch++;
        sh->covered = last->proven;

    } else {
        sh->covered = now - NGX_HTTP_REFERRAL_ZONE_COVER;
    }

done:

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


void
ngx_http_referral_zone_cover_refused(ngx_http_referral_zone_conf_t *zcf)
{
    ngx_shmtx_lock(&zcf->shpool->mutex);

    if (!ngx_http_referral_zone_is_other(zcf)) {
        zcf->sh->refused = 1;
    }

    ngx_shmtx_unlock(&zcf->shpool->mutex);
}


ngx_uint_t
ngx_http_referral_zone_covered(ngx_http_referral_zone_conf_t *zcf)
{
    ngx_uint_t                    covered;
    ngx_http_referral_zone_sh_t  *sh;

    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    covered = ngx_http_referral_zone_is_covered(sh, ngx_current_msec);

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return covered;
}


ngx_uint_t
ngx_http_referral_zone_cover_watch(ngx_http_referral_zone_conf_t *zcf,
    ngx_uint_t *wait)
{
    ngx_msec_t                      now;
    ngx_uint_t                      i, first, mine;
    ngx_http_referral_zone_sh_t    *sh;
    ngx_http_referral_zone_slot_t  *slot;

    sh = zcf->sh;
    now = ngx_current_msec;

    first = 1;
    mine = 0;
    *wait = 0;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    for (i = 0; i < NGX_HTTP_REFERRAL_ZONE_SLOTS; i++) {
        slot = &sh->slots[i];

        if (!ngx_http_referral_zone_live(slot, now)) {
            continue;
        }

        if ((ngx_msec_int_t) (slot->since - sh->covered) > 0) {
            *wait = 1;

        } else if (first) {
            first = 0;
            mine = (slot->pid == ngx_pid);
        }
    }

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return mine;
}


void
ngx_http_referral_zone_cover_usage(ngx_http_referral_zone_sh_t *sh,
    ngx_http_referral_zone_usage_t *usage)
{
    usage->epoch = sh->epoch;
    usage->off = sh->noff;
    usage->covered = (ngx_msec_int_t) (ngx_current_msec - sh->covered)
                     < NGX_HTTP_REFERRAL_ZONE_COVER;
}


/* this worker's, or NULL; claim: a free one */

static ngx_http_referral_zone_slot_t *
ngx_http_referral_zone_slot(ngx_http_referral_zone_conf_t *zcf,
    ngx_uint_t claim)
{
    ngx_uint_t                      i;
    ngx_http_referral_zone_sh_t    *sh;
    ngx_http_referral_zone_slot_t  *slot, *spare;

    if (ngx_http_referral_zone_is_other(zcf)) {
        return NULL;
    }

    sh = zcf->sh;
    spare = NULL;

    for (i = 0; i < NGX_HTTP_REFERRAL_ZONE_SLOTS; i++) {
        slot = &sh->slots[i];

        if (slot->pid == ngx_pid) {
            return slot;
        }

        if (spare == NULL
            && (slot->pid == 0
                || (ngx_msec_int_t) (ngx_current_msec - slot->proven)
                   > NGX_HTTP_REFERRAL_ZONE_GONE))
        {
            spare = slot;
        }
    }

    if (!claim || spare == NULL) {
        return NULL;
    }

    spare->pid = ngx_pid;
    spare->since = ngx_current_msec;
    spare->proven = ngx_current_msec;

    return spare;
}


static ngx_uint_t
ngx_http_referral_zone_live(ngx_http_referral_zone_slot_t *slot,
    ngx_msec_t now)
{
    return slot->pid != 0
           && (ngx_msec_int_t) (now - slot->proven)
              < NGX_HTTP_REFERRAL_ZONE_COVER;
}


/* whether a subscription that covered all so far may go on to do so */

static ngx_uint_t
ngx_http_referral_zone_goes_on(ngx_http_referral_zone_sh_t *sh,
    ngx_http_referral_zone_slot_t *but)
{
    ngx_uint_t                      i;
    ngx_http_referral_zone_slot_t  *slot;

    for (i = 0; i < NGX_HTTP_REFERRAL_ZONE_SLOTS; i++) {
        slot = &sh->slots[i];

        if (slot != but
            && ngx_http_referral_zone_live(slot, ngx_current_msec)
            && (ngx_msec_int_t) (slot->since - sh->covered) <= 0)
        {
            return 1;
        }
    }

    return 0;
}


uint64_t
ngx_http_referral_zone_off_ask(ngx_http_referral_zone_conf_t *zcf)
{
    uint64_t                      number;
    ngx_http_referral_zone_sh_t  *sh;

    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    number = ++sh->off_asked;
    sh->off_at = ngx_current_msec;

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return number;
}


ngx_uint_t
ngx_http_referral_zone_off_due(ngx_http_referral_zone_conf_t *zcf,
    ngx_msec_t ms)
{
    ngx_uint_t                    due;
    ngx_http_referral_zone_sh_t  *sh;

    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    due = (ngx_msec_int_t) (ngx_current_msec - sh->off_at)
          >= (ngx_msec_int_t) ms;

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return due;
}


ngx_int_t
ngx_http_referral_zone_off_set(ngx_http_referral_zone_conf_t *zcf,
    uint64_t number, const uint64_t *keys, ngx_uint_t n, ngx_uint_t over)
{
    ngx_http_referral_zone_sh_t  *sh;

    sh = zcf->sh;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    if (number <= sh->off_applied || ngx_http_referral_zone_is_other(zcf)) {
        ngx_shmtx_unlock(&zcf->shpool->mutex);
        return NGX_DECLINED;
    }

    n = ngx_min(n, sh->off_max);

    ngx_memcpy(sh->off, keys, n * sizeof(uint64_t));

    sh->noff = n;
    sh->off_over = over;
    sh->off_applied = number;

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return NGX_OK;
}


ngx_uint_t
ngx_http_referral_zone_off_max(ngx_http_referral_zone_conf_t *zcf)
{
    return zcf->sh->off_max;
}


ngx_uint_t
ngx_http_referral_zone_off(ngx_http_referral_zone_conf_t *zcf,
    int64_t program_id, int64_t referrer_id)
{
    ngx_uint_t  has;

    ngx_shmtx_lock(&zcf->shpool->mutex);

    has = ngx_http_referral_zone_off_has(zcf->sh, program_id, referrer_id);

    ngx_shmtx_unlock(&zcf->shpool->mutex);

    return has;
}


ngx_uint_t
ngx_http_referral_zone_off_has(ngx_http_referral_zone_sh_t *sh,
    int64_t program_id, int64_t referrer_id)
{
    uint64_t  key;

    if (sh->noff == 0) {
        return 0;
    }

    if (program_id > 0) {
        key = ngx_http_referral_zone_off_program(program_id);

        if (bsearch(&key, sh->off, sh->noff, sizeof(uint64_t),
                    ngx_http_referral_zone_off_cmp)
            != NULL)
        {
            return 1;
        }
    }

    if (referrer_id > 0) {
        key = ngx_http_referral_zone_off_referrer(referrer_id);

        if (bsearch(&key, sh->off, sh->noff, sizeof(uint64_t),
                    ngx_http_referral_zone_off_cmp)
            != NULL)
        {
            return 1;
        }
    }

    return 0;
}


static int ngx_libc_cdecl
ngx_http_referral_zone_off_cmp(const void *one, const void *two)
{
    const uint64_t  *a = one;
    const uint64_t  *b = two;

    return (*a < *b) ? -1 : (*a > *b);
}
