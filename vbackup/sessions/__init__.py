"""The record of pull sessions: what was begun, what was committed, and from which checkpoint a tracker goes on."""
