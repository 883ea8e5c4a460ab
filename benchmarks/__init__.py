"""What measures speed and quality; dated results lie in `results/`."""
