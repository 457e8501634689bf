
/*
 * Copyright (C) The nginx referral module authors
 */


#include "ngx_http_referral.h"
#include "ngx_http_referral_cookie_conf.h"


#define NGX_HTTP_REFERRAL_COOKIE_NAME  "_ref"
#define NGX_HTTP_REFERRAL_COOKIE_AGE   (90 * 24 * 60 * 60)  /* seconds */

/* more than any browser keeps one, and fits in ms */

#define NGX_HTTP_REFERRAL_COOKIE_MAX   (10 * 365 * 24 * 60 * 60)

#define NGX_HTTP_REFERRAL_SECRET_SIZE  65536

#define ngx_http_referral_begins(str, word)                                  \
    ((str)->len >= sizeof(word) - 1                                          \
     && ngx_strncasecmp((str)->data, (u_char *) word, sizeof(word) - 1) == 0)


/* what is rendered once all parameters are known */

typedef struct {
    ngx_http_referral_cookie_conf_t  *conf;
    ngx_str_t                         domain;
    ngx_str_t                         path;
    ngx_uint_t                        samesite;
    ngx_uint_t                        httponly;
    ngx_uint_t                        visitor;
} ngx_http_referral_cookie_attrs_t;


/* NGX_CONF_OK, NGX_CONF_ERROR after a message, or what would be accepted */

typedef char *(*ngx_http_referral_attr_pt)(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p);


typedef struct {
    ngx_str_t                   name;
    ngx_http_referral_attr_pt   handler;
    size_t                      offset;        /* in the attributes */
    ngx_conf_enum_t            *values;
    char                       *accepted;      /* of the values */
} ngx_http_referral_attr_t;


static char *ngx_http_referral_attr_set(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *param);
static char *ngx_http_referral_attr_str(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p);
static char *ngx_http_referral_attr_age(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p);
static char *ngx_http_referral_attr_enum(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p);
static char *ngx_http_referral_attr_secure(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p);
static void ngx_http_referral_cookie_init(
    ngx_http_referral_cookie_attrs_t *attrs,
    ngx_http_referral_cookie_conf_t *conf);
static char *ngx_http_referral_cookie_check(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs);
static const char *ngx_http_referral_cookie_chars(
    ngx_http_referral_cookie_attrs_t *attrs);
static const char *ngx_http_referral_cookie_pairs(
    ngx_http_referral_cookie_attrs_t *attrs);
static char *ngx_http_referral_cookie_render(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs);

static char *ngx_http_referral_secret_check(ngx_conf_t *cf, ngx_str_t *name,
    ngx_file_t *file);
static char *ngx_http_referral_secret_read(ngx_conf_t *cf, ngx_str_t *name,
    ngx_file_t *file, referral_keyring_t *ring);


#define NGX_HTTP_REFERRAL_SAMESITE_LAX     0
#define NGX_HTTP_REFERRAL_SAMESITE_STRICT  1
#define NGX_HTTP_REFERRAL_SAMESITE_NONE    2

static ngx_str_t  ngx_http_referral_samesite_words[] = {
    ngx_string("Lax"),
    ngx_string("Strict"),
    ngx_string("None")
};


static ngx_conf_enum_t  ngx_http_referral_samesites[] = {
    { ngx_string("lax"), NGX_HTTP_REFERRAL_SAMESITE_LAX },
    { ngx_string("strict"), NGX_HTTP_REFERRAL_SAMESITE_STRICT },
    { ngx_string("none"), NGX_HTTP_REFERRAL_SAMESITE_NONE },
    { ngx_null_string, 0 }
};


static ngx_conf_enum_t  ngx_http_referral_flags[] = {
    { ngx_string("on"), 1 },
    { ngx_string("off"), 0 },
    { ngx_null_string, 0 }
};


