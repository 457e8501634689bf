
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
#include <sys/un.h>

#include "referral_ip.h"


static void ip_families(void **state);
static void ip_texts(void **state);
static void ip_refused(void **state);
static void ip_masks(void **state);
static void check_text(const referral_ip_t *ip, const char *expected);


static void
check_text(const referral_ip_t *ip, const char *expected)
{
    u_char  text[REFERRAL_IP_TEXT_LEN + 1];
    size_t  len;

    memset(text, '#', sizeof(text));

    len = referral_ip_text(ip, text);

    assert_true(len <= REFERRAL_IP_TEXT_LEN);
    assert_int_equal(text[len], '#');

    text[len] = '\0';
    assert_string_equal((char *) text, expected);
}


static void
ip_families(void **state)
{
    referral_ip_t        ip;
    struct sockaddr_un   sun;
    struct sockaddr_in   sin;
    struct sockaddr_in6  sin6;

    memset(&sin, 0, sizeof(sin));
    sin.sin_family = AF_INET;
    inet_pton(AF_INET, "203.0.113.77", &sin.sin_addr);

    assert_int_equal(referral_ip_from_sockaddr(&ip, (void *) &sin), 0);
    assert_int_equal(ip.len, 4);
    assert_int_equal(ip.prefix, 32);
    check_text(&ip, "203.0.113.77");

    memset(&sin6, 0, sizeof(sin6));
    sin6.sin6_family = AF_INET6;
    inet_pton(AF_INET6, "2001:db8:1:2::3", &sin6.sin6_addr);

    assert_int_equal(referral_ip_from_sockaddr(&ip, (void *) &sin6), 0);
    assert_int_equal(ip.len, 16);
    assert_int_equal(ip.prefix, 128);
    check_text(&ip, "2001:db8:1:2::3");

    inet_pton(AF_INET6, "::ffff:203.0.113.77", &sin6.sin6_addr);

    assert_int_equal(referral_ip_from_sockaddr(&ip, (void *) &sin6), 0);
    assert_int_equal(ip.len, 4);
    assert_int_equal(ip.prefix, 32);
    check_text(&ip, "203.0.113.77");

    memset(&sun, 0, sizeof(sun));
    sun.sun_family = AF_UNIX;

    assert_int_equal(referral_ip_from_sockaddr(&ip, (void *) &sun),
                     REFERRAL_DECLINED);
    assert_int_equal(ip.len, 0);
    check_text(&ip, "");
}


static void
ip_texts(void **state)
{
    size_t         i;
    referral_ip_t  ip;

    static const char  *texts[][2] = {
        { "192.0.2.1", "192.0.2.1" },
        { "192.0.2.255/24", "192.0.2.0/24" },
        { "192.0.2.1/32", "192.0.2.1" },
        { "192.0.2.1/0", "0.0.0.0/0" },
        { "2001:DB8:0:0:0:0:0:1", "2001:db8::1" },
        { "2001:db8:ffff:ffff::1/48", "2001:db8:ffff::/48" },
        { "2001:db8:ffff:ffff::1/33", "2001:db8:8000::/33" },
        { "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/127",
          "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127" },
        { "::ffff:192.0.2.129/121", "192.0.2.128/25" },
        { "::ffff:0:0/96", "0.0.0.0/0" },
        { "::ffff:192.0.2.1/95", "::fffe:0:0/95" },
        { "::", "::" },
        { "::/0", "::/0" }
    };

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        assert_int_equal(referral_ip_parse(&ip, (u_char *) texts[i][0],
                                           strlen(texts[i][0])),
                         REFERRAL_OK);
        check_text(&ip, texts[i][1]);
    }
}


static void
ip_refused(void **state)
{
    size_t         i;
    referral_ip_t  ip;

    static const char  *bad[] = {
        "", "/", "/24", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.4/",
        "1.2.3.4/33", "1.2.3.4/-1", "1.2.3.4/+1", "1.2.3.4/8/8",
        "1.2.3.4/0008", "1.2.3.4/4294967304", "::1/129", "::1/1280",
        ":::", "fe80::1%eth0", "[::1]", " 1.2.3.4", "1.2.3.4 ",
        "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255.255.255.255"
    };

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(referral_ip_parse(&ip, (u_char *) bad[i],
                                           strlen(bad[i])),
                         REFERRAL_DECLINED);
        assert_int_equal(ip.len, 0);
        assert_int_equal(ip.prefix, 0);
    }

    assert_int_equal(referral_ip_parse(&ip, (u_char *) "1.2.3.4\0", 8),
                     REFERRAL_DECLINED);
    assert_int_equal(referral_ip_parse(&ip, NULL, 0), REFERRAL_DECLINED);
}


static void
ip_masks(void **state)
{
    referral_ip_t  ip;

    referral_ip_parse(&ip, (u_char *) "203.0.113.77", 12);
    referral_ip_mask(&ip, 24, 48);
    check_text(&ip, "203.0.113.0/24");

    /* a mask never gives bits back */

    referral_ip_mask(&ip, 32, 128);
    check_text(&ip, "203.0.113.0/24");

    referral_ip_mask(&ip, 23, 1);
    check_text(&ip, "203.0.112.0/23");

    referral_ip_mask(&ip, 0, 0);
    check_text(&ip, "0.0.0.0/0");

    referral_ip_parse(&ip, (u_char *) "2001:db8:1:2:3:4:5:6", 20);
    referral_ip_mask(&ip, 4, 64);
    check_text(&ip, "2001:db8:1:2::/64");
    referral_ip_mask(&ip, 4, 48);
    check_text(&ip, "2001:db8:1::/48");

    referral_ip_parse(&ip, (u_char *) "1.2.3.4", 7);
    referral_ip_mask(&ip, 4000, 4000);
    check_text(&ip, "1.2.3.4");

    memset(&ip, 0, sizeof(ip));
    referral_ip_mask(&ip, 24, 48);
    check_text(&ip, "");
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(ip_families),
        cmocka_unit_test(ip_texts),
        cmocka_unit_test(ip_refused),
        cmocka_unit_test(ip_masks)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
