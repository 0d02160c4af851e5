"""Hypervisors reached by SSH: a connection to each, and a helper of the standard library that is sent along."""
