/* When sleeping workers are worth waking up.
 *
 * A worker that has nothing to do spins for some milliseconds, and then it sleeps. To begin a call with one that spins takes a
 * microsecond; one that sleeps, on a processor that has gone to sleep as well, needs 20 to 200: longer than the whole step that a stream
 * makes every 20 ms. It is woken up all the same where calls follow each other at once, as soon as they have lost by computing alone what
 * it costs (as skis are rented until the rent has reached their price: at most twice the loss of the best choice in hindsight). What it
 * costs is measured, and soon forgotten.
 */
#include "waking.h"

#include <math.h>

static const int64_t AWAKE_NS = 5000000, FORGET_NS = 1000000000;
static const double USUAL_NS = 50000;
static const double LONGEST_NS = 500000; /* another process had the processor */

static _Thread_local int64_t last_team, last_call, forgotten;
static _Thread_local double cost_ns, lost_ns;
static atomic_int always;

int fl_workers_sleep(void) { return fl_now_ns() - last_team > AWAKE_NS; }

void fl_wake_always(int yes) { atomic_store(&always, yes); }

int fl_is_worth_waking(int64_t gain_ns)
{
    const int64_t now = fl_now_ns();

    if (now - last_call > AWAKE_NS)
        lost_ns = 0; /* whoever has been woken up for the last call would sleep again */
    last_call = now;
    lost_ns += (double)gain_ns;
    if (lost_ns < (now < forgotten ? cost_ns : USUAL_NS) && !atomic_load(&always))
        return 0;
    lost_ns = 0;
    return 1;
}

void fl_measure_waking(fl_barrier *barrier, int size, int thread)
{
    const int64_t begun = fl_now_ns();
    atomic_int never = 0;

    fl_start_clock(); /* or who is late would count as held up since its last call */
    fl_wait(barrier, size, &never, INT64_MAX);
    if (thread > 0)
        return;
    const int64_t now = fl_now_ns();
    const double took = fmin((double)(now - begun), LONGEST_NS);
    cost_ns = now < forgotten ? (cost_ns + took) / 2 : took;
    forgotten = now + FORGET_NS;
}

void fl_note_awake(void) { last_team = fl_now_ns(); }
