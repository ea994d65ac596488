/* Owns the copies between GPU and host that run beside the kernels: gradients and new weights on
 * their way to other ranks.
 *
 * A carry has a stream of its own, so its copies keep their order: what comes in was out before,
 * and the next one out does not overwrite what is still coming in. Two events order it against the
 * kernels: the copy out begins behind those asked for before it (asked), those asked for after the
 * copy in begin behind that (taken). The copy in need not wait for kernels itself: what it writes
 * to has been left alone since it went out. */
#include "core/cuda.h"
#include <stdio.h>

typedef struct carry {
    tp_carry pub; /* first */
    int device;
    cudaStream_t stream;
    cudaEvent_t asked, there, taken;
} carry;

static carry *of(tp_carry *k) { return (carry *)k; }

/* Returns when nothing reads or writes the memory any more. The ctx may be gone, and its stream. */
void tp_cuda_carry_free(tp_carry *pub) {
    carry *k = of(pub);
    if (!k) return;
    cudaSetDevice(k->device);
    if (k->stream) cudaStreamSynchronize(k->stream);
    if (k->asked) cudaEventDestroy(k->asked);
    if (k->there) cudaEventDestroy(k->there);
    if (k->taken) cudaEventDestroy(k->taken);
    if (k->stream) cudaStreamDestroy(k->stream);
    if (k->pub.host) cudaFreeHost(k->pub.host);
    cudaGetLastError(); /* of a GPU that has failed, which was told before */
    tp_free(k);
}

tp_status tp_cuda_carry_new(tp_carry **out, tp_ctx *c, size_t bytes) {
    *out = NULL;
    carry *k = (carry *)tp_calloc(c, 1, sizeof *k);
    if (!k) return c->status;
    k->device = tp_cuda_of(c)->device;
    k->pub.bytes = bytes;
    cudaEvent_t *event[] = {&k->asked, &k->there, &k->taken};
    tp_status st = tp_cuda_check(c, cudaMallocHost(&k->pub.host, bytes), "pinned memory");
    if (!st)
        st = tp_cuda_check(c, cudaStreamCreateWithFlags(&k->stream, cudaStreamNonBlocking),
                           "making a stream");
    for (int i = 0; i < 3 && !st; i++)
        st = tp_cuda_check(c, cudaEventCreateWithFlags(event[i], cudaEventDisableTiming),
                           "making an event");
    if (st)
        tp_cuda_carry_free(&k->pub);
    else
        *out = &k->pub;
    return st;
}

tp_status tp_cuda_carry_out(tp_ctx *c, tp_carry *pub, const tp_carry_part *part, int n) {
    static const char what[] = "copying to the host";
    carry *k = of(pub);
    tp_status st = tp_cuda_check(c, cudaEventRecord(k->asked, tp_cuda_stream(c)), what);
    if (!st) st = tp_cuda_check(c, cudaStreamWaitEvent(k->stream, k->asked, 0), what);
    for (int i = 0; i < n && !st; i++)
        st = tp_cuda_check(c,
                           cudaMemcpyAsync((char *)k->pub.host + part[i].at, part[i].device,
                                           part[i].bytes, cudaMemcpyDeviceToHost, k->stream),
                           what);
    return st ? st : tp_cuda_check(c, cudaEventRecord(k->there, k->stream), what);
}

/* "Not ready" is an answer, but CUDA keeps it as the thread's last error. */
tp_arrival tp_cuda_carry_arrived(tp_carry *pub, char *why, size_t room) {
    carry *k = of(pub);
    cudaError_t e = cudaSetDevice(k->device); /* each thread has a current device */
    if (!e) e = cudaEventQuery(k->there);
    if (e) cudaGetLastError();
    if (e == cudaErrorNotReady) return TP_UNDER_WAY;
    if (e) snprintf(why, room, "copying to the host: CUDA: %s", cudaGetErrorString(e));
    return e ? TP_LOST : TP_ARRIVED;
}

tp_status tp_cuda_carry_in(tp_ctx *c, tp_carry *pub, const tp_carry_part *part, int n) {
    static const char what[] = "copying from the host";
    carry *k = of(pub);
    tp_status st = TP_OK;
    for (int i = 0; i < n && !st; i++)
        st = tp_cuda_check(c,
                           cudaMemcpyAsync(part[i].device, (char *)k->pub.host + part[i].at,
                                           part[i].bytes, cudaMemcpyHostToDevice, k->stream),
                           what);
    if (!st) st = tp_cuda_check(c, cudaEventRecord(k->taken, k->stream), what);
    return st ? st : tp_cuda_check(c, cudaStreamWaitEvent(tp_cuda_stream(c), k->taken, 0), what);
}
