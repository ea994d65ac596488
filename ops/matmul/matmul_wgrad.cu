/* matmul_wgrad on CUDA: dw = x^T dy and db = the sum of dy's rows.
 *
 * A GPU needs long sums, so a leaf of the tree over samples is TP_CUDA_LEAF samples together; the
 * tree above the leaves is the CPU's. Parts of a batch that are powers of two of at least a leaf
 * are subtrees of it. Under `numerics: fast` everything is one leaf. */
#include "ops/cuda.h"
#include "ops/matmul/gemm_cuda.h"
#include "ops/matmul/matmul_call.h"

enum { THREADS = 256 };

/* The rows of x and dy as leaves. */
typedef struct leaves {
    int64_t rows, leaf, count; /* leaf: rows of one; the last may have fewer */
} leaves;

static leaves leaves_of(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    leaves l = {tp_batch(x) * x->shape[x->ndim - 2], TP_CUDA_LEAF * tp_sample_rows(x), 0};
    if (k->ctx->fast || l.leaf > l.rows) l.leaf = l.rows;
    l.count = l.leaf ? (l.rows + l.leaf - 1) / l.leaf : 0;
    return l;
}

static int bits_of(int64_t x) {
    int n = 0;
    for (; x > 0; x >>= 1) n++;
    return n;
}
/* Subtrees that wait to the left of part i of n, and where its own sum waits: the binary counter of
 * gemm.h. */
static unsigned merges(int64_t i, bool last) { return (unsigned)(last ? i : i & ~(i + 1)); }

/* ---- dw ------------------------------------------------------------------------------------- */
/* Leaves are computed in groups, side by side, which is what fills the GPU where a weight has few
 * tiles. A group is a power of two: a subtree. */
enum { GROUP_LEVELS = 4, GROUP_BYTES = 64 << 20 };
typedef struct weight {
    leaves l;
    int64_t n, stride; /* values of dw, and of a partial sum in the workspace */
    int64_t group, groups, slots;
} weight;

static weight weight_of(const tp_call *k) {
    weight w = {.l = leaves_of(k), .n = tp_dim(k->in[0], -1) * tp_dim(k->in[1], -1), .group = 1};
    w.stride = (w.n + 3) / 4 * 4;
    if (w.l.count < 2) return w;
    while (w.group < w.l.count && w.group < 1 << GROUP_LEVELS &&
           2 * w.group * w.stride * 4 <= GROUP_BYTES)
        w.group *= 2;
    w.groups = (w.l.count + w.group - 1) / w.group;
    w.slots = bits_of(w.groups - 1);
    return w;
}

static __device__ __forceinline__ float4 add(float4 x, float4 y) {
    return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}
/* The sum of `count` >= 1 parts, at most 2^L. */
template <int L>
static __device__ __forceinline__ float4 tree(const float *p, int64_t stride, int count) {
    if constexpr (L == 0) {
        return tp_ldg((const float4 *)p);
    } else {
        enum { HALF = 1 << (L - 1) };
        float4 left = tree<L - 1>(p, stride, count < HALF ? count : HALF);
        if (count <= HALF) return left;
        return add(left, tree<L - 1>(p + HALF * stride, stride, count - HALF));
    }
}

/* to = the sum of a group's parts, with the subtrees that wait (bits of merge) to its left. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    sum_leaves(const float *parts, int count, const float *slots, unsigned merge, int64_t stride,
               T *to, int64_t n) {
    int64_t i = 4 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    if (i >= n) return;
    float4 sum = tree<GROUP_LEVELS>(parts + i, stride, count);
    for (const float *s = slots + i; merge; merge >>= 1, s += stride)
        if (merge & 1) sum = add(tp_ldg((const float4 *)s), sum);
    tp_vec<T, 4> y = {{tp_from_f32<T>(sum.x), tp_from_f32<T>(sum.y), tp_from_f32<T>(sum.z),
                       tp_from_f32<T>(sum.w)}};
    if (i + 4 <= n)
        tp_store<T, 4>(to + i, y);
    else
        for (int e = 0; e < n - i; e++) tp_stg(to + i + e, y.v[e]);
}

/* A leaf, as a product: rows are steps of k. */
static tp_cuda_gemm leaf_gemm(const tp_call *k, int64_t rows) {
    const tp_wgrad_attr *attr = (const tp_wgrad_attr *)k->attr;
    const tp_tensor *x = k->in[0], *dy = k->in[1], *dw = wgrad_dw(k);
    const tp_tensor *a = attr->transposed ? dy : x, *b = attr->transposed ? x : dy;
    int last = x->ndim - 1;
    tp_cuda_gemm g = {
        .batch = 1,
        .m = a->shape[last],
        .n = b->shape[last],
        .k = rows,
        .a = {a->data, a->dtype, a->stride[last]},
        .b = {b->data, b->dtype, 0, b->stride[last]},
        .c = {dw->data, dw->dtype, b->shape[last], 1},
        .m_fixed = true,
    };
    even_rows(a, &g.a.col);
    even_rows(b, &g.b.row);
    return g;
}

