#!/bin/sh
# Tapir as others have it: installed, moved elsewhere (DESTDIR), and built against by a project of
# its own, in C and in C++, through CMake and through pkg-config; and what the README says of it.
# $1: the tapir binary in its build folder, $2: the source folder.
set -eu
build=$(dirname "$1")
src=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
fail() { failed=1; echo "FAILED: $*"; }
quiet() { "$@" >"$dir/log" 2>&1 || { tail -n 20 "$dir/log"; fail "$*"; }; }

DESTDIR=$dir/stage quiet cmake --install "$build" --prefix /opt/tapir
prefix=$dir/stage/opt/tapir
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name tapir.pc)")
export PKG_CONFIG_PATH

# results OF: the programs in a folder do what they say
results() {
    line=$("$1/line" 2>&1) || :
    model=$("$1/model" 2>&1) || :
    [ "$line" = "y = 2.000 x + -1.000" ] || fail "$1/line says: $line"
    [ "$model" = "loss 2.4, learnt: yes" ] || fail "$1/model says: $model"
}
quiet cmake -S "$src/tests/outside" -B "$dir/cmake" -DCMAKE_PREFIX_PATH="$prefix"
quiet cmake --build "$dir/cmake"
results "$dir/cmake"

mkdir "$dir/pc"
cd "$src/tests/outside"
quiet cc -I. line.c $(pkg-config --cflags --libs tapir) -o "$dir/pc/line"
quiet c++ -std=c++17 -I. model.cc $(pkg-config --cflags --libs tapir) -o "$dir/pc/model"
results "$dir/pc"
quiet cc -I. line.c $(pkg-config --cflags --libs --static tapir) -o "$dir/pc/static"

# the README's two ways, word for word
mkdir "$dir/readme"
cd "$dir/readme"
cp "$src/tests/outside/line.c" .
block() { awk -v what="$1" '/^<!-- library -->/{here=1} /^<!-- end -->/{here=0} here && /^```/{on=($0 == "```" what); next} here && on' "$src/README.md"; }
block cmake >CMakeLists.txt
quiet cmake -B build -DCMAKE_PREFIX_PATH="$prefix"
quiet cmake --build build
block sh | grep '^cc ' >by_hand.sh
quiet sh -e by_hand.sh
for program in build/line ./line; do
    [ "$($program 2>&1)" = "y = 2.000 x + -1.000" ] || fail "the README's $program"
done

# the program runs from there, and its completion knows it
[ "$("$prefix/bin/tapir" version | head -1)" = "$("$1" version | head -1)" ] || fail "the installed program"
[ -s "$prefix/share/bash-completion/completions/tapir" ] || fail "no completion"
# no name of the build or of the prefix is left in what was installed for others
grep -rlF -e "$src" -e "$dir" "$prefix/include" "$prefix/lib" --include='*.h' --include='*.cmake' --include='*.pc' && fail "paths of this machine"
# another minor version is refused, a project without C is told why
refused() { # refused SENTENCE CMAKE-LINES
    mkdir -p "$dir/refused"
    printf 'cmake_minimum_required(VERSION 3.25)\n%s\n' "$2" >"$dir/refused/CMakeLists.txt"
    cmake -S "$dir/refused" -B "$dir/refused/build" -DCMAKE_PREFIX_PATH="$prefix" >"$dir/log" 2>&1 && fail "accepted: $2"
    tr -s '\n ' '  ' <"$dir/log" | grep -q -- "$1" || fail "no sentence \"$1\" for: $2"
    rm -r "$dir/refused"
}
refused 'requested version' 'project(x LANGUAGES C)
find_package(Tapir 7.5 REQUIRED)'
refused 'C must be enabled' 'project(x LANGUAGES CXX)
find_package(Tapir REQUIRED)'

# the mutant: without one header, or without the library, nothing of this may pass
mutant() { # mutant FILE
    [ -e "$prefix/$1" ] || { fail "no $1 to remove"; return; }
    mv "$prefix/$1" "$dir/away"
    cc -I"$src/tests/outside" "$src/tests/outside/line.c" $(pkg-config --cflags --libs tapir) -o "$dir/pc/mutant" 2>/dev/null &&
        fail "builds without $1"
    mv "$dir/away" "$prefix/$1"
}
mutant include/tapir/core/lang.h
mutant include/tapir/ops/sgd/sgd.h
mutant include/tapir/nn/param.h
mutant "$(cd "$prefix" && find . -name libtapir.a)"
[ "$failed" = 0 ]
