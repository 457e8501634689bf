
/*
 * Copyright (C) The nginx referral module authors
 */


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "referral_destination.h"
#include "referral_rule.h"
#include "str_aid.h"


static void destination_accepts(void **state);
static void destination_refuses(void **state);
static void destination_every_byte(void **state);
static void destination_macros(void **state);
static void destination_joins(void **state);
static void destination_passes_utm(void **state);
static void destination_drops(void **state);
static void destination_own_wins(void **state);
static void destination_escapes(void **state);
static void prepare(referral_destination_t *d);
static void check(referral_destination_t *d, const char *url,
    const char *args, const char *expected);


static char  error[REFERRAL_ERROR_LEN];


static void
prepare(referral_destination_t *d)
{
    memset(d, 0, sizeof(referral_destination_t));

    d->code = str("SUMMER25");
    d->click_id = str("017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    d->country = str("MX");
    d->passthrough = REFERRAL_PASSTHROUGH_ALL;
}


static void
check(referral_destination_t *d, const char *url, const char *args,
    const char *expected)
{
    u_char   buf[8192];
    u_char  *p;

    d->url = str(url);
    d->args = str(args);

    if (referral_destination_check(&d->url, error) != REFERRAL_OK) {
        fail_msg("%s: %s", url, error);
    }

    p = referral_destination_build(d, buf);

    assert_true((size_t) (p - buf) <= referral_destination_size(d));

    *p = '\0';
    assert_string_equal((char *) buf, expected);

    /* not to be built means that building changes nothing, and comes often */

    if (referral_destination_plain(d)) {
        assert_string_equal(url, expected);

    } else {
        assert_true(strchr(url, '{') != NULL || d->args.len
                    || strcmp(url, expected) != 0);
    }
}


static void
destination_accepts(void **state)
{
    size_t          i;
    referral_str_t  url;

    static const char  *good[] = {
        "http://example.com",
        "https://example.com",
        "HTTPS://Example.COM/",
        "https://example.com.",
        "https://example.com?x",
        "https://example.com#x",
        "https://example.com:1/",
        "https://example.com:65535",
        "https://localhost:8443/a/b;c=1?d=e,f&g=(h)#i/j?k",
        "https://192.0.2.1/",
        "https://[2001:db8::1]/",
        "https://[::1]:8080?x",
        "https://xn--mnchen-3ya.example/",
        "https://a_b.example/",
        "https://example.com/{code}?c={click_id}&l={country}#{code}",
        "https://example.com/?mail=a@example.com",
        "https://example.com/it's%20100%",
        "https://example.com/caf\xc3\xa9",
        "https://example.com?a[]=1"
    };

    for (i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        url = str(good[i]);

        if (referral_destination_check(&url, error) != REFERRAL_OK) {
            fail_msg("%s: %s", good[i], error);
        }
    }
}


static void
destination_refuses(void **state)
{
    size_t          i;
    referral_str_t  url;

    static const char  *bad[][2] = {
        { "", "empty" },
        { "example.com", "does not begin" },
        { "//example.com/", "does not begin" },
        { "/path", "does not begin" },
        { "ftp://example.com/", "does not begin" },
        { "javascript://example.com/%0aalert(1)", "does not begin" },
        { "http:/example.com", "does not begin" },
        { "http:\\\\example.com", "does not begin" },
        { " https://example.com", "does not begin" },
        { "https://", "no host at byte 8" },
        { "http:///path", "no host at byte 7" },
        { "https://?x", "no host at byte 8" },
        { "https://:80/", "no host at byte 8" },
        { "https://example.com:/", "port 1 to 65535 at byte 19" },
        { "https://example.com:0", "port 1 to 65535" },
        { "https://example.com:65536", "port 1 to 65535" },
        { "https://example.com:000080", "port 1 to 65535" },
        { "https://example.com:8 0", "port 1 to 65535" },
        { "https://example.com:80:80", "port 1 to 65535" },
        { "https://user@example.com/", "user name at byte 8" },
        { "https://user:pw@example.com/", "user name at byte 8" },
        { "https://example.com\\@evil.example/", "user name" },
        { "https://example.com\\.evil.example/", "byte 19 (0x5c)" },
        { "https://exa mple.com/", "byte 11 (0x20)" },
        { "https://exam%70le.com/", "byte 12 (0x25)" },
        { "https://.example.com/", "byte 8 (0x2e)" },
        { "https://example..com/", "byte 16 (0x2e)" },
        { "https://caf\xc3\xa9.example/", "xn--" },
        { "https://{code}.example.com/", "macro in the host at byte 8" },
        { "https://example.com:{code}/", "port" },
        { "https://[2001:db8::1/", "IPv6 address in the brackets" },
        { "https://[2001:db8::g]/", "IPv6 address in the brackets" },
        { "https://[]/", "IPv6 address in the brackets" },
        { "https://[192.0.2.1]/", "IPv6 address in the brackets" },
        { "https://[fe80::1%25eth0]/", "IPv6 address in the brackets" },
        { "https://[::1]x/", "port" },
        { "https://example.com/a b", "byte 21 (0x20) is not accepted, "
                                     "write %20" },
        { "https://example.com/\r\nSet-Cookie:x", "byte 20 (0x0d)" },
        { "https://example.com/\"x", "byte 20 (0x22)" },
        { "https://example.com/<x>", "byte 20 (0x3c)" },
        { "https://example.com/a\\b", "byte 21 (0x5c)" },
        { "https://example.com/a^b", "byte 21 (0x5e)" },
        { "https://example.com/a`b", "byte 21 (0x60)" },
        { "https://example.com/a|b", "byte 21 (0x7c)" },
        { "https://example.com/\x7f", "byte 20 (0x7f)" },
        { "https://example.com/{ip}", "no macro at byte 20" },
        { "https://example.com/{CODE}", "no macro at byte 20" },
        { "https://example.com/{code", "no macro at byte 20" },
        { "https://example.com/code}", "byte 24 (0x7d)" },
        { "https://example.com/{code}}", "byte 26 (0x7d)" },
        { "https://example.com/\xe9", "UTF-8" }
    };

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        url = str(bad[i][0]);

        if (referral_destination_check(&url, error) != REFERRAL_ERROR) {
            fail_msg("accepted: %s", bad[i][0]);
        }

        if (strstr(error, bad[i][1]) == NULL) {
            fail_msg("%s: \"%s\", not \"%s\"", bad[i][0], error, bad[i][1]);
        }
    }

    url.data = (u_char *) "https://example.com/\0x";
    url.len = 22;
    assert_int_equal(referral_destination_check(&url, error), REFERRAL_ERROR);

    url.data = (u_char *) "https://[::1\0]/";
    url.len = 15;
    assert_int_equal(referral_destination_check(&url, error), REFERRAL_ERROR);
}


