
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "commands.h"
#include "options.h"
#include "output.h"
#include "referral_fault.h"

#include <ctype.h>
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>


static const ctl_command_t *ctl_find(const ctl_command_t *cmd, int argc,
    char **argv, int *nouns);
static int ctl_run(const ctl_command_t *cmd, ctl_options_t *o,
    unsigned used);
static int ctl_complain(int argc, char **argv, int nouns);
static void ctl_version(unsigned json);
static void ctl_help(const ctl_command_t *commands);
static void ctl_help_verbs(const ctl_command_t *cmd, const char *noun);
static void ctl_help_noun(const ctl_command_t *commands, const char *noun);
static void ctl_help_command(const ctl_command_t *cmd);
#if (REFERRAL_FAULTS)
static json_t *ctl_faults(const referral_fault_t *table);
#endif


int
main(int argc, char **argv)
{
    int                   rc, ask, nouns;
    unsigned              used;
    ctl_command_t        *commands;
    ctl_options_t         o;
    const ctl_command_t  *cmd;
#if (REFERRAL_FAULTS)
    char                  error[REFERRAL_ERROR_LEN];
#endif

    /* for the width of characters only: numbers keep their points */

    if (setlocale(LC_CTYPE, "C.UTF-8") == NULL) {
        (void) setlocale(LC_CTYPE, "");
    }

    signal(SIGPIPE, SIG_IGN);

#if (REFERRAL_FAULTS)
    if (referral_fault_init(error) != REFERRAL_OK) {
        ctl_error("%s", error);
        return CTL_USAGE;
    }
#endif

    commands = ctl_commands();
    rc = ctl_options_parse(&o, argc, argv, &ask, &used);

    if (rc != CTL_DONE) {
        fprintf(stderr, "See: referralctl --help\n");
        goto done;
    }

    if (ask == CTL_ASK_VERSION) {
        ctl_version(o.json);
        rc = CTL_DONE;
        goto done;
    }

    cmd = ctl_find(commands, o.argc, o.argv, &nouns);

    if (ask == CTL_ASK_HELP) {

        if (cmd != NULL) {
            ctl_help_command(cmd);

        } else if (o.argc == 0) {
            ctl_help(commands);

        } else if (nouns) {
            ctl_help_noun(commands, o.argv[0]);

        } else {
            rc = ctl_complain(o.argc, o.argv, nouns);
        }

    } else if (cmd == NULL) {
        rc = ctl_complain(o.argc, o.argv, nouns);

    } else {
        rc = ctl_run(cmd, &o, used);
    }

done:

    free(o.argv);
    free(commands);

    if (ctl_flush() != REFERRAL_OK && rc == CTL_DONE && errno != EPIPE) {
        rc = CTL_FOUND;
    }

    return rc;
}


static const ctl_command_t *
ctl_find(const ctl_command_t *cmd, int argc, char **argv, int *nouns)
{
    *nouns = 0;

    if (argc == 0) {
        return NULL;
    }

    for ( /* void */ ; cmd->noun != NULL; cmd++) {

        if (strcmp(cmd->noun, argv[0]) != 0) {
            continue;
        }

        if (cmd->verb[0] == '\0') {
            return cmd;
        }

        (*nouns)++;

        if (argc > 1 && strcmp(cmd->verb, argv[1]) == 0) {
            return cmd;
        }
    }

    return NULL;
}


static int
ctl_run(const ctl_command_t *cmd, ctl_options_t *o, unsigned used)
{
    int       rc, words;
    char    **argv;
    unsigned  stray;

    stray = used & ~cmd->options;

    if (stray) {
        ctl_error("%s%s%s takes no %s", cmd->noun, cmd->verb[0] ? " " : "",
                  cmd->verb, ctl_options_name(stray));
        goto usage;
    }

    argv = o->argv;
    words = cmd->verb[0] ? 2 : 1;
    o->argv += words;
    o->argc -= words;
    o->call = cmd->call;

    if (o->argc < cmd->min || (cmd->max >= 0 && o->argc > cmd->max)) {

        if (o->argc < cmd->min) {
            ctl_error("%s %s needs: %s", cmd->noun, cmd->verb, cmd->operands);

        } else {
            ctl_error("%s %s: \"%s\" is too much", cmd->noun, cmd->verb,
                      o->argv[cmd->max]);
        }

        o->argv = argv;
        goto usage;
    }

    rc = cmd->handler(o);
    o->argv = argv;

    return rc;

usage:

    fprintf(stderr, "See: referralctl %s%s%s --help\n", cmd->noun,
            cmd->verb[0] ? " " : "", cmd->verb);

    return CTL_USAGE;
}


static int
ctl_complain(int argc, char **argv, int nouns)
{
    if (argc == 0) {
        ctl_error("what to do?");
        fprintf(stderr, "See: referralctl --help\n");

    } else if (nouns == 0) {
        ctl_error("there is no \"%s\"", argv[0]);
        fprintf(stderr, "See: referralctl --help\n");

    } else {
        if (argc == 1) {
            ctl_error("what to do with the %s?", argv[0]);

        } else {
            ctl_error("%s: there is no \"%s\"", argv[0], argv[1]);
        }

        fprintf(stderr, "See: referralctl %s --help\n", argv[0]);
    }

    return CTL_USAGE;
}


