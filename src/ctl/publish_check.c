
/*
 * Copyright (C) The nginx referral module authors
 *
 * What differs is looked at a second time before it is told: it may have been
 * on its way.  Memory is bounded by the names of what seems to differ.
 */


#include "call.h"
#include "code_hash.h"
#include "output.h"
#include "pg.h"
#include "progress.h"
#include "publish.h"
#include "redis.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


#define CTL_CHECK_BATCH   1000             /* codes compared at once */
#define CTL_CHECK_MAX     100000           /* names kept */
#define CTL_CHECK_LISTED  10000            /* differences in JSON */
#define CTL_CHECK_PAUSE   1500             /* ms until the second look */

#define CTL_CHECK_COLUMNS                                                     \
    " p.code_id, p.url, p.state, p.not_before, p.expires, p.program_id,"      \
    " p.referrer_id, p.campaign, p.rules::text"


typedef struct {
    PGconn              *pg;
    ctl_redis_t          redis;
    ctl_progress_t       progress;
    unsigned             json;
    unsigned             second:1;         /* look: differences are told */

    char               **names;            /* that seem to differ */
    size_t               nnames;
    size_t               size;
    uint64_t             unlisted;         /* names beyond the limit */

    uint64_t             codes;            /* in Postgres */
    uint64_t             differ;
    uint64_t             foreign;          /* written by hand */
    json_t              *list;
} ctl_check_t;


static int ctl_check_codes(ctl_check_t *c);
static int ctl_check_rows(ctl_check_t *c, const PGresult *rows);
static void ctl_check_code(ctl_check_t *c, const PGresult *rows, int row,
    const redisReply *hash);
static int ctl_check_fields(ctl_check_t *c, const PGresult *rows, int row,
    const redisReply *hash);
static const redisReply *ctl_check_find(const redisReply *hash,
    const char *name);
static int ctl_check_extra(ctl_check_t *c, const char *code,
    const redisReply *hash);
static int ctl_check_keys(ctl_check_t *c);
static int ctl_check_scan(ctl_check_t *c, const redisReply *keys);
static int ctl_check_again(ctl_check_t *c);
static PGresult *ctl_check_named(ctl_check_t *c, char **names, size_t n,
    int *rc);
static void ctl_check_note(ctl_check_t *c, const char *name);
static void ctl_check_tell(ctl_check_t *c, const char *code,
    const char *field, const char *redis, size_t len, const char *postgres);
static int ctl_check_publisher(ctl_check_t *c);
static int ctl_check_generation(ctl_check_t *c, const char *generation);
static int ctl_check_off(ctl_check_t *c);
static int ctl_check_member(ctl_check_t *c, const char *member, int *off);
static int ctl_check_report(ctl_check_t *c);


/* columns of CTL_CHECK_COLUMNS, after the name */

static const char  *ctl_check_names[] = {
    "code_id", "url", "state", "not_before", "expires", "program_id",
    "referrer_id", "campaign", "rules"
};

#define CTL_CHECK_NFIELDS  9


int
ctl_publish_check(ctl_options_t *o)
{
    int          rc;
    size_t       i;
    ctl_check_t  c;

    memset(&c, 0, sizeof(ctl_check_t));

    c.json = o->json;
    c.list = json_array();

    rc = ctl_redis_open(&c.redis, o);

    if (rc == CTL_DONE) {
        rc = ctl_call_open(&c.pg, o);
    }

    /* Redis has the codes of all organisations, whatever REFERRAL_ORG says */

    if (rc == CTL_DONE) {
        rc = ctl_pg_run(c.pg, "SET referral.organisation = ''", NULL);
    }

    ctl_progress_begin(&c.progress, "codes");

    if (rc == CTL_DONE) {
        rc = ctl_check_codes(&c);
    }

    if (rc == CTL_DONE) {
        rc = ctl_check_keys(&c);
    }

    ctl_progress_end(&c.progress);

    if (rc == CTL_DONE && c.nnames) {
        usleep(CTL_CHECK_PAUSE * 1000);
        rc = ctl_check_again(&c);
    }

    c.second = 1;

    if (rc == CTL_DONE) {
        rc = ctl_check_publisher(&c);
    }

    if (rc == CTL_DONE) {
        rc = ctl_check_report(&c);
    }

    for (i = 0; i < c.nnames; i++) {
        free(c.names[i]);
    }

    free(c.names);
    json_decref(c.list);
    ctl_redis_close(&c.redis);
    PQfinish(c.pg);

    return rc;
}


