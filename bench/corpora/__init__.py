"""One file per corpus; each yields documents or (image, caption) pairs as a stream."""
