
/*
 * Copyright (C) The nginx referral module authors
 *
 * What every file of referralctl shares: exit codes, the options of a run
 * and the table of commands, which parser and help texts both come from.
 */


#ifndef _CTL_H_INCLUDED_
#define _CTL_H_INCLUDED_


#include "referral_core.h"


#define CTL_DONE         0
#define CTL_FOUND        1                 /* done, and something is wrong */
#define CTL_USAGE        2
#define CTL_UNREACHABLE  3                 /* a server */


typedef struct {

    const struct ctl_call_s  *call;        /* of the command, or NULL */

    /* accepted by every command */

    const char          *db;               /* NULL: what libpq finds */
    const char          *journal;
    const char          *redis;
    const char          *redis_password_file;
    unsigned             json;

    /* of some commands */

    const char          *sql;
    const char          *secret;
    uint64_t             max_age;          /* ms, 0: no limit */
    uint64_t             from;             /* record number, 0: the first */
    uint64_t             lines;
    unsigned             follow;
    const char          *actor;
    const char          *org;
    unsigned             full;
    unsigned             check;

    unsigned             given;            /* on the command line: CTL_OPT_* */

    int                  argc;             /* operands */
    char               **argv;
} ctl_options_t;


/* options beyond those that every command accepts */

#define CTL_OPT_DB        0x0001           /* shown in the command's help */
#define CTL_OPT_JOURNAL   0x0002
#define CTL_OPT_REDIS     0x0004
#define CTL_OPT_JSON      0x0008
#define CTL_OPT_SQL       0x0010
#define CTL_OPT_SECRET    0x0020
#define CTL_OPT_MAX_AGE   0x0040
#define CTL_OPT_FROM      0x0080
#define CTL_OPT_LINES     0x0100
#define CTL_OPT_FOLLOW    0x0200
#define CTL_OPT_ACTOR     0x0400
#define CTL_OPT_ORG       0x0800
#define CTL_OPT_FULL      0x1000
#define CTL_OPT_CHECK     0x2000


typedef struct {
    const char          *noun;
    const char          *verb;
    const char          *operands;         /* of the usage line, or "" */
    const char          *summary;          /* one line */
    unsigned             options;          /* CTL_OPT_* */
    int                  min;              /* operands */
    int                  max;              /* -1: any number */
    int                (*handler)(ctl_options_t *o);   /* the exit code */
    const char          *about;            /* paragraphs, or "" */
    const char          *examples;         /* lines */
    const struct ctl_call_s  *call;        /* NULL: the handler does it all */
} ctl_command_t;


#endif /* _CTL_H_INCLUDED_ */
