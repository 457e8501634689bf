
/*
 * Copyright (C) The nginx referral module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_fault.h"
#include "referral_uuid.h"
#include "referral_writer_private.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>


static int referral_writer_create(referral_writer_t *w,
    referral_writer_segment_t **sp, char *error);
static int referral_writer_preallocate(int fd, size_t size);
static int referral_writer_fill(referral_writer_t *w,
    referral_writer_segment_t *s);
static void referral_writer_scan_stream(int root, const char *name,
    uint64_t *bytes, uint64_t *noise);
static void referral_writer_scan_file(int dir, const char *name,
    uint64_t *bytes, uint64_t *noise);


int
referral_writer_probe(const referral_writer_conf_t *conf, char *error)
{
    int     rc, root, dir, lock, fd;
    char    name[REFERRAL_UUID_HEX_LEN + sizeof(REFERRAL_WRITER_NEW)];
    u_char  id[REFERRAL_UUID_LEN];

    if (referral_writer_check(conf, error) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    if (referral_writer_identify(id, name, error, conf->path) != REFERRAL_OK) {
        return REFERRAL_ERROR;
    }

    root = open(conf->path, O_RDONLY|O_DIRECTORY|O_CLOEXEC);
    if (root == -1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\" cannot be opened as a directory: %s",
                 conf->path, strerror(errno));
        return REFERRAL_ERROR;
    }

    rc = referral_writer_make_dir(root, conf->path, name, &dir, error);
    if (rc != REFERRAL_OK) {
        (void) close(root);
        return REFERRAL_ERROR;
    }

    rc = referral_writer_take_lock(dir, conf->path, &lock, error);

    if (rc == REFERRAL_OK) {
        fd = openat(dir, REFERRAL_SPARE, O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC,
                    0660);

        if (fd == -1 || referral_writer_preallocate(fd, conf->segment) == -1) {
            snprintf(error, REFERRAL_ERROR_LEN,
                     "journal \"%s\": a segment of %zu bytes cannot be "
                     "allocated with fallocate(): %s%s",
                     conf->path, conf->segment, strerror(errno),
                     errno == EOPNOTSUPP
                     ? "; use ext4, xfs, btrfs or tmpfs" : "");
            rc = REFERRAL_ERROR;
        }

        if (fd != -1) {
            (void) close(fd);
        }
    }

    referral_writer_clear(root, name, dir);

    if (lock != -1) {
        (void) close(lock);
    }

    (void) close(dir);
    (void) close(root);

    return rc;
}


int
referral_writer_check(const referral_writer_conf_t *conf, char *error)
{
    size_t  page;

    page = (size_t) sysconf(_SC_PAGESIZE);

    if (conf->segment < REFERRAL_SEGMENT_MIN
        || conf->segment > REFERRAL_SEGMENT_MAX
        || conf->segment % page != 0)
    {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": segment size %zu is not a multiple of %zu "
                 "between %d and %d", conf->path, conf->segment, page,
                 REFERRAL_SEGMENT_MIN, REFERRAL_SEGMENT_MAX);
        return REFERRAL_ERROR;
    }

    if (conf->size < 2 * (uint64_t) conf->segment) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": size %llu is too small for two segments of "
                 "%zu", conf->path, (unsigned long long) conf->size,
                 conf->segment);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


/* a random version 4 id, and the name under which its directory is made */

int
referral_writer_identify(u_char *id, char *name, char *error, const char *path)
{
    if (getrandom(id, REFERRAL_UUID_LEN, 0) != REFERRAL_UUID_LEN) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": getrandom() failed: %s", path,
                 strerror(errno));
        return REFERRAL_ERROR;
    }

    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;

    referral_uuid_hex(id, (u_char *) name);
    memcpy(name + REFERRAL_UUID_HEX_LEN, REFERRAL_WRITER_NEW,
           sizeof(REFERRAL_WRITER_NEW));

    return REFERRAL_OK;
}


/*
 * The group comes from the setgid bit of the journal directory, which a
 * chmod() could clear: so the mode is given to mkdir() alone.
 */

