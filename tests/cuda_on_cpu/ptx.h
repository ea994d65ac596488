/* Kernels as nvcc has compiled them, in PTX, instead of as g++ has: TAPIR_EMU_PTX names a folder
 * with NAME.ptx for each NAME.cu. Every launch then runs what would run on a GPU, inline assembly
 * included, up to the last step, ptxas. ptx_find.cc finds a kernel, ptx.cc reads its text,
 * ptx_run.cc does what it says.
 *
 * Values of all types lie in slots of 64 bits, a thread's own; constants, special registers and
 * addresses of variables lie in slots as well, so that an operand is the number of a slot. */
#ifndef TP_EMU_PTX_H
#define TP_EMU_PTX_H
#include "internal.h"

enum ptx_type {
    PTX_NONE,
    PTX_B8,
    PTX_U8,
    PTX_S8,
    PTX_B16,
    PTX_U16,
    PTX_S16,
    PTX_BF16,
    PTX_B32,
    PTX_U32,
    PTX_S32,
    PTX_F32,
    PTX_BF16X2,
    PTX_B64,
    PTX_U64,
    PTX_S64,
    PTX_F64,
    PTX_PRED
};
enum ptx_space { PTX_GENERIC, PTX_GLOBAL, PTX_SHARED, PTX_PARAM };

