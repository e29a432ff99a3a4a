/* Memory that is aligned and, where it is large, goes straight back to the system: from the heap, networks and calls of many sizes would
 * leave holes there. */
#include "fastlstm.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { MAPPED_BYTES = 1 << 20, HUGE_PAGE = 2 << 20, SPARE_BYTES = 4 << 20 };

static size_t mapped_bytes(size_t bytes) { return (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE; }

/* Huge pages, where the system has them, cost a tenth of what ordinary ones cost to come by, and save misses of the address cache. */
static void *map(size_t bytes)
{
    char *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    const size_t before = (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
    if (before)
        munmap(memory, before);
    if (before < HUGE_PAGE)
        munmap(memory + before + bytes, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(memory + before, bytes, MADV_HUGEPAGE); /* only a wish */
#endif
    return memory + before;
}

/* One block of SPARE_BYTES waits here for the next that asks for as much or less: one step of a thousand rows takes half a millisecond,
 * and getting fresh pages for it as long again. */
static _Atomic(void *) spare;

void *fl_allocate(size_t bytes)
{
    void *memory = NULL;

    if (bytes > PTRDIFF_MAX - 2 * HUGE_PAGE)
        return NULL;
    if (bytes >= MAPPED_BYTES && bytes <= SPARE_BYTES) {
        memory = atomic_exchange(&spare, NULL);
        return memory ? memory : map(SPARE_BYTES);
    }
    if (bytes >= MAPPED_BYTES)
        return map(mapped_bytes(bytes));
    return posix_memalign(&memory, FL_ALIGNMENT, bytes ? bytes : 1) ? NULL : memory;
}

void fl_free(void *memory, size_t bytes)
{
    if (!memory || bytes < MAPPED_BYTES) {
        free(memory);
        return;
    }
    if (bytes <= SPARE_BYTES) {
        memory = atomic_exchange(&spare, memory);
        if (memory)
            munmap(memory, SPARE_BYTES);
        return;
    }
    munmap(memory, mapped_bytes(bytes));
}
