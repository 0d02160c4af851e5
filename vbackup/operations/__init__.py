"""What vbackup does: one module a command."""
