/* A call of paged_attention in the terms of attention's CUDA kernels, which run it. */
#ifndef TP_PAGED_ATTENTION_CUDA_H
#define TP_PAGED_ATTENTION_CUDA_H
#include "ops/attention/attention_cuda.h"
#include "ops/paged_attention/paged_attention_problem.h"

static inline attention_params paged_params_of(const tp_call *k) {
    const attention_problem x = paged_attention_problem(k);
    attention_params p = {};
    p.q = attention_rows_of(k->in[0]);
    p.k = attention_rows_of(k->in[1]);
    p.v = attention_rows_of(k->in[2]);
    p.o = k->out[0]->data;
    p.lse = tp_f32(k->out[1]);
    p.B = (int)x.B, p.T = (int)x.T, p.S = (int)x.S, p.H = (int)x.H, p.Hkv = (int)x.Hkv;
    p.G = (int)x.G, p.D = (int)x.D, p.Dv = (int)x.Dv;
    p.causal = true, p.window = x.window;
    p.scale = (float)x.scale, p.softcap = (float)x.softcap;
    p.pages = tp_i32(x.pages);
    p.pages_b = x.pages->stride[0], p.pages_i = x.pages->stride[1];
    p.page = (int)x.page, p.sinks = attention_clamp(x.sinks, 0, INT32_MAX);
    return p;
}

/* Checks tables and starts on the device and makes p->starts, in the workspace: a sequence that
 * does not lie in its pages, or whose pages do not lie in the pool, is reported (value b n + i is
 * pages[b,i], value B n + b is starts[b]) and given a place where it sees no key. */
tp_status paged_attention_check_cuda(const tp_call *k, attention_params *p);
static inline size_t paged_workspace(const tp_call *k) {
    return (size_t)k->in[0]->shape[0] * sizeof(int32_t);
}

static inline const char *paged_decline_sizes(const tp_call *k) {
    const int64_t n = k->in[PAGED_PAGES]->shape[1], page = k->in[1]->shape[1];
    return n > (1 << 29) / page ? "a table of more than 2^29 keys" : NULL;
}
#endif
