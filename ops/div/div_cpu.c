/* div on the CPU. */
#include "ops/elementwise.h"

TP_BINARY_CPU(div_cpu, x / y)
