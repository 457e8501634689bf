
/*
 * Copyright (C) The nginx referral module authors
 *
 * The link: connecting and greeting, bytes out and in, replies.
 */


#include "ngx_http_referral_redis_private.h"


#define NGX_HTTP_REFERRAL_REDIS_OUT       (1024 * 1024)  /* bytes unsent */
#define NGX_HTTP_REFERRAL_REDIS_OPS       16384          /* in flight */
#define NGX_HTTP_REFERRAL_REDIS_REPLY     (1024 * 1024)  /* bytes */
#define NGX_HTTP_REFERRAL_REDIS_ELEMENTS  8192           /* of an array */
#define NGX_HTTP_REFERRAL_REDIS_READ      16384          /* bytes at a time */


static void ngx_http_referral_redis_socket(ngx_http_referral_redis_t *link,
    ngx_connection_t *c);
static ngx_err_t ngx_http_referral_redis_connect_error(ngx_connection_t *c);
static void ngx_http_referral_redis_connected(
    ngx_http_referral_redis_t *link);
static ngx_int_t ngx_http_referral_redis_greet(
    ngx_http_referral_redis_t *link);
static ngx_int_t ngx_http_referral_redis_append(
    ngx_http_referral_redis_t *link, const char *data, size_t len);
static void ngx_http_referral_redis_write_handler(ngx_event_t *wev);
static void ngx_http_referral_redis_read_handler(ngx_event_t *rev);
static ngx_int_t ngx_http_referral_redis_parse(
    ngx_http_referral_redis_t *link, u_char *data, size_t len);
static ngx_int_t ngx_http_referral_redis_process(
    ngx_http_referral_redis_t *link, redisReply *reply);
static ngx_uint_t ngx_http_referral_redis_is_push(redisReply *reply);
static ngx_int_t ngx_http_referral_redis_answer(
    ngx_http_referral_redis_t *link, ngx_http_referral_redis_op_e type,
    redisReply *reply, ngx_uint_t late);
static ngx_uint_t ngx_http_referral_redis_refusal(
    ngx_http_referral_redis_op_e type, redisReply *reply);
#if (HIREDIS_MAJOR >= 1)
static void *ngx_http_referral_redis_array(const redisReadTask *task,
    size_t elements);
#else
static void *ngx_http_referral_redis_array(const redisReadTask *task,
    int elements);
#endif


/*
 * What a server says when it cannot serve reads now, or not to us.  No
 * command would fare better, so the link is given up and tried again later.
 */

static ngx_str_t  ngx_http_referral_redis_refusals[] = {
    ngx_string("LOADING "),
    ngx_string("READONLY "),
    ngx_string("MASTERDOWN "),
    ngx_string("NOAUTH "),
    ngx_string("WRONGPASS "),
    ngx_string("NOPERM "),
    ngx_string("OOM "),
    ngx_string("MOVED "),
    ngx_string("ASK "),
    ngx_string("CLUSTERDOWN "),
    ngx_string("BUSY "),
    ngx_string("NOPROTO "),
    ngx_string("DENIED "),
    ngx_string("ERR max number of clients"),
    ngx_string("ERR max clients"),
    ngx_string("ERR invalid password"),
    ngx_string("ERR operation not permitted"),
    ngx_null_string
};


