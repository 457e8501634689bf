
/*
 * Copyright (C) The nginx referral module authors
 *
 * What the tests of the journal share: a directory of their own, records
 * whose payload follows from their number, and damage.
 */


#ifndef _JOURNAL_AID_H_INCLUDED_
#define _JOURNAL_AID_H_INCLUDED_


#include "referral_reader.h"
#include "referral_record.h"
#include "referral_writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>


#define AID_SEGMENT   (64 * 1024)
#define AID_LEN       100                  /* payload bytes */
#define AID_FRAME     referral_frame_size(AID_LEN)
#define AID_PER       ((AID_SEGMENT - REFERRAL_SEGMENT_DATA) / AID_FRAME)

#define aid_ok(call)                                                         \
    do {                                                                     \
        if ((call) != REFERRAL_OK) {                                         \
            fail_msg("%s: %s", #call, aid_error);                            \
        }                                                                    \
    } while (0)


static char  aid_path[64];
static char  aid_error[REFERRAL_ERROR_LEN];


static inline int
aid_setup(void **state)
{
    (void) state;

    (void) snprintf(aid_path, sizeof(aid_path), "/tmp/referral-test.XXXXXX");

    return mkdtemp(aid_path) == NULL ? -1 : 0;
}


static inline int
aid_unlink(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void) st;
    (void) flag;
    (void) ftw;

    return remove(path);
}


static inline int
aid_teardown(void **state)
{
    (void) state;

    return nftw(aid_path, aid_unlink, 16, FTW_DEPTH|FTW_PHYS);
}


static inline void
aid_sleep(unsigned ms)
{
    struct timespec  ts;

    ts.tv_sec = ms / 1000;
    ts.tv_nsec = (long) (ms % 1000) * 1000000;

    (void) nanosleep(&ts, NULL);
}


static inline referral_writer_conf_t
aid_conf(void)
{
    referral_writer_conf_t  conf;

    conf.path = aid_path;
    conf.size = 64 * AID_SEGMENT;
    conf.segment = AID_SEGMENT;
    conf.sync = 0;
    conf.edge = "edge-a";

    return conf;
}


static inline referral_writer_t *
aid_open(const referral_writer_conf_t *conf)
{
    referral_writer_t  *w;

    aid_ok(referral_writer_open(&w, conf, aid_error));

    return w;
}


static inline void
aid_payload(u_char *p, uint64_t number)
{
    size_t  i;

    for (i = 0; i < AID_LEN; i++) {
        p[i] = (u_char) (number * 31 + i * 7 + (number >> 8));
    }
}


/* one record, or 0 */

static inline uint64_t
aid_try(referral_writer_t *w, int noise)
{
    u_char                 *p;
    referral_writer_stat_t  st;

    p = referral_writer_reserve(w, AID_LEN);

    if (p == NULL) {
        return 0;
    }

    referral_writer_stat(w, &st);
    aid_payload(p, st.appended + 1);

    return referral_writer_commit(w, AID_LEN, noise);
}


/* waits, up to five seconds, until there is space */

static inline uint64_t
aid_append(referral_writer_t *w, int noise)
{
    int       i;
    uint64_t  number;

    for (i = 0; i < 500; i++) {
        number = aid_try(w, noise);

        if (number) {
            return number;
        }

        (void) referral_writer_tick(w);
        aid_sleep(10);
    }

    fail_msg("no space after five seconds");

    return 0;
}


static inline void
aid_fill(referral_writer_t *w, unsigned n)
{
    while (n--) {
        (void) aid_append(w, 0);
    }
}


/* a finished stream of n records; its name is copied */

static inline void
aid_stream(unsigned n, char *name)
{
    referral_writer_t       *w;
    referral_writer_conf_t   conf;

    conf = aid_conf();
    w = aid_open(&conf);

    aid_fill(w, n);

    if (name != NULL) {
        (void) snprintf(name, 33, "%s", referral_writer_stream(w));
    }

    referral_writer_close(w);
}


static inline referral_journal_t *
aid_read(void)
{
    referral_journal_t  *j;

    aid_ok(referral_journal_open(&j, aid_path, aid_error));

    return j;
}


/* expects records from..to, in order and intact */

static inline void
aid_expect(referral_stream_t *s, uint64_t from, uint64_t to)
{
    int               rc;
    u_char            payload[AID_LEN];
    referral_frame_t  frame;

    for ( /* void */ ; from <= to; from++) {
        rc = referral_stream_next(s, &frame, aid_error);

        if (rc == REFERRAL_HOLE) {
            fail_msg("record %llu: %s", (unsigned long long) from,
                     frame.problem);
        }

        if (rc != REFERRAL_OK) {
            fail_msg("record %llu: %d %s", (unsigned long long) from, rc,
                     rc == REFERRAL_ERROR ? aid_error : "");
        }

        aid_payload(payload, from);

        assert_int_equal(frame.number, from);
        assert_int_equal(frame.last, from);
        assert_int_equal(frame.len, AID_LEN);
        assert_memory_equal(frame.payload, payload, AID_LEN);
    }
}


static inline void
aid_expect_hole(referral_stream_t *s, uint64_t from, uint64_t to)
{
    referral_frame_t  frame;

    assert_int_equal(referral_stream_next(s, &frame, aid_error),
                     REFERRAL_HOLE);
    assert_int_equal(frame.number, from);
    assert_int_equal(frame.last, to);
    assert_non_null(strstr(frame.problem, s->name));
}


static inline void
aid_expect_end(referral_stream_t *s, int rc)
{
    referral_frame_t  frame;

    assert_int_equal(referral_stream_next(s, &frame, aid_error), rc);
}


static inline void
aid_name(char *path, const char *stream, const char *file)
{
    (void) snprintf(path, 256, "%s/%s%s%s", aid_path, stream,
                    file[0] ? "/" : "", file);
}


/* the segment that begins with record first */

static inline void
aid_segment(char *path, const char *stream, uint64_t first)
{
    char  file[64];

    (void) snprintf(file, sizeof(file), REFERRAL_SEGMENT_NAME,
                    (unsigned long long) first);
    aid_name(path, stream, file);
}


/* xors a byte, or zeroes len bytes when mask is 0 */

static inline void
aid_damage(const char *path, uint64_t offset, size_t len, int mask)
{
    int      fd;
    u_char   c;

    fd = open(path, O_RDWR|O_CLOEXEC);
    assert_int_not_equal(fd, -1);

    for ( /* void */ ; len > 0; len--, offset++) {
        assert_int_equal(pread(fd, &c, 1, (off_t) offset), 1);
        c = mask ? (u_char) (c ^ mask) : 0;
        assert_int_equal(pwrite(fd, &c, 1, (off_t) offset), 1);
    }

    assert_int_equal(close(fd), 0);
}


static inline uint64_t
aid_offset(uint64_t number, uint64_t first)
{
    return REFERRAL_SEGMENT_DATA + (number - first) * AID_FRAME;
}


static inline void
aid_copy(const char *from, const char *to)
{
    int      in, out;
    char     buf[65536];
    ssize_t  n;

    in = open(from, O_RDONLY|O_CLOEXEC);
    out = open(to, O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0660);
    assert_int_not_equal(in, -1);
    assert_int_not_equal(out, -1);

    while ((n = read(in, buf, sizeof(buf))) > 0) {
        assert_int_equal(write(out, buf, (size_t) n), n);
    }

    assert_int_equal(close(in), 0);
    assert_int_equal(close(out), 0);
}


#endif /* _JOURNAL_AID_H_INCLUDED_ */
