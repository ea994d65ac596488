/* What a call of attention asks for, read once from tensors and attributes, and the one place that
 * says which key a query sees. Oracle and kernels, forward and backward, all start here. */
#ifndef TP_ATTENTION_PROBLEM_H
#define TP_ATTENTION_PROBLEM_H
#include "ops/op.h"
#include <math.h>

/* The attributes of attention and attention_backward. */
typedef struct attention_attr {
    bool causal, q_offset_given;
    int64_t q_offset, window;
    double scale, softcap;
} attention_attr;

enum { ATTENTION_Q, ATTENTION_K, ATTENTION_V, ATTENTION_SEGMENTS, ATTENTION_STARTS };
enum { /* the backward's own numbering */
       BACKWARD_Q,
       BACKWARD_K,
       BACKWARD_V,
       BACKWARD_O,
       BACKWARD_LSE,
       BACKWARD_DO,
       BACKWARD_SEGMENTS,
       BACKWARD_DLSE
};

typedef struct attention_problem {
    int64_t B, T, S, H, Hkv, D, Dv;
    int64_t G;        /* query heads per key head */
    int64_t q_offset; /* position of query 0 */
    int64_t window;   /* huge if there is none, so that one comparison serves */
    bool causal;
    double scale, softcap;
    int64_t sinks; /* the first keys stay visible whatever the window */
    const tp_tensor *segments, *starts;
    const tp_tensor *pages; /* i32 (B,n): key and value lie in pages of a pool; NULL: one buffer */
    int64_t page;           /* rows of a page */
} attention_problem;

static inline attention_problem attention_problem_of(const tp_call *k, const tp_tensor *segments,
                                                     const tp_tensor *starts) {
    const tp_tensor *q = k->in[0], *key = k->in[1], *v = k->in[2];
    const attention_attr *a = (const attention_attr *)k->attr;
    attention_problem p = {
        .B = q->shape[0],
        .T = q->shape[1],
        .S = key->shape[1],
        .H = q->shape[2],
        .Hkv = key->shape[2],
        .D = q->shape[3],
        .Dv = v->shape[3],
    };
    p.G = p.Hkv ? p.H / p.Hkv : 1; /* no heads: never divided by */
    p.q_offset = a->q_offset_given ? a->q_offset : p.S - p.T;
    p.window = a->window > 0 ? a->window : INT64_MAX / 4;
    p.causal = a->causal;
    p.scale = a->scale != 0 ? a->scale : p.D ? 1 / sqrt((double)p.D) : 1;
    p.softcap = a->softcap;
    p.segments = segments;
    p.starts = starts;
    return p;
}

/* attention.c: what both ops demand of q, k, v, the segments (input number `segments`) and the
 * attributes, and the number of (query, key) pairs that positions leave visible. */
tp_status attention_check(const tp_call *k, int segments);
double attention_pairs(const attention_problem *p);
extern const tp_attr attention_attrs[];

/* The position of query t of sequence b. */
static inline int64_t attention_position(const attention_problem *p, int64_t b, int64_t t) {
    return t + (p->starts ? tp_i32(p->starts)[b * p->starts->stride[0]] : p->q_offset);
}

/* Position alone shows a query the keys [*lo, *hi); segments may hide some of them. */
static inline void attention_range(const attention_problem *p, int64_t position, int64_t *lo,
                                   int64_t *hi) {
    *lo = position - p->window + 1 > 0 ? position - p->window + 1 : 0;
    *hi = p->causal && position + 1 < p->S ? position + 1 : p->S;
}

static inline int32_t attention_segment(const attention_problem *p, int64_t b, int64_t t) {
    const tp_tensor *s = p->segments;
    return s ? tp_i32(s)[b * s->stride[0] + t * s->stride[1]] : 0;
}

/* Whether query t of sequence b sees key j. */
static inline bool attention_sees(const attention_problem *p, int64_t b, int64_t t, int64_t j) {
    int64_t lo, hi;
    attention_range(p, attention_position(p, b, t), &lo, &hi);
    return j >= lo && j < hi && attention_segment(p, b, t) == attention_segment(p, b, j);
}
#endif
