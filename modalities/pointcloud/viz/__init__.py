"""Pictures of clouds, and windows."""
