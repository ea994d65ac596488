/* dropout on the CPU: random words for a block of elements, then one pass over it. */
#include "ops/dropout/dropout_math.h"
#include "ops/elementwise.h"

enum { GROUPS = 64 }; /* of four words: 1 KB on the stack */

typedef struct dropout_job {
    uint64_t site, sample;
    int64_t inner; /* elements of one sample */
    uint32_t threshold;
    float scale;
} dropout_job;

/* The words of groups g, g+1, … of a sample; out[4*i + w]. */
static void block_words(const dropout_job *j, uint64_t sample, uint64_t g, int groups,
                        uint32_t *restrict out) {
    uint32_t k0 = (uint32_t)j->site;
    uint32_t k1 = (uint32_t)(j->site >> 32) ^ TP_RNG_DROPOUT * 0x9E3779B9u; /* as tp_philox does */
    for (int i = 0; i < groups; i++) {
        uint64_t at = g + (uint64_t)i;
        uint32_t c[4] = {(uint32_t)at, (uint32_t)(at >> 32), (uint32_t)sample,
                         (uint32_t)(sample >> 32)};
        dropout_words(k0, k1, c);
        for (int w = 0; w < 4; w++) out[4 * i + w] = c[w];
    }
}

static void dropout_run(const tp_run *r) {
    const dropout_job *j = r->attr;
    const float *restrict x = r->in[0];
    float *restrict y = r->out[0];
    uint32_t word[4 * GROUPS];
    int64_t n;
    for (int64_t i = 0; i < r->n; i += n) {
        int64_t at = (r->at + i) % j->inner, skip = at % 4;
        n = 4 * GROUPS - skip;
        if (n > j->inner - at) n = j->inner - at;
        if (n > r->n - i) n = r->n - i;
        uint64_t sample = j->sample + (uint64_t)((r->at + i) / j->inner);
        block_words(j, sample, (uint64_t)(at / 4), (int)((skip + n + 3) / 4), word);
        for (int64_t e = 0; e < n; e++)
            y[i + e] = dropout_f(x[i + e], word[skip + e], j->threshold, j->scale);
    }
}

static tp_status dropout_all(const tp_call *k) {
    const dropout_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    uint32_t key[4];
    tp_philox(key, a->seed, TP_RNG_DROPOUT, a->step, a->stream);
    int64_t samples = x->ndim ? x->shape[0] : 1;
    dropout_job j = {.site = (uint64_t)key[1] << 32 | key[0],
                     .sample = a->sample,
                     .inner = samples ? tp_numel(x) / samples : 1,
                     .threshold = dropout_threshold(a->p_drop),
                     .scale = (float)(1 / (1 - a->p_drop))};
    tp_call with_job = *k;
    with_job.attr = &j;
    tp_elementwise(&with_job, 1, k->out, dropout_run);
    return TP_OK;
}
TP_CPU_KERNEL(dropout_cpu, .decline = tp_decline_unless_f32, .run = dropout_all);
