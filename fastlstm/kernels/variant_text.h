/* The cell with anything changed: activations, peepholes, coupled gates, clips. Included by kernel_text.h, with its vector words.
 *
 * It works in passes over the n rows of a block, which stay in the L1 cache, so that what is chosen at run time is chosen once for
 * all rows. PyTorch's own cell does not come here. UNROLL(1): GCC would write loops of few rows out, each with its exponentials.
 */
#define log1p_unit FL_JOIN(log1p_unit, FL_TYPE)
#define exp_below FL_JOIN(exp_below, FL_TYPE)
#define softplus FL_JOIN(softplus, FL_TYPE)
#define elu FL_JOIN(elu, FL_TYPE)
#define ROWS_AT_ONCE FL_JOIN(ROWS_AT_ONCE, FL_TYPE)
#define clamp FL_JOIN(clamp, FL_TYPE)
#define activate FL_JOIN(activate, FL_TYPE)
#define slopes FL_JOIN(slopes, FL_TYPE)
#define add_gates FL_JOIN(add_gates, FL_TYPE)
#define next_c FL_JOIN(next_c, FL_TYPE)
#define variant_cell_kernel FL_JOIN(variant_cell_kernel, FL_TYPE)
#define variant_functions FL_JOIN(variant_functions, FL_TYPE)
#define variant_backward_kernel FL_JOIN(variant_backward_kernel, FL_TYPE)
#define clip_kernel FL_JOIN(clip_kernel, FL_TYPE)
#define clip_backward_kernel FL_JOIN(clip_backward_kernel, FL_TYPE)

/* ---- Activations --------------------------------------------------------------------------------------------------------------- */

INLINE vec clamp(vec x, vec bound) { return v_min(bound, v_max(-bound, x)); }

/* log(1 + e) for 0 <= e <= 1: 2 artanh(s) with s = e / (2 + e) <= 1/3. The polynomial interpolates (artanh(s) / s - 1) / s^2 at
 * Chebyshev's points; its error in the sum is 1e-9 in float32 and 8e-18 in float64. */
INLINE vec log1p_unit(vec e)
{
    const vec s = e / (v_set(2) + e), t = s * s;
    vec p;
#if FL_BITS == 32
    p = v_set(0x1.dba260p-4f);
    p = v_fma(p, t, v_set(0x1.bc8cf8p-4f));
    p = v_fma(p, t, v_set(0x1.24c926p-3f));
    p = v_fma(p, t, v_set(0x1.9998d4p-3f));
    p = v_fma(p, t, v_set(0x1.555556p-2f));
#else
    p = v_set(0x1.4b0a26c5f2aefp-4);
    p = v_fma(p, t, v_set(0x1.687a6e7c95176p-5));
    p = v_fma(p, t, v_set(0x1.eb905e8575054p-5));
    p = v_fma(p, t, v_set(0x1.10ac75dc602b1p-4));
    p = v_fma(p, t, v_set(0x1.3b18b294bebf9p-4));
    p = v_fma(p, t, v_set(0x1.745cf0b0e03bdp-4));
    p = v_fma(p, t, v_set(0x1.c71c727143318p-4));
    p = v_fma(p, t, v_set(0x1.24924923d44c6p-3));
    p = v_fma(p, t, v_set(0x1.999999999a3ddp-3));
    p = v_fma(p, t, v_set(0x1.5555555555555p-2));
#endif
    const vec twice = s + s;
    return v_fma(twice * t, p, twice);
}

/* e^-|x|, exactly 0 at infinity */
INLINE vec exp_below(vec x)
{
    const vec below = -magnitude(x), exponent = v_max(v_set(EXP_LOWEST), below);
    vec s, q;
    exp_parts(1, &exponent, &s, &q);
    return v_select((ivec)(below < v_set(EXP_LOWEST)), v_set(0), v_fma(s, q, s));
}

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|) */
INLINE vec softplus(vec x) { return v_max(v_set(0), x) + log1p_unit(exp_below(x)); }

/* x where it is not negative, else alpha (e^x - 1) */
INLINE vec elu(vec x, vec alpha)
{
    const vec exponent = v_max(v_set(EXP_LOWEST), v_min(v_set(0), x));
    vec s, q;
    exp_parts(1, &exponent, &s, &q);
    return v_select((ivec)(x < v_set(0)), alpha * v_fma(s, q, s - v_set(1)), x);
}

