"""Linear and nonlinear solves for all features of all images at once."""
