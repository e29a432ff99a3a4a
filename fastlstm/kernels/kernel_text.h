/* The one kernel text. isa.h includes it for float and for double with FL_WIDTH and FL_BITS set, inside a target region.
 *
 * Only leaves stand here: no decisions, no calls out, nothing exported but the table at the end. Vectors never cross a call
 * that is not inlined. Each output element is summed in one fixed order, so the shape of a tile never shows in the bits.
 * The name of a function in the table begins with that of its field: add_kernel, cell_kernel, narrow_single_1.
 */
#include "vec.h"

#define AHEAD FL_JOIN(AHEAD, FL_TYPE)
#define tile FL_JOIN(tile, FL_TYPE)
#define add_sum FL_JOIN(add_sum, FL_TYPE)
#define add_slab FL_JOIN(add_slab, FL_TYPE)
#define element FL_JOIN(element, FL_TYPE)
#define weight_at FL_JOIN(weight_at, FL_TYPE)
#define exp_parts FL_JOIN(exp_parts, FL_TYPE)
#define sigmoid_inverse FL_JOIN(sigmoid_inverse, FL_TYPE)
#define sigmoid_exponent FL_JOIN(sigmoid_exponent, FL_TYPE)
#define magnitude FL_JOIN(magnitude, FL_TYPE)
#define tanh_exponent FL_JOIN(tanh_exponent, FL_TYPE)
#define tanh_quotient FL_JOIN(tanh_quotient, FL_TYPE)
#define sigmoid FL_JOIN(sigmoid, FL_TYPE)
#define tanh_parts FL_JOIN(tanh_parts, FL_TYPE)
#define canonical FL_JOIN(canonical, FL_TYPE)
#define new_c FL_JOIN(new_c, FL_TYPE)
#define new_h FL_JOIN(new_h, FL_TYPE)
#define lstm_equations FL_JOIN(lstm_equations, FL_TYPE)
#define cell_kernel FL_JOIN(cell_kernel, FL_TYPE)
#define cell_backward_kernel FL_JOIN(cell_backward_kernel, FL_TYPE)
#define rnn_cell_kernel FL_JOIN(rnn_cell_kernel, FL_TYPE)
#define rnn_backward_kernel FL_JOIN(rnn_backward_kernel, FL_TYPE)
#define add_row FL_JOIN(add_row, FL_TYPE)
#define add_kernel FL_JOIN(add_kernel, FL_TYPE)
#define outer FL_JOIN(outer, FL_TYPE)
#define add_columns FL_JOIN(add_columns, FL_TYPE)
#define sum_rows_kernel FL_JOIN(sum_rows_kernel, FL_TYPE)
#define sum_products_kernel FL_JOIN(sum_products_kernel, FL_TYPE)
#define store_kernel FL_JOIN(store_kernel, FL_TYPE)

/* ---- Multiply-accumulate tile ------------------------------------------------------------------------------------------------ */

enum { AHEAD = 32 }; /* elements whose weights are fetched before they are needed */

/* Elements in one turn of a loop: of a short slab's 15 after the first, five. Or GCC would unroll all of them. */
#ifdef FL_PLAIN_LOOPS
#define UNROLL(n)
#elif defined(__clang__)
#define UNROLL(n) FL_PRAGMA(clang loop unroll_count(n))
#else
#define UNROLL(n) FL_PRAGMA(GCC unroll n)
#endif
#ifdef FL_COMPACT
#define SEVERAL 1
#define FETCHES 0 /* for whoever comes next */
#else
#define SEVERAL 5
#define FETCHES 1
#endif

/* Whether a load is a whole cache line. Then what a processor sees coming is worth more than the instructions that unrolling saves: it
 * fetches ahead by the distance between two loads of one instruction (Zen 5, one row from L2: 30 % of the time). */
#define LOADS_ARE_LINES (FL_WIDTH == FL_ALIGNMENT)
#define UNROLLED (SEVERAL > 1 && !LOADS_ARE_LINES)

/* How many vectors a tile of M rows takes at a time: N sums of each row stay in three quarters of the registers, beside one element's
 * weights and a broadcast input. 6 x 4 of AVX-512's and NEON's 32; AVX2 and SSE have 16: 3 x 4, or 6 x 2 in two passes. */
