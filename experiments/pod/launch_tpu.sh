#!/usr/bin/env bash
# On every host of a TPU slice: train until all steps are done, whatever happens in between.
#
#   gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker all --command \
#     'cd attnjax && bash experiments/pod/launch_tpu.sh 7b --output.folder gs://BUCKET/run --mesh.context 8'
#
# Exit codes: 0 done; 75 the machine is about to go, saved; anything else: a process died, and the others with it.
# All hosts start again together: the first to come waits for the others.
set -u
while true; do
  .venv/bin/python -m experiments.pod.train "$@"
  code=$?
  [ $code -eq 0 ] && exit 0
  [ $code -eq 2 ] && exit 2 # a mistake on the command line does not mend itself
  echo "ended with code $code; starting again in ${PAUSE:=10} s" >&2
  sleep "$PAUSE"
done
