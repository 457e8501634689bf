
/*
 * Copyright (C) The nginx referral module authors
 */


#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "listen.h"
#include "log.h"
#include "signals.h"
#include "stat.h"


#define REFERRAL_LISTEN_BACKLOG      16
#define REFERRAL_LISTEN_CONNECTIONS  32
#define REFERRAL_LISTEN_TIMEOUT      10    /* s */
#define REFERRAL_LISTEN_MEMORY       16384 /* bytes of a connection */

/* ms */

#define REFERRAL_LISTEN_AWAY         30000 /* so long without is unready */
#define REFERRAL_LISTEN_DEAD         60000


static const char *referral_listen_parse_unix(referral_listen_addr_t *a,
    const char *path);
static int referral_listen_bind(referral_listen_t *l);
static void referral_listen_unlink(const referral_listen_addr_t *a);
static enum MHD_Result referral_listen_handler(void *ctx,
    struct MHD_Connection *connection, const char *url, const char *method,
    const char *version, const char *data, size_t *size, void **state);
static void referral_listen_log(void *ctx, const char *fmt, va_list args)
    __attribute__((format(printf, 2, 0)));
static unsigned referral_listen_alive(referral_buf_t *b);
static unsigned referral_listen_ready(referral_buf_t *b);
static void referral_listen_reason(referral_buf_t *b, const char *reason,
    uint64_t ms);
static enum MHD_Result referral_listen_send(struct MHD_Connection *connection,
    unsigned status, const char *type, referral_buf_t *b);


const char *
referral_listen_parse(referral_listen_addr_t *a, const char *text)
{
    char         host[64], *end;
    size_t       len;
    unsigned     local;
    const char  *p, *port;
    long         n;

    memset(a, 0, sizeof(referral_listen_addr_t));

    if (strncmp(text, "unix:", 5) == 0) {
        return referral_listen_parse_unix(a, text + 5);
    }

    p = *text == '[' ? strchr(text, ']') : text;
    port = p ? strchr(p, ':') : NULL;

    if (port == NULL) {
        return "must be \"127.0.0.1:PORT\", \"[::1]:PORT\", \"unix:/path\" or"
               " \"off\"";
    }

    len = *text == '[' ? (size_t) (port - text) - 2 : (size_t) (port - text);

    if (len >= sizeof(host) || (*text == '[' && p + 1 != port)) {
        return "has no address before the port";
    }

    memcpy(host, *text == '[' ? text + 1 : text, len);
    host[len] = '\0';

    errno = 0;
    n = strtol(port + 1, &end, 10);

    if (port[1] < '0' || port[1] > '9' || errno || n < 1 || n > 65535
        || (*end != '\0' && strcmp(end, " public") != 0))
    {
        return "must have a port from 1 to 65535 behind its address, and"
               " nothing more but \" public\"";
    }

    if (*text != '[' && inet_pton(AF_INET, host, &a->u.in.sin_addr) == 1) {
        a->u.in.sin_family = AF_INET;
        a->u.in.sin_port = htons((in_port_t) n);
        a->len = sizeof(struct sockaddr_in);
        local = ntohl(a->u.in.sin_addr.s_addr) >> 24 == 127;

    } else if (*text == '['
               && inet_pton(AF_INET6, host, &a->u.in6.sin6_addr) == 1)
    {
        a->u.in6.sin6_family = AF_INET6;
        a->u.in6.sin6_port = htons((in_port_t) n);
        a->len = sizeof(struct sockaddr_in6);
        local = IN6_IS_ADDR_LOOPBACK(&a->u.in6.sin6_addr);

    } else {
        return "must have an address in digits, not a name";
    }

    if (!local && *end == '\0') {
        return "would be open to other machines; if that is meant, write"
               " \"ADDRESS:PORT public\"";
    }

    return NULL;
}


static const char *
referral_listen_parse_unix(referral_listen_addr_t *a, const char *path)
{
    if (path[0] != '/') {
        return "must have an absolute path behind \"unix:\"";
    }

    if (strlen(path) >= sizeof(a->u.un.sun_path)) {
        return "has too long a path for a socket";
    }

    a->u.un.sun_family = AF_UNIX;
    strcpy(a->u.un.sun_path, path);
    a->len = sizeof(struct sockaddr_un);

    return NULL;
}


