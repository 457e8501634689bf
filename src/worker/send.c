
/*
 * Copyright (C) The nginx referral module authors
 */


#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "referral_private.h"
#include "send.h"
#include "stat.h"


/* a response is read so far, and no further */

#define REFERRAL_SEND_ENOUGH   65536       /* bytes */
#define REFERRAL_SEND_CONNECT  10000       /* ms */
#define REFERRAL_SEND_HEADER   1024


static void referral_send_options(referral_send_t *s,
    referral_send_slot_t *slot, const referral_send_request_t *r);
static int referral_send_headers(referral_send_slot_t *slot,
    const referral_send_request_t *r);
static int referral_send_header(referral_send_slot_t *slot, const char *name,
    const char *value);
static void referral_send_fail(referral_send_slot_t *slot, const char *error);
static void referral_send_done(referral_send_slot_t *slot, CURLcode rc);
static curl_socket_t referral_send_socket(void *data, curlsocktype purpose,
    struct curl_sockaddr *addr);
static size_t referral_send_write(char *data, size_t size, size_t n,
    void *ctx);


int
referral_send_global(void)
{
    return curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK ? REFERRAL_OK
                                                             : REFERRAL_ERROR;
}


int
referral_send_init(referral_send_t *s, uint64_t timeout)
{
    memset(s, 0, sizeof(referral_send_t));

    s->timeout = timeout;
    s->multi = curl_multi_init();

    if (s->multi == NULL) {
        return REFERRAL_ERROR;
    }

    (void) curl_multi_setopt(s->multi, CURLMOPT_MAXCONNECTS,
                             (long) REFERRAL_SEND_SLOTS);

    /*
     * With HTTP/2 a connection would be shared while it is in use, whoever's:
     * libcurl compares host and port, not where it is connected to.  So one
     * to a private address would be given to an endpoint that must not have
     * one, with 7.88 as with 8.14.  There is little to gain: an endpoint has
     * a few requests under way, and their connections are kept.
     */

    (void) curl_multi_setopt(s->multi, CURLMOPT_PIPELINING,
                             (long) CURLPIPE_NOTHING);

    return REFERRAL_OK;
}


void
referral_send_free(referral_send_t *s)
{
    size_t  i;

    for (i = 0; i < REFERRAL_SEND_SLOTS; i++) {
        referral_send_release(s, &s->slots[i]);

        if (s->slots[i].easy != NULL) {
            curl_easy_cleanup(s->slots[i].easy);
        }
    }

    if (s->multi != NULL) {
        (void) curl_multi_cleanup(s->multi);
    }

    memset(s, 0, sizeof(referral_send_t));
}


void
referral_send_begin(referral_send_t *s, const referral_send_request_t *r)
{
    size_t                 i;
    referral_send_slot_t  *slot;

    i = 0;

    while (s->slots[i].state != REFERRAL_SEND_FREE) {
        i++;
    }

    slot = &s->slots[i];

    slot->delivery = r->delivery;
    slot->webhook = r->webhook;
    slot->attempt = r->attempt;
    slot->allow_private = r->allow_private;
    slot->refused = 0;
    slot->enough = 0;
    slot->began = referral_stat_now();
    slot->took = 0;
    slot->status = 0;
    slot->retry_after = 0;
    slot->error[0] = '\0';
    slot->received = 0;
    slot->len = 0;
    slot->state = REFERRAL_SEND_SENDING;
    slot->body = strdup(r->body);
    s->busy++;

    if (slot->easy == NULL) {
        slot->easy = curl_easy_init();
    }

    if (slot->easy == NULL || slot->body == NULL
        || referral_send_headers(slot, r) != REFERRAL_OK)
    {
        referral_send_fail(slot, "out of memory here");
        return;
    }

    referral_send_options(s, slot, r);

    if (curl_multi_add_handle(s->multi, slot->easy) != CURLM_OK) {
        referral_send_fail(slot, "libcurl refused the request");
    }
}


static void
referral_send_options(referral_send_t *s, referral_send_slot_t *slot,
    const referral_send_request_t *r)
{
    CURL        *easy;
    long         connect;
    const char  *protocols;

    easy = slot->easy;
    protocols = r->allow_private ? "http,https" : "https";
    connect = s->timeout < REFERRAL_SEND_CONNECT ? (long) s->timeout
                                                 : REFERRAL_SEND_CONNECT;

    curl_easy_reset(easy);

    (void) curl_easy_setopt(easy, CURLOPT_URL, r->url);
    (void) curl_easy_setopt(easy, CURLOPT_PRIVATE, slot);
    (void) curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, slot->error);
    (void) curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);

    (void) curl_easy_setopt(easy, CURLOPT_POST, 1L);
    (void) curl_easy_setopt(easy, CURLOPT_POSTFIELDS, slot->body);
    (void) curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE,
                            (long) strlen(slot->body));
    (void) curl_easy_setopt(easy, CURLOPT_HTTPHEADER, slot->headers);
    (void) curl_easy_setopt(easy, CURLOPT_USERAGENT,
                            "referral-worker/" REFERRAL_VERSION);

    (void) curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long) s->timeout);
    (void) curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, connect);

    /*
     * No proxy, not even one of the environment: it would connect where we
     * must not.  A connection to a private address is never kept, or an
     * endpoint that must not have one could be given it from the pool.
     */

    (void) curl_easy_setopt(easy, CURLOPT_PROXY, "");
    (void) curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, protocols);
    (void) curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    (void) curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION,
                            referral_send_socket);
    (void) curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, slot);
    (void) curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT,
                            (long) slot->allow_private);
    (void) curl_easy_setopt(easy, CURLOPT_FORBID_REUSE,
                            (long) slot->allow_private);

    /* a thread that still resolves a name is not waited for */

    (void) curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);

    (void) curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, referral_send_write);
    (void) curl_easy_setopt(easy, CURLOPT_WRITEDATA, slot);
}


