/* Owns the choice of the next token: penalty, temperature, top-k, top-p, min-p, then one draw. */
#include "infer/infer.h"
#include <math.h>
#include <stdlib.h>

typedef struct candidate {
    double score; /* logit, later probability */
    int32_t id;
} candidate;
struct tp_sampler {
    int64_t vocab;
    candidate *all;
    bool *seen;
};

const char *tp_sampling_problem(const tp_sampling *s) {
    if (!(s->temperature >= 0 && isfinite(s->temperature))) return "temperature must be 0 or more";
    if (s->top_k < 0) return "top_k must be 0 (off) or more";
    if (!(s->top_p > 0 && s->top_p <= 1)) return "top_p must be above 0 and at most 1";
    if (!(s->min_p >= 0 && s->min_p <= 1)) return "min_p must be between 0 and 1";
    if (!(s->repetition_penalty > 0 && isfinite(s->repetition_penalty)))
        return "repetition_penalty must be above 0";
    return NULL;
}

tp_status tp_sampler_new(tp_sampler **out, tp_ctx *c, int64_t vocab) {
    *out = NULL;
    tp_sampler *s = tp_calloc(c, 1, sizeof *s);
    if (!s) return tp_error_status(c);
    s->vocab = vocab;
    s->all = tp_calloc(c, (size_t)vocab, sizeof *s->all);
    s->seen = tp_calloc(c, (size_t)vocab, sizeof *s->seen);
    if (!s->all || !s->seen) {
        tp_sampler_free(s);
        return tp_error_status(c);
    }
    *out = s;
    return TP_OK;
}

void tp_sampler_free(tp_sampler *s) {
    if (!s) return;
    tp_free(s->all);
    tp_free(s->seen);
    tp_free(s);
}

static int by_score(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static void penalise(tp_sampler *s, double penalty, const int32_t *history, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int32_t id = history[i];
        if (id < 0 || id >= s->vocab || s->seen[id]) continue;
        s->seen[id] = true;
        double *x = &s->all[id].score;
        *x = *x > 0 ? *x / penalty : *x * penalty;
    }
    for (int64_t i = 0; i < n; i++)
        if (history[i] >= 0 && history[i] < s->vocab) s->seen[history[i]] = false;
}

/* Sorted scores become weights of the first `keep` candidates; returns how many remain. */
static int64_t filter(tp_sampler *s, const tp_sampling *how) {
    int64_t keep = s->vocab;
    candidate *a = s->all;
    if (how->top_k > 0 && how->top_k < keep) keep = how->top_k;
    double top = a[0].score, sum = 0;
    for (int64_t i = 0; i < keep; i++) {
        a[i].score = exp((a[i].score - top) / how->temperature);
        sum += a[i].score;
    }
    if (how->top_p < 1) {
        double mass = 0;
        int64_t i = 0;
        while (i < keep && mass < how->top_p * sum) mass += a[i++].score;
        keep = i;
    }
    if (how->min_p > 0) {
        int64_t i = 1;
        while (i < keep && a[i].score >= how->min_p * a[0].score) i++;
        keep = i;
    }
    return keep;
}

tp_status tp_sample_token(tp_ctx *c, tp_sampler *s, const tp_sampling *how, const float *logits,
                          const int32_t *history, int64_t n, uint64_t sequence, int32_t *token,
                          double *logprob) {
    const char *problem = tp_sampling_problem(how);
    if (problem) return tp_fail(c, TP_EARG, "sampling: %s", problem);
    for (int64_t i = 0; i < s->vocab; i++) {
        if (isnan(logits[i]))
            return tp_fail(c, TP_ENUMERIC, "sampling: the logit of token %lld is not a number",
                           (long long)i);
        s->all[i] = (candidate){logits[i], (int32_t)i};
    }
    if (how->repetition_penalty != 1) penalise(s, how->repetition_penalty, history, n);
    if (how->temperature == 0) {
        const candidate *best = s->all;
        for (int64_t i = 1; i < s->vocab; i++)
            if (s->all[i].score > best->score) best = &s->all[i];
        *token = best->id;
        if (logprob) *logprob = 0;
        return TP_OK;
    }
    qsort(s->all, (size_t)s->vocab, sizeof *s->all, by_score);
    int64_t keep = filter(s, how);
    double sum = 0, at = 0;
    for (int64_t i = 0; i < keep; i++) sum += s->all[i].score;
    double draw = sum * tp_uniform(how->seed, TP_RNG_SAMPLE, sequence, (uint64_t)n);
    int64_t i = 0;
    for (; i < keep - 1; i++)
        if ((at += s->all[i].score) > draw) break;
    *token = s->all[i].id;
    if (logprob) *logprob = log(s->all[i].score / sum);
    return TP_OK;
}
