#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-2%2
#SBATCH --cpus-per-task=3
#SBATCH --gpus-per-node=1
#SBATCH --job-name=skinjob
#SBATCH --mem=1536M
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=PROJECT/runs/s/submission/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=short
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=45

# setup
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output PROJECT/runs/s/submission/%A_%a_%t_log.out --cpus-per-task=3 env PYTHONSAFEPATH=1 PYTHONUTF8=1 /opt/venv/bin/python -u -m skinjob.submit.start PROJECT/runs/s/submission

