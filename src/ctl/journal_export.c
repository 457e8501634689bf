
/*
 * Copyright (C) The nginx referral module authors
 */


#include "journal.h"
#include "output.h"
#include "record.h"



typedef struct {
    ctl_journal_t  *journal;
    int             closed;                /* nobody reads our output */
} ctl_export_t;


static int ctl_export_record(void *data, referral_stream_t *s,
    const referral_frame_t *frame, const referral_record_t *rec);
static void ctl_export_problem(void *data, referral_stream_t *s,
    const ctl_journal_problem_t *problem);


int
ctl_journal_export(ctl_options_t *o)
{
    int                  rc;
    size_t               i;
    ctl_export_t         ctx;
    ctl_journal_t        j;
    ctl_journal_sum_t    sum;
    ctl_journal_walk_t   walk;

    rc = ctl_journal_open(&j, o, o->argc ? o->argv[0] : NULL);

    if (rc != CTL_DONE) {
        return rc;
    }

    ctx.journal = &j;
    ctx.closed = 0;

    walk.record = ctl_export_record;
    walk.problem = ctl_export_problem;
    walk.data = &ctx;

    for (i = 0; i < j.nstreams && !ctx.closed; i++) {

        if (ctl_journal_walk(&j, j.streams[i], o->from, &walk, &sum)
                != REFERRAL_OK
            || sum.problems)
        {
            rc = CTL_FOUND;
        }
    }

    ctl_journal_close(&j);

    return rc;
}


static int
ctl_export_record(void *data, referral_stream_t *s,
    const referral_frame_t *frame, const referral_record_t *rec)
{
    ctl_export_t  *ctx;

    ctx = data;

    ctl_json_line(ctl_record_json(s->name, frame->number, rec));

    if (ferror(stdout)) {
        ctx->closed = 1;
        return REFERRAL_DONE;
    }

    return REFERRAL_OK;
}


static void
ctl_export_problem(void *data, referral_stream_t *s,
    const ctl_journal_problem_t *problem)
{
    ctl_journal_complain(((ctl_export_t *) data)->journal, s, problem);
}
