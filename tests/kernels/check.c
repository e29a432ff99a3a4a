/* The kernels without Python: every leaf against a naive twin, then whole calls, whose bits are printed.
 *
 *     check ISA [GROUPS]   prints one line for each case, "f32 t3b5i7h11l2d2p0 n2: <hash>", or fails with what differs
 *
 * Compiled natively and for AArch64 (run under an emulator): instruction sets with fused multiply-add print the same lines.
 */
#define _GNU_SOURCE
#include "claim.h"
#include "clock.h"
#include "crowd.h"
#include "fastlstm.h"
#include "meeting.h"
#include "pace.h"
#include "waking.h"

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

/* q / 64 as half precision, for -127 <= q <= 127; and one of its subnormal numbers, q * 2^-24. */
static uint16_t half_of(int q, int subnormal)
{
    const uint16_t sign = q < 0 ? 0x8000 : 0;
    const int magnitude = abs(q);
    int exponent = 0;

    if (subnormal || q == 0)
        return (uint16_t)(sign | magnitude);
    while (magnitude >> (exponent + 1))
        exponent++;
    return (uint16_t)(sign | (exponent - 6 + 15) << 10 | (magnitude << (10 - exponent) & 0x3ff));
}

/* Packs weights that each kind can express, and returns them as they are to be read: of int8 without the scale. */
static void *pack_numbers(const fl_kernels *k, int kind, fl_index K, char *panel, char *scales)
{
    const fl_index width = FL_VECTORS * k->V;
    void *weights = numbers(k->item, K * width, 1);

    for (fl_index column = 0; kind == FL_INT8 && column < width; column++)
        ((float *)scales)[column] = (float)(1.5 + uniform());
    for (fl_index i = 0; i < K * width; i++) {
        const int q = (int)(get(weights, k->item, i) * 127), small = i % 11 == 3;
        const fl_index vector = i % width / k->V, lane = i % k->V, element = i / width * width;
        float value = (float)q / 64;

        if (kind == FL_FULL)
            put(panel, k->item, i, get(weights, k->item, i));
        else if (kind == FL_FLOAT16) {
            value = small ? (float)q * 0x1p-24f : value;
            ((uint16_t *)panel)[i] = half_of(q, small);
        } else if (kind == FL_BFLOAT16) {
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            ((uint16_t *)panel)[element + vector / 2 * 2 * k->V + 2 * lane + vector % 2] = (uint16_t)(bits >> 16);
        } else {
            value = (float)q;
            panel[element + FL_VECTORS * lane + vector] = (char)q;
        }
        if (kind != FL_FULL)
            put(weights, k->item, i, value);
    }
    return weights;
}

/* The first `vectors` of a block, all if 0, which leave the others alone. */
static void check_tile(const fl_kernels *k, int kind, int fused, int begins, fl_index slab, fl_index M, fl_index blocks,
                       fl_index vectors, fl_index K)
{
    fl_tile *tile = vectors ? k->narrow[vectors - 1][M - 1] : blocks == 2 ? k->tile_pair[kind] : k->tiles[kind][M - 1];
    const fl_index item = k->item, width = FL_VECTORS * k->V, acc_next = (M + 1) * width;
    const fl_index scales = fl_scales_bytes(kind, k->V);
    const fl_index panel_next = scales + fl_round_up((K + 1) * width * fl_weight_item(kind, item), FL_ALIGNMENT);
    void *acc = numbers(item, blocks * acc_next, 1), *before = numbers(item, blocks * acc_next, 1);
    char *panel = aligned(blocks * panel_next), *inputs = numbers(item, M * (K + 3) + 1, 1);
    void *weights[2];
    const void *rows[FL_MAX_TILE];
    const fl_fetch own = {NULL, 0}, next = {panel, FL_ALIGNMENT},
                   *fetch[] = {NULL, &own, &next}; /* all of them asked for by turns */

    for (fl_index block = 0; block < blocks; block++)
        weights[block] = pack_numbers(k, kind, K, panel + block * panel_next + scales, panel + block * panel_next);

    memcpy(before, acc, (size_t)(blocks * acc_next * item));
    for (fl_index m = 0; m < M; m++) /* rows at odd distances, so not aligned to vectors */
        rows[m] = inputs + (m * (K + 3) + 1) * item;
    tile(begins, fetch[(K + M) % 3], slab, acc, acc_next, panel + scales, panel_next, panel, rows, K);
    for (fl_index block = 0; block < blocks; block++)
        for (fl_index m = 0; m < M + 1; m++)
            for (fl_index i = 0; i < width; i++) {
                const fl_index at = block * acc_next + m * width + i;
                const int summed = m < M && (!vectors || i < vectors * k->V);
                double sum = begins && summed ? 0 : get(before, item, at);
                for (fl_index first = 0; summed && first < K; first += slab) {
                    double part = 0;
                    for (fl_index n = first; n < fl_min(first + slab, K); n++)
                        part = multiply_add(get(rows[m], item, n), get(weights[block], item, n * width + i), part, item, fused);
                    if (scales)
                        part = (float)part * ((const float *)(panel + block * panel_next))[i];
                    sum = add(sum, part, item);
                }
                EXPECT(get(acc, item, at) == sum && !signbit(sum) == !signbit(get(acc, item, at)),
                       "kind %d, M %td, block %td, vectors %td, K %td: acc[%td][%td] is %.17g, not %.17g", kind, M, block,
                       vectors, K, m, i, get(acc, item, at), sum);
            }
    for (fl_index block = 0; block < blocks; block++)
        free(weights[block]);
    free(acc), free(before), free(panel), free(inputs);
}

