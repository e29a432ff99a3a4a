/* The cell with anything changed: activations, peepholes, coupled gates, clips. Included by kernel_text.h, with its vector words.
 *
 * It works in passes over the n rows of a block, which stay in the L1 cache, so that what is chosen at run time is chosen once for
 * all rows. PyTorch's own cell does not come here.
 */
#define log1p_unit FL_JOIN(log1p_unit, FL_TYPE)
#define softplus FL_JOIN(softplus, FL_TYPE)
#define elu FL_JOIN(elu, FL_TYPE)
#define magnitude FL_JOIN(magnitude, FL_TYPE)
#define clamp FL_JOIN(clamp, FL_TYPE)
#define activate FL_JOIN(activate, FL_TYPE)
#define add_gates FL_JOIN(add_gates, FL_TYPE)
#define next_c FL_JOIN(next_c, FL_TYPE)
#define lstm_variant FL_JOIN(lstm_variant, FL_TYPE)
#define clip_sums FL_JOIN(clip_sums, FL_TYPE)

/* ---- Activations --------------------------------------------------------------------------------------------------------------- */

INLINE vec magnitude(vec x) { return (vec)((ivec)x & ~(ivec)v_set((real)-0.0)); }
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

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|) */
INLINE vec softplus(vec x)
{
    const vec below = -magnitude(x);
    vec s, q;
    exp_parts(v_max(v_set(EXP_LOWEST), below), &s, &q);
    const vec e = v_select((ivec)(below < v_set(EXP_LOWEST)), v_set(0), v_fma(s, q, s)); /* a gate at -infinity is exactly 0 */
    return v_max(v_set(0), x) + log1p_unit(e);
}

/* x where it is not negative, else alpha (e^x - 1) */
INLINE vec elu(vec x, vec alpha)
{
    vec s, q;
    exp_parts(v_max(v_set(EXP_LOWEST), v_min(v_set(0), x)), &s, &q);
    return v_select((ivec)(x < v_set(0)), alpha * v_fma(s, q, s - v_set(1)), x);
}

/* x = function(x) for n vectors, `pitch` elements apart. */
static void activate(const fl_activation *function, real *at, fl_index pitch, fl_index n)
{
    const vec a = v_set((real)function->alpha), b = v_set((real)function->beta), one = v_set(1), zero = v_set(0);
    vec numerator, denominator;

#define EVERY(value)                                      \
    for (fl_index row = 0; row < n; row++, at += pitch) { \
        const vec x = v_load(at);                         \
        v_store(at, value);                               \
    }                                                     \
    break
    switch (function->kind) {
    case FL_SIGMOID:
        EVERY(one / sigmoid_inverse(x));
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

static void lstm_variant(const fl_variant *variant, const void *peephole, fl_index n, const void *xW, void *hR, const void *bias,
                         void *c, fl_index c_pitch, void *h, fl_index h_pitch, void *z, fl_index z_pitch)
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

static void clip_sums(fl_index n, double bound, void *out, fl_index out_pitch)
{
    real *row = out;

    for (fl_index m = 0; m < n; m++, row += out_pitch)
        for (int v = 0; v < FL_VECTORS; v++)
            v_store(row + v * LANES, clamp(v_load(row + v * LANES), v_set((real)bound)));
}

#undef log1p_unit
#undef softplus
#undef elu
#undef magnitude
#undef clamp
#undef activate
#undef add_gates
#undef next_c
