/* paged_attention: attention of new tokens over a key-value cache that lies in pages (Kwon et al.,
 * arXiv 2309.06180), for decoding and for prompts in chunks. */
#ifndef TP_PAGED_ATTENTION_H
#define TP_PAGED_ATTENTION_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_paged_attention_opts {
    int64_t window; /* > 0: a query sees only keys less than this many positions behind it … */
    int64_t sinks;  /* … and always the first `sinks` keys (Xiao et al., arXiv 2309.17453) */
    double scale;   /* 0: 1/sqrt(D) */
    double softcap; /* > 0: scores become softcap*tanh(score/softcap) */
} tp_paged_attention_opts;

/* q (B,T,H,D); key, value (P,page,Hkv,D) pools, page a multiple of 16; pages i32 (B,n): key j of
 * sequence b is row j % page of page pages[b, j / page]; starts i32 (B): query t of sequence b
 * stands at position starts[b] + t and sees the keys up to its own -> (B,T,H,D). The cache must
 * hold those keys already (finite ones, also where only another query of the call sees them), and
 * what lies behind them never counts. A query has the bits that
 * tp_attention gives it in a forward pass over the whole sequence. No gradient. */
tp_tensor *tp_paged_attention(tp_ctx *c, tp_tensor *q, tp_tensor *key, tp_tensor *value,
                              tp_tensor *pages, tp_tensor *starts,
                              const tp_paged_attention_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