static ngx_http_referral_attr_t  ngx_http_referral_attrs[] = {

    { ngx_string("domain"), ngx_http_referral_attr_str,
      offsetof(ngx_http_referral_cookie_attrs_t, domain), NULL, NULL },

    { ngx_string("path"), ngx_http_referral_attr_str,
      offsetof(ngx_http_referral_cookie_attrs_t, path), NULL, NULL },

    { ngx_string("max_age"), ngx_http_referral_attr_age, 0, NULL, NULL },

    { ngx_string("samesite"), ngx_http_referral_attr_enum,
      offsetof(ngx_http_referral_cookie_attrs_t, samesite),
      ngx_http_referral_samesites,
      "give \"lax\", \"strict\" or \"none\"" },

    { ngx_string("secure"), ngx_http_referral_attr_secure, 0, NULL, NULL },

    { ngx_string("httponly"), ngx_http_referral_attr_enum,
      offsetof(ngx_http_referral_cookie_attrs_t, httponly),
      ngx_http_referral_flags, "give \"on\" or \"off\"" },

    { ngx_string("visitor"), ngx_http_referral_attr_enum,
      offsetof(ngx_http_referral_cookie_attrs_t, visitor),
      ngx_http_referral_flags, "give \"on\" or \"off\"" },

    { ngx_null_string, NULL, 0, NULL, NULL }
};


char *
ngx_http_referral_cookie(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_srv_conf_t  *rscf = conf;

    char                              *rv;
    ngx_str_t                         *value;
    ngx_uint_t                         i;
    ngx_http_referral_cookie_conf_t   *cookie;
    ngx_http_referral_cookie_attrs_t   attrs;

    if (rscf->cookie != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    cookie = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_cookie_conf_t));
    if (cookie == NULL) {
        return NGX_CONF_ERROR;
    }

    rscf->cookie = cookie;

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "off") == 0) {

        if (cf->args->nelts > 2) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"referral_cookie off\" takes no parameters");
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    ngx_http_referral_cookie_init(&attrs, cookie);

    cookie->name = value[1];

    for (i = 2; i < cf->args->nelts; i++) {

        rv = ngx_http_referral_attr_set(cf, &attrs, &value[i]);

        if (rv == NGX_CONF_OK) {
            continue;
        }

        if (rv != NGX_CONF_ERROR) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\" of "
                               "\"referral_cookie\": %s", &value[i], rv);
        }

        return NGX_CONF_ERROR;
    }

    rv = ngx_http_referral_cookie_check(cf, &attrs);

    if (rv != NGX_CONF_OK) {
        return rv;
    }

    return ngx_http_referral_cookie_render(cf, &attrs);
}


ngx_http_referral_cookie_conf_t *
ngx_http_referral_cookie_default(ngx_conf_t *cf)
{
    ngx_http_referral_cookie_conf_t   *cookie;
    ngx_http_referral_cookie_attrs_t   attrs;

    cookie = ngx_pcalloc(cf->pool, sizeof(ngx_http_referral_cookie_conf_t));
    if (cookie == NULL) {
        return NULL;
    }

    ngx_http_referral_cookie_init(&attrs, cookie);

    ngx_str_set(&cookie->name, NGX_HTTP_REFERRAL_COOKIE_NAME);

    if (ngx_http_referral_cookie_render(cf, &attrs) != NGX_CONF_OK) {
        return NULL;
    }

    return cookie;
}


static void
ngx_http_referral_cookie_init(ngx_http_referral_cookie_attrs_t *attrs,
    ngx_http_referral_cookie_conf_t *conf)
{
    ngx_memzero(attrs, sizeof(ngx_http_referral_cookie_attrs_t));

    attrs->conf = conf;
    attrs->httponly = 1;
    attrs->samesite = NGX_HTTP_REFERRAL_SAMESITE_LAX;
    ngx_str_set(&attrs->path, "/");

    conf->age = NGX_HTTP_REFERRAL_COOKIE_AGE;
    conf->secure = NGX_HTTP_REFERRAL_SECURE_AUTO;
}


