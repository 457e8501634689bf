
/*
 * Copyright (C) The nginx referral module authors
 *
 * The scripts, and what becomes of their answers.  They are sent whole each
 * time (EVAL): Redis keeps them by checksum anyway, and after a restart or
 * SCRIPT FLUSH there is no NOSCRIPT in the middle of a pipeline.
 */


#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "referral_code.h"
#include "referral_fault.h"
#include "log.h"
#include "publish_private.h"
#include "stat.h"


#define REFERRAL_PUBLISH_CHUNK   50        /* codes: above it Redis is held */
#define REFERRAL_PUBLISH_FLIGHT  8         /* scripts */
#define REFERRAL_PUBLISH_FIELDS  10

/* EVAL, script, n, keys, five words, for each code two and its fields */

#define REFERRAL_PUBLISH_WORDS                                               \
    (9 + REFERRAL_PUBLISH_CHUNK * (3 + 2 * REFERRAL_PUBLISH_FIELDS))

#define REFERRAL_PUBLISH_KEY     "referral:publisher"
#define REFERRAL_PUBLISH_PREFIX  "referral:code:"


typedef struct {
    const char  *words[REFERRAL_PUBLISH_WORDS];
    char         keys[REFERRAL_PUBLISH_CHUNK]
                     [sizeof(REFERRAL_PUBLISH_PREFIX) + REFERRAL_CODE_LEN];
    char         messages[REFERRAL_PUBLISH_CHUNK][REFERRAL_CODE_LEN + 24];
    char         count[8];
    char         fence[24];
    char         generation[24];
    char         batch[24];
    char         next[24];
    int          n;
} referral_publish_chunk_t;


static int referral_publish_chunk(referral_publish_t *p,
    referral_publish_chunk_t *c, const PGresult *res, int row, int end,
    unsigned last, unsigned ready);
static void referral_publish_code(referral_publish_chunk_t *c,
    const PGresult *res, int row, const char *version);
static void referral_publish_head(referral_publish_t *p,
    referral_publish_chunk_t *c, const char *script, int keys);
static int referral_publish_drain(referral_publish_t *p, unsigned left);
static int referral_publish_text(referral_publish_t *p, redisReply *reply);
static int64_t referral_publish_number(const redisReply *reply);


/*
 * A fence that is no number, or beyond all that ever will be, was not set by
 * a publisher.  No fence is taken twice: one that is the same was given by a
 * copy of this database.
 */

static const char  referral_publish_take_script[] =
    "local p = redis.call('HMGET', KEYS[1], 'generation', 'batch', 'ready',"
    "                     'fence')\n"
    "local f = tonumber(p[4] or '')\n"
    "if f and f >= tonumber(ARGV[1]) and f < 1e12 then\n"
    "  return {'above', p[4]}\n"
    "end\n"
    "if p[1] then redis.call('HSET', KEYS[1], 'fence', ARGV[1]) end\n"
    "return {'ok', p[1], p[2], p[3]}";

static const char  referral_publish_reset_script[] =
    "local f = redis.call('HGET', KEYS[1], 'fence')\n"
    "f = tonumber(f or '')\n"
    "if f and f > tonumber(ARGV[1]) and f < 1e12 then return 'fence' end\n"
    "redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'generation', ARGV[2],"
    "           'batch', '0', 'ready', '0')\n"
    "return 'ok'";

#define REFERRAL_PUBLISH_COMPARE                                             \
    "local p = redis.call('HMGET', KEYS[1], 'fence', 'generation',"          \
    "                     'batch')\n"                                        \
    "if not p[2] then return 'gone' end\n"                                   \
    "if ARGV[1] ~= '' and p[1] ~= ARGV[1] then\n"                            \
    "  local f = tonumber(p[1] or '') or 0\n"                                \
    "  return f > tonumber(ARGV[1]) and 'fence' or 'batch'\n"                \
    "end\n"                                                                 \
    "if p[2] ~= ARGV[2] then return 'generation' end\n"                      \
    "if ARGV[3] ~= '' and p[3] ~= ARGV[3] then return 'batch' end\n"

