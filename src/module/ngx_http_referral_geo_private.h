
/*
 * Copyright (C) The nginx referral module authors
 *
 * What the files of the geo databases share: the configuration.  Its
 * databases are replaced by the worker that uses them.
 */


#ifndef _NGX_HTTP_REFERRAL_GEO_PRIVATE_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_GEO_PRIVATE_H_INCLUDED_


#include "ngx_http_referral_geo.h"
#include "ngx_http_referral_mmdb.h"


typedef struct {
    ngx_str_t                        path;         /* NUL-terminated */
    const char                     **keys[NGX_HTTP_REFERRAL_GEO_FIELDS];
    const char                     **registered;   /* or NULL: no fallback */

    ngx_http_referral_mmdb_id_t      id;           /* of what is open */
    ngx_http_referral_mmdb_id_t      failed;       /* rejected, was logged */
    ngx_http_referral_mmdb_id_t      seen;         /* may be still written */
    MMDB_s                           mmdb;

    unsigned                         open:1;
    unsigned                         missing:1;    /* was logged */
} ngx_http_referral_geo_db_t;


struct ngx_http_referral_geo_conf_s {
    ngx_array_t                      dbs;    /* ngx_http_referral_geo_db_t */
};


/*
 * The configuration is about to be freed.  Without a master a reload does
 * this while the process still works with it.
 */
void ngx_http_referral_geo_forget(ngx_http_referral_geo_conf_t *gcf);


#endif /* _NGX_HTTP_REFERRAL_GEO_PRIVATE_H_INCLUDED_ */
