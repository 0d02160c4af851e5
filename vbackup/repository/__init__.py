"""The record: what backups there are, their manifests, journals and locks."""