/*
 * A script that has deleted something may write beyond maxmemory.  So be it
 * for a few codes, which may be switched off by it; many have to respect it,
 * and set the fence to what it is, which Redis refuses then.
 */

static const char  referral_publish_write_script[] =
    REFERRAL_PUBLISH_COMPARE
    "if #KEYS > 10 then redis.call('HSET', KEYS[1], 'fence', p[1]) end\n"
    "local i = 6\n"
    "for k = 2, #KEYS do\n"
    "  local n = tonumber(ARGV[i + 1])\n"
    "  redis.call('DEL', KEYS[k])\n"
    "  if n > 0 then\n"
    "    redis.call('HSET', KEYS[k], unpack(ARGV, i + 2, i + 1 + n))\n"
    "  end\n"
    "  if ARGV[i] ~= '' then\n"
    "    redis.call('PUBLISH', 'referral:invalidate', ARGV[i])\n"
    "  end\n"
    "  i = i + 2 + n\n"
    "end\n"
    "if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'batch', ARGV[4]) end\n"
    "if ARGV[5] ~= '' then\n"
    "  redis.call('HSET', KEYS[1], 'ready', '1')\n"
    "  redis.call('PUBLISH', 'referral:invalidate', '* ' .. ARGV[2])\n"
    "end\n"
    "return 'ok'";

static const char  referral_publish_off_script[] =
    REFERRAL_PUBLISH_COMPARE
    "local same = redis.call('SCARD', KEYS[2]) == #ARGV - 3\n"
    "for i = 4, #ARGV do\n"
    "  same = same and redis.call('SISMEMBER', KEYS[2], ARGV[i]) == 1\n"
    "end\n"
    "if same then return 'ok' end\n"
    "redis.call('DEL', KEYS[2])\n"
    "for i = 4, #ARGV do redis.call('SADD', KEYS[2], ARGV[i]) end\n"
    "redis.call('PUBLISH', 'referral:invalidate', 'off')\n"
    "return 'ok'";


/* in the order of NAMES' fields; -1: the version of the batch */

static const struct {
    const char  *name;
    int          column;
} referral_publish_fields[REFERRAL_PUBLISH_FIELDS] = {
    { "url",         REFERRAL_PUBLISH_URL },
    { "state",       REFERRAL_PUBLISH_STATE },
    { "not_before",  REFERRAL_PUBLISH_NOT_BEFORE },
    { "expires",     REFERRAL_PUBLISH_EXPIRES },
    { "version",     -1 },
    { "code_id",     REFERRAL_PUBLISH_CODE_ID },
    { "program_id",  REFERRAL_PUBLISH_PROGRAM_ID },
    { "referrer_id", REFERRAL_PUBLISH_REFERRER_ID },
    { "campaign",    REFERRAL_PUBLISH_CAMPAIGN },
    { "rules",       REFERRAL_PUBLISH_RULES }
};


int
referral_publish_take(referral_publish_t *p, int64_t *generation,
    int64_t *batch, unsigned *ready, int64_t *above)
{
    int          rc;
    char         fence[24];
    redisReply  *reply;
    const char  *words[5];

    *above = 0;
    snprintf(fence, sizeof(fence), "%" PRId64, p->fence);

    words[0] = "EVAL";
    words[1] = referral_publish_take_script;
    words[2] = "1";
    words[3] = REFERRAL_PUBLISH_KEY;
    words[4] = fence;

    rc = referral_redis_command(&p->redis, 5, words, &reply);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2
        && strcmp(reply->element[0]->str, "above") == 0)
    {
        *above = referral_publish_number(reply->element[1]);

    } else if (reply->type == REDIS_REPLY_ARRAY) {

        /* a nil ends what Lua takes for the length of a table */

        *generation = reply->elements > 1
                      ? referral_publish_number(reply->element[1]) : -1;
        *batch = reply->elements > 2
                 ? referral_publish_number(reply->element[2]) : -1;
        *ready = reply->elements > 3
                 && referral_publish_number(reply->element[3]) == 1;
    }

    freeReplyObject(reply);

    return REFERRAL_OK;
}


