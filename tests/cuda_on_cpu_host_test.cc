/* The host's side of the emulator in tests/cuda_on_cpu/: the runtime's functions refuse what CUDA
 * refuses, graphs replay, errors stay until looked at, device memory kills who touches it and tells
 * of kernels that race for it. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cublasLt.h"
#include "cuda_on_cpu/check.h"

/* ---- bf16 ------------------------------------------------------------------------------------ */
static void test_bf16(void **state) {
    (void)state;
    for (unsigned i = 0; i < 65536; i++) {
        float f = __bfloat162float(__ushort_as_bfloat16((unsigned short)i));
        unsigned got = __float2bfloat16_rn(f).bits;
        assert_int_equal(got, f == f ? i : 0x7fff);
        float up = nextafterf(f, INFINITY);
        if (f == f && !isinf(f) && f != 0) assert_int_equal(__float2bfloat16_rn(up).bits, i);
    }
    assert_int_equal(__float2bfloat16_rn(1 + 1.0f / 256).bits, 0x3f80); /* ties to even */
    assert_int_equal(__float2bfloat16_rn(1 + 3.0f / 256).bits, 0x3f82);
    assert_int_equal(__float2bfloat16_rn(3.4e38f).bits, 0x7f80);
    float2 f = __bfloat1622float2(__floats2bfloat162_rn(2, -3));
    assert_true(f.x == 2 && f.y == -3);
}
template <typename T> constexpr bool can_add = requires(T *p, T v) { atomicAdd(p, v); };
static_assert(can_add<int> && can_add<unsigned>, "integers");
static_assert(!can_add<float> && !can_add<double>, "a sum's order must not depend on the schedule");

/* ---- the host API ---------------------------------------------------------------------------- */
static void axpy(float *y, const float *x, float a, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] += a * x[i];
}
struct alignas(64) wide {
    float x[16];
}; /* as a tensor map is */
static void add_wide(float *y, const wide &w) {
    emu_check_aligned(&w, 64, "the parameter");
    y[threadIdx.x] += w.x[threadIdx.x % 16];
}
static void test_graph(void **state) {
    (void)state;
    enum { N = 1000 };
    float x[N], y[N], *pinned;
    for (int i = 0; i < N; i++) x[i] = (float)i;
    float *dx = on_device(x, N), *dy = on_device(nullptr, N);
    cudaStream_t s;
    cudaGraph_t g;
    cudaGraphExec_t exec;
    cudaStreamCaptureStatus status;
    size_t nodes = 0;
    cudaMallocHost(&pinned, sizeof y);
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    pinned[7] = -1;
    assert_int_equal(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), 0);
    cudaStreamIsCapturing(s, &status);
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    cudaMemsetAsync(dy, 0, sizeof y, s);
    for (int k = 1; k <= 2; k++) {
        float a = (float)k;
        emu_launch_kernel("axpy", (const void *)axpy, dim3(4), dim3(256), 0, s,
                          [=] { axpy(dy, dx, a, N); });
    }
    wide w = {};
    emu_launch_kernel("add_wide", nullptr, dim3(1), dim3(N), 0, s, [=] { add_wide(dy, w); });
    cudaMemcpyAsync(pinned, dy, sizeof y, cudaMemcpyDeviceToHost, s);
    assert_int_equal(cudaStreamEndCapture(s, &g), 0);
    assert_true(pinned[7] == -1); /* nothing has run */
    cudaGraphGetNodes(g, nullptr, &nodes);
    assert_int_equal(nodes, 5);
    assert_int_equal(cudaGraphInstantiate(&exec, g, 0), 0);
    cudaGraphDestroy(g);
    for (int r = 0; r < 3; r++) {
        x[7] = (float)(r + 1);
        cudaMemcpy(dx, x, sizeof x, cudaMemcpyHostToDevice);
        assert_int_equal(cudaGraphLaunch(exec, s), 0);
        assert_int_equal(cudaStreamSynchronize(s), 0);
        for (int i = 0; i < N; i++) assert_true(pinned[i] == 3 * x[i]);
    }
    cudaGraphExecDestroy(exec);
    cudaStreamDestroy(s);
    cudaFreeHost(pinned), cudaFree(dx), cudaFree(dy);
}

