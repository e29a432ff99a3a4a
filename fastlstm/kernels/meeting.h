/* What it costs the threads of a team to meet; see meeting.c. */
#ifndef FL_MEETING_H
#define FL_MEETING_H

#include "team.h"

/* Nanoseconds from the last thread's arrival until all go on, where processors are neighbours. */
double fl_usual_meeting_ns(int threads);

/* How many times the usual price meetings take now: 1 if nobody has measured it lately. */
double fl_meeting_price(void);

/* Whether the caller's team is to measure it: true now and then, for one team of all. */
int fl_meeting_is_due(void);

/* Measures it: called by every thread of the team, with a barrier that all have. */
void fl_measure_meeting(fl_barrier *barrier, int size, int thread);

#endif
