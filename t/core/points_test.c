
/*
 * Copyright (C) The nginx referral module authors
 *
 * The fault points themselves: what is armed happens, and nothing else.  They
 * are compiled in here, whatever the build is.
 */


#ifndef REFERRAL_FAULTS
#define REFERRAL_FAULTS  1
#endif

#include "../../src/core/referral_fault.c"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>


static void
arm(const char *points, const char *guards, const char *marks)
{
    assert_int_equal(setenv("REFERRAL_FAULT", points, 1), 0);
    assert_int_equal(setenv("REFERRAL_NO_GUARD", guards, 1), 0);
    assert_int_equal(setenv("REFERRAL_FAULT_MARK", marks, 1), 0);
}


static void
refused(const char *points, const char *guards, const char *text)
{
    char  error[REFERRAL_ERROR_LEN];

    error[0] = '\0';
    arm(points, guards, "");

    assert_int_equal(referral_fault_init(error), REFERRAL_ERROR);
    assert_non_null(strstr(error, text));

    /* and nothing at all is armed */

    assert_false(referral_fault_call("segment-fallocate-eio"));
    assert_true(referral_fault_guard("salt"));
}


/* passages of a point that a process survives, -1: all of them */

static int
survived(const char *point, int passages)
{
    int    i, status, fd[2];
    char   byte;
    pid_t  pid;

    assert_int_equal(pipe(fd), 0);

    pid = fork();
    assert_int_not_equal(pid, -1);

    if (pid == 0) {
        if (referral_fault_init((char [REFERRAL_ERROR_LEN]) { 0 })
            != REFERRAL_OK)
        {
            _exit(2);
        }

        for (i = 0; i < passages; i++) {
            referral_fault_pass(point);

            if (write(fd[1], "x", 1) != 1) {
                _exit(2);
            }
        }

        _exit(0);
    }

    (void) close(fd[1]);

    for (i = 0; read(fd[0], &byte, 1) == 1; i++) { /* void */ }

    (void) close(fd[0]);

    assert_int_equal(waitpid(pid, &status, 0), pid);

    if (WIFEXITED(status)) {
        assert_int_equal(WEXITSTATUS(status), 0);
        assert_int_equal(i, passages);
        return -1;
    }

    assert_int_equal(WTERMSIG(status), SIGKILL);

    return i;
}


static void
test_nothing(void **state)
{
    arm("", "", "");

    assert_int_equal(survived("worker-read", 10), -1);
    assert_int_equal(referral_fault_init(NULL), REFERRAL_OK);
    assert_false(referral_fault_call("segment-fallocate-eio"));
    assert_true(referral_fault_guard("salt"));
}


static void
test_kill(void **state)
{
    arm("worker-read", "", "");
    assert_int_equal(survived("worker-read", 10), 0);
    assert_int_equal(survived("worker-begun", 10), -1);

    arm("worker-read:4", "", "");
    assert_int_equal(survived("worker-read", 10), 3);
    assert_int_equal(survived("worker-read", 3), -1);

    arm("worker-begun:7,worker-read:2", "", "");
    assert_int_equal(survived("worker-read", 10), 1);
    assert_int_equal(survived("worker-begun", 10), 6);
}


static void
test_mark(void **state)
{
    char  dir[] = "/tmp/referral-points-XXXXXX", path[64];

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/worker-read", dir);

    arm("worker-read:2,worker-begun", "", dir);

    assert_int_equal(survived("worker-read", 1), -1);
    assert_int_equal(access(path, F_OK), -1);

    assert_int_equal(survived("worker-read", 5), 1);
    assert_int_equal(access(path, F_OK), 0);

    assert_int_equal(survived("worker-read", 5), -1);
    assert_int_equal(survived("worker-begun", 5), 0);

    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof(path), "%s/worker-begun", dir);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(dir), 0);
}


