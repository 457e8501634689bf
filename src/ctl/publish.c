
/*
 * Copyright (C) The nginx referral module authors
 */


#include "call.h"
#include "output.h"
#include "pg.h"
#include "progress.h"
#include "publish.h"
#include "time_text.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>


#define CTL_PUBLISH_WAIT   30000           /* ms without a publisher */
#define CTL_PUBLISH_LONG   600000          /* ms with one */
#define CTL_PUBLISH_EVERY  50              /* ms between two looks */


static int ctl_publish_wait(PGconn *pg, const char *request,
    PGresult **answers);
static int ctl_publish_left(const PGresult *answers);
static void ctl_publish_print(const PGresult *answers, int json);


int
ctl_publish(ctl_options_t *o)
{
    int          rc;
    PGconn      *pg;
    PGresult    *asked, *answers;
    const char  *params[1];

    if (o->check) {

        if (o->full) {
            ctl_error("publish takes --full or --check, not both");
            return CTL_USAGE;
        }

        return ctl_publish_check(o);
    }

    rc = ctl_call_open(&pg, o);

    if (rc != CTL_DONE) {
        return rc;
    }

    answers = NULL;
    params[0] = o->full ? "true" : "false";

    asked = ctl_pg_query(pg, &rc, "SELECT referral.publish_request($1)", 1,
                         params);

    if (asked != NULL) {
        rc = ctl_publish_wait(pg, PQgetvalue(asked, 0, 0), &answers);
    }

    if (rc == CTL_DONE) {
        ctl_publish_print(answers, o->json);
    }

    PQclear(asked);
    PQclear(answers);
    PQfinish(pg);

    return rc;
}


/* many codes take as long as they do, while their publisher is seen */

static int
ctl_publish_wait(PGconn *pg, const char *request, PGresult **answers)
{
    int              rc;
    uint64_t         seen, began;
    ctl_progress_t   progress;

    ctl_progress_begin(&progress, "codes");
    began = ctl_time_now();
    seen = began;

    for ( ;; ) {

        PQclear(*answers);
        *answers = ctl_pg_query(pg, &rc, "SELECT redis_run_id, done,"
                                " generation, codes, seconds"
                                " FROM referral.publish_answers($1::bigint)",
                                1, &request);

        if (*answers == NULL) {
            return rc;
        }

        if (PQntuples(*answers)) {

            if (ctl_publish_left(*answers) == 0) {
                return CTL_DONE;
            }

            seen = ctl_time_now();
        }

        if (ctl_progress_interrupted()) {
            ctl_error("interrupted; it was asked for and goes on");
            return CTL_FOUND;
        }

        if (ctl_time_now() - seen > CTL_PUBLISH_WAIT
            || ctl_time_now() - began > CTL_PUBLISH_LONG)
        {
            break;
        }

        usleep(CTL_PUBLISH_EVERY * 1000);
    }

    if (PQntuples(*answers) == 0) {
        ctl_error("nobody publishes: no referral-worker with the setting "
                  "\"redis\" was seen for 30 seconds");

    } else {
        ctl_error("the publisher has not finished within 10 minutes; see the "
                  "log of referral-worker");
    }

    return CTL_UNREACHABLE;
}


static int
ctl_publish_left(const PGresult *answers)
{
    int  i, left;

    left = 0;

    for (i = 0; i < PQntuples(answers); i++) {
        left += (PQgetvalue(answers, i, 1)[0] != 't');
    }

    return left;
}


static void
ctl_publish_print(const PGresult *answers, int json)
{
    int      i;
    char     codes[CTL_PROGRESS_LEN];
    json_t  *list, *one;

    list = json_array();

    for (i = 0; i < PQntuples(answers); i++) {

        if (!json) {
            printf("Redis %s: %s codes, generation %s, after %s s\n",
                   PQgetvalue(answers, i, 0),
                   ctl_progress_number(strtoull(PQgetvalue(answers, i, 3),
                                                NULL, 10), codes),
                   PQgetvalue(answers, i, 2), PQgetvalue(answers, i, 4));
            continue;
        }

        one = json_object();
        json_object_set_new(one, "redis_run_id",
                            json_string(PQgetvalue(answers, i, 0)));
        json_object_set_new(one, "generation",
                            json_integer(atoll(PQgetvalue(answers, i, 2))));
        json_object_set_new(one, "codes",
                            json_integer(atoll(PQgetvalue(answers, i, 3))));
        json_object_set_new(one, "seconds",
                            json_real(atof(PQgetvalue(answers, i, 4))));
        json_array_append_new(list, one);
    }

    if (json) {
        ctl_json_print(list);

    } else {
        json_decref(list);
    }
}