/* x = function(x) for n vectors, `pitch` elements apart. */
static void activate(const fl_activation *function, real *at, fl_index pitch, fl_index n)
{
    const vec a = v_set((real)function->alpha), b = v_set((real)function->beta), one = v_set(1), zero = v_set(0);
    vec numerator, denominator;

#define EVERY(value)                                      \
    UNROLL(1)                                             \
    for (fl_index row = 0; row < n; row++, at += pitch) { \
        const vec x = v_load(at);                         \
        v_store(at, value);                               \
    }                                                     \
    break
    switch (function->kind) {
    case FL_SIGMOID:
        EVERY(sigmoid(x));
    case FL_TANH:
        EVERY((tanh_parts(x, &numerator, &denominator), numerator / denominator));
    case FL_RELU:
        EVERY(v_max(zero, x));
    case FL_LINEAR:
        break;
    case FL_HARD_SIGMOID:
        EVERY(v_max(zero, v_min(one, v_fma(a, x, b))));
    case FL_SOFTSIGN:
        EVERY(x / (one + magnitude(x)));
    case FL_SOFTPLUS:
        EVERY(softplus(x));
    case FL_ELU:
        EVERY(elu(x, a));
    case FL_LEAKY_RELU:
        EVERY(v_select((ivec)(x < zero), a * x, x));
    case FL_THRESHOLDED_RELU:
        EVERY(v_select((ivec)(x < a), zero, x));
    case FL_SCALED_TANH:
        EVERY((tanh_parts(b * x, &numerator, &denominator), a * (numerator / denominator)));
    case FL_AFFINE:
        EVERY(v_fma(a, x, b));
    }
}

/* x = the function's derivative at x; at a kink that of the left, at the bounds of the hard sigmoid 0. */
static void slopes(const fl_activation *function, real *at, fl_index pitch, fl_index n)
{
    const vec a = v_set((real)function->alpha), b = v_set((real)function->beta), one = v_set(1), zero = v_set(0);
    vec e, y;

    switch (function->kind) {
    case FL_SIGMOID: /* e / (1 + e)^2 with e = e^-|x| */
        EVERY((e = exp_below(x), y = one / (one + e), e * y * y));
    case FL_TANH: /* 4 e / (1 + e)^2 with e = e^-2|x| */
        EVERY((e = exp_below(x + x), y = v_set(2) / (one + e), e * y * y));
    case FL_RELU:
        EVERY(v_select((ivec)(x <= zero), zero, one));
    case FL_LINEAR:
        EVERY(((void)x, one));
    case FL_HARD_SIGMOID:
        EVERY((y = v_fma(a, x, b), v_select((ivec)(y <= zero) | (ivec)(y >= one), zero, a)));
    case FL_SOFTSIGN:
        EVERY((y = one / (one + magnitude(x)), y * y));
    case FL_SOFTPLUS:
        EVERY(sigmoid(x));
    case FL_ELU:
        EVERY(v_select((ivec)(x <= zero), a * exp_below(x), one));
    case FL_LEAKY_RELU:
        EVERY(v_select((ivec)(x <= zero), a, one));
    case FL_THRESHOLDED_RELU:
        EVERY(v_select((ivec)(x <= a), zero, one));
    case FL_SCALED_TANH:
        EVERY((e = exp_below(b * (x + x)), y = v_set(2) / (one + e), a * b * (e * y * y)));
    case FL_AFFINE:
        EVERY(((void)x, a));
    }
#undef EVERY
}

/* ---- Cell ---------------------------------------------------------------------------------------------------------------------- */

/* z = clip(x W + h R + bias + peephole * c), but o, which waits for the new c. */
static void add_gates(const fl_variant *variant, const real *peephole, fl_index n, const real *x, real *gates, const real *bias,
                      const real *c, fl_index c_pitch, real *z, fl_index z_pitch)
{
    const vec bound = v_set((real)variant->gate_clip);

    for (fl_index row = 0; row < n; row++, x += FL_VECTORS * LANES, gates += FL_VECTORS * LANES, c += c_pitch) {
        for (int v = 0; v < FL_VECTORS; v++) {
            vec sum = (v_load(x + v * LANES) + v_load(gates + v * LANES)) + v_load(bias + v * LANES);
            if (peephole && v < 2)
                sum = v_fma(v_load(peephole + v * LANES), v_load(c), sum);
            if (z && v < 3)
                v_store(z + v * FL_UNITS, sum);
            v_store(gates + v * LANES, v == 3 ? sum : clamp(sum, bound));
        }
        if (z)
            z += z_pitch;
    }
}

