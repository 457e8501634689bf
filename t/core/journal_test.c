
/*
 * Copyright (C) The nginx referral module authors
 *
 * The writer, and readers beside it.
 */


#include "journal_aid.h"

#include <dirent.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>


static unsigned
entries(const char *path)
{
    DIR            *dp;
    unsigned        n;
    struct dirent  *de;

    n = 0;
    dp = opendir(path);
    assert_non_null(dp);

    while ((de = readdir(dp)) != NULL) {
        n += (de->d_name[0] != '.');
    }

    assert_int_equal(closedir(dp), 0);

    return n;
}


static void
message(referral_writer_t *w, const char *word)
{
    int   i;
    char  text[REFERRAL_ERROR_LEN];

    for (i = 0; i < 300; i++) {
        if (referral_writer_message(w, text, sizeof(text)) == REFERRAL_OK) {

            if (strstr(text, word) == NULL) {
                fail_msg("\"%s\" is not in \"%s\"", word, text);
            }

            return;
        }

        (void) referral_writer_tick(w);
        aid_sleep(10);
    }

    fail_msg("no message with \"%s\"", word);
}


static void
roundtrip(void **state)
{
    char                 name[33], path[256];
    struct stat          st;
    referral_journal_t  *j;
    referral_stream_t   *s;

    aid_stream(5 * AID_PER + 7, name);

    j = aid_read();
    assert_int_equal(referral_journal_streams(j), 1);

    s = referral_journal_stream(j, 0);
    assert_string_equal(s->name, name);
    assert_int_equal(s->state, REFERRAL_STREAM_FINAL);
    assert_int_equal(s->nsegments, 6);
    assert_int_equal(s->nused, 6);
    assert_string_equal(s->segments[0].header.edge, "edge-a");
    assert_int_equal(s->segments[0].header.pid, getpid());
    assert_int_equal(referral_journal_limit(j), 64 * AID_SEGMENT);

    aid_expect(s, 1, 5 * AID_PER + 7);
    aid_expect_end(s, REFERRAL_DONE);
    aid_expect_end(s, REFERRAL_DONE);

    /* what was not used was given back, the spare too */

    aid_segment(path, name, 5 * AID_PER + 1);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, REFERRAL_SEGMENT_DATA + 7 * AID_FRAME);

    referral_journal_close(j);
}


static void
live_tail(void **state)
{
    unsigned                i;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_writer_conf_t  conf;

    conf = aid_conf();
    w = aid_open(&conf);
    j = aid_read();
    s = referral_journal_stream(j, 0);

    assert_int_equal(s->state, REFERRAL_STREAM_LIVE);
    aid_expect_end(s, REFERRAL_AGAIN);

    for (i = 1; i <= 3 * AID_PER; i++) {
        assert_int_equal(aid_append(w, 0), i);
        aid_expect(s, i, i);

        if (i % 100 == 0) {
            aid_expect_end(s, REFERRAL_AGAIN);
        }
    }

    aid_expect_end(s, REFERRAL_AGAIN);
    assert_int_equal(aid_append(w, 0), i);
    referral_writer_close(w);

    aid_expect(s, i, i);
    aid_expect_end(s, REFERRAL_DONE);

    referral_journal_close(j);
}


static void
nothing_appended(void **state)
{
    referral_writer_t      *w;
    referral_writer_conf_t  conf;

    conf = aid_conf();
    conf.sync = 10;
    w = aid_open(&conf);

    assert_int_equal(entries(aid_path), 2);
    assert_non_null(referral_writer_reserve(w, 10));

    referral_writer_close(w);

    /* space.lock */
    assert_int_equal(entries(aid_path), 1);
}


static void
probe(void **state)
{
    char                    path[256];
    referral_writer_conf_t  conf;

    conf = aid_conf();
    aid_ok(referral_writer_probe(&conf, aid_error));
    assert_int_equal(entries(aid_path), 0);

    (void) snprintf(path, sizeof(path), "%s/absent", aid_path);
    conf.path = path;
    assert_int_equal(referral_writer_probe(&conf, aid_error), REFERRAL_ERROR);
    assert_non_null(strstr(aid_error, path));

    assert_int_equal(close(open(path, O_WRONLY|O_CREAT, 0600)), 0);
    assert_int_equal(referral_writer_probe(&conf, aid_error), REFERRAL_ERROR);
    assert_non_null(strstr(aid_error, path));

    conf = aid_conf();
    conf.segment = 1000;
    assert_int_equal(referral_writer_probe(&conf, aid_error), REFERRAL_ERROR);

    conf.segment = AID_SEGMENT;
    conf.size = AID_SEGMENT;
    assert_int_equal(referral_writer_probe(&conf, aid_error), REFERRAL_ERROR);

    /* /proc cannot hold a directory of ours, whoever runs this */

    conf = aid_conf();
    conf.path = "/proc";
    assert_int_equal(referral_writer_probe(&conf, aid_error), REFERRAL_ERROR);
}


