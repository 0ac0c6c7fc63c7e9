"""What the commands print: tables, and the results of checks."""
