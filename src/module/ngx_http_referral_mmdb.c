
/*
 * Copyright (C) The nginx referral module authors
 */


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_referral_mmdb.h"

#include "referral_core.h"

#include <sys/mman.h>
#include <sys/sendfile.h>


/* of one step, so that the event loop is held about a millisecond */

#define NGX_HTTP_REFERRAL_MMDB_CHUNK    (256 * 1024)
#define NGX_HTTP_REFERRAL_MMDB_NODES    16384

/* records that are decoded whole to verify a database, about */

#define NGX_HTTP_REFERRAL_MMDB_SAMPLES  1024

/* zero bytes between the search tree and the data */

#define NGX_HTTP_REFERRAL_MMDB_GAP      16

#define NGX_HTTP_REFERRAL_MMDB_SEALS                                          \
    (F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_WRITE|F_SEAL_SEAL)


static void ngx_http_referral_mmdb_identify(ngx_http_referral_mmdb_id_t *id,
    const struct stat *st);
static ngx_int_t ngx_http_referral_mmdb_copy(
    ngx_http_referral_mmdb_load_t *load, const char *path, char *error);
static ngx_int_t ngx_http_referral_mmdb_open(
    ngx_http_referral_mmdb_load_t *load, const char *path, char *error);
static ngx_int_t ngx_http_referral_mmdb_verify(
    ngx_http_referral_mmdb_load_t *load, const char *path, char *error);
static ngx_int_t ngx_http_referral_mmdb_verify_record(uint8_t type,
    MMDB_entry_s *entry, ngx_uint_t decode);
static ngx_int_t ngx_http_referral_mmdb_failed(
    ngx_http_referral_mmdb_load_t *load, const char *path, char *error,
    const char *action, const char *reason);


ngx_int_t
ngx_http_referral_mmdb_stat(const char *path, ngx_http_referral_mmdb_id_t *id)
{
    struct stat  st;

    if (stat(path, &st) == -1) {
        return NGX_ERROR;
    }

    if (!S_ISREG(st.st_mode)) {
        ngx_set_errno(EINVAL);
        return NGX_ERROR;
    }

    ngx_http_referral_mmdb_identify(id, &st);

    return NGX_OK;
}


static void
ngx_http_referral_mmdb_identify(ngx_http_referral_mmdb_id_t *id,
    const struct stat *st)
{
    id->dev = st->st_dev;
    id->ino = st->st_ino;
    id->size = st->st_size;
    id->mtime = st->st_mtim;
}


ngx_uint_t
ngx_http_referral_mmdb_same(const ngx_http_referral_mmdb_id_t *a,
    const ngx_http_referral_mmdb_id_t *b)
{
    return a->dev == b->dev
           && a->ino == b->ino
           && a->size == b->size
           && a->mtime.tv_sec == b->mtime.tv_sec
           && a->mtime.tv_nsec == b->mtime.tv_nsec;
}


