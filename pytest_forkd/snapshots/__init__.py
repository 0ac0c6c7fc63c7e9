"""Parents at rest: what identifies one, and where kept ones are found."""
