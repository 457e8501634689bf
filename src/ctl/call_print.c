
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "output.h"
#include "pg.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>


#define CTL_CALL_BLOCK    1000             /* rows of a table held at once */
#define CTL_CALL_COLUMNS  64

/* pg_type.oid, which never change */

#define CTL_OID_BOOL         16
#define CTL_OID_INT8         20
#define CTL_OID_INT2         21
#define CTL_OID_INT4         23
#define CTL_OID_JSON         114
#define CTL_OID_TIMESTAMPTZ  1184
#define CTL_OID_NUMERIC      1700
#define CTL_OID_JSONB        3802


typedef struct {
    const ctl_call_t    *call;
    unsigned             json;

    int                  columns[CTL_CALL_COLUMNS];      /* of the result */
    ctl_column_t         titles[CTL_CALL_COLUMNS];
    char                 words[CTL_CALL_COLUMNS][40];
    size_t               ncolumns;
    ctl_table_t          table;
    size_t               rows;             /* of the block */
    size_t               total;
} ctl_call_list_t;


static int ctl_call_fetch(ctl_call_list_t *list, PGconn *pg);
static void ctl_call_begin(ctl_call_list_t *list, const PGresult *result);
static void ctl_call_row(ctl_call_list_t *list, const PGresult *result,
    int row);
static void ctl_call_end(ctl_call_list_t *list);
static int ctl_call_hidden(const PGresult *result, int column, int json);
static const char *ctl_call_column(const PGresult *result, int column);
static void ctl_call_title(const PGresult *result, int column, char *buf,
    size_t size);
static char *ctl_call_text(const PGresult *result, int row, int column);
static int ctl_call_answer(const ctl_call_t *call, json_t *answer, int json);
static void ctl_call_member(const char *name, const char *text);
static void ctl_call_fields(const ctl_call_t *call, const PGresult *result);
static json_t *ctl_call_json_row(const PGresult *result, int row);
static json_t *ctl_call_json_value(const PGresult *result, int row,
    int column);
static json_t *ctl_call_json_time(const char *text);


/*
 * A row at a time, so that a list may be longer than memory.  People get
 * blocks whose columns only ever become wider, programs one array.
 */

int
ctl_call_stream(const ctl_call_t *call, PGconn *pg, int n,
    const char **params, int json)
{
    int              rc;
    ctl_call_list_t  list;

    memset(&list, 0, sizeof(ctl_call_list_t));

    list.call = call;
    list.json = json;

    if (PQsendQueryParams(pg, call->sql, n, NULL, params, NULL, NULL, 0) != 1
        || PQsetSingleRowMode(pg) != 1)
    {
        return ctl_pg_failed(pg, NULL, NULL);
    }

    rc = ctl_call_fetch(&list, pg);

    if (rc != CTL_DONE) {
        return rc;
    }

    ctl_call_end(&list);

    return call->print == CTL_PRINT_PROBLEMS && list.total ? CTL_FOUND
                                                           : CTL_DONE;
}


static int
ctl_call_fetch(ctl_call_list_t *list, PGconn *pg)
{
    int        rc, row;
    PGresult  *result;

    rc = CTL_DONE;

    while ((result = PQgetResult(pg)) != NULL) {

        if (PQresultStatus(result) != PGRES_SINGLE_TUPLE
            && PQresultStatus(result) != PGRES_TUPLES_OK)
        {
            rc = ctl_pg_failed(pg, result, NULL);
            PQclear(result);
            continue;
        }

        if (list->ncolumns == 0) {
            ctl_call_begin(list, result);
        }

        for (row = 0; row < PQntuples(result); row++) {
            ctl_call_row(list, result, row);
        }

        PQclear(result);
    }

    return rc;
}


