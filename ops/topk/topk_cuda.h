/* Radix select on CUDA: the key that n of a row's keys reach (topk_math.h), eight bits a pass. */
#ifndef TP_TOPK_CUDA_H
#define TP_TOPK_CUDA_H
#include "ops/cuda.h"
#include "ops/topk/topk_math.h"

enum { TOPK_DIGITS = 256 };

/* The n-th largest key of x[0], x[step], … (count values), 1 <= n <= count, or a smaller number
 * that just as many reach. For all threads of a block, which get the same answer. */
template <typename T>
static __device__ __forceinline__ uint64_t topk_nth_key(const T *x, int64_t step, int64_t count_all,
                                                        int64_t n) {
    TP_SHARED(uint32_t, count, TOPK_DIGITS);
    TP_SHARED(uint32_t, found, 3); /* the digit, how many have a larger one, how many have it */
    int me = threadIdx.x, lane = me % 32;
    uint32_t want = (uint32_t)n;
    uint64_t known = 0;
    int shift = 64;
    do {
        shift -= 8;
        for (int d = me; d < TOPK_DIGITS; d += blockDim.x) count[d] = 0;
        __syncthreads();
        for (int64_t i = me; i < count_all; i += blockDim.x) {
            uint64_t key = topk_key(tp_to_f32(tp_ldg(x + i * step)), i);
            if (shift == 56 || key >> (shift + 8) == known)
                atomicAdd(&count[(key >> shift) & (TOPK_DIGITS - 1)], 1u);
        }
        __syncthreads();
        if (me < 32) { /* lane l looks at eight digits, the largest of all first */
            uint32_t mine = 0, reach;
            int top = TOPK_DIGITS - 1 - 8 * lane;
            for (int d = 0; d < 8; d++) mine += count[top - d];
            reach = mine;
            for (int m = 1; m < 32; m *= 2) {
                uint32_t left = __shfl_up_sync(0xffffffffu, reach, (unsigned)m);
                if (lane >= m) reach += left;
            }
            uint32_t above = reach - mine;
            if (above < want && want <= reach)
                for (int d = 0; d < 8; d++) {
                    uint32_t here = count[top - d];
                    if (above + here >= want) {
                        found[0] = (uint32_t)(top - d);
                        found[1] = above;
                        found[2] = here;
                        break;
                    }
                    above += here;
                }
        }
        __syncthreads();
        known = known << 8 | (uint32_t)found[0];
        want -= found[1];
    } while (found[2] != want && shift);
    return known << shift;
}
#endif
