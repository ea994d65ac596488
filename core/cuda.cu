/* Owns the CUDA device of a context: its stream, memory, copies and failures. */
#include "core/cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

tp_status tp_cuda_check(tp_ctx *c, cudaError_t e, const char *what) {
    if (e == cudaSuccess) return TP_OK;
    tp_status st = tp_fail(c, e == cudaErrorMemoryAllocation ? TP_ENOMEM : TP_EINTERNAL,
                           "%s: CUDA: %s", what, cudaGetErrorString(e));
    cudaGetLastError(); /* it is told: else the next launch, of any context, would be blamed */
    return st;
}

/* ---- opening -------------------------------------------------------------------------------- */
/* The first of these variables that is set; 0 if none is. */
static int told(const char *const *names) {
    for (; *names; names++)
        if (getenv(*names)) return atoi(getenv(*names));
    return 0;
}
/* This rank's number among those of its machine, and how many ranks there are: Open MPI, MPICH and
 * Intel MPI, Slurm's srun. */
static int local_rank(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                        "SLURM_LOCALID", NULL};
    int rank = told(names);
    return rank < 0 ? 0 : rank;
}
static int world_size(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", NULL};
    return told(names);
}

/* Whose kernels run on it. Hopper's own are empty in a program that was not compiled for sm_90a. */
static int kernels_for(int major, int minor) {
#if defined(TP_CUDA_ON_CPU) || defined(TAPIR_SM90A)
    return 10 * major + minor;
#else
    return major == 9 ? 80 : 10 * major + minor;
#endif
}

static int local_size(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", NULL};
    return told(names);
}

/* Two ranks would fight for one GPU's memory. Where each may have been shown another, or the
 * launcher does not say how many there are, `which` tells once they have met. */
static tp_status check_ranks(tp_ctx *c, int gpus) {
    int ranks = local_size();
    if (ranks <= gpus || getenv("CUDA_VISIBLE_DEVICES")) return TP_OK;
    return tp_fail(c, TP_EARG,
                   "%d ranks here, but %d GPU%s: each rank needs one of its own; start %d on this "
                   "machine, and raise train.micro_batches to have the same batch",
                   ranks, gpus, gpus > 1 ? "s" : "", gpus);
}

static void cuda_which(tp_ctx *c, unsigned char id[TP_DEVICE_ID_BYTES]) {
    cudaDeviceProp p;
    memset(id, 0, TP_DEVICE_ID_BYTES);
    if (!tp_cuda_check(c, cudaGetDeviceProperties(&p, tp_cuda_of(c)->device), "asking the GPU"))
        memcpy(id, p.uuid.bytes, TP_DEVICE_ID_BYTES);
}

static tp_status take_device(tp_ctx *c, tp_cuda *g) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n == 0)
        return tp_fail(c, TP_ENOKERNEL, "device: cuda needs an NVIDIA GPU and its driver (%s)",
                       e != cudaSuccess ? cudaGetErrorString(e) : "no GPU was found");
    if (check_ranks(c, n)) return c->status;
    g->device = local_rank() % n; /* a GPU for each rank */
    cudaDeviceProp p;
    tp_status st = tp_cuda_check(c, cudaSetDevice(g->device), "choosing the GPU");
    if (!st) st = tp_cuda_check(c, cudaGetDeviceProperties(&p, g->device), "asking the GPU");
    if (st) return st;
    if (p.major < 8)
        return tp_fail(c, TP_ENOKERNEL,
                       "device: cuda needs compute capability 8.0 or later, %s has %d.%d", p.name,
                       p.major, p.minor);
    g->sm = kernels_for(p.major, p.minor);
    g->multiprocessors = p.multiProcessorCount;
    g->shared_optin = p.sharedMemPerBlockOptin;
    return TP_OK;
}

int tp_cuda_sm(const tp_ctx *c) {
    const tp_cuda *g = tp_cuda_of(c);
    int n = 0, major = 8, minor = 0;
    if (g) return g->sm;
    if (cudaGetDeviceCount(&n) == cudaSuccess && n > 0) {
        int device = local_rank() % n;
        if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ||
            cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device))
            major = 8, minor = 0;
    }
    cudaGetLastError();
    return kernels_for(major, minor);
}

static bool cuda_describe(char *to, size_t bytes) {
    int n = 0;
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n) e = cudaGetDeviceProperties(&p, 0);
    const bool none = e != cudaSuccess || !n;
    if (none)
        snprintf(to, bytes, "no GPU (%s)", e != cudaSuccess ? cudaGetErrorString(e) : "none found");
    else
        snprintf(to, bytes, "%s, %.0f GiB, compute capability %d.%d%s", p.name,
                 (double)p.totalGlobalMem / (double)(1 << 30), p.major, p.minor,
                 n > 1 ? ", and others" : "");
    return !none;
}