static void check_tiles(const fl_kernels *k, int kinds, int fused, fl_index slab, fl_index K)
{
    for (int kind = FL_FULL; kind < kinds; kind++)
        for (int begins = 0; begins <= (K > 0); begins++) {
            for (fl_index M = 1; M <= FL_MAX_TILE; M++)
                for (fl_index vectors = 0; vectors <= (kind == FL_FULL ? 2 : 0); vectors++)
                    check_tile(k, kind, fused, begins, slab, M, 1, vectors, K);
            check_tile(k, kind, fused, begins, slab, 1, 2, 0, K);
        }
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
    k->cell(n, xW, hR, bias, c, c_pitch, h, h_pitch, NULL, 0);
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

/* The numbers are those without gates, and the gates stand where they belong, with nothing written beside them. */
static void check_kept_gates(const fl_kernels *k, fl_index n)
{
    static const double special[] = {0, -0.0, 1e-30, -9, 30, -200, 800, INFINITY, -INFINITY, NAN};
    enum { SPECIAL = sizeof special / sizeof *special };
    const fl_index item = k->item, V = k->V, c_pitch = V + 16, h_pitch = 2 * V, gates_pitch = FL_VECTORS * FL_UNITS + 16;
    void *xW = numbers(item, n * FL_VECTORS * V, 4), *hR = numbers(item, n * FL_VECTORS * V, 2),
         *bias = numbers(item, FL_VECTORS * V, 2);
    void *c[2] = {numbers(item, n * c_pitch, 3), aligned(n * c_pitch * item)};
    void *h[2] = {numbers(item, n * h_pitch, 1), aligned(n * h_pitch * item)};
    void *gates = numbers(item, n * gates_pitch, 1), *before = aligned(n * gates_pitch * item);

    for (fl_index row = 1; row < n; row++)
        for (fl_index v = 0; v < V; v++) {
            const fl_index gate = (row + v) % 5;
            put(gate == 4 ? c[0] : xW, item, gate == 4 ? row * c_pitch + v : (row * FL_VECTORS + gate) * V + v,
                special[(row * 7 + v * 3) % SPECIAL]);
        }
    memcpy(c[1], c[0], (size_t)(n * c_pitch * item));
    memcpy(h[1], h[0], (size_t)(n * h_pitch * item));
    memcpy(before, gates, (size_t)(n * gates_pitch * item));
    k->cell(n, xW, hR, bias, c[0], c_pitch, h[0], h_pitch, NULL, 0);
    k->cell(n, xW, hR, bias, c[1], c_pitch, h[1], h_pitch, gates, gates_pitch);
    EXPECT(memcmp(c[0], c[1], (size_t)(n * c_pitch * item)) == 0, "kept gates: another c");
    EXPECT(memcmp(h[0], h[1], (size_t)(n * h_pitch * item)) == 0, "kept gates: another h");
    for (fl_index row = 0; row < n; row++)
        for (fl_index at = 0; at < gates_pitch; at++) {
            const fl_index gate = at / FL_UNITS, v = at % FL_UNITS, from = (row * FL_VECTORS + gate) * V + v;
            const double found = get(gates, item, row * gates_pitch + at);

            if (gate >= FL_VECTORS || v >= V) {
                EXPECT(found == get(before, item, row * gates_pitch + at), "kept gates: wrote to element %td", at);
                continue;
            }
            const double z = add(add(get(xW, item, from), get(hR, item, from), item), get(bias, item, gate * V + v), item);
            const double expected = gate == 2 ? tanh(z) : sigmoid(z);
            EXPECT(close_to(found, expected, item), "kept gates: gate %td of %g is %.9g, not %.9g", gate, z, found, expected);
        }
    free(xW), free(hR), free(bias), free(c[0]), free(c[1]), free(h[0]), free(h[1]), free(gates), free(before);
}

/* Within `error`, or the same NaN or infinity. */
static int within(double value, double expected, double error)
{
    if (isnan(expected) || isinf(expected))
        return isnan(expected) ? isnan(value) : value == expected;
    return fabs(value - expected) <= error;
}

static void check_cell_backward(const fl_kernels *k, fl_index n, int has_dy, int has_m)
{
    static const double special[] = {0, -0.0, INFINITY, -INFINITY, NAN, 40, -40};
    enum { SPECIAL = sizeof special / sizeof *special };
    const fl_index item = k->item, V = k->V, dh_pitch = FL_VECTORS * V, dy_pitch = V + 16, c_pitch = 2 * V, dc_pitch = V + 32,
                   gates_pitch = FL_VECTORS * FL_UNITS + 16, from = V;
    void *dh = numbers(item, n * dh_pitch, 2), *dy = numbers(item, n * dy_pitch, 1), *c = numbers(item, n * c_pitch, 3);
    void *dc = numbers(item, n * dc_pitch, 2), *gates = numbers(item, n * gates_pitch, 1), *m = numbers(item, n * c_pitch, 1);
    void *c_prev = numbers(item, n * 2 * V, 3);
    const void **rows = calloc((size_t)n, sizeof *rows);
    const double u = item == 4 ? 6e-7 : 2e-15; /* a handful of roundings */

    for (fl_index row = 0; row < n; row++) {
        rows[row] = (char *)c_prev + (n - 1 - row) * 2 * V * item; /* any order */
        for (fl_index at = 0; at < FL_VECTORS * FL_UNITS; at++)    /* i, f, o in [0, 1) */
            if (at / FL_UNITS != 2)
                put(gates, item, row * gates_pitch + at, fabs(get(gates, item, row * gates_pitch + at)));
        for (fl_index v = 0; row > 0 && v < V; v++) {
            const double value = special[(row * 5 + v * 3) % SPECIAL];
            void *const places[] = {(char *)dh + row * dh_pitch * item, (char *)dy + row * dy_pitch * item,
                                    (char *)c + row * c_pitch * item, (char *)dc + row * dc_pitch * item,
                                    (char *)rows[row] + from * item};
            const fl_index which = (row + v) % 7;
            if (which < 5)
                put(places[which], item, v, value);
            else /* a gate at an end, or NaN */
                put(gates, item, row * gates_pitch + (row + v) % FL_VECTORS * FL_UNITS + v,
                    isnan(value) ? NAN
                    : value > 0  ? 1
                                 : 0);
        }
    }
    void *old_dc = aligned(n * dc_pitch * item), *old_gates = aligned(n * gates_pitch * item);
    memcpy(old_dc, dc, (size_t)(n * dc_pitch * item));
    memcpy(old_gates, gates, (size_t)(n * gates_pitch * item));
    const fl_cell_gradient cell = {
        .dh = dh,
        .dh_pitch = dh_pitch,
        .dy = has_dy ? dy : NULL,
        .dy_pitch = dy_pitch,
        .gates = gates,
        .gates_pitch = gates_pitch,
        .c_prev = rows,
        .c_prev_from = from,
        .c = c,
        .c_pitch = c_pitch,
        .dc = dc,
        .dc_pitch = dc_pitch,
        .m = has_m ? m : NULL,
    };
    k->cell_backward(n, &cell);
    for (fl_index row = 0; row < n; row++)
        for (fl_index v = 0; v < V; v++) {
            double gate[FL_VECTORS], found[FL_VECTORS], d[FL_VECTORS], error[FL_VECTORS];
            for (int g = 0; g < FL_VECTORS; g++) {
                gate[g] = get(old_gates, item, row * gates_pitch + g * FL_UNITS + v);
                found[g] = get(gates, item, row * gates_pitch + g * FL_UNITS + v);
            }
            const double i = gate[0], f = gate[1], g = gate[2], o = gate[3], c_t = get(c, item, row * c_pitch + v);
            const double t = item == 4 ? (double)tanhf((float)c_t) : tanh(c_t), before = get(rows[row], item, from + v);
            const double dh_t = has_dy ? add(get(dh, item, row * dh_pitch + v), get(dy, item, row * dy_pitch + v), item)
                                       : get(dh, item, row * dh_pitch + v);
            const double dc_n = get(old_dc, item, row * dc_pitch + v), dc_t = dc_n + dh_t * o * (1 - t) * (1 + t);
            const double dc_error = u * (fabs(dc_n) + fabs(dh_t * o)); /* 1 - t loses digits where t is nearly 1 */

            d[0] = dc_t * g * (i * (1 - i)), error[0] = (dc_error + u * fabs(dc_t)) * fabs(g * i);
            d[1] = dc_t * before * (f * (1 - f)), error[1] = (dc_error + u * fabs(dc_t)) * fabs(before * f);
            d[2] = dc_t * i * (1 - g) * (1 + g), error[2] = (dc_error + u * fabs(dc_t)) * fabs(i);
            d[3] = dh_t * t * (o * (1 - o)), error[3] = u * fabs(dh_t * o);
            for (int j = 0; j < FL_VECTORS; j++)
                EXPECT(within(found[j], d[j], error[j] + 1e-37),
                       "cell_backward: i %g f %g g %g o %g c %g before %g dh %g dc %g: gradient %d is %.9g, not %.9g", i, f, g, o,
                       c_t, before, dh_t, dc_n, j, found[j], d[j]);
            EXPECT(within(get(dc, item, row * dc_pitch + v), dc_t * f, (dc_error + u * fabs(dc_t)) * f + 1e-37),
                   "cell_backward: dc is %.9g, not %.9g", get(dc, item, row * dc_pitch + v), dc_t * f);
            if (has_m)
                EXPECT(within(get(m, item, row * c_pitch + v), o * t, u), "cell_backward: m is %.9g, not %.9g",
                       get(m, item, row * c_pitch + v), o * t);
        }
    free(dh), free(dy), free(c), free(dc), free(gates), free(m), free(c_prev), free(rows), free(old_dc), free(old_gates);
}

static int same(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

/* Some of them infinite or NaN. */
static void spoil(void *array, fl_index item, fl_index count)
{
    static const double special[] = {INFINITY, -INFINITY, NAN};
    for (fl_index i = 0; i < count; i++)
        if (uniform() > 0.97)
            put(array, item, i, special[i % 3]);
}

/* `sum` + K products, slab by slab, or b alone where a is NULL: what the kernels over tokens do to one element. */
static double slabs(double sum, fl_index slab, fl_index K, const void *a, fl_index a_pitch, const void *const *b, fl_index at,
                    fl_index item, int fused)
{
    for (fl_index first = 0; first < K; first += slab) {
        double part = 0;
        for (fl_index n = first; n < fl_min(first + slab, K); n++)
            part = a ? multiply_add(get(a, item, n * a_pitch), get(b[n], item, at), part, item, fused)
                     : add(part, get(b[n], item, at), item);
        sum = add(sum, part, item);
    }
    return sum;
}

static void check_outer(const fl_kernels *k, int fused, fl_index vectors, fl_index M, fl_index K, int spoilt)
{
    const fl_index item = k->item, width = FL_VECTORS * k->V, a_pitch = M + 5;
    void *a = numbers(item, K * a_pitch, 1), *panel = numbers(item, K * width, 1);
    void *acc = numbers(item, M * width, 1), *before = aligned(M * width * item);
    const void **rows = calloc((size_t)K + 1, sizeof *rows);

    for (fl_index n = 0; n < K; n++)
        rows[n] = (char *)panel + n * width * item;
    if (spoilt)
        spoil(a, item, K * a_pitch), spoil(panel, item, K * width), spoil(acc, item, M * width);
    memcpy(before, acc, (size_t)(M * width * item));
    k->outers[vectors - 1][M - 1](acc, panel, a, a_pitch, K);
    for (fl_index m = 0; m < M; m++)
        for (fl_index j = 0; j < width; j++) {
            const int summed = vectors > 2 || j < vectors * k->V; /* three are taken as four */
            const double found = get(acc, item, m * width + j), was = get(before, item, m * width + j);
            const double sum = summed ? slabs(was, FL_LONG_SLAB, K, (char *)a + m * item, a_pitch, rows, j, item, fused) : was;
            EXPECT(same(found, sum), "outer M %td, vectors %td, K %td: acc[%td][%td] is %.17g, not %.17g", M, vectors, K, m, j,
                   found, sum);
        }
    free(a), free(panel), free(acc), free(before), free(rows);
}

static void check_sum_rows(const fl_kernels *k, fl_index K, fl_index columns, int spoilt)
{
    const fl_index item = k->item, pitch = FL_UNITS * 2;
    void *a = numbers(item, fl_max(1, K) * pitch, 1), *out = numbers(item, FL_UNITS + 1, 1),
         *before = aligned((FL_UNITS + 1) * item);
    const void **rows = calloc((size_t)K + 1, sizeof *rows);

    for (fl_index n = 0; n < K; n++)
        rows[n] = (char *)a + n * pitch * item;
    if (spoilt)
        spoil(a, item, K * pitch), spoil(out, item, FL_UNITS + 1);
    memcpy(before, out, (size_t)((FL_UNITS + 1) * item));
    k->sum_rows(K, a, pitch, out, columns);
    for (fl_index j = 0; j < FL_UNITS + 1; j++) {
        const double was = get(before, item, j),
                     sum = j < columns ? add(was, slabs(0, FL_SLAB, K, NULL, 0, rows, j, item, 0), item) : was;
        EXPECT(same(get(out, item, j), sum), "sum_rows K %td, columns %td: %td is %.17g, not %.17g", K, columns, j,
               get(out, item, j), sum);
    }
    free(a), free(out), free(before), free(rows);
}

static void check_add(const fl_kernels *k, fl_index n, int spoilt)
{
    const fl_index item = k->item;
    char *a = malloc((size_t)((n + 1) * item)), *out = malloc((size_t)((n + 1) * item)),
         *before = malloc((size_t)((n + 1) * item));

    for (fl_index i = 0; i <= n; i++)
        put(a, item, i, uniform()), put(out, item, i, uniform());
    if (spoilt)
        spoil(a, item, n + 1), spoil(out, item, n + 1);
    memcpy(before, out, (size_t)((n + 1) * item));
    k->add(n, a + item, out + item); /* off by one element, up to the very end */
    for (fl_index i = 0; i <= n; i++) {
        const double sum = i ? add(get(before, item, i), get(a, item, i), item) : get(before, item, 0);
        EXPECT(same(get(out, item, i), sum), "add %td: %td is %.17g, not %.17g", n, i, get(out, item, i), sum);
    }
    free(a), free(out), free(before);
}

/* A plain RNN's cell, and its derivatives from what it gives. */
static void check_rnn(const fl_kernels *k, int relu, fl_index n)
{
    static const double special[] = {0, -0.0, 1e-30, -1e-6, 0.3, -9, 20, -30, -87, 88.6, 800, INFINITY, -INFINITY, NAN};
    enum { SPECIAL = sizeof special / sizeof *special };
    const fl_index item = k->item, V = k->V, width = FL_VECTORS * V, h_pitch = width + 3 * V, dz_pitch = 2 * V;
    void *xW = numbers(item, n * width, 2), *hR = numbers(item, n * width, 1), *bias = numbers(item, width, 1);
    void *h = numbers(item, n * h_pitch, 1), *dh = numbers(item, n * width, 1), *dy = numbers(item, n * V, 1);
    void *dz = numbers(item, n * dz_pitch, 1);

    for (fl_index at = width; at < n * width; at += 3) /* row 0 stays ordinary */
        put(at % 2 ? xW : hR, item, at, special[at / 3 % SPECIAL]);
    k->rnn_cell(relu, n, xW, hR, bias, h, h_pitch);
    for (fl_index v = 0; v < FL_VECTORS; v++) {
        /* h from one element on: its place in the output of two directions is any */
        const char *h_v = (const char *)h + v * V * item, *dh_v = (const char *)dh + v * V * item;
        k->rnn_backward(relu, n, dh_v, width, dy, V, h_v, h_pitch, dz, dz_pitch);
        for (fl_index row = 0; row < n; row++)
            for (fl_index lane = 0; lane < V; lane++) {
                const fl_index at = row * width + v * V + lane;
                const double z = add(add(get(xW, item, at), get(hR, item, at), item), get(bias, item, v * V + lane), item);
                const double expected = relu ? (z <= 0 ? 0 : z) : tanh(z), given = get(h_v, item, row * h_pitch + lane);
                const double d = add(get(dh_v, item, row * width + lane), get(dy, item, row * V + lane), item);
                const double slope = relu ? !(given <= 0) : (1 - given) * (1 + given);
                const double found = get(dz, item, row * dz_pitch + lane);

                EXPECT(close_to(given, expected, item), "rnn: z %g: h is %.9g, not %.9g", z, given, expected);
                EXPECT(close_to(found, d * slope, item), "rnn: h %g d %g: dz is %.9g, not %.9g", given, d, found, d * slope);
            }
    }
    free(xW), free(hR), free(bias), free(h), free(dh), free(dy), free(dz);
}

/* ---- Variants of the cell ---------------------------------------------------------------------------------------------------------- */

/* Every function in every place, and each of the other differences with some of them. The parameters are exact in float32. */
enum { VARIANTS = 3 * FL_ACTIVATIONS };

static fl_variant variant_of(int i)
{
    /* Scaled tanh by a power of two: the rounding of beta x would come back in its slope many times over. */
    static const double parameters[FL_ACTIVATIONS][2] = {[FL_HARD_SIGMOID] = {0.25, 0.5}, [FL_ELU] = {0.75, 0},
                                                         [FL_LEAKY_RELU] = {0.125, 0},    [FL_THRESHOLDED_RELU] = {0.25, 0},
                                                         [FL_SCALED_TANH] = {0.75, 0.5},  [FL_AFFINE] = {0.5, 0.25}};
    fl_activation places[3];

    for (int place = 0; place < 3; place++) {
        const int kind = (i + place * (2 + i / FL_ACTIVATIONS)) % FL_ACTIVATIONS;
        places[place] = (fl_activation){kind, parameters[kind][0], parameters[kind][1]};
    }
    return (fl_variant){
        .gate = places[0],
        .candidate = places[1],
        .hidden = places[2],
        .coupled = i % 3,
        .gate_clip = i % 4 == 1 ? 0.5 : INFINITY,
        .cell_clip = i % 5 == 1 ? 0.75 : INFINITY,
        .proj_clip = i % 2 ? 0.25 : INFINITY,
    };
}

/* A function's value or slope and what its rounding is relative to. */
typedef struct {
    double value, size;
} number;

static number exactly(double value) { return (number){value, fabs(value)}; }

static number function(const fl_activation *f, double x)
{
    const double a = f->alpha, b = f->beta, sum = a * x + b;

    switch (f->kind) {
    case FL_SIGMOID:
        return exactly(sigmoid(x));
    case FL_TANH:
        return exactly(tanh(x));
    case FL_RELU:
        return exactly(x < 0 ? 0 : x);
    case FL_HARD_SIGMOID:
        return (number){sum < 0 ? 0 : sum > 1 ? 1 : sum, 1};
    case FL_SOFTSIGN:
        return exactly(x / (1 + fabs(x)));
    case FL_SOFTPLUS:
        return exactly((x < 0 ? 0 : x) + log1p(exp(-fabs(x))));
    case FL_ELU:
        return exactly(x < 0 ? a * expm1(x) : x);
    case FL_LEAKY_RELU:
        return exactly(x < 0 ? a * x : x);
    case FL_THRESHOLDED_RELU:
        return exactly(x < a ? 0 : x);
    case FL_SCALED_TANH:
        return exactly(a * tanh(b * x));
    case FL_AFFINE:
        return (number){sum, fabs(a * x) + fabs(b)};
    default:
        return exactly(x);
    }
}

static double slope(const fl_activation *f, double x)
{
    const double a = f->alpha, b = f->beta, sum = a * x + b, e = exp(-fabs(x));

    switch (f->kind) {
    case FL_SIGMOID:
        return e / ((1 + e) * (1 + e));
    case FL_TANH:
        return 4 * e * e / ((1 + e * e) * (1 + e * e));
    case FL_RELU:
        return x <= 0 ? 0 : 1;
    case FL_HARD_SIGMOID:
        return sum <= 0 || sum >= 1 ? 0 : a;
    case FL_SOFTSIGN:
        return 1 / ((1 + fabs(x)) * (1 + fabs(x)));
    case FL_SOFTPLUS:
        return sigmoid(x);
    case FL_ELU:
        return x <= 0 ? a * e : 1;
    case FL_LEAKY_RELU:
        return x <= 0 ? a : 1;
    case FL_THRESHOLDED_RELU:
        return x <= a ? 0 : 1;
    case FL_SCALED_TANH:
        return a * b / (cosh(b * x) * cosh(b * x));
    case FL_AFFINE:
        return a;
    default:
        return 1;
    }
}

static double clamp(double x, double bound) { return x > bound ? bound : x < -bound ? -bound : x; }

/* Whether `value` is `expected` but for a handful of roundings of numbers of that size. */
static int near(double value, double expected, double size, fl_index item)
{
    if (isnan(expected) || isinf(expected))
        return isnan(expected) ? isnan(value) : value == expected;
    return fabs(value - expected) <= (item == 4 ? 2e-6 : 1e-14) * size + (item == 4 ? 4e-37 : 1e-300);
}

/* What one lane of a cell does, forward and backward, from its pre-activations without peepholes of c. */
typedef struct {
    number c, h, dz[FL_VECTORS], dc;
    double z[FL_VECTORS];
} lane;

static lane cell_by_hand(const fl_variant *v, const double *peephole, const double *sums, double c_prev, double c_is, double dh,
                         double dc, fl_index item, int fused)
{
    const fl_activation *functions[] = {&v->gate, &v->gate, &v->candidate, &v->gate};
    lane it;
    number y[FL_VECTORS];
    double d[FL_VECTORS];

    for (int g = 0; g < FL_VECTORS; g++) {
        const int factor = g == 3 ? 2 : g;
        it.z[g] = sums[g];
        if (peephole && g != 2)
            it.z[g] = multiply_add(peephole[factor], g == 3 ? c_is : c_prev, sums[g], item, fused);
        y[g] = function(functions[g], clamp(it.z[g], v->gate_clip));
        d[g] = fabs(it.z[g]) > v->gate_clip ? 0 : slope(functions[g], it.z[g]);
    }
    const number i = y[0], f = y[1];
    if (v->coupled == FL_FORGET)
        y[1] = (number){1 - i.value, 1 + i.size}, d[1] = 0;
    if (v->coupled == FL_INPUT)
        y[0] = (number){1 - f.value, 1 + f.size}, d[0] = 0;
    const double raw = y[1].value * c_prev + y[0].value * y[2].value;
    const number s = function(&v->hidden, c_is);
    it.c = (number){clamp(raw, v->cell_clip), y[1].size * fabs(c_prev) + y[0].size * y[2].size};
    it.h = (number){y[3].value * s.value, y[3].size * s.size};

    it.dz[3] = (number){dh * s.value * d[3], fabs(dh) * s.size * fabs(d[3])};
    const double p_o = peephole ? peephole[2] : 0, hidden = slope(&v->hidden, c_is), passes = fabs(raw) > v->cell_clip ? 0 : 1;
    const number dc_t = {(dc + dh * y[3].value * hidden + (peephole ? p_o * it.dz[3].value : 0)) * passes,
                         fabs(dc) + fabs(dh) * y[3].size * fabs(hidden) + (peephole ? fabs(p_o) * it.dz[3].size : 0)};
    const number by_i = {y[2].value - (v->coupled == FL_FORGET ? c_prev : 0),
                         y[2].size + (v->coupled == FL_FORGET ? fabs(c_prev) : 0)};
    const number by_f = {c_prev - (v->coupled == FL_INPUT ? y[2].value : 0),
                         fabs(c_prev) + (v->coupled == FL_INPUT ? y[2].size : 0)};
    it.dz[0] = (number){dc_t.value * by_i.value * d[0], dc_t.size * by_i.size * fabs(d[0])};
    it.dz[1] = (number){dc_t.value * by_f.value * d[1], dc_t.size * by_f.size * fabs(d[1])};
    it.dz[2] = (number){dc_t.value * y[0].value * d[2], dc_t.size * y[0].size * fabs(d[2])};
    it.dc = (number){dc_t.value * y[1].value, dc_t.size * y[1].size};
    for (int g = 0; peephole && g < 2; g++) {
        it.dc.value += peephole[g] * it.dz[g].value;
        it.dc.size += fabs(peephole[g]) * it.dz[g].size;
    }
    return it;
}

/* Forward, then backward from what it recorded. */
static void check_variant(const fl_kernels *k, int number_of_variant, fl_index n, int fused)
{
    static const double special[] = {0, -0.0, 1e-30, -1e-6, 0.3, -9, 20, -30, 80, -87, 88.6, -200, 800, INFINITY, -INFINITY, NAN};
    enum { SPECIAL = sizeof special / sizeof *special, UNITS = FL_VECTORS * FL_UNITS };
    const fl_variant variant = variant_of(number_of_variant);
    const fl_index item = k->item, V = k->V, c_pitch = V + 16, h_pitch = 2 * V, panel = FL_VECTORS * V;
    void *xW = numbers(item, n * panel, 1), *hR = numbers(item, n * panel, 1), *bias = numbers(item, panel, 1);
    void *c = numbers(item, n * c_pitch, 1), *h = numbers(item, n * h_pitch, 1), *peepholes = numbers(item, 3 * V, 1);
    void *dh = numbers(item, n * h_pitch, 1), *dy = numbers(item, n * h_pitch, 1), *dc = numbers(item, n * c_pitch, 1);
    void *z = numbers(item, n * UNITS, 1), *sums = aligned(n * panel * item), *m = numbers(item, n * c_pitch, 1);
    const void **c_rows = calloc((size_t)n, sizeof *c_rows);
    const int with_peepholes = number_of_variant % 2;

    for (fl_index row = 1; row < n; row++) /* row 0 stays ordinary */
        for (fl_index v = 0; v < V; v++) {
            const fl_index gate = (row + v) % 5, at = gate == 4 ? row * c_pitch + v : (row * FL_VECTORS + gate) * V + v;
            if (row % 3 != 2)
                put(gate == 4 ? c : row % 2 ? xW : hR, item, at, special[(row * 7 + v * 3) % SPECIAL]);
        }
    for (fl_index at = 0; at < n * panel; at++)
        put(sums, item, at, add(add(get(xW, item, at), get(hR, item, at), item), get(bias, item, at % panel), item));
    void *c_before = aligned(n * c_pitch * item), *dc_before = aligned(n * c_pitch * item);
    memcpy(c_before, c, (size_t)(n * c_pitch * item));
    memcpy(dc_before, dc, (size_t)(n * c_pitch * item));
    for (fl_index row = 0; row < n; row++)
        c_rows[row] = (char *)c_before + row * c_pitch * item;

    k->variant_cell(&variant, with_peepholes ? peepholes : NULL, n, xW, hR, bias, c, c_pitch, h, h_pitch, z, UNITS);
    const fl_cell_gradient cell = {dh, h_pitch, dy, h_pitch, z, UNITS, c_rows, 0, c, c_pitch, dc, c_pitch, m};
    void *recorded = aligned(n * UNITS * item);
    memcpy(recorded, z, (size_t)(n * UNITS * item));
    k->variant_backward(&variant, with_peepholes ? peepholes : NULL, n, &cell);

    for (fl_index row = 0; row < n; row++)
        for (fl_index v = 0; v < V; v++) {
            double peephole[3], pre[FL_VECTORS];
            for (int g = 0; g < 3; g++)
                peephole[g] = get(peepholes, item, g * V + v);
            for (int g = 0; g < FL_VECTORS; g++)
                pre[g] = get(sums, item, (row * FL_VECTORS + g) * V + v);
            const double c_is = get(c, item, row * c_pitch + v), h_is = get(h, item, row * h_pitch + v);
            const double dc_is = get(dc, item, row * c_pitch + v), m_is = get(m, item, row * c_pitch + v);
            const lane it = cell_by_hand(&variant, with_peepholes ? peephole : NULL, pre, get(c_before, item, row * c_pitch + v),
                                         c_is, add(get(dh, item, row * h_pitch + v), get(dy, item, row * h_pitch + v), item),
                                         get(dc_before, item, row * c_pitch + v), item, fused);
            EXPECT(near(c_is, it.c.value, it.c.size, item), "variant %d: c is %.9g, not %.9g", number_of_variant, c_is,
                   it.c.value);
            EXPECT(near(h_is, it.h.value, it.h.size, item), "variant %d: h is %.9g, not %.9g", number_of_variant, h_is,
                   it.h.value);
            EXPECT(near(m_is, it.h.value, it.h.size, item), "variant %d: m is %.9g, not %.9g", number_of_variant, m_is,
                   it.h.value);
            EXPECT(near(dc_is, it.dc.value, it.dc.size, item), "variant %d: dc is %.9g, not %.9g", number_of_variant, dc_is,
                   it.dc.value);
            for (int g = 0; g < FL_VECTORS; g++) {
                const double z_is = get(recorded, item, row * UNITS + g * FL_UNITS + v);
                const double dz_is = get(z, item, row * UNITS + g * FL_UNITS + v);
                EXPECT(isnan(it.z[g]) ? isnan(z_is) : z_is == it.z[g], "variant %d: z %d is %.9g, not %.9g", number_of_variant, g,
                       z_is, it.z[g]);
                EXPECT(near(dz_is, it.dz[g].value, it.dz[g].size, item), "variant %d: dz %d is %.9g, not %.9g at z %g",
                       number_of_variant, g, dz_is, it.dz[g].value, it.z[g]);
            }
        }
    free(xW), free(hR), free(bias), free(c), free(h), free(peepholes), free(dh), free(dy), free(dc), free(z), free(sums), free(m);
    free(c_before), free(dc_before), free(recorded), free(c_rows);
}

/* ---- Whole calls ----------------------------------------------------------------------------------------------------------------- */

typedef struct {
    fl_index T, B, I, H, L, D, P;
    int lengths, resets, threads;
    int kind; /* 0: PyTorch's cell; else variant_of(kind - 1), most with peepholes, some with only their own initial state */
    int reverse;
    fl_index steps; /* of truncated gradients; 0: whole */
    int left_out;   /* bits 1, 2, 4: no d_output, d_h_n, d_c_n is given; 8: d_x is not wanted */
    int rnn;        /* a plain RNN of 1: tanh, 2: relu */
} shape;

typedef struct {
    fl_job *job;
    int thread;
} member;

static void *join(void *argument)
{
    const member *m = argument;
    m->job->type->work(m->job, m->thread);
    return NULL;
}

static void run_team(fl_job *job)
{
    pthread_t workers[64];
    member members[64];

    EXPECT(job->type->prepare(job) == FL_OK, "prepare");
    for (int thread = 0; thread < 64; thread++)
        members[thread] = (member){job, thread};
    for (int thread = 1; thread < job->plan.threads; thread++)
        pthread_create(&workers[thread], NULL, join, &members[thread]);
    join(&members[0]);
    for (int thread = 1; thread < job->plan.threads; thread++)
        pthread_join(workers[thread], NULL);
    fl_end_job(job);
}

/* As many zeros and not one more, so that a sanitizer sees what is read or written behind them. */
static void *zeros(fl_index item, fl_index count) { return calloc((size_t)fl_max(count, 1), (size_t)item); }

/* Gradients of a recorded call, for gradients of its results that are drawn here. Uses the tape up. */
static uint64_t backward(uint64_t h, const fl_call *call, fl_tape *tape, const fl_layer_weights *weights, const shape *s,
                         fl_plan plan)
{
    const fl_network *net = call->net;
    const fl_index T = call->T, B = call->B, P = net->P, item = net->item, states = net->L * net->D;
    fl_layer_gradients *d_weights = calloc((size_t)states, sizeof *d_weights);
    void *d_output = numbers(item, T * B * net->D * P, 1), *d_h_n = numbers(item, states * B * P, 1);
    void *d_c_n = numbers(item, states * B * net->C, 1), *d_x = zeros(item, T * B * net->I);
    void *d_h_0 = zeros(item, states * B * P), *d_c_0 = zeros(item, states * B * net->C);
    fl_transposed transposed = {0};
    const int adds = T % 2; /* to zeros */

    EXPECT(fl_transpose(net, weights, &transposed) == FL_OK, "fl_transpose");
    for (fl_index i = 0; i < states; i++) {
        const fl_index rows = net->gates * net->H;
        const fl_index sizes[] = {rows * net->layers[i].I, rows * P, rows, P * net->H, 3 * net->H, P, net->H};
        char **parts[] = {&d_weights[i].weight_ih,       &d_weights[i].weight_hh, &d_weights[i].bias, &d_weights[i].weight_hr,
                          &d_weights[i].weight_peephole, &d_weights[i].h_0,       &d_weights[i].c_0};
        for (int part = 0; part < 7; part++) {
            const int unused = (part == 3 && !net->has_projection) || (part == 6 && !net->C);
            *parts[part] = zeros(item, sizes[part]);
            if (!adds && !unused) /* NaN: what stood there must not matter */
                memset(*parts[part], 0xff, (size_t)(sizes[part] * item));
        }
    }
    fl_backward_call back = {
        .job = {.type = &fl_backward_job, .plan = plan},
        .net = net,
        .transposed = &transposed,
        .tape = tape,
        .d_output = {s->left_out & 1 ? NULL : d_output, {call->output.strides[0], call->output.strides[1]}},
        .d_h_n = s->left_out & 2 ? NULL : d_h_n,
        .d_c_n = s->left_out & 4 ? NULL : d_c_n,
        .resets = call->resets,
        .steps = s->steps,
        .d_x = {s->left_out & 8 ? NULL : d_x, {call->x.strides[0], call->x.strides[1]}},
        .d_h_0 = d_h_0,
        .d_c_0 = d_c_0,
        .d_weights = d_weights,
        .adds = adds,
    };
    run_team(&back.job);
    h = hash(hash(hash(h, d_x, T * B * net->I * item), d_h_0, states * B * P * item), d_c_0, states * B * net->C * item);
    for (fl_index i = 0; i < states; i++) {
        const fl_index rows = net->gates * net->H;
        const fl_index sizes[] = {rows * net->layers[i].I, rows * P, rows, P * net->H, 3 * net->H, P, net->H};
        for (fl_index j = 0; j < rows * P; j++)
            EXPECT(isfinite(get(d_weights[i].weight_hh, item, j)), "a gradient is not finite");
        char *parts[] = {d_weights[i].weight_ih,       d_weights[i].weight_hh, d_weights[i].bias, d_weights[i].weight_hr,
                         d_weights[i].weight_peephole, d_weights[i].h_0,       d_weights[i].c_0};
        for (int part = 0; part < 7; part++) {
            h = hash(h, parts[part], sizes[part] * item);
            free(parts[part]);
        }
    }
    fl_free_transposed(&transposed);
    free(d_weights), free(d_output), free(d_h_n), free(d_c_n), free(d_x), free(d_h_0), free(d_c_0);
    return h;
}

/* A recorded call and its gradients: a hash of all they give. */
static uint64_t forward_and_backward(const fl_kernels *k, const shape *s, fl_plan plan)
{
    const fl_index item = k->item, P = s->P ? s->P : s->H, states = s->L * s->D;
    fl_network net = {.kernels = k,
                      .I = s->I,
                      .H = s->H,
                      .P = P,
                      .L = s->L,
                      .D = s->D,
                      .gates = s->rnn ? 1 : FL_VECTORS,
                      .relu = s->rnn == 2,
                      .has_projection = s->P > 0,
                      .reverse = s->reverse};
    fl_complete(&net);
    const fl_index C = net.C, rows = net.gates * s->H;
    const fl_variant variant = variant_of(s->kind ? s->kind - 1 : 0);
    fl_layer_weights *weights = calloc((size_t)states, sizeof *weights);
    void *h_n = numbers(item, states * s->B * P, 1), *c_n = numbers(item, states * s->B * C, 1);
    void *output = numbers(item, s->T * s->B * s->D * P, 1);
    int64_t *lengths = calloc((size_t)s->B + 1, sizeof *lengths);
    char *resets = calloc((size_t)(s->T * s->B) + 1, 1);
    uint64_t h = UINT64_C(14695981039346656037);

    seed = 1;
    const double scale = 1 / sqrt((double)s->H);
    for (fl_index i = 0; i < states; i++)
        weights[i] = (fl_layer_weights){
            .weight_ih = numbers(item, rows * (i < s->D ? s->I : s->D * P), scale),
            .weight_hh = numbers(item, rows * P, scale),
            .bias_ih = numbers(item, rows, scale),
            .bias_hh = numbers(item, rows, scale),
            .weight_hr = s->P ? numbers(item, s->P * s->H, scale) : NULL,
            .variant = s->kind ? &variant : NULL,
            .weight_peephole = s->kind % 5 ? numbers(item, 3 * s->H, 1) : NULL,
            .h_0 = s->kind ? numbers(item, P, 1) : NULL,
            .c_0 = s->kind ? numbers(item, s->H, 1) : NULL,
        };
    void *x = numbers(item, s->T * s->B * s->I, 1), *h_0 = numbers(item, states * s->B * P, 1);
    void *c_0 = numbers(item, states * s->B * C, 1);
    for (fl_index b = 0; b < s->B; b++)
        lengths[b] = (int64_t)((uniform() + 1) / 2 * (double)(s->T + 1));
    for (fl_index i = 0; i < s->T * s->B; i++)
        resets[i] = uniform() > 0.7;

    EXPECT(fl_pack(&net, weights) == FL_OK, "fl_pack");
    fl_call call = {
        .job = {.type = &fl_forward_job},
        .net = &net,
        .T = s->T,
        .B = s->B,
        .x = {x, {s->B * s->I * item, s->I * item}},
        .output = {output, {s->B * s->D * P * item, s->D * P * item}},
        .h_0 = s->kind == 0 || s->kind % 3 ? h_0 : NULL,
        .c_0 = s->kind == 0 || s->kind % 3 ? c_0 : NULL,
        .h_n = h_n,
        .c_n = c_n,
        .lengths = s->lengths ? lengths : NULL,
        .resets = {s->resets ? resets : NULL, {s->B, 1}},
    };
    call.job.plan = plan.threads ? plan : fl_make_plan(&net, s->T, s->B, s->threads, 1, FL_EVEN);
    fl_tape tape;
    const fl_dropout dropout = {s->L > 2 ? 0.25 : 0, 5};
    EXPECT(fl_make_tape(&tape, &net, s->T, s->B, call.lengths, call.h_0, call.c_0, dropout) == FL_OK, "fl_make_tape");
    run_team(&call.job);
    const uint64_t silent = hash(h, output, s->T * s->B * s->D * P * item);
    call.tape = &tape;
    memset(tape.x, 0xff,
           (size_t)((tape.h_0 ? tape.h_0 : (char *)tape.memory + tape.bytes) - tape.x)); /* NaN: room must not leak */
    run_team(&call.job);
    EXPECT(dropout.p > 0 || hash(h, output, s->T * s->B * s->D * P * item) == silent, "recording changes the output");

    h = hash(h, output, s->T * s->B * s->D * P * item);
    h = hash(h, h_n, states * s->B * P * item);
    h = hash(h, c_n, states * s->B * C * item);
    fl_plan back = plan.threads ? plan : fl_make_backward_plan(&net, s->T, s->B, s->threads, 1, FL_EVEN);
    back.threads /= back.layer_groups; /* gradients go through the layers one by one */
    back.layer_groups = 1;
    h = backward(h, &call, &tape, weights, s, back);
    fl_free_tape(&tape);
    for (fl_index i = 0; i < states; i++) {
        const void *tensors[] = {weights[i].weight_ih, weights[i].weight_hh,       weights[i].bias_ih, weights[i].bias_hh,
                                 weights[i].weight_hr, weights[i].weight_peephole, weights[i].h_0,     weights[i].c_0};
        for (int k = 0; k < 8; k++)
            free((void *)tensors[k]);
    }
    fl_unpack(&net);
    free(weights), free(x), free(h_0), free(c_0), free(h_n), free(c_n), free(output), free(lengths), free(resets);
    return h;
}

/* Every division into up to so many groups of rows and of units, chunked or not: all must give the bits of one thread. */
static int most_groups = 3;
static uint64_t all_divisions(const fl_kernels *k, const shape *s)
{
    const fl_plan one = {.threads = 1,
                         .layer_groups = 1,
                         .directions = 1,
                         .row_groups = 1,
                         .unit_groups = 1,
                         .stride = s->T,
                         .blocks_at_once = 1,
                         .share = FL_EVEN};
    const fl_plan planned = {0};
    const uint64_t expected = forward_and_backward(k, s, one);

    EXPECT(forward_and_backward(k, s, planned) == expected, "the planned division differs");
    for (int sides = 1; sides <= (s->D == 2 ? 2 : s->L); sides++) /* two directions, or groups of layers */
        for (int row_groups = 1; row_groups <= most_groups; row_groups++)
            for (int unit_groups = 1; unit_groups <= most_groups; unit_groups++)
                for (fl_index chunk = 0; chunk <= 4; chunk += 2) {
                    const fl_index stride = s->D == 1 && s->L > 1 ? 3 : s->T;
                    const fl_plan plan = {.threads = sides * row_groups * unit_groups,
                                          .layer_groups = s->D == 2 ? 1 : sides,
                                          .directions = s->D == 2 ? sides : 1,
                                          .row_groups = row_groups,
                                          .unit_groups = unit_groups,
                                          .chunk = chunk,
                                          .stride = fl_max(stride, 1),
                                          .blocks_at_once = 1 + (int)(chunk / 2) % 2,
                                          .patience_ns = chunk == 2 ? -1 : 1000000000, /* -1: teams of two part */
                                          .share = 150 + 350 * (int)(chunk / 2)};      /* a slow first thread, or second */
                    const uint64_t found = forward_and_backward(k, s, plan);
                    EXPECT(found == expected, "%d sides, row groups %d, unit groups %d, chunk %td differ", sides, row_groups,
                           unit_groups, chunk);
                }
    return expected;
}

/* ---- What meetings cost ---------------------------------------------------------------------------------------------------------- */

static int one_processor; /* whether the team of check_meetings shares one */
static fl_barrier meeting_point;

static void *measure(void *argument)
{
#if defined(__linux__)
    cpu_set_t processors, first;
    CPU_ZERO(&first);
    sched_getaffinity(0, sizeof processors, &processors);
    for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&first); i++)
        if (CPU_ISSET(i, &processors))
            CPU_SET(i, &first);
    sched_setaffinity(0, sizeof first, one_processor ? &first : &processors);
    fl_measure_meeting(&meeting_point, 2, argument != NULL);
    sched_setaffinity(0, sizeof processors, &processors);
#else
    fl_measure_meeting(&meeting_point, 2, argument != NULL);
#endif
    return NULL;
}

