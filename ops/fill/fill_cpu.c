/* fill on the CPU: the value is rounded once, then its bytes are repeated. */
#include "ops/broadcast.h"
#include "ops/elementwise.h"
#include "ops/fill/fill_attr.h"

typedef struct fill_job {
    char *y;
    size_t size;
    _Alignas(8) char one[8];
} fill_job;

static void fill_range(void *arg, int64_t begin, int64_t end) {
    const fill_job *j = arg;
    tp_pack(j->y + begin * (int64_t)j->size, j->one, 0, end - begin, j->size);
}

static tp_status fill_all(const tp_call *k) {
    fill_job j = {.y = k->out[0]->data, .size = tp_dtype_size(k->out[0]->dtype)};
    fill_value(k, j.one);
    tp_parallel_for(k->ctx, tp_numel(k->out[0]), TP_ELEMENT_GRAIN, fill_range, &j);
    return TP_OK;
}
TP_CPU_KERNEL(fill_cpu, .run = fill_all);
