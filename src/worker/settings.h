
/*
 * Copyright (C) The nginx referral module authors
 *
 * The worker's settings: lines "name = value", # begins a comment.
 */


#ifndef _REFERRAL_SETTINGS_H_INCLUDED_
#define _REFERRAL_SETTINGS_H_INCLUDED_


#include "referral_core.h"


typedef enum {
    REFERRAL_PUBLISH_OFF = 0,
    REFERRAL_PUBLISH_ON,
    REFERRAL_PUBLISH_AUTO                  /* on where redis is set */
} referral_publish_e;


typedef struct {
    char                *journal;          /* directory */
    char                *postgres;         /* connection string or URI */
    char                *redis;            /* URL, "": none */
    char                *redis_password_file;  /* or "" */
    uint64_t             publish;          /* referral_publish_e */
    uint64_t             batch_rows;
    uint64_t             batch_wait;       /* ms */
    uint64_t             retention;        /* ms */
    char                *retention_interactions; /* interval, "" for ever */
    char                *listen;           /* address, "" for none */
    uint64_t             webhook_timeout;  /* ms */
    uint64_t             log_level;        /* referral_log_level_e */
    uint64_t             lock_timeout;     /* ms */
    uint64_t             statement_timeout;/* ms */
} referral_settings_t;


/*
 * Reads a file into *s, unset settings get their defaults.  REFERRAL_ERROR
 * with a sentence that names file, line and setting; *s is empty then.
 */
int referral_settings_read(referral_settings_t *s, const char *file,
    char *error);

/*
 * Takes the new values into *s, except those that need a restart: *changed
 * gets the name of such a setting that differs, or NULL.  *fresh is emptied.
 */
void referral_settings_reload(referral_settings_t *s,
    referral_settings_t *fresh, const char **changed);

void referral_settings_free(referral_settings_t *s);


#endif /* _REFERRAL_SETTINGS_H_INCLUDED_ */
