
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "import.h"
#include "output.h"
#include "pg.h"
#include "progress.h"
#include "referral_csv.h"
#include "referral_utf8.h"
#include "upsert.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


#define CTL_IMPORT_ROWS     1000           /* of a transaction */
#define CTL_IMPORT_RECORD   (1024 * 1024)  /* the longest */
#define CTL_IMPORT_READ     65536
#define CTL_IMPORT_ERRORS   1000           /* named in JSON */


/*
 * What a noun's import is: sql takes the parent's id and an array of rows; or
 * each row is one of its own.
 */

typedef struct {
    const char          *noun;
    const char          *what;
    ctl_arg_e            parent;           /* CTL_ARG_TEXT: none */
    const char          *keys[2];          /* one of them must be a column */
    const char          *columns[24];      /* ends with NULL */
    const char          *sql;
    const ctl_upsert_t  *upsert;
} ctl_import_t;


typedef struct {
    uint64_t             hash;             /* 0: free */
    uint64_t             line;
} ctl_import_seen_t;


typedef struct {
    const ctl_import_t  *import;
    const char          *file;
    PGconn              *pg;
    unsigned             json;
    char                *parent;

    int                  fd;
    u_char              *buf;
    size_t               len;
    size_t               pos;
    size_t               size;
    unsigned             eof:1;
    uint64_t             line;             /* of the next record */
    uint64_t             bytes;            /* that were read */
    uint64_t             total;            /* of the file, 0: no file */

    const char          *columns[REFERRAL_CSV_FIELDS];
    size_t               ncolumns;

    json_t              *rows;
    uint64_t             lines[2][CTL_IMPORT_ROWS];
    unsigned             half;             /* of lines, that rows fill */
    unsigned             busy:1;           /* the other half is on its way */

    ctl_import_seen_t   *seen;
    size_t               nseen;
    size_t               seen_size;

    uint64_t             created;
    uint64_t             updated;
    uint64_t             unchanged;
    uint64_t             nerrors;
    uint64_t             last;             /* line that was committed */
    json_t              *errors;
    ctl_progress_t       progress;
} ctl_import_ctx_t;


static int ctl_import(ctl_options_t *o, const ctl_import_t *import);
static int ctl_import_open(ctl_import_ctx_t *ctx);
static int ctl_import_record(ctl_import_ctx_t *ctx, referral_csv_t *csv,
    uint64_t *line);
static int ctl_import_fill(ctl_import_ctx_t *ctx);
static int ctl_import_header(ctl_import_ctx_t *ctx);
static int ctl_import_column(ctl_import_ctx_t *ctx, referral_str_t *field);
static int ctl_import_rows(ctl_import_ctx_t *ctx);
static json_t *ctl_import_row(ctl_import_ctx_t *ctx, referral_csv_t *csv,
    uint64_t line);
static uint64_t ctl_import_twice(ctl_import_ctx_t *ctx, const json_t *row,
    uint64_t line);
static void ctl_import_grow(ctl_import_ctx_t *ctx);
static int ctl_import_send(ctl_import_ctx_t *ctx);
static int ctl_import_each(ctl_import_ctx_t *ctx);
static int ctl_import_wait(ctl_import_ctx_t *ctx);
static void ctl_import_outcomes(ctl_import_ctx_t *ctx, const PGresult *result);
static void ctl_import_count(ctl_import_ctx_t *ctx, uint64_t line,
    const char *outcome, const char *message);
static void ctl_import_error(ctl_import_ctx_t *ctx, uint64_t line,
    const char *fmt, ...) __attribute__ ((format(printf, 3, 4)));
static void ctl_import_report(ctl_import_ctx_t *ctx);


static const ctl_import_t  ctl_import_code = {
    "code", "codes", CTL_ARG_PROGRAM, { "code", "external_id" },
    { "code", "external_id", "status", "name", "campaign", "channel",
      "destination", "rules", "starts_at", "expires_at", "max_uses",
      "variant_id", "settings", NULL },
    "SELECT line, outcome, message"
    " FROM referral.code_import($1::bigint, $2::jsonb)",
    NULL
};


