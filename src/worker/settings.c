
/*
 * Copyright (C) The nginx referral module authors
 */


#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

#include "referral_redis_url.h"
#include "listen.h"
#include "settings.h"


#define REFERRAL_SETTINGS_LINE  4096


#define REFERRAL_SETTING_REQUIRED   0x01
#define REFERRAL_SETTING_NO_RELOAD  0x02


typedef struct referral_setting_s  referral_setting_t;

/* NULL, or what is wrong with the value */
typedef const char *(*referral_setting_pt)(const referral_setting_t *st,
    const char *value, void *target);


struct referral_setting_s {
    const char           *name;
    referral_setting_pt   parse;
    size_t                offset;
    unsigned              flags;
    const char           *value;           /* default, NULL: none */
    uint64_t              min;
    uint64_t              max;
};


static int referral_settings_line(referral_settings_t *s, char *line,
    uint64_t *seen, char *error);
static int referral_settings_complete(referral_settings_t *s, uint64_t seen,
    char *error);
static char *referral_settings_trim(char *text);
static const referral_setting_t *referral_settings_find(const char *name);
static const char *referral_setting_path(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_conninfo(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_number(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_time(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_interval(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_listen(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_level(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_file(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_redis(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_publish(const referral_setting_t *st,
    const char *value, void *target);
static const char *referral_setting_copy(char **target, const char *value);


#define referral_setting_offset(field)  offsetof(referral_settings_t, field)


/* times in milliseconds */

static const referral_setting_t  referral_settings[] = {

    { "journal", referral_setting_path,
      referral_setting_offset(journal),
      REFERRAL_SETTING_REQUIRED|REFERRAL_SETTING_NO_RELOAD, NULL, 0, 0 },

    { "postgres", referral_setting_conninfo,
      referral_setting_offset(postgres),
      REFERRAL_SETTING_REQUIRED, NULL, 0, 0 },

    { "redis", referral_setting_redis,
      referral_setting_offset(redis), 0, "", 0, 0 },

    { "redis_password_file", referral_setting_file,
      referral_setting_offset(redis_password_file), 0, "", 0, 0 },

    { "publish", referral_setting_publish,
      referral_setting_offset(publish), 0, "auto", 0, 0 },

    { "batch_rows", referral_setting_number,
      referral_setting_offset(batch_rows),
      0, "20000", 1, 20000 },

    { "batch_wait", referral_setting_time,
      referral_setting_offset(batch_wait),
      0, "250ms", 10, 60000 },

    { "retention", referral_setting_time,
      referral_setting_offset(retention),
      0, "1h", 0, 30ULL * 86400000 },

    { "retention_interactions", referral_setting_interval,
      referral_setting_offset(retention_interactions),
      0, "13 months", 1, 1200 },

    { "listen", referral_setting_listen,
      referral_setting_offset(listen),
      REFERRAL_SETTING_NO_RELOAD, "off", 0, 0 },

    { "webhook_timeout", referral_setting_time,
      referral_setting_offset(webhook_timeout),
      0, "15s", 1000, 30000 },

    { "log_level", referral_setting_level,
      referral_setting_offset(log_level),
      0, "info", 0, 0 },

    { "lock_timeout", referral_setting_time,
      referral_setting_offset(lock_timeout),
      0, "5s", 10, 600000 },

    { "statement_timeout", referral_setting_time,
      referral_setting_offset(statement_timeout),
      0, "30s", 100, 3600000 }
};


#define REFERRAL_NSETTINGS                                                   \
    (sizeof(referral_settings) / sizeof(referral_settings[0]))


static const char  *referral_setting_levels[] = {
    "error", "warn", "info", "debug"
};


int
referral_settings_read(referral_settings_t *s, const char *file, char *error)
{
    int       rc;
    char      line[REFERRAL_SETTINGS_LINE], reason[REFERRAL_ERROR_LEN];
    FILE     *f;
    unsigned  n;
    uint64_t  seen;

    memset(s, 0, sizeof(referral_settings_t));

    f = fopen(file, "re");
    if (f == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN, "could not open \"%.256s\": %s",
                 file, strerror(errno));
        return REFERRAL_ERROR;
    }

    n = 0;
    seen = 0;
    rc = REFERRAL_OK;

    while (rc == REFERRAL_OK && fgets(line, sizeof(line), f) != NULL) {
        n++;

        if (strchr(line, '\n') == NULL && !feof(f)) {
            snprintf(reason, sizeof(reason),
                     "the line is too long or has a NUL");
            rc = REFERRAL_ERROR;
            break;
        }

        rc = referral_settings_line(s, line, &seen, reason);
    }

    if (rc == REFERRAL_OK && ferror(f)) {
        snprintf(reason, sizeof(reason), "reading failed: %s",
                 strerror(errno));
        rc = REFERRAL_ERROR;
    }

    fclose(f);

    if (rc == REFERRAL_OK) {
        rc = referral_settings_complete(s, seen, reason);
        n = 0;
    }

    if (rc == REFERRAL_OK) {
        return REFERRAL_OK;
    }

    if (n) {
        snprintf(error, REFERRAL_ERROR_LEN, "%.128s:%u: %.300s", file, n,
                 reason);

    } else {
        snprintf(error, REFERRAL_ERROR_LEN, "%.128s: %.300s", file, reason);
    }

    referral_settings_free(s);

    return REFERRAL_ERROR;
}


static int
referral_settings_line(referral_settings_t *s, char *line, uint64_t *seen,
    char *error)
{
    char                      *name, *value, *p;
    uint64_t                   bit;
    const char                *problem;
    const referral_setting_t  *st;

    /*
     * a comment begins a line or follows white space: passwords in
     * connection strings may have a #
     */

    for (p = line; *p; p++) {
        if (*p == '#' && (p == line || isspace((u_char) p[-1]))) {
            *p = '\0';
            break;
        }
    }

    name = referral_settings_trim(line);
    if (*name == '\0') {
        return REFERRAL_OK;
    }

    p = strchr(name, '=');
    if (p == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN,
                 "\"%.64s\" is not \"name = value\"", name);
        return REFERRAL_ERROR;
    }

    *p = '\0';
    name = referral_settings_trim(name);
    value = referral_settings_trim(p + 1);

    st = referral_settings_find(name);
    if (st == NULL) {
        snprintf(error, REFERRAL_ERROR_LEN, "unknown setting \"%.64s\"", name);
        return REFERRAL_ERROR;
    }

    bit = 1ULL << (st - referral_settings);

    if (*seen & bit) {
        snprintf(error, REFERRAL_ERROR_LEN, "setting \"%s\" is there twice",
                 name);
        return REFERRAL_ERROR;
    }

    *seen |= bit;

    problem = st->parse(st, value, (u_char *) s + st->offset);
    if (problem != NULL) {
        snprintf(error, REFERRAL_ERROR_LEN, "setting \"%s\" %.256s", name,
                 problem);
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


static int
referral_settings_complete(referral_settings_t *s, uint64_t seen, char *error)
{
    size_t                     i;
    const char                *problem;
    const referral_setting_t  *st;

    for (i = 0; i < REFERRAL_NSETTINGS; i++) {
        st = &referral_settings[i];

        if (seen & (1ULL << i)) {
            continue;
        }

        if (st->flags & REFERRAL_SETTING_REQUIRED) {
            snprintf(error, REFERRAL_ERROR_LEN, "setting \"%s\" is missing",
                     st->name);
            return REFERRAL_ERROR;
        }

        problem = st->parse(st, st->value, (u_char *) s + st->offset);
        if (problem != NULL) {
            snprintf(error, REFERRAL_ERROR_LEN, "setting \"%s\" %.256s",
                     st->name, problem);
            return REFERRAL_ERROR;
        }
    }

    if (s->publish == REFERRAL_PUBLISH_AUTO) {
        s->publish = s->redis[0] != '\0' ? REFERRAL_PUBLISH_ON
                                         : REFERRAL_PUBLISH_OFF;
    }

    if (s->publish == REFERRAL_PUBLISH_ON && s->redis[0] == '\0') {
        snprintf(error, REFERRAL_ERROR_LEN, "setting \"publish\" is on, and"
                 " setting \"redis\" is missing");
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


void
referral_settings_reload(referral_settings_t *s, referral_settings_t *fresh,
    const char **changed)
{
    char                 *journal, *listen;
    referral_settings_t   old;

    *changed = strcmp(s->journal, fresh->journal) ? "journal"
               : strcmp(s->listen, fresh->listen) ? "listen" : NULL;

    old = *s;
    journal = fresh->journal;
    listen = fresh->listen;

    *s = *fresh;
    s->journal = old.journal;
    s->listen = old.listen;

    *fresh = old;
    fresh->journal = journal;
    fresh->listen = listen;

    referral_settings_free(fresh);
}


void
referral_settings_free(referral_settings_t *s)
{
    free(s->journal);
    free(s->postgres);
    free(s->redis);
    free(s->redis_password_file);
    free(s->retention_interactions);
    free(s->listen);

    memset(s, 0, sizeof(referral_settings_t));
}


static char *
referral_settings_trim(char *text)
{
    char  *end;

    while (isspace((u_char) *text)) {
        text++;
    }

    end = text + strlen(text);

    while (end > text && isspace((u_char) end[-1])) {
        end--;
    }

    *end = '\0';

    return text;
}


static const referral_setting_t *
referral_settings_find(const char *name)
{
    size_t  i;

    for (i = 0; i < REFERRAL_NSETTINGS; i++) {
        if (strcmp(name, referral_settings[i].name) == 0) {
            return &referral_settings[i];
        }
    }

    return NULL;
}


static const char *
referral_setting_path(const referral_setting_t *st, const char *value,
    void *target)
{
    if (value[0] != '/') {
        return "must be an absolute path";
    }

    if (strlen(value) >= PATH_MAX - 128) {
        return "is too long a path";
    }

    return referral_setting_copy(target, value);
}


static const char *
referral_setting_conninfo(const referral_setting_t *st, const char *value,
    void *target)
{
    char              *message;
    PQconninfoOption  *options;

    static char        problem[256];

    options = PQconninfoParse(value, &message);

    if (options == NULL) {

        /* the message may repeat a part of the string, but no password */

        snprintf(problem, sizeof(problem), "is no connection string: %s",
                 message ? message : "out of memory");
        problem[strcspn(problem, "\n")] = '\0';
        PQfreemem(message);

        return problem;
    }

    PQconninfoFree(options);

    return referral_setting_copy(target, value);
}


static const char *
referral_setting_number(const referral_setting_t *st, const char *value,
    void *target)
{
    char                *end;
    unsigned long long   n;

    static char          problem[128];

    errno = 0;
    n = strtoull(value, &end, 10);

    if (!isdigit((u_char) *value) || *end != '\0' || errno
        || n < st->min || n > st->max)
    {
        snprintf(problem, sizeof(problem),
                 "must be a number from %llu to %llu",
                 (unsigned long long) st->min, (unsigned long long) st->max);
        return problem;
    }

    *(uint64_t *) target = n;

    return NULL;
}


static const char *
referral_setting_time(const referral_setting_t *st, const char *value,
    void *target)
{
    char                *end;
    size_t               i;
    unsigned long long   n;

    static char          problem[160];

    static const struct {
        const char      *unit;
        uint64_t         ms;
    } units[] = {
        { "ms", 1 },
        { "s",  1000 },
        { "m",  60000 },
        { "h",  3600000 },
        { "d",  86400000 }
    };

    errno = 0;
    n = strtoull(value, &end, 10);

    while (isspace((u_char) *end)) {
        end++;
    }

    if (isdigit((u_char) *value) && errno == 0) {

        for (i = 0; i < sizeof(units) / sizeof(units[0]); i++) {

            /* zero needs no unit */

            if ((strcmp(end, units[i].unit) == 0 || (n == 0 && *end == '\0'))
                && n <= UINT64_MAX / units[i].ms
                && n * units[i].ms >= st->min && n * units[i].ms <= st->max)
            {
                *(uint64_t *) target = n * units[i].ms;
                return NULL;
            }
        }
    }

    snprintf(problem, sizeof(problem), "must be a time with its unit (ms, s, "
             "m, h, d), from %llums to %llums",
             (unsigned long long) st->min, (unsigned long long) st->max);

    return problem;
}


/* Postgres does the arithmetic: months have no fixed length */

static const char *
referral_setting_interval(const referral_setting_t *st, const char *value,
    void *target)
{
    char           *end, text[64];
    size_t          i;
    unsigned long   n;

    static const char  *units[] = {
        "day", "days", "month", "months", "year", "years"
    };

    if (strcmp(value, "off") == 0) {
        return referral_setting_copy(target, "");
    }

    n = strtoul(value, &end, 10);

    while (isspace((u_char) *end)) {
        end++;
    }

    if (isdigit((u_char) *value) && n >= st->min && n <= st->max) {

        for (i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
            if (strcmp(end, units[i]) == 0) {
                snprintf(text, sizeof(text), "%lu %s", n, units[i]);
                return referral_setting_copy(target, text);
            }
        }
    }

    return "must be \"N days\", \"N months\", \"N years\" (1 to 1200) or"
           " \"off\"";
}


/* the address is taken apart where it is bound, by the same function */

static const char *
referral_setting_listen(const referral_setting_t *st, const char *value,
    void *target)
{
    const char              *problem;
    referral_listen_addr_t   addr;

    if (strcmp(value, "off") == 0) {
        return referral_setting_copy(target, "");
    }

    problem = referral_listen_parse(&addr, value);

    return problem != NULL ? problem : referral_setting_copy(target, value);
}


static const char *
referral_setting_level(const referral_setting_t *st, const char *value,
    void *target)
{
    size_t  i;

    for (i = 0; i < sizeof(referral_setting_levels) / sizeof(char *); i++) {
        if (strcmp(value, referral_setting_levels[i]) == 0) {
            *(uint64_t *) target = i;
            return NULL;
        }
    }

    return "must be error, warn, info or debug";
}


static const char *
referral_setting_file(const referral_setting_t *st, const char *value,
    void *target)
{
    if (value[0] == '\0') {
        return referral_setting_copy(target, value);
    }

    return referral_setting_path(st, value, target);
}


static const char *
referral_setting_redis(const referral_setting_t *st, const char *value,
    void *target)
{
    char                  error[REFERRAL_ERROR_LEN];
    referral_redis_url_t  url;

    static char           problem[256];

    if (value[0] != '\0'
        && referral_redis_url_parse(&url, (u_char *) value, strlen(value),
                                    error)
           != REFERRAL_OK)
    {
        snprintf(problem, sizeof(problem), "is no address of Redis: %.200s",
                 error);
        return problem;
    }

    return referral_setting_copy(target, value);
}


static const char *
referral_setting_publish(const referral_setting_t *st, const char *value,
    void *target)
{
    size_t  i;

    /* in the order of referral_publish_e */

    static const char  *words[] = { "off", "on", "auto" };

    for (i = 0; i < 3; i++) {
        if (strcmp(value, words[i]) == 0) {
            *(uint64_t *) target = i;
            return NULL;
        }
    }

    return "must be on, off or auto";
}


static const char *
referral_setting_copy(char **target, const char *value)
{
    *target = strdup(value);

    return *target != NULL ? NULL : "does not fit into memory";
}
