/* How much a processor's caches hold. Each is asked for once, as on a virtual machine the question costs microseconds; threads that race
 * here find the same answer. */
#include "caches.h"

#include <stdatomic.h>
#include <unistd.h>

static fl_index known_or(long found, fl_index usual) { return found > 0 ? (fl_index)found : usual; }

fl_index fl_l1_bytes(void)
{
    static _Atomic fl_index bytes;

    if (bytes == 0) {
        long found = 0;
#ifdef _SC_LEVEL1_DCACHE_SIZE
        found = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
        bytes = known_or(found, 32 << 10);
    }
    return bytes;
}

fl_index fl_l2_bytes(void)
{
    static _Atomic fl_index bytes;

    if (bytes == 0) {
        long found = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
        found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
        bytes = known_or(found, 1 << 20);
    }
    return bytes;
}
