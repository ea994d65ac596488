/* ops: what an operation is. One folder per op; CMake collects every `const tp_op op_NAME` of them
 * into a table, so adding an op is adding a folder (docs/architecture.md, "An op is a folder"). */
#ifndef TP_OP_H
#define TP_OP_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif
#if defined(__CUDACC__)
#define TP_HD __host__ __device__
#else
#define TP_HD
#endif
enum { TP_MAXIN = 8, TP_MAXOUT = 8 };
typedef struct tp_op tp_op;
typedef struct tp_kernel tp_kernel;

/* One application of an op: what runs, and what the tape records. */
typedef struct tp_call {
    tp_ctx *ctx;
    const tp_op *op;
    const tp_kernel *kernel;
    int nin, nout;
    tp_tensor *in[TP_MAXIN], *out[TP_MAXOUT]; /* an absent optional input is NULL */
    const void *attr;                         /* the op's own struct, copied to the step arena */
    void *workspace;     /* kernel->workspace(call) bytes, 64-byte aligned, uninitialised */
    const char *scope;   /* "blk0.mlp" */
    unsigned wants;      /* vjp only: bit i set = somebody reads din[i] */
    bool backward, last; /* last, vjp only: what was saved may be overwritten now */
} tp_call;
struct tp_kernel {
    const char *name;
    const char *(*decline)(const tp_call *); /* NULL fn: takes all. NULL: takes it. Else: why not */
    tp_status (*run)(const tp_call *);
    size_t (*workspace)(const tp_call *); /* NULL: none */
    int isa;                              /* needs ctx->isa >= this */
};

/* ---- samples drive gradcheck, kernel parity, bad-input and allocation-failure tests --------- */
typedef enum tp_gen {
    TP_GEN_END,      /* no more arguments */
    TP_GEN_ABSENT,   /* an optional input left out */
    TP_GEN_NORMAL,   /* lo + hi*N(0,1) */
    TP_GEN_UNIFORM,  /* U(lo,hi) */
    TP_GEN_INT,      /* integers lo..hi-1 (i32 unless .dtype) */
    TP_GEN_DISTINCT, /* a permutation of 0..numel-1 scaled to [lo,hi): no ties */
    TP_GEN_DATA      /* integers from .data */
} tp_gen;
typedef struct tp_arg {
    tp_gen gen;
    int ndim;
    int64_t shape[TP_MAXDIM];
    double lo, hi;  /* NORMAL with hi = 0 means N(0,1) */
    tp_dtype dtype; /* 0 (f32) = the dtype under test for floats, i32 for INT and DATA */
    const int32_t *data;
} tp_arg;
typedef struct tp_sample {
    const char *name;
    tp_arg in[TP_MAXIN];
    const void *attr;
    const char *refuse; /* non-NULL: infer must refuse it, with this text in the sentence */
    bool no_grad;       /* the point is not differentiable: parity only */
    double tol;         /* f32 against f64, relative to the largest value; 0: the op's */
} tp_sample;
typedef enum tp_attr_type {
    TP_ATTR_END,
    TP_ATTR_BOOL,
    TP_ATTR_INT,
    TP_ATTR_I64,
    TP_ATTR_FLOAT
} tp_attr_type;
typedef struct tp_attr {
    const char *name;
    tp_attr_type type;
    size_t offset;
} tp_attr;
struct tp_op {
    const char *name, *synopsis, *doc; /* "gelu", "y = x*Phi(x)", a paragraph for docs/ops.md */
    tp_status (*infer)(tp_call *);     /* refuse bad input in words; create out[] headers */
    const tp_kernel *const *kernel[TP_NDEV]; /* per device, fastest first, NULL-terminated */
    tp_status (*oracle)(const tp_call *);    /* f64, contiguous: the formula said plainly. It is the
                                                last CPU kernel for every dtype (converted) */
    void (*vjp)(const tp_call *, tp_tensor *const dout[], tp_tensor *din[]); /* written in ops */
    const char *no_vjp;           /* exactly one of vjp / no_vjp: why it has none */
    unsigned saves_in, saves_out; /* bits: what the vjp reads; all else may be freed */
    unsigned optional;            /* bits: inputs that may be absent */
    unsigned inplace;             /* bits: inputs that are changed in place */
    unsigned aux_out;             /* bits: outputs that carry no gradient (statistics) */
    bool view;                    /* out shares in[0]'s bytes: infer does it all */
    double (*flops)(const tp_call *);
    const tp_attr *attrs; /* for printing; END-terminated */
    size_t attr_bytes;
    const tp_sample *samples; /* terminated by .name = NULL */
    double tol;               /* f32 against f64; 0: 1e-5 */
};

