"""Images as latents of an autoencoder, cut into patches (DiT, arXiv 2212.09748)."""
