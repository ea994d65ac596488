/* Everything a program built on Tapir includes. Builders of ops: ops/NAME/NAME.h each, and
 * <tapir/ops.h> has all of them. */
#ifndef TAPIR_H
#define TAPIR_H
#include "core/core.h"
#include "ops/op.h"
#include "autograd/autograd.h"
#include "nn/nn.h"
#include "nn/routes.h"
#include "dist/dist.h"
#include "optim/optim.h"
#include "optim/gradients.h"
#include "infer/infer.h"
#include "infer/engine.h"
#include "data/chat.h"
#include "data/checkpoint.h"
#include "data/config.h"
#include "data/corpus.h"
#include "data/loader.h"
#include "data/metrics.h"
#include "data/prepare.h"
#include "data/sft.h"
#include "data/textsource.h"
#include "data/tfevents.h"
#include "data/tokenizer.h"
#include "rl/advantage.h"
#include "rl/reward.h"
#include "rl/task.h"
#endif
