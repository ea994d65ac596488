#!/bin/sh
# `tapir import`: what was exported comes back with the same bits and the same config, works as any
# run does, and what will not do is refused with nothing left behind. The formats' readers are
# tests/import_test.c's. $1: the tapir binary, $2: the source folder.
set -u
tapir=$1
src=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
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
make_corpus "$tapir" . 200

# ---- there and back -----------------------------------------------------------------------------
weights_of() { "$tapir" hash "$1" | cut -d' ' -f1; }
model_of() { sed -n '/^model:/,/^[a-z]/p; /^rope_scaling:/,/^[a-z]/p' "$1/config.yaml" | grep '^  [a-z]' | grep -v 'init_from\|init_std'; }
there_and_back() { # there_and_back NAME CLASS WORDS…
    name=$1 class=$2
    shift 2
    works "$tapir" train "$src/configs/tests/tiny.yaml" run.dir="$name" data.train=train.h5 data.val=val.h5 "$@"
    works "$tapir" export "$name" "to-$name"
    works "$tapir" import "to-$name" "back-$name"
    grep -q "^back-$name: $class, [0-9.]*k parameters in [0-9]* tensors, vocabulary 300, context 16\$" out || fail "import of $name said $(cat out)"
    [ "$(weights_of "$name")" = "$(weights_of "back-$name")" ] || fail "$name: other weights came back"
    model_of "$name" >want
    model_of "back-$name" >got
    [ "$(wc -l <want)" -ge 19 ] || fail "$name: no config"
    diff want got >out || { fail "$name: another config came back"; cat out; }
    cmp "$name/tokenizer.json" "back-$name/tokenizer.json" || fail "$name: another tokenizer"
    works "$tapir" eval "$name" val.h5
    sed 's/step 6/step 0/' out >want
    works "$tapir" eval "back-$name" val.h5
    diff want out >diffs || { fail "$name: another loss"; cat diffs; }
    works "$tapir" export "back-$name" "again-$name"
    diff -r "to-$name" "again-$name" >diffs || { fail "$name: exported again it is another"; cat diffs; }
}
there_and_back gpt2 GPT2LMHeadModel model.family=gpt2 model.ffn=48 model.layers=2
there_and_back llama LlamaForCausalLM model.heads=4 model.kv_heads=2 model.ffn=40 model.tie_embeddings=false model.mlp_bias=true model.rope_theta=20000.5
there_and_back biased LlamaForCausalLM model.attention_bias=true model.mlp_bias=true
there_and_back scaled LlamaForCausalLM rope_scaling.rope_type=llama3 rope_scaling.factor=8 rope_scaling.original_max_position_embeddings=64
there_and_back qwen2 Qwen2ForCausalLM model.attention_bias=true
there_and_back qwen3 Qwen3ForCausalLM model.qk_norm=true model.head_dim=12 model.attention_bias=true model.norm_eps=0.001
there_and_back mistral MistralForCausalLM model.sliding_window=5

# ---- a run like others --------------------------------------------------------------------------
works "$tapir" generate back-qwen3 the -n 5
works "$tapir" train "$src/configs/tests/tiny.yaml" run.dir=more data.train=train.h5 data.val=val.h5 model.init_from=back-qwen2
[ "$(weights_of more)" != "$(weights_of qwen2)" ] || fail "training from an import moved nothing"
says 1 'back-llama is an imported model, of which there is no training to go on with' \
    "$tapir" train "$src/configs/tests/tiny.yaml" --resume run.dir=back-llama data.train=train.h5 data.val=val.h5 model.init_from=back-qwen2
works "$tapir" import --context 8 to-llama short
grep -q '^  context: 8 ' short/config.yaml || grep -q '^  context: 8$' short/config.yaml || fail "--context: $(grep context: short/config.yaml)"
[ "$(weights_of short)" = "$(weights_of llama)" ] || fail "--context changed weights"
mkdir empty
works "$tapir" import to-gpt2 empty
works "$tapir" import to-gpt2/ new/folders/here
[ "$(weights_of new/folders/here)" = "$(weights_of gpt2)" ] || fail "a run in new folders"

# ---- rows as long as the model's context are told of --------------------------------------------
cp -r to-llama long
sed -i 's/"max_position_embeddings": 16/"max_position_embeddings": 9000/' long/config.json
works "$tapir" import long run-long
echo 'run: {steps: 2}' >plain.yaml
works "$tapir" plan plain.yaml model.init_from=run-long
grep -q 'model.context is 9000, as of run-long: with a smaller one' err || fail "a long context: $(cat err)"
works "$tapir" plan plain.yaml model.init_from=run-long model.context=8000
[ ! -s err ] || fail "a context that was given: $(cat err)"

# ---- a tokenizer that begins every text with a token: documents, prompts and samples begin with it
cp -r to-llama begun
sed -i 's/"post_processor": null/"post_processor": {"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|endoftext|>","type_id":0}}]}/' begun/tokenizer.json
works "$tapir" import begun run-begun
printf 'one two' >a.txt
works "$tapir" prepare a.txt --out plain.h5 --tokenizer to-llama/tokenizer.json
grep -o '[0-9]* tokens' out >want
works "$tapir" prepare a.txt --out begun.h5 --tokenizer begun/tokenizer.json
[ "$(grep -o '[0-9]* tokens' out)" = "$(($(cut -d' ' -f1 want) + 1)) tokens" ] || fail "a document with its first token: $(cat want out)"
"$tapir" generate back-llama the -n 9 -t 0 >want
"$tapir" generate run-begun the -n 9 -t 0 >got
cmp -s want got && fail "the prompt does not begin with the token"
[ "$(head -c 3 got)" = the ] || fail "what a text begins with is shown: $(cat got)"

