#!/bin/bash

# Parameters
#SBATCH --array=0-3%4
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=a100:1
#SBATCH --job-name=skinjob
#SBATCH --mem=16384M
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/sweep/submission/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --signal=USR2@90
#SBATCH --time=120

# setup
module load apptainer

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/sweep/submission/%A_%a_%t_log.out --cpus-per-task=4 env PYTHONSAFEPATH=1 PYTHONUTF8=1 apptainer exec --nv --bind /project /project/images/skinjob.sif python3 -u -m skinjob.submit.start /RUNS/sweep/submission
