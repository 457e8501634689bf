
/*
 * Copyright (C) The nginx referral module authors
 *
 * Faults for tests, in builds made with "make FAULTS=1" only; elsewhere the
 * macros are nothing.  The tables in referral_fault.c say what there is.
 *
 *   REFERRAL_FAULT=POINT[:NTH[:TIMES]],...
 *       the process is killed (SIGKILL) at the NTH passage of the point, the
 *       first by default; a point that stands for a call makes it fail, so
 *       many TIMES (1; 0 is for ever)
 *   REFERRAL_FAULT_MARK=DIR
 *       DIR/POINT is made when it happens; a process that finds it there is
 *       not killed: once is enough for all that are started later
 *   REFERRAL_NO_GUARD=GUARD,...
 *       these guards are switched off
 *
 * Passages are counted by each process from referral_fault_init() on.  nginx
 * keeps such variables from its workers unless nginx.conf has "env
 * REFERRAL_FAULT;", or "env REFERRAL_FAULT=...;", of each.
 */


#ifndef _REFERRAL_FAULT_H_INCLUDED_
#define _REFERRAL_FAULT_H_INCLUDED_


#include "referral_core.h"


#if (REFERRAL_FAULTS)


#define REFERRAL_FAULT_BUILD  " (with fault points: for tests only)"


typedef struct {
    const char  *name;
    const char  *about;                    /* a sentence */
    int          error;                    /* errno of a call, 0: a kill */
} referral_fault_t;


/*
 * Reads the environment.  REFERRAL_ERROR with a sentence for a name that is
 * not in the tables, or a number that is none: nothing is armed then.
 */
int referral_fault_init(char *error);

/* tables that end with a NULL name */
const referral_fault_t *referral_fault_points(void);
const referral_fault_t *referral_fault_guards(void);

void referral_fault_pass(const char *point);
int referral_fault_call(const char *point);
void referral_fault_write(const char *point, int fd, const void *buf,
    size_t len);
int referral_fault_guard(const char *guard);


/* a place where the process may be killed */
#define referral_fault(point)               referral_fault_pass(point)

/* 1, with errno set, when the call that follows is to fail */
#define referral_fault_fails(point)         referral_fault_call(point)

/* a place where the process may be killed with half of buf written to fd */
#define referral_fault_half(point, fd, buf, len)                             \
    referral_fault_write(point, fd, buf, len)

/* 0 when the guard is switched off */
#define referral_guard(guard)               referral_fault_guard(guard)


#else

#define REFERRAL_FAULT_BUILD  ""

#define referral_fault(point)
#define referral_fault_fails(point)               0
#define referral_fault_half(point, fd, buf, len)
#define referral_guard(guard)                     1

#endif


#endif /* _REFERRAL_FAULT_H_INCLUDED_ */
