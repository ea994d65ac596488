/* Attention as textbooks write it: for one query all scores, their softmax, the weighted mean of
 * the values. Kept to be read and to test the tiled kernel against; it is slow and rounds
 * differently. */
#include "ops/attention/attention_math.h"
#include "core/team.h"
#include "ops/attention/attention_problem.h"

typedef struct naive {
    const tp_call *call;
    attention_problem p;
} naive;

static float at(const tp_tensor *x, int64_t b, int64_t t, int64_t h, int64_t d) {
    return tp_f32(x)[b * x->stride[0] + t * x->stride[1] + h * x->stride[2] + d * x->stride[3]];
}

/* w: room for S weights. */
static void naive_row(const naive *n, float *w, int64_t b, int64_t h, int64_t t) {
    const attention_problem *p = &n->p;
    const tp_tensor *q = n->call->in[ATTENTION_Q], *k = n->call->in[ATTENTION_K];
    const tp_tensor *v = n->call->in[ATTENTION_V];
    float *o = tp_f32(n->call->out[0]) + ((b * p->T + t) * p->H + h) * p->Dv;
    float *lse = tp_f32(n->call->out[1]) + (b * p->H + h) * p->T + t;
    float top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < p->S; j++) {
        w[j] = -INFINITY;
        if (!attention_sees(p, b, t, j)) continue;
        float s = 0;
        for (int64_t d = 0; d < p->D; d++) s += at(q, b, t, h, d) * at(k, b, j, h / p->G, d);
        s *= (float)p->scale;
        w[j] = p->softcap > 0 ? attention_softcap(s, (float)p->softcap) : s;
        top = w[j] > top ? w[j] : top;
    }
    for (int64_t j = 0; j < p->S; j++) {
        w[j] = attention_sees(p, b, t, j) ? attention_weight(w[j], top) : 0;
        sum += w[j];
    }
    for (int64_t d = 0; d < p->Dv; d++) {
        o[d] = 0;
        for (int64_t j = 0; j < p->S; j++)
            if (attention_sees(p, b, t, j)) o[d] += w[j] / sum * at(v, b, j, h / p->G, d);
    }
    *lse = sum == 0 ? -INFINITY : top + tp_logf(sum);
}

static void naive_range(void *arg, int64_t begin, int64_t end) {
    const naive *n = arg;
    int64_t H = n->p.H, T = n->p.T;
    float *w = (float *)n->call->workspace + tp_slot() * n->p.S;
    for (int64_t i = begin; i < end; i++) naive_row(n, w, i / T / H, i / T % H, i % T);
}

static size_t naive_workspace(const tp_call *k) {
    return (size_t)k->in[ATTENTION_K]->shape[1] * sizeof(float) * (size_t)tp_threads(k->ctx);
}

static tp_status naive_run(const tp_call *k) {
    naive n = {k, attention_problem_of(k, k->in[ATTENTION_SEGMENTS], k->in[ATTENTION_STARTS])};
    tp_parallel_for(k->ctx, n.p.B * n.p.H * n.p.T, 16, naive_range, &n);
    return TP_OK;
}

TP_CPU_KERNEL(attention_naive_cpu, .decline = tp_decline_unless_f32, .run = naive_run,
              .workspace = naive_workspace);
