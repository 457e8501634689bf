
/*
 * Copyright (C) The nginx referral module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_fault.h"
#include "referral_reader_private.h"
#include "referral_record.h"
#include "referral_uuid.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


#define REFERRAL_READER_TRIES  8           /* listings of a moving directory */


static int referral_journal_add(referral_journal_t *j, const char *name,
    char *error);
static referral_stream_t *referral_journal_find(const referral_journal_t *j,
    const char *name);
static void referral_journal_measure(referral_journal_t *j);
static void referral_stream_free(referral_stream_t *s);
static int referral_stream_list(referral_stream_t *s, int dir, char *error);
static int referral_stream_read_names(referral_stream_t *s, DIR *dp,
    char *error);
static void referral_stream_replace(referral_stream_t *s,
    referral_segment_t *segs, size_t n);
static int referral_segment_is_name(const char *name, uint64_t *first);
static int referral_segment_load(referral_stream_t *s, int dir,
    const char *name, referral_segment_t *seg, char *error);
static void referral_segment_identify(const referral_stream_t *s,
    referral_segment_t *seg, uint64_t named, int fd, const u_char *page,
    size_t len);
static int referral_segment_probe(int fd, uint32_t salt, uint64_t *first);
static int referral_segment_compare(const void *a, const void *b);


int
referral_journal_open(referral_journal_t **jp, const char *path, char *error)
{
    referral_journal_t  *j;

    *jp = NULL;

    j = calloc(1, sizeof(referral_journal_t));

    if (j == NULL || (j->path = strdup(path)) == NULL) {
        free(j);
        snprintf(error, REFERRAL_ERROR_LEN, "journal \"%s\": no memory", path);
        return REFERRAL_ERROR;
    }

    j->lock = -1;
    j->dir = open(path, O_RDONLY|O_DIRECTORY|O_CLOEXEC);

    if (j->dir == -1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\" cannot be opened as a directory: %s", path,
                 strerror(errno));
        referral_journal_close(j);
        return REFERRAL_ERROR;
    }

    if (referral_journal_scan(j, error) == REFERRAL_ERROR) {
        referral_journal_close(j);
        return REFERRAL_ERROR;
    }

    *jp = j;

    return REFERRAL_OK;
}


void
referral_journal_close(referral_journal_t *j)
{
    size_t  i;

    if (j == NULL) {
        return;
    }

    for (i = 0; i < j->nstreams; i++) {
        referral_stream_free(j->streams[i]);
    }

    if (j->lock != -1) {
        (void) close(j->lock);
    }

    if (j->dir != -1) {
        (void) close(j->dir);
    }

    free(j->streams);
    free(j->path);
    free(j);
}


int
referral_journal_lock(referral_journal_t *j, char *error)
{
    int           fd, len;
    char          pid[32];
    ssize_t       n;
    struct flock  fl;

    if (j->lock != -1) {
        return REFERRAL_OK;
    }

    fd = openat(j->dir, REFERRAL_READER_LOCK,
                O_RDWR|O_CREAT|O_NOFOLLOW|O_CLOEXEC, 0660);
    if (fd == -1) {
        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\" cannot be opened: %s",
                 j->path, REFERRAL_READER_LOCK, strerror(errno));
        return REFERRAL_ERROR;
    }

    memset(&fl, 0, sizeof(struct flock));
    fl.l_type = F_WRLCK;
    fl.l_whence = SEEK_SET;

    if (fcntl(fd, F_OFD_SETLK, &fl) == -1) {

        if (errno != EAGAIN && errno != EACCES) {
            snprintf(error, REFERRAL_ERROR_LEN,
                     "\"%s/%s\" cannot be locked: %s", j->path,
                     REFERRAL_READER_LOCK, strerror(errno));
            (void) close(fd);
            return REFERRAL_ERROR;
        }

        /* such locks have no owner that the kernel could name */

        n = pread(fd, pid, sizeof(pid) - 1, 0);
        pid[n > 0 ? n : 0] = '\0';
        pid[strspn(pid, "0123456789")] = '\0';

        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\" is read by another process%s%s", j->path,
                 pid[0] ? ", pid " : "", pid);
        (void) close(fd);
        return REFERRAL_DECLINED;
    }

    len = snprintf(pid, sizeof(pid), "%ld\n", (long) getpid());

    if (ftruncate(fd, 0) == -1 || pwrite(fd, pid, (size_t) len, 0) != len) {
        /* the pid is for people; the lock is what counts */
    }

    j->lock = fd;

    return REFERRAL_OK;
}