/* What breaks a capture: waits, memory taken or given back, copies of pageable memory. */
static void test_capture_forbids(void **state) {
    (void)state;
    enum { CALLS = 10 };
    static const char *const said[CALLS] = {
        "a wait for a stream that captures",
        "a wait for a stream that captures",
        "a wait for an event",
        "a wait for an event",
        "cudaMalloc while",
        "cudaFree while",
        "cudaMallocHost while",
        "cudaMemcpy while",
        "not from or to pinned memory",
        "not from or to pinned memory",
    };
    float h[8] = {0}, *d = on_device(h, 8), *p = nullptr;
    cudaStream_t s;
    cudaEvent_t e;
    cudaGraph_t g;
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaEventCreate(&e);
    cudaEventRecord(e, s);
    for (int i = 0; i < CALLS; i++) {
        assert_int_equal(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), 0);
        cudaError_t got = i == 0   ? cudaStreamSynchronize(s)
                          : i == 1 ? cudaDeviceSynchronize()
                          : i == 2 ? cudaEventSynchronize(e)
                          : i == 3 ? cudaEventQuery(e)
                          : i == 4 ? cudaMalloc(&p, 32)
                          : i == 5 ? cudaFree(d)
                          : i == 6 ? cudaMallocHost(&p, 32)
                          : i == 7 ? cudaMemcpy(h, d, 32, cudaMemcpyDeviceToHost)
                          : i == 8 ? cudaMemcpyAsync(d, h, 32, cudaMemcpyHostToDevice, s)
                                   : cudaMemcpyAsync(h, d, 32, cudaMemcpyDeviceToHost, s);
        assert_int_equal(got, cudaErrorStreamCaptureUnsupported);
        assert_int_equal(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureInvalidated);
        REPORTED(said[i]);
    }
    cudaEventDestroy(e);
    cudaStreamDestroy(s);
    cudaFree(d);
}

static void big(void) {
    TP_SHARED_DYNAMIC(smem);
    if (threadIdx.x == 0) tp_sts(smem + 49152, (unsigned char)1);
}
static void both(void) {
    TP_SHARED(float4, box, 1024); /* 16 KB */
    TP_SHARED_DYNAMIC(smem);
    if (threadIdx.x == 0) tp_sts(smem, (unsigned char)1);
    if (threadIdx.x == 1) box[0] = make_float4(0, 0, 0, 0);
}
/* The limit is for a block's static and dynamic shared memory together. */
static void test_shared_limit(void **state) {
    (void)state;
    const void *f = (const void *)both;
    emu_launch_kernel("both", f, dim3(1), dim3(32), 32768, nullptr, [=] { both(); });
    assert_fine();
    emu_launch_kernel("both", f, dim3(1), dim3(32), 32784, nullptr, [=] { both(); });
    REPORTED("box: 16384 bytes of static and 32784 of dynamic shared memory, allowed are 49152");
    emu_set_sm(90);
    cudaFuncSetAttribute(both, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448);
    emu_launch_kernel("both", f, dim3(1), dim3(32), 216064, nullptr, [=] { both(); });
    assert_fine();
    emu_launch_kernel("both", f, dim3(1), dim3(32), 216080, nullptr, [=] { both(); });
    REPORTED("allowed are 232448 together");
    emu_set_sm(0);
}

