"""The configuration: what is backed up, when, where to, and who is told (vbackup.toml(5))."""
