
/*
 * Copyright (C) The nginx referral module authors
 *
 * Damaged journals: what can be read is read once, in order and unchanged,
 * and everything else is reported.
 */


#include "journal_aid.h"

#include "referral_crc32c.h"


#define N  (3 * AID_PER + 10)              /* records of the damaged streams */


static referral_journal_t  *journal;
static char                 name[33];


static referral_stream_t *
damaged(void)
{
    journal = aid_read();

    return referral_journal_stream(journal, 0);
}


static void
bit_flips(void **state)
{
    char                path[256];
    unsigned            i;
    referral_stream_t  *s;

    /* checksum, length low and high, number, payload, last byte of it */

    static const unsigned  at[] = { 0, 4, 7, 8, 16, 16 + AID_LEN - 1 };

    aid_stream(N, name);
    aid_segment(path, name, AID_PER + 1);

    for (i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        aid_damage(path, aid_offset(AID_PER + 9, AID_PER + 1) + at[i], 1, 4);

        s = damaged();
        aid_expect(s, 1, AID_PER + 8);
        aid_expect_hole(s, AID_PER + 9, AID_PER + 9);
        aid_expect(s, AID_PER + 10, N);
        aid_expect_end(s, REFERRAL_DONE);
        referral_journal_close(journal);

        aid_damage(path, aid_offset(AID_PER + 9, AID_PER + 1) + at[i], 1, 4);
    }

    s = damaged();
    aid_expect(s, 1, N);
    referral_journal_close(journal);
}


static void
holes_at_the_ends(void **state)
{
    char                path[256];
    referral_stream_t  *s;

    aid_stream(N, name);

    /* the first and the last of a segment */

    aid_segment(path, name, 1);
    aid_damage(path, aid_offset(1, 1), 1, 1);
    aid_damage(path, aid_offset(AID_PER, 1) + 20, 1, 1);

    s = damaged();
    aid_expect_hole(s, 1, 1);
    aid_expect(s, 2, AID_PER - 1);
    aid_expect_hole(s, AID_PER, AID_PER);
    aid_expect(s, AID_PER + 1, N);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);
}


static void
zero_page(void **state)
{
    char                path[256];
    uint64_t            from, to;
    referral_stream_t  *s;

    aid_stream(N, name);
    aid_segment(path, name, AID_PER + 1);

    aid_damage(path, 8192, 4096, 0);

    from = AID_PER + 1 + (8192 - REFERRAL_SEGMENT_DATA) / AID_FRAME;
    to = AID_PER + 1 + (8192 + 4095 - REFERRAL_SEGMENT_DATA) / AID_FRAME;

    s = damaged();
    aid_expect(s, 1, from - 1);
    aid_expect_hole(s, from, to);
    aid_expect(s, to + 1, N);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);
}


static void
torn_tail(void **state)
{
    char                path[256];
    referral_stream_t  *s;

    aid_stream(N, name);
    aid_segment(path, name, 3 * AID_PER + 1);

    aid_damage(path, aid_offset(N, 3 * AID_PER + 1) + 50, 1, 1);
    s = damaged();
    aid_expect(s, 1, N - 1);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);

    aid_damage(path, aid_offset(N - 1, 3 * AID_PER + 1), 8, 0);
    s = damaged();
    aid_expect(s, 1, N - 2);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);

    assert_int_equal(truncate(path, aid_offset(N - 3, 3 * AID_PER + 1) + 30),
                     0);
    s = damaged();
    aid_expect(s, 1, N - 4);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);
}


/* a bad tail of a locked stream is not written yet */