void
ngx_http_referral_redis_connect(ngx_http_referral_redis_t *link)
{
    ngx_int_t          rc;
    ngx_err_t          err;
    ngx_uint_t         level;
    ngx_addr_t        *addr;
    ngx_connection_t  *c;

    if (link->leader) {
        link->addr = link->leader->addr;
    }

    addr = &link->conf->addrs[link->addr];

    ngx_memzero(&link->peer, sizeof(ngx_peer_connection_t));

    link->peer.sockaddr = addr->sockaddr;
    link->peer.socklen = addr->socklen;
    link->peer.name = &addr->name;
    link->peer.get = ngx_event_get_peer;
    link->peer.log = &link->log;
    link->peer.log_error = NGX_ERROR_INFO;
    link->peer.so_keepalive = 1;

    link->log.action = "connecting to";

    /*
     * The core would write an error for each attempt, we write one for each
     * change of state; a debug log shows everything.
     */

    level = link->log.log_level;

    if (level < NGX_LOG_DEBUG) {
        link->log.log_level = ngx_min(level, NGX_LOG_ALERT);
    }

    ngx_set_errno(0);

    rc = ngx_event_connect_peer(&link->peer);

    err = ngx_socket_errno;

    link->log.log_level = level;

    ngx_http_referral_count(redis_connects);

    link->state = NGX_HTTP_REFERRAL_REDIS_CONNECTING;

    if (rc == NGX_ERROR || rc == NGX_BUSY || rc == NGX_DECLINED) {
        link->peer.connection = NULL;

        if (err) {
            ngx_http_referral_redis_errno(link, err);

        } else {
            ngx_http_referral_redis_reason(link, "no connection is free");
        }

        ngx_http_referral_redis_fail(link);
        return;
    }

    /* rc == NGX_OK || rc == NGX_AGAIN */

    c = link->peer.connection;

    c->data = link;
    c->read->handler = ngx_http_referral_redis_read_handler;
    c->write->handler = ngx_http_referral_redis_write_handler;

    /* of connecting and greeting; must not hold an exiting worker */

    c->read->cancelable = 1;

    ngx_add_timer(c->read, link->conf->connect_timeout);

    ngx_http_referral_redis_socket(link, c);

    link->reader = redisReaderCreate();

    if (link->reader == NULL) {
        ngx_http_referral_redis_reason(link, "no memory");
        ngx_http_referral_redis_fail(link);
        return;
    }

    link->defaults = link->reader->fn;
    link->functions = *link->defaults;
    link->functions.createArray = ngx_http_referral_redis_array;
    link->reader->fn = &link->functions;
    link->reader->privdata = link;

    if (ngx_http_referral_redis_greet(link) != NGX_OK) {
        ngx_http_referral_redis_reason(link, "no memory");
        ngx_http_referral_redis_fail(link);
        return;
    }

    if (rc == NGX_OK) {
        ngx_http_referral_redis_connected(link);
    }
}


static void
ngx_http_referral_redis_socket(ngx_http_referral_redis_t *link,
    ngx_connection_t *c)
{
    int  value;

    if (link->peer.sockaddr->sa_family == AF_UNIX) {
        return;
    }

    (void) ngx_tcp_nodelay(c);

    /* a peer that vanished is noticed, whoever has something to send */

#if (NGX_HAVE_KEEPALIVE_TUNABLE)

    value = 30;
    (void) setsockopt(c->fd, IPPROTO_TCP, TCP_KEEPIDLE,
                      (const void *) &value, sizeof(int));
    value = 10;
    (void) setsockopt(c->fd, IPPROTO_TCP, TCP_KEEPINTVL,
                      (const void *) &value, sizeof(int));
    value = 3;
    (void) setsockopt(c->fd, IPPROTO_TCP, TCP_KEEPCNT,
                      (const void *) &value, sizeof(int));

#endif

#ifdef TCP_USER_TIMEOUT

    value = (int) ngx_max(10000, ngx_min(link->conf->connect_timeout, 60000));
    (void) setsockopt(c->fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
                      (const void *) &value, sizeof(int));

#endif

    (void) value;
}


static ngx_err_t
ngx_http_referral_redis_connect_error(ngx_connection_t *c)
{
    int        err;
    socklen_t  len;

    err = 0;
    len = sizeof(int);

    /* Solaris returns -1 and sets errno */

    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, (void *) &err, &len) == -1) {
        err = ngx_socket_errno;
    }

    return err;
}


static void
ngx_http_referral_redis_connected(ngx_http_referral_redis_t *link)
{
    link->state = NGX_HTTP_REFERRAL_REDIS_GREETING;
    link->log.action = "greeting";

    ngx_post_event(link->peer.connection->write, &ngx_posted_events);
}