/* in a path, what RFC 3986 has no place for is refused, and only that */

static void
destination_every_byte(void **state)
{
    int             rc;
    char            text[] = "https://example.com/?.x";
    unsigned        i;
    referral_str_t  url;

    url = str(text);

    for (i = 0; i < 128; i++) {
        text[21] = (char) i;
        rc = referral_destination_check(&url, error);

        if (i < 0x21 || i == 0x7f || strchr("\"<>\\^`{|}", (int) i) != NULL) {
            assert_int_equal(rc, REFERRAL_ERROR);

        } else {
            assert_int_equal(rc, REFERRAL_OK);
        }
    }
}


static void
destination_macros(void **state)
{
    referral_destination_t  d;

    prepare(&d);

    check(&d, "https://example.com/{code}?id={click_id}&c={country}#{code}",
          "", "https://example.com/SUMMER25?id="
              "017f22e2-79b0-7cc3-98c4-dc0c0c07398f&c=MX#SUMMER25");

    check(&d, "https://example.com/{code}{code}", "",
          "https://example.com/SUMMER25SUMMER25");

    d.country = str("a b&c=d/?#%\r\n\xc3\xa9~");
    check(&d, "https://example.com/?c={country}", "",
          "https://example.com/?c=a%20b%26c%3Dd%2F%3F%23%25%0D%0A%C3%A9~");

    /* a value is not looked at for macros again */

    d.country = str("{code}");
    check(&d, "https://example.com/?c={country}", "",
          "https://example.com/?c=%7Bcode%7D");

    d.country.len = 0;
    d.country.data = NULL;
    d.click_id = d.country;
    check(&d, "https://example.com/?c={country}&id={click_id}", "a=1",
          "https://example.com/?c=&id=&a=1");
}


