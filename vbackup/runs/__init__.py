"""The record of runs, which 'vbackup run' keeps on the machine that makes the backups."""