static void
modes(void **state)
{
    char                    path[256];
    mode_t                  mask;
    struct stat             st;
    referral_writer_t      *w;
    referral_writer_conf_t  conf;

    assert_int_equal(chmod(aid_path, 02770), 0);

    mask = umask(0077);
    conf = aid_conf();
    w = aid_open(&conf);
    aid_fill(w, AID_PER + 1);
    assert_int_equal(umask(mask), 0077);

    aid_name(path, referral_writer_stream(w), "");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 02770);

    aid_segment(path, referral_writer_stream(w), AID_PER + 1);

    while (stat(path, &st) == -1) {
        (void) referral_writer_tick(w);
        aid_sleep(1);
    }

    assert_int_equal(st.st_mode & 07777, 0660);

    aid_name(path, referral_writer_stream(w), "lock");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);

    referral_writer_close(w);
}


static void
reservations(void **state)
{
    int                     fd;
    char                    path[256];
    u_char                 *p;
    uint64_t                word;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_frame_t        frame;
    referral_writer_conf_t  conf;
    referral_writer_stat_t  st;

    conf = aid_conf();
    w = aid_open(&conf);

    assert_null(referral_writer_reserve(w, 0));
    assert_null(referral_writer_reserve(w, REFERRAL_RECORD_MAX + 1));
    assert_int_equal(referral_writer_commit(w, 1, 0), 0);

    /* what a longer reservation leaves behind is not taken for a frame */

    p = referral_writer_reserve(w, 8000);
    assert_non_null(p);
    memset(p, 0xff, 8000);
    assert_int_equal(referral_writer_commit(w, 8001, 0), 0);
    assert_int_equal(referral_writer_commit(w, 3, 0), 1);
    aid_segment(path, referral_writer_stream(w), 1);
    fd = open(path, O_RDONLY|O_CLOEXEC);
    assert_int_equal(pread(fd, &word, 8, REFERRAL_SEGMENT_DATA + 24), 8);
    assert_int_equal(close(fd), 0);
    assert_int_equal(word, 0);
    assert_int_equal(referral_writer_commit(w, 3, 0), 0);

    /* a second reservation forgets the first */

    p = referral_writer_reserve(w, 500);
    memset(p, 'x', 500);
    p = referral_writer_reserve(w, 1);
    *p = 'y';
    assert_int_equal(referral_writer_commit(w, 2, 0), 0);
    assert_int_equal(referral_writer_commit(w, 1, 0), 2);

    p = referral_writer_reserve(w, REFERRAL_RECORD_MAX);
    memset(p, 'z', REFERRAL_RECORD_MAX);
    assert_int_equal(referral_writer_commit(w, REFERRAL_RECORD_MAX, 0), 3);

    j = aid_read();
    s = referral_journal_stream(j, 0);

    assert_int_equal(referral_stream_next(s, &frame, aid_error), REFERRAL_OK);
    assert_int_equal(frame.len, 3);
    assert_memory_equal(frame.payload, "\xff\xff\xff", 3);
    assert_int_equal(referral_stream_next(s, &frame, aid_error), REFERRAL_OK);
    assert_int_equal(frame.len, 1);
    assert_int_equal(frame.payload[0], 'y');
    assert_int_equal(referral_stream_next(s, &frame, aid_error), REFERRAL_OK);
    assert_int_equal(frame.len, REFERRAL_RECORD_MAX);
    assert_int_equal(frame.payload[REFERRAL_RECORD_MAX - 1], 'z');
    aid_expect_end(s, REFERRAL_AGAIN);

    referral_writer_stat(w, &st);
    assert_int_equal(st.appended, 3);
    assert_int_equal(st.full, 2);
    assert_int_equal(st.bytes, 24 + 24 + 16 + REFERRAL_RECORD_MAX);

    referral_writer_close(w);
    referral_journal_close(j);
}


/* the spare is there when its zeros are: until then the journal is full */

