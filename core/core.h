/* core: errors, memory, tensors, randomness, threads. No mathematics lives here. One tp_ctx per
 * thread of control, no mutable globals. Every call that can fail returns a tp_status (0: success)
 * or NULL, and leaves one sentence in the ctx; the first failure's is kept until tp_clear. */
#ifndef TP_CORE_H
#define TP_CORE_H
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/lang.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_status {
    TP_OK = 0,
    TP_EARG,       /* an argument, flag or config value cannot be used */
    TP_ESHAPE,     /* shapes do not fit together */
    TP_EDTYPE,     /* wrong element type */
    TP_ENOMEM,     /* out of memory, or over the memory limit */
    TP_EIO,        /* the operating system refused a read or write */
    TP_EFORMAT,    /* a file's content is damaged, foreign or of a newer version */
    TP_ENOKERNEL,  /* no kernel takes this call; the message has every reason */
    TP_ESTATE,     /* right call, wrong moment (e.g. a saved tensor was changed in place) */
    TP_ENUMERIC,   /* NaN or infinity where none may be */
    TP_EINTERRUPT, /* stopped by a signal */
    TP_EINTERNAL   /* a TP_CHECK invariant failed: a bug in Tapir */
} tp_status;
typedef enum tp_device { TP_CPU, TP_CUDA, TP_NDEV } tp_device;
typedef enum tp_dtype { TP_F32, TP_F64, TP_BF16, TP_I32, TP_I64, TP_U8, TP_NDTYPE } tp_dtype;
/* ---- context -------------------------------------------------------------------------------- */
typedef struct tp_ctx tp_ctx; /* fields for the layers below: core/ctx.h */
/* AUTO: cuBLASLt on a GPU, and our own kernels wherever it declines. */
typedef enum tp_gemm_choice { TP_GEMM_AUTO, TP_GEMM_OWN, TP_GEMM_CUBLASLT } tp_gemm_choice;
typedef struct tp_ctx_opts {
    tp_device device;
    bool meta;           /* META: infer shapes and plan memory, hold no bytes, run no kernel */
    bool fast;           /* sums may run in whatever order is fastest, so bits may differ */
    bool bf16_products;  /* f32 products on the CPU round their operands to bf16 (matmul/gemm.h) */
    tp_gemm_choice gemm; /* who multiplies matrices on a GPU */
    int threads;         /* 0: every core this process may run on */
    size_t memory_limit; /* bytes the pool may use; 0: the machine's memory */
    uint64_t seed;       /* keys every random number of the ctx */
    long fail_alloc_at;  /* tests: the n-th allocation from here fails (1 = the next); 0: never */
    char *why;           /* NULL, or TP_WHY_BYTES that get the sentence if no ctx can be made */
} tp_ctx_opts;
tp_status tp_ctx_new(tp_ctx **out, const tp_ctx_opts *opts); /* on failure *out is NULL */
/* For a thread beside c's: one thread, else as c. A failure is c's. c may be in use meanwhile; what
 * the other computes with must be its own (tp_tensor_borrow). */
