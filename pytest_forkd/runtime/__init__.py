"""What any process of a run does to itself: its garbage collector, log files, limits, children."""
