/* config.json: how Hugging Face's transformers says what a model computes. Of its models these are
 * ours: GPT-2 (gpt2), and, of the llama family, Llama, Mistral, Qwen 2 and Qwen 3. One table of
 * their words and ours serves both directions. */
#ifndef TP_HF_CONFIG_H
#define TP_HF_CONFIG_H
#include "data/config.h"
#include "data/text.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Why no model of theirs computes what cfg, resolved, says; NULL: one does. */
const char *tp_hf_none_computes(const tp_config *cfg);
/* That model's class: "Qwen3ForCausalLM". */
const char *tp_hf_class(const tp_config *cfg);
/* Whether that model has a bias behind the output of attention, which ours never have: zeros. */
bool tp_hf_output_bias(const tp_config *cfg);
/* Its config.json. eos: id of the token that ends a text, or -1. */
void tp_hf_config_write(tp_str *t, const tp_config *cfg, int32_t eos);

/* model.* and rope_scaling.* of cfg from n bytes of a config.json; name stands in messages. All
 * other keys stay; cfg is resolved. context: to be model.context, at most the model's own; 0: that.
 * TP_EFORMAT: no such file; TP_EARG: a model that computes what
 * Tapir does not, by the key that says so. */
tp_status tp_hf_config_read(tp_ctx *c, tp_config *cfg, int64_t context, const char *json, size_t n,
                            const char *name);
#ifdef __cplusplus
}
#endif
#endif
