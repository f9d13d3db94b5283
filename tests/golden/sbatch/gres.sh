#!/bin/bash

# Parameters
#SBATCH --account=my-lab
#SBATCH --array=0-3%4
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:v100:1
#SBATCH --job-name=skinjob
#SBATCH --mem=32768M
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/sweep/submission/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=240

# setup
module purge
module load cuda/12.4

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/sweep/submission/%A_%a_%t_log.out --cpus-per-task=8 env PYTHONSAFEPATH=1 PYTHONUTF8=1 PYTHON -u -m skinjob.submit.start /RUNS/sweep/submission
