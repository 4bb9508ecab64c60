"""Runners: one file around one backend each; every runner is a Network and a context manager."""