/* c = clip(f c + i g), also into i's place; o's pre-activation is completed. */
static void next_c(const fl_variant *variant, const real *peephole, fl_index n, real *gates, real *c, fl_index c_pitch, real *z,
                   fl_index z_pitch)
{
    const vec one = v_set(1), gate_bound = v_set((real)variant->gate_clip), cell_bound = v_set((real)variant->cell_clip);

    for (fl_index row = 0; row < n; row++, gates += FL_VECTORS * LANES, c += c_pitch) {
        vec i = v_load(gates), f = v_load(gates + LANES), z_o = v_load(gates + 3 * LANES);

        if (variant->coupled == FL_FORGET)
            f = one - i;
        else if (variant->coupled == FL_INPUT)
            i = one - f;
        const vec c_new = canonical(clamp(v_fma(f, v_load(c), i * v_load(gates + 2 * LANES)), cell_bound));
        if (peephole)
            z_o = v_fma(v_load(peephole + 2 * LANES), c_new, z_o);
        if (z) {
            v_store(z + 3 * FL_UNITS, z_o);
            z += z_pitch;
        }
        v_store(c, c_new);
        v_store(gates, c_new);
        v_store(gates + 3 * LANES, clamp(z_o, gate_bound));
    }
}

static void variant_cell_kernel(const fl_variant *variant, const void *peephole, fl_index n, const void *xW, void *hR,
                                const void *bias, void *c, fl_index c_pitch, void *h, fl_index h_pitch, void *z, fl_index z_pitch)
{
    const fl_index panel = FL_VECTORS * LANES;
    real *gates = hR, *h_row = h;

    add_gates(variant, peephole, n, xW, gates, bias, c, c_pitch, z, z_pitch);
    if (variant->coupled != FL_INPUT)
        activate(&variant->gate, gates, panel, n);
    if (variant->coupled != FL_FORGET)
        activate(&variant->gate, gates + LANES, panel, n);
    activate(&variant->candidate, gates + 2 * LANES, panel, n);
    next_c(variant, peephole, n, gates, c, c_pitch, z, z_pitch);
    activate(&variant->hidden, gates, panel, n);
    activate(&variant->gate, gates + 3 * LANES, panel, n);
    for (fl_index row = 0; row < n; row++, gates += panel, h_row += h_pitch) /* h = o hidden(c) */
        v_store(h_row, canonical(v_load(gates + 3 * LANES) * v_load(gates)));
}

/* ---- Gradients ----------------------------------------------------------------------------------------------------------------- */

enum { ROWS_AT_ONCE = 8 }; /* their functions and slopes, 10 vectors each, stay in L1 */

/* Functions and slopes [n][5][V] of i, f, g, o at the clipped z, and of hidden at c. A gate that follows the other one has slope 0. */
static void variant_functions(const fl_variant *variant, const real *z, fl_index z_pitch, const real *c, fl_index c_pitch,
                              fl_index n, real *value, real *slope)
{
    const fl_activation *functions[] = {&variant->gate, &variant->gate, &variant->candidate, &variant->gate, &variant->hidden};
    const vec bound = v_set((real)variant->gate_clip), one = v_set(1), zero = v_set(0);
    const fl_index pitch = 5 * LANES;

    UNROLL(1)
    for (fl_index row = 0; row < n; row++)
        for (int v = 0; v < 5; v++) {
            const vec x = v < 4 ? clamp(v_load(z + row * z_pitch + v * FL_UNITS), bound) : v_load(c + row * c_pitch);
            v_store(value + row * pitch + v * LANES, x);
            v_store(slope + row * pitch + v * LANES, x);
        }
    for (int v = 0; v < 5; v++) {
        activate(functions[v], value + v * LANES, pitch, n);
        slopes(functions[v], slope + v * LANES, pitch, n);
    }
    UNROLL(1)
    for (fl_index row = 0; row < n; row++, value += pitch, slope += pitch) {
        for (int v = 0; v < 4; v++) {
            const ivec clipped = (ivec)(magnitude(v_load(z + row * z_pitch + v * FL_UNITS)) > bound);
            v_store(slope + v * LANES, v_select(clipped, zero, v_load(slope + v * LANES)));
        }
        if (variant->coupled) {
            const fl_index from = variant->coupled == FL_FORGET ? 0 : LANES, to = LANES - from;
            v_store(value + to, one - v_load(value + from));
            v_store(slope + to, zero);
        }
    }
}