# ---- a head that config.json ties to the embedding, but that the file has with other values, is kept
cp -r to-llama untied
sed -i 's/"tie_word_embeddings": false/"tie_word_embeddings": true/' untied/config.json
works "$tapir" import untied run-untied
[ "$(weights_of run-untied)" = "$(weights_of llama)" ] || fail "a head of its own was dropped"

# ---- what will not do ---------------------------------------------------------------------------
copy() { # copy FOLDER: to x, to be changed
    rm -rf x
    cp -r "$1" x
}
refuses() { # refuses PATTERN: x
    says 1 "$1" "$tapir" import x r
    gone r
}
says 2 'which folder' "$tapir" import
says 2 'which folder' "$tapir" import ''
says 2 'as which run' "$tapir" import to-gpt2
says 2 'one folder, one run' "$tapir" import to-gpt2 a b
says 2 'a name is too long' "$tapir" import "$(printf '%01100d' 0)" r
says 2 '--context' "$tapir" import --context 0 to-gpt2 r
says 1 'nothing: cannot open the folder' "$tapir" import nothing r
says 1 'text.txt is a file: name the folder' "$tapir" import text.txt r
says 1 'gpt2 is no model of transformers: it has no config.json (a run of Tapir needs no import)' "$tapir" import gpt2 r
says 1 'empty/checkpoints is no model of transformers: it has no config.json$' "$tapir" import empty/checkpoints r
says 1 'gpt2 holds a run already' "$tapir" import to-gpt2 gpt2
says 1 'back-gpt2 holds a run already' "$tapir" import to-gpt2 back-gpt2
says 1 'to-gpt2/config.json: a context of 8: the model has learned its 16 positions' "$tapir" import --context 8 to-gpt2 r
says 1 'to-llama/config.json: a context of 17: the model has 16 positions' "$tapir" import --context 17 to-llama r
gone r
says 1 'to-llama is no run: .*tapir import makes a run' "$tapir" generate to-llama
copy to-llama
sed -i 's/"max_position_embeddings": 16/"max_position_embeddings": 2000000/' x/config.json
refuses 'rotary positions (llama) go up to 1048576, got 2000000'
works "$tapir" import --context 16 x r
rm -r r
copy to-gpt2
rm x/tokenizer.json
refuses 'x has no tokenizer.json: AutoTokenizer'
copy to-gpt2
mv x/model.safetensors x/pytorch_model.bin
refuses 'x has no model.safetensors: pytorch_model.bin is not read'
copy to-gpt2
head -c 5000 to-gpt2/model.safetensors >x/model.safetensors
refuses 'x/model.safetensors: '
copy to-gpt2
cp to-llama/model.safetensors x/
refuses 'x has no tensor transformer.wte.weight'
copy to-gpt2
sed -i 's/"n_inner": 48/"n_inner": 64/' x/config.json
refuses 'x/model.safetensors: transformer.h.0.mlp.c_fc.weight must be f32\[16,64\] by config.json, but has 768 values'
copy to-gpt2
sed -i 's/"n_layer": 2/"n_layer": 1/' x/config.json
refuses 'tensor transformer.h.1.attn.c_attn.bias has no place in a GPT2LMHeadModel of this config'
copy to-gpt2
sed -i 's/"vocab_size": 300/"vocab_size": 299/' x/config.json
refuses 'x/tokenizer.json has 300 tokens, but the model knows 299'
copy to-gpt2
sed -i 's/gelu_new/relu/' x/config.json
refuses 'x/config.json: "activation_function" is "relu", and Tapir computes "gelu_new" only'
copy to-llama
sed -i 's/"rope_theta": 20000.5/"rope_theta": 0.5/' x/config.json
refuses 'x/config.json: "rope_theta" must be a number >= 1'
copy to-llama
echo '{' >x/tokenizer.json
refuses 'x/tokenizer.json: line'
# zeros behind attention's output are no bias; other numbers are
copy to-biased
works "$tapir" import x r
rm -r r
printf '\001' | dd of=x/model.safetensors bs=1 seek=$(($(wc -c <x/model.safetensors) - 2)) conv=notrunc 2>/dev/null
refuses 'self_attn.o_proj.bias is not zero, and Tapir has no bias behind'
# a model that was saved without its head lacks the first part of the names
copy to-gpt2
LC_ALL=C sed -i '1s/"transformer\.\([^"]*\)"/"\1"            /g' x/model.safetensors
works "$tapir" import x r
[ "$(weights_of r)" = "$(weights_of gpt2)" ] || fail "names without their first part"
rm -rf r

# ---- a disk that is full ------------------------------------------------------------------------
limited() { # limited BLOCKS COMMAND…: files of at most so many times 512 bytes
    (
        ulimit -f "$1"
        shift
        exec "$@"
    )
}
for blocks in 1 30 60; do
    says 1 'cannot write\|File too large' limited $blocks "$tapir" import to-gpt2 r
    gone r
    mkdir r
    says 1 'cannot write\|File too large' limited $blocks "$tapir" import to-gpt2 r
    [ -z "$(ls r/checkpoints 2>/dev/null)" ] || fail "half a checkpoint: $(ls r/checkpoints)"
    works "$tapir" import to-gpt2 r
    rm -r r
done
exit $failed
