
/*
 * Copyright (C) The nginx referral module authors
 */


#include "time_text.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>


static int ctl_time_digits(const char **p, int n, int *value);
static int ctl_time_zone(const char **p, int *minutes);
static int ctl_time_split(uint64_t ms, struct tm *tm);


int
ctl_time_parse(const char *text, int64_t *seconds)
{
    int          zone;
    char        *end;
    time_t       t;
    struct tm    tm, back;
    const char  *p;

    if (*text != '\0' && text[strspn(text, "0123456789")] == '\0') {
        errno = 0;
        *seconds = strtoll(text, &end, 10);
        return errno ? REFERRAL_DECLINED : REFERRAL_OK;
    }

    p = text;
    zone = 0;
    memset(&tm, 0, sizeof(struct tm));

    if (ctl_time_digits(&p, 4, &tm.tm_year) != REFERRAL_OK || *p++ != '-'
        || ctl_time_digits(&p, 2, &tm.tm_mon) != REFERRAL_OK || *p++ != '-'
        || ctl_time_digits(&p, 2, &tm.tm_mday) != REFERRAL_OK)
    {
        return REFERRAL_DECLINED;
    }

    if (*p == 'T' || *p == 't' || *p == ' ') {
        p++;

        if (ctl_time_digits(&p, 2, &tm.tm_hour) != REFERRAL_OK || *p++ != ':'
            || ctl_time_digits(&p, 2, &tm.tm_min) != REFERRAL_OK)
        {
            return REFERRAL_DECLINED;
        }

        if (*p == ':') {
            p++;

            if (ctl_time_digits(&p, 2, &tm.tm_sec) != REFERRAL_OK) {
                return REFERRAL_DECLINED;
            }
        }

        if (ctl_time_zone(&p, &zone) != REFERRAL_OK) {
            return REFERRAL_DECLINED;
        }
    }

    if (*p != '\0' || tm.tm_year < 1970) {
        return REFERRAL_DECLINED;
    }

    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    back = tm;

    /* timegm() accepts February 30 and 25 o'clock, we do not */

    t = timegm(&back);

    if (back.tm_year != tm.tm_year || back.tm_mon != tm.tm_mon
        || back.tm_mday != tm.tm_mday || back.tm_hour != tm.tm_hour
        || back.tm_min != tm.tm_min || back.tm_sec != tm.tm_sec)
    {
        return REFERRAL_DECLINED;
    }

    *seconds = (int64_t) t - zone * 60;

    return *seconds < 0 ? REFERRAL_DECLINED : REFERRAL_OK;
}


static int
ctl_time_digits(const char **p, int n, int *value)
{
    int  i;

    *value = 0;

    for (i = 0; i < n; i++) {

        if (!isdigit((u_char) **p)) {
            return REFERRAL_DECLINED;
        }

        *value = *value * 10 + (*(*p)++ - '0');
    }

    return REFERRAL_OK;
}


static int
ctl_time_zone(const char **p, int *minutes)
{
    int  sign, h, m;

    if (**p == 'Z' || **p == 'z') {
        (*p)++;
        return REFERRAL_OK;
    }

    if (**p != '+' && **p != '-') {
        return REFERRAL_OK;
    }

    sign = (*(*p)++ == '-') ? -1 : 1;
    m = 0;

    if (ctl_time_digits(p, 2, &h) != REFERRAL_OK) {
        return REFERRAL_DECLINED;
    }

    if (**p == ':') {
        (*p)++;
    }

    if (**p != '\0' && ctl_time_digits(p, 2, &m) != REFERRAL_OK) {
        return REFERRAL_DECLINED;
    }

    if (h > 15 || m > 59) {
        return REFERRAL_DECLINED;
    }

    *minutes = sign * (h * 60 + m);

    return REFERRAL_OK;
}


int
ctl_duration_parse(const char *text, uint64_t *ms)
{
    char      *end;
    size_t     i;
    uint64_t   n;

    static const struct {
        const char  *unit;
        uint64_t     ms;
    } units[] = {
        { "ms", 1 }, { "s", 1000 }, { "", 1000 }, { "m", 60 * 1000 },
        { "h", 3600 * 1000 }, { "d", 86400 * 1000 },
        { "w", 7 * 86400 * 1000 }
    };

    errno = 0;
    n = strtoull(text, &end, 10);

    if (!isdigit((u_char) *text) || errno) {
        return REFERRAL_DECLINED;
    }

    for (i = 0; i < sizeof(units) / sizeof(units[0]); i++) {

        if (strcmp(end, units[i].unit) != 0) {
            continue;
        }

        if (n > INT64_MAX / units[i].ms) {
            return REFERRAL_DECLINED;
        }

        *ms = n * units[i].ms;
        return REFERRAL_OK;
    }

    return REFERRAL_DECLINED;
}


static int
ctl_time_split(uint64_t ms, struct tm *tm)
{
    time_t  t;

    t = (time_t) (ms / 1000);

    return gmtime_r(&t, tm) == NULL ? REFERRAL_ERROR : REFERRAL_OK;
}


const char *
ctl_time_iso(uint64_t ms, char *buf)
{
    size_t     n;
    struct tm  tm;

    if (ctl_time_split(ms, &tm) != REFERRAL_OK) {
        buf[0] = '\0';
        return buf;
    }

    n = strftime(buf, CTL_TIME_LEN, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(buf + n, CTL_TIME_LEN - n, ".%03uZ", (unsigned) (ms % 1000));

    return buf;
}


const char *
ctl_time_text(uint64_t ms, char *buf)
{
    struct tm  tm;

    if (ctl_time_split(ms, &tm) != REFERRAL_OK) {
        snprintf(buf, CTL_TIME_LEN, "%" PRIu64, ms / 1000);
        return buf;
    }

    (void) strftime(buf, CTL_TIME_LEN, "%Y-%m-%d %H:%M:%S", &tm);

    return buf;
}


uint64_t
ctl_time_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_REALTIME, &ts);

    return (uint64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}
