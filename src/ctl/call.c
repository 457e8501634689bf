
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "output.h"
#include "pg.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>


#define CTL_CALL_READ   4096
#define CTL_CALL_STDIN  (1024 * 1024)


typedef struct {
    const ctl_arg_t     *arg;
    const char          *text;
} ctl_call_pair_t;


typedef struct {
    const ctl_call_t    *call;
    ctl_call_pair_t     *pairs;
    size_t               npairs;
    size_t               nparams;
    const char          *texts[CTL_CALL_OPERANDS];       /* as typed */
    char                *params[CTL_CALL_OPERANDS + 1];
    char                *org;              /* names are looked up in there */
    unsigned             keys:1;
} ctl_call_ctx_t;


static int ctl_call_parse(ctl_call_ctx_t *ctx, const ctl_options_t *o);
static size_t ctl_call_key_len(const char *text);
static int ctl_call_pair(ctl_call_ctx_t *ctx, const char *text);
static const ctl_arg_t *ctl_call_key(const ctl_call_t *call, const char *text,
    size_t len);
static int ctl_call_unknown(const ctl_call_t *call, const char *text,
    size_t len);
static int ctl_call_values(const ctl_call_ctx_t *ctx);
static int ctl_call_operand(ctl_call_ctx_t *ctx, PGconn *pg, size_t n);
static int ctl_call_object(ctl_call_ctx_t *ctx, PGconn *pg);
static int ctl_call_add(ctl_call_ctx_t *ctx, PGconn *pg, json_t *object,
    const ctl_call_pair_t *pair);
static int ctl_call_write(ctl_call_ctx_t *ctx, PGconn *pg, int json);
static char *ctl_call_stdin(void);
static void ctl_call_free(ctl_call_ctx_t *ctx);


void
ctl_call_command(const ctl_call_t *call, ctl_command_t *cmd)
{
    memset(cmd, 0, sizeof(ctl_command_t));

    cmd->noun = call->noun;
    cmd->verb = call->verb;
    cmd->summary = call->summary;
    cmd->options = CTL_OPT_DB|CTL_OPT_JSON|CTL_OPT_ACTOR|CTL_OPT_ORG;
    cmd->max = -1;
    cmd->handler = ctl_call_run;
    cmd->about = call->about;
    cmd->examples = call->examples;
    cmd->call = call;
}


void
ctl_call_usage(const ctl_call_t *call)
{
    const ctl_arg_t  *arg;

    for (arg = call->operands; arg->name != NULL; arg++) {
        printf(arg->flags & CTL_ARG_OPTIONAL ? " [%s]" : " %s", arg->name);
    }

    if (call->keys[0] != NULL) {
        printf(" [KEY=VALUE ...]");
    }
}


void
ctl_call_help(const ctl_call_t *call)
{
    size_t            i;
    const char       *p, *nl;
    const ctl_arg_t  *arg;

    if (call->keys[0] != NULL) {
        printf("Keys (\"KEY=\" without a value is null):\n\n");
    }

    for (i = 0; call->keys[i] != NULL; i++) {
        for (arg = call->keys[i]; arg->name != NULL; arg++) {

            printf("  %-20s", arg->name);

            if (strlen(arg->name) > 19) {
                printf("\n%22s", "");
            }

            for (p = arg->help; (nl = strchr(p, '\n')) != NULL; p = nl + 1) {
                printf("%.*s\n%22s", (int) (nl - p), p, "");
            }

            printf("%s\n", p);
        }
    }

    if (i) {
        printf("\n");
    }
}