int
referral_writer_make_dir(int root, const char *path, const char *name,
    int *dir, char *error)
{
    int     rc;
    mode_t  mask;

    *dir = -1;

    mask = umask(0007);
    rc = mkdirat(root, name, 0770);
    (void) umask(mask);

    if (rc == -1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": a directory cannot be made in it: %s", path,
                 strerror(errno));
        return REFERRAL_ERROR;
    }

    *dir = openat(root, name, O_RDONLY|O_DIRECTORY|O_NOFOLLOW|O_CLOEXEC);

    if (*dir == -1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": a new directory in it cannot be opened: %s",
                 path, strerror(errno));
        (void) unlinkat(root, name, AT_REMOVEDIR);
        return REFERRAL_ERROR;
    }

    referral_fault("stream-directory");

    return REFERRAL_OK;
}


int
referral_writer_take_lock(int dir, const char *path, int *lock, char *error)
{
    int           fd;
    struct flock  fl;

    *lock = -1;

    fd = openat(dir, REFERRAL_STREAM_LOCK, O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC,
                0660);
    if (fd == -1) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": a lock file cannot be made: %s", path,
                 strerror(errno));
        return REFERRAL_ERROR;
    }

    (void) fchmod(fd, 0660);

    memset(&fl, 0, sizeof(struct flock));
    fl.l_type = F_WRLCK;
    fl.l_whence = SEEK_SET;

    if (referral_guard("stream-lock")
        && fcntl(fd, F_OFD_SETLK, &fl) == -1)
    {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "journal \"%s\": a file in it cannot be locked: %s", path,
                 strerror(errno));
        (void) close(fd);
        return REFERRAL_ERROR;
    }

    *lock = fd;

    return REFERRAL_OK;
}


/* removes a stream that has no records */

void
referral_writer_clear(int root, const char *name, int dir)
{
    char  first[64];

    (void) snprintf(first, sizeof(first), REFERRAL_SEGMENT_NAME, 1ULL);

    (void) unlinkat(dir, first, 0);
    (void) unlinkat(dir, REFERRAL_SPARE, 0);
    (void) unlinkat(dir, REFERRAL_STREAM_LOCK, 0);

    referral_fault("stream-clearing");

    (void) unlinkat(root, name, AT_REMOVEDIR);
}


/*
 * Streams get their names only when they are locked and have a segment: a
 * reader never meets one that looks finished before it began.  A writer
 * killed before that leaves <id>.new, which has no records.
 */

void
referral_writer_sweep(int root)
{
    int             fd, dir;
    DIR            *dp;
    size_t          len;
    struct stat     st;
    struct dirent  *de;

    fd = openat(root, ".", O_RDONLY|O_DIRECTORY|O_CLOEXEC);
    if (fd == -1) {
        return;
    }

    dp = fdopendir(fd);
    if (dp == NULL) {
        (void) close(fd);
        return;
    }

    while ((de = readdir(dp)) != NULL) {
        len = strlen(de->d_name);

        if (len != REFERRAL_UUID_HEX_LEN + sizeof(REFERRAL_WRITER_NEW) - 1
            || strcmp(de->d_name + REFERRAL_UUID_HEX_LEN, REFERRAL_WRITER_NEW)
               != 0
            || fstatat(root, de->d_name, &st, AT_SYMLINK_NOFOLLOW) == -1
            || !S_ISDIR(st.st_mode)
            || st.st_mtime > time(NULL) - REFERRAL_WRITER_STALE)
        {
            continue;
        }

        dir = openat(root, de->d_name,
                     O_RDONLY|O_DIRECTORY|O_NOFOLLOW|O_CLOEXEC);
        if (dir != -1) {
            referral_writer_clear(root, de->d_name, dir);
            (void) close(dir);
        }
    }

    (void) closedir(dp);
}


/*
 * REFERRAL_AGAIN: no space now, which was said.  All writers of a journal
 * measure and allocate one after another; one that hangs does not stop the
 * others for longer than 100 ms.
 */