int
referral_listen_start(referral_listen_t *l, const char *text)
{
    sigset_t  all, old;

    memset(l, 0, sizeof(referral_listen_t));
    l->fd = -1;

    if (text[0] == '\0') {
        return REFERRAL_OK;
    }

    (void) referral_listen_parse(&l->addr, text);

    if (referral_listen_bind(l) != REFERRAL_OK) {
        referral_log(REFERRAL_LOG_ERROR, "listen-failed", strerror(errno),
                     "listen=\"%s\"", text);

        if (l->fd != -1) {
            close(l->fd);
        }

        return REFERRAL_ERROR;
    }

    /* its thread inherits the mask */

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);

    l->daemon = MHD_start_daemon(MHD_USE_AUTO_INTERNAL_THREAD
                                 | MHD_USE_ERROR_LOG, 0, NULL, NULL,
                                 referral_listen_handler, NULL,
                                 MHD_OPTION_EXTERNAL_LOGGER,
                                 referral_listen_log, NULL,
                                 MHD_OPTION_LISTEN_SOCKET, l->fd,
                                 MHD_OPTION_CONNECTION_LIMIT,
                                 (unsigned) REFERRAL_LISTEN_CONNECTIONS,
                                 MHD_OPTION_CONNECTION_TIMEOUT,
                                 (unsigned) REFERRAL_LISTEN_TIMEOUT,
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                                 (size_t) REFERRAL_LISTEN_MEMORY,
                                 MHD_OPTION_END);

    pthread_sigmask(SIG_SETMASK, &old, NULL);

    if (l->daemon == NULL) {
        referral_log(REFERRAL_LOG_ERROR, "listen-failed",
                     "libmicrohttpd could not be started", NULL);
        close(l->fd);
        referral_listen_unlink(&l->addr);
        return REFERRAL_ERROR;
    }

    referral_log(REFERRAL_LOG_INFO, "listen", NULL, "listen=\"%s\"", text);

    return REFERRAL_OK;
}


static int
referral_listen_bind(referral_listen_t *l)
{
    int     on;
    mode_t  mask;

    l->fd = socket(l->addr.u.any.sa_family, SOCK_STREAM|SOCK_CLOEXEC, 0);
    if (l->fd == -1) {
        return REFERRAL_ERROR;
    }

    on = 1;

    if (l->addr.u.any.sa_family == AF_UNIX) {
        referral_listen_unlink(&l->addr);

    } else if (setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on))
               == -1)
    {
        return REFERRAL_ERROR;
    }

    if (l->addr.u.any.sa_family == AF_INET6
        && setsockopt(l->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) == -1)
    {
        return REFERRAL_ERROR;
    }

    /* of a socket file: for the user and the group of the worker */

    mask = umask(0117);
    on = bind(l->fd, &l->addr.u.any, l->addr.len);
    umask(mask);

    if (on == -1 || listen(l->fd, REFERRAL_LISTEN_BACKLOG) == -1) {
        return REFERRAL_ERROR;
    }

    return REFERRAL_OK;
}


/* what an earlier life left; nothing but a socket that nobody listens on */

static void
referral_listen_unlink(const referral_listen_addr_t *a)
{
    int          fd;
    struct stat  sb;

    if (a->u.any.sa_family != AF_UNIX || stat(a->u.un.sun_path, &sb) == -1
        || !S_ISSOCK(sb.st_mode))
    {
        return;
    }

    fd = socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0);
    if (fd == -1) {
        return;
    }

    if (connect(fd, &a->u.any, a->len) == -1 && errno == ECONNREFUSED) {
        (void) unlink(a->u.un.sun_path);
    }

    close(fd);
}


void
referral_listen_stop(referral_listen_t *l)
{
    if (l->daemon == NULL) {
        return;
    }

    /* it closes the socket, after which nobody listens on the file */

    MHD_stop_daemon(l->daemon);
    referral_listen_unlink(&l->addr);

    l->daemon = NULL;
}


