
/*
 * Copyright (C) The nginx referral module authors
 */


#include "segment.h"
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


static u_char *ctl_segment_read(ctl_segment_t *seg, const char *path,
    size_t *len, char *error);
static void ctl_segment_frames(ctl_segment_t *seg, const u_char *buf,
    size_t len, const ctl_segment_scan_t *scan);


int
ctl_segment_scan(ctl_segment_t *seg, const char *path,
    const ctl_segment_scan_t *scan, char *error)
{
    size_t   len;
    u_char  *buf;

    memset(seg, 0, sizeof(ctl_segment_t));

    buf = ctl_segment_read(seg, path, &len, error);

    if (buf == NULL) {
        return REFERRAL_ERROR;
    }

    seg->end = REFERRAL_SEGMENT_DATA;

    if (len < REFERRAL_SEGMENT_DATA) {
        seg->damaged = 1;
        snprintf(seg->error, sizeof(seg->error), "the file ends after %zu "
                 "bytes, within the header", len);

    } else if (referral_segment_header_decode(&seg->header, buf, seg->error)
               != REFERRAL_OK)
    {
        seg->damaged = 1;

    } else {
        seg->begin = referral_segment_begin_decode(
                                             buf + REFERRAL_SEGMENT_BEGIN,
                                             seg->header.salt,
                                             &seg->begin_first);
        ctl_segment_frames(seg, buf, len, scan);
    }

    free(buf);

    return REFERRAL_OK;
}


static u_char *
ctl_segment_read(ctl_segment_t *seg, const char *path, size_t *len,
    char *error)
{
    int          fd;
    size_t       size;
    u_char      *buf;
    ssize_t      n;
    struct stat  st;

    fd = open(path, O_RDONLY|O_CLOEXEC|O_NONBLOCK);

    if (fd == -1 || fstat(fd, &st) == -1) {
        snprintf(error, REFERRAL_ERROR_LEN, "%.300s: %s", path,
                 strerror(errno));
        goto failed;
    }

    if (!S_ISREG(st.st_mode) || st.st_size > REFERRAL_SEGMENT_MAX) {
        snprintf(error, REFERRAL_ERROR_LEN, "%.300s: no segment file", path);
        goto failed;
    }

    seg->size = st.st_size;
    seg->allocated = (uint64_t) st.st_blocks * 512;

    size = st.st_size;
    buf = ctl_alloc(size);

    for (*len = 0; *len < size; *len += n) {

        n = pread(fd, buf + *len, size - *len, *len);

        if (n == -1) {
            snprintf(error, REFERRAL_ERROR_LEN, "%.300s: %s", path,
                     strerror(errno));
            free(buf);
            goto failed;
        }

        if (n == 0) {
            break;
        }
    }

    close(fd);

    return buf;

failed:

    if (fd != -1) {
        close(fd);
    }

    return NULL;
}


/*
 * Good frames can stand behind bad ones and behind zero pages, so the file
 * is searched to its end, at every place where a frame may begin.
 */

static void
ctl_segment_frames(ctl_segment_t *seg, const u_char *buf, size_t len,
    const ctl_segment_scan_t *scan)
{
    size_t         pos, size;
    uint64_t       number;
    static u_char  zero[8];

    pos = REFERRAL_SEGMENT_DATA;

    while (pos + REFERRAL_FRAME_HEAD <= len) {

        if (referral_frame_check(buf + pos, len - pos, seg->header.salt,
                                 &number, &size)
            != REFERRAL_OK)
        {
            pos += 8;
            continue;
        }

        if (pos != seg->end && scan != NULL && scan->bad != NULL) {
            scan->bad(scan->data, seg->end, pos - seg->end);
        }

        if (scan != NULL && scan->frame != NULL) {
            scan->frame(scan->data, number, buf + pos + REFERRAL_FRAME_HEAD,
                        size);
        }

        if (seg->records++ == 0) {
            seg->first = number;
        }

        seg->last = number;
        seg->bytes += referral_frame_size(size);

        pos += referral_frame_size(size);
        seg->end = pos;
    }

    /* an unanswered frame has no word yet: not this one */

    seg->torn = seg->end + 8 <= len && memcmp(buf + seg->end, zero, 8) != 0;
}