static void
ctl_call_begin(ctl_call_list_t *list, const PGresult *result)
{
    int            i;
    Oid            type;
    ctl_column_t  *title;

    for (i = 0; i < PQnfields(result) && i < CTL_CALL_COLUMNS; i++) {

        if (ctl_call_hidden(result, i, list->json)) {
            continue;
        }

        ctl_call_title(result, i, list->words[list->ncolumns],
                       sizeof(list->words[0]));

        type = PQftype(result, i);
        title = &list->titles[list->ncolumns];
        title->title = list->words[list->ncolumns];
        title->right = (type == CTL_OID_INT8 || type == CTL_OID_INT4
                        || type == CTL_OID_INT2 || type == CTL_OID_NUMERIC);

        list->columns[list->ncolumns++] = i;
    }

    ctl_table_init(&list->table, list->titles, list->ncolumns);

    if (list->json) {
        printf("[");
    }
}


static void
ctl_call_row(ctl_call_list_t *list, const PGresult *result, int row)
{
    char    *texts[CTL_CALL_COLUMNS];
    size_t   i;

    if (list->json) {
        printf(list->total++ ? ",\n " : "\n ");
        ctl_json_part(ctl_call_json_row(result, row));
        return;
    }

    for (i = 0; i < list->ncolumns; i++) {
        texts[i] = ctl_call_text(result, row, list->columns[i]);
    }

    ctl_table_row(&list->table, (const char **) texts);

    for (i = 0; i < list->ncolumns; i++) {
        free(texts[i]);
    }

    list->total++;

    if (++list->rows == CTL_CALL_BLOCK) {
        ctl_table_part(&list->table);
        list->rows = 0;
    }
}


static void
ctl_call_end(ctl_call_list_t *list)
{
    if (list->json) {
        printf(list->total ? "\n]\n" : "]\n");
        ctl_table_free(&list->table);
        return;
    }

    if (list->total == 0) {
        printf("%s\n", list->call->title);
        ctl_table_free(&list->table);
        return;
    }

    ctl_table_print(&list->table);
}


int
ctl_call_print(const ctl_call_t *call, PGresult *result, int json)
{
    if (PQntuples(result) == 0 || PQnfields(result) == 0) {
        ctl_error("%s %s: there is nothing to show", call->noun, call->verb);
        return CTL_FOUND;
    }

    if (call->print == CTL_PRINT_DOCUMENT) {
        ctl_json_print(ctl_call_json_value(result, 0, 0));
        return CTL_DONE;
    }

    if (call->print == CTL_PRINT_ANSWER) {
        return ctl_call_answer(call, ctl_call_json_value(result, 0, 0), json);
    }

    if (json) {
        ctl_json_print(ctl_call_json_row(result, 0));

    } else {
        ctl_call_fields(call, result);
    }

    return CTL_DONE;
}


/* what a function says of its work: members, and lists line by line */

static int
ctl_call_answer(const ctl_call_t *call, json_t *answer, int json)
{
    int          rc;
    char        *text;
    size_t       i;
    json_t      *member, *one;
    const char  *outcome, *name;

    outcome = json_string_value(json_object_get(answer, "outcome"));
    rc = outcome && strcmp(outcome, "unattributed") == 0 ? CTL_FOUND
                                                         : CTL_DONE;

    if (json) {
        ctl_json_print(answer);
        return rc;
    }

    printf("%s:\n", call->title);

    json_object_foreach(answer, name, member) {

        if (!json_is_array(member)) {
            text = json_dumps(member, JSON_ENCODE_ANY|JSON_COMPACT);
            ctl_call_member(name, json_is_string(member)
                                  ? json_string_value(member) : text);
            free(text);
            continue;
        }

        json_array_foreach(member, i, one) {
            text = json_dumps(one, JSON_ENCODE_ANY);
            ctl_call_member(i ? "" : name, text);
            free(text);
        }
    }

    json_decref(answer);

    return rc;
}


static void
ctl_call_member(const char *name, const char *text)
{
    char  *one, *two;

    one = ctl_clean(name, strlen(name));
    two = ctl_clean(text, strlen(text));

    printf("  %-14s  %s\n", one, two);

    free(one);
    free(two);
}