static void *at(const tp_cuda_matrix *x, int64_t i) {
    return (char *)x->p + i * (int64_t)tp_dtype_size(x->dtype);
}

/* Leaves first .. first+count-1 into parts; those of full length in one launch. */
static tp_status group_run(const tp_call *k, const weight *w, int64_t first, int64_t count,
                           float *parts) {
    tp_cuda_gemm g = leaf_gemm(k, w->l.leaf);
    int64_t whole = w->l.rows / w->l.leaf - first;
    g.a.batch = w->l.leaf * g.a.col;
    g.b.batch = w->l.leaf * g.b.row;
    g.a.p = at(&g.a, first * g.a.batch);
    g.b.p = at(&g.b, first * g.b.batch);
    g.c = (tp_cuda_matrix){parts, TP_F32, g.n, 1, w->stride};
    g.batch = whole < count ? whole : count;
    tp_status st = g.batch ? tp_cuda_gemm_run(k, &g) : TP_OK;
    if (st || whole >= count) return st;
    g.a.p = at(&g.a, whole * g.a.batch);
    g.b.p = at(&g.b, whole * g.b.batch);
    g.c.p = parts + whole * w->stride;
    g.k = w->l.rows % w->l.leaf;
    g.batch = 1;
    return tp_cuda_gemm_run(k, &g);
}

static tp_status dw_run(const tp_call *k) {
    weight w = weight_of(k);
    tp_tensor *dw = wgrad_dw(k);
    if (!w.n) return TP_OK;
    if (w.l.count < 2) {
        tp_cuda_gemm g = leaf_gemm(k, w.l.rows);
        return tp_cuda_gemm_run(k, &g);
    }
    float *parts = (float *)k->workspace, *slots = parts + w.group * w.stride;
    unsigned blocks = tp_blocks(w.n, 4 * THREADS);
    tp_status st = TP_OK;
    for (int64_t i = 0; i < w.groups && !st; i++) {
        int64_t left = w.l.count - i * w.group, count = left < w.group ? left : w.group;
        bool last = i == w.groups - 1;
        if ((st = group_run(k, &w, i * w.group, count, parts))) break;
        unsigned merge = merges(i, last);
        if (!last)
            st = TP_LAUNCH(k, (sum_leaves<float>), blocks, THREADS, 0, parts, (int)count, slots,
                           merge, w.stride, slots + bits_of(merge) * w.stride, w.n);
        else
            TP_BY_FLOAT(dw->dtype, T,
                        st = TP_LAUNCH(k, (sum_leaves<T>), blocks, THREADS, 0, parts, (int)count,
                                       slots, merge, w.stride, (T *)dw->data, w.n));
    }
    return st;
}

/* ---- db ------------------------------------------------------------------------------------- */
/* A leaf's rows are cut into strips; a block sums a strip of some columns, row i in warp i%8, and
 * then the warps. A second kernel sums a leaf's strips, strip i in warp i%8, and walks the tree. */
enum { STRIP = 128, WARPS = THREADS / 32, MAX_LEVELS = 20 };
typedef struct column_args {
    const void *dy;
    int64_t n, stride, step; /* columns; elements between rows, between columns */
    leaves l;
    int64_t strips; /* of a leaf */
    float *parts;   /* (leaves, strips, n) */
} column_args;

static column_args columns_of(const tp_call *k) {
    const tp_tensor *dy = k->in[1];
    column_args a = {
        .dy = dy->data, .n = tp_dim(dy, -1), .step = dy->stride[dy->ndim - 1], .l = leaves_of(k)};
    even_rows(dy, &a.stride);
    a.strips = (a.l.leaf + STRIP - 1) / STRIP;
    return a;
}

