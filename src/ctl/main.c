
/*
 * Copyright (C) The nginx referral module authors
 */


#include "code.h"
#include "ctl.h"
#include "db.h"
#include "journal.h"
#include "options.h"
#include "output.h"
#include "referral_fault.h"
#include "token.h"

#include <ctype.h>
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>


static const ctl_command_t *ctl_find(int argc, char **argv, int *nouns);
static int ctl_run(const ctl_command_t *cmd, ctl_options_t *o,
    unsigned used);
static int ctl_complain(int argc, char **argv, int nouns);
static void ctl_version(unsigned json);
static void ctl_help(const char *noun);
static void ctl_help_command(const ctl_command_t *cmd);
#if (REFERRAL_FAULTS)
static json_t *ctl_faults(const referral_fault_t *table);
#endif


#define CTL_JOURNAL  (CTL_OPT_JOURNAL|CTL_OPT_JSON)


static const ctl_command_t  ctl_commands[] = {

    { "code", "set", "CODE FIELD=VALUE ...",
      "write a code to Redis, checked as nginx will check it",
      CTL_OPT_REDIS|CTL_OPT_JSON, 2, -1, ctl_code_set,

      "Makes the code or changes the fields given; \"FIELD=\" removes one.\n"
      "The result as a whole is checked before anything is written.\n"
      "\n"
      "  url          destination: an absolute http or https URL; after the\n"
      "               host {click_id}, {code} and {country} may stand\n"
      "  state        active, inactive or exhausted (absent: active)\n"
      "  not_before   the code works from then on\n"
      "  expires      and until then: Unix seconds or ISO 8601, as in\n"
      "               2026-12-31 or 2026-12-31T23:59:59+01:00 (UTC without\n"
      "               a zone)\n"
      "  version      is raised by each change\n"
      "  code_id, program_id, referrer_id\n"
      "               numbers in Postgres, recorded with each click\n"
      "  campaign     free text, recorded with each click\n"
      "  rules        JSON object for later rules\n",

      "  referralctl code set SUMMER25 url=https://example.com/summer\n"
      "  referralctl code set SUMMER25 expires=2026-12-31T23:59:59Z\n"
      "  referralctl code set SUMMER25 state=inactive\n"
      "  referralctl code set SUMMER25 expires=\n" },

    { "code", "show", "CODE",
      "print what Redis has for a code and how it is judged now",
      CTL_OPT_REDIS|CTL_OPT_JSON, 1, 1, ctl_code_show,
      "Exits with 1 when there is no such code.\n",
      "  referralctl code show SUMMER25 --json\n" },

    { "code", "list", "[PATTERN]",
      "list the codes in Redis",
      CTL_OPT_REDIS|CTL_OPT_JSON, 0, 1, ctl_code_list,
      "PATTERN is Redis's: * is any text, ? is one character.  With --json\n"
      "one object a line.  Safe on a busy server (SCAN).\n",
      "  referralctl code list\n"
      "  referralctl code list 'SUMMER*'\n" },

    { "code", "remove", "CODE ...",
      "remove codes from Redis",
      CTL_OPT_REDIS|CTL_OPT_JSON, 1, -1, ctl_code_remove,
      "To switch a code off and keep its answers (410 instead of 404), set\n"
      "state=inactive.  Exits with 1 when one of the codes was not there.\n",
      "  referralctl code remove SUMMER25\n" },

    { "journal", "list", "",
      "list the streams of a journal",
      CTL_JOURNAL, 0, 0, ctl_journal_list,
      "A stream is what one nginx worker recorded in its life.  It is live\n"
      "while that worker runs, then final; aside: referral-worker set it\n"
      "aside, inspect prints the reason.  LAG is what Postgres has not got\n"
      "yet.  Everything is read, and checked as verify does.\n",
      "  referralctl journal list --journal /var/lib/referral/journal\n" },

    { "journal", "inspect", "STREAM|FILE",
      "show a stream, its segments and position, or one segment file",
      CTL_JOURNAL, 1, 1, ctl_journal_inspect,
      "STREAM is an id as list prints it, or its beginning.  FILE is a path\n"
      "of a .seg file, which needs no journal around it.\n",
      "  referralctl journal inspect 0a1b2c\n"
      "  referralctl journal inspect /tmp/copy/00000000000000000001.seg\n" },

    { "journal", "verify", "[STREAM]",
      "read every record and report what is damaged or missing",
      CTL_JOURNAL, 0, 1, ctl_journal_verify,
      "Changes nothing.  Exits with 1 when something was found.\n",
      "  referralctl journal verify --journal /backup/journal\n" },

    { "journal", "export", "[STREAM]",
      "print every record as a line of JSON",
      CTL_JOURNAL|CTL_OPT_FROM, 0, 1, ctl_journal_export,
      "Stream by stream, the oldest first, each in the order of its numbers\n"
      "(--from counts in each).  Absent values are null.  What is damaged is\n"
      "said on stderr, and the exit code is 1 then.\n",
      "  referralctl journal export | jq -r .code | sort | uniq -c\n"
      "  referralctl journal export 0a1b2c --from 1000\n" },

    { "journal", "tail", "",
      "print the newest records, a readable line each",
      CTL_JOURNAL|CTL_OPT_LINES|CTL_OPT_FOLLOW, 0, 0, ctl_journal_tail,
      "Of all streams, by time (UTC).  With --json a line is what export\n"
      "prints.\n",
      "  referralctl journal tail -f\n"
      "  referralctl journal tail -n 100 --json | jq .city\n" },

    { "journal", "adopt", "STREAM",
      "carry on with a stream that was set aside",
      CTL_JOURNAL|CTL_OPT_DB, 1, 1, ctl_journal_adopt,
      "referral-worker sets a stream aside when Postgres has another one's\n"
      "records in its place: the machine was started twice from one image,\n"
      "or copied.  This gives the records whose ids Postgres does not have\n"
      "to a new stream, which the worker carries, and removes the old one.\n"
      "Reload nginx first: a stream that is written is refused.  It can be\n"
      "stopped and run again; nothing is doubled.  Run it as a user who may\n"
      "write the journal, with a role that may read referral.interaction.\n"
      "Exits with 1 when records can not be read; the old stream is kept\n"
      "then.\n",
      "  referralctl journal adopt 0a1b2c --db dbname=referral\n" },

    { "db", "upgrade", "",
      "bring the schema in Postgres up to date",
      CTL_OPT_DB|CTL_OPT_SQL|CTL_OPT_JSON, 0, 0, ctl_db_upgrade,
      "Applies the numbered files NNNN_name.sql that are missing, each in a\n"
      "transaction of its own, and remembers their checksums.  Run twice or\n"
      "by two at once it does no harm.  Refuses to go on when a file was\n"
      "changed after it had been applied.\n",
      "  referralctl db upgrade --db 'host=/run/postgresql dbname=referral'\n"
    },

    { "db", "status", "",
      "compare the schema in Postgres with the files",
      CTL_OPT_DB|CTL_OPT_SQL|CTL_OPT_JSON, 0, 0, ctl_db_status,
      "Exits with 1 when files are pending or changed.  unchecked: applied\n"
      "by psql; upgrade adds the checksum.  missing: applied, and unknown to\n"
      "these files, which are older.\n",
      "  referralctl db status --db dbname=referral --json\n" },

    { "token", "verify", "TOKEN",
      "verify an attribution cookie and print what it says",
      CTL_OPT_SECRET|CTL_OPT_MAX_AGE|CTL_OPT_JSON, 1, 1, ctl_token_verify,
      "Exits with 1 when the token is malformed, forged or too old, or its\n"
      "key is unknown.  TOKEN - is read from standard input.\n",
      "  referralctl token verify --secret /etc/nginx/referral.secret -\n" },

    { "secret", "new", "[ID]",
      "print a new line for a secret file, with 32 random bytes",
      CTL_OPT_JSON, 0, 1, ctl_secret_new,
      "The first line of the file signs, all verify: put a new key first,\n"
      "reload nginx, and remove the old one when its tokens have expired.\n"
      "ID is 1 to 16 of A-Z a-z 0-9 _ -; without it the date.\n",
      "  (umask 077; referralctl secret new > referral.secret)\n" },

    { NULL, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL }
};