/* X(what it does, how its name begins): the longest beginning counts. */
#define PTX_OPS(X)                                                                                 \
    X(ADD, "add.")                                                                                 \
    X(SUB, "sub.")                                                                                 \
    X(MUL, "mul.rn.")                                                                              \
    X(MUL_LO, "mul.lo.")                                                                           \
    X(MUL_HI, "mul.hi.")                                                                           \
    X(MUL_WIDE, "mul.wide.")                                                                       \
    X(MAD_LO, "mad.lo.")                                                                           \
    X(FMA, "fma.rn.")                                                                              \
    X(DIV, "div.")                                                                                 \
    X(REM, "rem.")                                                                                 \
    X(MIN, "min.")                                                                                 \
    X(MAX, "max.")                                                                                 \
    X(NEG, "neg.")                                                                                 \
    X(ABS, "abs.")                                                                                 \
    X(SQRT, "sqrt.rn.")                                                                            \
    X(RCP, "rcp.rn.")                                                                              \
    X(RCP_APPROX, "rcp.approx.ftz.")                                                               \
    X(EX2, "ex2.approx.ftz.")                                                                      \
    X(AND, "and.")                                                                                 \
    X(OR, "or.")                                                                                   \
    X(XOR, "xor.")                                                                                 \
    X(NOT, "not.")                                                                                 \
    X(SHL, "shl.")                                                                                 \
    X(SHR, "shr.")                                                                                 \
    X(BFI, "bfi.")                                                                                 \
    X(BFIND, "bfind.shiftamt.")                                                                    \
    X(BREV, "brev.")                                                                               \
    X(CLZ, "clz.")                                                                                 \
    X(POPC, "popc.")                                                                               \
    X(SETP, "setp.")                                                                               \
    X(SELP, "selp.")                                                                               \
    X(MOV, "mov.")                                                                                 \
    X(CVT, "cvt.")                                                                                 \
    X(CVTA_TO_SHARED, "cvta.to.shared.")                                                           \
    X(CVTA_SHARED, "cvta.shared.")                                                                 \
    X(CVTA, "cvta.")                                                                               \
    X(LD, "ld.")                                                                                   \
    X(LD_ACQUIRE, "ld.acquire.gpu.")                                                               \
    X(LD_RELAXED, "ld.relaxed.gpu.")                                                               \
    X(ST, "st.")                                                                                   \
    X(ST_RELEASE, "st.release.gpu.")                                                               \
    X(ST_RELAXED, "st.relaxed.gpu.")                                                               \
    X(ATOM_ADD, "atom.global.add.")                                                                \
    X(ATOM_MIN, "atom.global.min.")                                                                \
    X(ATOM_SHARED_ADD, "atom.shared.add.")                                                         \
    X(ATOM_SHARED_MIN, "atom.shared.min.")                                                         \
    X(BRA, "bra")                                                                                  \
    X(RET, "ret")                                                                                  \
    X(SHFL_UP, "shfl.sync.up.b32")                                                                 \
    X(SHFL_DOWN, "shfl.sync.down.b32")                                                             \
    X(SHFL_BFLY, "shfl.sync.bfly.b32")                                                             \
    X(SHFL_IDX, "shfl.sync.idx.b32")                                                               \
    X(BALLOT, "vote.sync.ballot.b32")                                                              \
    X(ANY, "vote.sync.any.pred")                                                                   \
    X(ALL, "vote.sync.all.pred")                                                                   \
    X(BAR_SYNC, "bar.sync")                                                                        \
    X(BAR_ARRIVE, "bar.arrive")                                                                    \
    X(BAR_WARP, "bar.warp.sync")                                                                   \
    X(NANOSLEEP, "nanosleep.u32")                                                                  \
    X(NOTHING, "fence.acq_rel.gpu")                                                                \
    X(NOTHING_PREFETCH, "prefetch.tensormap")                                                      \
    X(SETMAXNREG, "setmaxnreg.")                                                                   \
    X(MMA, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")                                  \
    X(LDMATRIX, "ldmatrix.sync.aligned.m8n8.x4.shared.b16")                                        \
    X(LDMATRIX_TRANS, "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16")                            \
    X(CP_ASYNC, "cp.async.cg.shared.global")                                                       \
    X(CP_COMMIT, "cp.async.commit_group")                                                          \
    X(CP_WAIT, "cp.async.wait_group")                                                              \
    X(MBAR_INIT, "mbarrier.init.shared::cta.b64")                                                  \
    X(MBAR_INIT_FENCE, "fence.mbarrier_init.release.cluster")                                      \
    X(MBAR_ARRIVE, "mbarrier.arrive.shared::cta.b64")                                              \
    X(MBAR_EXPECT, "mbarrier.arrive.expect_tx.shared::cta.b64")                                    \
    X(MBAR_WAIT, "mbarrier.try_wait.parity.shared::cta.b64")                                       \
    X(TMA_LOAD, "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes")     \
    X(TMA_STORE, "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group")                          \
    X(BULK_LOAD, "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes")              \
    X(BULK_STORE, "cp.async.bulk.global.shared::cta.bulk_group")                                   \
    X(BULK_ADD, "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32")                      \
    X(BULK_COMMIT, "cp.async.bulk.commit_group")                                                   \
    X(BULK_WAIT, "cp.async.bulk.wait_group")                                                       \
    X(BULK_WAIT_READ, "cp.async.bulk.wait_group.read")                                             \
    X(FENCE_ASYNC, "fence.proxy.async.shared::cta")                                                \
    X(FENCE_ASYNC_GLOBAL, "fence.proxy.async.global")                                              \
    X(WGMMA, "wgmma.mma_async.sync.aligned.m64n")                                                  \
    X(WGMMA_FENCE, "wgmma.fence.sync.aligned")                                                     \
    X(WGMMA_COMMIT, "wgmma.commit_group.sync.aligned")                                             \
    X(WGMMA_WAIT, "wgmma.wait_group.sync.aligned")
#define X(id, text) PTX_##id,
enum ptx_op { PTX_OPS(X) PTX_UNKNOWN };
#undef X

enum ptx_compare {
    PTX_EQ,
    PTX_NE,
    PTX_LT,
    PTX_LE,
    PTX_GT,
    PTX_GE,
    PTX_EQU, /* from here on: also if one is NaN */
    PTX_NEU,
    PTX_LTU,
    PTX_LEU,
    PTX_GTU,
    PTX_GEU,
    PTX_NUM,
    PTX_NAN
};

struct ptx_ins {
    ptx_op op;
    ptx_type type, from; /* from: what cvt reads */
    ptx_space space;
    int compare, vector; /* vector: how many values a load or store moves; a product's columns */
    int guard;           /* the slot of its predicate, -1: always */
    bool unless;         /* the predicate must be false */
    int narg, first;     /* first: how many of the operands the leading braces hold, or 1 */
    int results;         /* so many of the first operands are written */
    int *arg;            /* slots; -1: nobody wants it */
    int64_t offset;      /* of its address */
    unsigned unused;     /* a bit for each value of a load that nobody looks at */
    int target, line;
};
enum ptx_what { PTX_CONSTANT, PTX_SPECIAL, PTX_PARAMETER, PTX_VARIABLE, PTX_DYNAMIC };
struct ptx_fixed { /* a slot that is set before the first instruction */
    int slot;
    ptx_what what;
    uint64_t value; /* a constant; of a special register: its number; where a parameter lies */
    emu_site *site; /* a variable in shared memory */
    size_t size, align;
};
struct ptx_param {
    const char *name;
    size_t at, size, align;
};
struct ptx_kernel {
    const char *name, *file;
    const char *text; /* behind the name */
    bool read;
    const char *wrong; /* why it cannot run; NULL: it can */
    bool products;     /* of warpgroups: there are some */
    int slots, ncode, nfixed, nparams, max_threads;
    ptx_ins *code;
    ptx_fixed *fixed;
    ptx_param *param;
    size_t param_bytes;
    ptx_kernel *next;
};
enum { PTX_PARAM_BYTES = 4352 };

/* The special registers, in the order of ptx_fixed's numbers. */
enum { PTX_TID_X, PTX_NTID_X = 3, PTX_CTAID_X = 6, PTX_NCTAID_X = 9, PTX_NSPECIAL = 12 };

/* ptx.cc */
void *ptx_must(void *p); /* p, unless it is NULL: then memory is out, and the program ends */
char *ptx_copy(const char *s, size_t n);
const char *ptx_past_name(const char *s);
void ptx_read(ptx_kernel *k, const char *file_text);
/* ptx_find.cc. The kernel that the host knows by this address, read; NULL with a report: there is
 * none. */
ptx_kernel *ptx_find(const void *func, const char *folder);
/* ptx_run.cc. What a thread of the kernel does. */
void ptx_thread(const ptx_kernel *k, const unsigned char *params);
#endif
