
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "import.h"
#include "output.h"
#include "pg.h"
#include "progress.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


static int ctl_export(ctl_options_t *o, const char *what, ctl_arg_e parent,
    const char *fmt);
static int ctl_export_copy(PGconn *pg, const char *what, FILE *out,
    const char *name);
static FILE *ctl_export_open(const char *file, char *temp, size_t size);


/* the columns that imports take, so that what comes out goes in again */

int
ctl_export_orgs(ctl_options_t *o)
{
    return ctl_export(o, "organisations", CTL_ARG_TEXT,
        "COPY (SELECT slug, name, status, max_active_programs, currency,"
        " time_zone, nullif(settings, '{}') AS settings"
        " FROM referral.organisations ORDER BY id)"
        " TO STDOUT (FORMAT csv, HEADER)");
}


int
ctl_export_programs(ctl_options_t *o)
{
    return ctl_export(o, "programs", CTL_ARG_ORG,
        "COPY (SELECT slug, name, status, description, type, starts_at,"
        " ends_at, landing_url, campaign, code_prefix, referral_validity,"
        " attribution, attribution_window, max_referrals_per_referrer,"
        " reward_threshold, nullif(eligibility, '{}') AS eligibility,"
        " nullif(targeting, '{}') AS targeting, terms, terms_required,"
        " time_zone, currency, nullif(settings, '{}') AS settings"
        " FROM referral.programs WHERE organisation_id = %s AND NOT template"
        " ORDER BY id) TO STDOUT (FORMAT csv, HEADER)");
}


int
ctl_export_codes(ctl_options_t *o)
{
    return ctl_export(o, "codes", CTL_ARG_PROGRAM,
        "COPY (SELECT code, external_id, status, campaign, channel,"
        " destination, rules, starts_at, expires_at, max_uses, variant_id,"
        " nullif(settings, '{}') AS settings"
        " FROM referral.codes WHERE program_id = %s ORDER BY id)"
        " TO STDOUT (FORMAT csv, HEADER)");
}


int
ctl_export_referrers(ctl_options_t *o)
{
    return ctl_export(o, "referrers", CTL_ARG_ORG,
        "COPY (SELECT external_id, type, status, eligible,"
        " nullif(attributes, '{}') AS attributes, commission_bp, notes"
        " FROM referral.referrers WHERE organisation_id = %s ORDER BY id)"
        " TO STDOUT (FORMAT csv, HEADER)");
}


static int
ctl_export(ctl_options_t *o, const char *what, ctl_arg_e parent,
    const char *fmt)
{
    int          rc, operands;
    char         sql[1024], temp[PATH_MAX], *id, *org;
    FILE        *out;
    PGconn      *pg;
    const char  *file;

    id = NULL;
    org = NULL;
    operands = (parent != CTL_ARG_TEXT);
    file = (o->argc > operands && strcmp(o->argv[operands], "-") != 0)
           ? o->argv[operands] : NULL;

    rc = ctl_call_open(&pg, o);

    if (rc != CTL_DONE) {
        return rc;
    }

    if (operands) {
        rc = ctl_call_resolve(pg, parent, o->argv[0], &org, &id);
    }

    if (rc != CTL_DONE) {
        PQfinish(pg);
        return rc;
    }

    snprintf(sql, sizeof(sql), fmt, id ? id : "");
    free(org);
    free(id);

    rc = ctl_pg_run(pg, sql, NULL);
    out = NULL;

    if (rc == CTL_DONE) {
        out = ctl_export_open(file, temp, sizeof(temp));
        rc = out ? CTL_DONE : CTL_USAGE;
    }

    if (rc == CTL_DONE) {
        rc = ctl_export_copy(pg, what, out, file ? file : "standard output");
    }

    if (out != NULL && file != NULL) {

        if (fclose(out) != 0 && rc == CTL_DONE) {
            ctl_error("%s: %s", file, strerror(errno));
            rc = CTL_FOUND;
        }

        /* there is the whole file or none */

        if (rc == CTL_DONE && rename(temp, file) != 0) {
            ctl_error("%s: %s", file, strerror(errno));
            rc = CTL_FOUND;
        }

        if (rc != CTL_DONE) {
            (void) unlink(temp);
        }
    }

    PQfinish(pg);

    return rc;
}


static FILE *
ctl_export_open(const char *file, char *temp, size_t size)
{
    FILE  *out;

    if (file == NULL) {
        return stdout;
    }

    if ((size_t) snprintf(temp, size, "%s.%d", file, (int) getpid()) >= size) {
        ctl_error("%s: the name is too long", file);
        return NULL;
    }

    out = fopen(temp, "wxe");

    if (out == NULL) {
        ctl_error("%s: %s", temp, strerror(errno));
    }

    return out;
}


static int
ctl_export_copy(PGconn *pg, const char *what, FILE *out, const char *name)
{
    int              n, rc;
    char            *line;
    uint64_t         rows;
    PGresult        *result;
    ctl_progress_t   progress;

    rc = CTL_DONE;
    rows = 0;

    ctl_progress_begin(&progress, what);

    while ((n = PQgetCopyData(pg, &line, 0)) > 0) {

        if (fwrite(line, 1, n, out) != (size_t) n) {
            ctl_error("%s: %s", name, strerror(errno));
            rc = CTL_FOUND;
        }

        PQfreemem(line);
        ctl_progress_show(&progress, rows++, 0, 0);

        if (ctl_progress_interrupted()) {
            ctl_error("interrupted");
            rc = CTL_FOUND;
        }

        if (rc != CTL_DONE) {
            return rc;
        }
    }

    ctl_progress_end(&progress);

    while ((result = PQgetResult(pg)) != NULL) {

        if (PQresultStatus(result) != PGRES_COMMAND_OK) {
            rc = ctl_pg_failed(pg, result, NULL);
        }

        PQclear(result);
    }

    return rc;
}