static char *
ngx_http_referral_attr_set(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *param)
{
    u_char                    *eq;
    ngx_str_t                  name, value;
    ngx_http_referral_attr_t  *attr;

    eq = ngx_strlchr(param->data, param->data + param->len, '=');
    if (eq == NULL) {
        return "it has no \"=\"";
    }

    name.data = param->data;
    name.len = eq - param->data;

    value.data = eq + 1;
    value.len = param->len - name.len - 1;

    for (attr = ngx_http_referral_attrs; attr->name.len; attr++) {

        if (attr->name.len == name.len
            && ngx_strncmp(attr->name.data, name.data, name.len) == 0)
        {
            return attr->handler(cf, attrs, &value, attr);
        }
    }

    return "there are \"domain\", \"path\", \"max_age\", \"samesite\", "
           "\"secure\", \"httponly\" and \"visitor\"";
}


static char *
ngx_http_referral_attr_str(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p)
{
    ngx_http_referral_attr_t  *attr = p;

    *(ngx_str_t *) ((char *) attrs + attr->offset) = *value;

    return NGX_CONF_OK;
}


static char *
ngx_http_referral_attr_age(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p)
{
    time_t  age;

    age = ngx_parse_time(value, 1);

    if (age == (time_t) NGX_ERROR || age == 0) {
        return "give a time of one second or more, for example \"90d\"";
    }

    if (age > NGX_HTTP_REFERRAL_COOKIE_MAX) {
        return "give a time of ten years or less";
    }

    attrs->conf->age = age;

    return NGX_CONF_OK;
}


static char *
ngx_http_referral_attr_enum(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p)
{
    ngx_http_referral_attr_t  *attr = p;

    ngx_conf_enum_t  *e;

    for (e = attr->values; e->name.len; e++) {

        if (e->name.len == value->len
            && ngx_strncasecmp(e->name.data, value->data, value->len) == 0)
        {
            *(ngx_uint_t *) ((char *) attrs + attr->offset) = e->value;

            return NGX_CONF_OK;
        }
    }

    return attr->accepted;
}