#define VECTORS(M, all) ((M) * (all) <= FL_REGISTERS * 3 / 4 ? (all) : FL_VECTORS / 2)
/* Whether all of that fits. 3 x 4 of 16 do not: compilers read one weight again for each row, or spill where they see several elements. */
#define FITS(M, N) (((M) + 1) * (N) < FL_REGISTERS)

/* Bytes of one weight. */
#define WEIGHT(kind) ((kind) == FL_FULL ? (fl_index)sizeof(real) : (kind) == FL_INT8 ? 1 : 2)

/* Vector v of the FL_VECTORS of one element; `kind` is constant after inlining. */
INLINE vec weight_at(const int kind, const char *at, const int v)
{
#if FL_BITS == 32
    if (kind == FL_FLOAT16)
        return v_load_half((const uint16_t *)at + v * LANES);
    if (kind == FL_BFLOAT16) {
        const ivec both = *(const ivec *)(at + v / 2 * FL_WIDTH);
        return v % 2 ? (vec)(both & 0xffff0000u) : (vec)(both << 16);
    }
    if (kind == FL_INT8)
        return v_byte(*(const ivec *)at, v);
#else
    (void)kind;
#endif
    return v_load((const real *)at + v * LANES);
}

/* A slab's sum joins the others. One after the other: GCC would keep them in registers too, and spill both, and a burst of stores holds
 * up the multiply-adds behind it (Zen 3: 12 stores in a row cost 20 cycles, between additions 4). */
INLINE void add_sum(real *acc, vec sum)
{
    v_store(acc, v_load(acc) + sum);
    __asm__ volatile("" : : : "memory");
}

/* sum += x[m][k] * W[k] for one element; `first` ones begin the sum, which zero would only lengthen. From L2 weights come by themselves:
 * asking for them early would cost 2 to 5 % (where vectors are shorter, nothing). What is asked for leaves no gaps: a processor that
 * fetches ahead by itself loses its way in them (Zen 4: 30 % of a call). It does so for one and two rows, faster than if asked. */
INLINE void element(const int first, const int early, const int kind, const int M, const int N, const int from,
                    vec sum[FL_MAX_TILE][2 * FL_VECTORS], const real *const *row, fl_index k, const char *panel,
                    fl_index panel_next, const char *next, fl_index beside)
{
    vec weight[2 * FL_VECTORS];

    EACH (v, N)
        weight[v] = weight_at(kind, panel + v / FL_VECTORS * panel_next, from + v % FL_VECTORS);
    if (M > 1 && FITS(M, N))
        EACH (v, N)
            v_keep(weight[v]);
    if (M > 2 && early == FL_OWN)
        for (fl_index line = 0; line < N * LANES * WEIGHT(kind); line += FL_ALIGNMENT)
            __builtin_prefetch(panel + (AHEAD * FL_VECTORS + from) * LANES * WEIGHT(kind) + line);
    if (early == FL_NEXT && from == 0) {                          /* the first pass asks for all */
        __builtin_prefetch(next, 0, 2);                           /* into L2: what is in L1 is still needed */
        if (FL_VECTORS * LANES * WEIGHT(kind) > 2 * FL_ALIGNMENT) /* two tiles may have more than a line each */
            __builtin_prefetch(next + beside, 0, 2);
    }
    EACH (m, M) {
        const vec input = v_set(row[m][k]);
        EACH (v, N)
            sum[m][v] = first ? (vec)(input * weight[v]) : v_fma(input, weight[v], sum[m][v]);
    }
}

