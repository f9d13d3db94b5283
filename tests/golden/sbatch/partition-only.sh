#!/bin/bash

# Parameters
#SBATCH --array=0-3%4
#SBATCH --constraint='a100&ib'
#SBATCH --cpus-per-task=4
#SBATCH --exclude='node[07-08],node12'
#SBATCH --job-name=skinjob
#SBATCH --mail-type=END,FAIL,TIME_LIMIT
#SBATCH --mail-user=me@example.org
#SBATCH --mem=8192M
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/sweep/submission/%A_%a_0_log.out
#SBATCH --partition=gpu-shared
#SBATCH --signal=USR2@90
#SBATCH --time=120

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/sweep/submission/%A_%a_%t_log.out --cpus-per-task=4 env PYTHONSAFEPATH=1 PYTHONUTF8=1 PYTHON -u -m skinjob.submit.start /RUNS/sweep/submission
