"""The arena: every objective on every data set, tuned alike, compared with intervals."""
