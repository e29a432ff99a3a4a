/* Memory that is aligned and, where it is large, goes straight back to the system: from the heap, networks and calls of many sizes would
 * leave holes there. What one call gives back is lent to the next: fresh pages cost more to clear than a short call computes, and where a
 * virtual machine must ask its host for them, more than a long one. */
#include "clock.h"
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

static void *obtain(size_t bytes)
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

/* ---- Lent to one call after the other ------------------------------------------------------------------------------------------ */

/* A training step borrows a tape, what its two passes work in, one after the other, and large arrays for its caller. */
enum { SPARES = 8, MOST_PAGES = 512 }; /* and a gigabyte of it */
static struct {
    _Atomic(header *) block;
    atomic_size_t pages; /* the block's, or nearly: another thread may be about to change it */
    _Atomic int64_t since;
} spares[SPARES];
static const int64_t STALE_NS = 5000000000;
static atomic_uint oldest;
static atomic_size_t kept; /* pages of all */

/* The block of a slot, whose place is taken by another one or by none. */
static header *swap(int slot, header *block)
{
    const size_t pages = block ? block->pages : 0; /* not to be asked any more once it is there */
    header *before = atomic_exchange(&spares[slot].block, block);

    atomic_store(&spares[slot].since, fl_now_ns());
    atomic_store(&spares[slot].pages, pages);
    if (before)
        atomic_fetch_sub(&kept, before->pages);
    return before;
}

static int fits(size_t has, size_t pages) { return has >= pages && has / 2 <= pages; }

static void *spare(size_t pages)
{
    size_t least = SIZE_MAX;
    int best = -1;

    for (int i = 0; i < SPARES; i++) {
        const size_t has = atomic_load(&spares[i].pages);
        if (fits(has, pages) && has < least)
            least = has, best = i;
    }
    header *block = best < 0 ? NULL : swap(best, NULL);
    if (block && fits(block->pages, pages))
        return block + 1;
    if (block)
        drop(block + 1); /* another thread put it there meanwhile */
    return NULL;
}

static void drop_spare(int slot)
{
    header *block = swap(slot, NULL);
    if (block)
        drop(block + 1);
}

static void drop_spares(void)
{
    for (int i = 0; i < SPARES; i++)
        drop_spare(i);
}

/* What nobody has borrowed for a while: calls of many sizes would leave as many blocks. */
static void drop_stale(void)
{
    const int64_t then = atomic_load(&kept) ? fl_now_ns() - STALE_NS : 0;

    for (int i = 0; then && i < SPARES; i++)
        if (atomic_load(&spares[i].pages) && atomic_load(&spares[i].since) < then)
            drop_spare(i);
}

static int next_slot(void) { return (int)(atomic_fetch_add(&oldest, 1) % SPARES); }

static atomic_int lasting; /* pieces allocated: what networks consist of */

static void *take(size_t bytes)
{
    void *memory = obtain(bytes);

    if (!memory) {
        drop_spares();
        memory = obtain(bytes);
    }
    return memory;
}

void *fl_allocate(size_t bytes)
{
    void *memory = take(bytes);

    if (memory)
        atomic_fetch_add(&lasting, 1);
    return memory;
}

void *fl_borrow(size_t bytes)
{
    void *memory = NULL;

    if (bytes >= MAPPED_BYTES && bytes < PTRDIFF_MAX - 3 * (size_t)HUGE_PAGE)
        memory = spare(pages_of(bytes));
    return memory ? memory : take(bytes);
}

void fl_give_back(void *memory)
{
    if (!memory)
        return;
    drop_stale();
    header *block = (header *)memory - 1;
    const size_t pages = block->pages;
    if (!pages || pages > MOST_PAGES || !atomic_load(&lasting)) {
        drop(memory);
        return;
    }
    atomic_fetch_add(&kept, pages);
    for (int i = 0; i < SPARES && atomic_load(&kept) > MOST_PAGES; i++)
        drop_spare(next_slot());
    for (int i = 0; i < SPARES; i++) {
        header *none = NULL;
        if (atomic_compare_exchange_strong(&spares[i].block, &none, block)) {
            atomic_store(&spares[i].since, fl_now_ns());
            atomic_store(&spares[i].pages, pages);
            return;
        }
    }
    block = swap(next_slot(), block);
    if (block)
        drop(block + 1);
}

/* With the last network goes what calls left. */
void fl_free(void *memory)
{
    if (!memory)
        return;
    drop(memory);
    if (atomic_fetch_sub(&lasting, 1) == 1)
        drop_spares();
}