/* all codes of one snapshot, through a cursor */

static int
ctl_check_codes(ctl_check_t *c)
{
    int        rc, n;
    PGresult  *rows;

    rc = ctl_pg_run(c->pg, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
                    "DECLARE codes NO SCROLL CURSOR FOR SELECT p.code,"
                    CTL_CHECK_COLUMNS " FROM referral.code_published p", NULL);

    for (n = 1; rc == CTL_DONE && n; /* void */ ) {

        rows = ctl_pg_query(c->pg, &rc, "FETCH 1000 FROM codes", 0, NULL);

        if (rows == NULL) {
            return rc;
        }

        n = PQntuples(rows);
        c->codes += n;
        rc = ctl_check_rows(c, rows);
        PQclear(rows);

        ctl_progress_show(&c->progress, c->codes, 0, 0);

        if (ctl_progress_interrupted()) {
            ctl_error("interrupted");
            return CTL_FOUND;
        }
    }

    return rc == CTL_DONE ? ctl_pg_run(c->pg, "COMMIT", NULL) : rc;
}


/* the hashes of all rows are on their way at once */

static int
ctl_check_rows(ctl_check_t *c, const PGresult *rows)
{
    int          i, rc;
    char         key[sizeof(CTL_CODE_PREFIX) + REFERRAL_CODE_LEN];
    redisReply  *hash;

    for (i = 0; i < PQntuples(rows); i++) {

        snprintf(key, sizeof(key), CTL_CODE_PREFIX "%s",
                 PQgetvalue(rows, i, 0));

        if (ctl_redis_send(&c->redis, &rc,
                           (const char *[]) { "HGETALL", key, NULL })
            != CTL_DONE)
        {
            return rc;
        }
    }

    for (i = 0; i < PQntuples(rows); i++) {

        hash = ctl_redis_reply(&c->redis, &rc);

        if (hash == NULL) {
            return rc;
        }

        ctl_check_code(c, rows, i, hash);
        freeReplyObject(hash);
    }

    return CTL_DONE;
}


static void
ctl_check_code(ctl_check_t *c, const PGresult *rows, int row,
    const redisReply *hash)
{
    const char  *code;

    code = PQgetvalue(rows, row, 0);

    if (hash->type == REDIS_REPLY_ERROR) {
        ctl_check_tell(c, code, NULL, "is no hash in Redis", 0, "");

    } else if (PQgetisnull(rows, row, 1)) {

        if (ctl_check_find(hash, "code_id") != NULL) {
            ctl_check_tell(c, code, NULL, "is in Redis, but not in Postgres",
                           0, "");
        }

    } else if (hash->elements == 0) {
        ctl_check_tell(c, code, NULL, "is in Postgres, but not in Redis", 0,
                       "");

    } else if (ctl_check_fields(c, rows, row, hash) == CTL_DONE) {
        (void) ctl_check_extra(c, code, hash);
    }
}


static int
ctl_check_fields(ctl_check_t *c, const PGresult *rows, int row,
    const redisReply *hash)
{
    int                i, rc;
    size_t             len;
    const char        *value;
    const redisReply  *field;

    rc = CTL_DONE;

    for (i = 0; i < CTL_CHECK_NFIELDS; i++) {

        value = PQgetvalue(rows, row, i + 1);
        len = PQgetlength(rows, row, i + 1);
        field = ctl_check_find(hash, ctl_check_names[i]);

        if (field == NULL ? len == 0
            : (field->len == len && memcmp(field->str, value, len) == 0))
        {
            continue;
        }

        ctl_check_tell(c, PQgetvalue(rows, row, 0), ctl_check_names[i],
                       field ? field->str : "", field ? field->len : 0,
                       value);
        rc = CTL_FOUND;
    }

    return rc;
}