static enum MHD_Result
referral_listen_handler(void *ctx, struct MHD_Connection *connection,
    const char *url, const char *method, const char *version, const char *data,
    size_t *size, void **state)
{
    unsigned         status;
    const char      *type;
    referral_buf_t   b;

    static int       seen;

    /* the first call has the headers only; a body is read and forgotten */

    if (*state == NULL) {
        *state = &seen;
        return MHD_YES;
    }

    if (*size) {
        *size = 0;
        return MHD_YES;
    }

    memset(&b, 0, sizeof(referral_buf_t));

    status = MHD_HTTP_OK;
    type = "text/plain; charset=utf-8";

    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0
        && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
    {
        status = MHD_HTTP_METHOD_NOT_ALLOWED;
        referral_buf_string(&b, "GET and HEAD only\n");

    } else if (strcmp(url, "/metrics") == 0) {
        type = "text/plain; version=0.0.4; charset=utf-8";
        referral_stat_prometheus(&b);

    } else if (strcmp(url, "/readyz") == 0
               || (strcmp(url, "/healthz") == 0
                   && MHD_lookup_connection_value(connection,
                                                  MHD_GET_ARGUMENT_KIND,
                                                  "ready") != NULL))
    {
        type = "application/json";
        status = referral_listen_ready(&b);

    } else if (strcmp(url, "/healthz") == 0) {
        type = "application/json";
        status = referral_listen_alive(&b);

    } else {
        status = MHD_HTTP_NOT_FOUND;
        referral_buf_string(&b, "/metrics, /healthz and /readyz are here\n");
    }

    return referral_listen_send(connection, status, type, &b);
}


static void
referral_listen_log(void *ctx, const char *fmt, va_list args)
{
    char  text[REFERRAL_ERROR_LEN];

    vsnprintf(text, sizeof(text), fmt, args);

    referral_log(REFERRAL_LOG_DEBUG, "listen-message", text, NULL);
}


/* alive: the main loop, and all it waits in, comes by each second */

static unsigned
referral_listen_alive(referral_buf_t *b)
{
    uint64_t  now, alive;

    now = referral_now();
    alive = referral_stat_get(alive);

    if (now > alive && now - alive > REFERRAL_LISTEN_DEAD) {
        referral_buf_string(b, "{\"alive\":false,\"reasons\":[");
        referral_listen_reason(b, "the worker does not move", now - alive);
        referral_buf_string(b, "]}\n");
        return MHD_HTTP_SERVICE_UNAVAILABLE;
    }

    referral_buf_string(b, "{\"alive\":true}\n");

    return MHD_HTTP_OK;
}


static unsigned
referral_listen_ready(referral_buf_t *b)
{
    size_t    start;
    uint64_t  now, away;

    referral_buf_string(b, "{\"ready\":false,\"reasons\":[");

    start = b->len;
    now = referral_now();

    away = referral_stat_get(postgres_away);

    if (away && (!referral_stat_get(postgres_seen)
                 || (now > away && now - away > REFERRAL_LISTEN_AWAY)))
    {
        referral_listen_reason(b, "postgres", now > away ? now - away : 0);
    }

    away = referral_stat_get(journal_away);

    if (away) {
        referral_listen_reason(b, "journal", now > away ? now - away : 0);
    }

    if (b->len != start) {
        referral_buf_string(b, "]}\n");
        return MHD_HTTP_SERVICE_UNAVAILABLE;
    }

    b->len = 0;
    referral_buf_string(b, "{\"ready\":true}\n");

    return MHD_HTTP_OK;
}


static void
referral_listen_reason(referral_buf_t *b, const char *reason, uint64_t ms)
{
    char  text[128];

    snprintf(text, sizeof(text), "%s{\"reason\":\"%s\",\"seconds\":%" PRIu64
             "}", b->data[b->len - 1] == '[' ? "" : ",", reason, ms / 1000);

    referral_buf_string(b, text);
}


static enum MHD_Result
referral_listen_send(struct MHD_Connection *connection, unsigned status,
    const char *type, referral_buf_t *b)
{
    enum MHD_Result       rc;
    struct MHD_Response  *response;

    if (b->failed) {
        referral_buf_free(b);
        return MHD_NO;
    }

    response = MHD_create_response_from_buffer(b->len, b->data,
                                               MHD_RESPMEM_MUST_COPY);
    referral_buf_free(b);

    if (response == NULL) {
        return MHD_NO;
    }

    (void) MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
                                   type);
    (void) MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL,
                                   "no-store");

    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) {
        (void) MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW,
                                       "GET, HEAD");
    }

    rc = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);

    return rc;
}