static void test_host_api(void **state) {
    (void)state;
    float h[8] = {0}, *d = on_device(h, 8);
    assert_int_not_equal(cudaMemcpy(h, h, 32, cudaMemcpyDeviceToHost), 0);
    REPORTED("cudaMemcpy: the source, 32 bytes", "should be device memory and is not");
    assert_int_not_equal(cudaMemcpy(d, d, 32, cudaMemcpyDeviceToHost), 0);
    REPORTED("the destination at", "should be host memory and is the device's");
    assert_int_not_equal(cudaMemcpyAsync(d, d, 32, cudaMemcpyHostToDevice, nullptr), 0);
    REPORTED("the source at", "should be host memory and is the device's");
    assert_int_not_equal(cudaMemcpy(d, h, 33, cudaMemcpyHostToDevice), 0);
    REPORTED("the destination, 33 bytes", "is not inside one allocation");
    assert_int_not_equal(cudaMemset(h, 0, 32), 0);
    REPORTED("cudaMemset: the destination");
    assert_int_not_equal(cudaFree(d + 1), 0);
    REPORTED("which cudaMalloc did not give");
    void *p = d;
    cudaFree(d);
    assert_int_not_equal(cudaFree(p), 0);
    REPORTED("which cudaMalloc did not give");
    d = on_device(h, 8);
    assert_ptr_equal(d, p); /* addresses repeat */
    cudaFree(d);
    assert_int_equal(cudaMalloc(&p, (size_t)9 << 30), cudaErrorMemoryAllocation);
    REPORTED("out of memory");

    const void *f = (const void *)big;
    emu_set_sm(90);
    emu_launch_kernel("big", f, dim3(1), dim3(32), 60000, nullptr, [=] { big(); });
    REPORTED("big: 60000 bytes of dynamic shared memory, allowed are 49152 (cudaFuncSetAttribute");
    assert_int_not_equal(
        cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449), 0);
    REPORTED("the device has 232448");
    cudaFuncSetAttribute(big, cudaFuncAttributeMaxDynamicSharedMemorySize, 60000);
    emu_launch_kernel("big", f, dim3(1), dim3(32), 60000, nullptr, [=] { big(); });
    assert_fine();
    emu_set_sm(80);
    cudaDeviceProp prop;
    cudaGetDeviceProperties(&prop, 0);
    assert_string_equal(prop.name, "CPU emulation");
    assert_int_equal(prop.major, 8);
    LAUNCH(1, 1025, 0, big());
    REPORTED("cannot run");
    LAUNCH(dim3(1, 65536), 32, 0, big());
    REPORTED("cannot run");
    LAUNCH(0, 32, 0, big());
    REPORTED("cannot run");
    emu_set_sm(0);

    cudaEvent_t a, b;
    float ms = -1;
    cudaEventCreateWithFlags(&a, 0), cudaEventCreateWithFlags(&b, cudaEventDisableTiming);
    cudaEventRecord(a, nullptr), cudaEventRecord(b, nullptr);
    assert_int_equal(cudaEventElapsedTime(&ms, a, a), 0);
    assert_true(ms == 0);
    assert_int_not_equal(cudaEventElapsedTime(&ms, a, b), 0);
    REPORTED("keeps no time");
    cudaEventDestroy(a), cudaEventDestroy(b);
}

/* An algorithm of cuBLASLt serves pointers as aligned as it was chosen for, and no others. */
static void test_cublaslt_alignment(void **state) {
    (void)state;
    enum { N = 8 };
    float one = 1, zero = 0, *d = on_device(nullptr, 4 * N * N);
    cublasLtHandle_t h;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t x;
    cublasLtMatmulPreference_t p;
    cublasLtMatmulHeuristicResult_t found[EMU_LT_ALGOS];
    uint64_t room = 0;
    int n = 0;
    cudaMemset(d, 0, 4 * N * N * sizeof *d);
    cublasLtCreate(&h);
    cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatrixLayoutCreate(&x, CUDA_R_32F, N, N, N);
    cublasLtMatmulPreferenceCreate(&p);
    cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room,
                                         sizeof room);
    for (int i = 0; i < 4; i++) {
        uint32_t bytes = 16;
        int what = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i;
        cublasLtMatmulPreferenceSetAttribute(p, (cublasLtMatmulPreferenceAttributes_t)what, &bytes,
                                             sizeof bytes);
    }
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(h, op, x, x, x, x, p, EMU_LT_ALGOS, found, &n),
                     0);
    assert_true(n > 0);
    for (int off = 0; off < 4; off++) { /* of a, of b, of c, of none */
        const float *a = d + (off == 0), *b = d + N * N + (off == 1);
        float *c = d + 2 * N * N + (off == 2);
        cublasStatus_t got = cublasLtMatmul(h, op, &one, a, x, b, x, &zero, c, x, c, x,
                                            &found[0].algo, nullptr, 0, nullptr);
        assert_int_equal(got, off < 3 ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS);
    }
    assert_fine();
    cublasLtMatmulPreferenceDestroy(p);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatmulDescDestroy(op);
    cublasLtDestroy(h);
    cudaFree(d);
}