static const redisReply *
ctl_check_find(const redisReply *hash, const char *name)
{
    size_t  i;

    if (hash->type != REDIS_REPLY_ARRAY) {
        return NULL;
    }

    for (i = 0; i + 1 < hash->elements; i += 2) {

        if (hash->element[i]->len == strlen(name)
            && memcmp(hash->element[i]->str, name, strlen(name)) == 0)
        {
            return hash->element[i + 1];
        }
    }

    return NULL;
}


/* a field that no publisher writes; the version is its own */

static int
ctl_check_extra(ctl_check_t *c, const char *code, const redisReply *hash)
{
    int                i;
    char               name[64];
    size_t             k;
    const redisReply  *field;

    field = ctl_check_find(hash, "version");

    if (field == NULL || field->len == 0
        || strspn(field->str, "0123456789") != field->len)
    {
        ctl_check_tell(c, code, "version", field ? field->str : "",
                       field ? field->len : 0, "a number");
        return CTL_FOUND;
    }

    for (k = 0; k + 1 < hash->elements; k += 2) {

        field = hash->element[k];

        for (i = 0; i < CTL_CHECK_NFIELDS; i++) {

            if (field->len == strlen(ctl_check_names[i])
                && memcmp(field->str, ctl_check_names[i], field->len) == 0)
            {
                break;
            }
        }

        if (i == CTL_CHECK_NFIELDS
            && (field->len != 7 || memcmp(field->str, "version", 7) != 0))
        {
            snprintf(name, sizeof(name), "%.63s", field->str);
            ctl_check_tell(c, code, name, hash->element[k + 1]->str,
                           hash->element[k + 1]->len, "");
            return CTL_FOUND;
        }
    }

    return CTL_DONE;
}


/* keys that Postgres knows nothing of */

static int
ctl_check_keys(ctl_check_t *c)
{
    int          rc;
    char        *cursor;
    redisReply  *reply;

    rc = CTL_DONE;
    cursor = ctl_dup("0", 1);

    do {
        reply = ctl_redis_command(&c->redis, &rc, (const char *[])
                                  { "SCAN", cursor, "MATCH",
                                    CTL_CODE_PREFIX "*", "COUNT", "1000",
                                    NULL });
        if (reply == NULL) {
            break;
        }

        if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2
            || reply->element[0]->type != REDIS_REPLY_STRING
            || reply->element[1]->type != REDIS_REPLY_ARRAY)
        {
            ctl_error("redis %s: this is no answer to SCAN",
                      c->redis.url.display);
            freeReplyObject(reply);
            rc = CTL_UNREACHABLE;
            break;
        }

        free(cursor);
        cursor = ctl_dup(reply->element[0]->str, reply->element[0]->len);
        rc = ctl_check_scan(c, reply->element[1]);
        freeReplyObject(reply);

        if (rc == CTL_DONE && ctl_progress_interrupted()) {
            ctl_error("interrupted");
            rc = CTL_FOUND;
        }

    } while (rc == CTL_DONE && strcmp(cursor, "0") != 0);

    free(cursor);

    return rc;
}