/* With s = hidden(c), primes for slopes, [clip] 1 or 0, and dh, dc what later steps and the output ask of h and c:
 *     dz_o = dh s o';  dc = (dc + dh o s' + peephole_o dz_o) [clip];  dz_i = dc g i';  dz_f = dc c_prev f';  dz_g = dc i g'
 * and dc f + peephole_i dz_i + peephole_f dz_f goes on to the step before. Coupled: g - c_prev for g, or c_prev - g for c_prev. */
static void variant_backward_kernel(const fl_variant *variant, const void *peepholes, fl_index n, const fl_cell_gradient *p)
{
    const real *dh_row = p->dh, *dy_row = p->dy, *c_row = p->c, *peephole = peepholes;
    real *z = p->gates, *dc_row = p->dc, *m_row = p->m;
    real values[ROWS_AT_ONCE * 5 * LANES] __attribute__((aligned(FL_ALIGNMENT)));
    real all_slopes[ROWS_AT_ONCE * 5 * LANES] __attribute__((aligned(FL_ALIGNMENT)));
    const vec bound = v_set((real)variant->cell_clip), zero = v_set(0), one = v_set(1);

    for (fl_index row = 0; row < n; row++) {
        const fl_index at = row % ROWS_AT_ONCE;
        if (at == 0)
            variant_functions(variant, z, p->gates_pitch, c_row, p->c_pitch, fl_min(ROWS_AT_ONCE, n - row), values, all_slopes);
        const real *value = values + at * 5 * LANES, *slope = all_slopes + at * 5 * LANES;
        const vec i = v_load(value), f = v_load(value + LANES), g = v_load(value + 2 * LANES), o = v_load(value + 3 * LANES);
        const vec s = v_load(value + 4 * LANES), c_prev = v_load((const real *)p->c_prev[row] + p->c_prev_from);
        vec dh = v_load(dh_row);

        if (dy_row) {
            dh += v_load(dy_row);
            dy_row += p->dy_pitch;
        }
        const vec dz_o = (dh * s) * v_load(slope + 3 * LANES);
        vec dc = v_fma(dh * o, v_load(slope + 4 * LANES), v_load(dc_row));
        if (peephole)
            dc = v_fma(v_load(peephole + 2 * LANES), dz_o, dc);
        dc *= v_select((ivec)(magnitude(v_fma(f, c_prev, i * g)) > bound), zero, one);
        vec by_i = g, by_f = c_prev;
        if (variant->coupled == FL_FORGET)
            by_i -= c_prev;
        else if (variant->coupled == FL_INPUT)
            by_f -= g;
        const vec dz_i = (dc * by_i) * v_load(slope), dz_f = (dc * by_f) * v_load(slope + LANES);

        v_store(z, dz_i);
        v_store(z + FL_UNITS, dz_f);
        v_store(z + 2 * FL_UNITS, (dc * i) * v_load(slope + 2 * LANES));
        v_store(z + 3 * FL_UNITS, dz_o);
        dc *= f;
        if (peephole)
            dc = v_fma(v_load(peephole), dz_i, v_fma(v_load(peephole + LANES), dz_f, dc));
        v_store(dc_row, canonical(dc));
        if (m_row) {
            v_store(m_row, o * s);
            m_row += p->c_pitch;
        }
        dh_row += p->dh_pitch;
        c_row += p->c_pitch;
        dc_row += p->dc_pitch;
        z += p->gates_pitch;
    }
}

static void clip_backward_kernel(fl_index n, double bound, const void *clipped, void *d)
{
    const real *value = clipped, limit = (real)bound;
    real *out = d;

    for (fl_index j = 0; j < n; j++)
        if (value[j] >= limit || value[j] <= -limit)
            out[j] = 0;
}

static void clip_kernel(fl_index n, double bound, void *out, fl_index out_pitch)
{
    real *row = out;

    for (fl_index m = 0; m < n; m++, row += out_pitch)
        for (int v = 0; v < FL_VECTORS; v++)
            v_store(row + v * LANES, clamp(v_load(row + v * LANES), v_set((real)bound)));
}
