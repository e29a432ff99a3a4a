/* How fast the two threads of a pair are beside each other.
 *
 * Processors of a shared machine are not alike: for seconds at a time one has half the speed of the other, because another machine's
 * thread runs on the same core, or another process on the same processor. Halves then end when the slower one ends: 44 and 84 GFLOP/s
 * make 88, and 128 if each takes what it can. So a pair's calls are divided as the last ones should have been. What was seen is soon
 * forgotten, and every thread that calls has a pair of its own.
 */
#include "pace.h"
#include "clock.h"

/* Shorter calls say little, and what is less than NOTICED, per mille, any two calls differ by. Nobody is left with less than LEAST. */
static const int64_t SHORTEST_NS = 20000, FORGET_NS = 300000000;
enum { LEAST = 150, NOTICED = 40 };

static _Thread_local int share = FL_EVEN;
static _Thread_local int64_t forgotten;

int fl_pace(void)
{
    if (share == FL_EVEN)
        return FL_EVEN;
    if (fl_now_ns() > forgotten)
        share = FL_EVEN;
    return share < FL_EVEN - NOTICED || share > FL_EVEN + NOTICED ? share : FL_EVEN;
}

void fl_note_pace(int given, int64_t first_ns, int64_t second_ns)
{
    if (first_ns <= 0 || second_ns <= 0 || first_ns + second_ns < 2 * SHORTEST_NS)
        return;
    const double first = given / (double)first_ns, second = (1000 - given) / (double)second_ns;
    const int seen = (int)(1000 * first / (first + second));
    const int next = (share + seen) / 2; /* a call may have met with an accident */
    share = next < LEAST ? LEAST : next > 1000 - LEAST ? 1000 - LEAST : next;
    forgotten = fl_now_ns() + FORGET_NS;
}
