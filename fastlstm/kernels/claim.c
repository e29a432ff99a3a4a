/* How many threads a call gets in a process where many callers run at once.
 *
 * OpenMP's runtime keeps a team of workers for every thread that ever opened a region. Left alone, 32 callers would hold 32 teams.
 * Here the workers of all callers together stay within the processors, and a caller that finds the processors busy computes alone.
 */
#include "claim.h"
#include "crowd.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

static atomic_int kept;      /* workers that OpenMP keeps for callers alive */
static atomic_int computing; /* threads inside calls now */

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
    if (fl_is_crowded())
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

void fl_return_threads(int threads) { atomic_fetch_sub(&computing, threads); }
