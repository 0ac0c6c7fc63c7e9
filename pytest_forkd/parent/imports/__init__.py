"""What the parent imports, how, and whether it would import the same today."""
