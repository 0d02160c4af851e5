"""One module per command: ``run`` does what the command line asks for and returns the exit status."""