int
referral_publish_reset(referral_publish_t *p)
{
    int          rc;
    char         fence[24], generation[24];
    redisReply  *reply;
    const char  *words[6];

    snprintf(fence, sizeof(fence), "%" PRId64, p->fence);
    snprintf(generation, sizeof(generation), "%" PRId64, p->generation);

    words[0] = "EVAL";
    words[1] = referral_publish_reset_script;
    words[2] = "1";
    words[3] = REFERRAL_PUBLISH_KEY;
    words[4] = fence;
    words[5] = generation;

    rc = referral_redis_command(&p->redis, 6, words, &reply);

    return rc == REFERRAL_OK ? referral_publish_text(p, reply) : rc;
}


int
referral_publish_look(referral_publish_t *p)
{
    int           rc;
    redisReply   *reply, *info;
    const char   *words[6];

    words[0] = "HMGET";
    words[1] = REFERRAL_PUBLISH_KEY;
    words[2] = "fence";
    words[3] = "generation";
    words[4] = "batch";
    words[5] = "ready";

    rc = referral_redis_send(&p->redis, 6, words, NULL);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    words[0] = "INFO";
    words[1] = "replication";

    rc = referral_redis_send(&p->redis, 2, words, NULL);
    if (rc == REFERRAL_OK) {
        rc = referral_redis_read(&p->redis, &reply);
    }

    if (rc != REFERRAL_OK) {
        return rc;
    }

    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 4
        || reply->element[1]->type != REDIS_REPLY_STRING)
    {
        rc = referral_publish_answer(p, "gone");

    } else if (p->fenced
               && referral_publish_number(reply->element[0]) != p->fence)
    {
        rc = referral_publish_answer(p,
                 referral_publish_number(reply->element[0]) > p->fence
                 ? "fence" : "batch");

    } else if (referral_publish_number(reply->element[1]) != p->generation) {
        rc = referral_publish_answer(p, "generation");

    } else if (p->compared
               && (referral_publish_number(reply->element[2]) != p->batch
                   || (referral_publish_number(reply->element[3]) == 1)
                      != p->ready))
    {
        rc = referral_publish_answer(p, "batch");
    }

    freeReplyObject(reply);

    if (rc != REFERRAL_OK) {
        return rc;
    }

    /* who writes to a former master writes to nobody */

    rc = referral_redis_read(&p->redis, &info);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    if (info->str != NULL && strstr(info->str, "role:slave") != NULL) {
        snprintf(p->redis.error, sizeof(p->redis.error), "READONLY it has"
                 " become a replica (give an address that leads to the"
                 " master)");
        rc = REFERRAL_ERROR;
    }

    freeReplyObject(info);

    return rc;
}


int
referral_publish_off(referral_publish_t *p, const char *members)
{
    int                         n, rc;
    char                       *copy, *word, *next;
    size_t                      len;
    redisReply                 *reply;
    const char                **words;
    referral_publish_chunk_t    c;

    len = strlen(members);
    words = malloc((8 + len / 2 + 1) * sizeof(char *));
    copy = strdup(members);

    if (words == NULL || copy == NULL) {
        free(words);
        free(copy);
        snprintf(p->redis.error, sizeof(p->redis.error), "out of memory");
        return REFERRAL_ERROR;
    }

    referral_publish_head(p, &c, referral_publish_off_script, 2);
    memcpy(words, c.words, 4 * sizeof(char *));
    words[4] = "referral:off";
    words[5] = c.fence;
    words[6] = c.generation;
    words[7] = c.batch;
    n = 8;

    for (word = strtok_r(copy, " ", &next); word != NULL;
         word = strtok_r(NULL, " ", &next))
    {
        words[n++] = word;
    }

    rc = referral_redis_command(&p->redis, n, words, &reply);

    free(words);
    free(copy);

    return rc == REFERRAL_OK ? referral_publish_text(p, reply) : rc;
}


