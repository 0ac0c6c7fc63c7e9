"""What backends have in common whose workers run in virtual machines."""