static void
ctl_call_fields(const ctl_call_t *call, const PGresult *result)
{
    int      i;
    char     title[40], *text, *clean;
    size_t   n, width;

    width = 0;

    for (i = 0; i < PQnfields(result); i++) {
        n = strlen(ctl_call_column(result, i));

        if (n > width && !ctl_call_hidden(result, i, 0)) {
            width = n;
        }
    }

    for (i = 0; ctl_call_hidden(result, i, 0); i++) { /* void */ }

    text = ctl_call_text(result, 0, i);
    clean = ctl_clean(text, strlen(text));

    printf(call->title, clean);
    printf(":\n");

    free(clean);
    free(text);

    for (i++; i < PQnfields(result); i++) {

        if (ctl_call_hidden(result, i, 0) || PQgetisnull(result, 0, i)) {
            continue;
        }

        snprintf(title, sizeof(title), "%s", ctl_call_column(result, i));
        text = ctl_call_text(result, 0, i);
        clean = ctl_clean(text, strlen(text));

        printf("  %-*s  %s%s\n", (int) width, title, clean,
               PQftype(result, i) == CTL_OID_TIMESTAMPTZ ? " UTC" : "");

        free(clean);
        free(text);
    }
}


static int
ctl_call_hidden(const PGresult *result, int column, int json)
{
    return strncmp(PQfname(result, column), json ? "p:" : "j:", 2) == 0;
}


static const char *
ctl_call_column(const PGresult *result, int column)
{
    const char  *name;

    name = PQfname(result, column);

    return name[0] && name[1] == ':' ? name + 2 : name;
}


static void
ctl_call_title(const PGresult *result, int column, char *buf, size_t size)
{
    char  *p;

    snprintf(buf, size, "%s%s", ctl_call_column(result, column),
             PQftype(result, column) == CTL_OID_TIMESTAMPTZ ? " (UTC)" : "");

    for (p = buf; *p != '\0'; p++) {
        *p = *p == '_' ? ' ' : toupper((u_char) *p);
    }
}


/* as people read it; the session's times are UTC */

static char *
ctl_call_text(const PGresult *result, int row, int column)
{
    char        *text;
    const char  *value;

    value = PQgetvalue(result, row, column);
    text = ctl_dup(value, strlen(value));

    if (PQgetisnull(result, row, column)) {
        return text;
    }

    if (PQftype(result, column) == CTL_OID_TIMESTAMPTZ) {
        text[strcspn(text, ".+")] = '\0';

    } else if (PQftype(result, column) == CTL_OID_BOOL) {
        free(text);
        text = ctl_dup(*value == 't' ? "yes" : "no", *value == 't' ? 3 : 2);
    }

    return text;
}


static json_t *
ctl_call_json_row(const PGresult *result, int row)
{
    int      i;
    json_t  *object;

    object = json_object();

    for (i = 0; i < PQnfields(result); i++) {

        if (!ctl_call_hidden(result, i, 1)) {
            json_object_set_new(object, ctl_call_column(result, i),
                                ctl_call_json_value(result, row, i));
        }
    }

    return object;
}


static json_t *
ctl_call_json_value(const PGresult *result, int row, int column)
{
    json_t      *json;
    const char  *text;

    if (PQgetisnull(result, row, column)) {
        return json_null();
    }

    text = PQgetvalue(result, row, column);

    switch (PQftype(result, column)) {

    case CTL_OID_INT2:
    case CTL_OID_INT4:
    case CTL_OID_INT8:
        return json_integer(strtoll(text, NULL, 10));

    case CTL_OID_BOOL:
        return json_boolean(*text == 't');

    case CTL_OID_JSON:
    case CTL_OID_JSONB:
    case CTL_OID_NUMERIC:
        json = json_loads(text, JSON_DECODE_ANY, NULL);
        return json ? json : json_string(text);

    case CTL_OID_TIMESTAMPTZ:
        return ctl_call_json_time(text);

    default:
        json = json_string(text);
        return json ? json : json_null();
    }
}


/* "2026-11-20 10:15:02.5+00" to "2026-11-20T10:15:02.5Z" */

static json_t *
ctl_call_json_time(const char *text)
{
    char    *p, *copy;
    json_t  *json;

    copy = ctl_dup(text, strlen(text));
    p = strchr(copy, ' ');

    if (p != NULL) {
        *p = 'T';
        p = strchr(p, '+');

        if (p != NULL) {
            p[0] = 'Z';
            p[1] = '\0';
        }
    }

    json = json_string(copy);
    free(copy);

    return json;
}
