/* Memory that is aligned and, where it is large, goes straight back to the system: from the heap, networks and calls of many sizes would
 * leave holes there. What one call gives back is lent to the next: fresh pages cost more to clear than a short call computes, and where a
 * virtual machine must ask its host for them, more than a long one. */
#include "fastlstm.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { MAPPED_BYTES = 1 << 20, HUGE_PAGE = 2 << 20 };

/* Stands before each piece of memory. */
typedef struct {
    _Alignas(FL_ALIGNMENT) size_t pages; /* huge ones that are mapped; 0: from the heap */
} header;

/* Huge pages, where the system has them, cost a tenth of what ordinary ones cost to come by, and save misses of the address cache. */
static header *map(size_t pages)
{
    const size_t bytes = pages * HUGE_PAGE;
    char *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    const size_t before = (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
    if (before)
        munmap(memory, before);
    if (before < HUGE_PAGE)
        munmap(memory + before + bytes, HUGE_PAGE - before);
    header *block = (header *)(memory + before);
#ifdef MADV_HUGEPAGE
    madvise(block, bytes, MADV_HUGEPAGE); /* only a wish */
#endif
    block->pages = pages;
    return block;
}

static size_t pages_of(size_t bytes) { return (bytes + sizeof(header) + HUGE_PAGE - 1) / HUGE_PAGE; }

static void *take(size_t bytes)
{
    void *memory = NULL;
    header *block;

    if (bytes > PTRDIFF_MAX - 3 * (size_t)HUGE_PAGE)
        return NULL;
    if (bytes >= MAPPED_BYTES)
        block = map(pages_of(bytes));
    else if ((block = posix_memalign(&memory, FL_ALIGNMENT, bytes + sizeof(header)) ? NULL : memory))
        block->pages = 0;
    return block ? block + 1 : NULL;
}

static void drop(void *memory)
{
    header *block = (header *)memory - 1;

    if (block->pages)
        munmap(block, block->pages * HUGE_PAGE);
    else
        free(block);
}

static atomic_int lasting; /* pieces allocated: what networks consist of */

void *fl_allocate(size_t bytes)
{
    void *memory = take(bytes);

    if (memory)
        atomic_fetch_add(&lasting, 1);
    return memory;
}

/* ---- Lent to one call after the other ------------------------------------------------------------------------------------------ */

/* A training step borrows a tape and then, one after the other, what its two passes work in. */
enum { SPARES = 3 };
static _Atomic(header *) spares[SPARES];
static atomic_uint oldest;

void *fl_borrow(size_t bytes)
{
    if (bytes >= MAPPED_BYTES && bytes < PTRDIFF_MAX - 3 * (size_t)HUGE_PAGE) {
        const size_t pages = pages_of(bytes);
        for (int i = 0; i < SPARES; i++) {
            header *block = atomic_exchange(&spares[i], NULL);
            if (block && block->pages >= pages && block->pages / 2 <= pages)
                return block + 1;
            if (block && (block = atomic_exchange(&spares[i], block)))
                drop(block + 1); /* another thread put it there meanwhile */
        }
    }
    return take(bytes);
}

void fl_give_back(void *memory)
{
    if (!memory)
        return;
    header *block = (header *)memory - 1;
    if (!block->pages) {
        drop(memory);
        return;
    }
    for (int i = 0; i < SPARES; i++) {
        header *none = NULL;
        if (atomic_compare_exchange_strong(&spares[i], &none, block))
            return;
    }
    block = atomic_exchange(&spares[atomic_fetch_add(&oldest, 1) % SPARES], block);
    if (block)
        drop(block + 1);
}

/* With the last network goes what calls left. */
void fl_free(void *memory)
{
    if (!memory)
        return;
    drop(memory);
    if (atomic_fetch_sub(&lasting, 1) > 1)
        return;
    for (int i = 0; i < SPARES; i++) {
        header *block = atomic_exchange(&spares[i], NULL);
        if (block)
            drop(block + 1);
    }
}
