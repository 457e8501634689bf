
/*
 * Copyright (C) The nginx referral module authors
 *
 * Sending of webhooks over HTTP: many at once, by libcurl.  What may be
 * reached is decided for the very address that is connected to, so a name
 * that resolves to something else the next moment gains nothing.
 */


#ifndef _REFERRAL_SEND_H_INCLUDED_
#define _REFERRAL_SEND_H_INCLUDED_


#include <curl/curl.h>

#include "referral_core.h"


#define REFERRAL_SEND_SLOTS     128        /* at a time */
#define REFERRAL_SEND_RESPONSE  1024       /* bytes that are kept */


typedef enum {
    REFERRAL_SEND_FREE = 0,
    REFERRAL_SEND_SENDING,
    REFERRAL_SEND_DONE                     /* to be recorded */
} referral_send_state_e;


typedef struct {
    referral_send_state_e  state;
    CURL                  *easy;
    struct curl_slist     *headers;
    char                  *body;

    int64_t                delivery;
    int64_t                webhook;
    long                   attempt;
    unsigned               allow_private:1;
    unsigned               refused:1;      /* its address was private */
    unsigned               enough:1;       /* of its response */

    uint64_t               began;          /* monotonic us */
    uint64_t               took;           /* us */
    long                   status;         /* 0: none */
    int64_t                retry_after;    /* seconds, 0: none */
    char                   error[CURL_ERROR_SIZE + 64];
    size_t                 received;
    size_t                 len;
    u_char                 response[REFERRAL_SEND_RESPONSE];
} referral_send_slot_t;


typedef struct {
    CURLM                 *multi;
    uint64_t               timeout;        /* ms */
    size_t                 busy;           /* slots that are not free */
    referral_send_slot_t   slots[REFERRAL_SEND_SLOTS];
} referral_send_t;


/* before any thread is started */
int referral_send_global(void);

int referral_send_init(referral_send_t *s, uint64_t timeout);
void referral_send_free(referral_send_t *s);

/*
 * A request on its way in a free slot; event, at and signature are the
 * headers of Standard Webhooks, the body is copied.  What fails at once is a
 * slot that is done, with its error.
 */
typedef struct {
    int64_t                delivery;
    int64_t                webhook;
    long                   attempt;
    const char            *url;
    unsigned               allow_private:1;
    const char            *event;
    const char            *at;
    const char            *signature;
    const char            *body;
} referral_send_request_t;

void referral_send_begin(referral_send_t *s, const referral_send_request_t *r);

/* lets libcurl work; how many are done now */
size_t referral_send_perform(referral_send_t *s);

/* the slot is free again */
void referral_send_release(referral_send_t *s, referral_send_slot_t *slot);


#endif /* _REFERRAL_SEND_H_INCLUDED_ */
