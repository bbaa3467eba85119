"""The fast route: sweeps of a chunk of images through all layers, by generated C."""
