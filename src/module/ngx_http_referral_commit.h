
/*
 * Copyright (C) The nginx referral module authors
 *
 * The one moment at which a click is recorded.
 */


#ifndef _NGX_HTTP_REFERRAL_COMMIT_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_COMMIT_H_INCLUDED_


#include "ngx_http_referral.h"


ngx_int_t ngx_http_referral_commit_init_process(ngx_cycle_t *cycle);

/*
 * Records the click of ctx, if there is one to record and it was not tried
 * before: skip, consent, geo, masking, id, record, append, token.  Nothing
 * that happens here fails the request.
 */
void ngx_http_referral_commit(ngx_http_referral_ctx_t *ctx);

/* 1 when referral_skip says so, asked once a request */
ngx_uint_t ngx_http_referral_commit_skip(ngx_http_referral_ctx_t *ctx);

/* 1 when the click becomes a touch of the token, once it is accepted */
ngx_uint_t ngx_http_referral_commit_remembers(ngx_http_referral_ctx_t *ctx);

/* geo of the client for variables, looked up once a request */
void ngx_http_referral_commit_geo(ngx_http_referral_ctx_t *ctx);

/* of an accepted click, REFERRAL_UUID_TEXT_LEN bytes; made when it is read */
u_char *ngx_http_referral_commit_id(ngx_http_referral_ctx_t *ctx);


#endif /* _NGX_HTTP_REFERRAL_COMMIT_H_INCLUDED_ */
