"""Programs of the user's that vbackup runs around backups and restores (vbackup-scripts(7)).

``finding`` finds and refuses them, ``program`` runs one, ``runner`` runs those of a phase for one domain.
"""
