"""What the user can set: options, their ini twins, and what pytest's cache keeps for us."""
