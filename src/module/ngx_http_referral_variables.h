
/*
 * Copyright (C) The nginx referral module authors
 *
 * The $referral_* variables.
 */


#ifndef _NGX_HTTP_REFERRAL_VARIABLES_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_VARIABLES_H_INCLUDED_


#include "ngx_http_referral.h"


ngx_int_t ngx_http_referral_add_variables(ngx_conf_t *cf);


#endif /* _NGX_HTTP_REFERRAL_VARIABLES_H_INCLUDED_ */
