"""The order of the steps, and how a run is configured, started and reported."""