static void
room(void **state)
{
    size_t                  len;
    unsigned                i;
    referral_writer_t      *w;
    referral_writer_conf_t  conf;
    referral_writer_stat_t  st;

    conf = aid_conf();
    w = aid_open(&conf);

    assert_int_equal(referral_writer_room(w), AID_SEGMENT
                     - REFERRAL_SEGMENT_DATA - REFERRAL_FRAME_HEAD);

    do {
        len = referral_writer_room(w);
        len = len > 9001 ? 9001 : len;

        assert_non_null(referral_writer_reserve(w, len));
        assert_true(referral_writer_commit(w, len, 0) > 0);

    } while (len == 9001);

    assert_int_equal(referral_writer_room(w), 0);

    referral_writer_stat(w, &st);
    assert_int_equal(st.segments, 1);

    for (i = 0; i < 300 && referral_writer_reserve(w, 1) == NULL; i++) {
        (void) referral_writer_tick(w);
        aid_sleep(10);
    }

    assert_int_equal(referral_writer_commit(w, 1, 0), st.appended + 1);
    assert_int_equal(referral_writer_room(w), AID_SEGMENT
                     - REFERRAL_SEGMENT_DATA - 2 * REFERRAL_FRAME_HEAD - 8);

    referral_writer_stat(w, &st);
    assert_int_equal(st.segments, 2);

    referral_writer_close(w);
}


static void
full_and_free(void **state)
{
    uint64_t                n, more;
    unsigned                i;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_writer_conf_t  conf;
    referral_writer_stat_t  st;

    conf = aid_conf();
    conf.size = 4 * AID_SEGMENT;
    w = aid_open(&conf);

    n = 0;

    for (i = 0; i < 30; i++) {

        while ((more = aid_try(w, 0)) != 0) {
            n = more;
        }

        (void) referral_writer_tick(w);
        aid_sleep(10);
    }

    assert_int_equal(n, 4 * AID_PER);
    assert_int_equal(referral_writer_tick(w) > 0, 1);
    message(w, "is full: 262144 of 262144 bytes");

    referral_writer_stat(w, &st);
    assert_true(st.full >= 30);
    assert_int_equal(st.journal, 4 * AID_SEGMENT);

    /* nothing that was accepted went away */

    j = aid_read();
    s = referral_journal_stream(j, 0);
    aid_expect(s, 1, n);
    aid_expect_end(s, REFERRAL_AGAIN);

    /* the last one is the writer's */

    assert_int_equal(referral_stream_unlink(s, 3, aid_error), REFERRAL_ERROR);
    aid_ok(referral_stream_unlink(s, 0, aid_error));
    assert_int_equal(s->nused, 3);
    assert_int_equal(referral_journal_bytes(j), 3 * AID_SEGMENT);
    aid_ok(referral_stream_unlink(s, 0, aid_error));

    assert_int_equal(aid_append(w, 0), n + 1);
    aid_expect(s, n + 1, n + 1);

    referral_writer_close(w);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(j);
}


static void
full_at_start(void **state)
{
    referral_writer_t      *w, *w2;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_writer_conf_t  conf;

    conf = aid_conf();
    conf.size = 2 * AID_SEGMENT;
    w = aid_open(&conf);
    aid_fill(w, 2 * AID_PER);

    w2 = aid_open(&conf);
    assert_null(referral_writer_reserve(w2, 10));
    message(w2, "is full");

    j = aid_read();
    assert_int_equal(referral_journal_streams(j), 2);

    s = referral_journal_stream(j, 0);

    if (strcmp(s->name, referral_writer_stream(w)) != 0) {
        s = referral_journal_stream(j, 1);
    }

    aid_expect_end(referral_journal_stream(j,
                       referral_journal_stream(j, 0) == s), REFERRAL_AGAIN);

    aid_expect(s, 1, 2 * AID_PER);
    aid_ok(referral_stream_unlink(s, 0, aid_error));

    assert_int_equal(aid_append(w2, 0), 1);

    referral_writer_close(w2);
    referral_writer_close(w);
    referral_journal_close(j);
}


/* two writers may not use more than the limit between them */

