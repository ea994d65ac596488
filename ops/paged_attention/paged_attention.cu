/* paged_attention on CUDA: the check of its tables. The kernels are attention's own
 * (attention_sm80.cu, attention_naive.cu). */
#include "ops/paged_attention/paged_attention_cuda.h"

enum { THREADS = 128, SEQUENCES = THREADS / 32 };

typedef struct check_args {
    const int32_t *pages, *starts;
    int64_t pages_b, pages_i, starts_b;
    int B, T, n, page, pool;
    tp_fault fault;
    int32_t *to;
} check_args;

/* A warp for each sequence. Pages behind its last key may be anything. */
__global__ void __launch_bounds__(THREADS) paged_check(const check_args a) {
    const int b = (int)blockIdx.x * SEQUENCES + (int)threadIdx.x / 32, lane = threadIdx.x % 32;
    if (b >= a.B) return;
    const int64_t start = tp_ldg(a.starts + b * a.starts_b), end = start + a.T;
    const bool inside = start >= 0 && end <= (int64_t)a.n * a.page;
    bool good = inside;
    for (int i = lane; inside && (int64_t)i * a.page < end; i += 32) {
        const int at = tp_ldg(a.pages + b * a.pages_b + i * a.pages_i);
        if (at >= 0 && at < a.pool) continue;
        tp_report(a.fault, (int64_t)b * a.n + i);
        good = false;
    }
    good = __all_sync(0xffffffffu, good);
    if (lane) return;
    if (!inside) tp_report(a.fault, (int64_t)a.B * a.n + b);
    tp_stg(a.to + b, good ? (int32_t)start : -a.T); /* -T: all queries stand before key 0 */
}

tp_status paged_attention_check_cuda(const tp_call *k, attention_params *p) {
    const tp_tensor *starts = k->in[PAGED_STARTS];
    check_args a = {};
    a.pages = p->pages, a.pages_b = p->pages_b, a.pages_i = p->pages_i;
    a.starts = tp_i32(starts), a.starts_b = starts->stride[0];
    a.B = p->B, a.T = p->T, a.page = p->page;
    a.n = (int)k->in[PAGED_PAGES]->shape[1], a.pool = (int)k->in[1]->shape[0];
    a.fault = tp_fault_of(k);
    a.to = (int32_t *)k->workspace;
    p->starts = a.to, p->starts_b = 1;
    if (!p->T) return TP_OK; /* no query reads anything */
    return TP_LAUNCH(k, paged_check, tp_blocks(a.B, SEQUENCES), THREADS, 0, a);
}
