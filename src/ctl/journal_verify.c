
/*
 * Copyright (C) The nginx referral module authors
 */


#include "journal.h"
#include "output.h"

#include <inttypes.h>
#include <string.h>


typedef struct {
    ctl_journal_t  *journal;
    json_t         *problems;              /* NULL: for people */
} ctl_verify_t;


static void ctl_verify_problem(void *data, referral_stream_t *s,
    const ctl_journal_problem_t *problem);
static void ctl_verify_json(ctl_verify_t *ctx, const ctl_journal_sum_t *all);


int
ctl_journal_verify(ctl_options_t *o)
{
    int                  rc;
    size_t               i;
    ctl_verify_t         ctx;
    ctl_journal_t        j;
    ctl_journal_sum_t    sum, all;
    ctl_journal_walk_t   walk;

    rc = ctl_journal_open(&j, o, o->argc ? o->argv[0] : NULL);

    if (rc != CTL_DONE) {
        return rc;
    }

    ctx.journal = &j;
    ctx.problems = o->json ? json_array() : NULL;

    walk.record = NULL;
    walk.problem = ctl_verify_problem;
    walk.data = &ctx;

    memset(&all, 0, sizeof(ctl_journal_sum_t));

    for (i = 0; i < j.nstreams; i++) {

        /* what could not be read is one of the problems */

        (void) ctl_journal_walk(&j, j.streams[i], 0, &walk, &sum);

        all.records += sum.records;
        all.problems += sum.problems;
    }

    if (o->json) {
        ctl_verify_json(&ctx, &all);

    } else {
        printf("%zu stream%s, %" PRIu64 " record%s, %" PRIu64 " problem%s\n",
               j.nstreams, j.nstreams == 1 ? "" : "s",
               all.records, all.records == 1 ? "" : "s",
               all.problems, all.problems == 1 ? "" : "s");
    }

    ctl_journal_close(&j);

    return all.problems ? CTL_FOUND : CTL_DONE;
}


static void
ctl_verify_problem(void *data, referral_stream_t *s,
    const ctl_journal_problem_t *problem)
{
    char           which[64], *clean;
    json_t        *json;
    ctl_verify_t  *ctx;

    ctx = data;

    if (ctx->problems != NULL) {
        json = json_object();

        json_object_set_new(json, "stream", json_string(s->name));
        json_object_set_new(json, "file",
                            ctl_json_text(problem->segment,
                                          strlen(problem->segment)));
        json_object_set_new(json, "offset", problem->segment[0]
                                            ? json_integer(problem->offset)
                                            : json_null());
        json_object_set_new(json, "first", ctl_json_id(problem->first));
        json_object_set_new(json, "last", ctl_json_id(problem->last));
        json_object_set_new(json, "problem",
                            ctl_json_text(problem->text,
                                          strlen(problem->text)));

        json_array_append_new(ctx->problems, json);
        return;
    }

    printf("%s", s->name);

    if (problem->segment[0] != '\0') {
        printf("/%s at %" PRIu64, problem->segment, problem->offset);
    }

    which[0] = '\0';

    if (problem->first && problem->first == problem->last) {
        snprintf(which, sizeof(which), "record %" PRIu64 ": ",
                 problem->first);

    } else if (problem->first) {
        snprintf(which, sizeof(which), "records %" PRIu64 " to %" PRIu64
                 ": ", problem->first, problem->last);
    }

    clean = ctl_clean(problem->text, strlen(problem->text));
    printf(": %s%s\n", which, clean);
    free(clean);
}


static void
ctl_verify_json(ctl_verify_t *ctx, const ctl_journal_sum_t *all)
{
    json_t  *json;

    json = json_object();

    json_object_set_new(json, "journal",
                        ctl_json_text(ctx->journal->path,
                                      strlen(ctx->journal->path)));
    json_object_set_new(json, "streams",
                        json_integer(ctx->journal->nstreams));
    json_object_set_new(json, "records", json_integer(all->records));
    json_object_set_new(json, "problems", ctx->problems);

    ctl_json_print(json);
}