/*
 * Pipelined, together with the commands that wait already: a refusal is read
 * before the replies to these, and closes the link.  So nothing is ever taken
 * from a wrong database.  The probe is the kind of read that lookups make:
 * only it shows that the server has its data and lets us read.
 */

static ngx_int_t
ngx_http_referral_redis_greet(ngx_http_referral_redis_t *link)
{
    int                    argc;
    size_t                 argvlen[3];
    u_char                 text[64];
    const char            *argv[3];
    referral_redis_url_t  *url;

    url = &link->conf->url;

    if (url->password[0]) {
        argc = 0;
        argv[argc++] = "AUTH";

        if (url->user[0]) {
            argv[argc++] = url->user;
        }

        argv[argc++] = url->password;

        if (ngx_http_referral_redis_ask(link, NGX_HTTP_REFERRAL_REDIS_OP_AUTH,
                                        argc, argv, NULL, NULL, NULL)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    if (url->db) {
        argv[0] = "SELECT";
        argvlen[0] = sizeof("SELECT") - 1;
        argv[1] = (char *) text;
        argvlen[1] = ngx_sprintf(text, "%ui", (ngx_uint_t) url->db) - text;

        if (ngx_http_referral_redis_ask(link,
                                        NGX_HTTP_REFERRAL_REDIS_OP_SELECT,
                                        2, argv, argvlen, NULL, NULL)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    argv[0] = "CLIENT";
    argvlen[0] = sizeof("CLIENT") - 1;
    argv[1] = "SETNAME";
    argvlen[1] = sizeof("SETNAME") - 1;
    argv[2] = (char *) text;
    argvlen[2] = ngx_snprintf(text, sizeof(text), "referral-%P-%s", ngx_pid,
                              link->use->name)
                 - text;

    if (ngx_http_referral_redis_ask(link, NGX_HTTP_REFERRAL_REDIS_OP_NAME,
                                    3, argv, argvlen, NULL, NULL)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (link->use->greet) {
        link->use->greet(link);
    }

    return ngx_http_referral_redis_probe(link);
}


ngx_int_t
ngx_http_referral_redis_probe(ngx_http_referral_redis_t *link)
{
    ngx_int_t           rc;
    static const char  *argv[] = { "HMGET", "referral:publisher",
                                   "generation", "ready" };

    rc = ngx_http_referral_redis_ask(link, NGX_HTTP_REFERRAL_REDIS_OP_PROBE,
                                     4, argv, NULL, link->use->probe, NULL);

    link->probing = (rc == NGX_OK);

    return rc;
}


ngx_int_t
ngx_http_referral_redis_ask(ngx_http_referral_redis_t *link,
    ngx_http_referral_redis_op_e type, int argc, const char **argv,
    const size_t *argvlen, ngx_http_referral_redis_pt handler, void *data)
{
    int                            len;
    char                          *cmd;
    ngx_int_t                      rc;
    ngx_uint_t                     first;
    ngx_queue_t                   *q;
    ngx_http_referral_redis_op_t  *op;

    if (link->nops >= NGX_HTTP_REFERRAL_REDIS_OPS) {
        return NGX_DECLINED;
    }

    if (ngx_queue_empty(&link->spare)) {
        op = ngx_alloc(sizeof(ngx_http_referral_redis_op_t), &link->log);
        if (op == NULL) {
            return NGX_ERROR;
        }

    } else {
        q = ngx_queue_head(&link->spare);
        ngx_queue_remove(q);
        op = ngx_queue_data(q, ngx_http_referral_redis_op_t, queue);
    }

    cmd = NULL;
    len = redisFormatCommandArgv(&cmd, argc, argv, argvlen);

    if (len < 0) {
        ngx_queue_insert_head(&link->spare, &op->queue);
        return NGX_ERROR;
    }

    rc = ngx_http_referral_redis_append(link, cmd, len);

    if (type == NGX_HTTP_REFERRAL_REDIS_OP_AUTH) {
        ngx_explicit_memzero(cmd, len);
    }

    redisFreeCommand(cmd);

    if (rc != NGX_OK) {
        ngx_queue_insert_head(&link->spare, &op->queue);
        return rc;
    }

    op->sent = ngx_current_msec;
    op->started = ngx_http_referral_stat_clock();
    op->type = type;
    op->handler = handler;
    op->data = data;

    first = ngx_queue_empty(&link->ops);

    ngx_queue_insert_tail(&link->ops, &op->queue);
    link->nops++;

    if (first) {
        ngx_http_referral_redis_set_deadline(link);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_redis_append(ngx_http_referral_redis_t *link,
    const char *data, size_t len)
{
    size_t   used, size;
    u_char  *p;

    used = link->last - link->pos;

    if (len > NGX_HTTP_REFERRAL_REDIS_OUT - used) {
        return NGX_DECLINED;
    }

    if (len > (size_t) (link->end - link->last)) {

        size = link->end - link->out;

        if (used + len > size / 2) {
            size = ngx_max(size * 2, 16384);
            size = ngx_max(size, used + len);
        }

        p = ngx_alloc(size, &link->log);
        if (p == NULL) {
            return NGX_ERROR;
        }

        if (link->out != NULL) {
            ngx_memcpy(p, link->pos, used);

            ngx_explicit_memzero(link->out, link->last - link->out);
            ngx_free(link->out);
        }

        link->out = p;
        link->pos = p;
        link->last = p + used;
        link->end = p + size;
    }

    link->last = ngx_cpymem(link->last, data, len);

    return NGX_OK;
}


static void
ngx_http_referral_redis_write_handler(ngx_event_t *wev)
{
    ssize_t                     n;
    ngx_err_t                   err;
    ngx_connection_t           *c;
    ngx_http_referral_redis_t  *link;

    c = wev->data;
    link = c->data;

    if (link->state == NGX_HTTP_REFERRAL_REDIS_CONNECTING) {

        err = ngx_http_referral_redis_connect_error(c);

        if (err) {
            ngx_http_referral_redis_errno(link, err);
            ngx_http_referral_redis_fail(link);
            return;
        }

        ngx_http_referral_redis_connected(link);
        return;
    }

    while (link->pos < link->last && wev->ready) {

        n = c->send(c, link->pos, link->last - link->pos);

        if (n == NGX_ERROR) {

            /* a server that refuses says why before it closes */

            link->broken = 1;
            link->pos = link->last;
            c->read->ready = 1;

            ngx_post_event(c->read, &ngx_posted_events);
            return;
        }

        if (n == NGX_AGAIN) {
            break;
        }

        link->pos += n;
    }

    if (link->pos == link->last && link->pos != link->out) {

        /* a password may have gone out */

        if (link->state == NGX_HTTP_REFERRAL_REDIS_GREETING) {
            ngx_explicit_memzero(link->out, link->last - link->out);
        }

        link->pos = link->out;
        link->last = link->out;
    }

    if (ngx_handle_write_event(wev, 0) != NGX_OK) {
        ngx_http_referral_redis_reason(link, "events failed");
        ngx_http_referral_redis_fail(link);
    }
}


static void
ngx_http_referral_redis_read_handler(ngx_event_t *rev)
{
    u_char                      buf[NGX_HTTP_REFERRAL_REDIS_READ];
    ssize_t                     n;
    ngx_connection_t           *c;
    ngx_http_referral_redis_t  *link;

    c = rev->data;
    link = c->data;

    if (c->close) {

        /* worker_shutdown_timeout */

        ngx_http_referral_redis_close(link);
        return;
    }

    if (rev->timedout) {
        ngx_http_referral_redis_reason(link,
                       link->state == NGX_HTTP_REFERRAL_REDIS_CONNECTING
                       ? "connecting timed out"
                       : "connected, but no answer in time");
        ngx_http_referral_redis_fail(link);
        return;
    }

    if (link->state == NGX_HTTP_REFERRAL_REDIS_CONNECTING) {
        ngx_http_referral_redis_write_handler(c->write);
        return;
    }

    for ( ;; ) {

        n = c->recv(c, buf, NGX_HTTP_REFERRAL_REDIS_READ);

        if (n == NGX_AGAIN) {
            break;
        }

        if (n == 0) {
            ngx_http_referral_redis_reason(link,
                                           "the server closed the connection");
            ngx_http_referral_redis_fail(link);
            return;
        }

        if (n == NGX_ERROR) {
            ngx_http_referral_redis_reason(link, "the connection broke");
            ngx_http_referral_redis_fail(link);
            return;
        }

        link->heard = ngx_current_msec;

        if (ngx_http_referral_redis_parse(link, buf, n) != NGX_OK) {
            ngx_http_referral_redis_fail(link);
            return;
        }

        if (!rev->ready) {
            break;
        }

        if (link->use->push) {

            /* a million messages at once: others have their turn */

            ngx_post_event(rev, &ngx_posted_next_events);
            return;
        }
    }

    if (link->broken) {
        ngx_http_referral_redis_reason(link, "the connection broke");
        ngx_http_referral_redis_fail(link);
        return;
    }

    if (ngx_handle_read_event(rev, 0) != NGX_OK) {
        ngx_http_referral_redis_reason(link, "events failed");
        ngx_http_referral_redis_fail(link);
    }
}


static ngx_int_t
ngx_http_referral_redis_parse(ngx_http_referral_redis_t *link, u_char *data,
    size_t len)
{
    void       *reply;
    ngx_int_t   rc;

    if (redisReaderFeed(link->reader, (char *) data, len) != REDIS_OK) {
        ngx_http_referral_redis_reason(link, "no memory");
        return NGX_ERROR;
    }

    link->fed += len;

    for ( ;; ) {

        reply = NULL;

        if (redisReaderGetReply(link->reader, &reply) != REDIS_OK) {

            if (link->too_large) {
                ngx_http_referral_redis_reason(link, "a reply is too large");

            } else {
                ngx_http_referral_redis_reason(link, "not a Redis server: %s",
                                               link->reader->errstr);
            }

            return NGX_ERROR;
        }

        if (reply == NULL) {
            break;
        }

        link->fed = link->reader->len - link->reader->pos;

        rc = ngx_http_referral_redis_process(link, reply);

        freeReplyObject(reply);

        if (rc != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (link->fed > NGX_HTTP_REFERRAL_REDIS_REPLY) {
        ngx_http_referral_redis_reason(link, "a reply is too large");
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_referral_redis_process(ngx_http_referral_redis_t *link,
    redisReply *reply)
{
    void                          *data;
    ngx_uint_t                     late;
    ngx_queue_t                   *q;
    ngx_http_referral_redis_pt     handler;
    ngx_http_referral_redis_op_t  *op;
    ngx_http_referral_redis_op_e   type;

    if (link->use->push && ngx_http_referral_redis_is_push(reply)) {
        link->use->push(NULL, reply);
        return NGX_OK;
    }

    late = !ngx_queue_empty(&link->late);

    if (!late && ngx_queue_empty(&link->ops)) {

        if (reply->type == REDIS_REPLY_ERROR) {
            ngx_http_referral_redis_reason(link, "%s", reply->str);

        } else {
            ngx_http_referral_redis_reason(link, "an unexpected reply");
        }

        return NGX_ERROR;
    }

    q = late ? ngx_queue_head(&link->late) : ngx_queue_head(&link->ops);
    op = ngx_queue_data(q, ngx_http_referral_redis_op_t, queue);

    ngx_queue_remove(q);
    link->nops--;

    type = op->type;
    handler = op->handler;
    data = op->data;

    ngx_queue_insert_head(&link->spare, &op->queue);

    if (!late) {
        link->timeouts = 0;
    }

    if (late || ngx_queue_empty(&link->ops)) {
        ngx_http_referral_redis_set_deadline(link);
    }

    if (type == NGX_HTTP_REFERRAL_REDIS_OP_USER) {
        ngx_http_referral_count(redis_replies);
        ngx_http_referral_stat_latency(op->started);

        if (reply->type == REDIS_REPLY_ERROR) {
            ngx_http_referral_count(redis_errors);
        }
    }

    if (handler) {
        handler(data, reply);
    }

    return ngx_http_referral_redis_answer(link, type, reply, late);
}


/* "message" channel payload: answers no command */

static ngx_uint_t
ngx_http_referral_redis_is_push(redisReply *reply)
{
    return reply->type == REDIS_REPLY_ARRAY && reply->elements == 3
           && reply->element[0]->type == REDIS_REPLY_STRING
           && ngx_strcmp(reply->element[0]->str, "message") == 0
           && reply->element[2]->type == REDIS_REPLY_STRING;
}


static ngx_int_t
ngx_http_referral_redis_answer(ngx_http_referral_redis_t *link,
    ngx_http_referral_redis_op_e type, redisReply *reply, ngx_uint_t late)
{
    if (reply->type == REDIS_REPLY_ERROR
        && ngx_http_referral_redis_refusal(type, reply))
    {
        ngx_http_referral_redis_reason(link, "%s", reply->str);
        return NGX_ERROR;
    }

    if (type != NGX_HTTP_REFERRAL_REDIS_OP_PROBE) {
        return NGX_OK;
    }

    link->probing = 0;

    if (link->state == NGX_HTTP_REFERRAL_REDIS_GREETING
        || (link->open && !late))
    {
        ngx_http_referral_redis_ready(link);
    }

    return NGX_OK;
}


static ngx_uint_t
ngx_http_referral_redis_refusal(ngx_http_referral_redis_op_e type,
    redisReply *reply)
{
    ngx_str_t  *refusal;

    switch (type) {

    case NGX_HTTP_REFERRAL_REDIS_OP_AUTH:
    case NGX_HTTP_REFERRAL_REDIS_OP_SELECT:
        return 1;

    case NGX_HTTP_REFERRAL_REDIS_OP_NAME:

        /* a name is a courtesy that tight ACLs do not allow */

        /* fall through */

    case NGX_HTTP_REFERRAL_REDIS_OP_OPTIONAL:

        if (ngx_strncmp(reply->str, "NOPERM ", 7) == 0) {
            return 0;
        }

        break;

    case NGX_HTTP_REFERRAL_REDIS_OP_PROBE:

        /* whatever the key holds, it could be read */

        return ngx_strncmp(reply->str, "WRONGTYPE ", 10) != 0;

    default: /* NGX_HTTP_REFERRAL_REDIS_OP_USER */
        break;
    }

    for (refusal = ngx_http_referral_redis_refusals; refusal->len; refusal++) {

        if (ngx_strncasecmp((u_char *) reply->str, refusal->data,
                            refusal->len)
            == 0)
        {
            return 1;
        }
    }

    return 0;
}


/*
 * An array is allocated before its elements come: few bytes may ask for GB.
 * None that we ask for has arrays in it; hiredis 1 would take any depth, and
 * frees by recursion.
 */

#if (HIREDIS_MAJOR >= 1)
static void *
ngx_http_referral_redis_array(const redisReadTask *task, size_t elements)
#else
static void *
ngx_http_referral_redis_array(const redisReadTask *task, int elements)
#endif
{
    ngx_http_referral_redis_t  *link;

    link = task->privdata;

    if (elements > NGX_HTTP_REFERRAL_REDIS_ELEMENTS || task->parent != NULL) {
        link->too_large = 1;
        return NULL;
    }

    return link->defaults->createArray(task, elements);
}
