
/*
 * Copyright (C) The nginx referral module authors
 *
 * The rule of a code: what the hash referral:code:<CODE> in Redis says.  The
 * module reads it, referralctl writes it, and both judge fields here.
 */


#ifndef _REFERRAL_RULE_H_INCLUDED_
#define _REFERRAL_RULE_H_INCLUDED_


#include "referral_core.h"


#define REFERRAL_URL_LEN       2048
#define REFERRAL_CAMPAIGN_LEN  128

/* the fields of the hash, in the order of referral_rule_fields[] */

#define REFERRAL_RULE_URL          0
#define REFERRAL_RULE_STATE        1
#define REFERRAL_RULE_NOT_BEFORE   2
#define REFERRAL_RULE_EXPIRES      3
#define REFERRAL_RULE_VERSION      4
#define REFERRAL_RULE_CODE_ID      5
#define REFERRAL_RULE_PROGRAM_ID   6
#define REFERRAL_RULE_REFERRER_ID  7
#define REFERRAL_RULE_CAMPAIGN     8
#define REFERRAL_RULE_RULES        9
#define REFERRAL_RULE_FIELDS      10

extern const referral_str_t  referral_rule_fields[REFERRAL_RULE_FIELDS];


typedef enum {
    REFERRAL_STATE_ACTIVE = 0,
    REFERRAL_STATE_INACTIVE,
    REFERRAL_STATE_EXHAUSTED
} referral_state_e;


typedef struct {
    referral_str_t       url;              /* destination template */
    referral_str_t       campaign;
    referral_str_t       rules;            /* JSON object, kept as text */
    int64_t              not_before;       /* Unix seconds, 0: at once */
    int64_t              expires;          /* Unix seconds, 0: never */
    uint64_t             version;
    int64_t              code_id;          /* 0: not known */
    int64_t              program_id;
    int64_t              referrer_id;
    referral_state_e     state;
} referral_rule_t;


/*
 * Sets one field from its text; strings are referenced, not copied.  A value
 * that is not acceptable gives REFERRAL_ERROR and a sentence in error[]
 * (REFERRAL_ERROR_LEN bytes) that names the field, the value's problem and
 * what is accepted.  The caller treats such a code as inactive.  An empty
 * value is the same as an absent field.
 */
int referral_rule_set(referral_rule_t *rule, unsigned field,
    const referral_str_t *value, char *error);

/* what only all fields together tell: a url is there, expires > not_before */
int referral_rule_check(const referral_rule_t *rule, char *error);

/* valid, inactive, exhausted, early or expired; now in Unix seconds */
referral_verdict_e referral_rule_judge(const referral_rule_t *rule,
    int64_t now);


#endif /* _REFERRAL_RULE_H_INCLUDED_ */
