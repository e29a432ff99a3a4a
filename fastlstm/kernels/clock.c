/* Where a thread's time goes while it has its part of a call: it works, it waits for its team, or another process has its processor. */
#include "clock.h"

static _Thread_local int64_t begun, waited;

/* When the processor's time was asked for, and what it was. To ask takes 0.4 us, much of a call of 20: the answer serves the calls that
 * follow at once, too. They may have an idle pause between them, which is then a small part of what counts as held up (FL_SLICE_NS). */
static _Thread_local int64_t asked, processor_then;
static const int64_t ASK_NS = 100000;

static int64_t my_processor_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

void fl_start_clock(void)
{
    begun = fl_now_ns();
    waited = 0;
    if (begun - asked < ASK_NS)
        return;
    asked = begun;
    processor_then = my_processor_ns();
}

void fl_count_wait(int64_t ns) { waited += ns; }

int64_t fl_worked_ns(void) { return fl_now_ns() - begun - waited; }

int64_t fl_held_up_ns(void) { return fl_now_ns() - asked - (my_processor_ns() - processor_then); }
