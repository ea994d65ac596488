# Read by the scripts that train: the environment of ranks, a small corpus, and a kill.
# Ranks share the cores here, so nobody may spin while waiting; CI may run as root.
export OMP_WAIT_POLICY=passive OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_base_warn_component_unused=0
# MPI keeps memory to the end, in plugins that it has unloaded by then, so that no suppression can
# name them; dist_test and nccl_test look for leaks in the rest.
export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0"

make_corpus() { # make_corpus TAPIR FOLDER LINES: train.h5 and val.h5 of a text with words that repeat
    i=0
    while [ $i -lt "$3" ]; do
        i=$((i + 1))
        echo "Line $i of $((i * 7919 % 997)): the quick $((i * 31 % 17)) brown foxes jump over $((i % 23)) lazy dogs."
    done >"$2/text.txt"
    "$1" prepare "$2/text.txt" --out "$2/train.h5" --val "$2/val.h5" --vocab 300 >/dev/null 2>&1
}

# killed_at FILE COMMAND…: runs the command and ends it with kill -9 once FILE, a pattern, is there.
killed_at() {
    file=$1
    shift
    "$@" >/dev/null 2>&1 &
    pid=$!
    turns=0
    while [ $turns -lt 1200 ] && ! ls $file >/dev/null 2>&1; do
        sleep 0.05
        turns=$((turns + 1))
    done
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
}
