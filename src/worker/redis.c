
/*
 * Copyright (C) The nginx referral module authors
 */


#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "referral_redis_reply.h"
#include "redis.h"
#include "signals.h"


/* ms for each answer, the connection among them; a script takes about one */

#define REFERRAL_REDIS_TIMEOUT  5000


static int referral_redis_hello(referral_redis_t *r);
static int referral_redis_wait(referral_redis_t *r, short events,
    uint64_t deadline);
static int referral_redis_write(referral_redis_t *r, unsigned *done);
static int referral_redis_failed(referral_redis_t *r, const char *what);
static int referral_redis_refused(referral_redis_t *r, const char *text);


int
referral_redis_connect(referral_redis_t *r, const char *url,
    const char *password_file)
{
    int        rc, err;
    char       error[REFERRAL_ERROR_LEN];
    socklen_t  len;

    referral_redis_close(r);

    if (referral_redis_url_parse(&r->url, (u_char *) url, strlen(url), error)
        != REFERRAL_OK
        || (password_file[0] != '\0'
            && referral_redis_url_password(&r->url, password_file, error)
               != REFERRAL_OK))
    {
        snprintf(r->error, sizeof(r->error), "%.500s", error);
        return REFERRAL_ERROR;
    }

    if (r->url.path[0] != '\0') {
        r->c = redisConnectUnixNonBlock(r->url.path);

    } else {
        r->c = redisConnectNonBlock(r->url.host, r->url.port);
    }

    if (r->c == NULL) {
        snprintf(r->error, sizeof(r->error), "out of memory");
        return REFERRAL_ERROR;
    }

    if (r->c->err) {
        return referral_redis_failed(r, NULL);
    }

    rc = referral_redis_wait(r, POLLOUT,
                             referral_now() + REFERRAL_REDIS_TIMEOUT);
    if (rc != REFERRAL_OK) {
        return rc;
    }

    err = 0;
    len = sizeof(int);

    if (getsockopt(r->c->fd, SOL_SOCKET, SO_ERROR, &err, &len) == -1
        || err != 0)
    {
        return referral_redis_failed(r, strerror(err));
    }

    return referral_redis_hello(r);
}


static int
referral_redis_hello(referral_redis_t *r)
{
    int          rc, n;
    char         db[16];
    redisReply  *reply;
    const char  *words[3];

    rc = REFERRAL_OK;

    if (r->url.password[0] != '\0') {
        n = 0;
        words[n++] = "AUTH";

        if (r->url.user[0] != '\0') {
            words[n++] = r->url.user;
        }

        words[n++] = r->url.password;

        rc = referral_redis_command(r, n, words, &reply);
        memset(r->url.password, 0, sizeof(r->url.password));

        if (rc == REFERRAL_OK) {
            freeReplyObject(reply);
        }
    }

    if (rc == REFERRAL_OK && r->url.db != 0) {
        snprintf(db, sizeof(db), "%u", r->url.db);
        words[0] = "SELECT";
        words[1] = db;

        rc = referral_redis_command(r, 2, words, &reply);

        if (rc == REFERRAL_OK) {
            freeReplyObject(reply);
        }
    }

    if (rc != REFERRAL_OK) {
        referral_redis_close(r);
    }

    return rc;
}


void
referral_redis_close(referral_redis_t *r)
{
    if (r->c != NULL) {
        redisFree(r->c);
        r->c = NULL;
    }

    r->in_flight = 0;
}


int
referral_redis_send(referral_redis_t *r, int n, const char **words,
    const size_t *lens)
{
    unsigned  done;

    if (redisAppendCommandArgv(r->c, n, words, lens) != REDIS_OK) {
        return referral_redis_failed(r, "out of memory");
    }

    r->in_flight++;

    return referral_redis_write(r, &done);
}


int
referral_redis_read(referral_redis_t *r, redisReply **reply)
{
    int          rc;
    void        *got;
    unsigned     done;
    uint64_t     deadline;
    redisReply  *answer;

    done = 0;
    *reply = NULL;
    deadline = referral_now() + REFERRAL_REDIS_TIMEOUT;

    for ( ;; ) {

        if (redisReaderGetReply(r->c->reader, &got) != REDIS_OK) {
            return referral_redis_failed(r, "what it answers is no Redis "
                                         "protocol: is this its address?");
        }

        if (got != NULL) {
            break;
        }

        if (referral_redis_write(r, &done) != REFERRAL_OK) {
            return REFERRAL_ERROR;
        }

        rc = referral_redis_wait(r, done ? POLLIN : POLLIN|POLLOUT, deadline);
        if (rc != REFERRAL_OK) {
            return rc;
        }

        if (redisBufferRead(r->c) != REDIS_OK) {
            return referral_redis_failed(r, NULL);
        }
    }

    answer = got;
    r->in_flight--;

    if (answer->type == REDIS_REPLY_ERROR) {
        rc = referral_redis_refused(r, answer->str);
        freeReplyObject(answer);
        return rc;
    }

    *reply = answer;

    return REFERRAL_OK;
}


int
referral_redis_command(referral_redis_t *r, int n, const char **words,
    redisReply **reply)
{
    int  rc;

    *reply = NULL;

    rc = referral_redis_send(r, n, words, NULL);

    return rc == REFERRAL_OK ? referral_redis_read(r, reply) : rc;
}


static int
referral_redis_write(referral_redis_t *r, unsigned *done)
{
    int  all;

    if (redisBufferWrite(r->c, &all) != REDIS_OK) {
        return referral_redis_failed(r, NULL);
    }

    *done = all;

    return REFERRAL_OK;
}


static int
referral_redis_wait(referral_redis_t *r, short events, uint64_t deadline)
{
    int       rc;
    uint64_t  now;

    now = referral_now();

    rc = referral_wait("waiting for redis", r->c->fd, events,
                       now < deadline ? deadline - now : 0, 0);

    if (rc == REFERRAL_AGAIN) {
        return referral_redis_failed(r, "no answer within 5 seconds");
    }

    if (rc == REFERRAL_DONE) {
        referral_redis_close(r);
    }

    return rc;
}


static int
referral_redis_failed(referral_redis_t *r, const char *what)
{
    snprintf(r->error, sizeof(r->error), "%.480s", what ? what
                                                        : r->c->errstr);
    referral_redis_close(r);

    return REFERRAL_ERROR;
}


/* the link stays open: what else is in flight has its answers to come */

static int
referral_redis_refused(referral_redis_t *r, const char *text)
{
    const char  *advice;

    advice = referral_redis_advice(text);

    if (advice == NULL && strncmp(text, "WRONGTYPE", 9) == 0) {
        advice = "a key of ours holds something else: see the TYPE of"
                 " referral:publisher and referral:off";
    }

    snprintf(r->error, sizeof(r->error), "%.300s%s%.120s%s", text,
             advice ? " (" : "", advice ? advice : "", advice ? ")" : "");

    return REFERRAL_ERROR;
}
