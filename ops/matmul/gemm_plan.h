/* gemm_plan: how a gemm is cut into tasks, blocks and stages. Private to ops/matmul.
 *
 * The cut decides speed and workspace, never a result: see gemm.h for why. It counts k in units:
 * steps, or in bf16 pairs of steps, which take as much room. */
#ifndef TP_GEMM_PLAN_H
#define TP_GEMM_PLAN_H
#include "ops/matmul/gemm.h"

enum {
    /* Steps of k, and values and rows of A packed at a time: the block of A, and a panel of B, stay
     * in an L2 of 1 MiB beside AVX-512 and of 512 KiB beside AVX2. A short k leaves room for more
     * rows, among which the packing of B is shared. */
    GEMM_KC_V4 = 768,
    GEMM_A_V4 = 256 * 768,
    GEMM_KC = 384,
    GEMM_MC = 192,
    GEMM_NC = 2048,     /* columns of C between two returns to the same k: keeps C in L3 */
    GEMM_NC_TREE = 512, /* the same where partial sums lie in buffers of their own */
    GEMM_FEW = 8        /* up to so many rows, B is read once, where it lies */
};

/* C is cut into tasks_m x tasks_n tasks, one thread each. A task is cut into blocks of mc x nc, a
 * block's k range into stages of kc steps, which are packed into panels of mr rows or nr columns.
 */
typedef struct gemm_plan {
    int mr, nr;
    bool few; /* no blocks at all: gemm_few_cpu.c */
    int64_t tasks_m, tasks_n;
    int64_t mc, nc;
    int64_t k, leaf, leaves;  /* units; of a leaf (the last may be shorter); leaves */
    int64_t leaf_steps;       /* a leaf's steps of k */
    int64_t kc;               /* units per stage: whole leaves, or a part of one */
    int64_t stages_per_leaf;  /* > 1: a chain is carried from stage to stage */
    int64_t leaves_per_stage; /* > 1 only where stages_per_leaf is 1 */
    /* Subtrees that can wait to be merged: the small ones begin and end in a stage, so a buffer of
     * one tile serves all tiles; the others wait from stage to stage, each tile's for itself. */
    int small_levels, levels;
    bool carry;                         /* the running chain cannot lie in C, which holds addends */
    size_t a_bytes, b_bytes, buf_bytes; /* workspace of one task */
} gemm_plan;

gemm_plan tp_gemm_plan(const tp_gemm *g, int threads, int mr, int nr);

/* The product of at most GEMM_FEW rows, on the ctx's threads or, with c = NULL, on this one. */
void tp_gemm_few_v1(tp_ctx *c, const tp_gemm *g);
#if defined(__x86_64__)
void tp_gemm_few_v3(tp_ctx *c, const tp_gemm *g);
void tp_gemm_few_v4(tp_ctx *c, const tp_gemm *g);
#endif

#define INLINE static inline __attribute__((always_inline))
static inline int64_t gemm_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t gemm_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t gemm_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline size_t gemm_task_bytes(const gemm_plan *p) {
    return p->a_bytes + p->b_bytes + p->buf_bytes;
}
#endif