/* A team is divided by what its meetings cost: two that share a processor meet slowly, which is noticed and, later, forgotten. */
static void check_meetings(const fl_kernels *k)
{
    fl_network net = {.kernels = k, .I = 64, .H = 64, .P = 64, .L = 1, .D = 1, .gates = 4};
    const struct timespec long_enough = {.tv_nsec = 400000000};
    pthread_t other;

    fl_complete(&net);
    EXPECT(fl_make_plan(&net, 200, 1, 2, 1, FL_EVEN).unit_groups == 2, "one row: two threads divide units");
    EXPECT(fl_make_plan(&net, 200, 1, 2, 50, FL_EVEN).threads == 1, "one row: one thread where meetings are dear");
    EXPECT(fl_make_plan(&net, 200, 64, 2, 50, FL_EVEN).row_groups == 2, "many rows: threads that never meet");
    EXPECT(fl_make_backward_plan(&net, 200, 1, 2, 500, FL_EVEN).unit_groups == 1, "gradients of one row where meetings are dear");

    fl_network deep = {.kernels = k, .I = 640, .H = 640, .P = 640, .L = 2, .D = 1, .gates = 4};
    fl_complete(&deep);
    deep.bytes = (size_t)(deep.L * deep.blocks * fl_panel_bytes(&deep, deep.I + deep.P));
    EXPECT(fl_make_plan(&deep, 1, 16, 2, 5, FL_EVEN).unit_groups == 2, "a step of 26 MB of weights: each is read by one thread");

    EXPECT(fl_meeting_price() == 1, "not measured yet");
    EXPECT(fl_meeting_is_due() && !fl_meeting_is_due(), "due once");
    one_processor = 1;
    fl_open_barriers(&meeting_point, 1);
    pthread_create(&other, NULL, measure, &meeting_point);
    measure(NULL);
    pthread_join(other, NULL);
#if defined(__linux__)
    EXPECT(fl_meeting_price() > 2, "two on one processor: price %g", fl_meeting_price());
#endif
    nanosleep(&long_enough, NULL);
    EXPECT(fl_meeting_price() == 1, "forgotten");
    EXPECT(fl_meeting_is_due(), "due again");
}

