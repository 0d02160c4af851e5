"""One module per command: ``add`` declares its arguments. The handler of the same name does the work."""
