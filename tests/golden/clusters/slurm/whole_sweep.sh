#!/bin/bash
# A whole sweep inside one Slurm allocation: its trials are steps of this job.
# Submit it again after its time is over: it goes on where it stopped.
#SBATCH --job-name=sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --time=8:00:00
#SBATCH --partition=h100
#SBATCH --account=rl
#SBATCH --qos=high
#SBATCH --exclusive
#SBATCH --signal=B:TERM@60
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output=sweep-%j.log
#SBATCH --chdir=/home/a
set -u
export PYTHONPATH=/home/a/sweeper

if [ -e /home/a/runs/s/sweep.json ]; then
  /opt/venv/bin/python -m sweeper.cli.main resume s --store runs &
else
  /opt/venv/bin/python -m sweeper.cli.main run algorithm=grpo,ppo cluster=slurm name=s &
fi
sweep=$!
trap 'kill -INT "$sweep"' TERM # 60 s before the time limit: stop gently, resumable
while :; do
  wait "$sweep" # until it ends, or a signal was handled
  code=$?
  kill -0 "$sweep" 2> /dev/null || exit "$code"
done