int
main(int argc, char **argv)
{
    int                   rc, ask, nouns;
    unsigned              used;
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

    rc = ctl_options_parse(&o, argc, argv, &ask, &used);

    if (rc != CTL_DONE) {
        fprintf(stderr, "See: referralctl --help\n");
        free(o.argv);
        return rc;
    }

    if (ask == CTL_ASK_VERSION) {
        ctl_version(o.json);
        rc = CTL_DONE;
        goto done;
    }

    cmd = ctl_find(o.argc, o.argv, &nouns);

    if (ask == CTL_ASK_HELP) {

        if (cmd != NULL) {
            ctl_help_command(cmd);

        } else if (nouns || o.argc == 0) {
            ctl_help(o.argc ? o.argv[0] : NULL);

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

    if (ctl_flush() != REFERRAL_OK && rc == CTL_DONE && errno != EPIPE) {
        rc = CTL_FOUND;
    }

    return rc;
}


static const ctl_command_t *
ctl_find(int argc, char **argv, int *nouns)
{
    const ctl_command_t  *cmd;

    *nouns = 0;

    if (argc == 0) {
        return NULL;
    }

    for (cmd = ctl_commands; cmd->noun != NULL; cmd++) {

        if (strcmp(cmd->noun, argv[0]) != 0) {
            continue;
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
    int       rc;
    char    **argv;
    unsigned  stray;

    stray = used & ~cmd->options;

    if (stray) {
        ctl_error("%s %s takes no %s", cmd->noun, cmd->verb,
                  ctl_options_name(stray));
        goto usage;
    }

    argv = o->argv;
    o->argv += 2;
    o->argc -= 2;

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

    fprintf(stderr, "See: referralctl %s %s --help\n", cmd->noun, cmd->verb);

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
ctl_help(const char *noun)
{
    char                  left[32];
    const ctl_command_t  *cmd;

    printf("Usage: referralctl %s VERB [operands] [options]\n\n",
           noun ? noun : "NOUN");

    for (cmd = ctl_commands; cmd->noun != NULL; cmd++) {

        if (noun != NULL && strcmp(noun, cmd->noun) != 0) {
            continue;
        }

        snprintf(left, sizeof(left), "%s %s", cmd->noun, cmd->verb);
        printf("  %-17s%s\n", left, cmd->summary);
    }

    if (noun != NULL) {
        printf("\nExamples:\n\n");

        for (cmd = ctl_commands; cmd->noun != NULL; cmd++) {
            if (strcmp(noun, cmd->noun) == 0) {
                printf("%s", cmd->examples);
            }
        }

        printf("\nreferralctl %s VERB --help says more.\n", noun);
        return;
    }

    printf("\nOptions, for every command that needs them:\n\n");
    ctl_options_help(CTL_OPT_JSON|CTL_OPT_DB|CTL_OPT_JOURNAL|CTL_OPT_REDIS);
    printf("  %-27sthe version of this program\n", "-V, --version");

    printf("\nExit code: 0 done, 1 done and something is wrong or missing, "
           "2 bad usage,\n3 a server could not be reached.\n"
           "\n"
           "Examples:\n"
           "\n"
           "  export REFERRAL_REDIS=redis://127.0.0.1:6379\n"
           "  referralctl code set SUMMER25 url=https://example.com/summer\n"
           "  referralctl journal tail -f "
           "--journal /var/lib/referral/journal\n"
           "  referralctl db status --db dbname=referral\n"
           "\n"
           "referralctl NOUN --help and referralctl NOUN VERB --help say "
           "more.\n");
}


static void
ctl_help_command(const ctl_command_t *cmd)
{
    printf("Usage: referralctl %s %s%s%s [options]\n\n", cmd->noun, cmd->verb,
           cmd->operands[0] ? " " : "", cmd->operands);

    printf("%c%s.\n\n%s%sOptions:\n\n", toupper((u_char) cmd->summary[0]),
           cmd->summary + 1, cmd->about, cmd->about[0] ? "\n" : "");

    ctl_options_help(cmd->options);

    printf("\nExamples:\n\n%s", cmd->examples);
}
