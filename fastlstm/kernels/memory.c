/* Memory that is aligned and, where it is large, goes straight back to the system: from the heap, networks and calls of many sizes would
 * leave holes there. */
#include "fastlstm.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { MAPPED_BYTES = 512 << 10, HUGE_PAGE = 2 << 20, LARGEST_PAGE = 64 << 10 };

#ifndef MAP_POPULATE
#define MAP_POPULATE 0
#endif

static char *map(size_t bytes, int flags)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static size_t mapped_bytes(size_t bytes) { return (bytes + LARGEST_PAGE - 1) / LARGEST_PAGE * LARGEST_PAGE; }

/* Huge pages, where the system has them, save misses of the address cache while weights are streamed. */
static char *map_huge(size_t bytes)
{
    char *memory = map(bytes + HUGE_PAGE, 0);

    if (!memory)
        return NULL;
    const size_t before = (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
    if (before)
        munmap(memory, before);
    munmap(memory + before + bytes, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(memory + before, bytes, MADV_HUGEPAGE); /* only a wish */
#endif
    return memory + before;
}

void *fl_allocate(size_t bytes, fl_memory_use use)
{
    void *memory = NULL;

    if (bytes > PTRDIFF_MAX - 2 * HUGE_PAGE)
        return NULL;
    if (bytes < MAPPED_BYTES)
        return posix_memalign(&memory, FL_ALIGNMENT, bytes ? bytes : 1) ? NULL : memory;
    if (use == FL_WEIGHTS && bytes >= HUGE_PAGE)
        return map_huge(mapped_bytes(bytes));
    /* Scratch is written at once: asking for all its pages costs a tenth of touching them one by one. */
    return map(mapped_bytes(bytes), use == FL_SCRATCH ? MAP_POPULATE : 0);
}

void fl_free(void *memory, size_t bytes)
{
    if (memory && bytes >= MAPPED_BYTES)
        munmap(memory, mapped_bytes(bytes));
    else
        free(memory);
}
