"""What backends whose workers are virtual machines have in common."""