int
referral_writer_allocate(referral_writer_t *w, referral_writer_segment_t **sp,
    char *error)
{
    int              rc, fd, n;
    struct timespec  ts = { 0, 10 * 1000000 };

    referral_store(&w->allocated, referral_writer_now());

    fd = openat(w->root, REFERRAL_SPACE_LOCK, O_RDWR|O_CREAT|O_CLOEXEC, 0660);

    if (fd != -1) {
        (void) fchmod(fd, 0660);

        for (n = 0; n < 10 && flock(fd, LOCK_EX|LOCK_NB) == -1; n++) {
            (void) nanosleep(&ts, NULL);
        }
    }

    referral_writer_scan(w);

    if (w->journal + w->segment > w->size) {
        referral_writer_say(w, REFERRAL_SAY_FULL,
                            "journal \"%s\" is full: %llu of %llu bytes are "
                            "unread or kept; is referral-worker running?",
                            w->path, (unsigned long long) w->journal,
                            (unsigned long long) w->size);
        rc = REFERRAL_AGAIN;

    } else {
        rc = referral_writer_create(w, sp, error);
    }

    if (fd != -1) {
        (void) close(fd);
    }

    return rc;
}


static int
referral_writer_create(referral_writer_t *w, referral_writer_segment_t **sp,
    char *error)
{
    int                         err;
    referral_writer_segment_t  *s;

    s = calloc(1, sizeof(referral_writer_segment_t));

    if (s == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN, "journal \"%s\": no memory",
                 w->path);
        return REFERRAL_ERROR;
    }

    s->size = w->segment;
    s->map = MAP_FAILED;

    /* what stands there is of an attempt that failed */

    (void) unlinkat(w->dir, REFERRAL_SPARE, 0);

    s->fd = openat(w->dir, REFERRAL_SPARE, O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC,
                   0660);

    if (s->fd != -1
        && fchmod(s->fd, 0660) == 0
        && referral_writer_preallocate(s->fd, s->size) == 0
        && referral_writer_fill(w, s) == REFERRAL_OK)
    {
        *sp = s;
        return REFERRAL_OK;
    }

    err = errno;

    if (s->fd != -1) {
        (void) close(s->fd);
        (void) unlinkat(w->dir, REFERRAL_SPARE, 0);
    }

    free(s);

    referral_add(&w->errors, 1);
    snprintf(error, REFERRAL_ERROR_LEN,
             "journal \"%s/%s\": a segment of %zu bytes cannot be allocated: "
             "%s%s", w->path, w->name, w->segment, strerror(err),
             err == EOPNOTSUPP ? "; use ext4, xfs, btrfs or tmpfs" : "");

    if (err == ENOSPC || err == EDQUOT || err == EIO) {
        referral_writer_say(w, REFERRAL_SAY_ALLOCATE, "%s", error);
        return REFERRAL_AGAIN;
    }

    return REFERRAL_ERROR;
}


/* not posix_fallocate(): where that is not supported, it writes */

static int
referral_writer_preallocate(int fd, size_t size)
{
    int  rc;

    if (referral_fault_fails("segment-fallocate-enospc")
        || referral_fault_fails("segment-fallocate-eio"))
    {
        return -1;
    }

    if (!referral_guard("preallocation")) {
        return ftruncate(fd, (off_t) size);
    }

    do {
        rc = fallocate(fd, 0, 0, (off_t) size);
    } while (rc == -1 && errno == EINTR);

    return rc;
}


/* REFERRAL_ERROR leaves errno */