/* A pair is divided by how fast its threads are, which is soon forgotten. */
static void check_pace(const fl_kernels *k)
{
    fl_network net = {.kernels = k, .I = 32, .H = 96, .P = 96, .L = 1, .D = 1, .gates = 4};
    const struct timespec long_enough = {.tv_nsec = 400000000}, after_short_ones = {.tv_nsec = 5000000};

    fl_complete(&net);
    EXPECT(fl_pace() == FL_EVEN, "not measured yet");
    fl_note_pace(FL_EVEN, 40000, 4000000);
    fl_note_pace(FL_EVEN, 40000, 40000);
    fl_note_pace(FL_EVEN, 4000000, 4000000);
    EXPECT(fl_pace() == FL_EVEN, "an accident");
    fl_note_pace(FL_EVEN, 40000, 30000);
    fl_note_pace(FL_EVEN, 40000, 30000);
    EXPECT(fl_pace() == FL_EVEN, "two short calls are few");
    for (int i = 0; i < 10; i++)
        fl_note_pace(fl_pace(), 1000 * fl_pace(), 300 * (1000 - fl_pace())); /* the first takes a thousand each, the second 300 */
    EXPECT(fl_pace() > 220 && fl_pace() < 240, "3 of 13: pace %d", fl_pace());
    const fl_plan many = fl_make_plan(&net, 200, 64, 2, 1, 250), three = fl_make_plan(&net, 200, 64, 3, 1, 250);
    EXPECT(many.row_groups == 2 && many.share == 250, "many rows: by the pace");
    EXPECT(three.share == FL_EVEN, "more than a pair: evenly");
    EXPECT(fl_part(64, 2, 1, 250) == 16 && fl_part(64, 2, 2, 250) == 64 && fl_part(2, 2, 1, 150) == 1, "parts");
    EXPECT(fl_largest_part(64, 2, 250) == 48 && fl_largest_part(65, 2, FL_EVEN) == 33 && fl_largest_part(7, 3, 250) == 3,
           "largest");
    net.D = 2;
    EXPECT(fl_make_plan(&net, 200, 64, 2, 1, FL_EVEN).directions == 2, "directions side by side");
    EXPECT(fl_make_plan(&net, 200, 64, 2, 1, 250).directions == 1, "but not where one would end much later");
    EXPECT(fl_make_backward_plan(&net, 200, 64, 2, 1, 250).directions == 1, "gradients, too");
    fl_note_pace(FL_EVEN, 0, 1000000);
    nanosleep(&long_enough, NULL);
    EXPECT(fl_pace() == FL_EVEN, "forgotten");
    for (int i = 0; i < 10; i++)
        fl_note_pace(FL_EVEN, 900, 300);
    EXPECT(fl_pace() == FL_EVEN, "too short to tell");
    for (int i = 0; i < 10; i++)
        fl_note_pace(FL_EVEN, 1020000, 1000000);
    EXPECT(fl_pace() == FL_EVEN, "too small to count");
    for (int i = 0; i < 20; i++)
        fl_note_pace(FL_EVEN, 120000, 40000);
    EXPECT(fl_pace() < 300, "short ones, but many: pace %d", fl_pace());
    nanosleep(&after_short_ones, NULL);
    EXPECT(fl_pace() == FL_EVEN, "sooner forgotten");
}