ngx_int_t
ngx_http_referral_mmdb_begin(ngx_http_referral_mmdb_load_t *load,
    const char *path, char *error)
{
    struct stat  st;

    ngx_memzero(load, sizeof(ngx_http_referral_mmdb_load_t));

    load->active = 1;
    load->copy = NGX_INVALID_FILE;

    /* O_NONBLOCK: a fifo of that name must not stop the worker */

    load->fd = open(path, O_RDONLY|O_NONBLOCK|O_CLOEXEC);

    if (load->fd == NGX_INVALID_FILE) {
        return ngx_http_referral_mmdb_failed(load, path, error, "open",
                                             strerror(ngx_errno));
    }

    if (fstat(load->fd, &st) == -1) {
        return ngx_http_referral_mmdb_failed(load, path, error, "fstat",
                                             strerror(ngx_errno));
    }

    if (!S_ISREG(st.st_mode)) {
        return ngx_http_referral_mmdb_failed(load, path, error, "open",
                                             "not a regular file");
    }

    if (st.st_size == 0) {
        return ngx_http_referral_mmdb_failed(load, path, error, "read",
                                             "the file is empty");
    }

    ngx_http_referral_mmdb_identify(&load->id, &st);

    load->copy = memfd_create("referral_geoip", MFD_CLOEXEC|MFD_ALLOW_SEALING);

    if (load->copy == NGX_INVALID_FILE) {
        return ngx_http_referral_mmdb_failed(load, path, error,
                                             "memfd_create",
                                             strerror(ngx_errno));
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_referral_mmdb_step(ngx_http_referral_mmdb_load_t *load,
    const char *path, char *error)
{
    ngx_int_t  rc;

    if (load->open) {
        rc = ngx_http_referral_mmdb_verify(load, path, error);

        if (rc == NGX_OK) {

            /* the mapping stays, and is the caller's */

            load->open = 0;
            ngx_http_referral_mmdb_abort(load);
        }

        return rc;
    }

    if (load->copied < load->id.size) {
        return ngx_http_referral_mmdb_copy(load, path, error);
    }

    return ngx_http_referral_mmdb_open(load, path, error);
}


static ngx_int_t
ngx_http_referral_mmdb_copy(ngx_http_referral_mmdb_load_t *load,
    const char *path, char *error)
{
    size_t   size;
    ssize_t  n;

    size = (size_t) ngx_min(load->id.size - load->copied,
                            NGX_HTTP_REFERRAL_MMDB_CHUNK);

    n = sendfile(load->copy, load->fd, NULL, size);

    if (n == -1) {

        if (ngx_errno == NGX_EINTR || ngx_errno == NGX_EAGAIN) {
            return NGX_AGAIN;
        }

        return ngx_http_referral_mmdb_failed(load, path, error, "copy",
                                             strerror(ngx_errno));
    }

    if (n == 0) {
        return ngx_http_referral_mmdb_failed(load, path, error, "copy",
                                             "the file became shorter");
    }

    load->copied += n;

    return NGX_AGAIN;
}


static ngx_int_t
ngx_http_referral_mmdb_open(ngx_http_referral_mmdb_load_t *load,
    const char *path, char *error)
{
    int                           rc;
    char                          name[sizeof("/proc/self/fd/")
                                       + NGX_INT_T_LEN];
    const char                   *gap;
    struct stat                   st;
    ngx_http_referral_mmdb_id_t   id;

    static const u_char           zero[NGX_HTTP_REFERRAL_MMDB_GAP];

    if (fstat(load->fd, &st) == -1) {
        return ngx_http_referral_mmdb_failed(load, path, error, "fstat",
                                             strerror(ngx_errno));
    }

    ngx_http_referral_mmdb_identify(&id, &st);

    if (!ngx_http_referral_mmdb_same(&id, &load->id)) {
        return ngx_http_referral_mmdb_failed(load, path, error, "copy",
                                             "the file changed meanwhile");
    }

    if (fcntl(load->copy, F_ADD_SEALS, NGX_HTTP_REFERRAL_MMDB_SEALS) == -1) {
        return ngx_http_referral_mmdb_failed(load, path, error, "seal",
                                             strerror(ngx_errno));
    }

    snprintf(name, sizeof(name), "/proc/self/fd/%d", load->copy);

    rc = MMDB_open(name, MMDB_MODE_MMAP, &load->mmdb);

    if (rc != MMDB_SUCCESS) {
        return ngx_http_referral_mmdb_failed(load, path, error, "load",
                                             MMDB_strerror(rc));
    }

    load->open = 1;

    if (load->mmdb.metadata.node_count == 0
        || load->mmdb.metadata.database_type == NULL
        || (load->mmdb.metadata.ip_version != 4
            && load->mmdb.metadata.ip_version != 6))
    {
        return ngx_http_referral_mmdb_failed(load, path, error, "load",
                                             "its metadata make no sense");
    }

    gap = (const char *) load->mmdb.data_section - NGX_HTTP_REFERRAL_MMDB_GAP;

    if (ngx_memcmp(gap, zero, NGX_HTTP_REFERRAL_MMDB_GAP) != 0) {
        return ngx_http_referral_mmdb_failed(load, path, error, "load",
                                       "its data do not follow its tree");
    }

    return NGX_AGAIN;
}


/* every node of the tree, and some of the records that it leads to */

static ngx_int_t
ngx_http_referral_mmdb_verify(ngx_http_referral_mmdb_load_t *load,
    const char *path, char *error)
{
    uint32_t            count, end, step;
    ngx_uint_t          decode;
    MMDB_search_node_s  node;

    count = load->mmdb.metadata.node_count;
    end = load->node + ngx_min(count - load->node,
                               NGX_HTTP_REFERRAL_MMDB_NODES);
    step = count / NGX_HTTP_REFERRAL_MMDB_SAMPLES + 1;

    for ( /* void */ ; load->node < end; load->node++) {

        decode = load->node % step == 0;

        if (MMDB_read_node(&load->mmdb, load->node, &node) != MMDB_SUCCESS
            || ngx_http_referral_mmdb_verify_record(node.left_record_type,
                                                    &node.left_record_entry,
                                                    decode)
               != NGX_OK
            || ngx_http_referral_mmdb_verify_record(node.right_record_type,
                                                    &node.right_record_entry,
                                                    decode)
               != NGX_OK)
        {
            return ngx_http_referral_mmdb_failed(load, path, error, "load",
                                                 "its data are corrupt");
        }
    }

    return load->node == count ? NGX_OK : NGX_AGAIN;
}


static ngx_int_t
ngx_http_referral_mmdb_verify_record(uint8_t type, MMDB_entry_s *entry,
    ngx_uint_t decode)
{
    int                      rc;
    MMDB_entry_data_list_s  *list;

    if (type == MMDB_RECORD_TYPE_INVALID) {
        return NGX_ERROR;
    }

    if (type != MMDB_RECORD_TYPE_DATA || !decode) {
        return NGX_OK;
    }

    list = NULL;

    rc = MMDB_get_entry_data_list(entry, &list);

    if (list != NULL) {
        MMDB_free_entry_data_list(list);
    }

    return rc == MMDB_SUCCESS ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_referral_mmdb_failed(ngx_http_referral_mmdb_load_t *load,
    const char *path, char *error, const char *action, const char *reason)
{
    snprintf(error, REFERRAL_ERROR_LEN, "cannot %s \"%s\": %s", action, path,
             reason);

    ngx_http_referral_mmdb_abort(load);

    return NGX_ERROR;
}


void
ngx_http_referral_mmdb_abort(ngx_http_referral_mmdb_load_t *load)
{
    if (!load->active) {
        return;
    }

    if (load->open) {
        MMDB_close(&load->mmdb);
        load->open = 0;
    }

    if (load->fd != NGX_INVALID_FILE) {
        close(load->fd);
    }

    if (load->copy != NGX_INVALID_FILE) {
        close(load->copy);
    }

    load->active = 0;
}
