
/*
 * Copyright (C) The nginx referral module authors
 *
 * The table of all commands: those with a handler of their own, and those
 * that are a statement in Postgres.
 */


#ifndef _CTL_COMMANDS_H_INCLUDED_
#define _CTL_COMMANDS_H_INCLUDED_


#include "ctl.h"


typedef struct {
    const char          *noun;
    const char          *about;
} ctl_noun_t;


/* ends with a noun of NULL; to be freed */
ctl_command_t *ctl_commands(void);

/* in the order of the help, the same end */
const ctl_noun_t *ctl_nouns(void);


#endif /* _CTL_COMMANDS_H_INCLUDED_ */
