/* How much a processor's caches hold. Each is asked for once, as on a virtual machine the question costs microseconds; threads that race
 * here find the same answer. */
#include "caches.h"

#include <stdatomic.h>
#include <unistd.h>

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
