#!/bin/bash

# Parameters
#SBATCH --array=0-3%4
#SBATCH --cpus-per-task=6
#SBATCH --gpus=1
#SBATCH --job-name=skinjob
#SBATCH --mem-per-cpu=4096M
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/sweep/submission/%A_%a_0_log.out
#SBATCH --partition=accelerated
#SBATCH --qos=short
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=60

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/sweep/submission/%A_%a_%t_log.out --cpus-per-task=6 env PYTHONSAFEPATH=1 PYTHONUTF8=1 PYTHON -u -m skinjob.submit.start /RUNS/sweep/submission
