/* route on CUDA, a block per row: the key that each document's share reaches (topk_cuda.h), a mask,
 * and the mask's places by a sum over threads, each of which has a stretch of tokens. */
#include "ops/binary_cross_entropy/binary_cross_entropy_math.h"
#include "ops/embedding/rows_cuda.h"
#include "ops/route/route.h"
#include "ops/route/route_attr.h"
#include "ops/topk/topk_cuda.h"

enum { ROUTE_THREADS = 256 };
typedef struct route_args {
    tp_rows scores;
    int64_t T, k;
    bool document;
    const int32_t *positions, *segments;
    int32_t *rows, *places, *member, *ids;
} route_args;

/* The end of the run of equal segments that begins at `from`. */
static __device__ __forceinline__ int64_t run_end(const int32_t *segment, int64_t from, int64_t T) {
    TP_SHARED(uint32_t, first, 1);
    if (!segment) return T;
    int32_t mine = tp_ldg(segment + from);
    int64_t end = T;
    for (int64_t at = from; at < T && end == T; at += ROUTE_THREADS) {
        int64_t t = at + threadIdx.x;
        __syncthreads(); /* whoever read it has done so */
        if (threadIdx.x == 0) first[0] = (uint32_t)T;
        __syncthreads();
        if (t < T && tp_ldg(segment + t) != mine) atomicMin(&first[0], (uint32_t)t);
        __syncthreads();
        end = (int64_t)(uint32_t)first[0];
    }
    return end;
}

/* How many of the threads' counts stand before this thread's. */
static __device__ __forceinline__ uint32_t sum_before(uint32_t mine) {
    TP_SHARED(uint32_t, warps, ROUTE_THREADS / 32);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t reach = mine, base = 0;
    for (int m = 1; m < 32; m *= 2) {
        uint32_t left = __shfl_up_sync(0xffffffffu, reach, (unsigned)m);
        if (lane >= m) reach += left;
    }
    if (lane == 31) warps[warp] = reach;
    __syncthreads();
    for (int w = 0; w < warp; w++) base += warps[w];
    return base + reach - mine;
}

template <typename T> __global__ void __launch_bounds__(ROUTE_THREADS) route_rows(route_args a) {
    const T *s = (const T *)a.scores.p + blockIdx.x * a.scores.row;
    int32_t *member = a.member + blockIdx.x * a.T;
    const int32_t *segment = a.segments ? a.segments + blockIdx.x * a.T : NULL;
    for (int64_t from = 0, end; from < a.T; from = end) {
        end = run_end(a.document ? segment : NULL, from, a.T);
        int64_t n = end - from, take = route_share(a.k, a.T, end) - route_share(a.k, a.T, from);
        const T *x = s + from * a.scores.col;
        uint64_t least = 0;
        if (take && take < n) least = topk_nth_key<T>(x, a.scores.col, n, take);
        for (int64_t t = threadIdx.x; t < n; t += ROUTE_THREADS) {
            uint64_t key = topk_key(tp_to_f32(tp_ldg(x + t * a.scores.col)), t);
            tp_stg(member + from + t, take && key >= least ? 1 : 0);
        }
    }
    __syncthreads();
    int64_t each = (a.T + ROUTE_THREADS - 1) / ROUTE_THREADS, first = threadIdx.x * each;
    int64_t last = first + each < a.T ? first + each : a.T;
    uint32_t mine = 0;
    for (int64_t t = first; t < last; t++) mine += (uint32_t)tp_ldg(member + t);
    int64_t at = blockIdx.x * a.k + sum_before(mine);
    for (int64_t t = first; t < last; t++) {
        int64_t token = blockIdx.x * a.T + t;
        if (!tp_ldg(member + t)) continue;
        tp_stg(a.rows + at, (int32_t)token);
        tp_stg(a.places + at, a.positions ? tp_ldg(a.positions + token) : (int32_t)t);
        if (a.ids) tp_stg(a.ids + at, tp_ldg(a.segments + token));
        at++;
    }
}

static const char *route_decline(const tp_call *k) {
    const char *no = tp_decline_cuda_floats(k);
    return no ? no : tp_decline_uneven(k->in[0]);
}

static tp_status route_run(const tp_call *k) {
    const route_attr *attr = (const route_attr *)k->attr;
    route_args a = {};
    a.T = k->in[0]->shape[1];
    a.k = attr->k;
    a.document = attr->document;
    a.positions = k->in[1] ? tp_i32(k->in[1]) : NULL;
    a.segments = k->in[2] ? tp_i32(k->in[2]) : NULL;
    a.rows = tp_i32(k->out[ROUTE_ROWS]);
    a.places = tp_i32(k->out[ROUTE_POSITIONS]);
    a.member = tp_i32(k->out[ROUTE_MEMBER]);
    a.ids = k->in[2] ? tp_i32(k->out[ROUTE_SEGMENTS]) : NULL;
    tp_rows_of(&a.scores, k->in[0]);
    TP_BY_FLOAT(
        k->in[0]->dtype, T,
        return TP_LAUNCH(k, route_rows<T>, (unsigned)k->in[0]->shape[0], ROUTE_THREADS, 0, a));
}
TP_CUDA_KERNEL(route_cuda, .decline = route_decline, .run = route_run);

/* ---- route_report: a warp per row, sums in double ------------------------------------------- */
template <typename T>
__global__ void __launch_bounds__(32)
    route_report(const T *scores, const int32_t *member, const T *decision, const T *loss,
                 float *out, int64_t T_) {
    double sum[TP_ROUTE_STATS] = {};
    int64_t base = blockIdx.x * T_;
    for (int64_t at = base + threadIdx.x; at < base + T_; at += 32) {
        bool taken = tp_to_f32(tp_ldg(decision + at)) > 0;
        sum[TP_ROUTE_TAKEN] += taken;
        sum[TP_ROUTE_AGREE] += taken == (tp_ldg(member + at) != 0);
        sum[TP_ROUTE_ENTROPY] += (double)bce_entropy(tp_to_f32(tp_ldg(scores + at)));
        if (loss) sum[TP_ROUTE_LOSS] += (double)tp_to_f32(tp_ldg(loss + at));
    }
#pragma unroll
    for (int i = 0; i < TP_ROUTE_STATS; i++) {
        double all = tp_warp_sum(sum[i]);
        if (threadIdx.x == 0) tp_stg(out + blockIdx.x * TP_ROUTE_STATS + i, (float)all);
    }
}

static tp_status report_run(const tp_call *k) {
    const tp_tensor *s = k->in[0];
    TP_BY_FLOAT(s->dtype, T,
                return TP_LAUNCH(k, route_report<T>, (unsigned)s->shape[0], 32, 0,
                                 (const T *)s->data, tp_i32(k->in[1]), (const T *)k->in[2]->data,
                                 (const T *)(k->in[3] ? k->in[3]->data : NULL), tp_f32(k->out[0]),
                                 s->shape[1]));
}
TP_CUDA_KERNEL(route_report_cuda, .decline = tp_decline_cuda_dense, .run = report_run);
