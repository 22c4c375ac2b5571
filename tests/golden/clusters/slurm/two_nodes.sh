#!/bin/bash
# shellcheck disable=SC2016 # what is in single quotes is for each node to expand
# One attempt of a trial as a Slurm job; a retry is another attempt, with a folder and a script of its own.
# The sweep submits it; by hand: sbatch '/store/lr search/trials/grpo-003/attempt-2/job.sh'
#SBATCH --job-name=lr_search-grpo-003-a2
#SBATCH --comment=sweeper:0451
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=96
#SBATCH --time=8:00:00
#SBATCH --partition=h100
#SBATCH --account=rl
#SBATCH --qos=high
#SBATCH --signal=B:USR1@60
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH "--output=/store/lr search/trials/grpo-003/attempt-2/slurm.log"
#SBATCH "--chdir=/store/lr search/trials/grpo-003/attempt-2"
#SBATCH --export=PATH,HOME,HF_TOKEN
set -u
folder='/store/lr search/trials/grpo-003/attempt-2'

# Given up, or run before: what is on record is never overwritten.
if [[ -e $folder/exit.json ]]; then exit 0; fi

# The gang's secret is in the environment of its processes and nowhere else.
SWEEPER_GANG_TOKEN=$(python3 -I -S -c 'import secrets; print(secrets.token_hex(32))') || exit 1
# Tells the gang who its nodes are; says when the attempt must be over, for a trainer that can save before.
SWEEPER_ENDS_AT=$(python3 -I -S '/store/lr search/gang-0a/slurm_nodes.py' '/store/lr search/trials/grpo-003/attempt-2' \
    60) || exit 1
# Seconds from the notice of a preemption to the end of its grace (cluster.slurm.grace_s).
SWEEPER_GRACE_S=0
export SWEEPER_GANG_TOKEN SWEEPER_ENDS_AT SWEEPER_GRACE_S

# A byte for the guard on each node: s ends it gently, k at once, d with the stacks of its processes; p is the notice.
ask() {
  srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 --export=PATH python3 -I -S \
    '/store/lr search/gang-0a/node.py' ask '/store/lr search/trials/grpo-003/attempt-2' '$SLURM_PROCID' "$1" &
}
trap 'ask s' TERM
trap 'ask k' INT
trap 'ask d' USR2
# 60 s before the time limit, when the attempt must be over; what comes earlier is a preemption's notice.
trap 'if (($(date +%s) < SWEEPER_ENDS_AT)); then ask p; else touch "$folder/gang/time-is-up"; ask s; fi' USR1

srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=96 --kill-on-bad-exit=0 --wait=20 \
    --export=PATH,HOME,HF_TOKEN,SWEEPER_GANG_TOKEN,SWEEPER_ENDS_AT,SWEEPER_GRACE_S sh -c \
    '[ -e "$0/exit.json" ] || SWEEPER_NODE=$SLURMD_NODENAME exec "$@"' \
    '/store/lr search/trials/grpo-003/attempt-2' python3 -I -S '/store/lr search/gang-0a/node.py' run \
    '/store/lr search/trials/grpo-003/attempt-2' '$SLURM_PROCID' &
gang=$!
while :; do
  wait "$gang" # until it ends, or a signal was handled
  code=$?
  kill -0 "$gang" 2> /dev/null || exit "$code"
done
