
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_capture.h"
#include "ngx_http_referral_commit.h"
#include "ngx_http_referral_cookie_conf.h"
#include "ngx_http_referral_filter.h"
#include "ngx_http_referral_geo.h"
#include "ngx_http_referral_journal.h"
#include "ngx_http_referral_limit.h"
#include "ngx_http_referral_lookup.h"
#include "ngx_http_referral_redirect.h"
#include "ngx_http_referral_stat.h"
#include "ngx_http_referral_redis.h"
#include "ngx_http_referral_status.h"
#include "ngx_http_referral_subscribe.h"
#include "ngx_http_referral_variables.h"
#include "ngx_http_referral_zone.h"


/* takes the zone's place until the zone is made, see below */

typedef struct {
    ngx_cycle_t                    *cycle;
    ngx_http_referral_main_conf_t  *rmcf;
    ngx_shm_zone_init_pt            init;
    void                           *data;
} ngx_http_referral_check_t;


static char *ngx_http_referral_names(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static ngx_int_t ngx_http_referral_add_names(ngx_conf_t *cf,
    ngx_array_t **names, ngx_str_t *value, ngx_uint_t n);
static void *ngx_http_referral_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_referral_create_srv_conf(ngx_conf_t *cf);
static char *ngx_http_referral_merge_srv_conf(ngx_conf_t *cf, void *parent,
    void *child);
static char *ngx_http_referral_merge_names(ngx_conf_t *cf,
    ngx_http_referral_srv_conf_t *prev, ngx_http_referral_srv_conf_t *conf);
static char *ngx_http_referral_check_srv(ngx_conf_t *cf,
    ngx_http_referral_srv_conf_t *conf);
static void *ngx_http_referral_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_referral_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static ngx_int_t ngx_http_referral_init(ngx_conf_t *cf);
static ngx_int_t ngx_http_referral_init_check(ngx_conf_t *cf,
    ngx_http_referral_main_conf_t *rmcf);
static ngx_int_t ngx_http_referral_check_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static ngx_int_t ngx_http_referral_init_process(ngx_cycle_t *cycle);
static void ngx_http_referral_exit_process(ngx_cycle_t *cycle);


static ngx_conf_enum_t  ngx_http_referral_ip_modes[] = {
    { ngx_string("off"), NGX_HTTP_REFERRAL_IP_OFF },
    { ngx_string("mask"), NGX_HTTP_REFERRAL_IP_MASK },
    { ngx_string("full"), NGX_HTTP_REFERRAL_IP_FULL },
    { ngx_null_string, 0 }
};


static ngx_conf_enum_t  ngx_http_referral_referer_modes[] = {
    { ngx_string("off"), NGX_HTTP_REFERRAL_REFERER_OFF },
    { ngx_string("host"), NGX_HTTP_REFERRAL_REFERER_HOST },
    { ngx_string("full"), NGX_HTTP_REFERRAL_REFERER_FULL },
    { ngx_null_string, 0 }
};


static ngx_conf_enum_t  ngx_http_referral_attributions[] = {
    { ngx_string("last"), NGX_HTTP_REFERRAL_LAST },
    { ngx_string("first"), NGX_HTTP_REFERRAL_FIRST },
    { ngx_null_string, 0 }
};


static ngx_conf_enum_t  ngx_http_referral_gpc_modes[] = {
    { ngx_string("ignore"), 0 },
    { ngx_string("respect"), 1 },
    { ngx_null_string, 0 }
};


static ngx_conf_enum_t  ngx_http_referral_passthroughs[] = {
    { ngx_string("off"), REFERRAL_PASSTHROUGH_OFF },
    { ngx_string("utm"), REFERRAL_PASSTHROUGH_UTM },
    { ngx_string("all"), REFERRAL_PASSTHROUGH_ALL },
    { ngx_null_string, 0 }
};


static ngx_str_t  ngx_http_referral_default_params[] = {
    ngx_string(NGX_HTTP_REFERRAL_PARAM)
};


/* campaigns, and the click ids that advertising networks append */

static ngx_str_t  ngx_http_referral_default_args[] = {
    ngx_string("utm_*"),
    ngx_string("gclid"),
    ngx_string("gad_source"),
    ngx_string("gad_campaignid"),
    ngx_string("gbraid"),
    ngx_string("wbraid"),
    ngx_string("fbclid"),
    ngx_string("msclkid"),
    ngx_string("ttclid"),
    ngx_string("twclid"),
    ngx_string("li_fat_id"),
    ngx_string("rdclid")
};


static ngx_command_t  ngx_http_referral_commands[] = {

    { ngx_string("referral"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, enable),
      NULL },

    { ngx_string("referral_param"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_1MORE,
      ngx_http_referral_names,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, params),
      NULL },

    { ngx_string("referral_skip"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_1MORE,
      ngx_http_set_predicate_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, skip),
      NULL },

    { ngx_string("referral_redirect"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_referral_redirect,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_fallback"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_referral_fallback,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_passthrough"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_referral_loc_conf_t, passthrough),
      &ngx_http_referral_passthroughs },

    { ngx_string("referral_redis"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_http_referral_redis,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_http_referral_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_miss_limit"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE12,
      ngx_http_referral_miss_limit,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_journal"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_http_referral_journal,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_geoip"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_http_referral_geoip,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_ip"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, ip),
      &ngx_http_referral_ip_modes },

    { ngx_string("referral_record_args"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_1MORE,
      ngx_http_referral_names,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, args),
      NULL },

    { ngx_string("referral_record_referer"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, referer),
      &ngx_http_referral_referer_modes },

    { ngx_string("referral_cookie"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_1MORE,
      ngx_http_referral_cookie,
      NGX_HTTP_SRV_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_secret"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_referral_secret,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_consent"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_TAKE1,
      ngx_http_referral_consent,
      NGX_HTTP_SRV_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("referral_gpc"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, gpc),
      &ngx_http_referral_gpc_modes },

    { ngx_string("referral_attribution"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, attribution),
      &ngx_http_referral_attributions },

    { ngx_string("referral_strip"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_SRV_CONF_OFFSET,
      offsetof(ngx_http_referral_srv_conf_t, strip),
      NULL },

    { ngx_string("referral_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_referral_status,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_referral_module_ctx = {
    ngx_http_referral_add_variables,       /* preconfiguration */
    ngx_http_referral_init,                /* postconfiguration */

    ngx_http_referral_create_main_conf,    /* create main configuration */
    NULL,                                  /* init main configuration */

    ngx_http_referral_create_srv_conf,     /* create server configuration */
    ngx_http_referral_merge_srv_conf,      /* merge server configuration */

    ngx_http_referral_create_loc_conf,     /* create location configuration */
    ngx_http_referral_merge_loc_conf       /* merge location configuration */
};


ngx_module_t  ngx_http_referral_module = {
    NGX_MODULE_V1,
    &ngx_http_referral_module_ctx,         /* module context */
    ngx_http_referral_commands,            /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_referral_init_process,        /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_referral_exit_process,        /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


/* referral_param, referral_record_args */

static char *
ngx_http_referral_names(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char  *p = conf;

    ngx_str_t     *value;
    ngx_uint_t     i;
    ngx_array_t  **names;

    names = (ngx_array_t **) (p + cmd->offset);

    if (*names != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        if (value[i].len == 0 || ngx_strchr(value[i].data, '$')) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid name \"%V\" in \"%V\": names are not "
                               "empty and have no variables",
                               &value[i], &cmd->name);
            return NGX_CONF_ERROR;
        }
    }

    /* "off": no arguments are recorded */

    i = cf->args->nelts - 1;

    if (i == 1 && cmd->offset == offsetof(ngx_http_referral_srv_conf_t, args)
        && ngx_strcmp(value[1].data, "off") == 0)
    {
        i = 0;
    }

    if (ngx_http_referral_add_names(cf, names, &value[1], i) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* ngx_str_t and referral_str_t are the same bytes */

static ngx_int_t
ngx_http_referral_add_names(ngx_conf_t *cf, ngx_array_t **names,
    ngx_str_t *value, ngx_uint_t n)
{
    ngx_str_t  *name;

    *names = ngx_array_create(cf->pool, n ? n : 1, sizeof(ngx_str_t));
    if (*names == NULL) {
        return NGX_ERROR;
    }

    while (n--) {
        name = ngx_array_push(*names);
        if (name == NULL) {
            return NGX_ERROR;
        }

        *name = *value++;
    }

    return NGX_OK;
}


static void *
ngx_http_referral_create_main_conf(ngx_conf_t *cf)
{
    /*
     * set by ngx_pcalloc(): all of it; the directives fill it in
     */

    return ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_main_conf_t));
}


static void *
ngx_http_referral_create_srv_conf(ngx_conf_t *cf)
{
    ngx_http_referral_srv_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_srv_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     conf->consent = NULL;
     *     conf->redirect = 0;
     */

    conf->enable = NGX_CONF_UNSET;
    conf->params = NGX_CONF_UNSET_PTR;
    conf->skip = NGX_CONF_UNSET_PTR;
    conf->args = NGX_CONF_UNSET_PTR;
    conf->ip = NGX_CONF_UNSET_UINT;
    conf->referer = NGX_CONF_UNSET_UINT;
    conf->attribution = NGX_CONF_UNSET_UINT;
    conf->gpc = NGX_CONF_UNSET_UINT;
    conf->strip = NGX_CONF_UNSET;
    conf->consent_not_required = NGX_CONF_UNSET;
    conf->cookie = NGX_CONF_UNSET_PTR;

    return conf;
}


static char *
ngx_http_referral_merge_srv_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_referral_srv_conf_t  *prev = parent;
    ngx_http_referral_srv_conf_t  *conf = child;

    ngx_conf_merge_value(conf->enable, prev->enable, 0);
    ngx_conf_merge_ptr_value(conf->skip, prev->skip, NULL);
    ngx_conf_merge_uint_value(conf->ip, prev->ip, NGX_HTTP_REFERRAL_IP_MASK);
    ngx_conf_merge_uint_value(conf->referer, prev->referer,
                              NGX_HTTP_REFERRAL_REFERER_HOST);
    ngx_conf_merge_uint_value(conf->attribution, prev->attribution,
                              NGX_HTTP_REFERRAL_LAST);
    ngx_conf_merge_uint_value(conf->gpc, prev->gpc, 1);
    ngx_conf_merge_value(conf->strip, prev->strip, 0);

    if (conf->consent_not_required == NGX_CONF_UNSET) {
        conf->consent_not_required = prev->consent_not_required;
        conf->consent = prev->consent;
    }

    /* made once for all servers that do not say otherwise */

    if (prev->cookie == NGX_CONF_UNSET_PTR) {
        prev->cookie = ngx_http_referral_cookie_default(cf);
        if (prev->cookie == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    ngx_conf_merge_ptr_value(conf->cookie, prev->cookie, NULL);

    if (ngx_http_referral_merge_names(cf, prev, conf) != NGX_CONF_OK) {
        return NGX_CONF_ERROR;
    }

    return ngx_http_referral_check_srv(cf, conf);
}


static char *
ngx_http_referral_merge_names(ngx_conf_t *cf,
    ngx_http_referral_srv_conf_t *prev, ngx_http_referral_srv_conf_t *conf)
{
    if (prev->params == NGX_CONF_UNSET_PTR
        && ngx_http_referral_add_names(cf, &prev->params,
                                       ngx_http_referral_default_params,
                                       sizeof(ngx_http_referral_default_params)
                                       / sizeof(ngx_str_t))
           != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    if (prev->args == NGX_CONF_UNSET_PTR
        && ngx_http_referral_add_names(cf, &prev->args,
                                       ngx_http_referral_default_args,
                                       sizeof(ngx_http_referral_default_args)
                                       / sizeof(ngx_str_t))
           != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    ngx_conf_merge_ptr_value(conf->params, prev->params, NULL);
    ngx_conf_merge_ptr_value(conf->args, prev->args, NULL);

    return NGX_CONF_OK;
}


/* what a server that sees referrals cannot do without */

static char *
ngx_http_referral_check_srv(ngx_conf_t *cf, ngx_http_referral_srv_conf_t *conf)
{
    const char                     *missing;
    ngx_http_core_srv_conf_t       *cscf;
    ngx_http_referral_main_conf_t  *rmcf;

    if (!conf->enable && !conf->redirect) {
        return NGX_CONF_OK;
    }

    rmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_referral_module);

    rmcf->used = 1;

    if (rmcf->redis == NULL) {
        missing = "\"referral_redis\" is missing: say where the codes are, "
                  "for example \"referral_redis redis://127.0.0.1:6379;\" in "
                  "\"http\"";

    } else if (rmcf->journal == NULL) {
        missing = "\"referral_journal\" is missing: say where clicks are "
                  "written, for example \"referral_journal "
                  "/var/lib/referral/journal;\" in \"http\"";

    } else if (conf->cookie->name.len && rmcf->keyring == NULL) {
        missing = "\"referral_secret\" is missing: the attribution cookie is "
                  "signed with the keys of that file; add \"referral_secret "
                  "/etc/nginx/referral.secret;\" in \"http\", or do without "
                  "the cookie: \"referral_cookie off;\"";

    } else if (conf->cookie->name.len
               && conf->consent_not_required == NGX_CONF_UNSET)
    {
        missing = "\"referral_consent\" is missing: a cookie needs the "
                  "visitor's consent; add \"referral_consent $variable;\", "
                  "\"referral_consent not_required;\" or \"referral_cookie "
                  "off;\"";

    } else {
        return NGX_CONF_OK;
    }

    cscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_core_module);

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "the server in %s:%ui uses \"%s\" but %s",
                       cscf->file_name, cscf->line,
                       conf->enable ? "referral on" : "referral_redirect",
                       missing);

    return NGX_CONF_ERROR;
}


static void *
ngx_http_referral_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_referral_loc_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_loc_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     conf->code = NULL;
     */

    conf->redirect = NGX_CONF_UNSET;
    conf->fallback = NGX_CONF_UNSET_PTR;
    conf->passthrough = NGX_CONF_UNSET_UINT;

    return conf;
}


static char *
ngx_http_referral_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_referral_loc_conf_t  *prev = parent;
    ngx_http_referral_loc_conf_t  *conf = child;

    ngx_http_core_loc_conf_t  *clcf;

    if (conf->redirect == NGX_CONF_UNSET) {

        conf->redirect = 0;

        /* content handlers are not inherited, except by an "if" inside */

        clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

        if (prev->redirect == 1 && clcf->noname && clcf->handler == NULL) {
            conf->redirect = 1;
            conf->code = prev->code;
            clcf->handler = ngx_http_referral_redirect_handler;
        }
    }

    ngx_conf_merge_ptr_value(conf->fallback, prev->fallback, NULL);
    ngx_conf_merge_uint_value(conf->passthrough, prev->passthrough,
                              REFERRAL_PASSTHROUGH_UTM);

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_referral_init(ngx_conf_t *cf)
{
    ngx_http_handler_pt            *h;
    ngx_http_core_main_conf_t      *cmcf;
    ngx_http_referral_main_conf_t  *rmcf;

    rmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_referral_module);

    if (!rmcf->used) {
        return NGX_OK;
    }

    if (ngx_http_referral_zone_init_conf(cf, rmcf) != NGX_CONF_OK
        || ngx_http_referral_init_check(cf, rmcf) != NGX_OK)
    {
        return NGX_ERROR;
    }

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    /* the last one pushed runs first */

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_SERVER_REWRITE_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_referral_capture_handler;

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_REWRITE_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_referral_limited_handler;

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_PRECONTENT_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_referral_strip_handler;

    return ngx_http_referral_filter_init(cf);
}


/*
 * The journal's path can be tested only when "user" and "worker_processes"
 * are known, wherever they stand; and a failure of init_module would end the
 * master on reload.  When shared zones are made both is right, and it is done
 * by "nginx -t" too: so the test goes in front of our zone.
 */

static ngx_int_t
ngx_http_referral_init_check(ngx_conf_t *cf,
    ngx_http_referral_main_conf_t *rmcf)
{
    ngx_shm_zone_t             *shm_zone;
    ngx_http_referral_check_t  *check;

    check = ngx_palloc(cf->pool, sizeof(ngx_http_referral_check_t));
    if (check == NULL) {
        return NGX_ERROR;
    }

    shm_zone = rmcf->zone->shm_zone;

    check->cycle = cf->cycle;
    check->rmcf = rmcf;
    check->init = shm_zone->init;
    check->data = shm_zone->data;

    shm_zone->init = ngx_http_referral_check_zone;
    shm_zone->data = check;

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_check_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_referral_check_t  *check;

    check = shm_zone->data;

    shm_zone->init = check->init;
    shm_zone->data = check->data;

    if (ngx_http_referral_journal_check(check->cycle, check->rmcf) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return shm_zone->init(shm_zone, data);
}


/* nothing that fails here stops the worker: it serves and says what is lost */

static ngx_int_t
ngx_http_referral_init_process(ngx_cycle_t *cycle)
{
    ngx_http_referral_main_conf_t  *rmcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    /* NULL without a "http" block */

    rmcf = ngx_http_cycle_get_module_main_conf(cycle,
                                               ngx_http_referral_module);

    if (rmcf == NULL || !rmcf->used) {
        return NGX_OK;
    }

    ngx_http_referral_zone_init_process(rmcf);

    (void) ngx_http_referral_commit_init_process(cycle);

    ngx_http_referral_journal_init_process(cycle, rmcf);

    if (rmcf->geo != NULL) {
        (void) ngx_http_referral_geo_init_process(cycle, rmcf);
    }

    /* a slow disk has used up seconds, and Redis gets timers from now on */

    ngx_time_update();

    (void) ngx_http_referral_lookup_init_process(cycle, rmcf);

    ngx_http_referral_subscribe_init_process(cycle, rmcf);

    return NGX_OK;
}


static void
ngx_http_referral_exit_process(ngx_cycle_t *cycle)
{
    ngx_http_referral_main_conf_t  *rmcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return;
    }

    rmcf = ngx_http_cycle_get_module_main_conf(cycle,
                                               ngx_http_referral_module);

    if (rmcf == NULL || !rmcf->used) {
        return;
    }

    ngx_http_referral_subscribe_exit_process();
    ngx_http_referral_lookup_exit_process();
    ngx_http_referral_geo_exit_process();
    ngx_http_referral_journal_exit_process();
    ngx_http_referral_stat_exit_process();
}
