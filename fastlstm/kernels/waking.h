/* When sleeping workers are worth waking up; see waking.c. */
#ifndef FL_WAKING_H
#define FL_WAKING_H

#include "team.h"

/* Whether the calling thread's workers sleep by now, as far as one can tell. */
int fl_workers_sleep(void);

/* A call would be so much shorter for a team that is awake: whether it, and those before it that computed alone, have lost more by now
 * than it costs to wake the team up. */
int fl_is_worth_waking(int64_t gain_ns);

/* Tests: whether teams are woken up for any gain. */
void fl_wake_always(int always);

/* Every thread of a team that slept calls it first; each waits until all are awake. */
void fl_measure_waking(fl_barrier *barrier, int size, int thread);

/* The calling thread's team has done its work. */
void fl_note_awake(void);

#endif
