/* The kernels without Python: every leaf against a naive twin, then whole calls, whose bits are printed.
 *
 *     check ISA        prints one line for each case, "f32 t3b5i7h11l2d2p0 n2: <hash>", or fails with what differs
 *
 * Compiled natively and for AArch64 (run under an emulator): instruction sets with fused multiply-add print the same lines.
 */
#include "fastlstm.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

#define EXPECT(condition, ...)                         \
    do {                                               \
        if (!(condition)) {                            \
            failures++;                                \
            fprintf(stderr, "check.c:%d: ", __LINE__); \
            fprintf(stderr, __VA_ARGS__);              \
            fprintf(stderr, "\n");                     \
        }                                              \
    } while (0)

/* ---- Numbers that are the same everywhere ------------------------------------------------------------------------------------ */

static uint64_t seed;

static double uniform(void) /* [-1, 1) in steps of 2^-23: exact in float32 */
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(int64_t)(seed >> 40) / (1 << 23) - 1;
}

static void put(void *array, fl_index item, fl_index i, double value)
{
    if (item == 4)
        ((float *)array)[i] = (float)value;
    else
        ((double *)array)[i] = value;
}

static double get(const void *array, fl_index item, fl_index i)
{
    return item == 4 ? (double)((const float *)array)[i] : ((const double *)array)[i];
}

static void *aligned(fl_index bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, FL_ALIGNMENT, (size_t)bytes + 1))
        abort();
    return memory;
}

static void *numbers(fl_index item, fl_index count, double scale)
{
    void *array = aligned(count * item);
    for (fl_index i = 0; i < count; i++)
        put(array, item, i, scale * uniform());
    return array;
}

static uint64_t hash(uint64_t h, const void *data, fl_index bytes) /* FNV-1a */
{
    for (fl_index i = 0; i < bytes; i++)
        h = (h ^ ((const unsigned char *)data)[i]) * UINT64_C(1099511628211);
    return h;
}

/* ---- Leaves ---------------------------------------------------------------------------------------------------------------------- */

/* What a tile does to one element: fused on every instruction set but the baseline. */
static double multiply_add(double a, double b, double c, fl_index item, int fused)
{
    if (item == 4) {
        volatile float product = (float)a * (float)b;
        return fused ? (double)fmaf((float)a, (float)b, (float)c) : (double)(product + (float)c);
    }
    volatile double product = a * b;
    return fused ? fma(a, b, c) : product + c;
}

static double add(double a, double b, fl_index item) { return item == 4 ? (double)((float)a + (float)b) : a + b; }

