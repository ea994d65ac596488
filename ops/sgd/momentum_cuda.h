/* sgd_ and momentum_ on CUDA, which share a pass over their operands: four neighbouring elements a
 * thread. */
#ifndef TP_MOMENTUM_CUDA_H
#define TP_MOMENTUM_CUDA_H
#include "ops/cuda.h"
#include "ops/sgd/sgd_math.h"

enum { MOMENTUM_THREADS = 256 };
typedef struct momentum_args {
    float *p;       /* moved along the direction, or NULL */
    float *b;       /* the buffer; NULL: the direction is the gradient */
    float *u;       /* gets the direction, or NULL */
    const float *g; /* NULL: zeros */
    float scale, mu, rate, decay;
    bool nesterov;
    int64_t n;
} momentum_args;

/* V neighbouring elements from i. */
template <int V>
static __device__ __forceinline__ void momentum_some(const momentum_args &a, int64_t i) {
    tp_vec<float, V> p = {}, b = {}, g = {}, u;
    if (a.p) p = tp_load<float, V>(a.p + i);
    if (a.b) b = tp_load<float, V>(a.b + i);
    if (a.g) g = tp_load<float, V>(a.g + i);
    for (int e = 0; e < V; e++) {
        u.v[e] = a.g ? a.scale * g.v[e] : 0.0f;
        if (a.b) u.v[e] = momentum_f(&b.v[e], u.v[e], a.mu, a.nesterov);
        if (a.p) p.v[e] = sgd_f(p.v[e], u.v[e], a.rate, a.decay);
    }
    if (a.p) tp_store<float, V>(a.p + i, p);
    if (a.b) tp_store<float, V>(a.b + i, b);
    if (a.u) tp_store<float, V>(a.u + i, u);
}

static __global__ void __launch_bounds__(MOMENTUM_THREADS)
    momentum_pass(momentum_args a, bool aligned) {
    int64_t i = ((int64_t)blockIdx.x * MOMENTUM_THREADS + threadIdx.x) * 4;
    if (aligned && i + 4 <= a.n)
        momentum_some<4>(a, i);
    else
        for (int e = 0; e < 4 && i + e < a.n; e++) momentum_some<1>(a, i + e);
}

static inline tp_status momentum_launch(const tp_call *k, const momentum_args *args) {
    momentum_args a = *args;
    bool aligned =
        tp_aligned(a.p, 16) && tp_aligned(a.b, 16) && tp_aligned(a.u, 16) && tp_aligned(a.g, 16);
    return TP_LAUNCH(k, momentum_pass, tp_blocks(a.n, 4 * MOMENTUM_THREADS), MOMENTUM_THREADS, 0, a,
                     aligned);
}

static inline const char *momentum_decline(const tp_call *k) {
    if (k->in[0]->dtype != TP_F32) return "only f32 is updated";
    return tp_decline_cuda_dense(k);
}
#endif