static const ctl_import_t  ctl_import_referrer = {
    "referrer", "referrers", CTL_ARG_ORG, { "external_id", "external_id" },
    { "external_id", "type", "status", "eligible", "attributes",
      "commission_bp", "notes", "first_name", "last_name", "name", "email",
      "phone", "company", "address", NULL },
    "SELECT line, outcome, message"
    " FROM referral.referrer_import($1::bigint, $2::jsonb)",
    NULL
};


static const ctl_import_t  ctl_import_org = {
    "org", "organisations", CTL_ARG_TEXT, { "slug", "slug" },
    { "slug", "name", "status", "max_active_programs", "currency",
      "time_zone", "settings", NULL },
    NULL, &ctl_upsert_org
};


static const ctl_import_t  ctl_import_program = {
    "program", "programs", CTL_ARG_ORG, { "slug", "slug" },
    { "slug", "name", "status", "description", "type", "starts_at", "ends_at",
      "landing_url", "campaign", "code_prefix", "referral_validity",
      "attribution", "attribution_window", "max_referrals_per_referrer",
      "reward_threshold", "eligibility", "targeting", "terms",
      "terms_required", "time_zone", "currency", "settings", NULL },
    NULL, &ctl_upsert_program
};


int
ctl_import_orgs(ctl_options_t *o)
{
    return ctl_import(o, &ctl_import_org);
}


int
ctl_import_programs(ctl_options_t *o)
{
    return ctl_import(o, &ctl_import_program);
}


int
ctl_import_codes(ctl_options_t *o)
{
    return ctl_import(o, &ctl_import_code);
}


int
ctl_import_referrers(ctl_options_t *o)
{
    return ctl_import(o, &ctl_import_referrer);
}


static int
ctl_import(ctl_options_t *o, const ctl_import_t *import)
{
    int                rc, operands;
    char              *org;
    ctl_import_ctx_t   ctx;

    memset(&ctx, 0, sizeof(ctl_import_ctx_t));

    org = NULL;
    ctx.import = import;
    ctx.json = o->json;
    operands = (import->parent != CTL_ARG_TEXT);
    ctx.file = (o->argc > operands && strcmp(o->argv[operands], "-") != 0)
               ? o->argv[operands] : NULL;
    ctx.errors = json_array();
    ctx.rows = json_array();
    ctx.line = 1;

    rc = ctl_import_open(&ctx);

    if (rc == CTL_DONE) {
        rc = ctl_call_open(&ctx.pg, o);
    }

    if (rc == CTL_DONE && operands) {
        rc = ctl_call_resolve(ctx.pg, import->parent, o->argv[0], &org,
                              &ctx.parent);
    }

    ctl_progress_begin(&ctx.progress, import->what);

    if (rc == CTL_DONE) {
        rc = ctl_import_header(&ctx);
    }

    if (rc == CTL_DONE) {
        rc = ctl_import_rows(&ctx);
        ctl_progress_end(&ctx.progress);
        ctl_import_report(&ctx);

        if (rc != CTL_DONE) {
            ctl_error("not everything is in: run it again to go on");

        } else if (ctx.nerrors) {
            rc = CTL_FOUND;
        }
    }

    if (ctx.file != NULL && ctx.fd != -1) {
        (void) close(ctx.fd);
    }

    PQfinish(ctx.pg);
    json_decref(ctx.rows);
    json_decref(ctx.errors);
    free(ctx.seen);
    free(ctx.parent);
    free(ctx.buf);
    free(org);

    return rc;
}


