"""Where models come from; one file per kind of source, named as it is registered."""
