
/*
 * Copyright (C) The nginx referral module authors
 *
 * The directive "referral_geoip", and the databases at start.
 */


#include "ngx_http_referral_geo_private.h"


#define NGX_HTTP_REFERRAL_GEO_KEYS  16             /* of a path, most */


static void ngx_http_referral_geo_load_now(ngx_conf_t *cf,
    ngx_http_referral_geo_db_t *db);
static ngx_http_referral_geo_db_t *ngx_http_referral_geo_add(ngx_conf_t *cf,
    ngx_http_referral_main_conf_t *rmcf, ngx_str_t *path);
static ngx_int_t ngx_http_referral_geo_field(ngx_conf_t *cf,
    ngx_http_referral_geo_db_t *db, ngx_str_t *arg, ngx_uint_t *named);
static void ngx_http_referral_geo_cleanup(void *data);


static ngx_str_t  ngx_http_referral_geo_names[] = {
    ngx_string("country"),
    ngx_string("region"),
    ngx_string("city"),
    ngx_string("time_zone"),
    ngx_string("asn"),
    ngx_string("latitude"),
    ngx_string("longitude")
};


/* MaxMind's layout */

static const char  *ngx_http_referral_geo_country_keys[] =
    { "country", "iso_code", NULL };

/* of addresses whose place is not known, but their owner's is */

static const char  *ngx_http_referral_geo_registered_keys[] =
    { "registered_country", "iso_code", NULL };

static const char  *ngx_http_referral_geo_region_keys[] =
    { "subdivisions", "0", "iso_code", NULL };

static const char  *ngx_http_referral_geo_city_keys[] =
    { "city", "names", "en", NULL };

static const char  *ngx_http_referral_geo_time_zone_keys[] =
    { "location", "time_zone", NULL };

static const char  *ngx_http_referral_geo_asn_keys[] =
    { "autonomous_system_number", NULL };


/* coordinates are read only when they are named */

static const char **ngx_http_referral_geo_keys[] = {
    ngx_http_referral_geo_country_keys,
    ngx_http_referral_geo_region_keys,
    ngx_http_referral_geo_city_keys,
    ngx_http_referral_geo_time_zone_keys,
    ngx_http_referral_geo_asn_keys,
    NULL,
    NULL
};


char *
ngx_http_referral_geoip(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_main_conf_t  *rmcf = conf;

    ngx_str_t                   *value;
    ngx_uint_t                   i, named;
    ngx_http_referral_geo_db_t  *db;

    value = cf->args->elts;

    db = ngx_http_referral_geo_add(cf, rmcf, &value[1]);
    if (db == NULL) {
        return NGX_CONF_ERROR;
    }

    named = 0;

    for (i = 2; i < cf->args->nelts; i++) {
        if (ngx_http_referral_geo_field(cf, db, &value[i], &named)
            != NGX_OK)
        {
            return NGX_CONF_ERROR;
        }
    }

    /* "nginx -s" reads the configuration, but needs no database */

    if (ngx_process != NGX_PROCESS_SIGNALLER) {
        ngx_http_referral_geo_load_now(cf, db);
    }

    return NGX_CONF_OK;
}


static ngx_http_referral_geo_db_t *
ngx_http_referral_geo_add(ngx_conf_t *cf, ngx_http_referral_main_conf_t *rmcf,
    ngx_str_t *path)
{
    ngx_str_t                    name;
    ngx_uint_t                   i;
    ngx_pool_cleanup_t          *cln;
    ngx_http_referral_geo_db_t  *db;

    name = *path;

    if (name.len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_geoip\" needs a file");
        return NULL;
    }

    if (ngx_conf_full_name(cf->cycle, &name, 0) != NGX_OK) {
        return NULL;
    }

    if (rmcf->geo == NULL) {
        rmcf->geo = ngx_pcalloc(cf->pool,
                                sizeof(ngx_http_referral_geo_conf_t));
        if (rmcf->geo == NULL) {
            return NULL;
        }

        if (ngx_array_init(&rmcf->geo->dbs, cf->pool, 2,
                           sizeof(ngx_http_referral_geo_db_t))
            != NGX_OK)
        {
            return NULL;
        }

        cln = ngx_pool_cleanup_add(cf->pool, 0);
        if (cln == NULL) {
            return NULL;
        }

        cln->handler = ngx_http_referral_geo_cleanup;
        cln->data = rmcf->geo;
    }

    db = rmcf->geo->dbs.elts;

    for (i = 0; i < rmcf->geo->dbs.nelts; i++) {

        if (db[i].path.len == name.len
            && ngx_strncmp(db[i].path.data, name.data, name.len) == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "duplicate database \"%V\"", &name);
            return NULL;
        }
    }

    db = ngx_array_push(&rmcf->geo->dbs);
    if (db == NULL) {
        return NULL;
    }

    ngx_memzero(db, sizeof(ngx_http_referral_geo_db_t));

    db->path = name;

    for (i = 0; i < NGX_HTTP_REFERRAL_GEO_FIELDS; i++) {
        db->keys[i] = ngx_http_referral_geo_keys[i];
    }

    db->registered = ngx_http_referral_geo_registered_keys;

    return db;
}


