/* A dozen vector words over GNU C vector extensions; intrinsics only where the language has no word.
 *
 * Included by kernel_text.h with FL_WIDTH (bytes of a vector) and FL_BITS (32 or 64: bits of an element) set. Arithmetic
 * (+ - * / & | ^ << and comparisons) is the language's own. v_min and v_max return their second argument if either is NaN,
 * so that a NaN passes through a clamp written v_min(limit, x).
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

typedef FL_ELEMENT real;
typedef FL_INTEGER integer;
typedef real vec __attribute__((vector_size(FL_WIDTH), may_alias));
typedef real anyvec __attribute__((vector_size(FL_WIDTH), may_alias, aligned(sizeof(real)))); /* at any element */
typedef integer ivec __attribute__((vector_size(FL_WIDTH), may_alias));

#define LANES ((fl_index)(FL_WIDTH / sizeof(real)))
/* A loop over a constant count, unrolled so that arrays of vectors become registers. */
#ifdef __clang__
#define EACH(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < (n); i++)
#else
#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)
#endif
#define INLINE static inline __attribute__((always_inline))

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

#if FL_WIDTH == 64 && FL_BITS == 32
INLINE vec v_fma(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vec v_min(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec v_max(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif FL_WIDTH == 64
INLINE vec v_fma(vec a, vec b, vec c) { return (vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
INLINE vec v_min(vec a, vec b) { return (vec)_mm512_min_pd((__m512d)a, (__m512d)b); }
INLINE vec v_max(vec a, vec b) { return (vec)_mm512_max_pd((__m512d)a, (__m512d)b); }
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