/* Adds one slab of `count` elements to acc, N of all `vectors` at a time, or begins acc with it. */
INLINE void add_slab(const int early, const int kind, const int M, const int vectors, int begins, real *acc, fl_index acc_next,
                     const char *panel, fl_index panel_next, const char *scales, const real *const *row, fl_index k,
                     fl_index count, const char *next, fl_index next_step)
{
    const int N = VECTORS(M, vectors);
    const fl_index step = FL_VECTORS * LANES * WEIGHT(kind), beside = next_step > FL_ALIGNMENT ? FL_ALIGNMENT : 0;

    EACH (pass, vectors / N) {
        const int from = pass * N;
        const char *weights = panel;
        vec sum[FL_MAX_TILE][2 * FL_VECTORS];
        fl_index i = 0;

        /* A first element on its own has loads of its own: not where a processor is to see all of them coming. */
        if (LOADS_ARE_LINES && (M < 3 || early == FL_OWN)) {
            EACH (m, M)
                EACH (v, N)
                    sum[m][v] = (vec){0};
        } else {
            element(1, early, kind, M, N, from, sum, row, k, weights, panel_next, next, beside);
            i = 1, weights += step, next += next_step;
        }
        if (FITS(M, N) && !LOADS_ARE_LINES) {
            UNROLL(SEVERAL)
            for (; i < count; i++, weights += step, next += next_step)
                element(0, early, kind, M, N, from, sum, row, k + i, weights, panel_next, next, beside);
        } else {
            UNROLL(1)
            for (; i < count; i++, weights += step, next += next_step)
                element(0, early, kind, M, N, from, sum, row, k + i, weights, panel_next, next, beside);
        }
        if (kind == FL_INT8)
            EACH (m, M)
                EACH (v, N)
                    sum[m][v] *= v_load((const real *)(scales + v / FL_VECTORS * panel_next) + (from + v % FL_VECTORS) * LANES);
        if (begins)
            EACH (m, M)
                EACH (v, N)
                    v_store(acc + v / FL_VECTORS * acc_next + (m * FL_VECTORS + from + v % FL_VECTORS) * LANES,
                            sum[m][v] + v_set(0)); /* never -0, as a sum that zero begins */
        else
            EACH (m, M)
                EACH (v, N)
                    add_sum(acc + v / FL_VECTORS * acc_next + (m * FL_VECTORS + from + v % FL_VECTORS) * LANES, sum[m][v]);
    }
}

/* early, kind, M and vectors are constants after inlining. So is the length of whole slabs where loops are unrolled; but narrow tiles are
 * many, and share one loop to save code. */
INLINE void tile(const int early, const int kind, const int M, const int vectors, int begins, fl_index slab, real *acc,
                 fl_index acc_next, const char *panel, fl_index panel_next, const char *scales, const void *const *rows,
                 fl_index K, const fl_fetch *fetch)
{
    const fl_index step = FL_VECTORS * LANES * WEIGHT(kind), next_step = early == FL_NEXT ? fetch->step : 0;
    const char *next = early == FL_NEXT ? fetch->next : panel;
    const real *row[FL_MAX_TILE];
    fl_index k = 0;

    EACH (m, M)
        row[m] = rows[m];
    if (UNROLLED && vectors >= FL_VECTORS && slab == FL_SLAB)
        for (; k + FL_SLAB <= K; k += FL_SLAB, panel += FL_SLAB * step, next += FL_SLAB * next_step)
            add_slab(early, kind, M, vectors, begins && !k, acc, acc_next, panel, panel_next, scales, row, k, FL_SLAB, next,
                     next_step);
    else if (UNROLLED && vectors >= FL_VECTORS)
        for (; k + FL_LONG_SLAB <= K; k += FL_LONG_SLAB, panel += FL_LONG_SLAB * step, next += FL_LONG_SLAB * next_step)
            add_slab(early, kind, M, vectors, begins && !k, acc, acc_next, panel, panel_next, scales, row, k, FL_LONG_SLAB, next,
                     next_step);
    for (; k < K; k += slab, panel += slab * step, next += slab * next_step)
        add_slab(early, kind, M, vectors, begins && !k, acc, acc_next, panel, panel_next, scales, row, k, fl_min(slab, K - k),
                 next, next_step);
}

#define TILE(name, kind, M, vectors)                                                                                        \
    static void FL_JOIN(name, FL_TYPE)(int begins, const fl_fetch *fetch, fl_index slab, void *acc, fl_index acc_next,      \
                                       const void *panel, fl_index panel_next, const void *scales, const void *const *rows, \
                                       fl_index K)                                                                          \
    {                                                                                                                       \
        if (FETCHES && M > 2 && (vectors) >= FL_VECTORS && fetch && fetch->next)                                            \
            tile(FL_NEXT, kind, M, vectors, begins, slab, acc, acc_next, panel, panel_next, scales, rows, K, fetch);        \
        else if ((vectors) >= FL_VECTORS && (fetch || M == 1 || !LOADS_ARE_LINES))                                          \
            tile(FL_OWN, kind, M, vectors, begins, slab, acc, acc_next, panel, panel_next, scales, rows, K, NULL);          \
        else                                                                                                                \
            tile(FL_NOTHING, kind, M, vectors, begins, slab, acc, acc_next, panel, panel_next, scales, rows, K, NULL);      \
    }