static int
ctl_check_scan(ctl_check_t *c, const redisReply *keys)
{
    int          rc, i;
    char       **names, key[sizeof(CTL_CODE_PREFIX) + REFERRAL_CODE_LEN];
    size_t       k, n;
    PGresult    *rows;
    redisReply  *id;

    names = ctl_alloc(keys->elements * sizeof(char *));
    n = 0;

    for (k = 0; k < keys->elements; k++) {

        names[n] = keys->element[k]->str + sizeof(CTL_CODE_PREFIX) - 1;

        /* others can be no code: nginx never asks for them */

        if (strspn(names[n], "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
            == keys->element[k]->len - (sizeof(CTL_CODE_PREFIX) - 1)
            && strlen(names[n]) <= REFERRAL_CODE_LEN)
        {
            n++;
        }
    }

    rows = n ? ctl_check_named(c, names, n, &rc) : NULL;
    free(names);

    if (n == 0 || rows == NULL) {
        return n ? rc : CTL_DONE;
    }

    rc = CTL_DONE;

    for (i = 0; rc == CTL_DONE && i < PQntuples(rows); i++) {

        if (!PQgetisnull(rows, i, 1)) {
            continue;
        }

        snprintf(key, sizeof(key), CTL_CODE_PREFIX "%s",
                 PQgetvalue(rows, i, 0));
        id = ctl_redis_command(&c->redis, &rc, (const char *[])
                               { "HGET", key, "code_id", NULL });
        if (id == NULL) {
            break;
        }

        if (id->type == REDIS_REPLY_STRING) {
            ctl_check_note(c, PQgetvalue(rows, i, 0));

        } else {
            c->foreign++;
        }

        freeReplyObject(id);
    }

    PQclear(rows);

    return rc;
}


static int
ctl_check_again(ctl_check_t *c)
{
    int        rc;
    size_t     i, n;
    PGresult  *rows;

    rc = CTL_DONE;
    c->second = 1;

    for (i = 0; rc == CTL_DONE && i < c->nnames; i += n) {

        n = c->nnames - i < CTL_CHECK_BATCH ? c->nnames - i : CTL_CHECK_BATCH;
        rows = ctl_check_named(c, &c->names[i], n, &rc);

        if (rows != NULL) {
            rc = ctl_check_rows(c, rows);
            PQclear(rows);
        }
    }

    c->differ += c->unlisted;

    return rc;
}


/* rows as the cursor has them, null where there is no such code */

static PGresult *
ctl_check_named(ctl_check_t *c, char **names, size_t n, int *rc)
{
    char        *list, *p;
    size_t       i, len;
    PGresult    *rows;
    const char  *params[1];

    len = 3;

    for (i = 0; i < n; i++) {
        len += strlen(names[i]) + 3;
    }

    list = ctl_alloc(len);
    p = list;
    *p++ = '{';

    /* NULL is a code, too */

    for (i = 0; i < n; i++) {
        p += sprintf(p, "%s\"%s\"", i ? "," : "", names[i]);
    }

    *p++ = '}';
    params[0] = list;

    rows = ctl_pg_query(c->pg, rc, "SELECT n.name," CTL_CHECK_COLUMNS
                        " FROM unnest($1::text[]) n (name)"
                        "      LEFT JOIN referral.code_published p"
                        "          ON p.code = n.name", 1, params);
    free(list);

    return rows;
}


static void
ctl_check_note(ctl_check_t *c, const char *name)
{
    if (c->nnames && strcmp(c->names[c->nnames - 1], name) == 0) {
        return;
    }

    if (c->nnames == CTL_CHECK_MAX) {
        c->unlisted++;
        return;
    }

    if (c->nnames == c->size) {
        c->size = 2 * c->size + 1024;
        c->names = ctl_realloc(c->names, c->size * sizeof(char *));
    }

    c->names[c->nnames++] = ctl_dup(name, strlen(name));
}


/* field NULL: redis is the whole sentence */

static void
ctl_check_tell(ctl_check_t *c, const char *code, const char *field,
    const char *redis, size_t len, const char *postgres)
{
    char    *one, *two;
    json_t  *difference;

    if (!c->second) {
        ctl_check_note(c, code);
        return;
    }

    if (field == NULL) {
        len = strlen(redis);
    }

    c->differ++;

    if (c->json) {

        if (json_array_size(c->list) < CTL_CHECK_LISTED) {
            difference = json_object();
            json_object_set_new(difference, "code", json_string(code));

            if (field != NULL) {
                json_object_set_new(difference, "field", json_string(field));
                json_object_set_new(difference, "redis",
                                    ctl_json_text(redis, len));
                json_object_set_new(difference, "postgres",
                                    ctl_json_text(postgres,
                                                  strlen(postgres)));

            } else {
                json_object_set_new(difference, "problem",
                                    ctl_json_text(redis, len));
            }

            json_array_append_new(c->list, difference);
        }

        return;
    }

    one = ctl_clean(redis, len);
    two = ctl_clean(postgres, strlen(postgres));

    if (field != NULL) {
        printf("%s: %s is \"%s\" in Redis, \"%s\" in Postgres\n", code, field,
               one, two);

    } else {
        printf("%s: %s\n", code, one);
    }

    free(one);
    free(two);
}


/* referral:publisher and referral:off */

static int
ctl_check_publisher(ctl_check_t *c)
{
    int          rc;
    redisReply  *reply;

    static const char  key[] = "referral:publisher";

    reply = ctl_redis_command(&c->redis, &rc, (const char *[])
                              { "HMGET", key, "generation", "ready", NULL });
    if (reply == NULL) {
        return rc;
    }

    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2
        || reply->element[0]->type != REDIS_REPLY_STRING
        || strspn(reply->element[0]->str, "0123456789")
           != reply->element[0]->len || reply->element[0]->len > 18)
    {
        ctl_check_tell(c, key, NULL, "is missing: nothing was published to "
                       "this Redis, or it was emptied", 0, "");

    } else {
        if (reply->element[1]->type != REDIS_REPLY_STRING
            || strcmp(reply->element[1]->str, "1") != 0)
        {
            ctl_check_tell(c, key, NULL, "is not ready: a full publish is at "
                           "work, or was cut off", 0, "");
        }

        rc = ctl_check_generation(c, reply->element[0]->str);
    }

    freeReplyObject(reply);

    return rc == CTL_DONE ? ctl_check_off(c) : rc;
}


