"""Plans of runs on hardware that is not there: the real step, compiled ahead of time, and what it will cost."""
