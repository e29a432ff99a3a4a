/* What the machine can do at most: fused multiply-adds per second, and bytes read per second, of several threads at once.
 *
 * Built by machine.py with -O3 -march=native -ffp-contract=fast and loaded with ctypes. Each thread repeats its loop until its time
 * is over and clocks each repetition; the threads' median rates are added. So time in which a thread did not run does not count: a
 * peak is what the machine can do, and calls are timed by medians too. The caller is the first thread, as in an OpenMP team: one
 * started for the moment may land on a busy core. Vector loops have more independent chains than latency x pipes asks for.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

/* Chains that fit the registers beside two operands: at least 4 cycles x 2 pipes are needed, 4 x 4 on the widest NEON cores. */
#if defined(__AVX512F__)
#define WIDTH 64
#define CHAINS 24
#elif defined(__AVX__)
#define WIDTH 32
#define CHAINS 12
#else
#define WIDTH 16
#if defined(__aarch64__)
#define CHAINS 24
#else
#define CHAINS 12
#endif
#endif

#define STREAMS 8              /* loads of one iteration */
#define ALIGNMENT (2u << 20)   /* a huge page: the loops measure caches, not address translation */
#define SPAN (WIDTH * STREAMS) /* bytes of one iteration */
#define FMA_ITERATIONS 10000   /* some 30 us between two looks at the clock */
#define READ_BYTES (1u << 20)  /* likewise, at least */
#define SAMPLES 10000          /* repetitions that are clocked at most */

typedef float floats __attribute__((vector_size(WIDTH)));
typedef uint32_t words __attribute__((vector_size(WIDTH)));

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef struct {
    size_t bytes; /* to read; 0: multiply-adds */
    double seconds;
    int threads;
    atomic_int ready, failed;
} task;

typedef struct {
    task *task;
    double rate;
    double *samples;
    volatile float kept; /* what the loops computed, so that they are not removed */
} worker;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Returns the operations done: a multiply-add counts two. Each chain tends to 2, so no number becomes subnormal or infinite. */
static double multiply_add(worker *w)
{
    const floats half = 0.5f + (floats){0}, one = 1.0f + (floats){0};
    floats chain[CHAINS];
    float sum = w->kept;

    for (int c = 0; c < CHAINS; c++)
        chain[c] = sum + (float)c + (floats){0}; /* all different, or one chain would do for a compiler */
    for (int i = 0; i < FMA_ITERATIONS; i++)
        UNROLL
    for (int c = 0; c < CHAINS; c++)
        chain[c] = chain[c] * half + one;
    for (int c = 0; c < CHAINS; c++)
        sum += chain[c][0];
    w->kept = sum;
    return 2.0 * FMA_ITERATIONS * CHAINS * (WIDTH / sizeof(float));
}

/* Returns the bytes read. */
static double read_all(worker *w, const words *data, size_t bytes)
{
    const size_t vectors = bytes / WIDTH;
    words sum[STREAMS] = {{0}};
    double done = 0;

    for (; done < READ_BYTES; done += (double)bytes)
        for (size_t i = 0; i < vectors; i += STREAMS)
            UNROLL
    for (int s = 0; s < STREAMS; s++)
        sum[s] += data[i + (size_t)s];
    for (int s = 1; s < STREAMS; s++)
        sum[0] += sum[s];
    w->kept = (float)sum[0][0];
    return done;
}

static int ascending(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double repeat(worker *w, const uint32_t *data, size_t bytes)
{
    return data ? read_all(w, (const words *)data, bytes) : multiply_add(w);
}

static void *work(void *argument)
{
    worker *w = argument;
    task *t = w->task;
    uint32_t *data = NULL;
    double begin, before, after;
    size_t count = 0;

    if (t->bytes) {
        const size_t size = (t->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        data = aligned_alloc(ALIGNMENT, size);
        if (data) {
#ifdef MADV_HUGEPAGE
            (void)madvise(data, size, MADV_HUGEPAGE);
#endif
            for (size_t i = 0; i < size / sizeof *data; i++)
                data[i] = (uint32_t)i;
        } else {
            atomic_store(&t->failed, 1);
        }
    }
    atomic_fetch_add(&t->ready, 1);
    while (atomic_load(&t->ready) < t->threads)
        sched_yield();
    if (atomic_load(&t->failed))
        goto out;

    for (double warm = now() + 0.1 * t->seconds; now() < warm;)
        repeat(w, data, t->bytes);
    begin = after = now();
    do {
        before = now();
        const double done = repeat(w, data, t->bytes);
        after = now();
        w->samples[count++] = done / (after - before);
    } while (after - begin < t->seconds && count < SAMPLES);
    qsort(w->samples, count, sizeof *w->samples, ascending);
    w->rate = w->samples[count / 2];
out:
    free(data);
    return NULL;
}

static double run(int threads, size_t bytes, double seconds)
{
    task t = {.bytes = bytes, .seconds = seconds, .threads = threads};
    worker *workers = calloc((size_t)threads, sizeof *workers);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    double *samples = calloc((size_t)threads * SAMPLES, sizeof *samples), rate = 0;
    int started = 1; /* the caller is number 0 */

    if (!workers || !ids || !samples) {
        rate = -1;
        goto out;
    }
    for (int i = 0; i < threads; i++)
        workers[i] = (worker){.task = &t, .samples = samples + (size_t)i * SAMPLES};
    while (started < threads && !pthread_create(&ids[started], NULL, work, &workers[started]))
        started++;
    if (started < threads) {
        atomic_store(&t.failed, 1);
        atomic_fetch_add(&t.ready, threads - started);
    }
    work(&workers[0]);
    for (int i = 0; i < started; i++) {
        if (i)
            pthread_join(ids[i], NULL);
        rate += workers[i].rate;
    }
    if (atomic_load(&t.failed))
        rate = -1;
out:
    free(workers);
    free(ids);
    free(samples);
    return rate;
}

/* Operations per second of all threads, or -1. */
double peak_fma(int threads, double seconds) { return run(threads, 0, seconds); }

/* Bytes per second that all threads read, each again and again from `bytes` of its own (at least one iteration's), or -1. */
double peak_read(int threads, size_t bytes, double seconds)
{
    const size_t whole = bytes / SPAN * SPAN;
    return run(threads, whole ? whole : SPAN, seconds);
}