/* field=key.key.key, a number is the place in an array */

static ngx_int_t
ngx_http_referral_geo_field(ngx_conf_t *cf, ngx_http_referral_geo_db_t *db,
    ngx_str_t *arg, ngx_uint_t *named)
{
    u_char       *p, *last;
    ngx_str_t    *name;
    ngx_uint_t    i, n;
    const char  **keys;

    name = ngx_http_referral_geo_names;
    p = (u_char *) ngx_strchr(arg->data, '=');

    for (i = 0; p && i < NGX_HTTP_REFERRAL_GEO_FIELDS; i++) {

        if ((size_t) (p - arg->data) == name[i].len
            && ngx_strncmp(arg->data, name[i].data, name[i].len) == 0)
        {
            break;
        }
    }

    if (p == NULL || i == NGX_HTTP_REFERRAL_GEO_FIELDS) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\", fields are country, "
                           "region, city, time_zone, asn, latitude and "
                           "longitude", arg);
        return NGX_ERROR;
    }

    if (*named & (1 << i)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "duplicate field \"%V\"", &name[i]);
        return NGX_ERROR;
    }

    *named |= 1 << i;

    keys = ngx_pcalloc(cf->pool,
                       (NGX_HTTP_REFERRAL_GEO_KEYS + 1) * sizeof(char *));
    if (keys == NULL) {
        return NGX_ERROR;
    }

    /* dots become the ends of the keys; the argument is not used again */

    n = 0;

    for (p++; n < NGX_HTTP_REFERRAL_GEO_KEYS; p = last + 1) {
        last = (u_char *) ngx_strchr(p, '.');

        if (*p == '\0' || last == p) {
            break;
        }

        keys[n++] = (const char *) p;

        if (last == NULL) {
            db->keys[i] = keys;

            if (i == NGX_HTTP_REFERRAL_GEO_COUNTRY) {
                db->registered = NULL;
            }

            return NGX_OK;
        }

        *last = '\0';
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid path of field \"%V\": 1 to %d names with "
                       "dots between them are needed", &name[i],
                       NGX_HTTP_REFERRAL_GEO_KEYS);

    return NGX_ERROR;
}


/*
 * At start and reload the master loads, and its workers share the copy.  A
 * file that is replaced later is copied by each worker.
 */

static void
ngx_http_referral_geo_load_now(ngx_conf_t *cf, ngx_http_referral_geo_db_t *db)
{
    char                           error[REFERRAL_ERROR_LEN];
    char                          *path;
    ngx_int_t                      rc;
    ngx_http_referral_mmdb_load_t  load;

    path = (char *) db->path.data;

    rc = ngx_http_referral_mmdb_begin(&load, path, error);

    if (rc == NGX_OK) {

        do {
            rc = ngx_http_referral_mmdb_step(&load, path, error);
        } while (rc == NGX_AGAIN);
    }

    if (rc == NGX_OK) {
        db->mmdb = load.mmdb;
        db->id = load.id;
        db->open = 1;

        return;
    }

    ngx_conf_log_error(NGX_LOG_WARN, cf, 0,
                       "%s; clicks have no place until this is put right",
                       error);

    /* the workers know that this was said */

    db->failed = load.id;
    db->missing = 1;
}


static void
ngx_http_referral_geo_cleanup(void *data)
{
    ngx_http_referral_geo_conf_t  *gcf = data;

    ngx_uint_t                   i;
    ngx_http_referral_geo_db_t  *db;

    ngx_http_referral_geo_forget(gcf);

    db = gcf->dbs.elts;

    for (i = 0; i < gcf->dbs.nelts; i++) {

        if (db[i].open) {
            MMDB_close(&db[i].mmdb);
        }
    }
}
