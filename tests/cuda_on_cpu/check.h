/* What the emulator's tests share: launching, and that a launch went well or was reported. */
#ifndef TP_EMU_CHECK_H
#define TP_EMU_CHECK_H
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
extern "C" {
#include <cmocka.h>
}
#include "cuda_on_cpu.h"

#define LAUNCH(grid, block, smem, ...)                                                             \
    emu_launch(#__VA_ARGS__, dim3(grid), dim3(block), smem, [=] { __VA_ARGS__; })

/* Every order of threads and blocks that the tests try, and every policy for deferred work. */
static const char *const orders[] = {"forward", "reverse", "random:1", "random:2", "random:3"};
static const char *const policies[] = {"late", "early", "random:1", "random:2", "random:3"};

/* The launch went well. */
static inline void assert_fine(void) {
    if (cudaGetLastError() != cudaSuccess) fail_msg("%s", emu_last_error());
}
/* The launch failed with a sentence that has all of `parts`. */
static inline void assert_reported(const char *const *parts) {
    if (cudaGetLastError() == cudaSuccess) fail_msg("not reported; expected \"%s\"", parts[0]);
    for (; *parts; parts++)
        if (!strstr(emu_last_error(), *parts))
            fail_msg("\"%s\" is not in \"%s\"", *parts, emu_last_error());
    emu_clear_error();
}
#define REPORTED(...)                                                                              \
    do {                                                                                           \
        const char *const parts_[] = {__VA_ARGS__, nullptr};                                       \
        assert_reported(parts_);                                                                   \
    } while (0)

static inline float *on_device(const float *h, size_t n) {
    float *d;
    assert_int_equal(cudaMalloc(&d, n * sizeof *d), cudaSuccess);
    if (h) assert_int_equal(cudaMemcpy(d, h, n * 4, cudaMemcpyHostToDevice), cudaSuccess);
    return d;
}
static inline void to_host(void *h, const void *d, size_t bytes) {
    assert_int_equal(cudaMemcpy(h, d, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}
#endif
