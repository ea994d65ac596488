#!/bin/sh
# on_gpu.sh TAPIR COMMAND…: runs the command if there is a GPU, else exits with 77 (skipped).
gpu=$("$1" version | grep '^cuda') || exit 1
shift
case $gpu in
*"no GPU"*)
    echo "skipped: $gpu"
    exit 77
    ;;
esac
exec "$@"
