#!/bin/sh
# `tapir export`: what it says of a model, what it refuses, and that nothing is left where it fails.
# The weights' bytes are tests/export_test.c's. $1: the tapir binary, $2: the source folder.
set -u
tapir=$1
src=$2
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
. "$src/tests/lib/runs.sh"
cd "$dir"
failed=0
fail() {
    failed=1
    echo "FAILED: $*"
}
# says CODE PATTERN COMMAND…: exit code, and one line on stderr that matches
says() {
    code=$1 pattern=$2
    shift 2
    "$@" >out 2>err </dev/null
    got=$?
    if [ "$got" != "$code" ] || [ "$(grep -vc '^Try `' err)" != 1 ] || ! grep -q -- "$pattern" err; then
        fail "$*: wanted exit $code and one line with \"$pattern\"; got exit $got:"
        cat err
    fi
}
works() { "$@" >out 2>err </dev/null || { fail "$*"; cat err; }; }
gone() { [ ! -e "$1" ] || fail "$1 was left behind"; }
train() { # train NAME WORDS…
    name=$1
    shift
    works "$tapir" train "$src/configs/tests/tiny.yaml" run.dir="$name" data.train=train.h5 data.val=val.h5 "$@"
}
make_corpus "$tapir" . 200

# ---- what it says of a model, as a whole --------------------------------------------------------
holds() { # holds FILE: it is what the standard input says
    cat >want
    diff want "$1" >out || { fail "$1"; cat out; }
}
folder_of() { # folder_of RUN: the four files and no other, the tokenizer to the byte
    [ "$(ls "to-$1" | tr '\n' ' ')" = 'config.json model.safetensors tokenizer.json tokenizer_config.json ' ] || fail "to-$1: $(ls "to-$1")"
    cmp "$1/tokenizer.json" "to-$1/tokenizer.json" || fail "to-$1: the tokenizer"
    holds "to-$1/tokenizer_config.json" <<TEXT
{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "model_max_length": 16,
  "eos_token": "<|endoftext|>"
}
TEXT
}
train gpt2 model.family=gpt2 model.ffn=48 model.layers=2
works "$tapir" export gpt2 to-gpt2
[ "$(cat out)" = "to-gpt2: 28 tensors of gpt2/checkpoints/step-00000006.h5, as GPT2LMHeadModel" ] || fail "it said: $(cat out)"
folder_of gpt2
holds to-gpt2/config.json <<TEXT
{
  "architectures": ["GPT2LMHeadModel"],
  "model_type": "gpt2",
  "n_layer": 2,
  "n_head": 2,
  "n_embd": 16,
  "n_inner": 48,
  "n_positions": 16,
  "activation_function": "gelu_new",
  "layer_norm_epsilon": 1e-5,
  "vocab_size": 300,
  "tie_word_embeddings": true,
  "dtype": "float32",
  "bos_token_id": null,
  "eos_token_id": 299
}
TEXT
train llama model.heads=4 model.kv_heads=2 model.ffn=40 model.tie_embeddings=false model.mlp_bias=true model.rope_theta=20000.5
works "$tapir" export llama to-llama
folder_of llama
holds to-llama/config.json <<TEXT
{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "num_hidden_layers": 1,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 4,
  "hidden_size": 16,
  "intermediate_size": 40,
  "max_position_embeddings": 16,
  "rope_theta": 20000.5,
  "rms_norm_eps": 1e-5,
  "hidden_act": "silu",
  "attention_bias": false,
  "mlp_bias": true,
  "vocab_size": 300,
  "tie_word_embeddings": false,
  "dtype": "float32",
  "bos_token_id": null,
  "eos_token_id": 299
}
TEXT
train qwen model.qk_norm=true model.head_dim=12 model.attention_bias=true model.norm_eps=0.001 eval.every=2 checkpoint.best=true
works "$tapir" export qwen to-qwen
folder_of qwen
holds to-qwen/config.json <<TEXT
{
  "architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3",
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "num_key_value_heads": 2,
  "head_dim": 12,
  "hidden_size": 16,
  "intermediate_size": 64,
  "max_position_embeddings": 16,
  "rope_theta": 10000.0,
  "rms_norm_eps": 0.001,
  "hidden_act": "silu",
  "attention_bias": true,
  "vocab_size": 300,
  "tie_word_embeddings": true,
  "dtype": "float32",
  "bos_token_id": null,
  "eos_token_id": 299
}
TEXT
# equal weights, equal bytes; another checkpoint, others
works "$tapir" export qwen/checkpoints/step-00000006.h5 by-file
cmp to-qwen/model.safetensors by-file/model.safetensors || fail "a checkpoint file"
works "$tapir" export qwen/checkpoints/step-00000002.h5 earlier
cmp -s to-qwen/model.safetensors earlier/model.safetensors && fail "another step has the same weights"
cp qwen/checkpoints/step-00000002.h5 qwen/checkpoints/best.h5
works "$tapir" export --best qwen best
cmp earlier/model.safetensors best/model.safetensors || fail "--best"
mkdir empty
works "$tapir" export gpt2 empty/
cmp empty/model.safetensors to-gpt2/model.safetensors || fail "an empty folder"
works "$tapir" export gpt2 new/folders/here
cmp new/folders/here/model.safetensors to-gpt2/model.safetensors || fail "a folder in new ones"

