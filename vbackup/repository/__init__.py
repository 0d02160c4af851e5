"""The record of all backups: the repository on disk, its manifests, journals and locks."""
