/* Two threads of a team on one processor, while another is idle.
 *
 * The system puts a thread that wakes up near the one that woke it, and later moves only threads whose data has left the caches: of two
 * that take turns every few microseconds neither ever counts as such. They stay together for whole calls, each waiting for the other.
 */
#define _GNU_SOURCE
#include "processor.h"

#if defined(__linux__)
#include <sched.h>

int fl_processor(void) { return sched_getcpu(); }

void fl_change_processor(void)
{
    cpu_set_t allowed, others;
    const int here = sched_getcpu();

    if (here < 0 || here >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed))
        return;
    others = allowed;
    CPU_CLR(here, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
        sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int fl_processor(void) { return -1; }
void fl_change_processor(void) {}
#endif