static int
referral_send_headers(referral_send_slot_t *slot,
    const referral_send_request_t *r)
{
    if (referral_send_header(slot, "Content-Type", "application/json")
           != REFERRAL_OK
        || referral_send_header(slot, "webhook-id", r->event) != REFERRAL_OK
        || referral_send_header(slot, "webhook-timestamp", r->at)
           != REFERRAL_OK
        || referral_send_header(slot, "webhook-signature", r->signature)
           != REFERRAL_OK)
    {
        return REFERRAL_ERROR;
    }

    /* none: bodies are short, and a second would be waited for the answer */

    return referral_send_header(slot, "Expect", "");
}


static int
referral_send_header(referral_send_slot_t *slot, const char *name,
    const char *value)
{
    char                text[REFERRAL_SEND_HEADER];
    struct curl_slist  *list;

    snprintf(text, sizeof(text), "%s:%s%s", name, *value ? " " : "", value);

    list = curl_slist_append(slot->headers, text);

    if (list == NULL) {
        return REFERRAL_ERROR;
    }

    slot->headers = list;

    return REFERRAL_OK;
}


static void
referral_send_fail(referral_send_slot_t *slot, const char *error)
{
    snprintf(slot->error, sizeof(slot->error), "%s", error);

    slot->took = referral_stat_now() - slot->began;
    slot->state = REFERRAL_SEND_DONE;
}


size_t
referral_send_perform(referral_send_t *s)
{
    int                    running, left;
    void                  *data;
    size_t                 i, n;
    CURLMsg               *msg;
    CURLcode               rc;
    referral_send_slot_t  *slot;

    (void) curl_multi_perform(s->multi, &running);

    while ((msg = curl_multi_info_read(s->multi, &left)) != NULL) {

        if (msg->msg != CURLMSG_DONE) {
            continue;
        }

        rc = msg->data.result;

        data = NULL;
        (void) curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE,
                                 (char **) &data);
        slot = data;

        /* the message is gone with this */

        (void) curl_multi_remove_handle(s->multi, slot->easy);
        referral_send_done(slot, rc);
    }

    n = 0;

    for (i = 0; i < REFERRAL_SEND_SLOTS; i++) {
        n += s->slots[i].state == REFERRAL_SEND_DONE;
    }

    return n;
}


/* an answer counts when it is complete, or as much as we wanted of it */

static void
referral_send_done(referral_send_slot_t *slot, CURLcode rc)
{
    long        status;
    curl_off_t  after;

    status = 0;
    after = 0;

    (void) curl_easy_getinfo(slot->easy, CURLINFO_RESPONSE_CODE, &status);
    (void) curl_easy_getinfo(slot->easy, CURLINFO_RETRY_AFTER, &after);

    slot->took = referral_stat_now() - slot->began;
    slot->state = REFERRAL_SEND_DONE;
    slot->retry_after = after > 0 ? after : 0;

    if (rc == CURLE_OK || slot->enough) {
        slot->status = status;

        if (status >= 200 && status <= 299) {
            slot->error[0] = '\0';

        } else if (status >= 300 && status <= 399) {
            snprintf(slot->error, sizeof(slot->error),
                     "HTTP %ld: redirects are not followed", status);

        } else {
            snprintf(slot->error, sizeof(slot->error), "HTTP %ld", status);
        }

        return;
    }

    if (slot->refused) {
        snprintf(slot->error, sizeof(slot->error),
                 "the host has a private address, and the webhook no"
                 " allow_private");

    } else if (slot->error[0] == '\0') {
        snprintf(slot->error, sizeof(slot->error), "%s",
                 curl_easy_strerror(rc));
    }
}


static curl_socket_t
referral_send_socket(void *data, curlsocktype purpose,
    struct curl_sockaddr *addr)
{
    referral_send_slot_t  *slot;

    slot = data;

    if (purpose != CURLSOCKTYPE_IPCXN) {
        return CURL_SOCKET_BAD;
    }

    if (!slot->allow_private && referral_private_address(&addr->addr)) {
        slot->refused = 1;
        return CURL_SOCKET_BAD;
    }

    return socket(addr->family, addr->socktype | SOCK_CLOEXEC,
                  addr->protocol);
}


static size_t
referral_send_write(char *data, size_t size, size_t n, void *ctx)
{
    size_t                 len;
    referral_send_slot_t  *slot;

    slot = ctx;
    n *= size;

    len = REFERRAL_SEND_RESPONSE - slot->len;

    if (len > n) {
        len = n;
    }

    memcpy(slot->response + slot->len, data, len);

    slot->len += len;
    slot->received += n;

    if (slot->received > REFERRAL_SEND_ENOUGH) {
        slot->enough = 1;
        return CURL_WRITEFUNC_ERROR;
    }

    return n;
}


void
referral_send_release(referral_send_t *s, referral_send_slot_t *slot)
{
    if (slot->state == REFERRAL_SEND_FREE) {
        return;
    }

    if (slot->state == REFERRAL_SEND_SENDING) {
        (void) curl_multi_remove_handle(s->multi, slot->easy);
    }

    curl_slist_free_all(slot->headers);
    free(slot->body);

    slot->headers = NULL;
    slot->body = NULL;
    slot->state = REFERRAL_SEND_FREE;
    s->busy--;
}