static void cuda_close(tp_ctx *c) {
    tp_cuda *g = tp_cuda_of(c);
    if (!g) return;
    if (g->stream) cudaStreamSynchronize(g->stream);
    if (g->blas) g->blas_free(g->blas);
    if (g->graph) cudaGraphExecDestroy(g->graph);
    for (int i = 0; i < TP_STAGES; i++) {
        if (g->staged[i]) cudaEventDestroy(g->staged[i]);
        if (g->stage[i]) cudaFreeHost(g->stage[i]);
    }
    if (g->fault) cudaFree(g->fault);
    if (g->stream) cudaStreamDestroy(g->stream);
    tp_free(g);
    c->on_device = NULL;
}

static tp_status cuda_open(tp_ctx *c) {
    tp_cuda *g = (tp_cuda *)tp_calloc(c, 1, sizeof *g);
    if (!g) return c->status;
    c->on_device = g;
    tp_status st = take_device(c, g);
    if (!st)
        st = tp_cuda_check(c, cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking),
                           "making a stream");
    if (!st) st = tp_cuda_check(c, cudaMalloc((void **)&g->fault, sizeof *g->fault), "memory");
    if (!st)
        st = tp_cuda_check(c, cudaMemsetAsync(g->fault, 0xff, sizeof *g->fault, g->stream),
                           "memory");
    for (int i = 0; i < TP_STAGES && !st; i++) {
        st = tp_cuda_check(c, cudaMallocHost((void **)&g->stage[i], TP_STAGE_BYTES),
                           "pinned memory");
        if (!st)
            st = tp_cuda_check(c, cudaEventCreateWithFlags(&g->staged[i], cudaEventDisableTiming),
                               "making an event");
    }
    return st;
}

/* ---- memory --------------------------------------------------------------------------------- */
/* What the driver, cuBLASLt and other processes may still need; under mpirun NCCL as well, which
 * takes its buffers when ranks first meet, after the pool is there. */
static size_t left_free(void) { return (size_t)(world_size() > 1 ? 2048 : 512) << 20; }

static void *cuda_reserve(tp_ctx *c, size_t *bytes) {
    size_t free_bytes = 0, all = 0;
    void *range = NULL;
    if (tp_cuda_check(c, cudaMemGetInfo(&free_bytes, &all), "asking for free memory")) return NULL;
    size_t left = left_free(), can = free_bytes > 2 * left ? free_bytes - left : free_bytes / 2;
    if (!*bytes || *bytes > can) *bytes = can;
    *bytes &= ~(size_t)255;
    if (tp_cuda_check(c, cudaMalloc(&range, *bytes), "taking the GPU's memory")) return NULL;
    return range;
}

static void cuda_release(tp_ctx *c, void *range) {
    (void)c;
    cudaFree(range);
}

/* ---- gathered launches ---------------------------------------------------------------------- */
tp_status tp_cuda_send(tp_ctx *c) {
    tp_cuda_gathered *g = &tp_cuda_of(c)->gathered;
    if (!g->launch) return TP_OK;
    tp_status (*launch)(tp_ctx * c, const void *items, int n) = g->launch;
    g->launch = NULL; /* what it launches asks for this again */
    return launch(c, g->items, g->n);
}

tp_status tp_cuda_gather(tp_ctx *c, tp_status (*launch)(tp_ctx *c, const void *items, int n),
                         const void *item, size_t bytes) {
    tp_cuda_gathered *g = &tp_cuda_of(c)->gathered;
    tp_status st = TP_OK;
    if (g->launch && (g->launch != launch || (size_t)(g->n + 1) * bytes > TP_GATHER_BYTES))
        st = tp_cuda_send(c);
    if (st) return st;
    if (!g->launch) g->n = 0;
    g->launch = launch;
    memcpy(g->items + (size_t)g->n++ * bytes, item, bytes);
    return TP_OK;
}

/* ---- copies --------------------------------------------------------------------------------- */
/* Through a ring of pinned blocks, so that the host goes on while the bytes travel. */
static tp_status cuda_upload(tp_ctx *c, void *to, const void *host, size_t bytes) {
    const size_t STAGE = TP_STAGE_BYTES;
    tp_cuda *g = tp_cuda_of(c);
    tp_status st = TP_OK;
    for (size_t done = 0, n; done < bytes && !st; done += n) {
        int i = g->next_stage;
        g->next_stage = (i + 1) % TP_STAGES;
        n = bytes - done < STAGE ? bytes - done : STAGE;
        if ((st = tp_cuda_check(c, cudaEventSynchronize(g->staged[i]), "upload"))) break;
        memcpy(g->stage[i], (const char *)host + done, n);
        st = tp_cuda_check(c,
                           cudaMemcpyAsync((char *)to + done, g->stage[i], n,
                                           cudaMemcpyHostToDevice, tp_cuda_stream(c)),
                           "upload");
        if (!st) st = tp_cuda_check(c, cudaEventRecord(g->staged[i], tp_cuda_stream(c)), "upload");
    }
    return st;
}

