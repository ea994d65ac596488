/* What a device other than the CPU offers to a context. core/cuda.cu fills one for CUDA; a program
 * has it when that file is linked in, so nothing else needs CUDA (and the tests link one that
 * runs on the CPU). Every address handed out here is the device's: only kernels and the copies
 * below may follow it. */
#ifndef TP_DEVICE_H
#define TP_DEVICE_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Bytes on their way between the device and the host, beside the kernels: a buffer of the host's
 * pinned memory with what tells when it is filled. The backend's own lies behind it. */
typedef struct tp_carry {
    void *host;
    size_t bytes;
} tp_carry;
typedef struct tp_carry_part {
    void *device;
    size_t at, bytes; /* at: in the host's memory */
} tp_carry_part;
typedef enum tp_arrival { TP_UNDER_WAY, TP_ARRIVED, TP_LOST } tp_arrival;

enum { TP_DEVICE_ID_BYTES = 16 };

typedef struct tp_backend {
    const char *name;
    /* "NVIDIA H100, compute capability 9.0", or, false, why there is none; no ctx is needed. */
    bool (*describe)(char *to, size_t bytes);
    /* Takes the device and makes what c->on_device points to. Refuses in words. */
    tp_status (*open)(tp_ctx *c);
    void (*close)(tp_ctx *c);
    void (*which)(tp_ctx *c, unsigned char id[TP_DEVICE_ID_BYTES]); /* no other device has it */
    /* The pool's one range. *bytes: wanted, 0 for what the device can give; then what it got. */
    void *(*reserve)(tp_ctx *c, size_t *bytes);
    void (*release)(tp_ctx *c, void *range);
    /* All three in the order of the kernels. upload has taken the bytes when it returns; download
     * waits, and so is where a kernel's failure comes to light. */
    tp_status (*upload)(tp_ctx *c, void *to, const void *host, size_t bytes);
    tp_status (*download)(tp_ctx *c, void *host, const void *from, size_t bytes);
    tp_status (*copy)(tp_ctx *c, void *to, const void *from, size_t bytes);
    tp_status (*fill)(tp_ctx *c, void *to, int byte, size_t bytes);
    /* Kernels may be held back, to go together: now they are asked for. */
    tp_status (*send)(tp_ctx *c);
    tp_status (*sync)(tp_ctx *c); /* waits for every kernel so far and reports what they met */
    /* Kernels and copies asked for between begin and end are recorded; end runs them once, replay
     * again, with the same addresses and arguments. Nothing may wait in between. discard: after a
     * failure. One record at a time. */
    tp_status (*record_begin)(tp_ctx *c);
    tp_status (*record_end)(tp_ctx *c);
    void (*record_discard)(tp_ctx *c);
    tp_status (*replay)(tp_ctx *c);
    /* Copies beside the kernels; none of them waits. carry_out: to the host, once the kernels asked
     * for so far are done. carry_arrived: are the bytes there? Any thread may ask; LOST: why says
     * what happened. carry_in: after it, back to the device, where nothing may have touched the
     * bytes since; the kernels that are asked for next find them there. The next carry_out comes
     * behind it. carry_free does wait, for both, and needs no ctx. */
    tp_status (*carry_new)(tp_carry **out, tp_ctx *c, size_t bytes);
    void (*carry_free)(tp_carry *k);
    tp_status (*carry_out)(tp_ctx *c, tp_carry *k, const tp_carry_part *part, int n);
    tp_arrival (*carry_arrived)(tp_carry *k, char *why, size_t room);
    tp_status (*carry_in)(tp_ctx *c, tp_carry *k, const tp_carry_part *part, int n);
    bool poison; /* its memory is this process's: freed blocks may be poisoned for AddressSanitizer,
                    and blocks that are taken begin as NaN */
} tp_backend;

#if defined(__GNUC__) && !defined(TP_CUDA_LINKED)
extern const tp_backend tp_cuda_backend __attribute__((weak)); /* its address is NULL without */
#else
extern const tp_backend tp_cuda_backend;
#endif
#ifdef __cplusplus
}
#endif
#endif
