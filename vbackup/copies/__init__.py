"""Copies of backups at a target: what is there, what has to go there and in which form, and how it comes back."""