static void
destination_joins(void **state)
{
    size_t                  i;
    referral_destination_t  d;

    static const char  *texts[][2] = {
        { "https://h", "https://h/?a=1&b" },
        { "https://h/", "https://h/?a=1&b" },
        { "https://h?", "https://h?a=1&b" },
        { "https://h?x", "https://h?x&a=1&b" },
        { "https://h/?x=1&", "https://h/?x=1&a=1&b" },
        { "https://h/p#f", "https://h/p?a=1&b#f" },
        { "https://h#f", "https://h/?a=1&b#f" },
        { "https://h#", "https://h/?a=1&b#" },
        { "https://h/?x#f", "https://h/?x&a=1&b#f" },
        { "https://h/?#f", "https://h/?a=1&b#f" },
        { "https://h/#/route?y=1", "https://h/?a=1&b#/route?y=1" },
        { "https://h/?x=?", "https://h/?x=?&a=1&b" },
        { "https://h/?{country}", "https://h/?MX&a=1&b" }
    };

    prepare(&d);

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        check(&d, texts[i][0], "a=1&b", texts[i][1]);
        check(&d, texts[i][0], "&&a=1&&b&", texts[i][1]);
    }

    d.country.len = 0;
    check(&d, "https://h/?{country}", "a=1", "https://h/?a=1");

    check(&d, "https://h", "&&", "https://h");
    check(&d, "https://h/?x#f", "", "https://h/?x#f");

    d.passthrough = REFERRAL_PASSTHROUGH_OFF;
    check(&d, "https://h/?x#f", "a=1", "https://h/?x#f");
}


static void
destination_passes_utm(void **state)
{
    referral_destination_t  d;

    prepare(&d);
    d.passthrough = REFERRAL_PASSTHROUGH_UTM;

    check(&d, "https://h/", "a=1&utm_source=x&UTM_medium=y&%75tm_term=z"
                            "&utm=1&xutm_=2&utm_&=",
          "https://h/?utm_source=x&%75tm_term=z&utm_");
}


static void
destination_drops(void **state)
{
    referral_str_t          drop[2];
    referral_destination_t  d;

    prepare(&d);

    drop[0] = str("ref");
    drop[1] = str("utm_id");
    d.drop = drop;
    d.ndrop = 2;

    check(&d, "https://h/", "ref=X&a=1&r%65f=Y&utm_id=7&ref&refs=2",
          "https://h/?a=1&refs=2");

    d.passthrough = REFERRAL_PASSTHROUGH_UTM;
    check(&d, "https://h/", "utm_id=7&utm_source=x",
          "https://h/?utm_source=x");
}


static void
destination_own_wins(void **state)
{
    referral_destination_t  d;

    prepare(&d);

    check(&d, "https://h/?a=own&utm%5Fsource=own",
          "a=1&utm_source=x&b=1&b=2&%61=3&A=4",
          "https://h/?a=own&utm%5Fsource=own&b=1&b=2&A=4");

    check(&d, "https://h/?a", "a=1&aa=2", "https://h/?a&aa=2");

    /* names in a fragment or a path are no arguments */

    check(&d, "https://h/a=1#?a=own&b=own", "a=1&b=2",
          "https://h/a=1?a=1&b=2#?a=own&b=own");
}


static void
destination_escapes(void **state)
{
    referral_destination_t  d;

    prepare(&d);

    check(&d, "https://h/caf\xc3\xa9?x=\xe2\x82\xac#\xc3\xa9", "",
          "https://h/caf%C3%A9?x=%E2%82%AC#%C3%A9");

    check(&d, "https://h/",
          "a=\r\nSet-Cookie:x&b=\"'<>\\^`{|}#\x7f\xff\t &c=%0d%zz%25+[]@:/?",
          "https://h/?a=%0D%0ASet-Cookie:x"
          "&b=%22%27%3C%3E%5C%5E%60%7B%7C%7D%23%7F%FF%09%20"
          "&c=%0d%zz%25+[]@:/?");

    check(&d, "https://h/", "{code}={click_id}",
          "https://h/?%7Bcode%7D=%7Bclick_id%7D");
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(destination_accepts),
        cmocka_unit_test(destination_refuses),
        cmocka_unit_test(destination_every_byte),
        cmocka_unit_test(destination_macros),
        cmocka_unit_test(destination_joins),
        cmocka_unit_test(destination_passes_utm),
        cmocka_unit_test(destination_drops),
        cmocka_unit_test(destination_own_wins),
        cmocka_unit_test(destination_escapes)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
