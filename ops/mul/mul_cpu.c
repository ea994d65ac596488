/* mul on the CPU. */
#include "ops/elementwise.h"

TP_BINARY_CPU(mul_cpu, x *y)
