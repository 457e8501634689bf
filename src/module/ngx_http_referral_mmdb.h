
/*
 * Copyright (C) The nginx referral module authors
 *
 * Loading a database of MaxMind's format: the file is copied into sealed
 * memory and verified there, so what happens to the file afterwards cannot
 * hurt a worker that has the copy mapped.
 */


#ifndef _NGX_HTTP_REFERRAL_MMDB_H_INCLUDED_
#define _NGX_HTTP_REFERRAL_MMDB_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include <maxminddb.h>


/* one content of a path: another file, or the same one written again */

typedef struct {
    dev_t                        dev;
    ino_t                        ino;
    off_t                        size;
    struct timespec              mtime;
} ngx_http_referral_mmdb_id_t;


typedef struct {
    ngx_http_referral_mmdb_id_t  id;
    MMDB_s                       mmdb;             /* when open */
    off_t                        copied;
    uint32_t                     node;             /* verified up to here */
    ngx_fd_t                     fd;
    ngx_fd_t                     copy;
    unsigned                     open:1;
    unsigned                     active:1;
} ngx_http_referral_mmdb_load_t;


/*
 * The identity of what the path names now.  NGX_ERROR: errno says why; not a
 * regular file is EINVAL.
 */
ngx_int_t ngx_http_referral_mmdb_stat(const char *path,
    ngx_http_referral_mmdb_id_t *id);

ngx_uint_t ngx_http_referral_mmdb_same(const ngx_http_referral_mmdb_id_t *a,
    const ngx_http_referral_mmdb_id_t *b);

/* NGX_ERROR with a sentence in error[REFERRAL_ERROR_LEN] */
ngx_int_t ngx_http_referral_mmdb_begin(ngx_http_referral_mmdb_load_t *load,
    const char *path, char *error);

/*
 * About a millisecond of work.  NGX_AGAIN: more is left.  NGX_OK: load->mmdb
 * is open, verified, and the caller's to close.  NGX_ERROR: with a sentence,
 * nothing is left to abort.
 */
ngx_int_t ngx_http_referral_mmdb_step(ngx_http_referral_mmdb_load_t *load,
    const char *path, char *error);

void ngx_http_referral_mmdb_abort(ngx_http_referral_mmdb_load_t *load);


#endif /* _NGX_HTTP_REFERRAL_MMDB_H_INCLUDED_ */
