
/*
 * Copyright (C) The nginx referral module authors
 */


#include "output.h"
#include "pg.h"
#include "upsert.h"

#include <stdlib.h>
#include <string.h>


typedef struct {
    PGconn              *pg;
    const char          *params[3];
    char                *message;
    size_t               size;
} ctl_upsert_ctx_t;


static const char *ctl_upsert_row(ctl_upsert_ctx_t *ctx,
    const ctl_upsert_t *u, json_t *row);
static int ctl_upsert_json(ctl_upsert_ctx_t *ctx, json_t *row);
static char *ctl_upsert_find(ctl_upsert_ctx_t *ctx, const char *sql,
    int *failed);
static int ctl_upsert_run(ctl_upsert_ctx_t *ctx, const char *sql);
static void ctl_upsert_why(ctl_upsert_ctx_t *ctx, const PGresult *result);


const ctl_upsert_t  ctl_upsert_org = {

    "SELECT (to_jsonb(o) - '{updated_at,active_programs}'::text[])::text"
    " FROM referral.organisations o WHERE $1::bigint IS NULL AND slug = $2",

    "SELECT referral.organisation_create($2, coalesce($3::jsonb ->> 'name',"
    " $2), $3::jsonb - 'name') WHERE $1::bigint IS NULL",

    "SELECT referral.organisation_update(o.id, $3::jsonb)"
    " FROM referral.organisations o WHERE $1::bigint IS NULL AND slug = $2",

    "SELECT referral.organisation_set_status(o.id, $3)"
    " FROM referral.organisations o WHERE $1::bigint IS NULL AND slug = $2"
    " AND o.status IS DISTINCT FROM $3"
};


const ctl_upsert_t  ctl_upsert_program = {

    "SELECT (to_jsonb(p) - 'updated_at')::text"
    " FROM referral.programs p"
    " WHERE p.organisation_id = $1::bigint AND p.slug = $2",

    "SELECT referral.program_create($1::bigint, $2,"
    " coalesce($3::jsonb ->> 'name', $2), $3::jsonb - 'name')",

    "SELECT referral.program_update(p.id, $3::jsonb)"
    " FROM referral.programs p"
    " WHERE p.organisation_id = $1::bigint AND p.slug = $2",

    "SELECT referral.program_set_status(p.id, $3)"
    " FROM referral.programs p"
    " WHERE p.organisation_id = $1::bigint AND p.slug = $2"
    " AND p.status IS DISTINCT FROM $3"
};


int
ctl_upsert(PGconn *pg, const ctl_upsert_t *u, const char *parent,
    json_t *row, const char **outcome, char *message, size_t size)
{
    int                rc;
    ctl_upsert_ctx_t   ctx;

    rc = ctl_pg_run(pg, "SAVEPOINT row", NULL);

    if (rc != CTL_DONE) {
        return rc;
    }

    memset(&ctx, 0, sizeof(ctl_upsert_ctx_t));

    ctx.pg = pg;
    ctx.params[0] = parent;
    ctx.message = message;
    ctx.size = size;

    *outcome = ctl_upsert_row(&ctx, u, row);

    if (*outcome == NULL) {
        *outcome = "error";
        return ctl_pg_run(pg, "ROLLBACK TO row; RELEASE row", NULL);
    }

    return ctl_pg_run(pg, "RELEASE row", NULL);
}


/* what happened, or NULL after an error */

static const char *
ctl_upsert_row(ctl_upsert_ctx_t *ctx, const ctl_upsert_t *u, json_t *row)
{
    int          failed;
    char        *before, *after, *options, *status;
    const char  *outcome, *slug;

    slug = json_string_value(json_object_get(row, "slug"));

    if (slug == NULL) {
        snprintf(ctx->message, ctx->size, "the row has no \"slug\"");
        return NULL;
    }

    if (ctl_upsert_json(ctx, row) != CTL_DONE) {
        return NULL;
    }

    slug = json_string_value(json_object_get(row, "slug"));
    status = NULL;

    if (json_object_get(row, "status") != NULL) {
        status = ctl_dup(json_string_value(json_object_get(row, "status")),
                         json_string_length(json_object_get(row, "status")));
        json_object_del(row, "status");
    }

    ctx->params[1] = ctl_dup(slug, strlen(slug));
    json_object_del(row, "slug");
    options = json_dumps(row, JSON_COMPACT);

    outcome = NULL;
    after = NULL;
    before = ctl_upsert_find(ctx, u->find, &failed);

    ctx->params[2] = options;
    failed = failed || ctl_upsert_run(ctx, before ? u->update : u->create);

    ctx->params[2] = status;
    failed = failed || (status != NULL && ctl_upsert_run(ctx, u->status));

    if (!failed) {
        after = ctl_upsert_find(ctx, u->find, &failed);
        outcome = before == NULL ? "created"
                  : (after != NULL && strcmp(before, after) == 0)
                    ? "unchanged" : "updated";
    }

    free((char *) ctx->params[1]);
    free(before);
    free(after);
    free(options);
    free(status);

    return failed ? NULL : outcome;
}


/* columns that hold JSON come as its text */

static int
ctl_upsert_json(ctl_upsert_ctx_t *ctx, json_t *row)
{
    size_t        i;
    json_t       *text, *value;
    json_error_t  error;

    static const char  *names[] = { "settings", "eligibility", "targeting" };

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        text = json_object_get(row, names[i]);

        if (text == NULL) {
            continue;
        }

        value = json_loadb(json_string_value(text), json_string_length(text),
                           JSON_DECODE_ANY, &error);

        if (value == NULL) {
            snprintf(ctx->message, ctx->size, "%s: this is no JSON: %s, at "
                     "byte %d", names[i], error.text, error.position);
            return CTL_FOUND;
        }

        json_object_set_new(row, names[i], value);
    }

    return CTL_DONE;
}


static char *
ctl_upsert_find(ctl_upsert_ctx_t *ctx, const char *sql, int *failed)
{
    char      *text;
    PGresult  *result;

    text = NULL;
    result = PQexecParams(ctx->pg, sql, 2, NULL, ctx->params, NULL, NULL, 0);
    *failed = (PQresultStatus(result) != PGRES_TUPLES_OK);

    if (*failed) {
        ctl_upsert_why(ctx, result);

    } else if (PQntuples(result)) {
        text = ctl_dup(PQgetvalue(result, 0, 0), PQgetlength(result, 0, 0));
    }

    PQclear(result);

    return text;
}


static int
ctl_upsert_run(ctl_upsert_ctx_t *ctx, const char *sql)
{
    int        failed;
    PGresult  *result;

    result = PQexecParams(ctx->pg, sql, 3, NULL, ctx->params, NULL, NULL, 0);
    failed = (PQresultStatus(result) != PGRES_TUPLES_OK);

    if (failed) {
        ctl_upsert_why(ctx, result);
    }

    PQclear(result);

    return failed;
}


static void
ctl_upsert_why(ctl_upsert_ctx_t *ctx, const PGresult *result)
{
    const char  *text, *hint;

    text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);

    snprintf(ctx->message, ctx->size, "%s%s%s",
             text ? text : PQerrorMessage(ctx->pg), hint ? ". " : "",
             hint ? hint : "");
}
