
/*
 * Copyright (C) The nginx referral module authors
 */


#include "token.h"
#include "output.h"
#include "referral_token.h"
#include "referral_uuid.h"
#include "time_text.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>


#define CTL_SECRET_FILE_MAX  65536
#define CTL_SECRET_BYTES     32


static int ctl_token_keys(const ctl_options_t *o, referral_keyring_t *ring);
static int ctl_token_stdin(char *text, size_t size);
static json_t *ctl_token_json(const referral_keyring_t *ring,
    const referral_token_t *token);
static json_t *ctl_token_touch(const referral_touch_t *touch);
static void ctl_token_print(json_t *json);


int
ctl_token_verify(ctl_options_t *o)
{
    int                       rc;
    char                      text[REFERRAL_TOKEN_MAX + 2];
    json_t                   *json;
    const char               *word;
    referral_token_t          token;
    referral_keyring_t        ring;
    referral_token_result_e   result;

    rc = ctl_token_keys(o, &ring);

    if (rc != CTL_DONE) {
        return rc;
    }

    snprintf(text, sizeof(text), "%s", o->argv[0]);

    if (strcmp(text, "-") == 0
        && ctl_token_stdin(text, sizeof(text)) != REFERRAL_OK)
    {
        return CTL_USAGE;
    }

    memset(&token, 0, sizeof(referral_token_t));

    result = referral_token_verify(&ring, (u_char *) text, strlen(text),
                                   ctl_time_now(), o->max_age, &token);
    word = referral_token_result_word(result);

    if (result == REFERRAL_TOKEN_VALID) {
        json = ctl_token_json(&ring, &token);

    } else {
        json = json_object();
    }

    OPENSSL_cleanse(&ring, sizeof(referral_keyring_t));

    json_object_set_new(json, "result", json_string(word));

    if (o->json) {
        ctl_json_print(json);

    } else {
        printf("%s\n", word);
        ctl_token_print(json);
        json_decref(json);
    }

    return result == REFERRAL_TOKEN_VALID ? CTL_DONE : CTL_FOUND;
}


static int
ctl_token_keys(const ctl_options_t *o, referral_keyring_t *ring)
{
    int      rc;
    char    *text, error[REFERRAL_ERROR_LEN];
    FILE    *f;
    size_t   len;

    if (o->secret == NULL) {
        ctl_error("token verify needs the keys: --secret FILE");
        return CTL_USAGE;
    }

    f = fopen(o->secret, "re");

    if (f == NULL) {
        ctl_error("--secret %s: %s", o->secret, strerror(errno));
        return CTL_USAGE;
    }

    setvbuf(f, NULL, _IONBF, 0);

    text = ctl_alloc(CTL_SECRET_FILE_MAX);
    len = fread(text, 1, CTL_SECRET_FILE_MAX, f);
    rc = CTL_DONE;

    if (ferror(f) || len == CTL_SECRET_FILE_MAX) {
        ctl_error("--secret %s: this is no file of keys", o->secret);
        rc = CTL_USAGE;

    } else if (referral_keyring_parse(ring, (u_char *) text, len, error)
               != REFERRAL_OK)
    {
        ctl_error("--secret %s: %s", o->secret, error);
        rc = CTL_USAGE;

    } else if (ring->n == 0) {
        ctl_error("--secret %s: no key in it", o->secret);
        rc = CTL_USAGE;
    }

    fclose(f);
    OPENSSL_cleanse(text, CTL_SECRET_FILE_MAX);
    free(text);

    return rc;
}


static int
ctl_token_stdin(char *text, size_t size)
{
    size_t  len;

    if (fgets(text, size, stdin) == NULL) {
        ctl_error("no token on standard input");
        return REFERRAL_ERROR;
    }

    len = strcspn(text, "\r\n");
    text[len] = '\0';

    return REFERRAL_OK;
}


static json_t *
ctl_token_json(const referral_keyring_t *ring, const referral_token_t *token)
{
    u_char                 id[REFERRAL_UUID_TEXT_LEN];
    json_t                *json;
    const referral_key_t  *key;

    key = &ring->keys[token->key];
    json = json_object();

    json_object_set_new(json, "key", ctl_json_text(key->id, key->id_len));
    json_object_set_new(json, "first", ctl_token_touch(&token->first));
    json_object_set_new(json, "last", ctl_token_touch(&token->last));

    if (token->has_visitor) {
        referral_uuid_text(token->visitor, id);
        json_object_set_new(json, "visitor",
                            json_stringn((char *) id, sizeof(id)));

    } else {
        json_object_set_new(json, "visitor", json_null());
    }

    return json;
}


static json_t *
ctl_token_touch(const referral_touch_t *touch)
{
    char     time[CTL_TIME_LEN];
    json_t  *json;
    u_char   id[REFERRAL_UUID_TEXT_LEN];

    referral_uuid_text(touch->click, id);
    json = json_object();

    json_object_set_new(json, "code", ctl_json_text(touch->code,
                                                    touch->code_len));
    json_object_set_new(json, "click", json_stringn((char *) id, sizeof(id)));
    json_object_set_new(json, "at",
             json_string(ctl_time_iso(referral_uuid_time(touch->click),
                                      time)));

    return json;
}


static void
ctl_token_print(json_t *json)
{
    size_t       i;
    json_t      *touch;
    const char  *text;

    static const char  *names[] = { "first", "last" };

    text = json_string_value(json_object_get(json, "key"));

    if (text == NULL) {
        return;
    }

    printf("key      %s\n", text);

    for (i = 0; i < 2; i++) {
        touch = json_object_get(json, names[i]);

        printf("%-8s %s  %s  %s\n", names[i],
               json_string_value(json_object_get(touch, "code")),
               json_string_value(json_object_get(touch, "at")),
               json_string_value(json_object_get(touch, "click")));
    }

    text = json_string_value(json_object_get(json, "visitor"));

    if (text != NULL) {
        printf("visitor  %s\n", text);
    }
}


int
ctl_secret_new(ctl_options_t *o)
{
    char         id[REFERRAL_KEY_ID_LEN + 1], text[64];
    u_char       key[CTL_SECRET_BYTES];
    time_t       now;
    json_t      *json;
    struct tm    tm;
    const char  *p;

    if (o->argc) {

        for (p = o->argv[0]; *p != '\0'; p++) {
            if (strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                       "0123456789_-", *p) == NULL)
            {
                break;
            }
        }

        if (*p != '\0' || p == o->argv[0]
            || p - o->argv[0] > REFERRAL_KEY_ID_LEN)
        {
            ctl_error("secret new: the id \"%s\" is not 1 to %d of A-Z a-z "
                      "0-9 _ -", o->argv[0], REFERRAL_KEY_ID_LEN);
            return CTL_USAGE;
        }

        snprintf(id, sizeof(id), "%s", o->argv[0]);

    } else {
        now = time(NULL);
        (void) strftime(id, sizeof(id), "k%Y%m%d", gmtime_r(&now, &tm));
    }

    if (RAND_bytes(key, sizeof(key)) != 1) {
        ctl_error("secret new: the system has no randomness to give");
        return CTL_FOUND;
    }

    (void) EVP_EncodeBlock((u_char *) text, key, sizeof(key));
    OPENSSL_cleanse(key, sizeof(key));

    if (o->json) {
        json = json_object();
        json_object_set_new(json, "id", json_string(id));
        json_object_set_new(json, "secret", json_string(text));
        ctl_json_line(json);

    } else {
        printf("%s:%s\n", id, text);
    }

    OPENSSL_cleanse(text, sizeof(text));

    return CTL_DONE;
}
