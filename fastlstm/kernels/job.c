/* What is the same for the calls of both passes: how one begins and ends. */
#include "fastlstm.h"
#include "pace.h"

int fl_begin_job(fl_job *job, fl_index bytes)
{
    job->scratch = fl_borrow((size_t)bytes);
    atomic_init(&job->watch.stop, 0);
    job->begun = 0;
    return job->scratch ? FL_OK : FL_NO_MEMORY;
}

void fl_end_job(fl_job *job)
{
    fl_give_back(job->scratch);
    job->scratch = NULL;
}

void fl_learn(const fl_job *job) { fl_note_pace(job->plan.share, job->worked_ns[0], job->worked_ns[1]); }
