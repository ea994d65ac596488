/* chat: conversations as token ids. A template puts its marks around each turn; what the model is
 * to learn (the assistant's words and the mark that ends them) is told apart from what it is given.
 *
 *   plain   the turns one after the other; the assistant's end with the end-of-text token
 *   chatml  <|im_start|>role\n … <|im_end|>\n, nothing after the last reply's   (OpenAI; Qwen)
 *   llama3  <|start_header_id|>role<|end_header_id|>\n\n … <|eot_id|>             (Meta)
 *   alpaca  ### Instruction:\n … \n\n### Response:\n … , then end-of-text       (Stanford Alpaca)
 *
 * Marks that the tokenizer has as special tokens become those; the same characters in a turn's own
 * text stay text, so that nobody can write a mark into a turn. Where the tokenizer lacks <|im_end|>
 * or <|eot_id|> the end-of-text token ends replies in its place: a reply's end is always one token.
 * A conversation begins as every text does (tp_encode_begin). */
#ifndef TP_CHAT_H
#define TP_CHAT_H
#include "data/tokenizer.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_chat_template {
    TP_CHAT_PLAIN,
    TP_CHAT_CHATML,
    TP_CHAT_ALPACA,
    TP_CHAT_LLAMA3
} tp_chat_template;
/* The template whose marks are tokens of t; PLAIN where there is none. */
tp_chat_template tp_chat_suits(const tp_tokenizer *t);
typedef struct tp_chat tp_chat;
/* t must outlive it and needs an end-of-text token: TP_EARG where it has none. */
tp_status tp_chat_new(tp_chat **out, tp_ctx *c, const tp_tokenizer *t, tp_chat_template kind);
void tp_chat_free(tp_chat *h);

typedef struct tp_conversation { /* start with {0} */
    tp_ids ids, trained;         /* trained: 1 for each id that the model is to learn, else 0 */
} tp_conversation;
void tp_conversation_clear(tp_conversation *v);
/* Appends a turn of n bytes. role: system, user or assistant; TP_EARG for another one. */
tp_status tp_chat_turn(tp_chat *h, tp_conversation *v, const char *role, const char *text,
                       int64_t n);
/* Appends what stands before the assistant's words: where a reply is to begin. */
tp_status tp_chat_reply(tp_chat *h, tp_conversation *v);
/* The token that ends a reply. */
int32_t tp_chat_end(const tp_chat *h);
#ifdef __cplusplus
}
#endif
#endif
