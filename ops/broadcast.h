/* broadcast: one loop for every elementwise op. Shapes are aligned at the last dimension; a missing
 * or size-1 dimension is repeated. The loop walks any strides and hands the op's formula dense runs
 * of floats only, so a kernel is one plain loop that the compiler vectorises. */
#ifndef TP_BROADCAST_H
#define TP_BROADCAST_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

/* The shape that t[0..n-1] broadcast to (NULLs are skipped); refuses in words if there is none. */
tp_status tp_broadcast_shape(const tp_call *k, int n, tp_tensor *const t[], int *ndim,
                             int64_t shape[TP_MAXDIM]);
/* Two float inputs of one dtype, out of the shape they broadcast to. */
tp_status tp_infer_broadcast(tp_call *k);

/* The output's dimensions without those of size 1, and with neighbours merged where every operand
 * lies evenly: same shapes become one row, a bias becomes (rows, C) with stride 0 over rows. */
typedef struct tp_walk {
    int ndim;                                              /* at least 1 */
    int64_t shape[TP_MAXDIM], stride[TP_MAXIN][TP_MAXDIM]; /* strides in elements, 0: repeated */
} tp_walk;
tp_walk tp_walk_of(const tp_call *k, const tp_tensor *out);

/* n neighbouring elements: in[i][0..n-1] and out[j][0..n-1] are dense. */
typedef struct tp_run {
    const void *attr;
    int64_t n;
    int64_t at; /* row-major position of the first of them in the output */
    const void *in[TP_MAXIN];
    void *out[TP_MAXOUT];
} tp_run;
typedef void (*tp_run_fn)(const tp_run *r);
/* Calls fn on runs that cover dense outputs of one shape, which every k->in broadcasts to. Runs are
 * cut without regard to threads, and fn must treat each element on its own. */
void tp_elementwise(const tp_call *k, int nout, tp_tensor *const out[], tp_run_fn fn);
/* dst[0..n-1] = src[0], src[step], … of `size` bytes each (1, 2, 4 or 8). */
void tp_pack(void *dst, const void *src, int64_t step, int64_t n, size_t size);

/* ---- for oracles: dense operands ------------------------------------------------------------ */
/* Which element of dense t (of shape out or broadcast to it) meets element i of dense out. */
int64_t tp_broadcast_at(const tp_tensor *t, const tp_tensor *out, int64_t i);
tp_status tp_oracle_unary(const tp_call *k, double (*f)(double x));
tp_status tp_oracle_binary(const tp_call *k, double (*f)(double a, double b));
#ifdef __cplusplus
}
#endif
#endif
