#!/bin/sh
# registers.sh SOURCE: compiles the attention kernels, and Hopper's products, with nvcc for sm_80 and
# sm_90a and prints what each takes: registers, and bytes that did not fit into them (spills), which
# products and head sizes up to 128 must not have. Exits with 77 (skipped) where there is no nvcc.
set -u
src=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# From ptxas' report: "ARCH REGISTERS SPILLED KERNEL", a line each; fails where one of a head size up to
# 128, or of any, spills.
table() {
    awk -v q="'" '
    /Compiling entry function/ { split($0, part, q); name = part[2]; arch = part[4] }
    /bytes spill stores/ { match($0, /[0-9]+ bytes spill stores/); spill = substr($0, RSTART) + 0
        match($0, /[0-9]+ bytes spill loads/); spill += substr($0, RSTART) + 0 }
    /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); used = substr($0, RSTART + 5) + 0
        head = match(name, /ILi[0-9]+/) ? substr(name, RSTART + 3, RLENGTH - 3) + 0 : 0
        kernels++
        if (spill && head <= 128) { bad++; mark = " SPILLS" } else mark = ""
        printf "%-7s %9d %8d  %s%s\n", arch, used, spill, name, mark }
    END { if (!kernels) { print "no kernel in the report"; exit 1 } exit bad > 0 }' "$1"
}

# A report with a spill must be refused, and one without kernels.
cat >"$dir/spill" <<'END'
ptxas info    : Compiling entry function '_Z6kernelILi64EEvv' for 'sm_80'
    32 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
END
sed 's/24 bytes spill/0 bytes spill/; s/28 bytes spill/0 bytes spill/' "$dir/spill" >"$dir/whole"
if table "$dir/spill" >"$dir/out" || ! grep -q ' 52 .* SPILLS' "$dir/out" || ! table "$dir/whole" >/dev/null ||
    table /dev/null >/dev/null; then
    echo "the reader of ptxas' report does not work"
    exit 1
fi

command -v nvcc >/dev/null || { echo "skipped: there is no nvcc"; exit 77; }
printf '%-7s %9s %8s  %s\n' arch registers spilled kernel
failed=0
for file in "$src"/ops/attention/*.cu "$src"/ops/matmul/*_sm90.cu "$src"/ops/linear_cross_entropy/*_sm90.cu; do
    if ! nvcc -I"$src" -std=c++20 --fmad=false -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a \
        -Xptxas -v -c "$file" -o "$dir/kernels.o" >"$dir/report" 2>&1; then
        cat "$dir/report"
        exit 1
    fi
    if grep -q 'C75[0-9][0-9]' "$dir/report"; then # wgmma made to wait for each other
        grep 'C75[0-9][0-9]' "$dir/report"
        failed=1
    fi
    table "$dir/report" >"$dir/lines" || failed=1
    if command -v c++filt >/dev/null; then c++filt -p <"$dir/lines"; else cat "$dir/lines"; fi
done
exit $failed
