/* Where a thread's time goes while it has its part of a call; see clock.c. */
#ifndef FL_CLOCK_H
#define FL_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t fl_now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* The calling thread's part of a call begins. */
void fl_start_clock(void);

/* It has waited for others of its team. */
void fl_count_wait(int64_t ns);

/* How long it has worked since its clock was started, waits left out. */
int64_t fl_worked_ns(void);

/* How long it did not run, as another process had its processor: since its clock was started, or up to 0.1 ms before. */
int64_t fl_held_up_ns(void);

#endif
