/* What is the same for the calls of both passes: how one begins and ends. */
#include "clock.h"
#include "fastlstm.h"
#include "float_state.h"
#include "pace.h"

int fl_begin_job(fl_job *job, fl_index bytes)
{
    job->scratch = fl_borrow((size_t)bytes);
    atomic_init(&job->watch.stop, 0);
    job->begun = 0;
    return job->scratch ? FL_OK : FL_NO_MEMORY;
}

uint64_t fl_begin_work(fl_job *job, int thread)
{
    if (thread == 0)
        job->begun = 1;
    if (job->plan.threads > 1)
        fl_start_clock();
    return fl_enter_float_state();
}

void fl_end_work(fl_job *job, int thread, uint64_t found, int status)
{
    if (job->plan.threads == 2) /* groups of layers are no equal parts */
        job->worked_ns[thread] = status == FL_OK && job->plan.layer_groups == 1 ? fl_worked_ns() : 0;
    fl_leave_float_state(found);
}

void fl_end_job(fl_job *job)
{
    fl_give_back(job->scratch);
    job->scratch = NULL;
}

void fl_learn(const fl_job *job) { fl_note_pace(job->plan.share, job->worked_ns[0], job->worked_ns[1]); }