tp_status tp_ctx_beside(tp_ctx **out, tp_ctx *c);
void tp_ctx_free(tp_ctx *c);
/* ---- errors --------------------------------------------------------------------------------- */
/* Records "scope: message" if it is the first failure; returns code. */
tp_status tp_fail(tp_ctx *c, tp_status code, const char *fmt, ...) TP_PRINTF(3, 4);
tp_status tp_error_status(const tp_ctx *c); /* 0 while nothing has failed */
const char *tp_error(const tp_ctx *c);      /* the sentence, "" if none */
void tp_clear(tp_ctx *c);                   /* forget the failure */
const char *tp_status_name(tp_status s);    /* "shape mismatch" */
/* An invariant that no input can break. Fails the call with TP_EINTERNAL; never aborts. */
#define TP_CHECK(c, cond)                                                                          \
    do {                                                                                           \
        if (!(cond))                                                                               \
            return tp_fail(c, TP_EINTERNAL, "%s:%d: internal check failed: %s", __FILE__,          \
                           __LINE__, #cond);                                                       \
    } while (0)
/* ---- memory --------------------------------------------------------------------------------- */
/* Heap memory of the host; NULL plus a recorded TP_ENOMEM on failure. */
void *tp_malloc(tp_ctx *c, size_t bytes);
void *tp_calloc(tp_ctx *c, size_t n, size_t bytes_each);
void *tp_realloc(tp_ctx *c, void *p, size_t bytes);
char *tp_strdup(tp_ctx *c, const char *s);
void tp_free(void *p);
/* Step arena: lives until tp_step_end. No free. */
void *tp_arena_alloc(tp_ctx *c, size_t bytes);
const char *tp_arena_printf(tp_ctx *c, const char *fmt, ...) TP_PRINTF(2, 3);
size_t tp_memory_used(const tp_ctx *c);     /* pool bytes in use now */
size_t tp_memory_peak(const tp_ctx *c);     /* highest pool address ever used, in bytes */
uint64_t tp_system_allocs(const tp_ctx *c); /* calls this ctx made to the system's allocator */
/* ---- tensors -------------------------------------------------------------------------------- */
enum { TP_MAXDIM = 6, TP_WHY_BYTES = 512 };
typedef struct tp_tensor {
    struct tp_storage *storage; /* bytes, shared by views */
    void *data;                 /* first element; NULL under META and for empty tensors */
    int64_t offset;             /* of the first element in storage, in elements, also under META */
    tp_dtype dtype;
    int ndim; /* 0 for a scalar */
    int64_t shape[TP_MAXDIM];
    int64_t stride[TP_MAXDIM];     /* in elements */
    const char *name;              /* parameters: "wte.weight"; else NULL */
    bool requires_grad, released;  /* released: its scope was closed, nobody may use it any more */
    int node, out;                 /* which call of the tape made it; node < 0: a leaf */
    int id;                        /* %id in the printed tape; 0 until printed or recorded */
    struct tp_tensor *grad;        /* leaves: d loss / d this, summed by tp_backward; NULL: none */
    struct tp_tensor *grad_header; /* grad's header, kept from step to step */
} tp_tensor;
/* new: lives until the step ends. keep: until the ctx does. view: new header, same bytes. */
tp_tensor *tp_tensor_new(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape);
tp_tensor *tp_tensor_keep(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape);
tp_tensor *tp_tensor_view(tp_ctx *c, tp_tensor *base);
/* A header in c, until it ends, over the bytes of another ctx's tensor, which must outlive it: for
 * a thread beside that ctx's, to read. */
tp_tensor *tp_tensor_borrow(tp_ctx *c, const tp_tensor *of);
int64_t tp_numel(const tp_tensor *t);
int64_t tp_dim(const tp_tensor *t, int i); /* negative i counts from the end */
bool tp_contiguous(const tp_tensor *t);
bool tp_same_shape(const tp_tensor *a, const tp_tensor *b);
const char *tp_shape_str(tp_ctx *c, const tp_tensor *t); /* "f32[2,4]", step lifetime */
void tp_touch(tp_tensor *t);                             /* the bytes were changed in place */
static inline float *tp_f32(const tp_tensor *t) { return (float *)t->data; }
static inline double *tp_f64(const tp_tensor *t) { return (double *)t->data; }
static inline int32_t *tp_i32(const tp_tensor *t) { return (int32_t *)t->data; }
/* A dense tensor's bytes from and to this process's memory; the only way to them on a GPU. */
tp_status tp_upload(tp_ctx *c, tp_tensor *t, const void *host);
tp_tensor *tp_tensor_from(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape, const void *host);
tp_status tp_download(tp_ctx *c, const tp_tensor *t, void *host); /* waits for what computes it */
tp_status tp_zero(tp_ctx *c, tp_tensor *t);
tp_status tp_sync(tp_ctx *c);     /* every kernel is done; what one of them met fails the ctx */
size_t tp_dtype_size(tp_dtype t); /* bytes per value (blocks come with compress/) */
const char *tp_dtype_name(tp_dtype t); /* "f32" */
bool tp_is_float(tp_dtype t);
/* A scope names a part of the model and bounds the life of what is computed in it: closing releases
 * every tensor made since, save `keep` (and what the tape holds for backward). Returns keep. */
typedef struct tp_scope {
    size_t mark;
    int name_len;
} tp_scope;
tp_scope tp_scope_open(tp_ctx *c, const char *fmt, ...) TP_PRINTF(2, 3);
tp_tensor *tp_scope_close(tp_ctx *c, tp_scope s, tp_tensor *keep);
void tp_scope_close_n(tp_ctx *c, tp_scope s, tp_tensor *const *keep, int n); /* NULLs may be */
void tp_step_end(tp_ctx *c); /* step tensors, the arena and the tape are gone; memory is kept */
/* ---- randomness: Philox4x32-10 (Salmon et al. 2011), the same on host and device ------------ */
/* Four words from key (seed, purpose) and counter (a, b): 128 independent bits, no state. */
void tp_philox(uint32_t out[4], uint64_t seed, uint32_t purpose, uint64_t a, uint64_t b);
double tp_uniform(uint64_t seed, uint32_t purpose, uint64_t a, uint64_t b); /* (0,1), 53 bits */
double tp_normal(uint64_t seed, uint32_t purpose, uint64_t a, uint64_t b);  /* N(0,1), Box-Muller */
enum { TP_RNG_INIT = 1, TP_RNG_SHUFFLE, TP_RNG_DROPOUT, TP_RNG_SAMPLE, TP_RNG_TEST };
enum { TP_RNG_ROUND = TP_RNG_TEST + 1, TP_RNG_TASK, TP_RNG_ROUTE };
/* Where in training we are; dropout reads it. sample: global number of this micro-batch's first. */
void tp_rng_at(tp_ctx *c, uint64_t step, uint64_t sample);
/* ---- threads -------------------------------------------------------------------------------- */
typedef void (*tp_range_fn)(void *arg, int64_t begin, int64_t end);
/* Calls fn over [0,n) in chunks of `grain`, on the ctx's threads. Chunks depend on n and grain
 * only, so whatever a chunk computes has the same bits for any number of threads. */
void tp_parallel_for(tp_ctx *c, int64_t n, int64_t grain, tp_range_fn fn, void *arg);
int tp_threads(const tp_ctx *c);
double tp_now(void); /* seconds, monotonic */
#ifdef __cplusplus
}
#endif
#endif
