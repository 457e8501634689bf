
/*
 * Copyright (C) The nginx referral module authors
 */


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_referral.h"
#include "ngx_http_referral_limit.h"
#include "ngx_http_referral_zone.h"


/* networks that share a budget: what one client can easily be given */

#define NGX_HTTP_REFERRAL_LIMIT_V4  24
#define NGX_HTTP_REFERRAL_LIMIT_V6  64

/* keeps sums of budgets in 32 bits, 1 is 0.001 */

#define NGX_HTTP_REFERRAL_LIMIT_MAX  1000000


/* this worker's budget for noise: 1 is 0.001 records */

static ngx_uint_t  ngx_http_referral_noise_left =
    NGX_HTTP_REFERRAL_NOISE_BURST * 1000;
static ngx_msec_t  ngx_http_referral_noise_last;


ngx_int_t
ngx_http_referral_limit_miss(ngx_http_request_t *r,
    ngx_http_referral_main_conf_t *rmcf)
{
    u_char                           key[NGX_HTTP_REFERRAL_NETWORK_LEN];
    ngx_int_t                        rc;
    referral_ip_t                    ip;
    ngx_http_referral_limit_conf_t  *limit;

    limit = rmcf->limit;

    if (limit == NULL) {
        return NGX_OK;
    }

    if (referral_ip_from_sockaddr(&ip, r->connection->sockaddr)
        != REFERRAL_OK)
    {
        return NGX_OK;
    }

    referral_ip_mask(&ip, NGX_HTTP_REFERRAL_LIMIT_V4,
                     NGX_HTTP_REFERRAL_LIMIT_V6);

    ngx_memzero(key, NGX_HTTP_REFERRAL_NETWORK_LEN);

    key[0] = ip.len;
    ngx_memcpy(&key[1], ip.bytes,
               ngx_min(ip.len, NGX_HTTP_REFERRAL_NETWORK_LEN - 1));

    rc = ngx_http_referral_zone_take(rmcf->zone, key, limit->rate,
                                     limit->burst);

    if (rc == NGX_BUSY) {
        ngx_http_referral_count(limited);
    }

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "referral miss limit: %i", rc);

    return rc;
}


ngx_uint_t
ngx_http_referral_limit_noise(void)
{
    ngx_msec_t  ms;

    ms = ngx_current_msec - ngx_http_referral_noise_last;

    ngx_http_referral_noise_last = ngx_current_msec;

    /* longer pauses fill the bucket, whatever their length */

    ms = ngx_min(ms, 1000 * (NGX_HTTP_REFERRAL_NOISE_BURST
                             / NGX_HTTP_REFERRAL_NOISE_RATE + 1));

    ngx_http_referral_noise_left += ms * NGX_HTTP_REFERRAL_NOISE_RATE;

    ngx_http_referral_noise_left =
        ngx_min(ngx_http_referral_noise_left,
                NGX_HTTP_REFERRAL_NOISE_BURST * 1000);

    if (ngx_http_referral_noise_left < 1000) {
        return 0;
    }

    ngx_http_referral_noise_left -= 1000;

    return 1;
}


char *
ngx_http_referral_miss_limit(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    size_t                           len;
    u_char                          *p;
    ngx_int_t                        rate, scale, burst;
    ngx_str_t                       *value;
    ngx_uint_t                       i;
    ngx_http_referral_main_conf_t   *rmcf;
    ngx_http_referral_limit_conf_t  *limit;

    rmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_referral_module);

    if (rmcf->limit != NULL) {
        return "is duplicate";
    }

    limit = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_limit_conf_t));
    if (limit == NULL) {
        return NGX_CONF_ERROR;
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "rate=", 5) == 0) {

            len = value[i].len;
            scale = 1;

            if (len > 8) {
                p = value[i].data + len - 3;

                if (ngx_strncmp(p, "r/s", 3) == 0) {
                    len -= 3;

                } else if (ngx_strncmp(p, "r/m", 3) == 0) {
                    scale = 60;
                    len -= 3;
                }
            }

            rate = ngx_atoi(value[i].data + 5, len - 5);

            if (rate <= 0 || rate > NGX_HTTP_REFERRAL_LIMIT_MAX) {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "invalid rate \"%V\", use for example "
                                   "\"rate=10r/s\" or \"rate=30r/m\"",
                                   &value[i]);
                return NGX_CONF_ERROR;
            }

            limit->rate = rate * 1000 / scale;

            continue;
        }

        if (ngx_strncmp(value[i].data, "burst=", 6) == 0) {

            burst = ngx_atoi(value[i].data + 6, value[i].len - 6);

            if (burst < 0 || burst > NGX_HTTP_REFERRAL_LIMIT_MAX) {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "invalid burst value \"%V\"", &value[i]);
                return NGX_CONF_ERROR;
            }

            limit->burst = burst * 1000;

            continue;
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\"", &value[i]);
        return NGX_CONF_ERROR;
    }

    if (limit->rate == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have the \"rate\" parameter",
                           &cmd->name);
        return NGX_CONF_ERROR;
    }

    rmcf->limit = limit;

    return NGX_CONF_OK;
}
