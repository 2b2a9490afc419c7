"""`ensemble run`: the three documents of a file, one command after another, on one machine."""
