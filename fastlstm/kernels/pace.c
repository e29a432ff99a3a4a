/* How fast the two threads of a pair are beside each other.
 *
 * Processors of a shared machine are not alike: for seconds at a time one has half the speed of the other, because another machine's
 * thread runs on the same core, or another process on the same processor. Halves then end when the slower one ends: 44 and 84 GFLOP/s
 * make 88, and 128 if each takes what it can. So a pair's calls are divided as the last ones should have been. What was seen is soon
 * forgotten, and every thread that calls has a pair of its own.
 */
#include "pace.h"
#include "clock.h"

#include <math.h>

/* Calls below SHORTEST_NS are ignored, and those below LONG_NS count less: what their threads read from each other comes sooner or later.
 * Differences below NOTICED, per mille, are noise, too. No thread gets less than LEAST. */
static const int64_t SHORTEST_NS = 20000, LONG_NS = 100000, FORGET_NS = 300000000;
static const double REMEMBERED = 100; /* calls: who keeps to one thread since then tries two again */
enum { LEAST = 150, NOTICED = 40 };

static _Thread_local double share = FL_EVEN, last = FL_EVEN, last_but_one = FL_EVEN;
static _Thread_local int64_t forgotten;

int fl_pace(void)
{
    if (share == FL_EVEN && last == FL_EVEN)
        return FL_EVEN;
    if (fl_now_ns() > forgotten)
        share = last = last_but_one = FL_EVEN;
    return fabs(share - FL_EVEN) > NOTICED ? (int)share : FL_EVEN;
}

static double middle(double a, double b, double c) { return fmax(fmin(a, b), fmin(fmax(a, b), c)); }

void fl_note_pace(int given, int64_t first_ns, int64_t second_ns)
{
    const double shorter_ns = fmin((double)first_ns, (double)second_ns);

    if (first_ns <= 0 || second_ns <= 0 || first_ns + second_ns < 2 * SHORTEST_NS)
        return;
    const double first = given / (double)first_ns, second = (1000 - given) / (double)second_ns;
    const double seen = 1000 * first / (first + second);
    /* A call may have met with an accident: of two in three, one has something to say. */
    const double next = share + 0.5 * fmin(1, shorter_ns / LONG_NS) * (middle(seen, last, last_but_one) - share);
    share = fmax(LEAST, fmin(next, 1000 - LEAST));
    last_but_one = last;
    last = seen;
    forgotten = fl_now_ns() + (int64_t)fmin(REMEMBERED * shorter_ns, FORGET_NS);
}
