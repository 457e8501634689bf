
/*
 * Copyright (C) The nginx referral module authors
 *
 * The directive "referral_redis": the address, its name resolved, the
 * password.
 */


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_referral.h"
#include "ngx_http_referral_redis.h"


#define NGX_HTTP_REFERRAL_REDIS_TIMEOUT          100     /* ms */
#define NGX_HTTP_REFERRAL_REDIS_CONNECT_TIMEOUT  1000


static ngx_int_t ngx_http_referral_redis_resolve(ngx_conf_t *cf,
    ngx_http_referral_redis_conf_t *rcf);
static ngx_int_t ngx_http_referral_redis_password(ngx_conf_t *cf,
    ngx_http_referral_redis_conf_t *rcf, ngx_str_t *file);


char *
ngx_http_referral_redis(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char                             error[REFERRAL_ERROR_LEN];
    ngx_int_t                        ms;
    ngx_str_t                       *value, s, file;
    ngx_uint_t                       i;
    ngx_msec_t                      *time;
    ngx_http_referral_main_conf_t   *rmcf;
    ngx_http_referral_redis_conf_t  *rcf;

    rmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_referral_module);

    if (rmcf->redis != NULL) {
        return "is duplicate";
    }

    rcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_redis_conf_t));
    if (rcf == NULL) {
        return NGX_CONF_ERROR;
    }

    rcf->timeout = NGX_HTTP_REFERRAL_REDIS_TIMEOUT;
    rcf->connect_timeout = NGX_HTTP_REFERRAL_REDIS_CONNECT_TIMEOUT;

    value = cf->args->elts;

    if (referral_redis_url_parse(&rcf->url, value[1].data, value[1].len,
                                 error)
        != REFERRAL_OK)
    {
        /* the value is not repeated: it may hold a password */

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid address in \"%V\": %s", &cmd->name,
                           error);
        return NGX_CONF_ERROR;
    }

    ngx_str_null(&file);

    for (i = 2; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "timeout=", 8) == 0) {
            s.data = value[i].data + 8;
            time = &rcf->timeout;

        } else if (ngx_strncmp(value[i].data, "connect_timeout=", 16) == 0) {
            s.data = value[i].data + 16;
            time = &rcf->connect_timeout;

        } else if (ngx_strncmp(value[i].data, "password_file=", 14) == 0) {
            file.data = value[i].data + 14;
            file.len = value[i].len - 14;

            if (file.len == 0) {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "\"password_file=\" names no file");
                return NGX_CONF_ERROR;
            }

            continue;

        } else {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        s.len = value[i].data + value[i].len - s.data;

        ms = ngx_parse_time(&s, 0);

        if (ms == (ngx_int_t) NGX_ERROR || ms == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid time in \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        *time = (ngx_msec_t) ms;
    }

    if (file.len
        && ngx_http_referral_redis_password(cf, rcf, &file) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    if (rcf->url.user[0] && rcf->url.password[0] == '\0') {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "a user without a password in \"%s\", add "
                           "\"password_file=\"",
                           rcf->url.display);
        return NGX_CONF_ERROR;
    }

    if (ngx_http_referral_redis_resolve(cf, rcf) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    rmcf->redis = rcf;

    return NGX_CONF_OK;
}


/* names are resolved here, at start and reload, and never while serving */

static ngx_int_t
ngx_http_referral_redis_resolve(ngx_conf_t *cf,
    ngx_http_referral_redis_conf_t *rcf)
{
    u_char     *p;
    ngx_url_t   u;

    p = ngx_pnalloc(cf->pool, sizeof(rcf->url.host) + sizeof(rcf->url.path)
                              + sizeof("unix:[]:65535"));
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(&u, sizeof(ngx_url_t));

    u.url.data = p;

    if (rcf->url.path[0]) {
        p = ngx_sprintf(p, "unix:%s", rcf->url.path);

    } else if (ngx_strchr(rcf->url.host, ':')) {
        p = ngx_sprintf(p, "[%s]:%ui", rcf->url.host,
                        (ngx_uint_t) rcf->url.port);

    } else {
        p = ngx_sprintf(p, "%s:%ui", rcf->url.host,
                        (ngx_uint_t) rcf->url.port);
    }

    u.url.len = p - u.url.data;

    if (ngx_parse_url(cf->pool, &u) != NGX_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "%s in \"referral_redis\" of \"%V\"",
                           u.err ? u.err : "invalid address", &u.url);
        return NGX_ERROR;
    }

    if (u.naddrs == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "no address in \"referral_redis\" of \"%V\"",
                           &u.url);
        return NGX_ERROR;
    }

    rcf->addrs = u.addrs;
    rcf->naddrs = u.naddrs;

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_redis_password(ngx_conf_t *cf,
    ngx_http_referral_redis_conf_t *rcf, ngx_str_t *file)
{
    size_t     len;
    ssize_t    n;
    ngx_fd_t   fd;
    ngx_int_t  rc;
    u_char     buf[sizeof(rcf->url.password) + 2];

    if (rcf->url.password[0]) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "a password both in the address and in \"%V\"",
                           file);
        return NGX_ERROR;
    }

    if (ngx_conf_full_name(cf->cycle, file, 1) != NGX_OK) {
        return NGX_ERROR;
    }

    fd = ngx_open_file(file->data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);

    if (fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "password_file: " ngx_open_file_n
                           " \"%V\" failed",
                           file);
        return NGX_ERROR;
    }

    rc = NGX_ERROR;

    n = ngx_read_fd(fd, buf, sizeof(buf));

    if (n == -1) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "password_file: " ngx_read_fd_n
                           " \"%V\" failed",
                           file);
        goto done;
    }

    len = n;

    if (len && buf[len - 1] == LF) {
        len--;
    }

    if (len && buf[len - 1] == CR) {
        len--;
    }

    if (len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "password_file \"%V\" is empty", file);
        goto done;
    }

    if (len >= sizeof(rcf->url.password)
        || ngx_strlchr(buf, buf + len, '\0')
        || ngx_strlchr(buf, buf + len, LF))
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "password_file \"%V\" must hold one line of at "
                           "most %uz bytes",
                           file, sizeof(rcf->url.password) - 1);
        goto done;
    }

    ngx_memcpy(rcf->url.password, buf, len);
    rcf->url.password[len] = '\0';

    rc = NGX_OK;

done:

    ngx_explicit_memzero(buf, sizeof(buf));

    if (ngx_close_file(fd) == NGX_FILE_ERROR) {
        ngx_log_error(NGX_LOG_ALERT, cf->log, ngx_errno,
                      ngx_close_file_n " \"%V\" failed", file);
    }

    return rc;
}