extern const tp_op *const tp_ops[]; /* the generated table, NULL-terminated */
const tp_op *tp_op_find(const char *name);

/* Runs op on nin inputs: infer, allocate, choose the kernel, run, record. Fills out[0..nout-1] with
 * step tensors, or NULLs (and a recorded failure). If the ctx has already failed, does nothing. */
tp_status tp_op_run(tp_ctx *c, const tp_op *op, const void *attr, int nin, tp_tensor *const in[],
                    tp_tensor *out[]);
/* The same for ops with one output: tp_op1(c, &op_add, NULL, a, b). */
#define tp_op1(c, op, attr, ...) tp_op1_(c, op, attr, TP_LIST(tp_tensor *, __VA_ARGS__))
tp_tensor *tp_op1_(tp_ctx *c, const tp_op *op, const void *attr, int nin, tp_tensor *const in[]);

/* ---- for infer functions -------------------------------------------------------------------- */
/* Appends an output header to the call. */
tp_status tp_out(tp_call *k, tp_dtype t, int ndim, const int64_t *shape);
tp_status tp_out_like(tp_call *k, const tp_tensor *t);
/* For view ops, or outputs that share a tensor of infer's own; then edit shape and stride. */
tp_status tp_out_view(tp_call *k, tp_tensor *base);
/* Refusal with the op's name in front: tp_refuse(k, TP_ESHAPE, "x must be ..., got %s", …). */
tp_status tp_refuse(const tp_call *k, tp_status s, const char *fmt, ...) TP_PRINTF(3, 4);
tp_status tp_need_float(const tp_call *k, int i, const char *arg); /* in[i] is f32/f64/bf16 */
tp_status tp_need_int(const tp_call *k, int i, const char *arg);   /* in[i] is i32 */
tp_status tp_need_ndim(const tp_call *k, int i, const char *arg, int lo, int hi);
tp_status tp_need_same(const tp_call *k, int i, int j, const char *args); /* shape and dtype */
tp_status tp_need_softcap(const tp_call *k, double cap); /* cap*tanh(x/cap) holds in f32, or 0 */
/* ---- for kernels ---------------------------------------------------------------------------- */
const char *tp_decline_unless_f32(const tp_call *k);       /* every float in and out is f32 */
const char *tp_decline_unless_f32_dense(const tp_call *k); /* … and everything is contiguous */
/* ---- for vjps ------------------------------------------------------------------------------- */
static inline bool tp_wants(const tp_call *k, int i) { return (k->wants >> i) & 1; }
/* CPU kernels are compiled once per instruction set: write TP_CPU_KERNEL(gelu_cpu, …) in a file
 * whose name ends in _cpu.c, and list TP_CPU_KERNELS(gelu_cpu) in the op's .c file. */
#ifndef TP_ISA
#define TP_ISA 1
#endif
#define TP_CAT_(a, b) a##_v##b
#define TP_CAT(a, b) TP_CAT_(a, b)
#define TP_CPU_KERNEL(id, ...)                                                                     \
    extern const tp_kernel TP_CAT(id, TP_ISA);                                                     \
    const tp_kernel TP_CAT(id, TP_ISA) = {.name = #id, .isa = TP_ISA, __VA_ARGS__}
#if defined(__x86_64__)
#define TP_CPU_DECLARE(id) extern const tp_kernel id##_v4, id##_v3, id##_v1
#define TP_CPU_LIST(id) &id##_v4, &id##_v3, &id##_v1
#else
#define TP_CPU_DECLARE(id) extern const tp_kernel id##_v1
#define TP_CPU_LIST(id) &id##_v1
#endif
/* CUDA kernels, of .cu files (ops/cuda.h). Without CUDA their addresses are NULL. */
#define TP_CUDA_DECLARE(id) extern const tp_kernel id TP_MAYBE_LINKED
#define TP_CUDA_LIST(...)                                                                          \
    (const tp_kernel *const[]) { __VA_ARGS__, NULL }
#ifdef __cplusplus
}
#endif
#endif