static void check_tile(const fl_kernels *k, int fused, fl_index M, fl_index blocks, fl_index K)
{
    const fl_index item = k->item, width = FL_VECTORS * k->V, panel_next = (K + 1) * width, acc_next = (M + 1) * width;
    void *acc = numbers(item, blocks * acc_next, 1), *before = numbers(item, blocks * acc_next, 1);
    void *panel = numbers(item, blocks * panel_next, 1), *inputs = numbers(item, M * (K + 3) + 1, 1);
    const void *rows[FL_MAX_TILE];

    memcpy(before, acc, (size_t)(blocks * acc_next * item));
    for (fl_index m = 0; m < M; m++) /* rows at odd distances, so not aligned to vectors */
        rows[m] = (char *)inputs + (m * (K + 3) + 1) * item;
    (blocks == 2 ? k->tile_pair : k->tiles[M - 1])(acc, acc_next, panel, panel_next, rows, K);
    for (fl_index block = 0; block < blocks; block++)
        for (fl_index m = 0; m < M + 1; m++)
            for (fl_index i = 0; i < width; i++) {
                const fl_index at = block * acc_next + m * width + i;
                double sum = get(before, item, at);
                for (fl_index slab = 0; m < M && slab < K; slab += FL_SLAB) {
                    double part = 0;
                    for (fl_index n = slab; n < fl_min(slab + FL_SLAB, K); n++)
                        part = multiply_add(get(rows[m], item, n), get(panel, item, block * panel_next + n * width + i), part,
                                            item, fused);
                    sum = add(sum, part, item);
                }
                EXPECT(get(acc, item, at) == sum, "tile M %td, block %td, K %td: acc[%td][%td] is %.17g, not %.17g", M, block, K,
                       m, i, get(acc, item, at), sum);
            }
    free(acc), free(before), free(panel), free(inputs);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static int close_to(double value, double expected, fl_index item)
{
    if (isnan(expected) || isinf(expected))
        return isnan(expected) ? isnan(value) : value == expected;
    /* A handful of roundings in each quotient; below the smallest normal number everything may be zero. */
    return fabs(value - expected) <= (item == 4 ? 6e-7 : 2e-15) * fabs(expected) + (item == 4 ? 4e-38 : 1e-300);
}

static void check_cell(const fl_kernels *k, fl_index n)
{
    static const double special[] = {0, -0.0, 1e-30, -1e-6, 0.3, -9, 20, -30, 80, -87, 88.6, -200, 800, INFINITY, -INFINITY, NAN};
    enum { SPECIAL = sizeof special / sizeof *special };
    const fl_index item = k->item, V = k->V, c_pitch = V + 16, h_pitch = 2 * V;
    void *xW = numbers(item, n * FL_VECTORS * V, 4), *hR = numbers(item, n * FL_VECTORS * V, 2),
         *bias = numbers(item, FL_VECTORS * V, 2);
    void *c = numbers(item, n * c_pitch, 3), *h = numbers(item, n * h_pitch, 1);

    for (fl_index row = 1; row < n; row++) /* row 0 stays ordinary */
        for (fl_index v = 0; v < V; v++) {
            const fl_index gate = (row + v) % 5;
            const double value = special[(row * 7 + v * 3) % SPECIAL];
            if (gate == 4)
                put(c, item, row * c_pitch + v, value);
            else
                put(row % 2 ? xW : hR, item, (row * FL_VECTORS + gate) * V + v, value);
        }
    void *c_before = aligned(n * c_pitch * item);
    memcpy(c_before, c, (size_t)(n * c_pitch * item));
    k->cell(n, xW, hR, bias, c, c_pitch, h, h_pitch);
    for (fl_index row = 0; row < n; row++)
        for (fl_index v = 0; v < V; v++) {
            double gate[FL_VECTORS];
            for (int g = 0; g < FL_VECTORS; g++) {
                const fl_index at = (row * FL_VECTORS + g) * V + v;
                gate[g] = add(add(get(xW, item, at), get(hR, item, at), item), get(bias, item, g * V + v), item);
            }
            const double c_prev = get(c_before, item, row * c_pitch + v), c_is = get(c, item, row * c_pitch + v);
            const double c_t = sigmoid(gate[1]) * c_prev + sigmoid(gate[0]) * tanh(gate[2]), h_t = sigmoid(gate[3]) * tanh(c_is);
            /* Where both terms nearly cancel, the error is relative to the terms. */
            const double terms = fabs(sigmoid(gate[1]) * c_prev) + fabs(sigmoid(gate[0]) * tanh(gate[2]));
            EXPECT(close_to(c_is, c_t, item) || fabs(c_is - c_t) <= (item == 4 ? 6e-7 : 2e-15) * terms,
                   "cell: i %g f %g g %g c %g: c is %.9g, not %.9g", gate[0], gate[1], gate[2], c_prev, c_is, c_t);
            EXPECT(close_to(get(h, item, row * h_pitch + v), h_t, item), "cell: o %g c %.9g: h is %.9g, not %.9g", gate[3], c_is,
                   get(h, item, row * h_pitch + v), h_t);
        }
    free(xW), free(hR), free(bias), free(c), free(h), free(c_before);
}

/* ---- Whole calls ----------------------------------------------------------------------------------------------------------------- */

typedef struct {
    fl_index T, B, I, H, L, D, P;
    int lengths, resets, threads;
} shape;

typedef struct {
    fl_call *call;
    int thread;
} member;

static void *join(void *argument)
{
    const member *m = argument;
    fl_forward(m->call, m->thread);
    return NULL;
}

static void run_team(fl_call *call)
{
    pthread_t workers[64];
    member members[64];

    for (int thread = 0; thread < call->plan.threads; thread++)
        members[thread] = (member){call, thread};
    for (int thread = 1; thread < call->plan.threads; thread++)
        pthread_create(&workers[thread], NULL, join, &members[thread]);
    join(&members[0]);
    for (int thread = 1; thread < call->plan.threads; thread++)
        pthread_join(workers[thread], NULL);
}

static uint64_t forward(const fl_kernels *k, const shape *s, fl_plan plan)
{
    const fl_index item = k->item, P = s->P ? s->P : s->H, states = s->L * s->D;
    fl_network net = {.kernels = k, .I = s->I, .H = s->H, .P = P, .L = s->L, .D = s->D, .has_projection = s->P > 0, .item = item};
    fl_layer_weights *weights = calloc((size_t)states, sizeof *weights);
    void *h_n = numbers(item, states * s->B * P, 1), *c_n = numbers(item, states * s->B * s->H, 1);
    void *output = numbers(item, s->T * s->B * s->D * P, 1);
    int64_t *lengths = calloc((size_t)s->B + 1, sizeof *lengths);
    uint8_t *resets = calloc((size_t)(s->T * s->B) + 1, 1);
    uint64_t h = UINT64_C(14695981039346656037);

    seed = 1;
    net.V = k->V;
    net.blocks = fl_ceil_div(s->H, k->V);
    net.projected_blocks = fl_ceil_div(s->P, FL_VECTORS * k->V);
    const double scale = 1 / sqrt((double)s->H);
    for (fl_index i = 0; i < states; i++)
        weights[i] = (fl_layer_weights){
            .weight_ih = numbers(item, 4 * s->H * (i < s->D ? s->I : s->D * P), scale),
            .weight_hh = numbers(item, 4 * s->H * P, scale),
            .bias_ih = numbers(item, 4 * s->H, scale),
            .bias_hh = numbers(item, 4 * s->H, scale),
            .weight_hr = s->P ? numbers(item, s->P * s->H, scale) : NULL,
        };
    void *x = numbers(item, s->T * s->B * s->I, 1), *h_0 = numbers(item, states * s->B * P, 1);
    void *c_0 = numbers(item, states * s->B * s->H, 1);
    for (fl_index b = 0; b < s->B; b++)
        lengths[b] = (int64_t)((uniform() + 1) / 2 * (double)(s->T + 1));
    for (fl_index i = 0; i < s->T * s->B; i++)
        resets[i] = uniform() > 0.7;

    EXPECT(fl_pack(&net, weights) == FL_OK, "fl_pack");
    fl_call call = {
        .net = &net,
        .T = s->T,
        .B = s->B,
        .x = {x, {s->B * s->I * item, s->I * item, item}},
        .output = {output, {s->B * s->D * P * item, s->D * P * item, item}},
        .h_0 = h_0,
        .c_0 = c_0,
        .h_n = h_n,
        .c_n = c_n,
        .lengths = s->lengths ? lengths : NULL,
        .resets = s->resets ? resets : NULL,
        .resets_strides = {s->B, 1},
    };
    call.plan = plan.threads ? plan : fl_make_plan(&net, s->T, s->B, s->threads);
    EXPECT(fl_prepare(&call) == FL_OK, "fl_prepare");
    run_team(&call);
    fl_release(&call);

    h = hash(h, output, s->T * s->B * s->D * P * item);
    h = hash(h, h_n, states * s->B * P * item);
    h = hash(h, c_n, states * s->B * s->H * item);
    for (fl_index i = 0; i < states; i++) {
        const void *tensors[] = {weights[i].weight_ih, weights[i].weight_hh, weights[i].bias_ih, weights[i].bias_hh,
                                 weights[i].weight_hr};
        for (int k = 0; k < 5; k++)
            free((void *)tensors[k]);
    }
    fl_unpack(&net);
    free(weights), free(x), free(h_0), free(c_0), free(h_n), free(c_n), free(output), free(lengths), free(resets);
    return h;
}

/* Every division of up to four threads, chunked or not: all must give the bits of one thread. */
static uint64_t all_divisions(const fl_kernels *k, const shape *s)
{
    const fl_plan one = {
        .threads = 1, .directions = 1, .row_groups = 1, .unit_groups = 1, .chunk = 0, .stride = s->T, .blocks_at_once = 1};
    const fl_plan planned = {0};
    const uint64_t expected = forward(k, s, one);

    EXPECT(forward(k, s, planned) == expected, "the planned division differs");
    for (int directions = 1; directions <= s->D; directions++)
        for (int row_groups = 1; row_groups <= 3; row_groups++)
            for (int unit_groups = 1; unit_groups <= 3; unit_groups++)
                for (fl_index chunk = 0; chunk <= 4; chunk += 2) {
                    const fl_index stride = s->D == 1 && s->L > 1 ? 3 : s->T;
                    const fl_plan plan = {directions * row_groups * unit_groups,
                                          directions,
                                          row_groups,
                                          unit_groups,
                                          chunk,
                                          fl_max(stride, 1),
                                          1 + (int)(chunk / 2) % 2,
                                          chunk == 2 ? 1 : 1000000000}; /* 1: teams of two part */
                    const uint64_t found = forward(k, s, plan);
                    EXPECT(found == expected, "directions %d, row groups %d, unit groups %d, chunk %td differ", directions,
                           row_groups, unit_groups, chunk);
                }
    return expected;
}

int main(int argc, char **argv)
{
    static const shape shapes[] = {
        {1, 1, 1, 1, 1, 1, 0, 0, 0, 2},     /* the smallest */
        {3, 5, 7, 11, 2, 2, 0, 0, 0, 3},    /* no multiple of any vector */
        {5, 7, 16, 32, 1, 1, 0, 1, 0, 2},   /* full vectors, ragged */
        {9, 13, 5, 33, 3, 1, 0, 1, 1, 4},   /* one unit past two AVX-512 vectors; three layers handed on in strides */
        {6, 6, 9, 20, 2, 2, 7, 1, 1, 4},    /* projection */
        {4, 2, 300, 70, 1, 1, 65, 0, 1, 2}, /* K beyond one panel; projection of more than one AVX-512 block */
        {2, 30, 300, 17, 1, 2, 0, 1, 0, 2}, /* several tiles of rows in one panel */
    };
    const fl_isa *isa = fl_isas();

    while (isa->name && (argc < 2 || strcmp(isa->name, argv[1]) != 0))
        isa++;
    if (!isa->name || !isa->available) {
        fprintf(stderr, "instruction set not available\n");
        return 2;
    }
    const fl_kernels *tables[] = {isa->f32, isa->f64};
    const int fused = strcmp(isa->name, "baseline") != 0;
    for (int type = 0; type < 2; type++) {
        const fl_kernels *k = tables[type];
        EXPECT(k->item == (type ? 8 : 4), "item is %td", k->item);
        seed = 1;
        for (fl_index K = 0; K < 3 * FL_SLAB; K++) {
            for (fl_index M = 1; M <= k->max_tile; M++)
                check_tile(k, fused, M, 1, K);
            check_tile(k, fused, 1, 2, K);
        }
        for (fl_index n = 1; n < 60; n += 7)
            check_cell(k, n);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const shape *s = &shapes[i];
            printf("%s t%tdb%tdi%tdh%tdl%tdd%tdp%td: %016llx\n", type ? "f64" : "f32", s->T, s->B, s->I, s->H, s->L, s->D, s->P,
                   (unsigned long long)all_divisions(k, s));
        }
    }
    return failures != 0;
}
