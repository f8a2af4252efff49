"""Video files, read frame-exactly and written atomically: container, index, frames."""
