
/*
 * Copyright (C) The nginx referral module authors
 *
 * Places of addresses, from databases in MaxMind's format.  A database is
 * copied into sealed memory, validated and swapped in by a timer, so a file
 * that is replaced, truncated or overwritten cannot hurt a worker.
 */


#ifndef _NGX_HTTP_REFERRAL_GEO_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_GEO_H_INCLUDED_


#include "ngx_http_referral.h"


typedef enum {
    NGX_HTTP_REFERRAL_GEO_COUNTRY = 0,
    NGX_HTTP_REFERRAL_GEO_REGION,
    NGX_HTTP_REFERRAL_GEO_CITY,
    NGX_HTTP_REFERRAL_GEO_TIME_ZONE,
    NGX_HTTP_REFERRAL_GEO_ASN,
    NGX_HTTP_REFERRAL_GEO_LATITUDE,
    NGX_HTTP_REFERRAL_GEO_LONGITUDE,
    NGX_HTTP_REFERRAL_GEO_FIELDS
} ngx_http_referral_geo_field_e;


/*
 * What is known of a network.  It stays valid until the next call (it lives
 * in the worker's cache): copy what is kept longer.  place is all of it
 * as a record has it, for referral_record_t.
 */

typedef struct {
    ngx_str_t                    country;
    ngx_str_t                    city;
    referral_str_t               place;
    uint32_t                     asn;
} ngx_http_referral_geo_t;


/* directive: referral_geoip path [field=path.in.record ...] */
char *ngx_http_referral_geoip(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

ngx_int_t ngx_http_referral_geo_init_process(ngx_cycle_t *cycle,
    ngx_http_referral_main_conf_t *rmcf);
void ngx_http_referral_geo_exit_process(void);

/*
 * Looks the whole address up.  Never NULL: an address that is not found, or
 * no database, gives empty fields.  Cached per network; no system call, no
 * allocation on a cached network.
 */
const ngx_http_referral_geo_t *ngx_http_referral_geo_get(
    const referral_ip_t *ip);

/*
 * The address will be looked up soon.  Among many clients its lines of the
 * cache are in none of the processor's: the first call has the key fetched
 * while the caller does something else, the second what the key leads to.
 */
void ngx_http_referral_geo_expect(const referral_ip_t *ip);
void ngx_http_referral_geo_expect_place(const referral_ip_t *ip);


#endif /* _NGX_HTTP_REFERRAL_GEO_H_INCLUDED_ */