static void
torn_live(void **state)
{
    int                     i, rc;
    char                    path[256];
    referral_writer_t      *w;
    referral_stream_t      *s;
    referral_frame_t        frame;
    referral_writer_conf_t  conf;

    conf = aid_conf();
    w = aid_open(&conf);
    aid_fill(w, 20);
    aid_segment(path, referral_writer_stream(w), 1);

    aid_damage(path, aid_offset(20, 1), 1, 1);
    s = damaged();
    aid_expect(s, 1, 19);
    aid_expect_end(s, REFERRAL_AGAIN);
    aid_expect_end(s, REFERRAL_AGAIN);

    /* a good one behind it proves that it was */

    aid_fill(w, 1);
    aid_expect_hole(s, 20, 20);
    aid_expect(s, 21, 21);
    aid_expect_end(s, REFERRAL_AGAIN);

    /* the same with zeroes, where it may take some time */

    aid_fill(w, 3);
    aid_damage(path, aid_offset(22, 1), 8, 0);
    aid_expect_end(s, REFERRAL_AGAIN);

    for (i = 0; i < 100; i++) {
        rc = referral_stream_next(s, &frame, aid_error);

        if (rc != REFERRAL_AGAIN) {
            break;
        }
    }

    assert_int_equal(rc, REFERRAL_HOLE);
    assert_int_equal(frame.number, 22);
    assert_int_equal(frame.last, 22);
    aid_expect(s, 23, 24);

    /* a later segment proves it at once */

    aid_fill(w, 1);
    aid_damage(path, aid_offset(25, 1), 8, 0);
    aid_expect_end(s, REFERRAL_AGAIN);
    aid_fill(w, AID_PER);
    aid_expect_hole(s, 25, 25);
    aid_expect(s, 26, AID_PER + 25);
    aid_expect_end(s, REFERRAL_AGAIN);

    /* and the end of the writer makes it the end */

    aid_fill(w, 1);
    aid_segment(path, referral_writer_stream(w), AID_PER + 1);

    for (i = 0; i < 500 && access(path, F_OK) == -1; i++) {
        (void) referral_writer_tick(w);
        aid_sleep(10);
    }

    aid_damage(path, aid_offset(AID_PER + 26, AID_PER + 1), 1, 1);
    aid_expect_end(s, REFERRAL_AGAIN);
    referral_writer_close(w);
    aid_expect_end(s, REFERRAL_DONE);

    referral_journal_close(journal);
}


static void
header(void **state)
{
    char                path[256];
    unsigned            i;
    referral_stream_t  *s;

    /* magic, version, stream, salt, size, edge, checksum */

    static const unsigned  at[] = { 0, 8, 16, 32, 40, 64, 252 };

    aid_stream(N, name);
    aid_segment(path, name, AID_PER + 1);

    for (i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        aid_damage(path, at[i], 1, 8);
        s = damaged();

        assert_int_equal(s->nused, 4);
        assert_int_equal(s->segments[1].damaged, 1);
        assert_int_equal(s->segments[1].first, AID_PER + 1);

        aid_expect(s, 1, AID_PER);
        aid_expect_hole(s, AID_PER + 1, 2 * AID_PER);
        aid_expect(s, 2 * AID_PER + 1, N);
        aid_expect_end(s, REFERRAL_DONE);
        referral_journal_close(journal);
        aid_damage(path, at[i], 1, 8);
    }

    /* the last one: its records can not be told from noise */

    aid_segment(path, name, 3 * AID_PER + 1);
    aid_damage(path, 32, 1, 8);
    s = damaged();
    assert_int_equal(s->segments[3].damaged, 1);
    aid_expect(s, 1, 3 * AID_PER);
    aid_expect_end(s, REFERRAL_DONE);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);

    aid_segment(path, name, 1);
    aid_damage(path, 0, 4096, 0);
    s = damaged();
    aid_expect_hole(s, 1, AID_PER);
    aid_expect(s, AID_PER + 1, 3 * AID_PER);
    referral_journal_close(journal);
}


/* the records say what the begin block would have said */

