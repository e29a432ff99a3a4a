/* Where the threads of a team wait for each other. */
#ifndef FL_TEAM_H
#define FL_TEAM_H

#include "clock.h"
#include "crowd.h"
#include "processor.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static inline void fl_pause(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

typedef struct {
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int generation;
    int64_t begun_ns;      /* when the call began, set before it */
    int64_t lost_ns;       /* what the team has waited for threads that other processes held up */
    _Atomic int64_t since; /* when a thread lost patience with spinning: it is waiting since then */
    _Atomic int64_t place; /* fl_place of that thread */
    atomic_int apart;      /* another process has a processor of the team: the same for all who leave the barrier */
} fl_barrier;

/* Spinning longer wastes a core that the missing thread may need; a yield costs about half a microsecond when nobody waits. Who is
 * late for less than the shortest time slice was woken up slowly, not held up by another process. */
enum { FL_SPINS = 64, FL_NAP_NS = 100000, FL_SLICE_NS = 300000 };

/* All begin open, at this time. */
static inline void fl_open_barriers(fl_barrier *barriers, int count)
{
    const int64_t now = fl_now_ns();

    for (int i = 0; i < count; i++)
        barriers[i] = (fl_barrier){.begun_ns = now};
}

/* The calling thread's processor and which time it waits. */
static inline int64_t fl_place(int generation) { return (int64_t)(generation + 1) << 16 | (fl_processor() & 0xffff); }

/* Sleeps as shortly as the system can; the next nap is due when the wait since then has doubled. */
static inline int64_t fl_nap(int64_t since)
{
    nanosleep(&(struct timespec){.tv_nsec = 1}, NULL);
    return fl_now_ns() + (fl_now_ns() - since);
}

/* The last to arrive has kept another waiting. */
static inline void fl_note_late(fl_barrier *barrier, int generation, int64_t patience_ns)
{
    const int64_t place = atomic_load_explicit(&barrier->place, memory_order_acquire), now = fl_now_ns();
    const int64_t waited = now - atomic_load_explicit(&barrier->since, memory_order_relaxed);
    const int together = fl_processor() >= 0 && place == fl_place(generation);

    if (patience_ns < 0)
        atomic_store_explicit(&barrier->apart, 1, memory_order_relaxed);
    else if (waited > FL_SLICE_NS && fl_held_up_ns() > waited / 2) {
        const int64_t lost = barrier->lost_ns += waited, elapsed = now - barrier->begun_ns;
        fl_note_crowd(barrier->begun_ns, waited);
        /* A time slice lost is much to a short call. A long one loses less than its pair is worth. */
        if (!together && lost > patience_ns && lost > elapsed / 4)
            atomic_store_explicit(&barrier->apart, 1, memory_order_relaxed);
    }
    if (together && patience_ns >= 0)
        fl_change_processor(); /* that one waits for the processor too, and not only for us */
}

/* Waits for `size` threads; what they wrote before is visible after. Returns non-zero if the call was stopped meanwhile. */
static inline int fl_wait(fl_barrier *barrier, int size, atomic_int *stop, int64_t patience_ns)
{
    if (size == 1)
        return 0;
    const int generation = atomic_load_explicit(&barrier->generation, memory_order_acquire);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == size - 1) {
        if (atomic_load_explicit(&barrier->place, memory_order_relaxed) >> 16 == generation + 1)
            fl_note_late(barrier, generation, patience_ns);
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->generation, generation + 1, memory_order_release);
        return 0;
    }
    int64_t since = 0, nap = 0;
    for (int spins = 0; atomic_load_explicit(&barrier->generation, memory_order_acquire) == generation; spins++) {
        if (atomic_load_explicit(stop, memory_order_relaxed))
            return 1;
        if (spins < FL_SPINS) {
            fl_pause();
            continue;
        }
        if (!since) {
            nap = (since = fl_now_ns()) + FL_NAP_NS;
            atomic_store_explicit(&barrier->since, since, memory_order_relaxed);
        }
        atomic_store_explicit(&barrier->place, fl_place(generation), memory_order_release);
        if (fl_now_ns() < nap)
            sched_yield();
        else
            nap = fl_nap(since); /* a yield does not always let in a thread that has just been woken up */
    }
    if (since)
        fl_count_wait(fl_now_ns() - since);
    return 0;
}

/* The end of a call. OpenMP's own wait gives no way to a thread that has been put on the same processor and not run yet. */
static inline void fl_join(fl_barrier *barrier, int size, int64_t patience_ns)
{
    atomic_int never = 0;

    fl_wait(barrier, size, &never, patience_ns);
}

#endif
