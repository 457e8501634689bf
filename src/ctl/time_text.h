
/*
 * Copyright (C) The nginx referral module authors
 *
 * Times and durations as people write and read them.  All text is UTC.
 */


#ifndef _CTL_TIME_TEXT_H_INCLUDED_
#define _CTL_TIME_TEXT_H_INCLUDED_


#include "referral_core.h"


#define CTL_TIME_LEN  64                   /* size of the buffers below */


/*
 * Unix seconds, or ISO 8601: 2026-12-31, 2026-12-31T23:59:59, with a space
 * for the T, seconds optional, then nothing or Z (UTC) or +02:00.
 */
int ctl_time_parse(const char *text, int64_t *seconds);

/* "90d", "12h", "30m", "45s", "100ms", a plain number is seconds */
int ctl_duration_parse(const char *text, uint64_t *ms);

/* 2026-11-20T10:15:02.123Z, for programs */
const char *ctl_time_iso(uint64_t ms, char *buf);

/* 2026-11-20 10:15:02, for people */
const char *ctl_time_text(uint64_t ms, char *buf);

uint64_t ctl_time_now(void);               /* Unix ms */


#endif /* _CTL_TIME_TEXT_H_INCLUDED_ */
