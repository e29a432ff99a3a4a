/* How fast the two threads of a pair are beside each other; see pace.c. */
#ifndef FL_PACE_H
#define FL_PACE_H

#include <stdint.h>

enum { FL_EVEN = 500 };

/* Per mille of its pair's work that the calling thread is to take, as the first of the two: FL_EVEN, or what made both end at the same
 * time lately. */
int fl_pace(void);

/* Of a call in which the calling thread had so much of the work: how long each of the pair worked, without waiting; 0: not to the end. */
void fl_note_pace(int share, int64_t first_ns, int64_t second_ns);

#endif
