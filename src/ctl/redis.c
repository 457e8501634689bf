
/*
 * Copyright (C) The nginx referral module authors
 */


#include "redis.h"
#include "output.h"
#include "referral_redis_reply.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>


#define CTL_REDIS_TIMEOUT  5               /* seconds, for each step */


static int ctl_redis_hello(ctl_redis_t *r);
static int ctl_redis_failed(ctl_redis_t *r);
static int ctl_redis_refused(ctl_redis_t *r, const char *reply);


int
ctl_redis_open(ctl_redis_t *r, const ctl_options_t *o)
{
    int             rc;
    char            error[REFERRAL_ERROR_LEN];
    struct timeval  tv;

    memset(r, 0, sizeof(ctl_redis_t));

    if (o->redis == NULL) {
        ctl_error("which Redis?  Give --redis URL or set REFERRAL_REDIS, for "
                  "example redis://127.0.0.1:6379");
        return CTL_USAGE;
    }

    if (referral_redis_url_parse(&r->url, (u_char *) o->redis,
                                 strlen(o->redis), error)
        != REFERRAL_OK)
    {
        ctl_error("--redis: %s", error);
        return CTL_USAGE;
    }

    if (o->redis_password_file != NULL
        && referral_redis_url_password(&r->url, o->redis_password_file, error)
           != REFERRAL_OK)
    {
        ctl_error("--redis-password-file %s", error);
        return CTL_USAGE;
    }

    tv.tv_sec = CTL_REDIS_TIMEOUT;
    tv.tv_usec = 0;

    if (r->url.path[0] != '\0') {
        r->c = redisConnectUnixWithTimeout(r->url.path, tv);

    } else {
        r->c = redisConnectWithTimeout(r->url.host, r->url.port, tv);
    }

    if (r->c == NULL) {
        ctl_error("out of memory");
        exit(1);
    }

    if (r->c->err || redisSetTimeout(r->c, tv) != REDIS_OK) {
        rc = ctl_redis_failed(r);

    } else {
        rc = ctl_redis_hello(r);
    }

    if (rc != CTL_DONE) {
        ctl_redis_close(r);
    }

    return rc;
}


static int
ctl_redis_hello(ctl_redis_t *r)
{
    int          rc, n;
    char         db[16];
    redisReply  *reply;
    const char  *words[4];

    if (r->url.password[0] != '\0') {

        n = 0;
        words[n++] = "AUTH";

        if (r->url.user[0] != '\0') {
            words[n++] = r->url.user;
        }

        words[n++] = r->url.password;
        words[n] = NULL;

        reply = ctl_redis_command(r, &rc, words);

        if (reply == NULL) {
            return CTL_UNREACHABLE;
        }

        freeReplyObject(reply);
    }

    if (r->url.db != 0) {
        snprintf(db, sizeof(db), "%u", r->url.db);

        reply = ctl_redis_command(r, &rc,
                                  (const char *[]) { "SELECT", db, NULL });
        if (reply == NULL) {
            return CTL_UNREACHABLE;
        }

        freeReplyObject(reply);
    }

    return CTL_DONE;
}


void
ctl_redis_close(ctl_redis_t *r)
{
    if (r->c != NULL) {
        redisFree(r->c);
        r->c = NULL;
    }
}


redisReply *
ctl_redis_command(ctl_redis_t *r, int *rc, const char **words)
{
    *rc = ctl_redis_send(r, rc, words);

    return *rc == CTL_DONE ? ctl_redis_read(r, rc) : NULL;
}


int
ctl_redis_send(ctl_redis_t *r, int *rc, const char **words)
{
    int  n;

    for (n = 0; words[n] != NULL; n++) { /* void */ }

    *rc = CTL_DONE;

    if (redisAppendCommandArgv(r->c, n, words, NULL) != REDIS_OK) {
        *rc = ctl_redis_failed(r);
    }

    return *rc;
}


redisReply *
ctl_redis_read(ctl_redis_t *r, int *rc)
{
    redisReply  *reply;

    reply = ctl_redis_reply(r, rc);

    if (reply != NULL && reply->type == REDIS_REPLY_ERROR) {
        *rc = ctl_redis_refused(r, reply->str);
        freeReplyObject(reply);
        return NULL;
    }

    return reply;
}


redisReply *
ctl_redis_reply(ctl_redis_t *r, int *rc)
{
    void  *reply;

    reply = NULL;
    *rc = CTL_DONE;

    if (redisGetReply(r->c, &reply) != REDIS_OK || reply == NULL) {
        *rc = ctl_redis_failed(r);
        return NULL;
    }

    return reply;
}


static int
ctl_redis_failed(ctl_redis_t *r)
{
    const char  *why;

    why = r->c->errstr;

    if (r->c->err == REDIS_ERR_IO
        && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ETIMEDOUT
            || errno == EINPROGRESS))
    {
        why = "no answer within 5 seconds";
    }

#ifdef REDIS_ERR_TIMEOUT

    if (r->c->err == REDIS_ERR_TIMEOUT) {
        why = "no answer within 5 seconds";
    }

#endif

    ctl_error("redis %s: %s", r->url.display, why);

    return CTL_UNREACHABLE;
}


static int
ctl_redis_refused(ctl_redis_t *r, const char *reply)
{
    const char  *advice;

    advice = referral_redis_advice(reply);

    if (advice != NULL) {
        ctl_error("redis %s: %s (%s)", r->url.display, reply, advice);
        return CTL_UNREACHABLE;
    }

    ctl_error("redis %s: %s", r->url.display, reply);

    return CTL_FOUND;
}