int
referral_publish_write(referral_publish_t *p, const PGresult *res,
    unsigned ready)
{
    int                       rc, row, end, n;
    unsigned                  last;
    referral_publish_chunk_t  c;

    n = ready ? 1 : PQntuples(res);
    row = 1;

    referral_fault("publish-collected");

    do {
        end = row + REFERRAL_PUBLISH_CHUNK < n ? row + REFERRAL_PUBLISH_CHUNK
                                               : n;
        last = end >= n;

        /*
         * The last one says that the batch is whole: it waits until all the
         * others have been answered, one of which may be refused (OOM) while
         * the next is not.
         */

        rc = referral_publish_drain(p, last ? 0 : REFERRAL_PUBLISH_FLIGHT - 1);
        if (rc != REFERRAL_OK) {
            return rc;
        }

        if (referral_fault_fails("publish-stop")) {
            raise(SIGSTOP);
        }

        if (last) {
            referral_fault("publish-last");
        }

        rc = referral_publish_chunk(p, &c, res, row, end, last, ready);
        if (rc != REFERRAL_OK) {
            return rc;
        }

        referral_fault("publish-chunk");
        row = end;

    } while (!last);

    rc = referral_publish_drain(p, 0);

    if (rc == REFERRAL_OK) {
        p->batch++;
        referral_fault("publish-written");
    }

    return rc;
}


static int
referral_publish_chunk(referral_publish_t *p, referral_publish_chunk_t *c,
    const PGresult *res, int row, int end, unsigned last, unsigned ready)
{
    int  i;

    referral_publish_head(p, c, referral_publish_write_script,
                          end - row + 1);

    for (i = row; i < end; i++) {
        snprintf(c->keys[i - row], sizeof(c->keys[0]),
                 REFERRAL_PUBLISH_PREFIX "%.*s", REFERRAL_CODE_LEN,
                 PQgetvalue(res, i, REFERRAL_PUBLISH_CODE));
        c->words[c->n++] = c->keys[i - row];
    }

    c->words[c->n++] = c->fence;
    c->words[c->n++] = c->generation;
    c->words[c->n++] = c->batch;
    c->words[c->n++] = last ? c->next : "";
    c->words[c->n++] = ready ? "1" : "";

    for (i = row; i < end; i++) {

        c->messages[i - row][0] = '\0';

        if (PQgetvalue(res, i, REFERRAL_PUBLISH_LOUD)[0] == 't') {
            snprintf(c->messages[i - row], sizeof(c->messages[0]),
                     "%.*s %.20s", REFERRAL_CODE_LEN,
                     PQgetvalue(res, i, REFERRAL_PUBLISH_CODE),
                     PQgetvalue(res, 0, REFERRAL_PUBLISH_VERSION));
        }

        c->words[c->n++] = c->messages[i - row];

        referral_publish_code(c, res, i,
                              PQgetvalue(res, 0, REFERRAL_PUBLISH_VERSION));
    }

    return referral_redis_send(&p->redis, c->n, c->words, NULL);
}


static void
referral_publish_code(referral_publish_chunk_t *c, const PGresult *res,
    int row, const char *version)
{
    int          place, column;
    size_t       i;
    const char  *value;

    /* how many words follow, as text: they are always even */

    static const char  *counts[REFERRAL_PUBLISH_FIELDS + 1] = {
        "0", "2", "4", "6", "8", "10", "12", "14", "16", "18", "20"
    };

    place = c->n++;

    if (!PQgetisnull(res, row, REFERRAL_PUBLISH_URL)) {

        for (i = 0; i < REFERRAL_PUBLISH_FIELDS; i++) {
            column = referral_publish_fields[i].column;
            value = column == -1 ? version : PQgetvalue(res, row, column);

            if (value[0] != '\0') {
                c->words[c->n++] = referral_publish_fields[i].name;
                c->words[c->n++] = value;
            }
        }
    }

    c->words[place] = counts[(c->n - place - 1) / 2];
}


