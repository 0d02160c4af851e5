"""What the commands do: one module for each command, without parsing and printing."""