#define TILES(name, kind, vectors)           \
    TILE(FL_JOIN(name, 1), kind, 1, vectors) \
    TILE(FL_JOIN(name, 2), kind, 2, vectors) \
    TILE(FL_JOIN(name, 3), kind, 3, vectors) \
    TILE(FL_JOIN(name, 4), kind, 4, vectors) \
    TILE(FL_JOIN(name, 5), kind, 5, vectors) \
    TILE(FL_JOIN(name, 6), kind, 6, vectors)
#define ALL_TILES(name, pair, kind) \
    TILES(name, kind, FL_VECTORS)   \
    TILE(pair, kind, 1, 2 * FL_VECTORS)

ALL_TILES(tile_full, tile_pair_full, FL_FULL)
TILES(narrow_single, FL_FULL, 1)
TILES(narrow_double, FL_FULL, 2)
#if FL_BITS == 32
ALL_TILES(tile_float16, tile_pair_float16, FL_FLOAT16)
ALL_TILES(tile_bfloat16, tile_pair_bfloat16, FL_BFLOAT16)
ALL_TILES(tile_int8, tile_pair_int8, FL_INT8)
#endif
#undef TILE
#undef TILES
#undef ALL_TILES

/* ---- Cell ---------------------------------------------------------------------------------------------------------------------- */

#if FL_BITS == 32
#define EXP_LOWEST -87.5f                 /* n = -126, the smallest normal power */
#define EXP_HIGHEST 89.0f                 /* n = 128: 2^n is infinite, as e^x is */
#define ROUND (0x1.8p23f + EXPONENT_BIAS) /* adding it leaves the nearest integer and the bias in the low bits */
#define FRACTION_BITS 23
#define EXPONENT_BIAS 127
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW -0x1.bd0106p-13f
#else
#define EXP_LOWEST -708.5
#define EXP_HIGHEST 710.0
#define ROUND (0x1.8p52 + EXPONENT_BIAS)
#define FRACTION_BITS 52
#define EXPONENT_BIAS 1023
#define LN2_HIGH 0x1.62e42fefa3p-1
#define LN2_LOW 0x1.3de6af278ece6p-42
#endif

/* e^x = s (1 + q): s = 2^n, q = e^r - 1, x = n ln 2 + r, |r| <= ln 2 / 2. The polynomial is the minimax one of
 * (e^r - 1 - r) / r^2; its error is 3e-9 in float32 and 3e-18 in float64. q keeps its relative accuracy at r = 0.
 * N vectors go side by side: each is a chain of 50 cycles, and processors do not look far enough ahead to begin the next one. */
INLINE void exp_parts(const int N, const vec *x, vec *s, vec *q)
{
    vec n[FL_VECTORS], r[FL_VECTORS], p[FL_VECTORS];

    EACH (i, N)
        s[i] = v_fma(x[i], v_set((real)0x1.71547652b82fep+0), v_set(ROUND));
    EACH (i, N)
        n[i] = s[i] - v_set(ROUND);
    EACH (i, N)
        r[i] = v_fma(n[i], v_set(-LN2_HIGH), x[i]);
    EACH (i, N)
        r[i] = v_fma(n[i], v_set(-LN2_LOW), r[i]);
    EACH (i, N)
        s[i] = (vec)((ivec)s[i] << FRACTION_BITS);
#define FIRST(coefficient) \
    EACH (i, N)            \
        p[i] = v_set(coefficient);
#define NEXT(coefficient) \
    EACH (i, N)           \
        p[i] = v_fma(p[i], r[i], v_set(coefficient));
#if FL_BITS == 32
    FIRST(0x1.6db42ap-10f)
    NEXT(0x1.123b56p-7f)
    NEXT(0x1.55545ep-5f)
    NEXT(0x1.55548ep-3f)
    NEXT(0x1.000000p-1f)
#else
    FIRST(0x1.af858702f7c89p-26)
    NEXT(0x1.28b04913a27cdp-22)
    NEXT(0x1.71dddfcc284cbp-19)
    NEXT(0x1.a0199693bc67ap-16)
    NEXT(0x1.a01a01bae2352p-13)
    NEXT(0x1.6c16c185a757bp-10)
    NEXT(0x1.111111110d63ap-7)
    NEXT(0x1.5555555550030p-5)
    NEXT(0x1.5555555555561p-3)
    NEXT(0x1.000000000000bp-1)
#endif
#undef FIRST
#undef NEXT
    EACH (i, N)
        q[i] = v_fma(p[i], r[i] * r[i], r[i]);
}

