
/*
 * Copyright (C) The nginx referral module authors
 *
 * The writer when the system fails it: calls of the C library are replaced
 * by ones that fail, or kill the process, when they are told to.
 */


#include "journal_aid.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>


typedef struct {
    int  error;                            /* errno to give, 0: none */
    int  skip;                             /* calls that still work */
    int  times;                            /* calls that fail */
    int  die;                              /* instead of failing */
    int  calls;
} fault_t;


static fault_t  fault_fdatasync, fault_fallocate, fault_renameat, fault_pwrite;


static int
faulty(fault_t *f)
{
    __atomic_add_fetch(&f->calls, 1, __ATOMIC_SEQ_CST);

    if (__atomic_load_n(&f->times, __ATOMIC_SEQ_CST) == 0) {
        return 0;
    }

    if (__atomic_load_n(&f->skip, __ATOMIC_SEQ_CST) > 0) {
        __atomic_sub_fetch(&f->skip, 1, __ATOMIC_SEQ_CST);
        return 0;
    }

    if (__atomic_load_n(&f->die, __ATOMIC_SEQ_CST)) {
        (void) kill(getpid(), SIGKILL);
    }

    __atomic_sub_fetch(&f->times, 1, __ATOMIC_SEQ_CST);
    errno = __atomic_load_n(&f->error, __ATOMIC_SEQ_CST);

    return 1;
}


int
fdatasync(int fd)
{
    return faulty(&fault_fdatasync) ? -1 : (int) syscall(SYS_fdatasync, fd);
}


int
fallocate(int fd, int mode, off_t offset, off_t len)
{
    return faulty(&fault_fallocate) ? -1
                   : (int) syscall(SYS_fallocate, fd, mode, offset, len);
}


int
renameat(int from, const char *name, int to, const char *new_name)
{
    return faulty(&fault_renameat) ? -1
                   : (int) syscall(SYS_renameat2, from, name, to, new_name,
                                   0);
}


ssize_t
pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    return faulty(&fault_pwrite) ? -1
                   : syscall(SYS_pwrite64, fd, buf, len, offset);
}


static void
arm(fault_t *f, int error, int skip, int times)
{
    __atomic_store_n(&f->error, error, __ATOMIC_SEQ_CST);
    __atomic_store_n(&f->skip, skip, __ATOMIC_SEQ_CST);
    __atomic_store_n(&f->die, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&f->times, times, __ATOMIC_SEQ_CST);
}


static int
setup(void **state)
{
    memset(&fault_fdatasync, 0, sizeof(fault_t));
    memset(&fault_fallocate, 0, sizeof(fault_t));
    memset(&fault_renameat, 0, sizeof(fault_t));
    memset(&fault_pwrite, 0, sizeof(fault_t));

    return aid_setup(state);
}


/* ticks until a message with the word comes */

static void
message(referral_writer_t *w, const char *word)
{
    int   i;
    char  text[REFERRAL_ERROR_LEN];

    for (i = 0; i < 500; i++) {
        (void) referral_writer_tick(w);

        while (referral_writer_message(w, text, sizeof(text)) == REFERRAL_OK) {
            if (strstr(text, word) != NULL) {
                assert_non_null(strstr(text, aid_path));
                return;
            }
        }

        aid_sleep(10);
    }

    fail_msg("no message with \"%s\"", word);
}


static void
wait_synced(referral_writer_t *w)
{
    int                     i;
    referral_writer_stat_t  st;

    for (i = 0; i < 500; i++) {
        (void) referral_writer_tick(w);
        referral_writer_stat(w, &st);

        if (st.synced == st.appended) {
            return;
        }

        aid_sleep(10);
    }

    fail_msg("%llu of %llu are synced", (unsigned long long) st.synced,
             (unsigned long long) st.appended);
}


/*
 * The next record goes to another segment, and the number on disk moves only
 * when the old one was written again.
 */