static void
begin(void **state)
{
    char                path[256], to[256];
    unsigned            i;
    referral_stream_t  *s;

    aid_stream(N, name);

    for (i = 0; i < 4; i++) {
        aid_segment(path, name, i * AID_PER + 1);

        if (i % 2) {
            aid_damage(path, REFERRAL_SEGMENT_BEGIN, 16, 0);

        } else {
            aid_damage(path, REFERRAL_SEGMENT_BEGIN + 9, 1, 0x40);
        }
    }

    s = damaged();
    assert_int_equal(s->nused, 4);
    assert_int_equal(s->segments[0].damaged, 1);
    assert_int_equal(s->segments[3].damaged, 1);
    aid_expect(s, 1, N);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);

    /* and what its name does not say */

    aid_name(to, name, REFERRAL_SPARE);
    assert_int_equal(rename(path, to), 0);
    s = damaged();
    assert_int_equal(s->nused, 4);
    assert_int_equal(s->segments[3].first, 3 * AID_PER + 1);
    aid_expect(s, 1, N);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);
}


static void
truncated(void **state)
{
    char                path[256];
    unsigned            i;
    referral_stream_t  *s;

    static const unsigned  sizes[] = {
        REFERRAL_SEGMENT_DATA + 10 * AID_FRAME + 17,
        REFERRAL_SEGMENT_DATA + 10 * AID_FRAME + 4,
        REFERRAL_SEGMENT_DATA + 10 * AID_FRAME, REFERRAL_SEGMENT_DATA,
        4095, 300, 100, 0
    };

    aid_stream(N, name);
    aid_segment(path, name, AID_PER + 1);

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        assert_int_equal(truncate(path, sizes[i]), 0);
        s = damaged();

        if (i < 3) {
            aid_expect(s, 1, AID_PER + 10);
            aid_expect_hole(s, AID_PER + 11, 2 * AID_PER);

        } else {
            aid_expect(s, 1, AID_PER);
            aid_expect_hole(s, AID_PER + 1, 2 * AID_PER);
        }

        aid_expect(s, 2 * AID_PER + 1, N);
        aid_expect_end(s, REFERRAL_DONE);
        referral_journal_close(journal);
    }
}


static void
deleted(void **state)
{
    char                path[256];
    referral_stream_t  *s;

    aid_stream(N, name);

    aid_segment(path, name, AID_PER + 1);
    assert_int_equal(unlink(path), 0);
    s = damaged();
    aid_expect(s, 1, AID_PER);
    aid_expect_hole(s, AID_PER + 1, 2 * AID_PER);
    aid_expect(s, 2 * AID_PER + 1, N);

    /* the same while it is being read */

    aid_ok(referral_stream_seek(s, 1, NULL, aid_error));
    aid_expect(s, 1, 5);
    aid_segment(path, name, 1);
    assert_int_equal(unlink(path), 0);
    aid_expect(s, 6, AID_PER);
    aid_expect_hole(s, AID_PER + 1, 2 * AID_PER);

    aid_ok(referral_stream_seek(s, 3, NULL, aid_error));
    aid_expect_hole(s, 3, 2 * AID_PER);
    aid_expect(s, 2 * AID_PER + 1, N);
    aid_expect_end(s, REFERRAL_DONE);

    aid_segment(path, name, 2 * AID_PER + 1);
    assert_int_equal(unlink(path), 0);
    aid_segment(path, name, 3 * AID_PER + 1);
    assert_int_equal(unlink(path), 0);
    aid_ok(referral_stream_seek(s, 3, NULL, aid_error));
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);
}


/* a segment of another stream, and a second copy of one */

