/* How much a processor's caches hold, and how fast the shared one is. Each is asked for once, as on a virtual machine the question costs
 * microseconds; threads that race here find the same answer, or nearly so. */
#include "caches.h"
#include "clock.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 4 };                     /* the fastest counts: others may have been interrupted */
static const double USUAL_L3_SPEED = 28; /* of a server of 2023; where there is no memory to measure with */

/* Where the C library has no such question, one that it answers with -1. */
#ifndef _SC_LEVEL1_DCACHE_SIZE
#define _SC_LEVEL1_DCACHE_SIZE -1
#define _SC_LEVEL2_CACHE_SIZE -1
#endif

static fl_index known(_Atomic fl_index *bytes, int question, fl_index usual)
{
    if (*bytes == 0) {
        const long found = sysconf(question);
        *bytes = found > 0 ? found : usual;
    }
    return *bytes;
}

fl_index fl_l1_bytes(void)
{
    static _Atomic fl_index bytes;
    return known(&bytes, _SC_LEVEL1_DCACHE_SIZE, 32 << 10);
}

fl_index fl_l2_bytes(void)
{
    static _Atomic fl_index bytes;
    return known(&bytes, _SC_LEVEL2_CACHE_SIZE, 1 << 20);
}

/* Lines that have left L2 before they are read again. */
static double measured_l3_speed(void)
{
    const fl_index bytes = 3 * fl_l2_bytes();
    volatile char *memory = fl_borrow((size_t)bytes);
    int64_t least = INT64_MAX;

    if (!memory)
        return USUAL_L3_SPEED;
    memset((void *)memory, 0, (size_t)bytes); /* every page is there */
    for (int round = 0; round < ROUNDS; round++) {
        const int64_t begun = fl_now_ns();
        for (fl_index i = 0; i < bytes; i += FL_ALIGNMENT)
            (void)memory[i];
        const int64_t took = fl_now_ns() - begun;
        least = took < least ? took : least;
    }
    fl_give_back((void *)memory);
    return (double)bytes / (double)(least > 0 ? least : 1);
}

double fl_l3_bytes_per_ns(void)
{
    static _Atomic double speed;
    double known = atomic_load_explicit(&speed, memory_order_relaxed);

    if (known == 0) {
        known = measured_l3_speed();
        atomic_store_explicit(&speed, known, memory_order_relaxed);
    }
    return known;
}
