
/*
 * Copyright (C) The nginx referral module authors
 *
 * Commands that are a statement in Postgres: each is a row of a table, which
 * parser, help and execution come from.
 */


#ifndef _CTL_CALL_H_INCLUDED_
#define _CTL_CALL_H_INCLUDED_


#include "ctl.h"

#include <jansson.h>
#include <libpq-fe.h>


#define CTL_CALL_OPERANDS  4
#define CTL_CALL_KEYS      4               /* groups of keys */


typedef enum {
    CTL_ARG_TEXT = 0,
    CTL_ARG_NUMBER,
    CTL_ARG_FLAG,                          /* yes, no, true, false, on, off */
    CTL_ARG_JSON,
    CTL_ARG_LIST,                          /* words between commas */
    CTL_ARG_TIME,
    CTL_ARG_CODE_TEXT,                     /* folded */
    CTL_ARG_PATTERN,                       /* * and ?, for LIKE */
    CTL_ARG_DAY,
    CTL_ARG_UUID,
    CTL_ARG_MONEY,                         /* minor units, or "12.50 EUR",
                                              which sets NAME_unit, too */

    /* names, which become ids */

    CTL_ARG_ORG,
    CTL_ARG_PROGRAM,
    CTL_ARG_REFERRER,
    CTL_ARG_CODE,

    /* ids of what has no names */

    CTL_ARG_ID
} ctl_arg_e;


/* flags of arguments */

#define CTL_ARG_OPTIONAL   0x01            /* operands */
#define CTL_ARG_CONTACT    0x02            /* keys: into the object contact */
#define CTL_ARG_STDIN      0x04            /* operands: "-" is stdin */


typedef struct {
    const char          *name;             /* NULL ends a list */
    ctl_arg_e            type;
    unsigned             flags;
    const char          *help;             /* of keys; lines */
} ctl_arg_t;


typedef enum {
    CTL_PRINT_LIST = 0,                    /* a table, an array */
    CTL_PRINT_ONE,                         /* a row as fields, an object */
    CTL_PRINT_PROBLEMS,                    /* a list that should be empty */
    CTL_PRINT_DOCUMENT,                    /* one JSON value, as it is */
    CTL_PRINT_ANSWER                       /* one JSON object, its members;
                                              the outcome "unattributed" is
                                              something that is wrong */
} ctl_print_e;


/*
 * The statement's parameters are the operands, in order (null when absent,
 * ids for names), and, when there are keys, a jsonb object of those given.
 * then, if any, is run in the same transaction with the first column of the
 * first row as its parameter: it reads what was written.
 *
 * Columns of the result: "p:name" is for people only, "j:name" for JSON only.
 */

typedef struct ctl_call_s {
    const char          *noun;
    const char          *verb;
    const char          *summary;
    ctl_arg_t            operands[CTL_CALL_OPERANDS + 1];
    const ctl_arg_t     *keys[CTL_CALL_KEYS + 1];
    const char          *sql;
    const char          *then;             /* or NULL */
    ctl_print_e          print;
    const char          *title;            /* "program %s is paused", the first
                                              column that people see; or what
                                              an empty list says */
    const char          *about;
    const char          *examples;
} ctl_call_t;


/* ends with a noun of NULL */

extern const ctl_call_t  ctl_tenant_calls[];
extern const ctl_call_t  ctl_code_calls[];
extern const ctl_call_t  ctl_referral_calls[];
extern const ctl_call_t  ctl_money_calls[];
extern const ctl_call_t  ctl_webhook_calls[];
extern const ctl_call_t  ctl_report_calls[];

/* of verbs that can be asked of Redis, too */

extern const ctl_call_t  ctl_code_show_call;
extern const ctl_call_t  ctl_code_list_call;


/* keys of a person, into the object contact */

extern const ctl_arg_t  ctl_contact_keys[];


/* fills the command that stands for the call */
void ctl_call_command(const ctl_call_t *call, ctl_command_t *cmd);

/* the operands for a usage line; the keys with their help */
void ctl_call_usage(const ctl_call_t *call);
void ctl_call_help(const ctl_call_t *call);

/* the handler of all of them: o->call */
int ctl_call_run(ctl_options_t *o);


/*
 * A connection that is set up for calls: times in UTC, --actor and --org.
 * CTL_DONE, or the exit code after saying what failed.
 */
int ctl_call_open(PGconn **pg, const ctl_options_t *o);

/*
 * The id of what text names.  *org is the organisation that names are looked
 * up in, NULL: all; it becomes that of what was found.  Both are freed by the
 * caller.
 */
int ctl_call_resolve(PGconn *pg, ctl_arg_e type, const char *text, char **org,
    char **id);

/*
 * The minor units of "12.50 EUR", and its unit; of a plain number they are the
 * number, and the unit is null.
 */
int ctl_call_money(PGconn *pg, const char *name, const char *text,
    json_t **amount, json_t **unit);

/* the value of a key, as the functions of the schema expect it */
int ctl_call_value(const char *name, ctl_arg_e type, const char *text,
    json_t **value);

/* prints a whole result; CTL_DONE or CTL_FOUND */
int ctl_call_print(const ctl_call_t *call, PGresult *result, int json);

/* runs the statement and prints its rows as they come */
int ctl_call_stream(const ctl_call_t *call, PGconn *pg, int n,
    const char **params, int json);


#endif /* _CTL_CALL_H_INCLUDED_ */
