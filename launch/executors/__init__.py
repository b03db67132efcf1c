"""What starts runs: processes of this machine, Slurm, Kubernetes. The engines are never the source of truth."""