static char *
ngx_http_referral_attr_secure(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs, ngx_str_t *value, void *p)
{
    ngx_http_referral_cookie_conf_t   *conf;
    ngx_http_compile_complex_value_t   ccv;

    conf = attrs->conf;

    if (ngx_strcmp(value->data, "auto") == 0) {
        conf->secure = NGX_HTTP_REFERRAL_SECURE_AUTO;
        return NGX_CONF_OK;
    }

    if (ngx_strcmp(value->data, "on") == 0) {
        conf->secure = NGX_HTTP_REFERRAL_SECURE_ON;
        return NGX_CONF_OK;
    }

    if (ngx_strcmp(value->data, "off") == 0) {
        conf->secure = NGX_HTTP_REFERRAL_SECURE_OFF;
        return NGX_CONF_OK;
    }

    if (value->len < 2 || value->data[0] != '$') {
        return "give \"auto\", \"on\", \"off\" or a variable";
    }

    conf->secure = NGX_HTTP_REFERRAL_SECURE_VAR;

    conf->secure_value = ngx_palloc(cf->pool,
                                    sizeof(ngx_http_complex_value_t));
    if (conf->secure_value == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = value;
    ccv.complex_value = conf->secure_value;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* what a browser would silently refuse is refused here aloud */

static char *
ngx_http_referral_cookie_check(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs)
{
    const char  *problem;

    problem = ngx_http_referral_cookie_chars(attrs);

    if (problem == NULL) {
        problem = ngx_http_referral_cookie_pairs(attrs);
    }

    if (problem == NULL) {
        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid \"referral_cookie\" \"%V\": %s",
                       &attrs->conf->name, problem);

    return NGX_CONF_ERROR;
}


static const char *
ngx_http_referral_cookie_chars(ngx_http_referral_cookie_attrs_t *attrs)
{
    u_char      ch;
    ngx_str_t  *name;
    ngx_uint_t  i;

    name = &attrs->conf->name;

    if (name->len == 0) {
        return "the name is empty";
    }

    /* RFC 6265: a token of RFC 2616 */

    for (i = 0; i < name->len; i++) {
        ch = name->data[i];

        if (ch <= ' ' || ch >= 0x7f || ngx_strchr("()<>@,;:\\\"/[]?={}", ch)) {
            return "the name has a character that cookie names can not have";
        }
    }

    for (i = 0; i < attrs->domain.len; i++) {
        ch = attrs->domain.data[i];

        if (!((ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z')
              || (ch >= '0' && ch <= '9') || ch == '.' || ch == '-'))
        {
            return "\"domain\" is no name of a host";
        }
    }

    if (attrs->path.len == 0 || attrs->path.data[0] != '/') {
        return "\"path\" does not begin with \"/\"";
    }

    for (i = 0; i < attrs->path.len; i++) {
        ch = attrs->path.data[i];

        if (ch < ' ' || ch >= 0x7f || ch == ';') {
            return "\"path\" has a control character or \";\"";
        }
    }

    return NULL;
}


static const char *
ngx_http_referral_cookie_pairs(ngx_http_referral_cookie_attrs_t *attrs)
{
    ngx_http_referral_cookie_conf_t  *conf;

    conf = attrs->conf;

    if (attrs->samesite == NGX_HTTP_REFERRAL_SAMESITE_NONE
        && conf->secure == NGX_HTTP_REFERRAL_SECURE_OFF)
    {
        return "\"samesite=none\" does not go with \"secure=off\"";
    }

    if (ngx_http_referral_begins(&conf->name, "__Secure-")
        && conf->secure != NGX_HTTP_REFERRAL_SECURE_ON)
    {
        return "the prefix \"__Secure-\" demands \"secure=on\"";
    }

    if (ngx_http_referral_begins(&conf->name, "__Host-")
        && (conf->secure != NGX_HTTP_REFERRAL_SECURE_ON || attrs->domain.len
            || attrs->path.len != 1))
    {
        return "the prefix \"__Host-\" demands \"secure=on\", \"path=/\" "
               "and no \"domain\"";
    }

    return NULL;
}


/* everything but the token and "Secure", which a request decides */

static char *
ngx_http_referral_cookie_render(ngx_conf_t *cf,
    ngx_http_referral_cookie_attrs_t *attrs)
{
    u_char                           *p;
    ngx_str_t                        *samesite;
    ngx_http_referral_cookie_conf_t  *conf;

    conf = attrs->conf;
    samesite = &ngx_http_referral_samesite_words[attrs->samesite];

    conf->visitor = attrs->visitor;

    p = ngx_pnalloc(cf->pool, sizeof("; Path=; Max-Age=; Domain=") - 1
                              + sizeof("; HttpOnly; SameSite=") - 1
                              + attrs->path.len + NGX_TIME_T_LEN
                              + attrs->domain.len + samesite->len);
    if (p == NULL) {
        return NGX_CONF_ERROR;
    }

    conf->path.data = p;
    p = ngx_sprintf(p, "; Path=%V", &attrs->path);
    conf->path.len = p - conf->path.data;

    conf->max_age.data = p;
    p = ngx_sprintf(p, "; Max-Age=%T", conf->age);
    conf->max_age.len = p - conf->max_age.data;

    conf->domain.data = p;

    if (attrs->domain.len) {
        p = ngx_sprintf(p, "; Domain=%V", &attrs->domain);
    }

    conf->domain.len = p - conf->domain.data;

    conf->flags.data = p;
    p = ngx_sprintf(p, "%s; SameSite=%V", attrs->httponly ? "; HttpOnly" : "",
                    samesite);
    conf->flags.len = p - conf->flags.data;

    return NGX_CONF_OK;
}


char *
ngx_http_referral_consent(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_srv_conf_t  *rscf = conf;

    ngx_str_t                         *value;
    ngx_http_compile_complex_value_t   ccv;

    if (rscf->consent_not_required != NGX_CONF_UNSET) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "not_required") == 0) {
        rscf->consent_not_required = 1;
        return NGX_CONF_OK;
    }

    /* a constant would be an answer given for everyone */

    if (value[1].len < 2 || value[1].data[0] != '$') {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid \"referral_consent\" \"%V\": give a "
                           "variable that is neither empty nor \"0\" once the "
                           "visitor has agreed, or \"not_required\"",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    rscf->consent_not_required = 0;

    rscf->consent = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));
    if (rscf->consent == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = rscf->consent;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


char *
ngx_http_referral_secret(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_referral_main_conf_t  *rmcf = conf;

    char        *rv;
    ngx_str_t   *value;
    ngx_file_t   file;

    if (rmcf->keyring != NULL) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_conf_full_name(cf->cycle, &value[1], 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    rmcf->secret = value[1];

    rmcf->keyring = ngx_pcalloc(cf->pool, sizeof(referral_keyring_t));
    if (rmcf->keyring == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&file, sizeof(ngx_file_t));

    file.name = value[1];
    file.log = cf->log;

    file.fd = ngx_open_file(value[1].data, NGX_FILE_RDONLY|NGX_FILE_NONBLOCK,
                            NGX_FILE_OPEN, 0);

    if (file.fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"referral_secret\": " ngx_open_file_n
                           " \"%V\" failed; make one with \"(umask 077; echo "
                           "1:$(openssl rand -base64 32) > %V)\"",
                           &value[1], &value[1]);
        return NGX_CONF_ERROR;
    }

    rv = ngx_http_referral_secret_read(cf, &value[1], &file, rmcf->keyring);

    if (ngx_close_file(file.fd) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_ALERT, cf, ngx_errno,
                           ngx_close_file_n " \"%V\" failed", &value[1]);
    }

    return rv;
}


static char *
ngx_http_referral_secret_check(ngx_conf_t *cf, ngx_str_t *name,
    ngx_file_t *file)
{
    if (ngx_fd_info(file->fd, &file->info) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"referral_secret\": " ngx_fd_info_n
                           " \"%V\" failed", name);
        return NGX_CONF_ERROR;
    }

    if (!ngx_is_file(&file->info)
        || ngx_file_size(&file->info) > NGX_HTTP_REFERRAL_SECRET_SIZE)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_secret\": \"%V\" is not a file of "
                           "lines \"id:base64\"", name);
        return NGX_CONF_ERROR;
    }

    if (file->info.st_mode & 0007) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_secret\": \"%V\" has mode 0%ui%ui%ui "
                           "and is open to every user of this machine; run "
                           "\"chmod o-rwx %V\"", name,
                           (ngx_uint_t) (file->info.st_mode >> 6) & 7,
                           (ngx_uint_t) (file->info.st_mode >> 3) & 7,
                           (ngx_uint_t) file->info.st_mode & 7, name);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_referral_secret_read(ngx_conf_t *cf, ngx_str_t *name,
    ngx_file_t *file, referral_keyring_t *ring)
{
    int      rc;
    char     error[REFERRAL_ERROR_LEN];
    u_char  *buf;
    size_t   size;
    ssize_t  n;

    if (ngx_http_referral_secret_check(cf, name, file) != NGX_CONF_OK) {
        return NGX_CONF_ERROR;
    }

    size = (size_t) ngx_file_size(&file->info);

    buf = ngx_alloc(size + 1, cf->log);
    if (buf == NULL) {
        return NGX_CONF_ERROR;
    }

    n = ngx_read_fd(file->fd, buf, size);

    if (n != (ssize_t) size) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, n == -1 ? ngx_errno : 0,
                           "\"referral_secret\": " ngx_read_fd_n
                           " \"%V\" failed", name);
        ngx_explicit_memzero(buf, size + 1);
        ngx_free(buf);
        return NGX_CONF_ERROR;
    }

    rc = referral_keyring_parse(ring, buf, size, error);

    ngx_explicit_memzero(buf, size + 1);
    ngx_free(buf);

    if (rc != REFERRAL_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"referral_secret\": \"%V\": %s", name, error);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}
