"""Exporters: artifact to files of another format; one file each."""