static void
test_call(void **state)
{
    int   i;
    char  error[REFERRAL_ERROR_LEN];

    arm("segment-fallocate-enospc:3:2,segment-fdatasync-eio:2:0", "", "");
    assert_int_equal(referral_fault_init(error), REFERRAL_OK);

    for (i = 1; i <= 6; i++) {
        errno = 0;
        assert_int_equal(referral_fault_call("segment-fallocate-enospc"),
                         i == 3 || i == 4);
        assert_int_equal(errno, i == 3 || i == 4 ? ENOSPC : 0);

        errno = 0;
        assert_int_equal(referral_fault_call("segment-fdatasync-eio"), i > 1);
        assert_int_equal(errno, i > 1 ? EIO : 0);

        assert_false(referral_fault_call("segment-fallocate-eio"));
    }
}


static void
test_half(void **state)
{
    int    fd, status;
    char   path[] = "/tmp/referral-points-XXXXXX", buf[16];
    pid_t  pid;

    fd = mkstemp(path);
    assert_int_not_equal(fd, -1);
    assert_int_equal(unlink(path), 0);

    arm("position-half", "", "");

    pid = fork();
    assert_int_not_equal(pid, -1);

    if (pid == 0) {
        (void) referral_fault_init(buf);
        referral_fault_write("position-half", fd, "0123456789", 10);
        _exit(0);
    }

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));

    assert_int_equal(pread(fd, buf, sizeof(buf), 0), 5);
    assert_memory_equal(buf, "01234", 5);
    assert_int_equal(close(fd), 0);
}


static void
test_guards(void **state)
{
    char                     error[REFERRAL_ERROR_LEN];
    const referral_fault_t  *g, *other;

    for (g = referral_fault_guards(); g->name != NULL; g++) {

        arm("", g->name, "");
        assert_int_equal(referral_fault_init(error), REFERRAL_OK);

        for (other = referral_fault_guards(); other->name != NULL; other++) {
            assert_int_equal(referral_fault_guard(other->name), other != g);
        }
    }

    arm("", "salt,cursor-compare", "");
    assert_int_equal(referral_fault_init(error), REFERRAL_OK);
    assert_false(referral_fault_guard("salt"));
    assert_false(referral_fault_guard("cursor-compare"));
    assert_true(referral_fault_guard("stream-lock"));
}


static void
test_refused(void **state)
{
    refused("nothing", "", "there is no point \"nothing\"");
    refused("segment-fallocate-eio,nothing", "salt", "\"nothing\"");
    refused("worker-rea", "", "\"worker-rea\"");
    refused("worker-read2", "", "\"worker-read2\"");
    refused("worker-read:", "", "is not worker-read:NTH");
    refused("worker-read:0", "", "is not");
    refused("worker-read:x", "", "is not");
    refused("worker-read:2:3", "", "is not worker-read:NTH");
    refused("worker-read:99999999999999999999", "", "is not");
    refused("segment-fallocate-eio:1:2:3", "", "NTH[:TIMES]");
    refused("segment-fallocate-eio:1:", "", "is not");
    refused("salt", "", "there is no point \"salt\"");
    refused("", "worker-read", "there is no guard \"worker-read\"");
    refused("segment-fallocate-eio", "nothing", "there is no guard");
    refused("worker-read:1,worker-read:2,worker-read:3,worker-read:4,"
            "worker-read:5,worker-read:6,worker-read:7,worker-read:8,"
            "worker-read:9", "", "more than 8 points");
}


static void
test_names(void **state)
{
    const referral_fault_t  *p, *q;

    for (p = referral_fault_points(); p->name != NULL; p++) {

        assert_true(strlen(p->about) > 0);
        assert_int_equal(strspn(p->name, "abcdefghijklmnopqrstuvwxyz-"),
                         strlen(p->name));

        for (q = p + 1; q->name != NULL; q++) {
            assert_string_not_equal(p->name, q->name);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_kill),
        cmocka_unit_test(test_mark),
        cmocka_unit_test(test_call),
        cmocka_unit_test(test_half),
        cmocka_unit_test(test_guards),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_names)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