/* 1 / sigmoid(x) = 1 + e^-x, up to infinity, so that a gate at -infinity is exactly 0. First what exp_parts is to be given, then what
 * it makes of it. */
INLINE vec sigmoid_exponent(vec x) { return v_min(v_set(EXP_HIGHEST), v_max(v_set(EXP_LOWEST), -x)); }
INLINE vec sigmoid_inverse(vec s, vec q) { return v_fma(s, v_set(1) + q, v_set(1)); }

INLINE vec magnitude(vec x) { return (vec)((ivec)x & ~(ivec)v_set((real)-0.0)); }

/* tanh(x) = numerator / denominator, with t = e^(-2|x|) - 1: tanh|x| = -t / (2 + t). The sign is that of x, of a zero too. */
INLINE vec tanh_exponent(vec x) { return v_max(v_set(EXP_LOWEST), v_set(-2) * magnitude(x)); }
INLINE void tanh_quotient(vec x, vec s, vec q, vec *numerator, vec *denominator)
{
    const vec t = v_fma(s, q, s - v_set(1));
    *numerator = v_select((ivec)v_set((real)-0.0), x, t);
    *denominator = v_set(2) + t;
}

/* The same for one vector. */
INLINE vec sigmoid(vec x)
{
    const vec exponent = sigmoid_exponent(x);
    vec s, q;
    exp_parts(1, &exponent, &s, &q);
    return v_set(1) / sigmoid_inverse(s, q);
}
INLINE void tanh_parts(vec x, vec *numerator, vec *denominator)
{
    const vec exponent = tanh_exponent(x);
    vec s, q;
    exp_parts(1, &exponent, &s, &q);
    tanh_quotient(x, s, q, numerator, denominator);
}

/* One NaN for all, or its bits would depend on the order in which a compiler hands operands to an instruction. */
INLINE vec canonical(vec x) { return v_known(x, v_set((real)__builtin_nan(""))); }

/* c' = sigmoid(f) c + sigmoid(i) tanh(g), and 1 / sigmoid(o). Two divisions for four: sigmoid(i) tanh(g) is one quotient. A single one for
 * c' would save another, but lose bits and overflow for large c. Recording keeps i, f, g, o besides, four divisions more. */
INLINE vec new_c(const real *x, const real *r, const real *b, const real *c, real *gates, vec *o_inverse)
{
    vec gate[FL_VECTORS], exponent[FL_VECTORS], s[FL_VECTORS], q[FL_VECTORS], numerator, denominator;

    EACH (v, FL_VECTORS) {
        gate[v] = (v_load(x + v * LANES) + v_load(r + v * LANES)) + v_load(b + v * LANES);
        exponent[v] = v == 2 ? tanh_exponent(gate[v]) : sigmoid_exponent(gate[v]);
    }
    exp_parts(FL_VECTORS, exponent, s, q);
    const vec i_inverse = sigmoid_inverse(s[0], q[0]);
    const vec f_inverse = sigmoid_inverse(s[1], q[1]);

    *o_inverse = sigmoid_inverse(s[3], q[3]);
    tanh_quotient(gate[2], s[2], q[2], &numerator, &denominator);
    if (gates) {
        v_store(gates, v_set(1) / i_inverse);
        v_store(gates + FL_UNITS, v_set(1) / f_inverse);
        v_store(gates + 2 * FL_UNITS, numerator / denominator);
        v_store(gates + 3 * FL_UNITS, v_set(1) / *o_inverse);
    }
    return v_load(c) / f_inverse + numerator / (i_inverse * denominator);
}

/* h' = sigmoid(o) tanh(c'), one quotient. */
INLINE vec new_h(vec c, vec o_inverse)
{
    vec numerator, denominator;

    tanh_parts(c, &numerator, &denominator);
    return canonical(numerator / (o_inverse * denominator));
}

/* First all rows' c', then all rows' h': tanh(c') is one long chain, and a processor that meets it between two rows' gates waits for it.
 * Between the two h_row keeps 1 / sigmoid(o). A single row goes straight on. `gates` is a constant NULL where they are not kept. */
