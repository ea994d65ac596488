/* Learning-rate schedules: pure functions of the step, so a resumed run continues exactly.
 *
 * With W warm-up steps and N steps, step s counting from 0, r = min_lr_ratio:
 *   s < W:     (s+1)/W                             (1 at the last step of warm-up)
 *   constant:  1
 *   cosine:    r + (1-r) (1 + cos(pi q))/2,        q = (s - W)/(N-1 - W)
 *   linear:    1 - (1-r) q                         with the same q
 *   wsd:       1 - (1-r) q,                        q = (s - (N-1 - D))/D, D = decay_steps
 * with q held to [0,1], so that step N-1 and all after it stand at r. */
#include "optim/optim.h"
#include <math.h>

static double progress(int64_t step, int64_t from, int64_t to) {
    if (step >= to) return 1;
    return step <= from ? 0 : (double)(step - from) / (double)(to - from);
}

double tp_schedule_at(const tp_optim_opts *o, int64_t step) {
    int64_t last = o->steps - 1, warm = o->warmup_steps;
    double fall = 1 - o->min_lr_ratio, q;
    if (step < 0) step = 0;
    if (step < warm) return (double)(step + 1) / (double)warm;
    switch (o->schedule) {
    case TP_COSINE:
        q = progress(step, warm, last);
        return o->min_lr_ratio + fall * 0.5 * (1 + cos(3.14159265358979323846 * q));
    case TP_LINEAR:
        return 1 - fall * progress(step, warm, last);
    case TP_WSD:
        return 1 - fall * progress(step, last - o->decay_steps, last);
    case TP_CONSTANT:
        break;
    }
    return 1;
}