int
referral_journal_scan(referral_journal_t *j, char *error)
{
    int                 fd, rc, rv;
    char                text[REFERRAL_ERROR_LEN];
    DIR                *dp;
    size_t              i, n;
    struct dirent      *de;
    referral_stream_t  *s;

    fd = openat(j->dir, ".", O_RDONLY|O_DIRECTORY|O_CLOEXEC);
    dp = fd == -1 ? NULL : fdopendir(fd);

    if (dp == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\" cannot be listed: %s", j->path,
                 strerror(errno));
        if (fd != -1) {
            (void) close(fd);
        }

        return REFERRAL_ERROR;
    }

    rc = REFERRAL_OK;

    while (rc == REFERRAL_OK && (de = readdir(dp)) != NULL) {

        if (strlen(de->d_name) == REFERRAL_UUID_HEX_LEN
            && strspn(de->d_name, "0123456789abcdef")
               == REFERRAL_UUID_HEX_LEN
            && referral_journal_find(j, de->d_name) == NULL)
        {
            rc = referral_journal_add(j, de->d_name, error);
        }
    }

    (void) closedir(dp);

    n = 0;

    for (i = 0; i < j->nstreams; i++) {
        s = j->streams[i];
        rv = referral_stream_refresh(s, text);

        if (rv == REFERRAL_DECLINED) {
            referral_stream_free(s);
            continue;
        }

        if (rv != REFERRAL_OK && rc == REFERRAL_OK) {
            memcpy(error, text, REFERRAL_ERROR_LEN);
            rc = REFERRAL_AGAIN;
        }

        j->streams[n++] = s;
    }

    j->nstreams = n;

    referral_journal_measure(j);

    return rc;
}


static int
referral_journal_add(referral_journal_t *j, const char *name, char *error)
{
    size_t               room;
    struct stat          st;
    referral_stream_t   *s, **streams;
    referral_cursor_t   *c;

    /* files and links with such names are not ours */

    if (fstatat(j->dir, name, &st, AT_SYMLINK_NOFOLLOW) == -1
        || !S_ISDIR(st.st_mode))
    {
        return REFERRAL_OK;
    }

    if (j->nstreams == j->room) {
        room = j->room ? 2 * j->room : 16;
        streams = realloc(j->streams, room * sizeof(referral_stream_t *));

        if (streams == NULL) {
            goto failed;
        }

        j->streams = streams;
        j->room = room;
    }

    s = calloc(1, sizeof(referral_stream_t));
    c = calloc(1, sizeof(referral_cursor_t));

    if (s == NULL || c == NULL) {
        free(s);
        free(c);
        goto failed;
    }

    c->fd = -1;
    s->cursor = c;
    s->journal = j;
    s->next = 1;
    memcpy(s->name, name, REFERRAL_UUID_HEX_LEN);

    if (referral_uuid_parse((u_char *) s->name, REFERRAL_UUID_HEX_LEN, s->id)
        != REFERRAL_OK)
    {
        referral_stream_free(s);
        return REFERRAL_OK;
    }

    j->streams[j->nstreams++] = s;

    return REFERRAL_OK;

failed:

    snprintf(error, REFERRAL_ERROR_LEN, "journal \"%s\": no memory", j->path);

    return REFERRAL_ERROR;
}


static referral_stream_t *
referral_journal_find(const referral_journal_t *j, const char *name)
{
    size_t  i;

    for (i = 0; i < j->nstreams; i++) {
        if (strcmp(j->streams[i]->name, name) == 0) {
            return j->streams[i];
        }
    }

    return NULL;
}


static void
referral_journal_measure(referral_journal_t *j)
{
    size_t               i, n;
    referral_stream_t   *s;
    referral_segment_t  *seg;

    j->bytes = 0;
    j->newest = 0;

    for (i = 0; i < j->nstreams; i++) {
        s = j->streams[i];

        for (n = 0; n < s->nsegments; n++) {
            seg = &s->segments[n];

            j->bytes += seg->allocated > seg->size ? seg->allocated
                                                   : seg->size;

            if (seg->header.salt && seg->header.created >= j->newest) {
                j->newest = seg->header.created;
                j->limit = seg->header.limit;
            }
        }
    }
}


