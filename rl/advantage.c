/* Owns advantages, token weights and the other numbers that rewards become. */
#include "rl/advantage.h"
#include <math.h>
#include <stdlib.h>

static const double std_epsilon = 1e-4;

/* ---- rewards -------------------------------------------------------------------------------- */
double tp_weighted_reward(const double *reward, const double *weight, int64_t K) {
    double sum = 0;
    bool any = false;
    for (int64_t k = 0; k < K; k++) {
        if (isnan(reward[k])) continue;
        sum += weight[k] * reward[k];
        any = true;
    }
    return any ? sum : NAN;
}

bool tp_group_varies(const double *reward, int64_t G) {
    double first = NAN;
    for (int64_t i = 0; i < G; i++) {
        if (isnan(reward[i])) continue;
        if (isnan(first)) first = reward[i];
        if (reward[i] != first) return true;
    }
    return false;
}

typedef struct moments {
    double n, mean, std; /* std: ddof 1; 0 where n < 2 */
} moments;

/* In two passes, so that nothing cancels. */
static moments moments_of(const double *x, int64_t n) {
    moments m = {0};
    double squares = 0;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(x[i])) m.n++, m.mean += x[i];
    if (m.n > 0) m.mean /= m.n;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(x[i])) squares += (x[i] - m.mean) * (x[i] - m.mean);
    if (m.n > 1) m.std = sqrt(squares / (m.n - 1));
    return m;
}

/* lesson: advantages */
void tp_advantages(const double *reward, int64_t groups, int64_t G, const tp_advantage_opts *o,
                   float *advantage) {
    moments all = moments_of(reward, groups * G);
    for (int64_t g = 0; g < groups; g++) {
        const double *r = reward + g * G;
        moments m = moments_of(r, G);
        bool varies = tp_group_varies(r, G);
        double scale = o->scale == TP_SCALE_GROUP   ? m.std + std_epsilon
                       : o->scale == TP_SCALE_BATCH ? all.std + std_epsilon
                                                    : 1;
        double factor = (o->rloo && m.n > 1 ? m.n / (m.n - 1) : 1) / scale;
        for (int64_t i = 0; i < G; i++)
            advantage[g * G + i] =
                varies && !isnan(r[i]) ? (float)((r[i] - m.mean) * factor) : 0.0f;
    }
}
/* end */

double tp_overlong_punishment(int64_t length, int64_t max_length, int64_t buffer) {
    int64_t over = length - (max_length - buffer);
    if (buffer <= 0 || over <= 0) return 0;
    return over >= buffer ? -1 : -(double)over / (double)buffer;
}

double tp_pass_at_k(int64_t n, int64_t c, int64_t k) {
    double none = 1; /* product over the k drawn of (wrong left)/(left) */
    if (n - c < k) return 1;
    for (int64_t i = 0; i < k; i++) none *= (double)(n - c - i) / (double)(n - i);
    return 1 - none;
}

/* ---- weights -------------------------------------------------------------------------------- */
static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

float tp_quantile(float *x, int64_t n, double q) {
    if (n < 1) return 0;
    qsort(x, (size_t)n, sizeof *x, by_value);
    double at = q * (double)(n - 1);
    int64_t lo = (int64_t)at, hi = lo + 1 < n ? lo + 1 : lo;
    return (float)((double)x[lo] + (at - (double)lo) * ((double)x[hi] - (double)x[lo]));
}

static bool masked(const tp_completions *a, int64_t i, const tp_weight_opts *o) {
    return o->mask_truncated && !a->ended[i];
}

static int64_t tokens(const tp_completions *a, int64_t first, int64_t rows,
                      const tp_weight_opts *o) {
    int64_t n = 0;
    for (int64_t i = first; i < first + rows; i++) n += masked(a, i, o) ? 0 : a->n[i];
    return n;
}

/* Tokens below this entropy weigh nothing. The threshold is the whole step's. */
static tp_status entropy_threshold(tp_ctx *c, const tp_completions *a, const tp_weight_opts *o,
                                   float *threshold) {
    *threshold = -INFINITY;
    if (o->top_entropy_quantile >= 1) return TP_OK;
    int64_t n = tokens(a, 0, a->rows, o), at = 0;
    float *all = tp_malloc(c, (size_t)(n + 1) * sizeof *all);
    if (!all) return tp_error_status(c);
    for (int64_t i = 0; i < a->rows; i++)
        for (int64_t t = 0; t < a->n[i] && !masked(a, i, o); t++)
            all[at++] = a->entropy[i * a->width + t];
    *threshold = tp_quantile(all, n, 1 - o->top_entropy_quantile);
    tp_free(all);
    return TP_OK;
}

tp_status tp_token_weights(tp_ctx *c, const tp_completions *a, int64_t first, int64_t rows,
                           int64_t minibatches, const tp_weight_opts *o, float *weight) {
    float threshold;
    tp_status st = entropy_threshold(c, a, o, &threshold);
    if (st) return st;
    double here = (double)tokens(a, first, rows, o);
    double whole = (double)tokens(a, 0, a->rows, o) / (double)minibatches;
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = first + i, n = masked(a, at, o) ? 0 : a->n[at];
        double each = o->type == TP_LOSS_GRPO   ? 1 / ((double)rows * (double)n)
                      : o->type == TP_LOSS_BNPO ? 1 / here
                      : o->type == TP_LOSS_DAPO ? 1 / whole
                                                : 1 / ((double)rows * (double)o->max_length);
        for (int64_t t = 0; t < a->width; t++) {
            bool counts =
                t < n && (threshold == -INFINITY || a->entropy[at * a->width + t] >= threshold);
            weight[i * a->width + t] = counts ? (float)each : 0.0f;
        }
    }
    return TP_OK;
}
