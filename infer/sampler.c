/* Owns the choice of the next token: penalty, temperature, top-k, top-p, min-p, then one draw.
 *
 * Only the tokens that a filter keeps are ever put in order: a heap gives up the most likely ones
 * until the filters are satisfied. Without filters nothing is sorted. Weights are Tapir's own
 * exponential, not libm's, whose last bit depends on the machine: a draw must not. */
#include "infer/infer.h"
#include "ops/math.h"
#include "ops/softmax/softmax_weights.h"
#include <math.h>
#include <string.h>

/* Weights are summed in blocks, a block in lanes: an order that compilers can vectorise, and a draw
 * walks the tokens of one block only. */
enum { BLOCK = 64, LANES = 8 };

typedef struct candidate {
    float score; /* logit */
    int32_t id;
} candidate;
struct tp_sampler {
    int64_t vocab;
    float *score; /* logits, penalised */
    candidate *heap;
    float *weight; /* by id where all are kept; else of the candidates kept, by their order */
    double *block; /* sums of weights by id */
    bool *seen;
};

const char *tp_sampling_problem(const tp_sampling *s) {
    if (!(s->temperature >= 0 && isfinite(s->temperature))) return "temperature must be 0 or more";
    /* in float 1e-46 is 0, and logits divided by what is just above it are no numbers */
    if (s->temperature > 0 && s->temperature < 1e-30)
        return "temperature must be 0, for the most likely token, or at least 1e-30";
    if (s->top_k < 0) return "top_k must be 0 (off) or more";
    if (!(s->top_p > 0 && s->top_p <= 1)) return "top_p must be above 0 and at most 1";
    if (!(s->min_p >= 0 && s->min_p <= 1)) return "min_p must be between 0 and 1";
    if (!(s->repetition_penalty > 0 && isfinite(s->repetition_penalty)))
        return "repetition_penalty must be above 0";
    return NULL;
}

bool tp_sampling_truncates(const tp_sampling *s) {
    return s->temperature > 0 && (s->top_k > 0 || s->top_p < 1 || s->min_p > 0);
}

tp_status tp_sampler_new(tp_sampler **out, tp_ctx *c, int64_t vocab) {
    *out = NULL;
    tp_sampler *s = tp_calloc(c, 1, sizeof *s);
    if (!s) return tp_error_status(c);
    s->vocab = vocab;
    s->score = tp_calloc(c, (size_t)vocab, sizeof *s->score);
    s->heap = tp_calloc(c, (size_t)vocab, sizeof *s->heap);
    s->weight = tp_calloc(c, (size_t)vocab, sizeof *s->weight);
    s->block = tp_calloc(c, (size_t)((vocab + BLOCK - 1) / BLOCK), sizeof *s->block);
    s->seen = tp_calloc(c, (size_t)vocab, sizeof *s->seen);
    if (!s->score || !s->heap || !s->weight || !s->block || !s->seen) {
        tp_sampler_free(s);
        return tp_error_status(c);
    }
    *out = s;
    return TP_OK;
}

void tp_sampler_free(tp_sampler *s) {
    if (!s) return;
    tp_free(s->score);
    tp_free(s->heap);
    tp_free(s->weight);
    tp_free(s->block);
    tp_free(s->seen);
    tp_free(s);
}

static void penalise(tp_sampler *s, float penalty, const int32_t *history, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int32_t id = history[i];
        if (id < 0 || id >= s->vocab || s->seen[id]) continue;
        s->seen[id] = true;
        float *x = &s->score[id];
        *x = *x > 0 ? *x / penalty : *x * penalty;
    }
    for (int64_t i = 0; i < n; i++)
        if (history[i] >= 0 && history[i] < s->vocab) s->seen[history[i]] = false;
}

/* ---- the heap: most likely first, lower id among equals ------------------------------------- */
static bool before(candidate a, candidate b) {
    return a.score != b.score ? a.score > b.score : a.id < b.id;
}

static void sink(candidate *h, int64_t n, int64_t i) {
    candidate x = h[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(h[child + 1], h[child])) child++;
        if (!before(h[child], x)) break;
        h[i] = h[child];
    }
    h[i] = x;
}

/* The next most likely goes to the end of the heap, behind the n that are left. */
static void pop(candidate *h, int64_t *n) {
    candidate top = h[0];
    h[0] = h[--*n];
    h[*n] = top;
    if (*n) sink(h, *n, 0);
}

/* ---- weights ------------------------------------------------------------------------------- */
static float weight_of(float score, float top, float temperature) {
    return tp_expf((score - top) / temperature);
}

static float highest(const tp_sampler *s) {
    float lane[LANES]; /* no NaN gets here */
    for (int j = 0; j < LANES; j++) lane[j] = -INFINITY;
    for (int64_t i = 0; i + LANES <= s->vocab; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] = s->score[i + j] > lane[j] ? s->score[i + j] : lane[j];
    for (int64_t i = s->vocab - s->vocab % LANES; i < s->vocab; i++)
        if (s->score[i] > lane[0]) lane[0] = s->score[i];
    for (int j = 1; j < LANES; j++)
        if (lane[j] > lane[0]) lane[0] = lane[j];
    return lane[0];
}

