/* What a call of paged_attention asks for, in the terms of attention, whose kernel does it. */
#ifndef TP_PAGED_ATTENTION_PROBLEM_H
#define TP_PAGED_ATTENTION_PROBLEM_H
#include "ops/attention/attention_problem.h"

typedef struct paged_attr {
    int64_t window, sinks;
    double scale, softcap;
} paged_attr;
enum { PAGED_PAGES = 3, PAGED_STARTS }; /* in[0..2] as in attention */
extern const tp_op op_paged_attention;
/* Refuses tables and starts that do not lie in the pool. */
tp_status paged_attention_check(const tp_call *k);

static inline attention_problem paged_attention_problem(const tp_call *k) {
    const tp_tensor *q = k->in[0], *key = k->in[1], *pages = k->in[PAGED_PAGES];
    const paged_attr *a = (const paged_attr *)k->attr;
    attention_problem p = {
        .B = q->shape[0],
        .T = q->shape[1],
        .S = pages->shape[1] * key->shape[1],
        .H = q->shape[2],
        .Hkv = key->shape[2],
        .D = q->shape[3],
        .Dv = q->shape[3],
        .window = a->window > 0 ? a->window : INT64_MAX / 4,
        .causal = true,
        .softcap = a->softcap,
        .sinks = a->sinks,
        .starts = k->in[PAGED_STARTS],
        .pages = pages,
        .page = key->shape[1],
    };
    p.G = p.Hkv ? p.H / p.Hkv : 1; /* no heads: never divided by */
    p.scale = a->scale != 0 ? a->scale : p.D ? 1 / sqrt((double)p.D) : 1;
    return p;
}

/* Whether the query at this position sees key j. */
static inline bool paged_sees(const attention_problem *p, int64_t position, int64_t j) {
    int64_t lo, hi;
    attention_range(p, position, &lo, &hi);
    return j < hi && (j >= lo || j < p->sinks);
}
#endif