template <typename T, int V> __global__ void __launch_bounds__(THREADS) sum_strips(column_args a) {
    TP_SHARED(float, part, WARPS * 32 * V);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t leaf = blockIdx.x / a.strips, strip = blockIdx.x % a.strips;
    int64_t first = leaf * a.l.leaf, begin = first + strip * STRIP, end = begin + STRIP;
    if (end > first + a.l.leaf) end = first + a.l.leaf;
    if (end > a.l.rows) end = a.l.rows; /* below begin: no rows of the last leaf here */
    int64_t j0 = (int64_t)blockIdx.y * 32 * V, j = j0 + lane * V;
    float sum[V];
#pragma unroll
    for (int e = 0; e < V; e++) sum[e] = 0.0f;
    if (j < a.n) {
        const T *p = (const T *)a.dy + j * a.step;
#pragma unroll 4
        for (int64_t r = begin + warp; r < end; r += WARPS) {
            tp_vec<T, V> x = tp_load<T, V>(p + r * a.stride);
#pragma unroll
            for (int e = 0; e < V; e++) sum[e] += tp_to_f32(x.v[e]);
        }
    }
#pragma unroll
    for (int e = 0; e < V; e++) part[(warp * V + e) * 32 + lane] = sum[e];
    __syncthreads();
    int at = threadIdx.x; /* column j0 + at: of lane at/V, element at%V */
    if (at >= 32 * V || j0 + at >= a.n) return;
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) all += part[(w * V + at % V) * 32 + at / V];
    tp_stg(a.parts + (int64_t)blockIdx.x * a.n + j0 + at, all);
}

template <typename T> __global__ void __launch_bounds__(THREADS) sum_columns(column_args a, T *db) {
    TP_SHARED(float, part, WARPS * 32);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t j = (int64_t)blockIdx.x * 32 + lane;
    float slot[MAX_LEVELS], sum = 0.0f;
    for (int64_t leaf = 0; leaf < a.l.count; leaf++) {
        sum = 0.0f;
        if (j < a.n)
            for (int64_t s = warp; s < a.strips; s += WARPS)
                sum += tp_ldg(a.parts + (leaf * a.strips + s) * a.n + j);
        __syncthreads();
        part[warp * 32 + lane] = sum;
        __syncthreads();
        sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += part[w * 32 + lane];
        bool last = leaf == a.l.count - 1;
        int64_t merge = last ? leaf : leaf & ~(leaf + 1);
#pragma unroll
        for (int l = 0; l < MAX_LEVELS; l++)
            if (merge >> l & 1) sum = slot[l] + sum;
#pragma unroll
        for (int l = 0; l < MAX_LEVELS; l++)
            if ((leaf + 1) >> l & 1 && ((leaf + 1) & ((1ll << l) - 1)) == 0) slot[l] = sum;
    }
    if (warp == 0 && j < a.n) tp_stg(db + j, tp_from_f32<T>(sum));
}

template <typename T> static tp_status strips_run(const tp_call *k, const column_args *a) {
    enum { V = tp_width<T>::N };
    bool vectors = a->step == 1 && a->n % V == 0 && a->stride % V == 0 && tp_aligned(a->dy, 16);
    unsigned strips = (unsigned)(a->l.count * a->strips);
    if (vectors)
        return TP_LAUNCH(k, (sum_strips<T, V>), dim3(strips, tp_blocks(a->n, 32 * V)), THREADS, 0,
                         *a);
    return TP_LAUNCH(k, (sum_strips<T, 1>), dim3(strips, tp_blocks(a->n, 32)), THREADS, 0, *a);
}

static tp_status db_run(const tp_call *k, float *parts) {
    column_args a = columns_of(k);
    tp_tensor *db = wgrad_db(k);
    a.parts = parts;
    tp_status st = TP_OK;
    if (!a.n) return st;
    TP_BY_FLOAT(k->in[1]->dtype, T, st = strips_run<T>(k, &a));
    if (st) return st;
    TP_BY_FLOAT(
        db->dtype, T,
        return TP_LAUNCH(k, (sum_columns<T>), tp_blocks(a.n, 32), THREADS, 0, a, (T *)db->data));
}

/* ---- the op --------------------------------------------------------------------------------- */
static const char *wgrad_decline(const tp_call *k) {
    int64_t stride;
    for (int i = 0; i < 2; i++)
        if (!even_rows(k->in[i], &stride)) return "rows do not lie evenly apart";
    return tp_decline_cuda_floats(k);
}

/* The parts of dw, and later those of db in the same place. */
static size_t wgrad_workspace(const tp_call *k) {
    weight w = weight_of(k);
    column_args a = columns_of(k);
    size_t dw = wgrad_dw(k) && w.groups ? (size_t)((w.group + w.slots) * w.stride) * 4 : 0;
    size_t db = wgrad_db(k) ? (size_t)(a.l.count * a.strips * a.n) * 4 : 0;
    return dw > db ? dw : db;
}

static tp_status wgrad_run(const tp_call *k) {
    tp_status st = wgrad_dw(k) ? dw_run(k) : TP_OK;
    return !st && wgrad_db(k) ? db_run(k, (float *)k->workspace) : st;
}

TP_CUDA_KERNEL(matmul_wgrad_cuda, .decline = wgrad_decline, .run = wgrad_run,
               .workspace = wgrad_workspace);
