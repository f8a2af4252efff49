"""Video files, read exactly and written whole: container, index, frames."""
