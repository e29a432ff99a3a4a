/* What it costs the threads of a team to meet, measured while they work.
 *
 * Two processors of a virtual machine share a cache in one second and are on different chips in the next: a meeting took 0.2 us, then 0.8.
 * A step that two threads share at 0.2 us is faster on one at 0.8. So now and then a team meets a few times before it begins, and calls
 * are divided by what that took (plan.c). What was measured is soon forgotten: calls that keep to one thread since then try two again.
 */
#include "meeting.h"

#define BARRIER_NS 120.0 /* the last thread arrives, the others see it */
#define BARRIER_NS_PER_THREAD 30.0

enum { ROUNDS = 4, MEETINGS = 4 }; /* the fastest round counts: others may have been interrupted */
static const int64_t MEASURE_NS = 100000000, FORGET_NS = 300000000;
static const double AT_ONCE = 0.33; /* of the usual price: what a meeting costs where all are there already */
static const double NOTICED = 2.0;  /* a lower price may be an accident */

static _Atomic int64_t due, forgotten;
static _Atomic double price;

double fl_usual_meeting_ns(int threads) { return threads > 1 ? BARRIER_NS + BARRIER_NS_PER_THREAD * threads : 0; }

double fl_meeting_price(void)
{
    const double now = atomic_load_explicit(&price, memory_order_relaxed);

    return now > NOTICED && fl_now_ns() < atomic_load_explicit(&forgotten, memory_order_relaxed) ? now : 1;
}

int fl_meeting_is_due(void)
{
    int64_t before = atomic_load_explicit(&due, memory_order_relaxed);
    const int64_t now = fl_now_ns();

    return now >= before && atomic_compare_exchange_strong(&due, &before, now + MEASURE_NS);
}

void fl_measure_meeting(fl_barrier *barrier, int size, int thread)
{
    int64_t least = INT64_MAX;
    atomic_int never = 0;

    fl_start_clock();                          /* or who is late would count as held up since its last call */
    fl_wait(barrier, size, &never, INT64_MAX); /* all are there */
    for (int round = 0; round < ROUNDS; round++) {
        const int64_t begun = fl_now_ns();
        for (int i = 0; i < MEETINGS; i++)
            fl_wait(barrier, size, &never, INT64_MAX);
        const int64_t took = fl_now_ns() - begun;
        least = took < least ? took : least;
    }
    if (thread > 0)
        return;
    atomic_store_explicit(&price, (double)least / MEETINGS / (AT_ONCE * fl_usual_meeting_ns(size)), memory_order_relaxed);
    atomic_store_explicit(&forgotten, fl_now_ns() + FORGET_NS, memory_order_relaxed);
}
