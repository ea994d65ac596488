#!/bin/sh
# Completion in bash offers what the program says of itself. $1: the tapir binary, $2: the source folder.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/complete.bash" <<'END'
# complete.bash SCRIPT LINE…: a line of "LINE -> what TAB offers" each
source "$1"
shift
for COMP_LINE; do
    COMP_POINT=${#COMP_LINE}
    read -ra COMP_WORDS <<<"$COMP_LINE"
    _tapir
    echo "$COMP_LINE -> ${COMPREPLY[*]}"
done
END
cd "$dir"
tab() { bash complete.bash "$script" "$@" 2>err; }
script=$2/cli/completion.bash
failed=0
offers() { # offers LINE WORDS
    got=$(tab "$1")
    [ "$got" = "$1 -> $2" ] || { failed=1; echo "FAILED: wanted \"$1 -> $2\", got \"$got\""; }
    [ ! -s err ] || { failed=1; cat err; }
}
t=$1
mkdir runs && : >runs/tiny.yaml
offers "$t tra" train
offers "$t " "$("$t" --help | sed -n 's/^  \([a-z]*\) .*/\1/p' | tr '\n' ' ' | sed 's/ $//')"
offers "$t train --re" --resume
offers "$t plot runs/a --me" --metrics=
offers "$t train ru" runs
offers "$t train runs/ti" runs/tiny.yaml
offers "$t train runs/tiny.yaml model.lay" model.layers=
offers "$t train runs/tiny.yaml train.optimizer=" "$("$t" train --keys | sed -n '/^train.optimizer /{n;s/.*one of \(.*\), default.*/\1/;s/,//g;p;}')"
offers "$t train runs/tiny.yaml train.optimizer=mu" muon
offers "$t train runs/tiny.yaml data.train=ru" runs
offers "$t train runs/tiny.yaml data.prefetch=f" false
offers "$t ops gelu_backward2" gelu_backward2
offers "$t task par" parity
# every key is offered
keys=$("$t" train --keys | grep -c '^[a-z]')
got=$(tab "$t train x.yaml " | sed 's/.* -> //' | wc -w)
[ "$got" = "$keys" ] || { failed=1; echo "FAILED: $got of $keys keys are offered"; }
# a program that says something else is believed: there is no list to go out of date
printf '#!/bin/sh\necho "  fly        over the hills"\n' >other
chmod +x other
offers "./other " fly
# the mutant: a script that knows commands by heart
sed "s/choices=.*--help.*sed.*/choices='prepare train'/" "$script" >fixed.bash
script=fixed.bash
[ "$(tab "./other ")" != "./other  -> fly" ] || { failed=1; echo "FAILED: a fixed list passes"; }
[ "$failed" = 0 ]
