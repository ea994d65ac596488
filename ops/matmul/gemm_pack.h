/* gemm_pack: copies a panel of an operand, `width` of its rows or columns for a range of k, into
 * the order in which the tile function reads it. Private to gemm_cpu.c. */
#ifndef TP_GEMM_PACK_H
#define TP_GEMM_PACK_H
#include "ops/matmul/gemm_bf16.h"
#include "ops/matmul/gemm_plan.h"

/* dst[k*width + i] = src[i*s_i + k*s_k] for i < count, 0 for count <= i < width. */
INLINE void store_width(float *dst, v16 x, const int width, const int v) {
    const int n = width - v * TP_LANES;
    if (n >= TP_LANES) {
        v16_store(dst + v * TP_LANES, x);
    } else if (TP_ISA >= 4) {
        v16_store_n(dst + v * TP_LANES, x, n);
    } else { /* narrower masked stores are slow; a copy of constant size is not */
        float f[TP_LANES];
        v16_store(f, x);
        memcpy(dst + v * TP_LANES, f, (size_t)n * sizeof(float));
    }
}

INLINE void pack_panel(float *dst, const int width, int count, int64_t kc, const float *src,
                       int64_t s_i, int64_t s_k) {
    const int nv = (width + TP_LANES - 1) / TP_LANES;
    if (s_i == 1 && count == width && width % TP_LANES == 0) { /* the usual panel of B */
#pragma GCC unroll 4
        for (int64_t k = 0; k < kc; k++)
            for (int v = 0; v < nv; v++)
                v16_store(dst + k * width + v * TP_LANES, v16_load(src + k * s_k + v * TP_LANES));
    } else if (s_i == 1) {
        for (int64_t k = 0; k < kc; k++)
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) {
                const float *q = src + k * s_k + v * TP_LANES;
                int n = v16_lanes(count, v);
                store_width(dst + k * width, n == TP_LANES ? v16_load(q) : v16_load_n(q, n), width,
                            v);
            }
    } else if (s_k == 1) {
        for (int64_t k = 0; k < kc; k += TP_LANES)
            for (int v = 0; v < nv; v++) {
                int kn = (int)gemm_min(kc - k, TP_LANES), n = v16_lanes(count, v);
                const float *q = src + v * TP_LANES * s_i + k;
                v16 r[TP_LANES];
                if (kn == TP_LANES && n == TP_LANES) {
#pragma GCC unroll 16
                    for (int i = 0; i < TP_LANES; i++) r[i] = v16_load(q + i * s_i);
                } else {
                    for (int i = 0; i < TP_LANES; i++)
                        r[i] = i < n ? v16_load_n(q + i * s_i, kn) : v16_zero();
                }
                v16_transpose(r);
                if (kn == TP_LANES) {
#pragma GCC unroll 16
                    for (int j = 0; j < TP_LANES; j++)
                        store_width(dst + (k + j) * width, r[j], width, v);
                } else {
                    for (int j = 0; j < kn; j++) store_width(dst + (k + j) * width, r[j], width, v);
                }
            }
    } else {
        for (int64_t k = 0; k < kc; k++)
            for (int i = 0; i < width; i++)
                dst[k * width + i] = i < count ? src[i * s_i + k * s_k] : 0.0f;
    }
}

/* The same in bf16: dst[u*width + i] is the pair of src[i*s_i + k*s_k] at k = 2u and 2u + 1, for
 * `steps` steps; an odd last one is paired with zero. */
INLINE void pack_pairs(const bool dot, float *dst, const int width, int count, int64_t steps,
                       const float *src, int64_t s_i, int64_t s_k) {
    const int nv = (width + TP_LANES - 1) / TP_LANES;
    const int64_t units = (steps + 1) / 2;
    if (s_i == 1) {
        for (int64_t u = 0; u < units; u++)
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) {
                const float *q = src + 2 * u * s_k + v * TP_LANES;
                int n = v16_lanes(count, v);
                v16 even = v16_load_n(q, n);
                v16 odd = 2 * u + 1 < steps ? v16_load_n(q + s_k, n) : v16_zero();
                store_width(dst + u * width, v16_pairs(dot, even, odd), width, v);
            }
    } else if (s_k == 1) {
        for (int64_t u = 0; u < units; u += TP_LANES)
            for (int v = 0; v < nv; v++) {
                int un = (int)gemm_min(units - u, TP_LANES), n = v16_lanes(count, v);
                int64_t kn = gemm_min(steps - 2 * u, 2 * TP_LANES);
                const float *q = src + v * TP_LANES * s_i + 2 * u;
                v16 r[TP_LANES];
                if (kn == 2 * TP_LANES && n == TP_LANES) {
#pragma GCC unroll 16
                    for (int i = 0; i < TP_LANES; i++)
                        r[i] = v16_pairs_along(dot, v16_load(q + i * s_i),
                                               v16_load(q + i * s_i + TP_LANES));
                } else {
                    for (int i = 0; i < TP_LANES; i++) {
                        v16 x = v16_zero(), y = v16_zero();
                        if (i < n) x = v16_load_n(q + i * s_i, v16_lanes(kn, 0));
                        if (i < n && kn > TP_LANES)
                            y = v16_load_n(q + i * s_i + TP_LANES, v16_lanes(kn, 1));
                        r[i] = v16_pairs_along(dot, x, y);
                    }
                }
                v16_transpose(r);
#pragma GCC unroll 16
                for (int j = 0; j < TP_LANES; j++)
                    if (j < un) store_width(dst + (u + j) * width, r[j], width, v);
            }
    } else {
        for (int64_t u = 0; u < units; u++)
            for (int i = 0; i < width; i++) {
                const float *q = src + i * s_i + 2 * u * s_k;
                float even = i < count ? q[0] : 0.0f;
                float odd = i < count && 2 * u + 1 < steps ? q[s_k] : 0.0f;
                float pair[TP_LANES];
                v16_store(pair, v16_pairs(dot, v16_set1(even), v16_set1(odd)));
                dst[u * width + i] = pair[0];
            }
    }
}
#endif
