"""Bridges to other packages: schedulers, HTTP clients, metrics. A module imports what it serves."""
