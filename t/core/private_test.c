
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>

#include "referral_private.h"


static void private_refused(void **state);
static void private_public(void **state);
static void private_families(void **state);
static int private_text(const char *text);


static int
private_text(const char *text)
{
    struct sockaddr_in   sin;
    struct sockaddr_in6  sin6;

    memset(&sin, 0, sizeof(sin));
    memset(&sin6, 0, sizeof(sin6));

    sin.sin_family = AF_INET;
    sin6.sin6_family = AF_INET6;

    if (strchr(text, ':') == NULL) {
        assert_int_equal(inet_pton(AF_INET, text, &sin.sin_addr), 1);
        return referral_private_address((struct sockaddr *) &sin);
    }

    assert_int_equal(inet_pton(AF_INET6, text, &sin6.sin6_addr), 1);

    return referral_private_address((struct sockaddr *) &sin6);
}


/* first and last address of each net */

static void
private_refused(void **state)
{
    size_t  i;

    static const char  *texts[] = {
        "0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255",
        "100.64.0.0", "100.127.255.255", "127.0.0.1", "127.255.255.255",
        "169.254.0.0", "169.254.169.254", "169.254.255.255", "172.16.0.0",
        "172.31.255.255", "192.0.0.0", "192.0.0.255", "192.0.2.1",
        "192.88.99.1", "192.168.0.0", "192.168.255.255", "198.18.0.0",
        "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.0",
        "239.255.255.255", "240.0.0.0", "255.255.255.255",
        "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.1.2.3",
        "::ffff:169.254.169.254", "::ffff:0.0.0.0", "64:ff9b::10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "fc00::1",
        "fdff:ffff::1", "fd00:ec2::254", "fe80::1", "febf::1", "fec0::1",
        "ff02::1", "2001::1", "2001:1ff::1", "2001:db8::1",
        "2002:7f00:1::1", "2002:a00:1::1", "2002:c0a8:101::1", "3fff::1",
        "3fff:fff::1", "4000::1", "1fff::1"
    };

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (!private_text(texts[i])) {
            fail_msg("%s is taken for a public address", texts[i]);
        }
    }
}


/* and those beside them */

static void
private_public(void **state)
{
    size_t  i;

    static const char  *texts[] = {
        "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255",
        "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255",
        "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255",
        "192.0.1.0", "192.0.3.0", "192.88.98.255", "192.88.100.0",
        "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
        "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0",
        "223.255.255.255", "93.184.216.34",
        "2000::1", "2001:200::1", "2001:db7::1", "2001:db9::1",
        "2002:808:808::1", "2606:2800:220:1::1", "3ffe::1", "3fff:1000::1",
        "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"
    };

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (private_text(texts[i])) {
            fail_msg("%s is taken for a private address", texts[i]);
        }
    }
}


static void
private_families(void **state)
{
    struct sockaddr  sa;

    memset(&sa, 0, sizeof(sa));

    sa.sa_family = AF_UNIX;
    assert_true(referral_private_address(&sa));

    sa.sa_family = AF_UNSPEC;
    assert_true(referral_private_address(&sa));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(private_refused),
        cmocka_unit_test(private_public),
        cmocka_unit_test(private_families)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
