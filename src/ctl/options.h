
/*
 * Copyright (C) The nginx referral module authors
 *
 * The command line's options: one table for parser, environment and help.
 */


#ifndef _CTL_OPTIONS_H_INCLUDED_
#define _CTL_OPTIONS_H_INCLUDED_


#include "ctl.h"


/* what was asked instead of a command */

#define CTL_ASK_HELP     1
#define CTL_ASK_VERSION  2


/*
 * Reads argv[1..]: options may stand anywhere, "--" ends them; operands
 * (noun and verb included) are left in o->argv, which the caller frees.  An
 * option not given is taken from its environment variable.  Returns
 * CTL_DONE, or CTL_USAGE after saying what is wrong; *ask and *used (bits of
 * options that not every command takes) tell what was seen.
 */
int ctl_options_parse(ctl_options_t *o, int argc, char **argv, int *ask,
    unsigned *used);

/* the name of an option, by its bit, for messages */
const char *ctl_options_name(unsigned bit);

/* prints the options of these bits with their help texts */
void ctl_options_help(unsigned bits);


#endif /* _CTL_OPTIONS_H_INCLUDED_ */
