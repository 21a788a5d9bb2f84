#!/usr/bin/env bash
# Several processes on this machine, each with simulated devices: to try what a pod does. launch_local.sh 2 tiny [flags]
set -u
processes=$1
shift
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
for ((rank = 0; rank < processes; rank++)); do
  python -m experiments.pod.train "$@" --cluster.cpu-devices 2 --cluster.coordinator "127.0.0.1:$port" \
    --cluster.processes "$processes" --cluster.process "$rank" &
done
wait
