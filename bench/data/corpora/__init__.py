"""Text and image-text corpora, one file each."""
