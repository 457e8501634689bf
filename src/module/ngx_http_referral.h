
/*
 * Copyright (C) The nginx referral module authors
 *
 * What the files of the module share: configurations and the request's
 * context.  Each subject has a header of its own beside this one.
 */


#ifndef _NGX_HTTP_REFERRAL_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_referral_compat.h"

#include "referral_core.h"
#include "referral_code.h"
#include "referral_destination.h"
#include "referral_ip.h"
#include "referral_rule.h"
#include "referral_token.h"
#include "referral_uuid.h"


#define NGX_HTTP_REFERRAL_IP_OFF        0
#define NGX_HTTP_REFERRAL_IP_MASK       1
#define NGX_HTTP_REFERRAL_IP_FULL       2

#define NGX_HTTP_REFERRAL_REFERER_OFF   0
#define NGX_HTTP_REFERRAL_REFERER_HOST  1
#define NGX_HTTP_REFERRAL_REFERER_FULL  2

#define NGX_HTTP_REFERRAL_LAST          0
#define NGX_HTTP_REFERRAL_FIRST         1

#define NGX_HTTP_REFERRAL_SECURE_AUTO   0
#define NGX_HTTP_REFERRAL_SECURE_ON     1
#define NGX_HTTP_REFERRAL_SECURE_OFF    2
#define NGX_HTTP_REFERRAL_SECURE_VAR    3

#define NGX_HTTP_REFERRAL_V4_PREFIX     24
#define NGX_HTTP_REFERRAL_V6_PREFIX     48

/* a click with the code of the last touch this soon after it is a duplicate */

#define NGX_HTTP_REFERRAL_DUPLICATE     10000  /* ms */


typedef struct ngx_http_referral_redis_conf_s
    ngx_http_referral_redis_conf_t;
typedef struct ngx_http_referral_zone_conf_s
    ngx_http_referral_zone_conf_t;
typedef struct ngx_http_referral_limit_conf_s
    ngx_http_referral_limit_conf_t;
typedef struct ngx_http_referral_journal_conf_s
    ngx_http_referral_journal_conf_t;
typedef struct ngx_http_referral_geo_conf_s
    ngx_http_referral_geo_conf_t;


typedef struct {
    ngx_http_referral_redis_conf_t    *redis;      /* NULL: not configured */
    ngx_http_referral_zone_conf_t     *zone;
    ngx_http_referral_limit_conf_t    *limit;
    ngx_http_referral_journal_conf_t  *journal;
    ngx_http_referral_geo_conf_t      *geo;
    referral_keyring_t                *keyring;
    ngx_str_t                          secret;     /* file, for messages */

    unsigned                           used:1;     /* by some server */
} ngx_http_referral_main_conf_t;


typedef struct {
    ngx_str_t                     name;            /* len 0: off */
    ngx_str_t                     domain;          /* rendered "; Domain=x" */
    ngx_str_t                     path;            /* rendered "; Path=/" */
    ngx_str_t                     max_age;         /* rendered */
    ngx_str_t                     flags;           /* HttpOnly, SameSite */
    time_t                        age;             /* seconds */
    ngx_uint_t                    secure;          /* ..._SECURE_* */
    ngx_http_complex_value_t     *secure_value;    /* of ..._SECURE_VAR */
    unsigned                      visitor:1;
} ngx_http_referral_cookie_conf_t;


typedef struct {
    ngx_flag_t                        enable;
    ngx_array_t                      *params;      /* referral_str_t */
    ngx_array_t                      *skip;        /* complex values */
    ngx_array_t                      *args;        /* ngx_str_t, "utm_*" */
    ngx_uint_t                        ip;
    ngx_uint_t                        referer;
    ngx_uint_t                        attribution;
    ngx_uint_t                        gpc;         /* 1: respect */
    ngx_flag_t                        strip;
    ngx_http_complex_value_t         *consent;     /* variable, or NULL */
    ngx_flag_t                        consent_not_required;
    ngx_http_referral_cookie_conf_t  *cookie;      /* never NULL once merged */

    unsigned                          redirect:1;  /* has /r/ locations */
} ngx_http_referral_srv_conf_t;