static fl_barrier waking_point;

static void *wake_late(void *argument)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    fl_measure_waking(&waking_point, 2, 1);
    return argument;
}

/* Workers that sleep are woken up for calls that gain as much as that costs: one that is long, or several at once. */
static void check_waking(void)
{
    const struct timespec pause = {.tv_nsec = 6000000}, long_enough = {.tv_sec = 1, .tv_nsec = 100000000};
    pthread_t other;

    EXPECT(fl_workers_sleep(), "there are none yet");
    EXPECT(fl_is_worth_waking(60000), "a long call");
    EXPECT(!fl_is_worth_waking(20000) && !fl_is_worth_waking(20000) && fl_is_worth_waking(20000), "three at once");
    EXPECT(!fl_is_worth_waking(20000), "they have been woken up");
    for (int i = 0; i < 5; i++) {
        nanosleep(&pause, NULL);
        EXPECT(!fl_is_worth_waking(20000), "one now and then");
    }
    fl_note_awake();
    EXPECT(!fl_workers_sleep(), "just now they worked");
    nanosleep(&pause, NULL);
    EXPECT(fl_workers_sleep(), "after a pause");

    fl_open_barriers(&waking_point, 1);
    pthread_create(&other, NULL, wake_late, NULL);
    fl_measure_waking(&waking_point, 2, 0);
    pthread_join(other, NULL);
    EXPECT(!fl_is_worth_waking(300000) && fl_is_worth_waking(300000), "who wakes up late costs more");
    nanosleep(&long_enough, NULL);
    EXPECT(fl_is_worth_waking(60000), "forgotten");
}