static void
sync_fails_once(void **state)
{
    int                     written;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_writer_conf_t  conf;
    referral_writer_stat_t  st;

    conf = aid_conf();
    conf.sync = 10;
    w = aid_open(&conf);
    aid_fill(w, 5);
    wait_synced(w);

    /* the spare is made by now; the next call is for the records */

    arm(&fault_fdatasync, EIO, 0, 1);
    aid_fill(w, 1);
    message(w, "cannot be written to disk: Input/output error");
    aid_sleep(100);
    (void) referral_writer_tick(w);
    aid_sleep(50);

    referral_writer_stat(w, &st);
    assert_int_equal(st.synced, 5);
    assert_int_equal(st.segments, 1);
    assert_true(st.errors >= 1);

    written = __atomic_load_n(&fault_pwrite.calls, __ATOMIC_SEQ_CST);
    assert_int_equal(aid_append(w, 0), 7);
    referral_writer_stat(w, &st);
    assert_int_equal(st.segments, 2);
    wait_synced(w);
    assert_true(__atomic_load_n(&fault_pwrite.calls, __ATOMIC_SEQ_CST)
                > written);

    j = aid_read();
    aid_expect(referral_journal_stream(j, 0), 1, 7);
    aid_expect_end(referral_journal_stream(j, 0), REFERRAL_AGAIN);
    referral_writer_close(w);
    aid_expect_end(referral_journal_stream(j, 0), REFERRAL_DONE);
    referral_journal_close(j);
}


/* a disk that is gone for some time: nothing is accepted that it owes */

static void
disk_gone(void **state)
{
    int                     i;
    uint64_t                n;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_writer_conf_t  conf;
    referral_writer_stat_t  st;

    conf = aid_conf();
    conf.sync = 10;
    w = aid_open(&conf);
    aid_fill(w, 5);
    wait_synced(w);

    arm(&fault_fdatasync, EIO, 0, 1000000);
    arm(&fault_fallocate, EIO, 0, 1000000);
    n = 5;

    for (i = 0; i < 50; i++) {
        n += (aid_try(w, 0) != 0);
        (void) referral_writer_tick(w);
        aid_sleep(10);
    }

    assert_true(n < 50);
    assert_null(referral_writer_reserve(w, 10));
    referral_writer_stat(w, &st);
    assert_int_equal(st.synced, 5);
    assert_int_equal(st.appended, n);

    arm(&fault_fdatasync, 0, 0, 0);
    arm(&fault_fallocate, 0, 0, 0);
    assert_int_equal(aid_append(w, 0), n + 1);
    wait_synced(w);

    referral_writer_close(w);
    j = aid_read();
    aid_expect(referral_journal_stream(j, 0), 1, n + 1);
    aid_expect_end(referral_journal_stream(j, 0), REFERRAL_DONE);
    referral_journal_close(j);
}


static void
disk_full(void **state)
{
    referral_writer_t      *w;
    referral_writer_conf_t  conf;
    referral_writer_stat_t  st;

    conf = aid_conf();
    arm(&fault_fallocate, ENOSPC, 0, 1000000);

    /* the stream is made, and waits */

    w = aid_open(&conf);
    assert_null(referral_writer_reserve(w, 10));
    message(w, "cannot be allocated: No space left on device");
    referral_writer_stat(w, &st);
    assert_true(st.errors >= 1);
    assert_true(referral_writer_tick(w) > 0);

    arm(&fault_fallocate, 0, 0, 0);
    assert_int_equal(aid_append(w, 0), 1);
    referral_writer_close(w);
}


static void
not_supported(void **state)
{
    referral_writer_t      *w;
    referral_writer_conf_t  conf;

    conf = aid_conf();
    arm(&fault_fallocate, EOPNOTSUPP, 0, 1000000);

    assert_int_equal(referral_writer_probe(&conf, aid_error), REFERRAL_ERROR);
    assert_non_null(strstr(aid_error, "use ext4"));

    assert_int_equal(referral_writer_open(&w, &conf, aid_error),
                     REFERRAL_ERROR);
    assert_non_null(strstr(aid_error, "use ext4"));
    assert_null(w);

    arm(&fault_fallocate, EINTR, 0, 3);
    aid_ok(referral_writer_probe(&conf, aid_error));
}


/* the segment in use keeps the spare's name: no record is lost for it */

