/* routes: which tokens of a text the routed blocks of a model take (Mixture-of-Depths), as training
 * chooses them and as decoding decides. */
#ifndef TP_ROUTES_H
#define TP_ROUTES_H
#include "nn/nn.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_routes {
    int64_t blocks, tokens;
    int32_t *layer;         /* (blocks), ascending */
    float *logit;           /* (blocks,tokens): the router's, where the choice is by the row */
    unsigned char *chosen;  /* (blocks,tokens): 1 for the highest of the row, as in training */
    unsigned char *decided; /* (blocks,tokens): 1 for those that causal decisions take, block after
                               block, as while text is decoded */
    double loss, loss_causal; /* nats per token of the text after its first; NaN for one token */
} tp_routes;
/* Two forward passes over the text, one for each way to choose; every number is read from the
 * tensors of the blocks. Ends the ctx's step. TP_EARG: the model has no routed block, or the text
 * no token. The members are for tp_routes_clear, after a failure too. */
tp_status tp_routes_find(tp_routes *out, tp_ctx *c, tp_model *m, const int32_t *ids,
                         int64_t tokens);
void tp_routes_clear(tp_routes *r);

typedef struct tp_route_summary { /* of a block: parts of the tokens */
    double chosen, decided, agree;
    double mean,
        deviation; /* of the logits that are finite, with the standard one; NaN if none is */
} tp_route_summary;
tp_route_summary tp_routes_summary(const tp_routes *r, int64_t block);
#ifdef __cplusplus
}
#endif
#endif
