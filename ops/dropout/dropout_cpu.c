/* dropout on the CPU: random words for a block of elements, then one pass over it. */
#include "ops/dropout/dropout_math.h"
#include "ops/elementwise.h"

enum { GROUPS = 64 }; /* of four words: 1 KB on the stack */

/* The words of groups g, g+1, … of a sample; out[4*i + w]. */
static void block_words(const dropout_mask *m, uint64_t sample, uint64_t g, int groups,
                        uint32_t *restrict out) {
    uint32_t k0 = m->k0, k1 = m->k1;
    for (int i = 0; i < groups; i++) {
        uint32_t c[4];
        dropout_group(k0, k1, sample, g + (uint64_t)i, c);
        for (int w = 0; w < 4; w++) out[4 * i + w] = c[w];
    }
}

static void dropout_run(const tp_run *r) {
    const dropout_mask *m = r->attr;
    const float *restrict x = r->in[0];
    float *restrict y = r->out[0];
    uint32_t word[4 * GROUPS];
    int64_t n;
    for (int64_t i = 0; i < r->n; i += n) {
        int64_t at = (r->at + i) % m->inner, skip = at % 4;
        n = 4 * GROUPS - skip;
        if (n > m->inner - at) n = m->inner - at;
        if (n > r->n - i) n = r->n - i;
        uint64_t sample = m->sample + (uint64_t)((r->at + i) / m->inner);
        block_words(m, sample, (uint64_t)(at / 4), (int)((skip + n + 3) / 4), word);
        for (int64_t e = 0; e < n; e++)
            y[i + e] = dropout_f(x[i + e], word[skip + e], m->threshold, m->scale);
    }
}

static tp_status dropout_all(const tp_call *k) {
    dropout_mask m = dropout_mask_of(k);
    tp_call with_mask = *k;
    with_mask.attr = &m;
    tp_elementwise(&with_mask, 1, k->out, dropout_run);
    return TP_OK;
}
TP_CPU_KERNEL(dropout_cpu, .decline = tp_decline_unless_f32, .run = dropout_all);
