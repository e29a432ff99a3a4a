/* How many threads a call gets in a process where many callers run at once.
 *
 * OpenMP's runtime keeps a team of workers for every thread that ever opened a region. Left alone, 32 callers would hold 32 teams.
 * Here the workers of all callers together stay within the processors, and a caller that finds the processors busy computes alone.
 */
#include "claim.h"
#include "clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

static atomic_int kept;      /* workers that OpenMP keeps for callers alive */
static atomic_int computing; /* threads inside calls now */

/* Once held up is an accident. Teams that are held up again so soon, and lose a quarter of their time by it, are in a crowd: then calls
 * leave a processor free for a while, twice as long if the crowd is still there afterwards. The first time is short: threads of other
 * libraries look for more work for up to 30 ms, and are gone. */
static _Atomic int64_t noted, crowded_until, crowd_ns;
static _Atomic int64_t lost_ns, together_ns; /* of the time in teams, since the first accident or the last crowd */
static const int64_t SOON_NS = 200000000, LATELY_NS = 50000000, CROWD_NS = 12000000, LONGEST_NS = 800000000;

static pthread_key_t my_kept;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int usable;

/* A caller ends; its workers end with it. */
static void forget(void *value) { atomic_fetch_sub(&kept, (int)(intptr_t)value); }
static void make_key(void) { usable = pthread_key_create(&my_kept, forget) == 0; }

static int lesser(int a, int b) { return a < b ? a : b; }

/* As many as are wanted and free count as computing from now on, at least one. */
static int reserve(int wanted, int limit)
{
    int before = atomic_load(&computing), threads;

    do {
        threads = limit > 0 ? lesser(wanted, limit - before) : wanted;
        threads = threads > 1 ? threads : 1;
    } while (!atomic_compare_exchange_weak(&computing, &before, before + threads));
    return threads;
}

static void *pass(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* How many of so many new threads this process may have at once. OpenMP's runtime ends the process where it is refused one, so what it is
 * about to ask for is tried out; the C library keeps the memory of a thread that ends for the next. */
static int available(int count)
{
    pthread_t *threads = malloc((size_t)count * sizeof *threads);
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    int made = 0;

    if (!threads)
        return 0;
    pthread_mutex_lock(&gate);
    while (made < count && pthread_create(&threads[made], NULL, pass, &gate) == 0)
        made++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < made; i++)
        pthread_join(threads[i], NULL);
    free(threads);
    return made;
}

int fl_claim_threads(int wanted, int limit)
{
    pthread_once(&once, make_key);
    if (fl_now_ns() < atomic_load(&crowded_until))
        wanted = lesser(wanted, (limit > 0 ? limit : wanted) - 1);
    const int reserved = reserve(wanted, limit);
    int threads = reserved;
    if (threads > 1) {
        const int mine = usable ? (int)(intptr_t)pthread_getspecific(my_kept) : 0;
        int before = atomic_load(&kept), more;
        do {
            more = threads - 1 - mine;
            if (limit > 0)
                more = lesser(more, limit - before);
        } while (more > 0 && !atomic_compare_exchange_weak(&kept, &before, before + more));
        const int asked = more > 0 ? more : 0;
        more = asked > 0 && usable ? available(asked) : 0;
        if (more > 0 && pthread_setspecific(my_kept, (void *)(intptr_t)(mine + more)))
            more = 0;
        atomic_fetch_sub(&kept, asked - more);
        threads = lesser(threads, 1 + mine + more);
    }
    atomic_fetch_sub(&computing, reserved - threads);
    return threads;
}

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

void fl_return_threads(int threads) { atomic_fetch_sub(&computing, threads); }
