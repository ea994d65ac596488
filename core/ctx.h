/* The inside of a context, for the layers that build on it (ops, autograd). Users do not need it.
 */
#ifndef TP_CTX_H
#define TP_CTX_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_pool tp_pool;
typedef struct tp_storage tp_storage;
struct tp_storage {
    void *base;       /* NULL under META */
    size_t at, bytes; /* place in the pool */
    int refs;         /* headers that are not released, plus what the tape saved */
    uint32_t version; /* grows with every in-place change */
};

struct tp_call;
struct tp_ctx {
    tp_device device;
    const struct tp_backend *backend;  /* NULL: the CPU, or META */
    void *on_device;                   /* the backend's own; a tp_cuda */
    const char *(*op_name)(int which); /* names the op of a fault that a kernel reports */
    bool fast, bf16_products;          /* tp_ctx_opts */
    tp_gemm_choice gemm;               /* the same */
    bool as_decoded;                   /* a forward pass must have the bits of decoding */
    bool meta, keep_all;               /* keep_all: scopes release nothing (printing, teaching) */
    int threads, isa;                  /* isa: 1 portable, 3 AVX2+FMA, 4 AVX-512 */
    struct tp_team *team;              /* the threads beside the ctx's own; NULL: none yet */
    uint64_t seed, step, sample;
    uint32_t stream; /* dropout sites passed so far in this forward */
    double flops;    /* of every op run since it was last zeroed */

    tp_status status;
    char message[768];
    char scope[160]; /* "blk0.mlp" */
    int scope_len;

    tp_pool *pool;
    struct tp_arena *step_arena, *keep_arena;
    tp_tensor **live; /* headers made this step, in order; scopes are ranges of it */
    size_t nlive, cap_live;
    tp_storage *spare; /* recycled storage headers */
    uint64_t sys_allocs;
    long fail_alloc_at;

    /* The tape's hooks. NULL: nothing is recorded, and autograd/ need not be linked. */
    void *tape;
    tp_status (*record)(tp_ctx *c, const struct tp_call *call);
    /* The gradient that t has gathered so far, if the vjp that is running may add to it in place
     * instead of making another one; else NULL. */
    tp_tensor *(*grad_partial)(tp_ctx *c, const tp_tensor *t);
    void (*tape_end)(tp_ctx *c);         /* called by tp_step_end */
    void (*tape_free)(tp_ctx *c);        /* called by tp_ctx_free */
    bool recording;                      /* gradients are being tracked */
    bool backward;                       /* running a vjp: calls print as (backward) */
    const struct tp_kernel *only_kernel; /* tests: no other kernel may be chosen */
};

/* pool.c: one address range per device, best fit, lowest address first, neighbours merge. The
 * sequence of calls alone decides every address, so META predicts the peak exactly. */
tp_pool *tp_pool_new(tp_ctx *c, size_t limit); /* 0: what the device has */
void tp_pool_free(tp_ctx *c, tp_pool *p);
tp_status tp_pool_take(tp_ctx *c, size_t bytes, size_t *at, void **mem);
void tp_pool_give(tp_ctx *c, size_t at, size_t bytes);
size_t tp_pool_limit(const tp_ctx *c);
void tp_pool_forget_peak(tp_ctx *c); /* tp_memory_peak counts from here on */

/* Bytes of the device (to/from as in memcpy), in the order of its kernels; nothing under META. */
tp_status tp_upload_bytes(tp_ctx *c, void *to, const void *host, size_t n);
tp_status tp_download_bytes(tp_ctx *c, void *host, const void *from, size_t n);
tp_status tp_copy_bytes(tp_ctx *c, void *to, const void *from, size_t n);

tp_storage *tp_storage_new(tp_ctx *c, size_t bytes); /* refs = 1 */
void tp_storage_retain(tp_storage *s);
void tp_storage_drop(tp_ctx *c, tp_storage *s);
void tp_release(tp_ctx *c, tp_tensor *t); /* this header's claim ends now */
tp_tensor
tp_retained(const tp_tensor *t); /* another header for the same bytes, which are its too */
bool tp_alloc_fails(tp_ctx *c);  /* counts; true when fail_alloc_at strikes */
tp_tensor *tp_header_new(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape); /* no bytes yet */
tp_status tp_tensor_bytes(tp_ctx *c, tp_tensor *t); /* give a header its storage */
void tp_strides_set(tp_tensor *t);                  /* row-major, from shape */
void tp_view_shift(tp_tensor *view, int64_t n);     /* it begins n elements further on */
#ifdef __cplusplus
}
#endif
#endif