INLINE void lstm_equations(fl_index n, const real *x, const real *r, const real *b, real *c_first, fl_index c_pitch,
                           real *h_first, fl_index h_pitch, real *gates, fl_index gates_pitch)
{
    real *c_row = c_first, *h_row = h_first;
    vec o_inverse;

    if (n == 1) {
        const vec c = new_c(x, r, b, c_row, gates, &o_inverse);
        v_store(c_row, canonical(c));
        v_store(h_row, new_h(c, o_inverse));
        return;
    }
    for (fl_index row = 0; row < n; row++, x += FL_VECTORS * LANES, r += FL_VECTORS * LANES, c_row += c_pitch, h_row += h_pitch) {
        v_store(c_row, canonical(new_c(x, r, b, c_row, gates, &o_inverse)));
        v_store(h_row, o_inverse);
        if (gates)
            gates += gates_pitch;
    }
    c_row = c_first;
    h_row = h_first;
    for (fl_index row = 0; row < n; row++, c_row += c_pitch, h_row += h_pitch)
        v_store(h_row, new_h(v_load(c_row), v_load(h_row)));
}

static void cell_kernel(fl_index n, const void *xW, const void *hR, const void *bias, void *c, fl_index c_pitch, void *h,
                        fl_index h_pitch, void *gates, fl_index gates_pitch)
{
    if (gates)
        lstm_equations(n, xW, hR, bias, c, c_pitch, h, h_pitch, gates, gates_pitch);
    else
        lstm_equations(n, xW, hR, bias, c, c_pitch, h, h_pitch, NULL, 0);
}

/* With t = tanh(c), and dh, dc what later steps and the output ask of h and c:
 *     dc += dh o (1 - t^2);  dz_i = dc g i (1 - i);  dz_f = dc c_prev f (1 - f);  dz_g = dc i (1 - g^2);  dz_o = dh t o (1 - o)
 * and dc f goes on to the step before. */
static void cell_backward_kernel(fl_index n, const fl_cell_gradient *p)
{
    const real *dh_row = p->dh, *dy_row = p->dy, *c_row = p->c;
    real *gates = p->gates, *dc_row = p->dc, *m_row = p->m;
    const vec one = v_set(1);

    for (fl_index row = 0; row < n; row++) {
        const vec i = v_load(gates), f = v_load(gates + FL_UNITS), g = v_load(gates + 2 * FL_UNITS),
                  o = v_load(gates + 3 * FL_UNITS);
        const vec c_prev = v_load((const real *)p->c_prev[row] + p->c_prev_from);
        vec dh = v_load(dh_row), numerator, denominator;

        if (dy_row) {
            dh += v_load(dy_row);
            dy_row += p->dy_pitch;
        }
        tanh_parts(v_load(c_row), &numerator, &denominator);
        const vec t = numerator / denominator;
        const vec dc = v_fma(dh * o, (one - t) * (one + t), v_load(dc_row));

        v_store(gates, (dc * g) * (i * (one - i)));
        v_store(gates + FL_UNITS, (dc * c_prev) * (f * (one - f)));
        v_store(gates + 2 * FL_UNITS, (dc * i) * ((one - g) * (one + g)));
        v_store(gates + 3 * FL_UNITS, (dh * t) * (o * (one - o)));
        v_store(dc_row, canonical(dc * f));
        if (m_row) {
            v_store(m_row, o * t);
            m_row += p->c_pitch;
        }
        dh_row += p->dh_pitch;
        c_row += p->c_pitch;
        dc_row += p->dc_pitch;
        gates += p->gates_pitch;
    }
}

/* h = tanh(z), or max(0, z) such that a NaN passes. */
static void rnn_cell_kernel(int relu, fl_index n, const void *xW, const void *hR, const void *bias, void *h, fl_index h_pitch)
{
    const real *x = xW, *r = hR, *b = bias;
    real *h_row = h;

    for (fl_index row = 0; row < n; row++, x += FL_VECTORS * LANES, r += FL_VECTORS * LANES, h_row += h_pitch) {
        vec z[FL_VECTORS], exponent[FL_VECTORS], s[FL_VECTORS], q[FL_VECTORS];

        EACH (v, FL_VECTORS)
            z[v] = (v_load(x + v * LANES) + v_load(r + v * LANES)) + v_load(b + v * LANES);
        if (!relu) {
            EACH (v, FL_VECTORS)
                exponent[v] = tanh_exponent(z[v]);
            exp_parts(FL_VECTORS, exponent, s, q);
        }
        EACH (v, FL_VECTORS) {
            vec numerator, denominator, h_new;

            if (relu)
                h_new = v_select((ivec)(z[v] <= v_set(0)), v_set(0), z[v]);
            else {
                tanh_quotient(z[v], s[v], q[v], &numerator, &denominator);
                h_new = numerator / denominator;
            }
            v_store(h_row + v * LANES, canonical(h_new));
        }
    }
}

