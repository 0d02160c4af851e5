"""``make bench``: how fast vbackup is beside its peers, in the same run on the same machine. README.md tells more."""