static int claimed(void)
{
    const int threads = fl_claim_threads(2, 2);
    fl_return_threads(threads);
    return threads;
}

/* A call of 6 ms in which a pair lost 5. */
static void lose(void) { fl_note_crowd(fl_now_ns() - 6000000, 5000000); }

/* Calls leave a processor to a process that is always there, but not to one that comes now and then. */
static void check_crowd(void)
{
    const struct timespec first = {.tv_nsec = 13000000}, second = {.tv_nsec = 25000000};

    EXPECT(claimed() == 2, "nobody has noted anything");
    lose();
    EXPECT(claimed() == 2, "once is an accident");
    lose();
    EXPECT(claimed() == 1, "twice is a crowd");
    nanosleep(&first, NULL);
    EXPECT(claimed() == 2, "left alone for 12 ms");
    lose();
    EXPECT(claimed() == 1, "it is still there");
    nanosleep(&second, NULL);
    EXPECT(claimed() == 2, "left alone for 24 ms");
    fl_note_team(fl_now_ns(), 30000000);
    lose();
    EXPECT(claimed() == 2, "5 of 36 ms are less than a quarter");
    lose();
    EXPECT(claimed() == 1, "10 of 36 are more");
}

int main(int argc, char **argv)
{
    static const shape shapes[] = {
        {1, 1, 1, 1, 1, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0},   /* the smallest */
        {3, 5, 7, 11, 2, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0},  /* no multiple of any vector */
        {5, 7, 16, 32, 1, 1, 0, 1, 0, 2, 0, 0, 0, 0, 0}, /* full vectors, ragged */
        {9, 13, 5, 33, 3, 1, 0, 1, 1, 4, 0, 0, 0, 0,
         0},                                            /* one unit past two AVX-512 vectors; three layers handed on in strides */
        {6, 6, 9, 20, 2, 2, 7, 1, 1, 4, 0, 0, 0, 0, 0}, /* projection */
        {4, 2, 300, 70, 1, 1, 65, 0, 1, 2, 0, 0, 0, 0, 0}, /* K beyond one panel; projection of more than one AVX-512 block */
        {2, 30, 300, 17, 1, 2, 0, 1, 0, 2, 0, 0, 0, 0, 0}, /* several tiles of rows in one panel */
        {61, 13, 3, 19, 2, 1, 0, 1, 1, 3, 0, 0, 7, 0, 0},  /* several blocks of tokens; truncated gradients */
        {2, 400, 3, 5, 1, 2, 4, 0, 1, 2, 0, 0, 1, 4, 0},   /* a step of more tokens than a block; no d_c_n */
        {8, 5, 70, 40, 1, 2, 0, 1, 0, 3, 0, 0, 0, 9, 0},   /* no d_output, and no d_x wanted */
        {7, 4, 20, 66, 1, 1, 0, 0, 0, 2, 0, 0, 3, 6, 0},   /* no gradients of the state */
        {5, 7, 6, 33, 2, 2, 9, 1, 1, 4, 22, 0, 0, 0, 0},   /* a variant: every clip, peepholes, a projection */
        {7, 3, 6, 18, 3, 1, 0, 1, 1, 3, 12, 1, 0, 0, 0},   /* i = 1 - f, peepholes, its own initial state, reverse */
        {5, 9, 6, 20, 1, 2, 0, 0, 1, 2, 2, 0, 0, 0, 0},    /* f = 1 - i, peepholes, clips */
        {6, 5, 6, 35, 1, 1, 11, 1, 0, 2, 30, 1, 0, 0, 0},  /* coupled, clipped, projected, without peepholes, reverse */
        {6, 7, 5, 70, 2, 2, 0, 1, 1, 4, 0, 0, 0, 0, 1},    /* a plain RNN, tanh; one block of AVX-512 and a part */
        {9, 3, 9, 33, 3, 1, 0, 0, 1, 3, 0, 0, 4, 0, 2},    /* relu; three layers handed on in strides; truncated */
        {7, 3, 6, 17, 1, 2, 0, 0, 0, 2, 0, 0, 0, 0, 1},  /* h of the second direction ends inside a vector, at the end of a row */
        {4, 1, 7, 300, 1, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1}, /* one row takes blocks in pairs */
        {3, 9, 5, 390, 1, 1, 0, 1, 0, 2, 0, 0, 0, 0, 0}, /* long slabs, the last one in part */
    };
    const fl_isa *isa = fl_isas();

    if (argc > 2)
        most_groups = atoi(argv[2]); /* where each takes long: under a sanitizer, or emulated */
    while (isa->name && (argc < 2 || strcmp(isa->name, argv[1]) != 0))
        isa++;
    if (!isa->name || !isa->available) {
        fprintf(stderr, "instruction set not available\n");
        return 2;
    }
    const fl_kernels *tables[] = {isa->f32, isa->f64};
    const int fused = strcmp(isa->name, "baseline") != 0;
    check_meetings(isa->f32);
    check_pace(isa->f32);
    check_waking();
    check_crowd();
    for (int type = 0; type < 2; type++) {
        const fl_kernels *k = tables[type];
        EXPECT(k->item == (type ? 8 : 4), "item is %td", k->item);
        seed = 1;
        for (fl_index K = 0; K < 3 * FL_SLAB; K++)
            check_tiles(k, type ? FL_FLOAT16 : FL_WEIGHTS, fused, FL_SLAB, K);
        for (fl_index K = 1; K < 3 * FL_LONG_SLAB; K += 3 * FL_SLAB - 3)
            check_tiles(k, type ? FL_FLOAT16 : FL_WEIGHTS, fused, FL_LONG_SLAB, K);
        check_tiles(k, type ? FL_FLOAT16 : FL_WEIGHTS, fused, FL_LONG_SLAB, 2 * FL_LONG_SLAB);
        for (fl_index n = 1; n < 60; n += 7)
            check_cell(k, n), check_rnn(k, 0, n), check_rnn(k, 1, n);
        for (fl_index n = 1; n < 60; n += 7) {
            check_kept_gates(k, n);
            for (int with = 0; with < 4; with++)
                check_cell_backward(k, n, with % 2, with / 2);
        }
        for (fl_index K = 0; K < 3 * FL_LONG_SLAB; K += K < FL_SLAB + 2 ? 1 : 23) {
            for (fl_index M = 1; M <= FL_MAX_TILE; M++)
                for (fl_index vectors = 1; vectors <= FL_VECTORS; vectors++)
                    check_outer(k, fused, vectors, M, K, (int)(K + M + vectors) % 3 == 0);
            for (fl_index columns = 1; columns <= FL_UNITS; columns++)
                check_sum_rows(k, K, columns, (int)(K + columns) % 3 == 0);
        }
        for (fl_index n = 0; n < 70; n++)
            check_add(k, n, n % 3 == 0);
        for (int i = 0; i < VARIANTS; i++)
            check_variant(k, i, 1 + i % 20, fused);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const shape *s = &shapes[i];
            printf("%s t%tdb%tdi%tdh%tdl%tdd%tdp%td: %016llx\n", type ? "f64" : "f32", s->T, s->B, s->I, s->H, s->L, s->D, s->P,
                   (unsigned long long)all_divisions(k, s));
        }
    }
    return failures != 0;
}