static int
ctl_import_open(ctl_import_ctx_t *ctx)
{
    struct stat  st;

    ctx->fd = STDIN_FILENO;

    if (ctx->file != NULL) {
        ctx->fd = open(ctx->file, O_RDONLY|O_CLOEXEC);

        if (ctx->fd == -1) {
            ctl_error("%s: %s", ctx->file, strerror(errno));
            return CTL_USAGE;
        }
    }

    if (fstat(ctx->fd, &st) == 0 && S_ISREG(st.st_mode)) {
        ctx->total = st.st_size;
    }

    return CTL_DONE;
}


/* the next record and its line; CTL_FOUND at the end, or when reading fails */

static int
ctl_import_record(ctl_import_ctx_t *ctx, referral_csv_t *csv, uint64_t *line)
{
    ssize_t  n;

    for ( ;; ) {

        n = referral_csv_record(csv, ctx->buf + ctx->pos, ctx->len - ctx->pos,
                                ctx->eof);

        if (n > 0) {
            break;
        }

        if (ctx->eof || ctl_import_fill(ctx) != CTL_DONE) {
            return CTL_FOUND;
        }
    }

    *line = ctx->line;
    ctx->line += csv->lines;
    ctx->pos += n;

    return CTL_DONE;
}


static int
ctl_import_fill(ctl_import_ctx_t *ctx)
{
    ssize_t  n;

    if (ctx->pos) {
        memmove(ctx->buf, ctx->buf + ctx->pos, ctx->len - ctx->pos);
        ctx->len -= ctx->pos;
        ctx->pos = 0;
    }

    if (ctx->len > CTL_IMPORT_RECORD) {
        ctl_import_error(ctx, ctx->line, "a record of more than 1 MB: is a "
                         "quote not closed?");
        return CTL_FOUND;
    }

    if (ctx->size - ctx->len < CTL_IMPORT_READ) {
        ctx->size = 2 * ctx->size + CTL_IMPORT_READ;
        ctx->buf = ctl_realloc(ctx->buf, ctx->size);
    }

    for ( ;; ) {
        n = read(ctx->fd, ctx->buf + ctx->len, CTL_IMPORT_READ);

        if (n != -1 || errno != EINTR || ctl_progress_interrupted()) {
            break;
        }
    }

    if (n == -1) {

        if (errno != EINTR) {
            ctl_import_error(ctx, ctx->line, "%s", strerror(errno));
        }

        return CTL_FOUND;
    }

    ctx->eof = (n == 0);
    ctx->len += n;
    ctx->bytes += n;

    return CTL_DONE;
}


static int
ctl_import_header(ctl_import_ctx_t *ctx)
{
    int              rc, k;
    size_t           i;
    uint64_t         line;
    referral_csv_t   csv;

    /* the mark that some programs put before UTF-8 */

    if (ctl_import_fill(ctx) == CTL_DONE && ctx->len >= 3
        && memcmp(ctx->buf, "\xef\xbb\xbf", 3) == 0)
    {
        ctx->pos = 3;
    }

    do {
        rc = ctl_import_record(ctx, &csv, &line);
    } while (rc == CTL_DONE && csv.blank);

    if (rc != CTL_DONE) {
        ctl_error("%s: it is empty; the first line names the columns",
                  ctx->file ? ctx->file : "standard input");
        return CTL_FOUND;
    }

    if (csv.error != NULL) {
        ctl_import_error(ctx, line, "%s", csv.error);
        return CTL_FOUND;
    }

    for (i = 0; i < csv.nfields; i++) {
        rc = ctl_import_column(ctx, &csv.fields[i]);

        if (rc != CTL_DONE) {
            return rc;
        }
    }

    for (i = 0; i < ctx->ncolumns; i++) {

        for (k = 0; k < 2; k++) {
            if (ctx->columns[i] == ctx->import->keys[k]
                || strcmp(ctx->columns[i], ctx->import->keys[k]) == 0)
            {
                return CTL_DONE;
            }
        }
    }

    ctl_error("%s: line %" PRIu64 ": there is no column \"%s\"",
              ctx->file ? ctx->file : "standard input",
              line, ctx->import->keys[0]);

    return CTL_FOUND;
}


