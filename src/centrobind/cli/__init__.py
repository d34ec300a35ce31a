"""Command line: `centrobind`."""