size_t
referral_journal_streams(const referral_journal_t *j)
{
    return j->nstreams;
}


referral_stream_t *
referral_journal_stream(const referral_journal_t *j, size_t n)
{
    return n < j->nstreams ? j->streams[n] : NULL;
}


uint64_t
referral_journal_bytes(const referral_journal_t *j)
{
    return j->bytes;
}


uint64_t
referral_journal_limit(const referral_journal_t *j)
{
    return j->limit;
}


static void
referral_stream_free(referral_stream_t *s)
{
    referral_cursor_park(s->cursor);

    free(s->cursor);
    free(s->segments);
    free(s);
}


int
referral_stream_open_dir(const referral_stream_t *s)
{
    return openat(s->journal->dir, s->name,
                  O_RDONLY|O_DIRECTORY|O_NOFOLLOW|O_CLOEXEC);
}


int
referral_stream_refresh(referral_stream_t *s, char *error)
{
    int  dir, rc;

    dir = referral_stream_open_dir(s);

    if (dir == -1) {

        if (errno == ENOENT) {
            snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\" is gone",
                     s->journal->path, s->name);
            return REFERRAL_DECLINED;
        }

        snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s\" cannot be opened: %s",
                 s->journal->path, s->name, strerror(errno));
        return REFERRAL_ERROR;
    }

    rc = referral_stream_look(s, dir, error);

    if (rc == REFERRAL_OK) {
        rc = referral_stream_list(s, dir, error);
    }

    (void) close(dir);

    return rc;
}


/* a copied directory may have no lock file: nobody can hold it */

int
referral_stream_look(referral_stream_t *s, int dir, char *error)
{
    int           fd, rc;
    struct stat   st;
    struct flock  fl;

    rc = 0;
    memset(&fl, 0, sizeof(struct flock));
    fl.l_type = F_WRLCK;
    fl.l_whence = SEEK_SET;

    fd = openat(dir, REFERRAL_STREAM_LOCK,
                O_RDONLY|O_NOFOLLOW|O_NONBLOCK|O_CLOEXEC);

    if (fd != -1) {
        rc = fcntl(fd, F_OFD_GETLK, &fl);

    } else if (errno == ENOENT) {
        fl.l_type = F_UNLCK;

    } else {
        rc = -1;
    }

    if (rc == -1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "\"%s/%s/%s\" cannot be looked at: %s", s->journal->path,
                 s->name, REFERRAL_STREAM_LOCK, strerror(errno));
        if (fd != -1) {
            (void) close(fd);
        }

        return REFERRAL_ERROR;
    }

    if (fd != -1) {
        (void) close(fd);
    }

    s->cursor->live = (fl.l_type != F_UNLCK);
    s->state = s->cursor->live ? REFERRAL_STREAM_LIVE : REFERRAL_STREAM_FINAL;

    if (fstatat(dir, REFERRAL_STREAM_ASIDE, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        s->state = REFERRAL_STREAM_SET_ASIDE;
    }

    return REFERRAL_OK;
}


/* REFERRAL_AGAIN from below: a file was renamed between listing and opening */

static int
referral_stream_list(referral_stream_t *s, int dir, char *error)
{
    int       fd, rc;
    DIR      *dp;
    unsigned  tries;

    rc = REFERRAL_AGAIN;

    for (tries = 0; rc == REFERRAL_AGAIN && tries < REFERRAL_READER_TRIES;
         tries++)
    {
        fd = openat(dir, ".", O_RDONLY|O_DIRECTORY|O_CLOEXEC);
        dp = fd == -1 ? NULL : fdopendir(fd);

        if (dp == NULL) {
            snprintf(error, REFERRAL_ERROR_LEN,
                     "\"%s/%s\" cannot be listed: %s", s->journal->path,
                     s->name, strerror(errno));
            if (fd != -1) {
                (void) close(fd);
            }

            return REFERRAL_ERROR;
        }

        rc = referral_stream_read_names(s, dp, error);

        (void) closedir(dp);
    }

    return rc == REFERRAL_AGAIN ? REFERRAL_ERROR : rc;
}


