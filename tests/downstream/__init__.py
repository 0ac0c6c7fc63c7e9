"""The test suites of other projects, run plainly, under xdist and under forkd, and compared."""
