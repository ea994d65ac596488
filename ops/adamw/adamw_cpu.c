/* adamw_ on the CPU: one pass over p, m, v and the gradient; memory sets the pace. */
#include "core/ctx.h"
#include "ops/adamw/adamw_math.h"
#include "ops/philox.h"
#include "ops/simd.h"

/* ---- the formula, in every lane ------------------------------------------------------------- */
ADAMW_FORMULA(lanes, update, v16, v16)

static inline lanes lanes_of(const adamw_step *s) {
    return (lanes){v16_set1(s->scale),   v16_set1(s->b1),      v16_set1(s->b1c),
                   v16_set1(s->b2),      v16_set1(s->b2c),     v16_set1(s->rate),
                   v16_set1(s->v_scale), v16_set1(s->epsilon), v16_set1(s->decay)};
}

/* ---- f32 moments ---------------------------------------------------------------------------- */
typedef struct job {
    float *p, *m, *v;
    const float *g;
    adamw_step s;
} job;

static inline void some(const job *j, int64_t i, int n, const lanes *s) {
    v16 m = v16_load_n(j->m + i, n), v = v16_load_n(j->v + i, n);
    v16 g = j->g ? v16_load_n(j->g + i, n) : v16_zero();
    v16_store_n(j->p + i, update(v16_load_n(j->p + i, n), &m, &v, g, s), n);
    v16_store_n(j->m + i, m, n);
    v16_store_n(j->v + i, v, n);
}

static void range(void *arg, int64_t begin, int64_t end) {
    const job *j = arg;
    float *restrict p = j->p, *restrict m = j->m, *restrict v = j->v;
    const float *restrict g = j->g;
    lanes s = lanes_of(&j->s);
    int64_t i = begin;
    for (; g && i + TP_LANES <= end; i += TP_LANES) {
        v16 m1 = v16_load(m + i), v1 = v16_load(v + i);
        v16_store(p + i, update(v16_load(p + i), &m1, &v1, v16_load(g + i), &s));
        v16_store(m + i, m1);
        v16_store(v + i, v1);
    }
    for (; i < end; i += TP_LANES) some(j, i, v16_lanes(end - i, 0), &s);
}

static tp_status run(const tp_call *k) {
    job j = {tp_f32(k->in[0]), tp_f32(k->in[1]), tp_f32(k->in[2]),
             k->in[3] ? tp_f32(k->in[3]) : NULL, adamw_step_of(k->attr)};
    tp_parallel_for(k->ctx, tp_numel(k->in[0]), 1 << 15, range, &j);
    return TP_OK;
}
TP_CPU_KERNEL(adamw_cpu, .decline = tp_decline_unless_f32_dense, .run = run);

/* ---- bf16 moments --------------------------------------------------------------------------- */
typedef struct job16 {
    float *p;
    uint16_t *m, *v;
    const float *g;
    adamw_step s;
    uint64_t seed, counter;
    int64_t offset;
} job16;

/* Sixteen values, each rounded up or down by sixteen random bits of its word: the lower ones, or
 * the upper. As tp_f32_to_bf16_stochastic says. */
#if TP_ISA >= 4
static inline void store_rounded(uint16_t *p, v16 x, const uint32_t *word, bool upper) {
    __m512i bits = _mm512_castps_si512(x), r = _mm512_loadu_si512(word);
    r = upper ? _mm512_srli_epi32(r, 16) : _mm512_and_si512(r, _mm512_set1_epi32(0xffff));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    __m512i to =
        _mm512_mask_or_epi32(_mm512_add_epi32(bits, r), nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(to, 16)));
}
#elif TP_ISA == 3
static inline __m256i rounded8(__m256 x, const uint32_t *word, bool upper) {
    __m256i bits = _mm256_castps_si256(x), r = _mm256_loadu_si256((const __m256i *)word);
    r = upper ? _mm256_srli_epi32(r, 16) : _mm256_and_si256(r, _mm256_set1_epi32(0xffff));
    __m256 quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x400000)));
    __m256 to = _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_add_epi32(bits, r)), quiet,
                                 _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_castps_si256(to), 16);
}
static inline void store_rounded(uint16_t *p, v16 x, const uint32_t *word, bool upper) {
    __m256i lo = rounded8(x.lo, word, upper), hi = rounded8(x.hi, word + 8, upper);
    __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
    _mm256_storeu_si256((__m256i *)p, both);
}
#else
static inline void store_rounded(uint16_t *p, v16 x, const uint32_t *word, bool upper) {
    for (int i = 0; i < TP_LANES; i++)
        p[i] = tp_f32_to_bf16_stochastic(x.f[i], upper ? word[i] >> 16 : word[i] & 0xffff);
}
#endif

