/* sum on CUDA, in the order that sum.h states: the bits of the CPU for f32. */
#include "ops/reduce_cuda.h"

enum { LANES = 16, ROW_THREADS = 128, AHEAD = 8 };

/* ---- along the last dimension --------------------------------------------------------------- */
typedef struct rows_args {
    const void *x;
    void *y;
    tp_dims kept, chain;
    int64_t samples, sample_stride, n, stride; /* n values lie `stride` apart */
} rows_args;

/* y[(s*kept.n + u)*chain.n + m] = the sum of that row: lane l of sixteen adds elements l, l+16, …;
 * then the lanes by halves. Half a warp per row. */
template <typename I, typename O>
__global__ void __launch_bounds__(ROW_THREADS) sum_rows(rows_args a) {
    int64_t row = ((int64_t)blockIdx.x * ROW_THREADS + threadIdx.x) / LANES;
    int64_t rows = a.samples * a.kept.n * a.chain.n;
    int lane = threadIdx.x % LANES;
    float sum = 0;
    if (row < rows) {
        int64_t rest = row / a.chain.n, m = row - rest * a.chain.n, s = rest / a.kept.n;
        const I *p = (const I *)a.x + s * a.sample_stride +
                     tp_dims_offset(&a.kept, rest - s * a.kept.n) + tp_dims_offset(&a.chain, m) +
                     lane * a.stride;
        int64_t i = lane, step = LANES * a.stride;
        for (; i + (AHEAD - 1) * LANES < a.n; i += AHEAD * LANES, p += AHEAD * step) {
            I next[AHEAD];
#pragma unroll
            for (int e = 0; e < AHEAD; e++) next[e] = tp_ldg(p + e * step);
#pragma unroll
            for (int e = 0; e < AHEAD; e++) sum += tp_to_f32(next[e]);
        }
        for (; i < a.n; i += LANES, p += step) sum += tp_to_f32(tp_ldg(p));
    }
    for (int half = LANES / 2; half; half /= 2)
        sum += __shfl_down_sync(0xffffffffu, sum, half, LANES);
    if (row < rows && lane == 0) tp_stg((O *)a.y + row, tp_from_f32<O>(0.0f + sum));
}

/* ---- the plan ------------------------------------------------------------------------------- */
typedef struct plan {
    bool rows, tree; /* the last dimension is summed; the first is, as samples */
    rows_args a;
    int64_t units; /* results */
} plan;

static plan plan_of(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    int32_t dims = ((const tp_reduce_attr *)k->attr)->dims;
    int last = x->ndim - 1;
    plan p = {};
    p.rows = last >= 0 && ((dims >> last) & 1);
    p.tree = (dims & 1) && (x->ndim >= 3 || (p.rows && x->ndim == 2));
    p.a.samples = 1;
    tp_dims_push(&p.a.kept, 1, 0);
    tp_dims_push(&p.a.chain, 1, 0);
    for (int d = 0; d <= last; d++) {
        if (d == 0 && p.tree)
            p.a.samples = x->shape[0], p.a.sample_stride = x->stride[0];
        else if (d == last && p.rows)
            p.a.n = x->shape[d], p.a.stride = x->stride[d];
        else
            tp_dims_push((dims >> d) & 1 ? &p.a.chain : &p.a.kept, x->shape[d], x->stride[d]);
    }
    p.units = p.a.kept.n;
    return p;
}

/* Floats between the stages; a stage that would only copy is left out. */
static int64_t row_floats(const plan *p) {
    bool last_stage = p->a.chain.n == 1 && p->a.samples == 1;
    return p->rows && !last_stage ? p->a.samples * p->units * p->a.chain.n : 0;
}
static int64_t chain_floats(const plan *p) {
    bool is_rows = p->rows && p->a.chain.n == 1;
    return p->a.samples > 1 && !is_rows ? p->a.samples * p->units : 0;
}

static size_t workspace(const tp_call *k) {
    if (!tp_numel(k->in[0])) return 0;
    plan p = plan_of(k);
    return (size_t)(row_floats(&p) + chain_floats(&p)) * sizeof(float);
}

template <typename I, typename O> static tp_status rows_run(const tp_call *k, const rows_args &a) {
    int64_t rows = a.samples * a.kept.n * a.chain.n;
    return TP_LAUNCH(k, (sum_rows<I, O>), tp_blocks(rows, ROW_THREADS / LANES), ROW_THREADS, 0, a);
}

template <typename T> static tp_status run_typed(const tp_call *k) {
    T *y = (T *)k->out[0]->data;
    if (!tp_numel(k->in[0])) /* no samples: zeros */
        return tp_sum_trees<T>(k, NULL, y, tp_numel(k->out[0]), 0, 0);
    plan p = plan_of(k);
    float *rows = (float *)k->workspace, *leaves = rows + row_floats(&p);
    bool tree = p.a.samples > 1, chain = !p.rows || p.a.chain.n > 1;
    tp_status st = TP_OK;
    p.a.x = k->in[0]->data;
    if (p.rows && !tree && !chain) {
        p.a.y = y;
        return rows_run<T, T>(k, p.a);
    }
    if (p.rows) {
        p.a.y = rows;
        if ((st = rows_run<T, float>(k, p.a))) return st;
    }
    if (chain) {
        tp_chain_args c = {};
        c.x = p.a.x, c.kept = p.a.kept, c.chain = p.a.chain;
        c.samples = p.a.samples, c.sample_stride = p.a.sample_stride;
        if (p.rows) { /* of the rows' sums, then */
            c.x = rows, c.kept = c.chain = tp_dims{};
            tp_dims_push(&c.kept, p.units, p.a.chain.n);
            tp_dims_push(&c.chain, p.a.chain.n, 1);
            c.sample_stride = p.units * p.a.chain.n;
        }
        c.y = tree ? (void *)leaves : y;
        if (p.rows)
            st = tree ? tp_sum_chains<float, float>(k, c) : tp_sum_chains<float, T>(k, c);
        else
            st = tree ? tp_sum_chains<T, float>(k, c) : tp_sum_chains<T, T>(k, c);
        if (st || !tree) return st;
    }
    return tp_sum_trees<T>(k, chain ? leaves : rows, y, p.units, p.a.samples, p.units);
}

static tp_status run(const tp_call *k) {
    if (!tp_numel(k->out[0])) return TP_OK;
    TP_BY_FLOAT(k->in[0]->dtype, T, return run_typed<T>(k));
}

TP_CUDA_KERNEL(sum_cuda, .decline = tp_decline_cuda_floats, .run = run, .workspace = workspace);
