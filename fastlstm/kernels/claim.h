/* The number of threads that a call may have; see claim.c. */
#ifndef FL_CLAIM_H
#define FL_CLAIM_H

#include <stdint.h>

/* At least 1 and at most `wanted`; at most what is left of `limit` processors, if limit > 0. Give back what you got. */
int fl_claim_threads(int wanted, int limit);
void fl_return_threads(int threads);

/* A call that a team began then ends. worked_ns is one thread's time without its waits, which may have other causes than busy processors. */
void fl_note_team(int64_t begun_ns, int64_t worked_ns);

/* In that call other processes kept the team waiting: if that goes on, teams leave one processor free for a while. */
void fl_note_crowd(int64_t begun_ns, int64_t waited_ns);

#endif
