#!/bin/bash

# Parameters
#SBATCH --account=course-24
#SBATCH --array=0-3%2
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=1
#SBATCH --job-name=skinjob
#SBATCH --licenses=matlab:1
#SBATCH --mem=8192M
#SBATCH --nice=100
#SBATCH --nodelist=gpu01
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/sweep/submission/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --reservation=course-24_monday
#SBATCH --signal=USR2@90
#SBATCH --time=120
#SBATCH --wckey=imaging

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/sweep/submission/%A_%a_%t_log.out --cpus-per-task=4 env PYTHONSAFEPATH=1 PYTHONUTF8=1 PYTHON -u -m skinjob.submit.start /RUNS/sweep/submission
