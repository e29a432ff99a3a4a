/* A dozen vector words over GNU C vector extensions; intrinsics only where the language has no word.
 *
 * Included by kernel_text.h with FL_WIDTH (bytes of a vector) and FL_BITS (32 or 64: bits of an element) set. Arithmetic
 * (+ - * / & | ^ << and comparisons) is the language's own. v_min and v_max return their second argument if either is NaN,
 * so that a NaN passes through a clamp written v_min(limit, x). v_known(a, b) is a, or b where a is NaN.
 */
#define FL_JOIN_(a, b) a##_##b
#define FL_JOIN(a, b) FL_JOIN_(a, b)

#if FL_BITS == 32
#define FL_TYPE f32
#define FL_ELEMENT float
#define FL_INTEGER uint32_t
#else
#define FL_TYPE f64
#define FL_ELEMENT double
#define FL_INTEGER uint64_t
#endif

#define real FL_JOIN(real, FL_TYPE)
#define integer FL_JOIN(integer, FL_TYPE)
#define vec FL_JOIN(vec, FL_TYPE)
#define ivec FL_JOIN(ivec, FL_TYPE)
#define v_load FL_JOIN(v_load, FL_TYPE)
#define v_store FL_JOIN(v_store, FL_TYPE)
#define v_load_any FL_JOIN(v_load_any, FL_TYPE)
#define v_store_any FL_JOIN(v_store_any, FL_TYPE)
#define anyvec FL_JOIN(anyvec, FL_TYPE)
#define v_set FL_JOIN(v_set, FL_TYPE)
#define v_fma FL_JOIN(v_fma, FL_TYPE)
#define v_min FL_JOIN(v_min, FL_TYPE)
#define v_max FL_JOIN(v_max, FL_TYPE)
#define v_select FL_JOIN(v_select, FL_TYPE)
#define v_known FL_JOIN(v_known, FL_TYPE)

typedef FL_ELEMENT real;
typedef FL_INTEGER integer;
typedef real vec __attribute__((vector_size(FL_WIDTH), may_alias));
typedef real anyvec __attribute__((vector_size(FL_WIDTH), may_alias, aligned(sizeof(real)))); /* at any element */
typedef integer ivec __attribute__((vector_size(FL_WIDTH), may_alias));

#define LANES ((fl_index)(FL_WIDTH / sizeof(real)))
/* A loop over a constant count, unrolled so that arrays of vectors become registers. */
#ifdef FL_PLAIN_LOOPS /* set for sanitizers, which compilers take many minutes for in inlined and unrolled text */
#define EACH(i, n) for (int i = 0; i < (n); i++)
#elif defined(__clang__)
#define EACH(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < (n); i++)
#else
#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)
#endif
#ifdef FL_PLAIN_LOOPS
#define INLINE static __attribute__((unused))
#else
#define INLINE static inline __attribute__((always_inline))
#endif

INLINE vec v_load(const real *p) { return *(const vec *)p; }
INLINE void v_store(real *p, vec a) { *(vec *)p = a; }
INLINE vec v_load_any(const real *p) { return *(const anyvec *)p; }
INLINE void v_store_any(real *p, vec a) { *(anyvec *)p = a; }
INLINE vec v_set(real a) { return a - (vec){0}; } /* x - 0 is x for every x, -0 too */
INLINE vec v_select(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

/* A vector of several uses stays in a register: GCC would fold its load into each use, and load as often. */
#if FL_WIDTH == 64
#define v_keep(a) __asm__("" : "+v"(a))
#elif defined(__x86_64__)
#define v_keep(a) __asm__("" : "+x"(a))
#else
#define v_keep(a) ((void)(a))
#endif

#if FL_BITS == 32
/* LANES numbers of a smaller type, widened without rounding: one of the bytes of each 32-bit lane; half precision at any alignment. */
typedef int32_t words_f32 __attribute__((vector_size(FL_WIDTH), may_alias));
INLINE vec v_byte(ivec lanes, const int byte)
{
    return __builtin_convertvector((words_f32)(lanes << (24 - 8 * byte)) >> 24, vec);
}
#if FL_WIDTH == 64
INLINE vec v_load_half(const uint16_t *p) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
#elif FL_WIDTH == 32
INLINE vec v_load_half(const uint16_t *p) { return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
#elif defined(FL_HAS_NEON_FMA)
INLINE vec v_load_half(const uint16_t *p) { return (vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
#else
/* Without an instruction for it: the exponent is 112 too small, and that of subnormal numbers (whose bits count 2^-24) another one. */
typedef uint16_t halves_f32 __attribute__((vector_size(FL_WIDTH / 2), may_alias, aligned(2)));
INLINE vec v_load_half(const uint16_t *p)
{
    const ivec half = __builtin_convertvector(*(const halves_f32 *)p, ivec), magnitude = half & 0x7fff;
    const ivec normal = (magnitude << 13) + (112u << 23), special = (magnitude << 13) | 0x7f800000u;
    const vec small = __builtin_convertvector((words_f32)magnitude, vec) * 0x1p-24f;
    const ivec value =
        (ivec)v_select((ivec)(magnitude < 0x0400), small, v_select((ivec)(magnitude < 0x7c00), (vec)normal, (vec)special));
    return (vec)(value | (half & 0x8000) << 16);
}
#endif
#endif

#if FL_WIDTH == 64 && FL_BITS == 32
INLINE vec v_fma(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vec v_min(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec v_max(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec v_known(vec a, vec b)
{
    return (vec)_mm512_mask_mov_ps((__m512)b, _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_ORD_Q), (__m512)a);
}
#elif FL_WIDTH == 64
INLINE vec v_fma(vec a, vec b, vec c) { return (vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
INLINE vec v_min(vec a, vec b) { return (vec)_mm512_min_pd((__m512d)a, (__m512d)b); }
INLINE vec v_max(vec a, vec b) { return (vec)_mm512_max_pd((__m512d)a, (__m512d)b); }
INLINE vec v_known(vec a, vec b)
{
    return (vec)_mm512_mask_mov_pd((__m512d)b, _mm512_cmp_pd_mask((__m512d)a, (__m512d)a, _CMP_ORD_Q), (__m512d)a);
}
#elif FL_WIDTH == 32 && FL_BITS == 32
INLINE vec v_fma(vec a, vec b, vec c) { return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vec v_min(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vec v_max(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#elif FL_WIDTH == 32
INLINE vec v_fma(vec a, vec b, vec c) { return (vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
INLINE vec v_min(vec a, vec b) { return (vec)_mm256_min_pd((__m256d)a, (__m256d)b); }
INLINE vec v_max(vec a, vec b) { return (vec)_mm256_max_pd((__m256d)a, (__m256d)b); }
#else
#if defined(FL_HAS_NEON_FMA) && FL_BITS == 32
INLINE vec v_fma(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#elif defined(FL_HAS_NEON_FMA)
INLINE vec v_fma(vec a, vec b, vec c) { return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; } /* rounds twice: the baseline has no fused multiply-add */
#endif
INLINE vec v_min(vec a, vec b) { return v_select((ivec)(a < b), a, b); }
INLINE vec v_max(vec a, vec b) { return v_select((ivec)(a > b), a, b); }
#endif

#if FL_WIDTH < 64
INLINE vec v_known(vec a, vec b) { return v_select((ivec)(a == a), a, b); }
#endif
