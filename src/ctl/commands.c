
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "code.h"
#include "commands.h"
#include "db.h"
#include "import.h"
#include "journal.h"
#include "output.h"
#include "publish.h"
#include "token.h"

#include <string.h>


#define CTL_JOURNAL  (CTL_OPT_JOURNAL|CTL_OPT_JSON)
#define CTL_CALL     (CTL_OPT_DB|CTL_OPT_JSON|CTL_OPT_ACTOR|CTL_OPT_ORG)
#define CTL_CODES    (CTL_CALL|CTL_OPT_REDIS)


static const ctl_command_t  ctl_commands_own[] = {

    { "code", "set", "CODE FIELD=VALUE ...",
      "write a code to Redis only, without Postgres",
      CTL_OPT_REDIS|CTL_OPT_JSON, 2, -1, ctl_code_set,

      "For codes that live in Redis alone; those in Postgres are written by\n"
      "the worker, see code create and code update.  Makes the code or\n"
      "changes the fields given; \"FIELD=\" removes one.\n"
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
      "  referralctl code set SUMMER25 expires=\n", NULL },

    { "code", "show", "CODE",
      "print a code and how it is judged now",
      CTL_CODES, 1, 1, ctl_code_show_where,
      "In Postgres with --db, what Redis has of it with --redis; without\n"
      "either where REFERRAL_DB or REFERRAL_REDIS says, Postgres first.\n"
      "Exits with 1 when there is no such code.\n",
      "  referralctl code show SUMMER25 --db dbname=referral\n"
      "  referralctl code show SUMMER25 --redis redis://127.0.0.1 --json\n",
      &ctl_code_show_call },

    { "code", "list", "[PATTERN]",
      "list codes",
      CTL_CODES, 0, -1, ctl_code_list_where,
      "In Postgres with --db, those in Redis with --redis; without either\n"
      "where REFERRAL_DB or REFERRAL_REDIS says, Postgres first.  In PATTERN\n"
      "* is any text, ? is one character.  Redis takes no keys, gives one\n"
      "object a line with --json, and is not held up (SCAN).\n",
      "  referralctl code list 'SUMMER*' program=acme/summer verdict=valid\n"
      "  referralctl code list --redis redis://127.0.0.1:6379\n",
      &ctl_code_list_call },

    { "code", "remove", "CODE ...",
      "remove codes from Redis",
      CTL_OPT_REDIS|CTL_OPT_JSON, 1, -1, ctl_code_remove,
      "To switch a code off and keep its answers (410 instead of 404), set\n"
      "state=inactive.  Exits with 1 when one of the codes was not there.\n",
      "  referralctl code remove SUMMER25\n", NULL },

    { "org", "import", "[FILE]",
      "make and change organisations from a CSV file",
      CTL_CALL, 0, 1, ctl_import_orgs,
      "The first line names the columns: slug, and any of name, status,\n"
      "max_active_programs, currency, time_zone, settings.  All else is as\n"
      "code import has it.\n",
      "  referralctl org import tenants.csv\n", NULL },

    { "org", "export", "[FILE]",
      "write the organisations as CSV",
      CTL_CALL & ~CTL_OPT_JSON, 0, 1, ctl_export_orgs,
      "With the columns that org import takes.\n",
      "  referralctl org export > tenants.csv\n", NULL },

    { "program", "import", "ORG [FILE]",
      "make and change programs from a CSV file",
      CTL_CALL, 1, 2, ctl_import_programs,
      "The first line names the columns: slug, status, and the keys of\n"
      "program create.  All else is as code import has it.\n",
      "  referralctl program import acme programs.csv\n", NULL },

    { "program", "export", "ORG [FILE]",
      "write the programs of an organisation as CSV",
      CTL_CALL & ~CTL_OPT_JSON, 1, 2, ctl_export_programs,
      "With the columns that program import takes, without templates.\n",
      "  referralctl program export acme > programs.csv\n", NULL },

    { "code", "import", "PROGRAM [FILE]",
      "make and change codes from a CSV file",
      CTL_CALL, 1, 2, ctl_import_codes,
      "The first line names the columns, in any order:\n"
      "\n"
      "  code          and, or instead, external_id, a referrer who then\n"
      "                gets a code of its own\n"
      "  status        active or disabled\n"
      "  name          an automatic code begins with it\n"
      "  campaign, channel, destination, rules, starts_at, expires_at,\n"
      "  max_uses, variant_id, settings\n"
      "                as in code create; an empty field changes nothing\n"
      "\n"
      "Codes that are there are changed where the file differs.  1,000 rows\n"
      "are one transaction: it can be interrupted and run again, and run\n"
      "twice it changes nothing more.  Lines that can not be taken are named\n"
      "and do not stop the others; the exit code is 1 then.  UTF-8, comma,\n"
      "quotes as in RFC 4180.  Without FILE, or for -, standard input.\n",
      "  referralctl code import acme/summer codes.csv\n"
      "  xz -dc codes.csv.xz | referralctl code import acme/summer\n", NULL },

    { "code", "export", "PROGRAM [FILE]",
      "write the codes of a program as CSV",
      CTL_CALL & ~CTL_OPT_JSON, 1, 2, ctl_export_codes,
      "With the columns that code import takes; times in UTC.  FILE appears\n"
      "when it is whole.\n",
      "  referralctl code export acme/summer > codes.csv\n", NULL },

    { "referrer", "import", "ORG [FILE]",
      "make and change referrers from a CSV file",
      CTL_CALL, 1, 2, ctl_import_referrers,
      "The first line names the columns: external_id, and any of type,\n"
      "status, eligible, attributes, commission_bp, notes, first_name,\n"
      "last_name, name, email, phone, company, address.  All else is as code\n"
      "import has it.\n",
      "  referralctl referrer import acme users.csv\n", NULL },

    { "referrer", "export", "ORG [FILE]",
      "write the referrers of an organisation as CSV",
      CTL_CALL & ~CTL_OPT_JSON, 1, 2, ctl_export_referrers,
      "With the columns that referrer import takes, without the contacts.\n",
      "  referralctl referrer export acme > users.csv\n", NULL },

    { "publish", "", "",
      "have the worker publish now, or compare Redis with Postgres",
      CTL_CALL|CTL_OPT_REDIS|CTL_OPT_FULL|CTL_OPT_CHECK, 0, 0, ctl_publish,
      "The worker publishes each change by itself.  This asks for it, waits\n"
      "until Redis has all that was committed before, and tells how many\n"
      "codes there are and how long it took.  Exits with 3 when no publisher\n"
      "is seen for 30 seconds.\n"
      "\n"
      "With --check nothing is asked for: every field of every code is\n"
      "compared.  What differs is looked at twice, as it may be on its way,\n"
      "and printed; the exit code is 1 then.  Hashes without code_id were\n"
      "written by hand and are only counted.\n",
      "  referralctl publish --db dbname=referral\n"
      "  referralctl publish --full\n"
      "  referralctl publish --check --redis redis://127.0.0.1:6379\n", NULL },

    { "journal", "list", "",
      "list the streams of a journal",
      CTL_JOURNAL, 0, 0, ctl_journal_list,
      "A stream is what one nginx worker recorded in its life.  It is live\n"
      "while that worker runs, then final; aside: referral-worker set it\n"
      "aside, inspect prints the reason.  LAG is what Postgres has not got\n"
      "yet.  Everything is read, and checked as verify does.\n",
      "  referralctl journal list --journal /var/lib/referral/journal\n",
      NULL },

    { "journal", "inspect", "STREAM|FILE",
      "show a stream, its segments and position, or one segment file",
      CTL_JOURNAL, 1, 1, ctl_journal_inspect,
      "STREAM is an id as list prints it, or its beginning.  FILE is a path\n"
      "of a .seg file, which needs no journal around it.\n",
      "  referralctl journal inspect 0a1b2c\n"
      "  referralctl journal inspect /tmp/copy/00000000000000000001.seg\n",
      NULL },

    { "journal", "verify", "[STREAM]",
      "read every record and report what is damaged or missing",
      CTL_JOURNAL, 0, 1, ctl_journal_verify,
      "Changes nothing.  Exits with 1 when something was found.\n",
      "  referralctl journal verify --journal /backup/journal\n", NULL },

    { "journal", "export", "[STREAM]",
      "print every record as a line of JSON",
      CTL_JOURNAL|CTL_OPT_FROM, 0, 1, ctl_journal_export,
      "Stream by stream, the oldest first, each in the order of its numbers\n"
      "(--from counts in each).  Absent values are null.  What is damaged is\n"
      "said on stderr, and the exit code is 1 then.\n",
      "  referralctl journal export | jq -r .code | sort | uniq -c\n"
      "  referralctl journal export 0a1b2c --from 1000\n", NULL },

    { "journal", "tail", "",
      "print the newest records, a readable line each",
      CTL_JOURNAL|CTL_OPT_LINES|CTL_OPT_FOLLOW, 0, 0, ctl_journal_tail,
      "Of all streams, by time (UTC).  With --json a line is what export\n"
      "prints.\n",
      "  referralctl journal tail -f\n"
      "  referralctl journal tail -n 100 --json | jq .city\n", NULL },

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
      "  referralctl journal adopt 0a1b2c --db dbname=referral\n", NULL },

    { "db", "upgrade", "",
      "bring the schema in Postgres up to date",
      CTL_OPT_DB|CTL_OPT_SQL|CTL_OPT_JSON, 0, 0, ctl_db_upgrade,
      "Applies the numbered files NNNN_name.sql that are missing, each in a\n"
      "transaction of its own, and remembers their checksums.  Run twice or\n"
      "by two at once it does no harm.  Refuses to go on when a file was\n"
      "changed after it had been applied.\n",
      "  referralctl db upgrade --db 'host=/run/postgresql dbname=referral'\n",
      NULL },

    { "db", "status", "",
      "compare the schema in Postgres with the files",
      CTL_OPT_DB|CTL_OPT_SQL|CTL_OPT_JSON, 0, 0, ctl_db_status,
      "Exits with 1 when files are pending or changed.  unchecked: applied\n"
      "by psql; upgrade adds the checksum.  missing: applied, and unknown to\n"
      "these files, which are older.\n",
      "  referralctl db status --db dbname=referral --json\n", NULL },

    { "token", "verify", "TOKEN",
      "verify an attribution cookie and print what it says",
      CTL_OPT_SECRET|CTL_OPT_MAX_AGE|CTL_OPT_JSON, 1, 1, ctl_token_verify,
      "Exits with 1 when the token is malformed, forged or too old, or its\n"
      "key is unknown.  TOKEN - is read from standard input.\n",
      "  referralctl token verify --secret /etc/nginx/referral.secret -\n",
      NULL },

    { "secret", "new", "[ID]",
      "print a new line for a secret file, with 32 random bytes",
      CTL_OPT_JSON, 0, 1, ctl_secret_new,
      "The first line of the file signs, all verify: put a new key first,\n"
      "reload nginx, and remove the old one when its tokens have expired.\n"
      "ID is 1 to 16 of A-Z a-z 0-9 _ -; without it the date.\n",
      "  (umask 077; referralctl secret new > referral.secret)\n", NULL },

    { NULL, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL, NULL }
};


