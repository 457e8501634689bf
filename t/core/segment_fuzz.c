
/*
 * Copyright (C) The nginx referral module authors
 *
 * Two good records, and over their segment what the input says: pieces of
 * offset u16 | length u8 | bytes.  The reader ends, its numbers have no gap
 * and no payload is changed.
 */


#include "referral_crc32c.h"
#include "referral_reader.h"
#include "referral_record.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


#define SALT     77
#define STREAM   "000102030405060708090a0b0c0d0e0f"
#define RECORDS  40

#define LEN(n)   (20 + (n) * 7 % 90)


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


static char  path[64], dir[128], file[192];


static void
remove_all(void)
{
    (void) unlink(file);
    (void) rmdir(dir);
    (void) rmdir(path);
}


static size_t
make(u_char *buf, size_t room)
{
    u_char                    *p;
    unsigned                   n;
    referral_segment_header_t  h;

    memset(buf, 0, room);
    memset(&h, 0, sizeof(h));

    for (n = 0; n < REFERRAL_UUID_LEN; n++) {
        h.stream[n] = (u_char) n;
    }

    h.salt = SALT;
    h.size = REFERRAL_SEGMENT_MIN;

    referral_segment_header_encode(&h, buf);
    referral_segment_begin_publish(buf + REFERRAL_SEGMENT_BEGIN, SALT, 1);

    p = buf + REFERRAL_SEGMENT_DATA;

    for (n = 1; n <= RECORDS; n++) {
        memset(p + REFERRAL_FRAME_HEAD, (int) n, LEN(n));
        referral_frame_publish(p, SALT, n, LEN(n));
        p += referral_frame_size(LEN(n));
    }

    return (size_t) (p - buf);
}


static void
check(referral_stream_t *s)
{
    int               rc;
    char              error[REFERRAL_ERROR_LEN];
    size_t            i;
    uint64_t          next;
    referral_frame_t  frame;

    for (next = 1; next < 100000; next = frame.last + 1) {
        rc = referral_stream_next(s, &frame, error);

        if (rc == REFERRAL_DONE) {
            return;
        }

        if ((rc != REFERRAL_OK && rc != REFERRAL_HOLE)
            || frame.number != next || frame.last < next)
        {
            break;
        }

        if (rc == REFERRAL_HOLE) {
            continue;
        }

        if (next > RECORDS || frame.len != LEN(next)) {
            break;
        }

        for (i = 0; i < frame.len; i++) {
            if (frame.payload[i] != (u_char) next) {
                abort();
            }
        }
    }

    abort();
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int                        fd;
    char                       error[REFERRAL_ERROR_LEN];
    size_t                     len, at, n;
    static u_char              buf[16384] __attribute__((aligned(8)));
    referral_journal_t        *j;
    referral_segment_header_t  h;

    if (path[0] == '\0') {
        (void) snprintf(path, sizeof(path), "/tmp/referral-fuzz.XXXXXX");

        if (mkdtemp(path) == NULL) {
            abort();
        }

        (void) snprintf(dir, sizeof(dir), "%s/%s", path, STREAM);
        (void) snprintf(file, sizeof(file), "%s/%020d.seg", dir, 1);

        if (mkdir(dir, 0700) == -1) {
            abort();
        }

        (void) atexit(remove_all);
    }

    if (size >= REFERRAL_SEGMENT_BEGIN) {
        (void) referral_segment_header_decode(&h, data, error);
    }

    len = make(buf, sizeof(buf));

    while (size >= 3) {
        at = (data[0] | (size_t) data[1] << 8) % sizeof(buf);
        n = data[2];
        data += 3;
        size -= 3;

        if (n > size) {
            n = size;
        }

        if (n > sizeof(buf) - at) {
            n = sizeof(buf) - at;
        }

        /* without bytes: the file ends here */

        if (n == 0) {
            len = at;
        }

        memcpy(buf + at, data, n);
        data += n;
        size -= n;
    }

    fd = open(file, O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0600);

    if (fd == -1 || write(fd, buf, len) != (ssize_t) len) {
        abort();
    }

    (void) close(fd);

    if (referral_journal_open(&j, path, error) != REFERRAL_OK
        || referral_journal_streams(j) != 1)
    {
        abort();
    }

    check(referral_journal_stream(j, 0));
    referral_journal_close(j);

    return 0;
}