static void
limit_of_two(void **state)
{
    unsigned                i;
    uint64_t                n;
    referral_writer_t      *w[2];
    referral_journal_t     *j;
    referral_writer_conf_t  conf;

    conf = aid_conf();
    conf.size = 7 * AID_SEGMENT;
    w[0] = aid_open(&conf);
    w[1] = aid_open(&conf);
    n = 0;

    for (i = 0; i < 80; i++) {
        while (aid_try(w[i % 2], 0)) {
            n++;
        }

        (void) referral_writer_tick(w[i % 2]);
        aid_sleep(5);
    }

    assert_int_equal(n, 7 * AID_PER);

    j = aid_read();
    assert_int_equal(referral_journal_bytes(j), 7 * AID_SEGMENT);
    referral_journal_close(j);

    referral_writer_close(w[0]);
    referral_writer_close(w[1]);
}


static void
noise(void **state)
{
    int                     i;
    uint64_t                n;
    referral_writer_t      *w, *w2;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_writer_conf_t  conf;
    referral_writer_stat_t  st;

    conf = aid_conf();
    conf.size = 20 * AID_SEGMENT;
    w = aid_open(&conf);

    aid_fill(w, AID_PER / 2);
    assert_int_equal(referral_writer_noise_full(w), 0);

    n = 0;

    while (!referral_writer_noise_full(w)) {
        (void) aid_append(w, 1);
        n++;
    }

    /* a tenth, to the record */

    assert_int_equal(n, (2 * AID_SEGMENT + AID_FRAME - 1) / AID_FRAME);
    referral_writer_stat(w, &st);
    assert_int_equal(st.noise, n * AID_FRAME);

    /* valid ones still go; another writer knows from its first scan */

    aid_fill(w, AID_PER);
    w2 = aid_open(&conf);
    assert_int_equal(referral_writer_noise_full(w2), 1);
    referral_writer_close(w2);

    j = aid_read();
    s = referral_journal_stream(j, 0);

    if (s->nused < 2) {
        s = referral_journal_stream(j, 1);
    }

    aid_ok(referral_stream_unlink(s, 0, aid_error));
    aid_ok(referral_stream_unlink(s, 0, aid_error));

    for (i = 0; i < 300 && referral_writer_noise_full(w); i++) {
        assert_true(referral_writer_tick(w) > 0);
        aid_sleep(10);
    }

    assert_int_equal(referral_writer_noise_full(w), 0);

    referral_writer_close(w);
    referral_journal_close(j);
}


static void
synced(void **state)
{
    int                     i;
    unsigned                next;
    referral_writer_t      *w;
    referral_writer_conf_t  conf;
    referral_writer_stat_t  st;

    conf = aid_conf();
    conf.sync = 20;
    w = aid_open(&conf);
    aid_fill(w, 3 * AID_PER + 1);

    for (i = 0; i < 500; i++) {
        next = referral_writer_tick(w);
        referral_writer_stat(w, &st);
        assert_true(st.synced <= st.appended);

        if (st.synced == st.appended && next == 0) {
            break;
        }

        aid_sleep(10);
    }

    assert_int_equal(st.synced, 3 * AID_PER + 1);
    assert_int_equal(st.errors, 0);
    assert_int_equal(next, 0);

    referral_writer_close(w);
}


/* directories of writers that died before their stream had a name */

static void
unborn(void **state)
{
    char                    old[256], young[256], file[256];
    struct stat             st;
    struct timespec         ts[2];
    referral_writer_conf_t  conf;

    aid_name(old, "00112233445566778899aabbccddeeff.new", "");
    aid_name(young, "00112233445566778899aabbccddee00.new", "");
    aid_name(file, "00112233445566778899aabbccddeeff.new", REFERRAL_SPARE);

    assert_int_equal(mkdir(old, 0770), 0);
    assert_int_equal(mkdir(young, 0770), 0);
    assert_int_equal(close(open(file, O_WRONLY|O_CREAT, 0600)), 0);

    ts[0].tv_sec = time(NULL) - 3600;
    ts[0].tv_nsec = 0;
    ts[1] = ts[0];
    assert_int_equal(utimensat(AT_FDCWD, old, ts, 0), 0);

    conf = aid_conf();
    referral_writer_close(aid_open(&conf));

    assert_int_equal(stat(old, &st), -1);
    assert_int_equal(stat(young, &st), 0);
}


/* a reader at full speed beside a writer at full speed, freeing behind it */