static void
stale_and_double(void **state)
{
    char                other[33], from[256], to[256];
    size_t              i;
    referral_stream_t  *s;

    aid_stream(N, other);
    aid_segment(from, other, AID_PER + 1);
    aid_name(to, "", "stale");
    aid_copy(from, to);
    assert_int_equal(aid_teardown(NULL), 0);
    assert_int_equal(mkdir(aid_path, 0700), 0);

    aid_stream(N, other);
    aid_stream(N, name);

    /* other's second segment over name's */

    aid_segment(from, other, AID_PER + 1);
    aid_segment(to, name, AID_PER + 1);
    aid_copy(from, to);

    journal = aid_read();
    s = referral_journal_stream(journal, 0);

    if (strcmp(s->name, name) != 0) {
        s = referral_journal_stream(journal, 1);
    }

    assert_int_equal(s->nsegments, 4);
    assert_int_equal(s->nused, 3);
    assert_int_equal(s->segments[3].damaged, 1);
    assert_int_equal(s->segments[3].used, 0);
    aid_expect(s, 1, AID_PER);
    aid_expect_hole(s, AID_PER + 1, 2 * AID_PER);
    aid_expect(s, 2 * AID_PER + 1, N);
    referral_journal_close(journal);

    /* copies under other names: the spare's, and one that lies */

    aid_name(to, other, REFERRAL_SPARE);
    aid_copy(from, to);
    aid_segment(to, other, 77);
    aid_copy(from, to);

    journal = aid_read();
    s = referral_journal_stream(journal, 0);

    if (strcmp(s->name, other) != 0) {
        s = referral_journal_stream(journal, 1);
    }

    assert_int_equal(s->nsegments, 6);
    assert_int_equal(s->nused, 4);

    for (i = 0; i < 4; i++) {
        assert_int_equal(s->segments[i].first, i * AID_PER + 1);
        assert_int_equal(s->segments[i].damaged, 0);
    }

    aid_expect(s, 1, N);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);
}


/* a writer killed between taking a spare into use and naming it */

static void
unnamed(void **state)
{
    int                 fd;
    char                from[256], to[256];
    referral_stream_t  *s;

    aid_stream(N, name);
    aid_segment(from, name, 3 * AID_PER + 1);
    aid_name(to, name, REFERRAL_SPARE);
    assert_int_equal(rename(from, to), 0);

    s = damaged();
    assert_int_equal(s->nused, 4);
    aid_expect(s, 1, N);
    aid_expect_end(s, REFERRAL_DONE);

    /* named under our hands */

    aid_ok(referral_stream_seek(s, 2 * AID_PER + 1, NULL, aid_error));
    assert_int_equal(rename(to, from), 0);
    aid_expect(s, 2 * AID_PER + 1, N);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);

    /* spares that were never used: no bytes, no header, no begin */

    fd = open(to, O_RDWR|O_CREAT|O_CLOEXEC, 0600);
    assert_int_not_equal(fd, -1);
    s = damaged();
    assert_int_equal(s->nsegments, 5);
    assert_int_equal(s->nused, 4);
    assert_int_equal(s->segments[4].damaged, 0);
    referral_journal_close(journal);

    assert_int_equal(ftruncate(fd, AID_SEGMENT), 0);
    assert_int_equal(close(fd), 0);
    s = damaged();
    assert_int_equal(s->nused, 4);
    assert_int_equal(s->segments[4].damaged, 0);
    referral_journal_close(journal);

    aid_copy(from, to);
    aid_damage(to, REFERRAL_SEGMENT_BEGIN, AID_SEGMENT / 16, 0);
    s = damaged();
    assert_int_equal(s->nused, 4);
    assert_int_equal(s->segments[4].damaged, 0);
    aid_expect(s, 1, N);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(journal);
}


/*
 * A client sends what looks like frames: made with any salt, and even the
 * bytes of a frame of this very segment.
 */

