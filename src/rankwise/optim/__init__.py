"""One optimizer: an update rule and a rank rule for factors, AdamW for everything else."""
