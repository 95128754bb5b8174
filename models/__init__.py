"""What answers a prompt: networks, their checkpoints and caches, sampling, and models that ship."""