/* names may be in capitals and have spaces around */

static int
ctl_import_column(ctl_import_ctx_t *ctx, referral_str_t *field)
{
    char         name[64], list[1024];
    size_t       i, k, n;
    const char  *column;

    while (field->len && isspace(field->data[0])) {
        field->data++;
        field->len--;
    }

    while (field->len && isspace(field->data[field->len - 1])) {
        field->len--;
    }

    n = field->len < sizeof(name) ? field->len : sizeof(name) - 1;

    for (i = 0; i < n; i++) {
        name[i] = tolower(field->data[i]);
    }

    name[n] = '\0';
    n = 0;

    for (i = 0; ctx->import->columns[i] != NULL; i++) {
        column = ctx->import->columns[i];

        if (strlen(column) != field->len || strcmp(column, name) != 0) {
            n += snprintf(&list[n], sizeof(list) - n, "%s%s", n ? ", " : "",
                          column);
            continue;
        }

        for (k = 0; k < ctx->ncolumns; k++) {
            if (ctx->columns[k] == column) {
                ctl_error("%s: the column \"%s\" stands there twice",
                          ctx->file ? ctx->file : "standard input", column);
                return CTL_FOUND;
            }
        }

        ctx->columns[ctx->ncolumns++] = column;

        return CTL_DONE;
    }

    ctl_error("%s: there is no column \"%.*s\"; columns are %s",
              ctx->file ? ctx->file : "standard input", (int) field->len,
              field->data, list);

    return CTL_FOUND;
}


static int
ctl_import_rows(ctl_import_ctx_t *ctx)
{
    int             rc;
    size_t          n;
    json_t         *row;
    uint64_t        line;
    referral_csv_t  csv;

    rc = CTL_DONE;

    while (rc == CTL_DONE && !ctl_progress_interrupted()
           && ctl_import_record(ctx, &csv, &line) == CTL_DONE)
    {
        if (csv.blank) {
            continue;
        }

        row = ctl_import_row(ctx, &csv, line);

        if (row == NULL) {
            continue;
        }

        n = json_array_size(ctx->rows);
        ctx->lines[ctx->half][n] = line;
        json_array_append_new(ctx->rows, row);

        if (n + 1 == CTL_IMPORT_ROWS) {
            rc = ctl_import_send(ctx);
        }
    }

    if (rc == CTL_DONE && !ctl_progress_interrupted()
        && json_array_size(ctx->rows))
    {
        rc = ctl_import_send(ctx);
    }

    if (rc == CTL_DONE) {
        rc = ctl_import_wait(ctx);
    }

    if (rc == CTL_DONE && !ctx->eof) {

        if (ctl_progress_interrupted()) {
            ctl_error("interrupted after line %" PRIu64,
                      ctx->last);
        }

        rc = CTL_FOUND;
    }

    return rc;
}


/* NULL after naming what is wrong with the line */

static json_t *
ctl_import_row(ctl_import_ctx_t *ctx, referral_csv_t *csv, uint64_t line)
{
    size_t           i;
    json_t          *row;
    uint64_t         other;
    referral_str_t  *field;

    if (csv->error != NULL) {
        ctl_import_error(ctx, line, "%s", csv->error);
        return NULL;
    }

    if (csv->nfields != ctx->ncolumns) {
        ctl_import_error(ctx, line, "%zu field%s, the first line names %zu",
                         csv->nfields, csv->nfields == 1 ? "" : "s",
                         ctx->ncolumns);
        return NULL;
    }

    row = json_object();

    for (i = 0; i < csv->nfields; i++) {
        field = &csv->fields[i];

        if (field->len == 0) {
            continue;
        }

        if (!referral_utf8_valid(field->data, field->len)) {
            ctl_import_error(ctx, line, "%s: this is not valid UTF-8",
                             ctx->columns[i]);
            json_decref(row);
            return NULL;
        }

        json_object_set_new(row, ctx->columns[i],
                            json_stringn((char *) field->data, field->len));
    }

    other = ctl_import_twice(ctx, row, line);

    if (other) {
        ctl_import_error(ctx, line, "line %" PRIu64 " has the same %s",
                         other, ctx->import->keys[0]);
        json_decref(row);
        return NULL;
    }

    return row;
}


