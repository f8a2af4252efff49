"""Short videos: spacetime patches of latents (Sora), a causal autoencoder, clips that are read exactly."""