typedef struct {
    ngx_flag_t                        redirect;
    ngx_http_complex_value_t         *code;        /* NULL: rest of the URI */
    ngx_http_complex_value_t         *fallback;
    ngx_uint_t                        passthrough; /* referral_passthrough_e */
} ngx_http_referral_loc_conf_t;


/* the rule of a code, copied from the zone to the request's pool */

typedef struct {
    ngx_str_t                     url;
    ngx_str_t                     campaign;
    int64_t                       code_id;
    int64_t                       program_id;
    int64_t                       referrer_id;
    uint64_t                      version;
} ngx_http_referral_rule_t;


typedef struct ngx_http_referral_ctx_s  ngx_http_referral_ctx_t;

typedef void (*ngx_http_referral_wake_pt)(ngx_http_referral_ctx_t *ctx);


/*
 * Allocated with the request's pool cleanup, so that it is found again after
 * internal redirects: ngx_http_referral_get_ctx().
 */

struct ngx_http_referral_ctx_s {
    ngx_http_request_t           *request;         /* the main request */

    /* see it and read the code */

    ngx_str_t                     code;            /* folded, or as sent */
    u_char                        code_data[REFERRAL_CODE_LEN];
    uint32_t                      hash;            /* of it, in the zone */
    referral_via_e                via;
    ngx_str_t                     path;            /* asked for, decoded */
    ngx_str_t                     args;            /* asked for, undecoded */

    /* what the request's headers say, when headers_read */

    ngx_uint_t                    signals;         /* REFERRAL_SIGNAL_* */
    ngx_str_t                     language;

    /* look it up: set by ngx_http_referral_lookup.c */

    referral_verdict_e            verdict;
    referral_cache_e              cache;
    ngx_http_referral_rule_t     *rule;            /* NULL: no record of it */
    void                         *wait;            /* the operation, or NULL */
    ngx_queue_t                   waiters;         /* link in the operation */
    ngx_http_referral_wake_pt     wake;            /* from the event loop */

    /* the token that came with the request */

    referral_token_t              token;           /* when has_token */
    referral_token_t              new_token;       /* when set_token */
    ngx_str_t                     set_cookie;      /* rendered, or len 0 */

    /* commit it */

    u_char                        id[REFERRAL_UUID_LEN];
    u_char                        id_text[REFERRAL_UUID_TEXT_LEN];
    u_char                        country_data[2];
    ngx_str_t                     country;
    ngx_str_t                     city;
    ngx_uint_t                    asn;
    ngx_str_t                     destination;     /* of a redirect, sent */
    ngx_str_t                     target;          /* same, as recorded */

    unsigned                      seen:1;          /* has a code to judge */
    unsigned                      judged:1;        /* verdict is final */
    unsigned                      busy:1;          /* over the miss limit */
    unsigned                      limited:1;       /* same, not answered yet */
    unsigned                      committed:1;     /* tried, once */
    unsigned                      accepted:1;      /* appended, has an id */
    unsigned                      skip:1;          /* referral_skip said so */
    unsigned                      token_read:1;
    unsigned                      has_token:1;
    unsigned                      set_token:1;     /* send new_token */
    unsigned                      geo_read:1;
    unsigned                      id_read:1;       /* id_text is there */
    unsigned                      duplicate:1;

    unsigned                      captured:1;      /* parameter looked for */
    unsigned                      waiting:1;       /* suspended by us */
    unsigned                      headers_read:1;
    unsigned                      document:1;      /* it is a navigation */
    unsigned                      declined:1;      /* response forbade it */
    unsigned                      redirect:1;      /* in a /r/ location */
    unsigned                      strip:1;         /* redirected to strip */
    unsigned                      skip_read:1;
    unsigned                      consent:1;
    unsigned                      consent_read:1;
};


extern ngx_module_t  ngx_http_referral_module;


#endif /* _NGX_HTTP_REFERRAL_H_INCLUDED_ */