static void
referral_publish_head(referral_publish_t *p, referral_publish_chunk_t *c,
    const char *script, int keys)
{
    snprintf(c->count, sizeof(c->count), "%d", keys);
    snprintf(c->generation, sizeof(c->generation), "%" PRId64,
             p->generation);
    snprintf(c->next, sizeof(c->next), "%" PRId64, p->batch + 1);

    c->fence[0] = '\0';
    c->batch[0] = '\0';

    if (p->fenced) {
        snprintf(c->fence, sizeof(c->fence), "%" PRId64, p->fence);
    }

    if (p->compared) {
        snprintf(c->batch, sizeof(c->batch), "%" PRId64, p->batch);
    }

    c->words[0] = "EVAL";
    c->words[1] = script;
    c->words[2] = c->count;
    c->words[3] = REFERRAL_PUBLISH_KEY;
    c->n = 4;
}


int
referral_publish_delete(referral_publish_t *p, const char **codes, size_t n)
{
    size_t                    i, j, end;
    int                       rc;
    referral_publish_chunk_t  c;

    for (i = 0; i < n; i = end) {
        end = i + REFERRAL_PUBLISH_CHUNK < n ? i + REFERRAL_PUBLISH_CHUNK : n;

        referral_publish_head(p, &c, referral_publish_write_script,
                              (int) (end - i + 1));

        for (j = i; j < end; j++) {
            snprintf(c.keys[j - i], sizeof(c.keys[0]),
                     REFERRAL_PUBLISH_PREFIX "%.*s", REFERRAL_CODE_LEN,
                     codes[j]);
            c.words[c.n++] = c.keys[j - i];
        }

        c.words[c.n++] = c.fence;
        c.words[c.n++] = c.generation;
        c.words[c.n++] = c.batch;
        c.words[c.n++] = "";
        c.words[c.n++] = "";

        for (j = i; j < end; j++) {
            c.words[c.n++] = "";
            c.words[c.n++] = "0";
        }

        rc = referral_redis_send(&p->redis, c.n, c.words, NULL);

        if (rc == REFERRAL_OK) {
            rc = referral_publish_drain(p, REFERRAL_PUBLISH_FLIGHT - 1);
        }

        if (rc != REFERRAL_OK) {
            return rc;
        }
    }

    return referral_publish_drain(p, 0);
}


/* reads answers until no more than so many scripts are in flight */

static int
referral_publish_drain(referral_publish_t *p, unsigned left)
{
    int          rc;
    redisReply  *reply;

    while (p->redis.in_flight > left) {

        rc = referral_redis_read(&p->redis, &reply);

        if (rc == REFERRAL_OK) {
            rc = referral_publish_text(p, reply);
        }

        if (rc != REFERRAL_OK) {
            return rc;
        }
    }

    return REFERRAL_OK;
}


static int
referral_publish_text(referral_publish_t *p, redisReply *reply)
{
    int  rc;

    rc = referral_publish_answer(p, reply->str != NULL ? reply->str : "");
    freeReplyObject(reply);

    return rc;
}


int
referral_publish_answer(referral_publish_t *p, const char *word)
{
    size_t  i;

    static const struct {
        const char  *word;
        const char  *text;
    } words[] = {
        { "gone", "Redis was emptied, or is another one" },
        { "generation", "Redis holds another generation of codes" },
        { "batch", "Redis holds another state than was left there: an older"
                   " copy?" },
        { "row", "Postgres knows another state than was left there: somebody"
                 " else was there, or it is an older copy" }
    };

    if (strcmp(word, "ok") == 0) {
        return REFERRAL_OK;
    }

    p->taken = strcmp(word, "fence") == 0;

    for (i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(word, words[i].word) == 0) {
            referral_log(REFERRAL_LOG_WARN, "publish-lost", words[i].text,
                         "generation=%" PRId64 " batch=%" PRId64,
                         p->generation, p->batch);
        }
    }

    return REFERRAL_DECLINED;
}


static int64_t
referral_publish_number(const redisReply *reply)
{
    char       *end;
    long long   n;

    if (reply->type != REDIS_REPLY_STRING || reply->len == 0
        || reply->len > 15)
    {
        return -1;
    }

    n = strtoll(reply->str, &end, 10);

    return *end == '\0' ? n : -1;
}