static void
ctl_version(unsigned json)
{
    json_t  *version;

    if (!json) {
        printf("referralctl %s%s\n", REFERRAL_VERSION, REFERRAL_FAULT_BUILD);
        return;
    }

    version = json_object();
    json_object_set_new(version, "version", json_string(REFERRAL_VERSION));

#if (REFERRAL_FAULTS)
    json_object_set_new(version, "faults",
                        ctl_faults(referral_fault_points()));
    json_object_set_new(version, "guards",
                        ctl_faults(referral_fault_guards()));
#endif

    ctl_json_print(version);
}


#if (REFERRAL_FAULTS)

static json_t *
ctl_faults(const referral_fault_t *table)
{
    json_t  *list, *fault;

    list = json_array();

    for ( /* void */ ; table->name != NULL; table++) {
        fault = json_object();

        json_object_set_new(fault, "name", json_string(table->name));
        json_object_set_new(fault, "about", json_string(table->about));
        json_object_set_new(fault, "fails", json_boolean(table->error));

        json_array_append_new(list, fault);
    }

    return list;
}

#endif


static void
ctl_help(const ctl_command_t *commands)
{
    const ctl_noun_t  *noun;

    printf("Usage: referralctl NOUN VERB [operands] [options]\n\n");

    for (noun = ctl_nouns(); noun->noun != NULL; noun++) {
        printf("  %-12s%s\n", noun->noun, noun->about);
        ctl_help_verbs(commands, noun->noun);
    }

    printf("\nOptions, for every command that needs them:\n\n");
    ctl_options_help(CTL_OPT_JSON|CTL_OPT_DB|CTL_OPT_JOURNAL|CTL_OPT_REDIS);
    printf("  %-27sthe version of this program\n", "-V, --version");

    printf("\nExit code: 0 done, 1 done and something is wrong or missing, "
           "2 bad usage,\n3 a server could not be reached.\n"
           "\n"
           "Examples:\n"
           "\n"
           "  export REFERRAL_DB=dbname=referral\n"
           "  referralctl org create acme\n"
           "  referralctl program create acme summer "
           "landing_url=https://example.com/s\n"
           "  referralctl program enable acme/summer\n"
           "  referralctl code create acme/summer SUMMER25\n"
           "  referralctl journal tail -f "
           "--journal /var/lib/referral/journal\n"
           "\n"
           "referralctl NOUN --help and referralctl NOUN VERB --help say "
           "more.\n");
}


/* in lines of less than 80 columns */

static void
ctl_help_verbs(const ctl_command_t *cmd, const char *noun)
{
    size_t  column;

    column = 0;

    for ( /* void */ ; cmd->noun != NULL; cmd++) {

        if (strcmp(cmd->noun, noun) != 0 || cmd->verb[0] == '\0') {
            continue;
        }

        if (column + 1 + strlen(cmd->verb) > 78) {
            printf("\n");
            column = 0;
        }

        column += column ? printf(" %s", cmd->verb)
                         : printf("%14s%s", "", cmd->verb);
    }

    if (column) {
        printf("\n");
    }
}


static void
ctl_help_noun(const ctl_command_t *commands, const char *noun)
{
    char                  left[32];
    const ctl_command_t  *cmd;

    printf("Usage: referralctl %s VERB [operands] [options]\n\n", noun);

    for (cmd = commands; cmd->noun != NULL; cmd++) {

        if (strcmp(noun, cmd->noun) == 0) {
            snprintf(left, sizeof(left), "%s %s", cmd->noun, cmd->verb);
            printf("  %-21s%s\n", left, cmd->summary);
        }
    }

    printf("\nExamples:\n\n");

    for (cmd = commands; cmd->noun != NULL; cmd++) {

        if (strcmp(noun, cmd->noun) == 0) {
            printf("%s", cmd->examples);
        }
    }

    printf("\nreferralctl %s VERB --help says more.\n", noun);
}


static void
ctl_help_command(const ctl_command_t *cmd)
{
    printf("Usage: referralctl %s%s%s", cmd->noun, cmd->verb[0] ? " " : "",
           cmd->verb);

    if (cmd->call != NULL) {
        ctl_call_usage(cmd->call);

    } else {
        printf("%s%s", cmd->operands[0] ? " " : "", cmd->operands);
    }

    printf(" [options]\n\n%c%s.\n\n%s%s",
           toupper((u_char) cmd->summary[0]), cmd->summary + 1, cmd->about,
           cmd->about[0] ? "\n" : "");

    if (cmd->call != NULL) {
        ctl_call_help(cmd->call);
    }

    printf("Options:\n\n");
    ctl_options_help(cmd->options);

    printf("\nExamples:\n\n%s", cmd->examples);
}
