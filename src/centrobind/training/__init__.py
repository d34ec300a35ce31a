"""Training: settings, the loop, the folder of a run, and the one call that does it all."""
