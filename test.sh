#!/bin/sh
# Installs what is missing, builds, and runs every test: first as users build it, then the tests of
# parsers, memory and ops again under AddressSanitizer and UBSan.
set -eu
cd "$(dirname "$0")"
./install.sh --tests
jobs=$(nproc)
cmake --preset release ${CI:+-DTAPIR_WERROR=ON} >/dev/null
cmake --build build -j "$jobs"
cmake --preset asan ${CI:+-DTAPIR_WERROR=ON} >/dev/null
cmake --build build-asan -j "$jobs"
echo "== AddressSanitizer and UBSan"
ctest --test-dir build-asan -j "$jobs" --output-on-failure --no-tests=error -LE slow
echo "== release"
ctest --test-dir build -j "$jobs" --output-on-failure --no-tests=error
