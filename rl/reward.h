/* reward: what completions are worth. Several rewards, each with a weight:
 *   exact_match  1 if the task says the answer is right, else 0
 *   format       1 if there is an answer at all (a "#" with something behind it), and an end
 *   steps        the part of the task's own solution, steps and answer, that the completion begins
 *                with: credit for every right step (not for a task from a file)
 *   length       -length / max_completion_length
 *   overlong     the soft punishment of rl.overlong_buffer (rl/advantage.h)
 *   program      a number from a command of the user's, which reads JSON lines {"prompt",
 *                "completion", "answer"} and writes one number a line ("nan" or "null": none) */
#ifndef TP_REWARD_H
#define TP_REWARD_H
#include "rl/task.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { TP_REWARDS_MOST = 8 };
typedef struct tp_reward_opts {
    const char *weights; /* "exact_match=1,format=0.1" */
    const char *program; /* shell command; "" where no weight names it */
    double timeout;      /* seconds for a batch */
    int64_t max_length, overlong_buffer;
} tp_reward_opts;
typedef struct tp_rewards tp_rewards;
/* TP_EARG for an unknown name, a weight that is no number or beyond 1e9, weights that are all 0, a
 * program or an overlong_buffer without what it goes with. The program is started at the first
 * batch and kept. */
tp_status tp_rewards_new(tp_rewards **out, tp_ctx *c, const tp_reward_opts *o);
void tp_rewards_free(tp_rewards *r); /* ends the program */
int tp_rewards_count(const tp_rewards *r);
const char *tp_rewards_name(const tp_rewards *r, int k);
const double *tp_rewards_weights(const tp_rewards *r);
bool tp_rewards_has(const tp_rewards *r, const char *name);

typedef struct tp_judged { /* one completion */
    tp_task_item item;
    const char *text; /* n bytes, without the stop token */
    size_t n;
    int64_t tokens;
    bool ended;
} tp_judged;
/* out (n, count): every reward of every completion. TP_EIO, in words, if the program died, took too
 * long or wrote something that is no number, or one beyond 1e9. */
tp_status tp_rewards_judge(tp_rewards *r, tp_ctx *c, const tp_task *t, const tp_judged *x,
                           int64_t n, double *out);
#ifdef __cplusplus
}
#endif
#endif
