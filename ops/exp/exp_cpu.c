/* exp on the CPU. */
#include "ops/elementwise.h"
#include "ops/exp/exp_math.h"

TP_UNARY_CPU(exp_cpu, exp_f(x))
