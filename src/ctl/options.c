
/*
 * Copyright (C) The nginx referral module authors
 */


#include "options.h"
#include "output.h"
#include "time_text.h"

#include <errno.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


typedef enum {
    CTL_FLAG = 0,
    CTL_TEXT,
    CTL_NUMBER,
    CTL_DURATION
} ctl_option_type_e;


typedef struct {
    const char          *name;
    char                 letter;           /* 0: none */
    ctl_option_type_e    type;
    size_t               offset;           /* in ctl_options_t */
    unsigned             bit;
    unsigned             every:1;          /* command accepts it */
    const char          *value;            /* name of the value, for help */
    const char          *env;              /* variable, or NULL */
    const char          *help;
} ctl_option_t;


static const ctl_option_t *ctl_options_find(const char *arg, size_t len);
static int ctl_options_set(ctl_options_t *o, const ctl_option_t *opt,
    const char *value);


static const ctl_option_t  ctl_options[] = {

    { "--json", 0, CTL_FLAG, offsetof(ctl_options_t, json), CTL_OPT_JSON, 1,
      NULL, NULL,
      "print JSON, for programs" },

    { "--db", 0, CTL_TEXT, offsetof(ctl_options_t, db), CTL_OPT_DB, 1,
      "CONNINFO", "REFERRAL_DB",
      "Postgres: a conninfo string, a URI or a name;\n"
      "without it PGHOST, PGDATABASE, PGPASSFILE ... are\n"
      "used" },

    { "--journal", 0, CTL_TEXT, offsetof(ctl_options_t, journal),
      CTL_OPT_JOURNAL, 1,
      "DIR", "REFERRAL_JOURNAL",
      "the journal's directory, as in referral_journal" },

    { "--redis", 0, CTL_TEXT, offsetof(ctl_options_t, redis), CTL_OPT_REDIS,
      1,
      "URL", "REFERRAL_REDIS",
      "redis://[user@]host[:port][/db] or unix:/path[:db]" },

    { "--redis-password-file", 0, CTL_TEXT,
      offsetof(ctl_options_t, redis_password_file), CTL_OPT_REDIS, 1,
      "FILE", "REFERRAL_REDIS_PASSWORD_FILE",
      "its first line is the password (others can read a\n"
      "command line)" },

    { "--sql", 0, CTL_TEXT, offsetof(ctl_options_t, sql), CTL_OPT_SQL, 0,
      "DIR", "REFERRAL_SQL",
      "the migrations; by default sql beside build/, or\n"
      "share/referral/sql beside bin/" },

    { "--secret", 0, CTL_TEXT, offsetof(ctl_options_t, secret),
      CTL_OPT_SECRET, 0,
      "FILE", NULL,
      "the keys, as in referral_secret: lines id:base64" },

    { "--max-age", 0, CTL_DURATION, offsetof(ctl_options_t, max_age),
      CTL_OPT_MAX_AGE, 0,
      "TIME", NULL,
      "refuse older tokens: 90d, 12h, 30m, 45s\n"
      "(90d; 0: no limit)" },

    { "--from", 0, CTL_NUMBER, offsetof(ctl_options_t, from), CTL_OPT_FROM, 0,
      "SEQ", NULL,
      "begin at this record number" },

    { "--lines", 'n', CTL_NUMBER, offsetof(ctl_options_t, lines),
      CTL_OPT_LINES, 0,
      "N", NULL,
      "records to show at first (10)" },

    { "--follow", 'f', CTL_FLAG, offsetof(ctl_options_t, follow),
      CTL_OPT_FOLLOW, 0,
      NULL, NULL,
      "go on with new records until interrupted" },

    { "--actor", 0, CTL_TEXT, offsetof(ctl_options_t, actor), CTL_OPT_ACTOR,
      0,
      "NAME", "REFERRAL_ACTOR",
      "who does it, for the audit; without it the role\n"
      "that logs in" },

    { "--org", 0, CTL_TEXT, offsetof(ctl_options_t, org), CTL_OPT_ORG, 0,
      "ORG", "REFERRAL_ORG",
      "see and touch this organisation only" },

    { "--full", 0, CTL_FLAG, offsetof(ctl_options_t, full), CTL_OPT_FULL, 0,
      NULL, NULL,
      "write every code anew" },

    { "--check", 0, CTL_FLAG, offsetof(ctl_options_t, check), CTL_OPT_CHECK, 0,
      NULL, NULL,
      "compare Redis with Postgres, write nothing" },

    { NULL, 0, CTL_FLAG, 0, 0, 0, NULL, NULL, NULL }
};