int
ctl_call_run(ctl_options_t *o)
{
    int              rc;
    size_t           i;
    PGconn          *pg;
    ctl_call_ctx_t   ctx;

    memset(&ctx, 0, sizeof(ctl_call_ctx_t));

    ctx.call = o->call;
    pg = NULL;

    rc = ctl_call_parse(&ctx, o);

    if (rc == CTL_USAGE) {
        fprintf(stderr, "See: referralctl %s%s%s --help\n", o->call->noun,
                o->call->verb[0] ? " " : "", o->call->verb);
    }

    if (rc == CTL_DONE) {
        rc = ctl_call_open(&pg, o);
    }

    for (i = 0; rc == CTL_DONE && i < ctx.nparams; i++) {
        rc = ctl_call_operand(&ctx, pg, i);
    }

    if (rc == CTL_DONE && ctx.keys) {
        rc = ctl_call_object(&ctx, pg);
    }

    if (rc == CTL_DONE) {

        if (o->call->print == CTL_PRINT_LIST
            || o->call->print == CTL_PRINT_PROBLEMS)
        {
            rc = ctl_call_stream(o->call, pg, ctx.nparams + ctx.keys,
                                 (const char **) ctx.params, o->json);

        } else {
            rc = ctl_call_write(&ctx, pg, o->json);
        }
    }

    PQfinish(pg);
    ctl_call_free(&ctx);

    return rc;
}


int
ctl_call_open(PGconn **pg, const ctl_options_t *o)
{
    int          rc;
    char        *id, *org;
    PGresult    *result;
    const char  *params[1];

    rc = ctl_pg_open(pg, o);

    if (rc != CTL_DONE) {
        return rc;
    }

    params[0] = o->actor;

    result = ctl_pg_query(*pg, &rc,
                          "SELECT"
                          " set_config('client_encoding', 'UTF8', false),"
                          " set_config('TimeZone', 'UTC', false),"
                          " set_config('DateStyle', 'ISO, YMD', false),"
                          " set_config('IntervalStyle', 'postgres', false),"
                          " CASE WHEN $1 <> '' THEN"
                          " set_config('referral.actor', $1, false) END",
                          1, params);

    if (result != NULL && o->org != NULL) {
        id = NULL;
        org = NULL;

        rc = ctl_call_resolve(*pg, CTL_ARG_ORG, o->org, &org, &id);

        if (rc == CTL_DONE) {
            params[0] = id;

            PQclear(result);
            result = ctl_pg_query(*pg, &rc, "SELECT set_config("
                                  "'referral.organisation', $1, false)", 1,
                                  params);
        }

        free(id);
        free(org);
    }

    PQclear(result);

    if (rc != CTL_DONE) {
        PQfinish(*pg);
        *pg = NULL;
    }

    return rc;
}


/* sorts what was typed into operands and pairs */

static int
ctl_call_parse(ctl_call_ctx_t *ctx, const ctl_options_t *o)
{
    int               i, rc;
    const ctl_arg_t  *arg;

    arg = ctx->call->operands;
    ctx->keys = (ctx->call->keys[0] != NULL);
    ctx->pairs = ctl_alloc(o->argc * sizeof(ctl_call_pair_t));

    while (arg[ctx->nparams].name != NULL) {
        ctx->nparams++;
    }

    for (i = 0; i < o->argc; i++) {

        /* an operand that must be there may look like a pair */

        if (arg->name != NULL
            && (!(arg->flags & CTL_ARG_OPTIONAL)
                || !ctx->keys || ctl_call_key_len(o->argv[i]) == 0))
        {
            ctx->texts[arg - ctx->call->operands] = o->argv[i];
            arg++;
            continue;
        }

        if (!ctx->keys) {
            ctl_error("%s %s: \"%s\" is too much", ctx->call->noun,
                      ctx->call->verb, o->argv[i]);
            return CTL_USAGE;
        }

        rc = ctl_call_pair(ctx, o->argv[i]);

        if (rc != CTL_DONE) {
            return rc;
        }
    }

    if (arg->name != NULL && !(arg->flags & CTL_ARG_OPTIONAL)) {
        ctl_error("%s %s needs: %s", ctx->call->noun, ctx->call->verb,
                  arg->name);
        return CTL_USAGE;
    }

    return ctl_call_values(ctx);
}


/* the length of KEY in KEY=VALUE, or 0 */

static size_t
ctl_call_key_len(const char *text)
{
    size_t  n;

    for (n = 0; islower((u_char) text[n]) || text[n] == '_'
                || (n && isdigit((u_char) text[n])); n++)
    {
        /* void */
    }

    return text[n] == '=' ? n : 0;
}


