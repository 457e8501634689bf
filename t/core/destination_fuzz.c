
/*
 * Copyright (C) The nginx referral module authors
 *
 * The input, cut at NUL: a URL, the request's arguments, a country, a name
 * that is not passed.
 */


#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "referral_args.h"
#include "referral_destination.h"
#include "referral_rule.h"


#define check(condition)  if (!(condition)) abort()


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
static referral_str_t fuzz_piece(const uint8_t **data, size_t *size);
static void fuzz_build(const referral_destination_t *d);
static void fuzz_host(const u_char *url, const u_char *built, size_t len);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char                    error[REFERRAL_ERROR_LEN];
    referral_str_t          drop;
    referral_destination_t  d;

    static const referral_str_t  code = referral_string("SUMMER25");
    static const referral_str_t  click_id =
        referral_string("0197f3c2-a400-7abc-8def-0123456789ab");

    memset(&d, 0, sizeof(d));

    d.code = code;
    d.click_id = click_id;
    d.url = fuzz_piece(&data, &size);
    d.args = fuzz_piece(&data, &size);
    d.country = fuzz_piece(&data, &size);
    drop = fuzz_piece(&data, &size);
    d.drop = &drop;
    d.ndrop = 1;

    memset(error, 0x7f, sizeof(error));

    if (referral_destination_check(&d.url, error) != REFERRAL_OK) {
        check(memchr(error, '\0', sizeof(error)) != NULL);
        check(error[0] != '\0');
        return 0;
    }

    check(d.url.len <= REFERRAL_URL_LEN);

    for (d.passthrough = REFERRAL_PASSTHROUGH_OFF;
         d.passthrough <= REFERRAL_PASSTHROUGH_ALL;
         d.passthrough++)
    {
        fuzz_build(&d);
    }

    return 0;
}


static referral_str_t
fuzz_piece(const uint8_t **data, size_t *size)
{
    size_t          skip;
    const uint8_t  *nul;
    referral_str_t  s;

    s.data = (u_char *) *data;
    s.len = 0;

    if (*size == 0) {
        s.data = NULL;
        return s;
    }

    nul = memchr(*data, '\0', *size);
    s.len = nul == NULL ? *size : (size_t) (nul - *data);
    skip = nul == NULL ? s.len : s.len + 1;

    *data += skip;
    *size -= skip;

    return s;
}


static void
fuzz_build(const referral_destination_t *d)
{
    size_t           i, len, size;
    u_char          *buf, *end;
    referral_str_t   rest, name, value;

    size = referral_destination_size(d);
    buf = malloc(size);
    check(buf != NULL);

    end = referral_destination_build(d, buf);

    check(end >= buf && (size_t) (end - buf) <= size);

    len = (size_t) (end - buf);

    for (i = 0; i < len; i++) {
        check(buf[i] > 0x20 && buf[i] < 0x7f);
        check(strchr("\"<>\\^`{|}", buf[i]) == NULL);
    }

    fuzz_host(d->url.data, buf, len);

    /* what is not to be passed is there only when the destination has it */

    if (memchr(d->url.data, '?', d->url.len) == NULL) {
        rest.data = memchr(buf, '?', len);

        if (rest.data != NULL) {
            rest.data++;
            rest.len = (size_t) (end - rest.data);
            value.data = memchr(rest.data, '#', rest.len);

            if (value.data != NULL) {
                rest.len = (size_t) (value.data - rest.data);
            }

            while (referral_args_next(&rest, &name, &value, NULL)) {
                check(d->passthrough != REFERRAL_PASSTHROUGH_OFF);
                check(!referral_args_name_is(&name, d->drop));
            }
        }

    } else {

        /* a query stays a query, and in front */

        check(memchr(buf, '?', len) != NULL);
    }

    free(buf);
}


/* whatever is passed, the visitor ends at the host that was checked */

static void
fuzz_host(const u_char *url, const u_char *built, size_t len)
{
    size_t  n;

    n = strncasecmp((const char *) url, "https://", 8) == 0 ? 8 : 7;

    while (n < len && built[n] != '/' && built[n] != '?' && built[n] != '#') {
        n++;
    }

    check(memcmp(url, built, n) == 0);
    check(memchr(built, '@', n) == NULL);
}