/*
 * The line that has the same key, or 0.  Two lines for one thing would make
 * each import undo the other's.  Only a hash of 64 bits is kept of each key.
 */

static uint64_t
ctl_import_twice(ctl_import_ctx_t *ctx, const json_t *row, uint64_t line)
{
    size_t              i;
    uint64_t            hash;
    const char         *p;
    ctl_import_seen_t  *seen;

    p = json_string_value(json_object_get(row, ctx->import->keys[0]));

    if (p == NULL) {
        return 0;
    }

    /* FNV-1a; codes are the same in small letters */

    hash = 0xcbf29ce484222325;

    for ( /* void */ ; *p != '\0'; p++) {
        hash ^= ctx->import->parent == CTL_ARG_PROGRAM
                ? (u_char) toupper((u_char) *p) : (u_char) *p;
        hash *= 0x100000001b3;
    }

    hash += (hash == 0);

    if (2 * ctx->nseen >= ctx->seen_size) {
        ctl_import_grow(ctx);
    }

    for (i = hash % ctx->seen_size; /* void */ ; i = (i + 1) % ctx->seen_size)
    {
        seen = &ctx->seen[i];

        if (seen->hash == hash) {
            return seen->line;
        }

        if (seen->hash == 0) {
            seen->hash = hash;
            seen->line = line;
            ctx->nseen++;
            return 0;
        }
    }
}


static void
ctl_import_grow(ctl_import_ctx_t *ctx)
{
    size_t              i, k, size;
    ctl_import_seen_t  *seen;

    size = ctx->seen_size ? 2 * ctx->seen_size : 4096;
    seen = ctl_alloc(size * sizeof(ctl_import_seen_t));

    for (i = 0; i < ctx->seen_size; i++) {

        if (ctx->seen[i].hash == 0) {
            continue;
        }

        for (k = ctx->seen[i].hash % size; seen[k].hash; k = (k + 1) % size) {
            /* void */
        }

        seen[k] = ctx->seen[i];
    }

    free(ctx->seen);

    ctx->seen = seen;
    ctx->seen_size = size;
}


/* Postgres works on these rows while the next ones are read */

static int
ctl_import_send(ctl_import_ctx_t *ctx)
{
    int          rc;
    char        *text;
    const char  *params[2];

    if (ctx->import->upsert != NULL) {
        return ctl_import_each(ctx);
    }

    rc = ctl_import_wait(ctx);

    if (rc != CTL_DONE) {
        return rc;
    }

    text = json_dumps(ctx->rows, JSON_COMPACT);
    params[0] = ctx->parent;
    params[1] = text;

    if (PQsendQueryParams(ctx->pg, ctx->import->sql, 2, NULL, params, NULL,
                          NULL, 0)
        != 1)
    {
        rc = ctl_pg_failed(ctx->pg, NULL, NULL);
    }

    free(text);
    json_array_clear(ctx->rows);
    ctx->half = !ctx->half;
    ctx->busy = 1;

    return rc;
}


static int
ctl_import_each(ctl_import_ctx_t *ctx)
{
    int          rc;
    char         message[1024];
    size_t       i;
    const char  *outcome;

    rc = ctl_pg_run(ctx->pg, "BEGIN", NULL);

    for (i = 0; rc == CTL_DONE && i < json_array_size(ctx->rows); i++) {

        rc = ctl_upsert(ctx->pg, ctx->import->upsert, ctx->parent,
                        json_array_get(ctx->rows, i), &outcome, message,
                        sizeof(message));

        if (rc == CTL_DONE) {
            ctl_import_count(ctx, ctx->lines[ctx->half][i], outcome, message);
        }
    }

    json_array_clear(ctx->rows);

    return rc == CTL_DONE ? ctl_pg_run(ctx->pg, "COMMIT", NULL) : rc;
}


