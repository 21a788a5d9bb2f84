#!/usr/bin/env bash
# One process on every node of a Slurm job: sbatch --nodes 16 experiments/pod/launch_slurm.sh 7b --output.folder /shared/run
#SBATCH --job-name=attnjax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
#
# Slurm tells JAX how many processes there are and where. Five minutes before its time is over, and when it is preempted,
# the job gets SIGTERM, saves, and ends with code 75; here it is put back into the queue. A node that dies ends the job,
# and --requeue starts it again.
set -u
trap true TERM # this shell outlives the signal, to see how the processes end
srun --kill-on-bad-exit=1 .venv/bin/python -m experiments.pod.train "$@" &
wait $!
code=$?
# A signal interrupts wait: wait again for the processes to save.
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
[ $code -eq 0 ] || [ $code -eq 2 ] || scontrol requeue "$SLURM_JOB_ID"
exit $code
