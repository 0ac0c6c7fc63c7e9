"""What is watched while the collector collects, and what is found."""