/* dz = dh (1 - h^2), or dh where h > 0. */
static void rnn_backward_kernel(int relu, fl_index n, const void *dh, fl_index dh_pitch, const void *dy, fl_index dy_pitch,
                                const void *h, fl_index h_pitch, void *dz, fl_index dz_pitch)
{
    const real *dh_row = dh, *dy_row = dy, *h_row = h;
    real *dz_row = dz;
    const vec one = v_set(1);

    for (fl_index row = 0; row < n; row++) {
        const vec h_t = v_load_any(h_row), d = v_load(dh_row) + v_load(dy_row);

        if (relu)
            v_store(dz_row, v_select((ivec)(h_t <= v_set(0)), v_set(0), d));
        else
            v_store(dz_row, d * ((one - h_t) * (one + h_t)));
        dh_row += dh_pitch;
        dy_row += dy_pitch;
        h_row += h_pitch;
        dz_row += dz_pitch;
    }
}

/* ---- Sums over tokens ---------------------------------------------------------------------------------------------------------- */

/* out[j] = canonical(out[j] + a[j]) */
INLINE void add_row(fl_index n, const real *a, real *out)
{
    fl_index j = 0;

    for (; j + LANES <= n; j += LANES)
        v_store_any(out + j, canonical(v_load_any(out + j) + v_load_any(a + j)));
    for (; j < n; j++) {
        const real sum = out[j] + a[j];
        out[j] = sum == sum ? sum : (real)__builtin_nan("");
    }
}

static void add_kernel(fl_index n, const void *a, void *out) { add_row(n, a, out); }

/* As a tile, but the inputs stand in columns: acc += a^T panel, of its first `vectors`. */
INLINE void outer(const int M, const int vectors, real *acc, const real *panel, const real *a, fl_index a_pitch, fl_index K)
{
    const int N = VECTORS(M, vectors);

    for (fl_index slab = 0; slab < K;
         slab += FL_LONG_SLAB, panel += FL_LONG_SLAB * FL_VECTORS * LANES, a += FL_LONG_SLAB * a_pitch)
        for (int first = 0; first < vectors; first += N) {
            const real *weights = panel + first * LANES, *inputs = a;
            vec sum[FL_MAX_TILE][FL_VECTORS];

            EACH (m, M)
                EACH (v, N)
                    sum[m][v] = (vec){0};
            for (fl_index k = fl_min(FL_LONG_SLAB, K - slab); k > 0; k--, inputs += a_pitch, weights += FL_VECTORS * LANES) {
                vec weight[FL_VECTORS];
                EACH (v, N)
                    weight[v] = v_load(weights + v * LANES);
                EACH (m, M) {
                    const vec input = v_set(inputs[m]);
                    EACH (v, N)
                        sum[m][v] = v_fma(input, weight[v], sum[m][v]); /* sum += a[k][m] * b[k] */
                }
            }
            EACH (m, M)
                EACH (v, N)
                    add_sum(acc + (m * FL_VECTORS + first + v) * LANES, sum[m][v]);
        }
}

#define OUTER(name, M, vectors)                                                                                   \
    static void FL_JOIN(name, FL_TYPE)(void *acc, const void *panel, const void *a, fl_index a_pitch, fl_index K) \
    {                                                                                                             \
        outer(M, vectors, acc, panel, a, a_pitch, K);                                                             \
    }
#define OUTERS(name, vectors)           \
    OUTER(FL_JOIN(name, 1), 1, vectors) \
    OUTER(FL_JOIN(name, 2), 2, vectors) \
    OUTER(FL_JOIN(name, 3), 3, vectors) \
    OUTER(FL_JOIN(name, 4), 4, vectors) \
    OUTER(FL_JOIN(name, 5), 5, vectors) \
    OUTER(FL_JOIN(name, 6), 6, vectors)

OUTERS(outer_single, 1)
OUTERS(outer_double, 2)
OUTERS(outer_full, FL_VECTORS)
#undef OUTER
#undef OUTERS

