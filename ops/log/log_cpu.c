/* log on the CPU. */
#include "ops/elementwise.h"
#include "ops/log/log_math.h"

TP_UNARY_CPU(log_cpu, log_f(x))