static const ctl_noun_t  ctl_noun_list[] = {
    { "org", "organisations, the tenants" },
    { "program", "programs of an organisation" },
    { "referrer", "who refers: customers, partners, employees ..." },
    { "code", "codes, as they are printed and shared" },
    { "referral", "who was referred by whom, and what became of it" },
    { "conversion", "orders and other successes, and refunds" },
    { "rule", "what is earned, in versions" },
    { "reward", "what was earned" },
    { "payout", "what is paid to referrers" },
    { "statement", "a referrer's account in a period" },
    { "ledger", "accounts, transfers and the proof that they add up" },
    { "report", "figures of a program" },
    { "person", "what is kept about somebody: export, erasure" },
    { "visitor", "the same for the id in a visitor's cookie" },
    { "webhook", "events to other systems" },
    { "publish", "codes, from Postgres to Redis" },
    { "journal", "what nginx recorded and the worker carries" },
    { "db", "the schema in Postgres" },
    { "token", "attribution cookies" },
    { "secret", "keys of cookies" },
    { NULL, NULL }
};


static const ctl_call_t  *ctl_call_tables[] = {
    ctl_tenant_calls, ctl_code_calls, ctl_referral_calls, ctl_money_calls,
    ctl_webhook_calls, ctl_report_calls
};


ctl_command_t *
ctl_commands(void)
{
    size_t             i, n;
    ctl_command_t     *list;
    const ctl_call_t  *call;

    n = sizeof(ctl_commands_own) / sizeof(ctl_commands_own[0]);

    for (i = 0; i < sizeof(ctl_call_tables) / sizeof(ctl_call_t *); i++) {
        for (call = ctl_call_tables[i]; call->noun != NULL; call++) {
            n++;
        }
    }

    list = ctl_alloc(n * sizeof(ctl_command_t));
    n = 0;

    for (i = 0; i < sizeof(ctl_call_tables) / sizeof(ctl_call_t *); i++) {
        for (call = ctl_call_tables[i]; call->noun != NULL; call++) {
            ctl_call_command(call, &list[n++]);
        }
    }

    memcpy(&list[n], ctl_commands_own, sizeof(ctl_commands_own));

    return list;
}


const ctl_noun_t *
ctl_nouns(void)
{
    return ctl_noun_list;
}