/* A fault's code is the op's place in its table and the position of the value (ops/cuda.h). */
static tp_status report_fault(tp_ctx *c, unsigned long long first) {
    tp_cuda *g = tp_cuda_of(c);
    if (first == ~0ull) return TP_OK;
    tp_status st =
        tp_cuda_check(c, cudaMemsetAsync(g->fault, 0xff, sizeof *g->fault, tp_cuda_stream(c)),
                      "clearing a fault");
    if (st) return st;
    const char *op = c->op_name ? c->op_name((int)(first >> 40)) : "a kernel";
    return tp_fail(c, TP_EARG, "%s: value %llu of the indices is out of range", op,
                   first & ((1ull << 40) - 1));
}

static tp_status cuda_sync(tp_ctx *c) {
    tp_cuda *g = tp_cuda_of(c);
    unsigned long long first = ~0ull;
    tp_status st = tp_cuda_check(c,
                                 cudaMemcpyAsync(&first, &g->fault->first, sizeof first,
                                                 cudaMemcpyDeviceToHost, tp_cuda_stream(c)),
                                 "waiting for the GPU");
    if (!st) st = tp_cuda_check(c, cudaStreamSynchronize(tp_cuda_stream(c)), "waiting for the GPU");
    return st ? st : report_fault(c, first);
}

static tp_status cuda_download(tp_ctx *c, void *host, const void *from, size_t bytes) {
    tp_status st = tp_cuda_check(
        c, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, tp_cuda_stream(c)),
        "download");
    return st ? st : cuda_sync(c);
}

static tp_status cuda_copy(tp_ctx *c, void *to, const void *from, size_t bytes) {
    return tp_cuda_check(
        c, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, tp_cuda_stream(c)), "copy");
}

static tp_status cuda_fill(tp_ctx *c, void *to, int byte, size_t bytes) {
    return tp_cuda_check(c, cudaMemsetAsync(to, byte, bytes, tp_cuda_stream(c)), "fill");
}

/* ---- graphs --------------------------------------------------------------------------------- */
static tp_status cuda_record_begin(tp_ctx *c) {
    return tp_cuda_check(
        c, cudaStreamBeginCapture(tp_cuda_stream(c), cudaStreamCaptureModeThreadLocal),
        "recording a step");
}

static tp_status cuda_replay(tp_ctx *c) {
    cudaStream_t stream = tp_cuda_stream(c);
    return tp_cuda_check(c, cudaGraphLaunch(tp_cuda_of(c)->graph, stream), "replaying a step");
}

static tp_status cuda_record_end(tp_ctx *c) {
    tp_cuda *g = tp_cuda_of(c);
    cudaGraph_t made = NULL;
    tp_status st =
        tp_cuda_check(c, cudaStreamEndCapture(tp_cuda_stream(c), &made), "recording a step");
    if (g->graph) cudaGraphExecDestroy(g->graph);
    g->graph = NULL;
    if (!st) st = tp_cuda_check(c, cudaGraphInstantiate(&g->graph, made, 0), "recording a step");
    if (made) cudaGraphDestroy(made);
    return st ? st : cuda_replay(c);
}

static void cuda_record_discard(tp_ctx *c) {
    cudaGraph_t made = NULL;
    tp_cuda_of(c)->gathered.launch = NULL;
    cudaStreamEndCapture(tp_cuda_of(c)->stream, &made);
    cudaGetLastError();
    if (made) cudaGraphDestroy(made);
}

extern "C" const tp_backend tp_cuda_backend = {
    .name = "cuda",
    .describe = cuda_describe,
    .open = cuda_open,
    .close = cuda_close,
    .which = cuda_which,
    .reserve = cuda_reserve,
    .release = cuda_release,
    .upload = cuda_upload,
    .download = cuda_download,
    .copy = cuda_copy,
    .fill = cuda_fill,
    .send = tp_cuda_send,
    .sync = cuda_sync,
    .record_begin = cuda_record_begin,
    .record_end = cuda_record_end,
    .record_discard = cuda_record_discard,
    .replay = cuda_replay,
    .carry_new = tp_cuda_carry_new,
    .carry_free = tp_cuda_carry_free,
    .carry_out = tp_cuda_carry_out,
    .carry_arrived = tp_cuda_carry_arrived,
    .carry_in = tp_cuda_carry_in,
#if defined(TP_CUDA_ON_CPU)
    .poison = true,
#else
    .poison = false,
#endif
};
