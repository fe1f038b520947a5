#!/usr/bin/env bash
# sbatch orchestrator/cluster/slurm.sh: one Ray node on each node of the allocation, the sweep on the first of them.
# Run it in the checkout, whose .venv `make sweep` made; all of Ray ends with the job. NAME=... names the sweep;
# the same name again goes on with it.
#SBATCH --job-name=qlora-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=B:INT@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=qlora-sweep-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
source .venv/bin/activate

# Who shares the network of these nodes must not talk to this Ray: a token of this job alone, readable by its owner.
umask 077
token_folder=$(mktemp --directory --tmpdir="$PWD" .ray-token-XXXXXX)
trap 'rm -rf "$token_folder"' EXIT
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token_folder/token"
head --bytes=32 /dev/urandom | base64 --wrap=0 >"$RAY_AUTH_TOKEN_PATH"

name=${NAME:-slurm-$SLURM_JOB_ID}
read -r head_node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(getent ahostsv4 "$head_node" | awk 'NR == 1 { print $1 }'):6379

sweep=(env "RAY_ADDRESS=$address" qlora-sweep run --name "$name" --device cuda --address auto)
if [[ -e mlflow_runs/sweeps/$name/ledger.db ]]; then # requeued, or the same name again
    sweep=(env "RAY_ADDRESS=$address" qlora-sweep resume "$name")
fi

# Two minutes before the time is over Slurm interrupts this script; the sweep ends in order and can be resumed.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" -- "${sweep[@]}" &
step=$!
trap 'kill -INT "$step"' INT
wait "$step" || wait "$step" # the first ends when the interruption comes, the second with the sweep