static int
ctl_call_pair(ctl_call_ctx_t *ctx, const char *text)
{
    size_t            i, len;
    const ctl_arg_t  *arg;

    len = strcspn(text, "=");

    if (text[len] == '\0') {
        ctl_error("\"%s\": KEY=VALUE is expected", text);
        return CTL_USAGE;
    }

    arg = ctl_call_key(ctx->call, text, len);

    if (arg == NULL) {
        return ctl_call_unknown(ctx->call, text, len);
    }

    for (i = 0; i < ctx->npairs; i++) {

        if (ctx->pairs[i].arg == arg) {
            ctl_error("%s is given twice", arg->name);
            return CTL_USAGE;
        }
    }

    ctx->pairs[ctx->npairs].arg = arg;
    ctx->pairs[ctx->npairs++].text = &text[len + 1];

    return CTL_DONE;
}


static const ctl_arg_t *
ctl_call_key(const ctl_call_t *call, const char *text, size_t len)
{
    size_t            i;
    const ctl_arg_t  *arg;

    for (i = 0; call->keys[i] != NULL; i++) {
        for (arg = call->keys[i]; arg->name != NULL; arg++) {

            if (strlen(arg->name) == len && memcmp(arg->name, text, len) == 0)
            {
                return arg;
            }
        }
    }

    return NULL;
}


static int
ctl_call_unknown(const ctl_call_t *call, const char *text, size_t len)
{
    char              list[1024];
    size_t            i, n;
    const ctl_arg_t  *arg;

    n = 0;

    for (i = 0; call->keys[i] != NULL; i++) {
        for (arg = call->keys[i]; arg->name != NULL; arg++) {

            if (n < sizeof(list)) {
                n += snprintf(&list[n], sizeof(list) - n, "%s%s",
                              n ? ", " : "", arg->name);
            }
        }
    }

    ctl_error("%s %s: there is no key \"%.*s\"; keys are %s", call->noun,
              call->verb, (int) len, text, list);

    return CTL_USAGE;
}


/* before any server is asked */

static int
ctl_call_values(const ctl_call_ctx_t *ctx)
{
    int                     rc;
    size_t                  i;
    json_t                 *value;
    const ctl_call_pair_t  *pair;

    for (i = 0; i < ctx->npairs; i++) {
        pair = &ctx->pairs[i];

        rc = ctl_call_value(pair->arg->name, pair->arg->type, pair->text,
                            &value);
        if (rc != CTL_DONE) {
            return rc;
        }

        json_decref(value);
    }

    return CTL_DONE;
}


static int
ctl_call_operand(ctl_call_ctx_t *ctx, PGconn *pg, size_t n)
{
    int               rc;
    char             *text;
    json_t           *value;
    const ctl_arg_t  *arg;

    arg = &ctx->call->operands[n];

    if (ctx->texts[n] == NULL) {
        return CTL_DONE;
    }

    if ((arg->flags & CTL_ARG_STDIN) && strcmp(ctx->texts[n], "-") == 0) {
        text = ctl_call_stdin();

    } else {
        text = ctl_dup(ctx->texts[n], strlen(ctx->texts[n]));
    }

    if (arg->type >= CTL_ARG_ORG && arg->type < CTL_ARG_ID) {
        rc = ctl_call_resolve(pg, arg->type, text, &ctx->org, &ctx->params[n]);
        free(text);
        return rc;
    }

    rc = ctl_call_value(arg->name, arg->type, text, &value);

    if (rc == CTL_DONE) {

        if (json_is_string(value)) {
            ctx->params[n] = ctl_dup(json_string_value(value),
                                     json_string_length(value));

        } else if (!json_is_null(value)) {
            ctx->params[n] = json_dumps(value, JSON_ENCODE_ANY|JSON_COMPACT);
        }

        json_decref(value);
    }

    free(text);

    return rc;
}