static inline void sixteen(float *restrict p, uint16_t *restrict m, uint16_t *restrict v, v16 g,
                           const lanes *s, const uint32_t *word) {
    v16 m1 = v16_load_bf16(m), v1 = v16_load_bf16(v);
    v16_store(p, update(v16_load(p), &m1, &v1, g, s));
    store_rounded(m, m1, word, false);
    store_rounded(v, v1, word, true);
}

/* A block of a parameter, or the part of it that lies here: elements [i, i+n), from place `from` of
 * the block. Lanes are aligned to the block; what is not a whole sixteen goes through copies. */
static void part_of_block(const job16 *j, int64_t i, int from, int n, const lanes *s,
                          const uint32_t *word) {
    float p[ADAMW_BLOCK] = {0}, g[ADAMW_BLOCK] = {0};
    uint16_t m[ADAMW_BLOCK] = {0}, v[ADAMW_BLOCK] = {0};
    size_t count = (size_t)n;
    memcpy(p + from, j->p + i, count * sizeof *p);
    memcpy(m + from, j->m + i, count * sizeof *m);
    memcpy(v + from, j->v + i, count * sizeof *v);
    if (j->g) memcpy(g + from, j->g + i, count * sizeof *g);
    for (int e = 0; e < ADAMW_BLOCK; e += TP_LANES)
        sixteen(p + e, m + e, v + e, v16_load(g + e), s, word + e);
    memcpy(j->p + i, p + from, count * sizeof *p);
    memcpy(j->m + i, m + from, count * sizeof *m);
    memcpy(j->v + i, v + from, count * sizeof *v);
}

static void range16(void *arg, int64_t begin, int64_t end) {
    const job16 *j = arg;
    uint32_t word[PHILOX_WORDS];
    lanes s = lanes_of(&j->s);
    for (int64_t i = begin, n; i < end; i += n) {
        int64_t at = j->offset + i;
        int from = (int)(at % ADAMW_BLOCK);
        n = ADAMW_BLOCK - from < end - i ? ADAMW_BLOCK - from : end - i;
        philox_words(word, j->seed, TP_RNG_ROUND, j->counter,
                     (uint64_t)(at / ADAMW_BLOCK * PHILOX_COUNTERS));
        if (n < ADAMW_BLOCK || !j->g)
            part_of_block(j, i, from, (int)n, &s, word);
        else
            for (int e = 0; e < ADAMW_BLOCK; e += TP_LANES)
                sixteen(j->p + i + e, j->m + i + e, j->v + i + e, v16_load(j->g + i + e), &s,
                        word + e);
    }
}

static tp_status run16(const tp_call *k) {
    const tp_adamw_opts *o = k->attr;
    job16 j = {.p = tp_f32(k->in[0]),
               .m = k->in[1]->data,
               .v = k->in[2]->data,
               .g = k->in[3] ? tp_f32(k->in[3]) : NULL,
               .s = adamw_step_of(o),
               .seed = k->ctx->seed,
               .counter = adamw_counter(o),
               .offset = o->offset};
    tp_parallel_for(k->ctx, tp_numel(k->in[0]), 1 << 15, range16, &j);
    return TP_OK;
}

static const char *decline16(const tp_call *k) {
    if (!((const tp_adamw_opts *)k->attr)->bf16_state) return "m and v are not bf16";
    for (int i = 0; i < 4; i++) {
        if (k->in[i] && !tp_contiguous(k->in[i])) return "an input is strided";
        if (i % 3 == 0 && k->in[i] && k->in[i]->dtype != TP_F32) return "p is not f32";
    }
    return NULL;
}
TP_CPU_KERNEL(adamw_bf16_cpu, .decline = decline16, .run = run16);
