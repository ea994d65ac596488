/* Causal attention of one head over 32 tokens by the sm_80 kernel, on the emulated device, for
 * lesson 10: a kernel to step through. Queries and keys are small whole numbers, so that one knows
 * the scores beforehand: q_i.k_j = 1 where i = j, else 0; value j is the number j. */
#include "core/ctx.h"
#include "ops/attention/attention.h"
#include "ops/convert.h"
#include <stdio.h>

enum { T = 32, D = 64 };
extern const tp_kernel attention_sm80;

static tp_tensor *upload(tp_ctx *c, float (*of)(int i, int d)) { /* bf16 (1,T,1,D) */
    static uint16_t x[T * D];
    for (int i = 0; i < T * D; i++) x[i] = tp_f32_to_bf16(of(i / D, i % D));
    return tp_tensor_from(c, TP_BF16, TP_SHAPE(1, T, 1, D), x);
}
static float unit(int i, int d) { return i == d ? 1.0f : 0.0f; }
static float number(int i, int d) {
    (void)d;
    return (float)i;
}

int main(void) {
    tp_ctx *c;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.device = TP_CUDA, .memory_limit = (size_t)64 << 20}))
        return fputs("lesson_cuda_flash: no device\n", stderr), 1;
    c->only_kernel = &attention_sm80;
    tp_tensor *q = upload(c, unit), *k = upload(c, unit), *v = upload(c, number);
    tp_tensor *o = tp_attention(c, q, k, v, &(tp_attention_opts){.causal = true, .scale = 1}, NULL);
    static uint16_t out[T * D];
    if (o) tp_download(c, o, out);
    tp_status st = tp_error_status(c);
    if (st) fprintf(stderr, "lesson_cuda_flash: %s\n", tp_error(c));
    for (int i = 0; i < 4 && !st; i++)
        printf("query %d: %.4f\n", i, (double)tp_bf16_to_f32(out[i * D]));
    tp_ctx_free(c);
    return st != TP_OK;
}
