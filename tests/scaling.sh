#!/bin/sh
# The scaling study at its tiny size: well-formed pictures, memory as planned and at most linear in
# the context. $1: the tapir binary, beside which bench_scaling lies.
set -eu
bench=$(dirname "$1")/bench_scaling
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "$*" >&2; exit 1; }
OMP_NUM_THREADS=1 "$bench" --quick --threads 1 --repeats 1 --steps 1 --out "$dir" >"$dir/table"

# ---- pictures
for s in context layers vocab; do
    xmllint --noout --nonet "$dir/scaling-$s.svg" || fail "scaling-$s.svg is not well-formed"
    for want in '<script' 'href'; do
        ! grep -q "$want" "$dir/scaling-$s.svg" || fail "scaling-$s.svg has $want"
    done
    # nothing undefined, nothing left of or above the picture
    ! grep -qE 'nan|inf[^o]|[ML ="]-[0-9]' "$dir/scaling-$s.svg" || fail "scaling-$s.svg: a bad number"
    grep -q "^$s " "$dir/table" || fail "the table has no study $s"
done
sed '$d' "$dir/scaling-vocab.svg" >"$dir/mutant.svg" # without </svg>
! xmllint --noout "$dir/mutant.svg" 2>/dev/null || fail "xmllint accepts a picture that was cut"

# ---- memory
value() { sed -n "s/.*\"$2\":\([0-9.]*\).*/\1/p" "$1"; }
[ "$(wc -l <"$dir/scaling.jsonl")" = 12 ] || fail "scaling.jsonl should have 12 lines"
[ "$(value "$dir/scaling.jsonl" planned_bytes)" = "$(value "$dir/scaling.jsonl" pool_bytes)" ] ||
    fail "measured memory is not what was planned"
grep '"study":"context"' "$dir/scaling.jsonl" >"$dir/context"
[ "$(value "$dir/context" one_planned_bytes)" = "$(value "$dir/context" one_pool_bytes)" ] ||
    fail "measured memory of one sequence is not what was planned"
# the operating system agrees: what was planned has been in memory (a second, independent measure)
value "$dir/context" one_resident_bytes >"$dir/resident"
value "$dir/context" one_pool_bytes >"$dir/pool"
value "$dir/context" one_scores_bytes >"$dir/scores"
paste "$dir/resident" "$dir/pool" | awk '{ if (!($1 >= 0.9 * $2)) bad = 1 } END { exit bad }' ||
    fail "less memory was resident than planned"
# T doubles from line to line: increments of linear growth double too, those of T^2 quadruple
at_most_linear() {
    awk '{ if (NR > 2 && !($1 - a <= 2.5 * (a - b))) bad = 1; b = a; a = $1 } END { exit bad || NR < 5 }'
}
at_most_linear <"$dir/pool" || fail "memory grows faster than the context: $(tr '\n' ' ' <"$dir/pool")"
# the mutant: the same step if it kept its attention scores
if paste "$dir/pool" "$dir/scores" | awk '{ print $1 + $2 }' | at_most_linear; then
    fail "the check of linear growth accepts kept scores, which grow as T^2"
fi

# ---- refusals
! "$bench" --study depth --out "$dir" >/dev/null 2>&1 || fail "an unknown study is accepted"
! "$bench" --repeats 0 --out "$dir" >/dev/null 2>&1 || fail "zero repeats are accepted"
! "$bench" --quick --out "$dir/table" >/dev/null 2>&1 || fail "a file is taken for a folder"