static int
referral_writer_fill(referral_writer_t *w, referral_writer_segment_t *s)
{
    u_char                     buf[REFERRAL_SEGMENT_BEGIN];
    struct timespec            ts;
    referral_segment_header_t  h;

    referral_fault("segment-allocated");

    memset(&h, 0, sizeof(referral_segment_header_t));

    do {
        if (getrandom(&h.salt, sizeof(h.salt), 0) != sizeof(h.salt)) {
            return REFERRAL_ERROR;
        }

    } while (h.salt == 0);

    if (!referral_guard("salt")) {
        h.salt = 1;
    }

    (void) clock_gettime(CLOCK_REALTIME, &ts);

    memcpy(h.stream, w->id, REFERRAL_UUID_LEN);
    memcpy(h.edge, w->edge, sizeof(h.edge));
    h.size = s->size;
    h.limit = w->limit;
    h.created = (uint64_t) ts.tv_sec * 1000 + (uint64_t) ts.tv_nsec / 1000000;
    h.pid = (uint32_t) getpid();

    referral_segment_header_encode(&h, buf);

    if (referral_fault_fails("segment-header-eio")
        || pwrite(s->fd, buf, sizeof(buf), 0) != (ssize_t) sizeof(buf)
        || fdatasync(s->fd) == -1)
    {
        return REFERRAL_ERROR;
    }

    s->salt = h.salt;
    s->map = mmap(NULL, s->size, PROT_READ|PROT_WRITE, MAP_SHARED, s->fd, 0);

    if (s->map == MAP_FAILED) {
        return REFERRAL_ERROR;
    }

    if (w->sync) {
        (void) fsync(w->dir);
    }

    referral_fault("segment-made");

    return REFERRAL_OK;
}


int
referral_writer_scan_due(referral_writer_t *w, uint64_t now)
{
    uint64_t  age;

    age = now - referral_load(&w->scanned);

    return age >= REFERRAL_WRITER_SCAN
           || (age >= REFERRAL_WRITER_SECOND && referral_writer_noise_full(w));
}


/* measures all streams of the journal */

void
referral_writer_scan(referral_writer_t *w)
{
    int             fd;
    DIR            *dp;
    uint64_t        bytes, noise, own;
    struct dirent  *de;

    referral_store(&w->scanned, referral_writer_now());

    /* opened by its path: the directory may have been made anew */

    dp = NULL;
    fd = openat(w->root, ".", O_RDONLY|O_DIRECTORY|O_CLOEXEC);

    if (fd == -1 || (dp = fdopendir(fd)) == NULL) {
        referral_add(&w->errors, 1);
        referral_writer_say(w, REFERRAL_SAY_SCAN,
                            "journal \"%s\" cannot be read: %s", w->path,
                            strerror(errno));
        if (fd != -1) {
            (void) close(fd);
        }

        return;
    }

    bytes = 0;
    noise = 0;
    own = referral_load(&w->noise_own);

    while ((de = readdir(dp)) != NULL) {
        if (strspn(de->d_name, "0123456789abcdef") == REFERRAL_UUID_HEX_LEN) {
            referral_writer_scan_stream(w->root, de->d_name, &bytes, &noise);
        }
    }

    (void) closedir(dp);

    referral_store(&w->journal, bytes);
    referral_store(&w->noise_others, (int64_t) noise - (int64_t) own);
}


static void
referral_writer_scan_stream(int root, const char *name, uint64_t *bytes,
    uint64_t *noise)
{
    int             fd;
    DIR            *dp;
    size_t          len;
    struct dirent  *de;

    fd = openat(root, name, O_RDONLY|O_DIRECTORY|O_NOFOLLOW|O_CLOEXEC);
    if (fd == -1) {
        return;
    }

    dp = fdopendir(fd);
    if (dp == NULL) {
        (void) close(fd);
        return;
    }

    while ((de = readdir(dp)) != NULL) {
        len = strlen(de->d_name);

        if (len > 4 && strcmp(de->d_name + len - 4, ".seg") == 0) {
            referral_writer_scan_file(fd, de->d_name, bytes, noise);
        }
    }

    (void) closedir(dp);
}


static void
referral_writer_scan_file(int dir, const char *name, uint64_t *bytes,
    uint64_t *noise)
{
    int          fd;
    uint64_t     size, n;
    struct stat  st;

    fd = openat(dir, name, O_RDONLY|O_NOFOLLOW|O_NONBLOCK|O_CLOEXEC);
    if (fd == -1) {
        return;
    }

    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        size = (uint64_t) st.st_size;
        n = (uint64_t) st.st_blocks * 512;
        *bytes += n > size ? n : size;

        /* a hint, without a checksum: never more than the file */

        if (pread(fd, &n, sizeof(n), REFERRAL_SEGMENT_NOISE)
            == (ssize_t) sizeof(n))
        {
            n = le64toh(n);
            *noise += n < size ? n : size;
        }
    }

    (void) close(fd);
}
