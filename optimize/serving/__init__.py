"""What a server loads: Triton model repositories with the sampling loop inside, and a small server for a quick look."""