static void
forged(void **state)
{
    int                     fd;
    u_char                 *p, frame[AID_FRAME];
    u_char                  page[REFERRAL_SEGMENT_BEGIN];
    char                    path[256];
    uint64_t                n;
    referral_writer_t      *w;
    referral_stream_t      *s;
    referral_frame_t        f;
    referral_writer_conf_t  conf;

    referral_segment_header_t  h;

    conf = aid_conf();
    w = aid_open(&conf);
    aid_fill(w, 1);

    aid_segment(path, referral_writer_stream(w), 1);
    fd = open(path, O_RDONLY|O_CLOEXEC);
    assert_int_equal(pread(fd, frame, AID_FRAME, REFERRAL_SEGMENT_DATA),
                     AID_FRAME);
    assert_int_equal(pread(fd, page, sizeof(page), 0), sizeof(page));
    assert_int_equal(close(fd), 0);

    p = referral_writer_reserve(w, 1000);
    memset(p, 0, 1000);

    for (n = 0; n < 4; n++) {
        memcpy(p + n * AID_FRAME, frame, AID_FRAME);

        if (n) {
            referral_frame_publish(p + n * AID_FRAME, (uint32_t) n - 1, 1 + n,
                                   AID_LEN);
        }
    }

    /* with the right salt, were it known: no frame there has such a number */

    assert_int_equal(referral_segment_header_decode(&h, page, aid_error),
                     REFERRAL_OK);
    referral_frame_publish(p + 4 * AID_FRAME, h.salt, 90, AID_LEN);

    assert_int_equal(referral_writer_commit(w, 1000, 0), 2);
    aid_fill(w, 5);
    referral_writer_close(w);

    aid_damage(path, REFERRAL_SEGMENT_DATA + AID_FRAME, 1, 1);

    s = damaged();
    aid_expect(s, 1, 1);
    aid_expect_hole(s, 2, 2);
    aid_expect(s, 3, 7);
    assert_int_equal(referral_stream_next(s, &f, aid_error), REFERRAL_DONE);
    referral_journal_close(journal);
}


static void
hints(void **state)
{
    char                 path[256];
    unsigned             i;
    referral_stream_t   *s;
    referral_position_t  pos, got;

    aid_stream(N, name);
    s = damaged();

    memset(&pos, 0, sizeof(pos));
    aid_expect(s, 1, AID_PER + 20);
    referral_stream_position(s, &pos);
    assert_int_equal(pos.seq, AID_PER + 20);
    assert_int_equal(pos.offset, aid_offset(AID_PER + 21, AID_PER + 1));

    /* saved and loaded */

    pos.freed = 12;
    memset(pos.last_id, 0xa5, sizeof(pos.last_id));
    assert_int_equal(referral_position_load(s, &got, aid_error),
                     REFERRAL_DECLINED);
    aid_ok(referral_position_save(s, &pos, aid_error));
    aid_ok(referral_position_load(s, &got, aid_error));
    assert_memory_equal(&pos, &got, sizeof(pos));

    aid_ok(referral_stream_seek(s, pos.seq + 1, &got, aid_error));
    aid_expect(s, pos.seq + 1, N);

    /* one that does not fit does no harm */

    for (i = 0; i < 6; i++) {
        got = pos;

        switch (i) {
        case 0:
            got.offset += AID_FRAME;
            break;
        case 1:
            got.offset += 3;
            break;
        case 2:
            got.offset = UINT64_MAX - 7;
            break;
        case 3:
            got.offset = 0;
            break;
        case 4:
            (void) strcpy(got.segment, "../../../etc/passwd");
            break;
        default:
            (void) snprintf(got.segment, sizeof(got.segment),
                            REFERRAL_SEGMENT_NAME, 1ULL);
            break;
        }

        aid_ok(referral_stream_seek(s, pos.seq + 1, &got, aid_error));
        aid_expect(s, pos.seq + 1, N);
    }

    /* damage to the file is seen, wherever */

    aid_name(path, name, "committed");

    for (i = 0; i < 90; i += 3) {
        aid_damage(path, i, 1, 1);
        assert_int_equal(referral_position_load(s, &got, aid_error),
                         REFERRAL_DECLINED);
        aid_damage(path, i, 1, 1);
    }

    assert_int_equal(truncate(path, 30), 0);
    assert_int_equal(referral_position_load(s, &got, aid_error),
                     REFERRAL_DECLINED);
    referral_journal_close(journal);
}


