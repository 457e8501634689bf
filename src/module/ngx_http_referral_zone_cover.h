
/*
 * Copyright (C) The nginx referral module authors
 *
 * What keeps the entries of the zone true.  Redis announces changes on a
 * channel; each worker subscribes, and all of them tell the zone.
 *
 *   generation  of a bucket of codes: raised by each announcement of one of
 *               them; a reply whose read was written before is not stored
 *   epoch       of the zone: raised when changes may have been missed, and
 *               by "all changed"; entries of an older one are unsure
 *   coverage    the time up to which no announcement was missed
 */


#ifndef _NGX_HTTP_REFERRAL_ZONE_COVER_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_ZONE_COVER_H_INCLUDED_


#include "ngx_http_referral.h"
#include "ngx_http_referral_zone.h"


/* a subscription that did not prove itself for so long covers nothing */

#define NGX_HTTP_REFERRAL_ZONE_COVER    2000       /* ms */

/* members of referral:off that a zone of some size holds */

#define NGX_HTTP_REFERRAL_ZONE_OFF      4096


/* where this worker's codes come from, to be told before anything else */
void ngx_http_referral_zone_cover_source(ngx_http_referral_zone_conf_t *zcf,
    uint32_t source);

/*
 * A code has changed.  Version 0: not known.  An entry that is as new as this
 * stays.
 */
void ngx_http_referral_zone_invalidate(ngx_http_referral_zone_conf_t *zcf,
    ngx_str_t *code, uint64_t version);

/*
 * Everything has.  All workers hear of a generation (not 0), the first one
 * counts.
 */
void ngx_http_referral_zone_invalidate_all(
    ngx_http_referral_zone_conf_t *zcf, uint64_t generation);

/*
 * What referral:publisher said after the read of a code.
 *
 *   NGX_OK        ready: what is absent does not exist
 *   NGX_DECLINED  not ready, or gone after it had been seen
 *   NGX_AGAIN     another generation: the read tells nothing, the epoch is
 *                 raised
 */
ngx_int_t ngx_http_referral_zone_publisher(
    ngx_http_referral_zone_conf_t *zcf,
    ngx_http_referral_zone_token_t *token, ngx_uint_t exists,
    uint64_t generation, ngx_uint_t ready);

/*
 * A subscription of this worker: Redis has had it since then, by our clock
 * and not before.  Raises the epoch unless another worker's covers the time
 * before.
 */
void ngx_http_referral_zone_cover_begin(ngx_http_referral_zone_conf_t *zcf,
    ngx_msec_t since);

/* all that was announced before a ping written at that time has arrived */
void ngx_http_referral_zone_cover_prove(ngx_http_referral_zone_conf_t *zcf,
    ngx_msec_t since, ngx_msec_t at);

/* the subscription is broken */
void ngx_http_referral_zone_cover_end(ngx_http_referral_zone_conf_t *zcf);

/* subscriptions are not allowed: entries only age, until one begins */
void ngx_http_referral_zone_cover_refused(
    ngx_http_referral_zone_conf_t *zcf);

ngx_uint_t ngx_http_referral_zone_covered(
    ngx_http_referral_zone_conf_t *zcf);

/*
 * Whether it is up to this worker to look out for subscriptions that have
 * begun since it proved its own; *wait is 1 when there are some.
 */
ngx_uint_t ngx_http_referral_zone_cover_watch(
    ngx_http_referral_zone_conf_t *zcf, ngx_uint_t *wait);


/* the key of a member of referral:off, id is 1 or more */

#define ngx_http_referral_zone_off_program(id)   ((uint64_t) (id) << 1)
#define ngx_http_referral_zone_off_referrer(id)  ((uint64_t) (id) << 1 | 1)

/* the number of a read of the set, to be taken before it is written */
uint64_t ngx_http_referral_zone_off_ask(ngx_http_referral_zone_conf_t *zcf);

/* whether nobody asked for so long (ms) */
ngx_uint_t ngx_http_referral_zone_off_due(
    ngx_http_referral_zone_conf_t *zcf, ngx_msec_t ms);

/*
 * The members, sorted; over: there are more, so that entries with a program
 * or a referrer are unsure after a second.  NGX_DECLINED: a newer reply is in
 * place.
 */
ngx_int_t ngx_http_referral_zone_off_set(ngx_http_referral_zone_conf_t *zcf,
    uint64_t number, const uint64_t *keys, ngx_uint_t n, ngx_uint_t over);

/* the most that off_set() takes */
ngx_uint_t ngx_http_referral_zone_off_max(
    ngx_http_referral_zone_conf_t *zcf);

/* whether a program or a referrer is switched off; 0: none */
ngx_uint_t ngx_http_referral_zone_off(ngx_http_referral_zone_conf_t *zcf,
    int64_t program_id, int64_t referrer_id);


#endif /* _NGX_HTTP_REFERRAL_ZONE_COVER_H_INCLUDED_ */
