/* Whether other processes keep the processors busy.
 *
 * Once held up is an accident. Teams that are held up again so soon, and lose a quarter of their time by it, are in a crowd: then calls
 * leave a processor free for a while, twice as long if the crowd is still there afterwards. The first time is short: threads of other
 * libraries look for more work for up to 30 ms, and are gone.
 */
#include "crowd.h"
#include "clock.h"

#include <stdatomic.h>

static _Atomic int64_t noted, crowded_until, crowd_ns;
static _Atomic int64_t lost_ns, together_ns; /* of the time in teams, since the first accident or the last crowd */
static const int64_t SOON_NS = 200000000, LATELY_NS = 50000000, CROWD_NS = 12000000, LONGEST_NS = 800000000;

int fl_is_crowded(void) { return fl_now_ns() < atomic_load(&crowded_until); }

static int64_t longer(int64_t a, int64_t b) { return a > b ? a : b; }

static void keep_account(int64_t lost, int64_t together)
{
    atomic_store(&lost_ns, lost);
    atomic_store(&together_ns, together);
}

void fl_note_team(int64_t begun_ns, int64_t worked_ns)
{
    if (atomic_load(&noted) < begun_ns) /* held up, its time has been counted until then, and it may have been alone since */
        atomic_fetch_add(&together_ns, worked_ns);
}

void fl_note_crowd(int64_t begun_ns, int64_t waited_ns)
{
    const int64_t now = fl_now_ns(), until = atomic_load(&crowded_until), last = atomic_load(&crowd_ns);
    const int64_t before = atomic_exchange(&noted, now), took = now - longer(before, begun_ns);

    if (now < until)
        return;
    if (now - longer(before, until) > SOON_NS) {
        keep_account(waited_ns, took);
        return;
    }
    const int64_t lost = atomic_load(&lost_ns) + waited_ns, together = atomic_load(&together_ns) + took;
    if (lost < together / 4) {
        const int share = together > LATELY_NS ? 2 : 1;
        keep_account(lost / share, together / share);
        return;
    }
    keep_account(0, 0);
    /* Whoever comes later than that after a crowd has met another one. */
    const int64_t next = now - until > LATELY_NS + last ? CROWD_NS : 2 * last < LONGEST_NS ? 2 * last : LONGEST_NS;
    atomic_store(&crowd_ns, next);
    atomic_store(&crowded_until, now + next);
}