static int
ctl_call_object(ctl_call_ctx_t *ctx, PGconn *pg)
{
    int      rc;
    size_t   i;
    json_t  *object;

    rc = CTL_DONE;
    object = json_object();

    for (i = 0; rc == CTL_DONE && i < ctx->npairs; i++) {
        rc = ctl_call_add(ctx, pg, object, &ctx->pairs[i]);
    }

    ctx->params[ctx->nparams] = json_dumps(object, JSON_COMPACT);
    json_decref(object);

    return rc;
}


static int
ctl_call_add(ctl_call_ctx_t *ctx, PGconn *pg, json_t *object,
    const ctl_call_pair_t *pair)
{
    int      rc;
    char    *id, *org, name[64];
    json_t  *value, *unit, *contact;

    if (pair->arg->type >= CTL_ARG_ORG && pair->arg->type < CTL_ARG_ID
        && pair->text[0] != '\0')
    {
        /* one of another organisation is left to the function's words */

        id = NULL;
        org = ctx->org ? ctl_dup(ctx->org, strlen(ctx->org)) : NULL;
        rc = ctl_call_resolve(pg, pair->arg->type, pair->text, &org, &id);

        if (rc == CTL_DONE && ctx->org == NULL) {
            ctx->org = org;
            org = NULL;
        }

        value = rc == CTL_DONE ? json_integer(strtoll(id, NULL, 10)) : NULL;

        free(org);
        free(id);

    } else if (pair->arg->type == CTL_ARG_MONEY && pair->text[0] != '\0') {
        rc = ctl_call_money(pg, pair->arg->name, pair->text, &value, &unit);

        if (rc == CTL_DONE) {
            snprintf(name, sizeof(name), "%s_unit", pair->arg->name);
            json_object_set_new(object, name, unit);
        }

    } else {
        rc = ctl_call_value(pair->arg->name, pair->arg->type, pair->text,
                            &value);
    }

    if (rc != CTL_DONE) {
        return rc;
    }

    if (pair->arg->flags & CTL_ARG_CONTACT) {
        contact = json_object_get(object, "contact");

        if (contact == NULL) {
            contact = json_object();
            json_object_set_new(object, "contact", contact);
        }

        object = contact;
    }

    json_object_set_new(object, pair->arg->name, value);

    return CTL_DONE;
}


/* all or nothing, and nothing is printed that was not committed */

static int
ctl_call_write(ctl_call_ctx_t *ctx, PGconn *pg, int json)
{
    int          rc;
    PGresult    *result, *shown;
    const char  *params[1];

    rc = ctl_pg_run(pg, "BEGIN", NULL);

    if (rc != CTL_DONE) {
        return rc;
    }

    result = ctl_pg_query(pg, &rc, ctx->call->sql, ctx->nparams + ctx->keys,
                          (const char **) ctx->params);

    if (result != NULL && ctx->call->then != NULL) {
        params[0] = PQntuples(result) && !PQgetisnull(result, 0, 0)
                    ? PQgetvalue(result, 0, 0) : NULL;
        shown = ctl_pg_query(pg, &rc, ctx->call->then, 1, params);

        PQclear(result);
        result = shown;
    }

    if (result != NULL) {
        rc = ctl_pg_run(pg, "COMMIT", NULL);
    }

    if (rc == CTL_DONE) {
        rc = ctl_call_print(ctx->call, result, json);
    }

    PQclear(result);

    return rc;
}


/* all of it, without the end of its last line */

static char *
ctl_call_stdin(void)
{
    char    *text;
    size_t   len, n;

    text = NULL;
    len = 0;

    do {
        text = ctl_realloc(text, len + CTL_CALL_READ + 1);
        n = fread(text + len, 1, CTL_CALL_READ, stdin);
        len += n;
    } while (n == CTL_CALL_READ && len < CTL_CALL_STDIN);

    while (len && (text[len - 1] == '\n' || text[len - 1] == '\r')) {
        len--;
    }

    text[len] = '\0';

    return text;
}


static void
ctl_call_free(ctl_call_ctx_t *ctx)
{
    size_t  i;

    for (i = 0; i <= CTL_CALL_OPERANDS; i++) {
        free(ctx->params[i]);
    }

    free(ctx->pairs);
    free(ctx->org);
}
