"""Plugins that the soak's host runs with."""
