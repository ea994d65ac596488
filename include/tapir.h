/* Everything a program built on Tapir includes. Builders of single ops are in ops/NAME/NAME.h. */
#ifndef TAPIR_H
#define TAPIR_H
#include "core/core.h"
#include "ops/op.h"
#include "autograd/autograd.h"
#include "nn/nn.h"
#include "nn/routes.h"
#include "optim/optim.h"
#include "infer/infer.h"
#include "data/checkpoint.h"
#include "data/config.h"
#include "data/corpus.h"
#include "data/loader.h"
#include "data/metrics.h"
#include "data/prepare.h"
#include "data/textsource.h"
#include "data/tfevents.h"
#include "data/tokenizer.h"
#endif