/* x through shared memory, with a mistake in the index unless off is 0 */
static void stage(float *x, int off) {
    TP_SHARED(float, box, 256);
    int t = (int)threadIdx.x;
    box[t + off] = x[t];
    __syncthreads();
    x[t] = box[t];
}
/* After a failure that nobody looked at, nothing runs. */
static void test_sticky(void **state) {
    (void)state;
    float h = 1, *d = on_device(nullptr, 256);
    cudaMemcpy(d, &h, 4, cudaMemcpyHostToDevice);
    LAUNCH(1, 256, 0, stage(d, 1));
    assert_int_equal(cudaPeekAtLastError(), cudaErrorLaunchFailure);
    assert_int_equal(cudaMemset(d, 0, 4), cudaErrorLaunchFailure);
    assert_int_equal(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    assert_non_null(strstr(cudaGetErrorString(cudaErrorLaunchFailure), "stage(d, 1)"));
    assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    to_host(&h, d, 4);
    assert_true(h == 1);
    emu_clear_error();
    cudaFree(d);
}

/* Does fn(arg) kill the process? */
static bool kills(void (*fn)(void *), void *arg) {
    fflush(stdout);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        signal(SIGSEGV, SIG_DFL); /* not cmocka's, which would call it a failed test */
        fn(arg);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
}
static void read_it(void *p) { (void)*(volatile float *)p; }
static void write_it(void *p) { *(volatile float *)p = 1; }
static __attribute__((noinline)) int overflow(int depth) {
    volatile char room[4096];
    room[depth] = (char)depth;
    int below = depth > 0 ? overflow(depth - 1) : 0;
    return below + room[depth];
}
static void launch_overflow(void *depth) { LAUNCH(1, 32, 0, overflow(*(int *)depth)); }
static void test_protection(void **state) {
    (void)state;
    float h[4] = {0}, *d = on_device(h, 4);
    assert_false(kills(read_it, h));
    assert_true(kills(read_it, d));
    assert_true(kills(write_it, d));
    LAUNCH(1, 1, 0, stage(d, 0)); /* a launch closes it again, */
    assert_fine();
    assert_true(kills(read_it, d));
    LAUNCH(1, 1, 0, stage(d, -1)); /* one that fails too */
    REPORTED("out of bounds");
    assert_true(kills(read_it, d));
    int shallow = 2, deep = 100;
    assert_false(kills(launch_overflow, &shallow));
    assert_true(kills(launch_overflow, &deep));
    cudaFree(d);
}

/* ---- races for device memory ----------------------------------------------------------------- */
enum sharing {
    ALONE,         /* each thread has a place */
    BLOCKS_WRITE,  /* all blocks write one place */
    BLOCKS_READ,   /* a block reads what another writes */
    HANDED_ON,     /* the same, in a kernel that says that its flags order this */
    NEIGHBOURS,    /* a thread reads what one of another warp wrote */
    BARRIER,       /* … behind a barrier */
    LANES,         /* the same within a warp */
    LANES_IN_STEP, /* … behind a __syncwarp */
    WRITE_AFTER    /* a thread overwrites what another warp's read */
};
static void share(float *x, int how) {
    int t = (int)threadIdx.x, b = (int)blockIdx.x, mine = b * 64 + t;
    bool lanes = how == LANES || how == LANES_IN_STEP;
    if (how == HANDED_ON) emu_global_hand_on();
    if (how == BLOCKS_WRITE && t == 0) tp_stg(x, (float)b);
    if (how == BLOCKS_READ || how == HANDED_ON) {
        if (t == 0 && b == 0) tp_stg(x, 1.0f);
        if (t == 0 && b == 1) (void)tp_ldg(x);
    }
    if (how == WRITE_AFTER && t == 0) (void)tp_ldg(x + mine + 32);
    if (how < HANDED_ON && how != ALONE) return;
    tp_stg(x + mine, (float)t);
    if (how == BARRIER) __syncthreads();
    if (how == LANES_IN_STEP) __syncwarp();
    int other = lanes ? t ^ 1 : t ^ 32;
    if (how >= NEIGHBOURS && how <= LANES_IN_STEP) (void)tp_ldg(x + b * 64 + other);
}
static void test_global_races(void **state) {
    (void)state;
    static const struct {
        sharing how;
        const char *said; /* NULL: nothing */
    } cases[] = {{ALONE, nullptr},      {BLOCKS_WRITE, "of another block, written here"},
                 {HANDED_ON, nullptr},  {BLOCKS_READ, "of another block, read here"},
                 {BARRIER, nullptr},    {NEIGHBOURS, "no barrier between"},
                 {LANES, "no barrier"}, {LANES_IN_STEP, nullptr},
                 {ALONE, nullptr},      {WRITE_AFTER, "no barrier between"}};
    float *x = on_device(nullptr, 128);
    for (auto c : cases) {
        sharing how = c.how;
        cudaMemset(x, 0, 128 * 4);
        LAUNCH(2, 64, 0, share(x, how));
        if (c.said)
            REPORTED("race on device memory", c.said);
        else
            assert_fine();
    }
    cudaFree(x);
}

/* ---- streams that are late ------------------------------------------------------------------- */
static void add_one(float *x) { x[0] += 1; }
static void test_late_streams(void **state) {
    (void)state;
    float one = 1, got, *pinned, *x = on_device(&one, 1);
    cudaStream_t kernels, copies;
    cudaEvent_t asked, there;
    emu_set_streams("late");
    cudaMallocHost(&pinned, sizeof *pinned);
    cudaStreamCreate(&kernels), cudaStreamCreate(&copies);
    cudaEventCreate(&asked), cudaEventCreate(&there);
    *pinned = -1;
    for (int waits = 0; waits < 2; waits++) { /* a copy beside a kernel: behind it if it waits */
        emu_launch_kernel("add_one", nullptr, dim3(1), dim3(1), 0, kernels, [=] { add_one(x); });
        cudaEventRecord(asked, kernels);
        if (waits) cudaStreamWaitEvent(copies, asked, 0);
        cudaMemcpyAsync(pinned, x, sizeof *x, cudaMemcpyDeviceToHost, copies);
        cudaEventRecord(there, copies);
        assert_true(*pinned == (waits ? 1 : -1));
        assert_int_equal(cudaEventQuery(there), cudaErrorNotReady);
        assert_int_equal(cudaGetLastError(), cudaErrorNotReady); /* kept, as by CUDA */
        assert_int_equal(cudaFreeHost(pinned), cudaErrorInvalidValue);
        REPORTED("while a copy is under way");
        int turns = 0;
        while (cudaEventQuery(there) == cudaErrorNotReady && turns++ < 10) cudaGetLastError();
        assert_true(turns > 0 && turns < 10);
        assert_true(*pinned == (waits ? 3 : 1));
    }
    to_host(&got, x, sizeof got);
    cudaMemcpyAsync(pinned, x, sizeof *x, cudaMemcpyDeviceToHost, copies);
    cudaMemcpyAsync(&got, x, sizeof *x, cudaMemcpyDeviceToHost, kernels); /* pageable: at once */
    assert_true(got == 3);
    *pinned = -1;
    cudaStreamSynchronize(copies);
    assert_true(*pinned == 3);
    assert_fine();
    emu_clear_error();
    assert_int_equal(cudaEventDestroy(asked), 0);
    assert_int_equal(cudaEventDestroy(asked), cudaErrorInvalidResourceHandle);
    REPORTED("cudaEventDestroy of no event");
    assert_int_equal(cudaEventRecord(asked, kernels), cudaErrorInvalidResourceHandle);
    REPORTED("cudaEventRecord: no event");
    assert_int_equal(cudaStreamDestroy(copies), 0);
    assert_int_equal(cudaStreamDestroy(copies), cudaErrorInvalidResourceHandle);
    REPORTED("cudaStreamDestroy of no stream");
    assert_int_equal(cudaMemsetAsync(x, 0, 4, copies), cudaErrorInvalidResourceHandle);
    REPORTED("work for a stream that is gone");
    assert_int_equal(cudaEventDestroy(there), 0);
    assert_int_equal(cudaStreamDestroy(kernels), 0);
    assert_int_equal(cudaFreeHost(pinned), 0);
    assert_int_equal(cudaFree(x), 0);
    emu_set_streams("at once");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16),         cmocka_unit_test(test_graph),
        cmocka_unit_test(test_host_api),     cmocka_unit_test(test_sticky),
        cmocka_unit_test(test_protection),   cmocka_unit_test(test_capture_forbids),
        cmocka_unit_test(test_shared_limit), cmocka_unit_test(test_cublaslt_alignment),
        cmocka_unit_test(test_global_races), cmocka_unit_test(test_late_streams),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