static int
ctl_import_wait(ctl_import_ctx_t *ctx)
{
    int        rc;
    PGresult  *result;

    rc = CTL_DONE;

    if (!ctx->busy) {
        return rc;
    }

    ctx->busy = 0;

    while ((result = PQgetResult(ctx->pg)) != NULL) {

        if (PQresultStatus(result) == PGRES_TUPLES_OK) {
            ctl_import_outcomes(ctx, result);

        } else if (rc == CTL_DONE) {
            ctl_progress_end(&ctx->progress);
            rc = ctl_pg_failed(ctx->pg, result, NULL);
        }

        PQclear(result);
    }

    ctl_progress_show(&ctx->progress,
                      ctx->created + ctx->updated + ctx->unchanged
                      + ctx->nerrors, ctx->bytes - (ctx->len - ctx->pos),
                      ctx->total);

    return rc;
}


static void
ctl_import_outcomes(ctl_import_ctx_t *ctx, const PGresult *result)
{
    int  i, n;

    for (i = 0; i < PQntuples(result); i++) {

        n = atoi(PQgetvalue(result, i, 0));

        if (n >= 1 && n <= CTL_IMPORT_ROWS) {
            ctl_import_count(ctx, ctx->lines[!ctx->half][n - 1],
                             PQgetvalue(result, i, 1),
                             PQgetvalue(result, i, 2));
        }
    }
}


static void
ctl_import_count(ctl_import_ctx_t *ctx, uint64_t line, const char *outcome,
    const char *message)
{
    ctx->last = line;

    if (strcmp(outcome, "created") == 0) {
        ctx->created++;

    } else if (strcmp(outcome, "updated") == 0) {
        ctx->updated++;

    } else if (strcmp(outcome, "unchanged") == 0) {
        ctx->unchanged++;

    } else {
        ctl_import_error(ctx, line, "%s", message);
    }
}


static void
ctl_import_error(ctl_import_ctx_t *ctx, uint64_t line, const char *fmt, ...)
{
    char      text[1024];
    json_t   *error;
    va_list   args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);

    ctx->nerrors++;

    ctl_progress_end(&ctx->progress);
    ctl_error("%s: line %" PRIu64 ": %s",
              ctx->file ? ctx->file : "standard input", line, text);

    if (json_array_size(ctx->errors) < CTL_IMPORT_ERRORS) {
        error = json_object();
        json_object_set_new(error, "line", json_integer(line));
        json_object_set_new(error, "message",
                            ctl_json_text(text, strlen(text)));
        json_array_append_new(ctx->errors, error);
    }
}


static void
ctl_import_report(ctl_import_ctx_t *ctx)
{
    char     n[4][CTL_PROGRESS_LEN];
    json_t  *json;

    if (!ctx->json) {
        printf("%s: %s created, %s updated, %s unchanged, %s refused\n",
               ctx->import->what, ctl_progress_number(ctx->created, n[0]),
               ctl_progress_number(ctx->updated, n[1]),
               ctl_progress_number(ctx->unchanged, n[2]),
               ctl_progress_number(ctx->nerrors, n[3]));
        return;
    }

    json = json_object();
    json_object_set_new(json, "created", json_integer(ctx->created));
    json_object_set_new(json, "updated", json_integer(ctx->updated));
    json_object_set_new(json, "unchanged", json_integer(ctx->unchanged));
    json_object_set_new(json, "refused", json_integer(ctx->nerrors));
    json_object_set_new(json, "last_line", json_integer(ctx->last));
    json_object_set(json, "errors", ctx->errors);

    ctl_json_print(json);
}