static void
rename_fails(void **state)
{
    uint64_t                n;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_writer_conf_t  conf;

    conf = aid_conf();
    w = aid_open(&conf);
    aid_fill(w, AID_PER - 1);

    /* the spare stands ready */

    aid_sleep(50);
    arm(&fault_renameat, EACCES, 0, 1000000);
    aid_fill(w, AID_PER + 1);
    n = 2 * AID_PER;
    message(w, "cannot be renamed");
    assert_int_equal(aid_try(w, 0), 0);

    j = aid_read();
    s = referral_journal_stream(j, 0);
    aid_expect(s, 1, n);
    aid_expect_end(s, REFERRAL_AGAIN);

    arm(&fault_renameat, 0, 0, 0);
    assert_int_equal(aid_append(w, 0), n + 1);
    aid_expect(s, n + 1, n + 1);

    arm(&fault_renameat, EACCES, 0, 1000000);
    aid_fill(w, AID_PER - 1);
    referral_writer_close(w);
    arm(&fault_renameat, 0, 0, 0);
    aid_expect(s, n + 2, n + AID_PER);
    aid_expect_end(s, REFERRAL_DONE);
    referral_journal_close(j);
}


/* killed inside a call: a reader finds everything that was committed */

static void
killed_inside(void **state)
{
    int                     i, k, fds[2], status;
    pid_t                   pid;
    fault_t                *f;
    uint64_t                n, seen;
    referral_writer_t      *w;
    referral_journal_t     *j;
    referral_stream_t      *s;
    referral_frame_t        frame;
    referral_writer_conf_t  conf;

    static fault_t *const  points[] = {
        &fault_fdatasync, &fault_fallocate, &fault_renameat, &fault_pwrite
    };

    conf = aid_conf();
    conf.sync = 5;

    for (i = 0; i < 4; i++) {
        for (k = 0; k < 5; k++) {
            f = points[i];
            assert_int_equal(pipe(fds), 0);
            pid = fork();
            assert_int_not_equal(pid, -1);

            if (pid == 0) {
                arm(f, EIO, k, 1);
                f->die = 1;

                if (referral_writer_open(&w, &conf, aid_error) != REFERRAL_OK)
                {
                    _exit(1);
                }

                for ( ;; ) {
                    n = aid_try(w, 0);

                    if (n && write(fds[1], &n, sizeof(n)) != sizeof(n)) {
                        _exit(1);
                    }

                    if (n % 64 == 0) {
                        (void) referral_writer_tick(w);
                        aid_sleep(1);
                    }
                }
            }

            assert_int_equal(close(fds[1]), 0);

            for (seen = 0; read(fds[0], &n, sizeof(n)) == sizeof(n);
                 seen = n)
            {
                /* void */
            }

            assert_int_equal(close(fds[0]), 0);
            assert_int_equal(waitpid(pid, &status, 0), pid);
            assert_true(WIFSIGNALED(status));

            j = aid_read();

            /* killed before the stream had its name */

            if (referral_journal_streams(j) == 0) {
                assert_int_equal(seen, 0);

            } else {
                s = referral_journal_stream(j, 0);
                assert_int_equal(s->state, REFERRAL_STREAM_FINAL);
                aid_expect(s, 1, seen);

                if (referral_stream_next(s, &frame, aid_error)
                    != REFERRAL_DONE)
                {
                    assert_int_equal(frame.number, seen + 1);
                    aid_expect_end(s, REFERRAL_DONE);
                }
            }

            referral_journal_close(j);
            assert_int_equal(aid_teardown(NULL), 0);
            assert_int_equal(mkdir(aid_path, 0700), 0);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(sync_fails_once, setup, aid_teardown),
        cmocka_unit_test_setup_teardown(disk_gone, setup, aid_teardown),
        cmocka_unit_test_setup_teardown(disk_full, setup, aid_teardown),
        cmocka_unit_test_setup_teardown(not_supported, setup, aid_teardown),
        cmocka_unit_test_setup_teardown(rename_fails, setup, aid_teardown),
        cmocka_unit_test_setup_teardown(killed_inside, setup, aid_teardown)
    };

    return cmocka_run_group_tests_name("fault", tests, NULL, NULL);
}