static void
seeks(void **state)
{
    char                path[256];
    referral_stream_t  *s;

    aid_stream(N, name);
    aid_segment(path, name, 1);
    aid_damage(path, aid_offset(50, 1), 1, 1);

    s = damaged();
    assert_int_equal(referral_stream_seek(s, 0, NULL, aid_error),
                     REFERRAL_ERROR);

    /* damage before the place is of no interest there */

    aid_ok(referral_stream_seek(s, 100, NULL, aid_error));
    aid_expect(s, 100, N);
    aid_expect_end(s, REFERRAL_DONE);

    aid_ok(referral_stream_seek(s, 50, NULL, aid_error));
    aid_expect_hole(s, 50, 50);
    aid_expect(s, 51, 60);

    aid_ok(referral_stream_seek(s, N, NULL, aid_error));
    aid_expect(s, N, N);
    aid_expect_end(s, REFERRAL_DONE);

    aid_ok(referral_stream_seek(s, N + 1, NULL, aid_error));
    aid_expect_end(s, REFERRAL_DONE);
    aid_ok(referral_stream_seek(s, N + 1000, NULL, aid_error));
    aid_expect_end(s, REFERRAL_DONE);

    aid_ok(referral_stream_seek(s, 2 * AID_PER, NULL, aid_error));
    aid_expect(s, 2 * AID_PER, 2 * AID_PER + 1);
    referral_journal_close(journal);
}


static void
directories(void **state)
{
    char                    path[256], to[256];
    referral_writer_t      *w;
    referral_journal_t     *j2;
    referral_stream_t      *s;
    referral_writer_conf_t  conf;

    /* what is not ours is left alone */

    aid_name(path, "lost+found", "");
    assert_int_equal(mkdir(path, 0700), 0);
    aid_name(path, "00112233445566778899aabbccddeeff", "");
    assert_int_equal(close(open(path, O_WRONLY|O_CREAT, 0600)), 0);
    aid_name(to, "00112233445566778899aabbccddeefe", "");
    assert_int_equal(symlink("/tmp", to), 0);

    journal = aid_read();
    assert_int_equal(referral_journal_streams(journal), 0);

    conf = aid_conf();
    w = aid_open(&conf);
    aid_fill(w, 3);
    (void) snprintf(name, sizeof(name), "%s", referral_writer_stream(w));

    aid_name(path, name, "00000000000000000009.seg");
    assert_int_equal(mkdir(path, 0700), 0);
    aid_name(path, name, "00000000000000000000.seg");
    assert_int_equal(close(open(path, O_WRONLY|O_CREAT, 0600)), 0);

    aid_ok(referral_journal_scan(journal, aid_error));
    assert_int_equal(referral_journal_streams(journal), 1);
    s = referral_journal_stream(journal, 0);
    assert_int_equal(s->nused, 1);
    aid_expect(s, 1, 3);

    assert_int_equal(referral_stream_remove(s, aid_error), REFERRAL_ERROR);

    /* one reader frees */

    aid_ok(referral_journal_lock(journal, aid_error));
    aid_ok(referral_journal_lock(journal, aid_error));
    j2 = aid_read();
    assert_int_equal(referral_journal_lock(j2, aid_error), REFERRAL_DECLINED);
    assert_non_null(strstr(aid_error, aid_path));
    referral_journal_close(j2);

    /* positions stay when the directory is looked at again */

    aid_fill(w, 1);
    aid_ok(referral_journal_scan(journal, aid_error));
    assert_ptr_equal(s, referral_journal_stream(journal, 0));
    aid_expect(s, 4, 4);

    aid_ok(referral_stream_set_aside(s, "resumed twice\n", aid_error));
    assert_int_equal(s->state, REFERRAL_STREAM_SET_ASIDE);
    aid_expect_end(s, REFERRAL_AGAIN);
    aid_fill(w, 1);
    referral_writer_close(w);
    aid_expect(s, 5, 5);
    aid_expect_end(s, REFERRAL_DONE);
    aid_ok(referral_journal_scan(journal, aid_error));
    assert_int_equal(s->state, REFERRAL_STREAM_SET_ASIDE);

    /* a copy without its lock file is final */

    aid_name(path, name, "lock");
    assert_int_equal(unlink(path), 0);
    aid_name(path, name, "aside");
    assert_int_equal(unlink(path), 0);
    aid_ok(referral_journal_scan(journal, aid_error));
    assert_int_equal(s->state, REFERRAL_STREAM_FINAL);

    aid_name(path, name, "00000000000000000000.seg");
    assert_int_equal(unlink(path), 0);
    aid_name(path, name, "00000000000000000009.seg");
    assert_int_equal(rmdir(path), 0);
    aid_ok(referral_stream_unlink(s, 0, aid_error));
    aid_ok(referral_stream_remove(s, aid_error));
    aid_expect_end(s, REFERRAL_DONE);
    aid_ok(referral_journal_scan(journal, aid_error));
    assert_int_equal(referral_journal_streams(journal), 0);

    referral_journal_close(journal);
}


