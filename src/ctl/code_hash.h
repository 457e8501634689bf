
/*
 * Copyright (C) The nginx referral module authors
 *
 * A code's hash in Redis: read, judged as nginx judges it, printed.
 */


#ifndef _CTL_CODE_HASH_H_INCLUDED_
#define _CTL_CODE_HASH_H_INCLUDED_


#include "ctl.h"
#include "redis.h"
#include "referral_code.h"
#include "referral_rule.h"

#include <jansson.h>


#define CTL_CODE_PREFIX   "referral:code:"
#define CTL_CODE_CHANNEL  "referral:invalidate"


typedef struct {
    char                 name[REFERRAL_CODE_LEN + 1];
    char                 key[sizeof(CTL_CODE_PREFIX) + REFERRAL_CODE_LEN];

    char                *values[REFERRAL_RULE_FIELDS];   /* NULL: absent */
    size_t               lens[REFERRAL_RULE_FIELDS];

    /* of ctl_code_judge() */

    referral_rule_t      rule;
    const char          *verdict;          /* word, as nginx would say now */
    char                 problem[REFERRAL_ERROR_LEN];    /* or "" */
} ctl_code_t;


/* folds the text; CTL_USAGE after saying that it is no code */
int ctl_code_name(ctl_code_t *code, const char *text);

/*
 * Reads the hash, and watches it until the next EXEC.  CTL_DONE, or the exit
 * code after saying what failed; an absent hash has no values.
 */
int ctl_code_fetch(ctl_redis_t *r, ctl_code_t *code);

/* takes the values from the reply to HGETALL */
void ctl_code_take(ctl_code_t *code, const redisReply *reply);

void ctl_code_put(ctl_code_t *code, unsigned field, const char *value,
    size_t len);

/* frees the values */
void ctl_code_reset(ctl_code_t *code);

/* verdict and problem: the first bad field makes the code inactive */
void ctl_code_judge(ctl_code_t *code);

int ctl_code_exists(const ctl_code_t *code);

/* "TITLE, now VERDICT:" and the fields, or JSON */
void ctl_code_print(const ctl_code_t *code, int json, const char *title);
json_t *ctl_code_json(const ctl_code_t *code);


#endif /* _CTL_CODE_HASH_H_INCLUDED_ */