static int
ctl_check_generation(ctl_check_t *c, const char *generation)
{
    int        rc;
    PGresult  *row;

    row = ctl_pg_query(c->pg, &rc, "SELECT FROM referral.publications"
                       " WHERE generation = $1::bigint", 1, &generation);

    if (row == NULL) {
        return rc;
    }

    if (PQntuples(row) == 0) {
        ctl_check_tell(c, "referral:publisher", "generation", generation,
                       strlen(generation), "unknown");
    }

    PQclear(row);

    return CTL_DONE;
}


/* who stands there is refused by every edge, whatever the hashes say */

static int
ctl_check_off(ctl_check_t *c)
{
    int          rc, off;
    size_t       i;
    redisReply  *members;

    members = ctl_redis_command(&c->redis, &rc, (const char *[])
                                { "SMEMBERS", "referral:off", NULL });
    if (members == NULL) {
        return rc;
    }

    for (i = 0; members->type == REDIS_REPLY_ARRAY && i < members->elements;
         i++)
    {
        rc = ctl_check_member(c, members->element[i]->str, &off);

        if (rc != CTL_DONE) {
            break;
        }

        if (!off) {
            ctl_check_tell(c, "referral:off", members->element[i]->str,
                           "off", 3, "on");
        }
    }

    freeReplyObject(members);

    return rc;
}


static int
ctl_check_member(ctl_check_t *c, const char *member, int *off)
{
    int          rc;
    PGresult    *row;
    const char  *id, *sql;

    *off = 0;
    id = strchr(member, ':');

    if (id == NULL || strspn(id + 1, "0123456789") != strlen(id + 1)
        || strlen(id + 1) < 1 || strlen(id + 1) > 18)
    {
        return CTL_DONE;
    }

    id++;
    sql = member[0] == 'p'
          ? "SELECT FROM referral.programs p"
            " JOIN referral.organisations o ON o.id = p.organisation_id"
            " WHERE p.id = $1::bigint AND p.status = 'active'"
            " AND o.status = 'active'"
          : "SELECT FROM referral.referrers WHERE id = $1::bigint"
            " AND status = 'active' AND eligible";

    row = ctl_pg_query(c->pg, &rc, sql, 1, &id);

    if (row != NULL) {
        *off = (PQntuples(row) == 0);
        PQclear(row);
    }

    return rc;
}


static int
ctl_check_report(ctl_check_t *c)
{
    char     codes[CTL_PROGRESS_LEN], differ[CTL_PROGRESS_LEN];
    json_t  *json;

    if (c->json) {
        json = json_object();
        json_object_set_new(json, "codes", json_integer(c->codes));
        json_object_set_new(json, "different", json_integer(c->differ));
        json_object_set_new(json, "by_hand", json_integer(c->foreign));
        json_object_set(json, "differences", c->list);
        ctl_json_print(json);

    } else {
        printf("%s codes in Postgres, %s difference%s, %" PRIu64
               " in Redis written by hand\n",
               ctl_progress_number(c->codes, codes),
               ctl_progress_number(c->differ, differ),
               c->differ == 1 ? "" : "s", c->foreign);
    }

    return c->differ ? CTL_FOUND : CTL_DONE;
}