/*
 * Any damage at all: what comes out is in order, without a gap between
 * records and holes, and every payload is one that was written.
 */

static void
any_damage(void **state)
{
    int                 rc;
    char                from[4][256], to[4][256];
    u_char              payload[AID_LEN];
    unsigned            i, n, run, seed;
    uint64_t            next;
    referral_stream_t  *s;
    referral_frame_t    frame;

    aid_stream(N, name);

    for (i = 0; i < 4; i++) {
        aid_segment(from[i], name, i * AID_PER + 1);
        (void) snprintf(to[i], sizeof(to[i]), "%s/copy%u", aid_path, i);
        aid_copy(from[i], to[i]);
    }

    seed = (unsigned) time(NULL);
    print_message("# seed %u\n", seed);

    for (run = 0; run < 150; run++) {

        for (i = 0; i < 4; i++) {
            aid_copy(to[i], from[i]);
        }

        for (n = 1 + rand_r(&seed) % 6; n > 0; n--) {
            i = rand_r(&seed) % 4;

            switch (rand_r(&seed) % 4) {

            case 0:
                if (truncate(from[i], rand_r(&seed) % AID_SEGMENT) == -1) {
                    fail();
                }
                break;

            case 1:
                if (rename(from[i], from[rand_r(&seed) % 4]) == -1) {
                    /* it was moved before */
                }
                break;

            default:
                rc = open(from[i], O_RDWR|O_CREAT|O_CLOEXEC, 0600);
                memset(payload, rand_r(&seed), sizeof(payload));
                next = rand_r(&seed) % (rand_r(&seed) % 2 ? 600 : 65000);
                assert_true(pwrite(rc, payload, 1 + rand_r(&seed) % 90,
                                   (off_t) next) > 0);
                assert_int_equal(close(rc), 0);
                break;
            }

            for (i = 0; i < 4; i++) {
                if (access(from[i], F_OK) == -1 && rand_r(&seed) % 2) {
                    aid_copy(to[i], from[i]);
                }
            }

            if (access(from[0], F_OK) == -1) {
                aid_copy(to[0], from[0]);
            }

            for (i = 1; i < 4; i++) {
                if (access(from[i], F_OK) == -1) {
                    assert_int_equal(close(open(from[i], O_WRONLY|O_CREAT,
                                                0600)), 0);
                }
            }
        }

        s = damaged();

        for (next = 1; /* void */ ; next = frame.last + 1) {
            rc = referral_stream_next(s, &frame, aid_error);

            if (rc == REFERRAL_DONE) {
                break;
            }

            assert_true(rc == REFERRAL_OK || rc == REFERRAL_HOLE);
            assert_int_equal(frame.number, next);
            assert_true(frame.last >= frame.number);
            assert_true(frame.last <= N);

            if (rc == REFERRAL_OK) {
                aid_payload(payload, next);
                assert_int_equal(frame.len, AID_LEN);
                assert_memory_equal(frame.payload, payload, AID_LEN);
            }
        }

        referral_journal_close(journal);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(bit_flips, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(holes_at_the_ends, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(zero_page, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(torn_tail, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(torn_live, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(header, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(begin, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(truncated, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(deleted, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(stale_and_double, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(unnamed, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(forged, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(hints, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(seeks, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(directories, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(any_damage, aid_setup, aid_teardown)
    };

    return cmocka_run_group_tests_name("reader", tests, NULL, NULL);
}