static double sum_block(const float *w, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += (double)w[i + j];
    for (int j = 0; i + j < n; j++) lane[j] += (double)w[i + j];
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

/* Of all tokens, by id; returns their sum. */
static double weigh_all(tp_ctx *c, tp_sampler *s, float top, float temperature) {
    double sum = 0;
    tp_softmax_weights(c, s->weight, s->score, s->vocab, top, temperature);
    for (int64_t at = 0; at < s->vocab; at += BLOCK) {
        int64_t n = s->vocab - at < BLOCK ? s->vocab - at : BLOCK;
        sum += s->block[at / BLOCK] = sum_block(s->weight + at, n);
    }
    return sum;
}

/* ---- the filters ---------------------------------------------------------------------------- */
/* Pops what is kept; the i-th is then heap[vocab-1-i], with weight[i]. Returns how many. */
static int64_t filter(tp_ctx *c, tp_sampler *s, const tp_sampling *how) {
    int64_t V = s->vocab, left = V, most = how->top_k > 0 && how->top_k < V ? how->top_k : V;
    candidate *h = s->heap;
    for (int64_t i = 0; i < V; i++) h[i] = (candidate){s->score[i], (int32_t)i};
    for (int64_t i = V / 2 - 1; i >= 0; i--) sink(h, V, i);
    float top = h[0].score, temperature = (float)how->temperature;
    double mass = 0, sum = 0;
    /* of all, by id: the heap's order is no order to sum in */
    if (most == V && how->top_p < 1) sum = weigh_all(c, s, top, temperature);
    int64_t kept = 0;
    bool later = most < V && how->top_p < 1; /* top-p goes before min-p, and needs all k */
    while (kept < most) {
        float w = weight_of(h[0].score, top, temperature);
        if (!later && kept && how->min_p > 0 && (double)w < how->min_p) break;
        if (most == V && how->top_p < 1 && mass >= how->top_p * sum) break;
        s->weight[kept++] = w;
        mass += (double)w;
        pop(h, &left);
    }
    if (later) { /* the probabilities of the k */
        sum = mass;
        mass = 0;
        int64_t i = 0;
        while (i < kept && mass < how->top_p * sum) mass += (double)s->weight[i++];
        kept = i;
        while (kept > 1 && how->min_p > 0 && (double)s->weight[kept - 1] < how->min_p) kept--;
    }
    return kept;
}

static void mark(int32_t *set, int32_t id) {
    set[id / 32] = (int32_t)((uint32_t)set[id / 32] | (uint32_t)1 << (id % 32));
}

static double uniform(const tp_sampling *how, tp_draw d) {
    return tp_uniform(how->seed, TP_RNG_SAMPLE, (uint64_t)d.step << 32 | d.prompt,
                      (uint64_t)d.sample << 32 | d.position);
}

static int32_t most_likely(const tp_sampler *s) {
    int64_t best = 0;
    for (int64_t i = 1; i < s->vocab; i++)
        if (s->score[i] > s->score[best]) best = i;
    return (int32_t)best;
}

/* By id: no order is needed where all are kept. */
static int32_t draw_any(tp_ctx *c, tp_sampler *s, const tp_sampling *how, tp_draw d) {
    double sum = weigh_all(c, s, highest(s), (float)how->temperature), at = 0;
    double to = sum * uniform(how, d);
    int64_t block = 0, blocks = (s->vocab + BLOCK - 1) / BLOCK;
    int64_t last = 0; /* a token with weight, if rounding leaves `to` at the very end */
    for (; block < blocks && at + s->block[block] <= to; block++) at += s->block[block];
    if (block == blocks)
        for (block--; s->block[block] == 0;) block--;
    for (int64_t i = block * BLOCK; i < s->vocab && i < (block + 1) * BLOCK; i++) {
        if (s->weight[i] == 0) continue;
        last = i;
        if ((at += (double)s->weight[i]) > to) break;
    }
    return (int32_t)last;
}

static int32_t draw_kept(tp_ctx *c, tp_sampler *s, const tp_sampling *how, tp_draw d,
                         int32_t *set) {
    int64_t kept = filter(c, s, how), i = 0;
    const candidate *first = s->heap + s->vocab - 1;
    double sum = 0, at = 0;
    for (int64_t j = 0; j < kept; j++) {
        sum += (double)s->weight[j];
        if (set) mark(set, first[-j].id);
    }
    double to = sum * uniform(how, d);
    for (; i < kept - 1; i++)
        if ((at += (double)s->weight[i]) > to) break;
    return first[-i].id;
}

tp_status tp_sample_token(tp_ctx *c, tp_sampler *s, const tp_sampling *how, const float *logits,
                          const int32_t *history, int64_t n, tp_draw d, int32_t *token,
                          int32_t *set) {
    const char *problem = tp_sampling_problem(how);
    if (problem) return tp_fail(c, TP_EARG, "sampling: %s", problem);
    bool all_numbers = true;
    for (int64_t i = 0; i < s->vocab; i++) all_numbers &= logits[i] == logits[i];
    for (int64_t i = 0; !all_numbers && i < s->vocab; i++)
        if (isnan(logits[i]))
            return tp_fail(c, TP_ENUMERIC, "sampling: the logit of token %lld is not a number",
                           (long long)i);
    memcpy(s->score, logits, (size_t)s->vocab * sizeof *s->score);
    if (how->repetition_penalty != 1) penalise(s, (float)how->repetition_penalty, history, n);
    bool truncates = tp_sampling_truncates(how);
    if (set) memset(set, truncates ? 0 : -1, (size_t)((s->vocab + 31) / 32) * sizeof *set);
    if (how->temperature == 0)
        *token = most_likely(s);
    else
        *token = truncates ? draw_kept(c, s, how, d, set) : draw_any(c, s, how, d);
    return TP_OK;
}