static int
referral_stream_read_names(referral_stream_t *s, DIR *dp, char *error)
{
    int                  rc;
    size_t               n, room;
    uint64_t             first;
    struct dirent       *de;
    referral_segment_t  *segs, *more;

    n = 0;
    room = 0;
    segs = NULL;

    while ((de = readdir(dp)) != NULL) {

        if (!referral_segment_is_name(de->d_name, &first)) {
            continue;
        }

        if (n == room) {
            room = room ? 2 * room : s->nsegments + 8;
            more = realloc(segs, room * sizeof(referral_segment_t));

            if (more == NULL) {
                snprintf(error, REFERRAL_ERROR_LEN,
                         "\"%s/%s\": no memory", s->journal->path, s->name);
                free(segs);
                return REFERRAL_ERROR;
            }

            segs = more;
        }

        rc = referral_segment_load(s, dirfd(dp), de->d_name, &segs[n], error);

        if (rc == REFERRAL_OK) {
            n++;

        } else if (rc != REFERRAL_DECLINED) {
            free(segs);
            return rc;
        }
    }

    referral_stream_replace(s, segs, n);

    return REFERRAL_OK;
}


/*
 * Of two segments that claim the same first number one counts: the named one
 * before the spare (they may be the same file while it is being renamed),
 * then the one whose name agrees.
 */

static void
referral_stream_replace(referral_stream_t *s, referral_segment_t *segs,
    size_t n)
{
    size_t  i;

    if (n > 1) {
        qsort(segs, n, sizeof(referral_segment_t), referral_segment_compare);
    }

    for (i = 1; i < n && segs[i].used; i++) {

        if (segs[i].first == segs[i - 1].first && segs[i - 1].used) {
            segs[i].damaged = (segs[i].inode != segs[i - 1].inode);
            segs[i].used = 0;
            qsort(segs, n, sizeof(referral_segment_t),
                  referral_segment_compare);
            i--;
        }
    }

    free(s->segments);

    s->segments = segs;
    s->nsegments = n;
    s->nused = 0;

    while (s->nused < n && segs[s->nused].used) {
        s->nused++;
    }
}


static int
referral_segment_compare(const void *one, const void *two)
{
    int                        named1, named2;
    char                       name[64];
    const referral_segment_t  *a, *b;

    a = one;
    b = two;

    if (a->used != b->used) {
        return a->used ? -1 : 1;
    }

    if (a->first != b->first) {
        return a->first < b->first ? -1 : 1;
    }

    (void) snprintf(name, sizeof(name), REFERRAL_SEGMENT_NAME,
                    (unsigned long long) a->first);

    named1 = (strcmp(a->name, name) == 0);
    named2 = (strcmp(b->name, name) == 0);

    if (named1 != named2) {
        return named1 ? -1 : 1;
    }

    return strcmp(a->name, b->name);
}


/* first is 0 for a spare */

static int
referral_segment_is_name(const char *name, uint64_t *first)
{
    *first = 0;

    if (strcmp(name, REFERRAL_SPARE) == 0) {
        return 1;
    }

    if (strlen(name) != 24 || strspn(name, "0123456789") != 20
        || strcmp(name + 20, ".seg") != 0)
    {
        return 0;
    }

    errno = 0;
    *first = strtoull(name, NULL, 10);

    return errno == 0 && *first != 0 && *first <= INT64_MAX;
}


/*
 * REFERRAL_DECLINED: no file of ours; REFERRAL_AGAIN: it went away.  What is
 * known of a good segment in use does not change, only its size does.
 */

