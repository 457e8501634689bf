
/*
 * Copyright (C) The nginx referral module authors
 *
 * Long work: a line on stderr when that is a terminal, and an end in good
 * order when it is interrupted.
 */


#ifndef _CTL_PROGRESS_H_INCLUDED_
#define _CTL_PROGRESS_H_INCLUDED_


#include "referral_core.h"


typedef struct {
    const char          *what;             /* "codes" */
    unsigned             terminal:1;
    uint64_t             started;          /* ms */
    uint64_t             shown;
} ctl_progress_t;


/* from then on SIGINT and SIGTERM are only noted, the second one ends all */
void ctl_progress_begin(ctl_progress_t *p, const char *what);

/* total 0: not known; both in any unit */
void ctl_progress_show(ctl_progress_t *p, uint64_t rows, uint64_t done,
    uint64_t total);

/* takes the line away */
void ctl_progress_end(ctl_progress_t *p);

int ctl_progress_interrupted(void);

/* "1,234,567" */
const char *ctl_progress_number(uint64_t n, char *buf);
#define CTL_PROGRESS_LEN  32               /* size of buf */


#endif /* _CTL_PROGRESS_H_INCLUDED_ */
