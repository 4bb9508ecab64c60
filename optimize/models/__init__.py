"""Network architectures: the registered ones and our own."""
