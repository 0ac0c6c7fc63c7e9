"""Everything that lives in the user's pytest process: the session, and what it knows of workers."""