# ---- what no model of theirs computes -----------------------------------------------------------
refuses() { # refuses PATTERN WORDS…
    pattern=$1
    shift
    rm -rf odd
    train odd run.steps=1 "$@"
    says 1 "^tapir export: no model of transformers computes what odd/checkpoints/step-00000001.h5 does: .*$pattern" "$tapir" export odd to-odd
    gone to-odd
}
refuses mod.capacity mod.capacity=0.5 model.layers=2
refuses model.logit_softcap model.logit_softcap=30
refuses model.attn_softcap model.attn_softcap=50
refuses 'model.sliding_window, and model.qk_norm' model.sliding_window=8 model.qk_norm=true
refuses 'model.sliding_window, and model.qk_norm or biases' model.sliding_window=8 model.attention_bias=true
refuses 'a GPT-2 with a model.sliding_window' model.family=gpt2 model.sliding_window=8
refuses 'both model.qk_norm and model.mlp_bias' model.qk_norm=true model.mlp_bias=true
refuses 'a GPT-2 with model.qk_norm' model.family=gpt2 model.qk_norm=true
refuses 'a GPT-2 without biases' model.family=gpt2 model.attention_bias=false
refuses 'a GPT-2 without biases' model.family=gpt2 model.mlp_bias=false
refuses 'a GPT-2 with a model.head_dim' model.family=gpt2 model.head_dim=12

# ---- words, runs and folders that will not do ---------------------------------------------------
says 2 'which run' "$tapir" export
says 2 'into which folder' "$tapir" export gpt2
says 2 'into which folder' "$tapir" export gpt2 ''
says 2 'one run, one folder' "$tapir" export gpt2 a b
says 2 'FOLDER is too long' "$tapir" export gpt2 "$(printf '%01100d' 0)"
says 1 'no such run' "$tapir" export nothing a
train alone data.val= eval.every=0
says 1 'alone has no best checkpoint' "$tapir" export --best alone a
says 1 'train.h5' "$tapir" export train.h5 a
head -c 9000 gpt2/checkpoints/step-00000006.h5 >cut.h5
says 1 'cut.h5' "$tapir" export cut.h5 a
gone a
mkdir full
echo mine >full/.config
says 1 '^tapir export: full is not empty' "$tapir" export gpt2 full
[ "$(ls -A full)" = .config ] && [ "$(cat full/.config)" = mine ] || fail "a full folder was touched"
sum=$(cat to-gpt2/* | sha256sum)
says 1 'to-gpt2 is not empty' "$tapir" export llama to-gpt2
[ "$(cat to-gpt2/* | sha256sum)" = "$sum" ] || fail "an exported folder was touched"
says 1 'gpt2 is not empty' "$tapir" export gpt2 gpt2
says 1 'text.txt is no folder' "$tapir" export gpt2 text.txt
says 1 'text.txt/a is no folder' "$tapir" export gpt2 text.txt/a
ln -s nowhere dangling
says 1 'dangling' "$tapir" export gpt2 dangling
if [ -d /proc/self ]; then says 1 'cannot make the folder /proc/tapir' "$tapir" export gpt2 /proc/tapir; fi
if [ "$(id -u)" != 0 ]; then # whom no folder stops
    mkdir locked
    chmod a-w locked
    says 1 'cannot write' "$tapir" export gpt2 locked
    says 1 'cannot make the folder' "$tapir" export gpt2 locked/a
fi

# ---- a disk that is full, at the weights or at what comes after them ----------------------------
limited() { # limited BLOCKS COMMAND…: files of at most so many times 512 bytes; the message is one
    (
        ulimit -f "$1"
        shift
        exec "$@"
    )
}
bytes=$(wc -c <to-gpt2/model.safetensors)
for blocks in 1 8 $((bytes / 512)); do
    says 1 'a/model.safetensors: cannot write: File too large' limited $blocks "$tapir" export gpt2 a
    gone a
    mkdir a
    says 1 'a/model.safetensors: cannot write: File too large' limited $blocks "$tapir" export gpt2 a
    [ -z "$(ls -A a)" ] || fail "left in a folder that was empty: $(ls -A a)"
    rmdir a
done
# a small model with a large tokenizer
train small model.channels=2 model.ffn=2 model.tie_embeddings=true model.heads=1
says 1 'a/tokenizer.json: cannot write: File too large' limited 9 "$tapir" export small a
gone a
works "$tapir" export small a
exit $failed