int
ctl_options_parse(ctl_options_t *o, int argc, char **argv, int *ask,
    unsigned *used)
{
    int                  i, end;
    size_t               len;
    const char          *arg, *value;
    const ctl_option_t  *opt;

    memset(o, 0, sizeof(ctl_options_t));

    o->max_age = 90 * (uint64_t) 86400 * 1000;
    o->lines = 10;
    o->argv = ctl_alloc((argc + 1) * sizeof(char *));

    *ask = 0;
    *used = 0;
    end = 0;

    for (i = 1; i < argc; i++) {

        arg = argv[i];

        if (end || arg[0] != '-' || arg[1] == '\0') {
            o->argv[o->argc++] = argv[i];
            continue;
        }

        if (strcmp(arg, "--") == 0) {
            end = 1;
            continue;
        }

        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            *ask = CTL_ASK_HELP;
            continue;
        }

        if (strcmp(arg, "--version") == 0 || strcmp(arg, "-V") == 0) {
            *ask = CTL_ASK_VERSION;
            continue;
        }

        len = strcspn(arg, "=");
        opt = ctl_options_find(arg, len);

        if (opt == NULL) {
            ctl_error("unknown option \"%.*s\"", (int) len, arg);
            return CTL_USAGE;
        }

        value = NULL;

        if (opt->type == CTL_FLAG) {
            if (arg[len] == '=') {
                ctl_error("%s takes no value", opt->name);
                return CTL_USAGE;
            }

        } else if (arg[len] == '=') {
            value = &arg[len + 1];

        } else if (arg[1] != '-' && arg[2] != '\0') {
            value = &arg[2];               /* -n20 */

        } else if (i + 1 < argc) {
            value = argv[++i];

        } else {
            ctl_error("%s needs a value: %s %s", opt->name, opt->name,
                      opt->value);
            return CTL_USAGE;
        }

        if (ctl_options_set(o, opt, value) != REFERRAL_OK) {
            return CTL_USAGE;
        }

        o->given |= opt->bit;

        if (!opt->every) {
            *used |= opt->bit;
        }
    }

    for (opt = ctl_options; opt->name != NULL; opt++) {

        if (opt->env == NULL
            || *(const char **) ((char *) o + opt->offset) != NULL)
        {
            continue;
        }

        value = getenv(opt->env);

        if (value != NULL && *value != '\0') {
            *(const char **) ((char *) o + opt->offset) = value;
        }
    }

    return CTL_DONE;
}


static const ctl_option_t *
ctl_options_find(const char *arg, size_t len)
{
    const ctl_option_t  *opt;

    for (opt = ctl_options; opt->name != NULL; opt++) {

        if (strlen(opt->name) == len && strncmp(opt->name, arg, len) == 0) {
            return opt;
        }

        if (opt->letter && arg[1] == opt->letter
            && (arg[2] == '\0' || opt->type != CTL_FLAG))
        {
            return opt;
        }
    }

    return NULL;
}


static int
ctl_options_set(ctl_options_t *o, const ctl_option_t *opt, const char *value)
{
    char      *end;
    void      *target;
    uint64_t   n;

    target = (char *) o + opt->offset;

    switch (opt->type) {

    case CTL_FLAG:
        *(unsigned *) target = 1;
        break;

    case CTL_TEXT:
        if (*value == '\0') {
            ctl_error("%s needs a value: %s %s", opt->name, opt->name,
                      opt->value);
            return REFERRAL_ERROR;
        }

        *(const char **) target = value;
        break;

    case CTL_NUMBER:
        errno = 0;
        n = strtoull(value, &end, 10);

        if (!isdigit((u_char) *value) || *end != '\0' || errno) {
            ctl_error("%s: \"%s\" is not a number", opt->name, value);
            return REFERRAL_ERROR;
        }

        *(uint64_t *) target = n;
        break;

    case CTL_DURATION:
        if (ctl_duration_parse(value, (uint64_t *) target) != REFERRAL_OK) {
            ctl_error("%s: \"%s\" is not a time such as 90d, 12h, 30m or 45s",
                      opt->name, value);
            return REFERRAL_ERROR;
        }

        break;
    }

    return REFERRAL_OK;
}


const char *
ctl_options_name(unsigned bit)
{
    const ctl_option_t  *opt;

    for (opt = ctl_options; opt->name != NULL; opt++) {
        if (opt->bit & bit) {
            return opt->name;
        }
    }

    return "";
}


void
ctl_options_help(unsigned bits)
{
    char                 left[64];
    const char          *p, *nl;
    const ctl_option_t  *opt;

    for (opt = ctl_options; opt->name != NULL; opt++) {

        if ((opt->bit & bits) == 0) {
            continue;
        }

        if (opt->letter) {
            snprintf(left, sizeof(left), "-%c, %s%s%s", opt->letter,
                     opt->name, opt->value ? " " : "",
                     opt->value ? opt->value : "");

        } else {
            snprintf(left, sizeof(left), "%s%s%s", opt->name,
                     opt->value ? " " : "", opt->value ? opt->value : "");
        }

        printf("  %-27s", left);

        if (strlen(left) > 26) {
            printf("\n%29s", "");
        }

        for (p = opt->help; (nl = strchr(p, '\n')) != NULL; p = nl + 1) {
            printf("%.*s\n%29s", (int) (nl - p), p, "");
        }

        printf("%s", p);

        if (opt->env != NULL) {
            printf("\n%29s(environment: %s)", "", opt->env);
        }

        printf("\n");
    }

    printf("  %-27sthis text\n", "-h, --help");
}
