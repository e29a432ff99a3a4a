/* The number of threads that a call may have; see claim.c. */
#ifndef FL_CLAIM_H
#define FL_CLAIM_H

#include <stdint.h>

/* At least 1 and at most `wanted`; at most what is left of `limit` processors, if limit > 0. Give back what you got. */
int fl_claim_threads(int wanted, int limit);
void fl_return_threads(int threads);

/* Other processes kept a team waiting: if that goes on, teams leave one processor free for a while. */
void fl_note_crowd(void);

/* How long the calling thread did not run since its clock was started: where its part of this call began, or up to 0.1 ms before. */
int64_t fl_held_up_ns(void);
void fl_start_clock(void);

#endif
