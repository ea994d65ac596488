/* Softmax's numerators for code that is no op and sums them in its own way: the sampler. */
#ifndef TP_SOFTMAX_WEIGHTS_H
#define TP_SOFTMAX_WEIGHTS_H
#include "ops/op.h"

/* w_i = e^((x_i - top) / temperature), i < n, the bits of tp_expf on every machine. */
void tp_softmax_weights(const tp_ctx *c, float *w, const float *x, int64_t n, float top,
                        float temperature);

void tp_softmax_weights_v1(float *w, const float *x, int64_t n, float top, float temperature);
void tp_softmax_weights_v3(float *w, const float *x, int64_t n, float top, float temperature);
void tp_softmax_weights_v4(float *w, const float *x, int64_t n, float top, float temperature);
#endif