/* out[j] += sum over k of a[k][j] or, if there are `products`, of a[k][j] * b[k][b_from + j]. */
INLINE void add_columns(const int products, fl_index K, const void *a, fl_index a_pitch, const void *const *b, fl_index b_from,
                        void *out, fl_index columns)
{
    real acc[FL_UNITS] __attribute__((aligned(FL_ALIGNMENT)));

    for (fl_index column = 0; column < FL_UNITS; column += LANES) {
        const real *at = (const real *)a + column;
        vec total = {0};
        for (fl_index slab = 0; slab < K; slab += FL_SLAB) {
            vec sum = {0};
            for (fl_index k = slab; k < fl_min(slab + FL_SLAB, K); k++, at += a_pitch)
                sum = products ? v_fma(v_load(at), v_load((const real *)b[k] + b_from + column), sum) : (vec)(sum + v_load(at));
            total += sum;
        }
        v_store(acc + column, total);
    }
    add_row(columns, acc, out);
}

static void sum_rows_kernel(fl_index K, const void *a, fl_index a_pitch, void *out, fl_index columns)
{
    add_columns(0, K, a, a_pitch, NULL, 0, out, columns);
}

static void sum_products_kernel(fl_index K, const void *a, fl_index a_pitch, const void *const *b, fl_index b_from, void *out,
                                fl_index columns)
{
    add_columns(1, K, a, a_pitch, b, b_from, out, columns);
}

static void store_kernel(fl_index n, const void *acc, void *out, fl_index out_pitch)
{
    const real *sums = acc;
    real *out_row = out;

    for (fl_index row = 0; row < n; row++, sums += FL_VECTORS * LANES, out_row += out_pitch)
        for (int v = 0; v < FL_VECTORS; v++)
            v_store(out_row + v * LANES, canonical(v_load(sums + v * LANES)));
}

#include "variant_text.h"

const fl_kernels FL_JOIN(FL_JOIN(fl_kernels, FL_ISA), FL_TYPE) = {
    .item = sizeof(real),
    .V = LANES,
#define ROWS(name)                                                                                                  \
    {                                                                                                               \
        FL_JOIN(FL_JOIN(name, 1), FL_TYPE), FL_JOIN(FL_JOIN(name, 2), FL_TYPE), FL_JOIN(FL_JOIN(name, 3), FL_TYPE), \
        FL_JOIN(FL_JOIN(name, 4), FL_TYPE), FL_JOIN(FL_JOIN(name, 5), FL_TYPE), FL_JOIN(FL_JOIN(name, 6), FL_TYPE), \
    }
    .tiles[FL_FULL] = ROWS(tile_full),
    .tile_pair[FL_FULL] = FL_JOIN(tile_pair_full, FL_TYPE),
    .narrow = {ROWS(narrow_single), ROWS(narrow_double)},
#if FL_BITS == 32
    .tiles[FL_FLOAT16] = ROWS(tile_float16),
    .tile_pair[FL_FLOAT16] = FL_JOIN(tile_pair_float16, FL_TYPE),
    .tiles[FL_BFLOAT16] = ROWS(tile_bfloat16),
    .tile_pair[FL_BFLOAT16] = FL_JOIN(tile_pair_bfloat16, FL_TYPE),
    .tiles[FL_INT8] = ROWS(tile_int8),
    .tile_pair[FL_INT8] = FL_JOIN(tile_pair_int8, FL_TYPE),
#endif
    .cell = cell_kernel,
    .store = store_kernel,
    .cell_backward = cell_backward_kernel,
    .outers = {ROWS(outer_single), ROWS(outer_double), ROWS(outer_full), ROWS(outer_full)},
#undef ROWS
    .sum_rows = sum_rows_kernel,
    .add = add_kernel,
    .variant_cell = variant_cell_kernel,
    .variant_backward = variant_backward_kernel,
    .clip = clip_kernel,
    .clip_backward = clip_backward_kernel,
    .sum_products = sum_products_kernel,
    .rnn_cell = rnn_cell_kernel,
    .rnn_backward = rnn_backward_kernel,
};

#undef EXP_LOWEST
#undef EXP_HIGHEST
#undef ROUND
#undef FRACTION_BITS
#undef EXPONENT_BIAS
#undef LN2_HIGH
#undef LN2_LOW
#undef FL_BITS
#undef FL_TYPE
#undef FL_ELEMENT
#undef FL_INTEGER