static void
side_by_side(void **state)
{
    int                     rc, status;
    pid_t                   pid;
    u_char                  payload[AID_LEN];
    uint64_t                next, n;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_frame_t        frame;
    referral_writer_conf_t  conf;

    conf = aid_conf();
    conf.size = 40 * AID_SEGMENT;
    pid = fork();
    assert_int_not_equal(pid, -1);

    if (pid == 0) {
        if (referral_writer_open(&w, &conf, aid_error) != REFERRAL_OK) {
            _exit(1);
        }

        for (n = 0; n < 100000; /* void */ ) {
            if (aid_try(w, 0)) {
                n++;
                continue;
            }

            (void) referral_writer_tick(w);
            aid_sleep(1);
        }

        referral_writer_close(w);
        _exit(0);
    }

    j = aid_read();

    while (referral_journal_streams(j) == 0) {
        aid_sleep(1);
        aid_ok(referral_journal_scan(j, aid_error));
    }

    s = referral_journal_stream(j, 0);

    for (next = 1; /* void */ ; /* void */ ) {
        rc = referral_stream_next(s, &frame, aid_error);

        if (rc == REFERRAL_AGAIN) {
            continue;
        }

        if (rc == REFERRAL_DONE) {
            break;
        }

        if (rc != REFERRAL_OK) {
            fail_msg("%llu: %d %s", (unsigned long long) next, rc,
                     rc == REFERRAL_HOLE ? frame.problem : aid_error);
        }

        aid_payload(payload, next);
        assert_int_equal(frame.number, next);
        assert_memory_equal(frame.payload, payload, AID_LEN);

        if (next % AID_PER == 0 && s->nused > 1
            && s->segments[1].first <= next)
        {
            aid_ok(referral_stream_unlink(s, 0, aid_error));
        }

        next++;
    }

    assert_int_equal(next, 100001);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    referral_journal_close(j);
}


/*
 * The writer is killed at some moment; whatever it had committed by then is
 * there, and only that.
 */

static void
killed(void **state)
{
    pid_t                   pid;
    char                    path[256];
    uint64_t                seen, i, n;
    uint64_t               *shared;
    unsigned                run, found;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_frame_t        frame;
    referral_writer_conf_t  conf;

    shared = mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS,
                  -1, 0);
    assert_true(shared != MAP_FAILED);

    conf = aid_conf();
    conf.size = 1000 * AID_SEGMENT;

    for (run = 0; run < 12; run++) {
        __atomic_store_n(shared, 0, __ATOMIC_SEQ_CST);
        conf.sync = run % 2 ? 5 : 0;
        pid = fork();
        assert_int_not_equal(pid, -1);

        if (pid == 0) {
            if (referral_writer_open(&w, &conf, aid_error) != REFERRAL_OK) {
                _exit(1);
            }

            for ( ;; ) {
                n = aid_try(w, 0);

                if (n) {
                    __atomic_store_n(shared, n, __ATOMIC_SEQ_CST);
                }

                if (n == 0 || n % 64 == 0) {
                    (void) referral_writer_tick(w);
                    aid_sleep(1);
                }
            }
        }

        aid_sleep(20 + run * 7);
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);

        seen = __atomic_load_n(shared, __ATOMIC_SEQ_CST);
        j = aid_read();
        found = 0;

        for (i = 0; i < referral_journal_streams(j); i++) {
            s = referral_journal_stream(j, i);

            if (s->nused == 0) {
                continue;
            }

            found++;
            assert_int_equal(s->state, REFERRAL_STREAM_FINAL);
            aid_expect(s, 1, seen);

            /* one may be committed and not told */

            if (referral_stream_next(s, &frame, aid_error) != REFERRAL_DONE) {
                assert_int_equal(frame.number, seen + 1);
                aid_expect_end(s, REFERRAL_DONE);
            }

            while (s->nsegments) {
                aid_ok(referral_stream_unlink(s, 0, aid_error));
            }

            aid_ok(referral_stream_remove(s, aid_error));
            aid_name(path, s->name, "");
            assert_int_equal(access(path, F_OK), -1);
        }

        assert_true(seen == 0 || found == 1);
        referral_journal_close(j);
    }

    assert_int_equal(munmap(shared, 4096), 0);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(roundtrip, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(live_tail, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(nothing_appended, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(probe, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(modes, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(reservations, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(room, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(full_and_free, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(full_at_start, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(limit_of_two, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(noise, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(synced, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(unborn, aid_setup, aid_teardown),
        cmocka_unit_test_setup_teardown(side_by_side, aid_setup,
                                        aid_teardown),
        cmocka_unit_test_setup_teardown(killed, aid_setup, aid_teardown)
    };

    return cmocka_run_group_tests_name("journal", tests, NULL, NULL);
}
