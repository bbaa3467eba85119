"""C text that all kernels share, its compilation and its arrays."""
