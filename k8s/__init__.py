"""What runs the pipelines on Kubernetes: manifests, images, and the registration of a ZenML stack."""
