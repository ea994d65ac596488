/* The checks behind op_test: each says what failed on stderr and counts it. */
#ifndef OPCHECK_H
#define OPCHECK_H
#include "autograd/autograd.h"

typedef struct op_report {
    const char *sample;
    int checks, failed, second_order, kernel_runs, mutants, oom;
    int64_t derivatives;
    double worst_derivative, worst_kernel;
} op_report;

void op_check_row(op_report *r, const tp_op *op);
void op_check_refusal(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_gradient(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_kernels(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_f32_gradient(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_bf16(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_threads(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_meta(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_oom(op_report *r, const tp_op *op, const tp_sample *s);

/* ---- shared by the two files ---------------------------------------------------------------- */
typedef enum op_layout { OP_DENSE, OP_TRANSPOSED, OP_SLICED, OP_NLAYOUT } op_layout;
int op_sample_nin(const tp_sample *s);
/* Kept tensors with the sample's values, rounded through f32 (bf16 if asked), of dtype dt. */
tp_status op_inputs(tp_ctx *c, const tp_sample *s, tp_dtype dt, op_layout layout, bool grad,
                    tp_tensor *in[TP_MAXIN]);
void op_expect(op_report *r, bool ok, const tp_op *op, const char *fmt, ...) TP_PRINTF(4, 5);
/* max |got - want| / (max |want| + 1e-6 of scale); NaN where got has one that want has not */
double op_error(const tp_tensor *got, const tp_tensor *want);
#endif
