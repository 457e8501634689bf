
/*
 * Copyright (C) The nginx referral module authors
 *
 * The worker's log: stderr, one event a line, key=value.
 */


#ifndef _REFERRAL_LOG_H_INCLUDED_
#define _REFERRAL_LOG_H_INCLUDED_


typedef enum {
    REFERRAL_LOG_ERROR = 0,
    REFERRAL_LOG_WARN,
    REFERRAL_LOG_INFO,
    REFERRAL_LOG_DEBUG
} referral_log_level_e;


extern unsigned  referral_log_level;


/*
 * text (may be NULL) is free text, written last and quoted as text="..."; fmt
 * (may be NULL) gives the other pairs, whose values must need no quotes.
 */
void referral_log(referral_log_level_e level, const char *event,
    const char *text, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));


#endif /* _REFERRAL_LOG_H_INCLUDED_ */
