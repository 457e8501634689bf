
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"


#define REFERRAL_LOG_LINE  4096


static size_t referral_log_quote(char *dst, size_t size, const char *text);


unsigned  referral_log_level = REFERRAL_LOG_INFO;


static const char  *referral_log_levels[] = {
    "error", "warn", "info", "debug"
};


void
referral_log(referral_log_level_e level, const char *event, const char *text,
    const char *fmt, ...)
{
    int              n;
    char             line[REFERRAL_LOG_LINE];
    size_t           len, room;
    ssize_t          rc;
    va_list          args;
    struct tm        tm;
    struct timespec  ts;

    if (level > referral_log_level) {
        return;
    }

    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);

    /* two bytes are kept for the closing quote and the newline */

    room = sizeof(line) - 2;

    len = strftime(line, room, "time=%Y-%m-%dT%H:%M:%S", &tm);
    len += snprintf(line + len, room - len, ".%03ldZ level=%s event=%s",
                    ts.tv_nsec / 1000000, referral_log_levels[level], event);

    if (fmt != NULL) {
        line[len++] = ' ';

        va_start(args, fmt);
        n = vsnprintf(line + len, room - len, fmt, args);
        va_end(args);

        if (n > 0) {
            len += (size_t) n < room - len ? (size_t) n : room - len - 1;
        }
    }

    if (text != NULL && room - len > sizeof(" text=\"")) {
        memcpy(line + len, " text=\"", sizeof(" text=\"") - 1);
        len += sizeof(" text=\"") - 1;
        len += referral_log_quote(line + len, room - len, text);
        line[len++] = '"';
    }

    line[len++] = '\n';

    /* one write, so that lines of several processes do not mix */

    rc = write(STDERR_FILENO, line, len);
    (void) rc;
}


/* messages of libpq end with a newline and may have several lines */

static size_t
referral_log_quote(char *dst, size_t size, const char *text)
{
    size_t         len, n;
    unsigned char  ch;

    n = 0;
    len = strlen(text);

    while (len && (text[len - 1] == '\n' || text[len - 1] == ' ')) {
        len--;
    }

    for ( /* void */ ; len && n + 2 <= size; len--) {
        ch = (unsigned char) *text++;

        if (ch == '"' || ch == '\\') {
            dst[n++] = '\\';

        } else if (ch < 0x20 || ch == 0x7f) {
            ch = ' ';
        }

        dst[n++] = (char) ch;
    }

    return n;
}
