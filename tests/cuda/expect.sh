# Read by the scripts that train on a device: counting what was expected. $dir/err has what was said last.
failed=0
checks=0
bad() {
    failed=$((failed + 1))
    echo "FAILED: $*"
    [ ! -e "$dir/err" ] || tail -n 3 "$dir/err"
}
expect() { # expect WHAT TEST…
    what=$1
    shift
    checks=$((checks + 1))
    "$@" || bad "$what"
}
