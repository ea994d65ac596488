/* A model's parameters as a table: what optimisers, checkpoints and `tapir hash` walk over. */
#ifndef TP_PARAM_H
#define TP_PARAM_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

enum {
    TP_P_DECAY = 1,  /* weight decay applies */
    TP_P_MATRIX = 2, /* a 2-D weight between hidden layers: Muon's */
    TP_P_EMBED = 4,  /* an embedding table */
    TP_P_HEAD = 8,   /* the output head */
    TP_P_LORA = 16,  /* of a low-rank adapter */
    TP_P_ROUTE = 32  /* decides which tokens a routed block takes */
};
typedef struct tp_param {
    const char *name; /* Hugging Face's name, "transformer.h.0.attn.c_attn.weight" */
    tp_tensor *t;     /* f32; t->grad is its gradient, NULL while there is none */
    unsigned flags;
    int blocks;     /* a fused matrix is this many side by side along its output dimension */
    bool out_first; /* the output dimension is dim 0 (Linear), not dim 1 (GPT-2's Conv1D) */
} tp_param;
typedef struct tp_params {
    tp_param *p;
    int n, cap;
} tp_params;
/* The number of the parameter that t is, -1 if it is none; looked for from `begin` downwards, as a
 * walk back meets them. */
int tp_params_find(const tp_params *p, const tp_tensor *t, int begin);
#ifdef __cplusplus
}
#endif
#endif