static int
referral_segment_load(referral_stream_t *s, int dir, const char *name,
    referral_segment_t *seg, char *error)
{
    int                  fd;
    size_t               i;
    u_char               page[REFERRAL_SEGMENT_DATA];
    ssize_t              len;
    uint64_t             named;
    struct stat          st;
    referral_segment_t  *old;

    fd = -1;

    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == -1) {
        goto failed;
    }

    if (!S_ISREG(st.st_mode)) {
        return REFERRAL_DECLINED;
    }

    (void) referral_segment_is_name(name, &named);

    for (i = 0; i < s->nused; i++) {
        old = &s->segments[i];

        if (old->inode == st.st_ino && !old->damaged && named
            && old->first == named)
        {
            *seg = *old;
            goto found;
        }
    }

    fd = openat(dir, name, O_RDONLY|O_NOFOLLOW|O_NONBLOCK|O_CLOEXEC);
    if (fd == -1) {
        goto failed;
    }

    if (fstat(fd, &st) == -1) {
        goto failed;
    }

    len = referral_read_at(fd, page, sizeof(page), 0);
    if (len == -1) {
        goto failed;
    }

    memset(seg, 0, sizeof(referral_segment_t));
    referral_segment_identify(s, seg, named, fd, page, (size_t) len);

    (void) close(fd);

found:

    (void) snprintf(seg->name, sizeof(seg->name), "%s", name);
    seg->size = (uint64_t) st.st_size;
    seg->allocated = (uint64_t) st.st_blocks * 512;
    seg->inode = st.st_ino;

    return REFERRAL_OK;

failed:

    snprintf(error, REFERRAL_ERROR_LEN, "\"%s/%s/%s\" cannot be read: %s",
             s->journal->path, s->name, name, strerror(errno));

    if (fd != -1) {
        (void) close(fd);
        return REFERRAL_ERROR;
    }

    return errno == ENOENT ? REFERRAL_AGAIN : REFERRAL_ERROR;
}


/*
 * Whose segment it is, whether it is in use and where it begins: by its
 * content, by its name (named, 0 for a spare) only where that is damaged.
 */

static void
referral_segment_identify(const referral_stream_t *s, referral_segment_t *seg,
    uint64_t named, int fd, const u_char *page, size_t len)
{
    int      rc;
    size_t   i;
    char     error[REFERRAL_ERROR_LEN];

    rc = REFERRAL_ERROR;

    if (len == REFERRAL_SEGMENT_DATA) {
        rc = referral_segment_header_decode(&seg->header, page, error);
    }

    if (rc != REFERRAL_OK) {
        memset(&seg->header, 0, sizeof(referral_segment_header_t));

        /* a spare whose writer died before the header was written is empty */

        for (i = 0; i < len && page[i] == 0; i++) { /* void */ }

        seg->damaged = (named || i < len);
        seg->used = (named != 0);
        seg->first = named;
        return;
    }

    if (memcmp(seg->header.stream, s->id, REFERRAL_UUID_LEN) != 0) {
        seg->damaged = 1;
        return;
    }

    rc = referral_segment_begin_decode(page + REFERRAL_SEGMENT_BEGIN,
                                       seg->header.salt, &seg->first);

    if (rc == REFERRAL_OK && seg->first <= INT64_MAX) {
        seg->used = 1;
        return;
    }

    if (referral_segment_probe(fd, seg->header.salt, &seg->first)) {
        seg->damaged = 1;
        seg->used = 1;
        return;
    }

    seg->first = named;
    seg->used = (named != 0);
    seg->damaged = (named || rc == REFERRAL_ERROR);
}


/* the number of the first frame, if there is a good one */

static int
referral_segment_probe(int fd, uint32_t salt, uint64_t *first)
{
    size_t   len;
    u_char   buf[REFERRAL_FRAME_HEAD + REFERRAL_RECORD_MAX];
    ssize_t  n;

    n = referral_read_at(fd, buf, sizeof(buf), REFERRAL_SEGMENT_DATA);

    return n > 0
           && referral_frame_check(buf, (size_t) n, salt, first, &len)
              == REFERRAL_OK
           && *first != 0 && *first <= INT64_MAX;
}


ssize_t
referral_read_at(int fd, u_char *buf, size_t len, uint64_t offset)
{
    size_t   done;
    ssize_t  n;

    if (referral_fault_fails("journal-read-eio")) {
        return -1;
    }

    for (done = 0; done < len; done += (size_t) n) {
        n = pread(fd, buf + done, len - done, (off_t) (offset + done));

        if (n == -1) {

            if (errno != EINTR) {
                return -1;
            }

            n = 0;
            continue;
        }

        if (n == 0) {
            break;
        }
    }

    return (ssize_t) done;
}
