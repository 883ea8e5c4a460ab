"""One thin adapter per step of a pipeline, between ZenML's artifacts and the functions of ted."""
