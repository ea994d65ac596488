/* Sizes of a call of token_logprob, and its set of tokens. */
#ifndef TP_TOKEN_LOGPROB_ROW_H
#define TP_TOKEN_LOGPROB_ROW_H
#include "ops/convert.h"
#include "ops/op.h"

typedef struct token_attr {
    double softcap, temperature;
} token_attr;
enum { TOKEN_LOGITS, TOKEN_TARGETS, TOKEN_SET, TOKEN_LSE, TOKEN_A, TOKEN_B, TOKEN_D };
enum { TOKEN_IGNORE = -100 };

static inline int64_t token_target(const tp_call *k, int64_t i) {
    return tp_i32(k->in[TOKEN_TARGETS])[tp_offset(k->in[TOKEN_TARGETS], i)];
}
static inline bool token_in_set(const tp_call *k, int64_t i, int64_t v) {
    const tp_tensor *set = k->in[TOKEN_SET];
    if (!set) return true;
    int64_t words = set->shape[set->ndim - 1];
    return (uint32_t)tp_i32(set)[tp_offset(set, i * words + v / 32)] >> (v % 32) & 1;
}
/* token_logprob.c: refuses a target that is neither ignored nor in the vocabulary and the set. */
tp_status token_check_targets(const tp_call *k);
#endif
