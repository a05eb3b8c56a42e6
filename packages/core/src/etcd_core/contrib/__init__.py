"""Schedulers of other packages, run by the leader only. A module imports the package it serves."""
