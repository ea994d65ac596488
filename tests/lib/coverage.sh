#!/bin/sh
# Runs the tests that need neither a GPU nor minutes, and prints which part of each folder's lines
# they executed. $1: the source folder, $2: a build folder of the preset coverage.
# TESTS='^op.gelu$': these only. LINES_OF=data: the files of a folder as well.
set -eu
src=$1
build=$2
gcov=${GCOV:-gcov}
find "$build" -name '*.gcda' -exec rm -f {} +
ctest --test-dir "$build" -j "$(nproc)" -LE slow -R "${TESTS:-_test$|^op\.|^fuzz\.|^cli$}" --output-on-failure --no-tests=error
cd "$build"
# Sources that are compiled for several instruction sets count once for each.
find CMakeFiles -name '*.gcda' | grep -E '/(tapir|cpu_v[0-9]+)\.dir/' | while read -r data; do
    "$gcov" -n -r -s "$src" "$data" 2>/dev/null
done | awk -v all="${LINES_OF-}" '
    /^File / { file = substr($2, 2, length($2) - 2); next }
    /^Lines executed/ && file ~ /^[a-z]+\/.*\.c$/ {
        split($0, part, /[:% ]+/)
        n = $NF; hit = n * part[3] / 100
        folder = substr(file, 1, index(file, "/") - 1)
        lines[folder] += n; done[folder] += hit
        if (all == folder) printf "%-40s %5d lines %6.1f %%\n", file, n, part[3]
    }
    { file = "" }
    END { for (f in lines) printf "%-10s %6d lines, %5.1f %% executed\n", f "/", lines[f], 100 * done[f] / lines[f] }' |
    sort
