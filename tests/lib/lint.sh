#!/bin/sh
# Reads the sources for bugs with clang-tidy (.clang-tidy) and cppcheck, whichever is installed; both
# are Debian packages. $1: the source folder, $2: a build folder, for how each file is compiled.
set -eu
cd "$1"
failed=0 ran=0
sources=$(ls train.c ./*/*.c ops/*/*.c | grep -E '^(train\.c|\./(core|autograd|nn|optim|data|dist|infer|rl|cli)/|ops/)' |
    grep -vE '_cpu\.c$|dist/nccl\.c$') # kernels: macros that the tools cannot follow
if command -v clang-tidy >/dev/null; then
    ran=1
    echo "$sources" | xargs -n 8 -P "$(nproc)" clang-tidy -p "$2" --quiet 2>/dev/null || failed=1
fi
if command -v cppcheck >/dev/null; then
    ran=1
    echo "$sources" | xargs cppcheck -q -j "$(nproc)" -I. -I"$2" -DTP_ISA=1 --std=c11 --enable=warning,portability \
        --inline-suppr --suppress=missingIncludeSystem --suppressions-list=tests/lib/cppcheck.txt --error-exitcode=1 || failed=1
fi
[ $ran = 1 ] || { echo "lint: needs clang-tidy or cppcheck: apt-get install clang-tidy cppcheck"; exit 1; }
[ $failed = 0 ] && echo "lint: nothing found in $(echo "$sources" | wc -l) files"
exit $failed
