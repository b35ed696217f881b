"""Launch, resume, share, monitor and export runs."""
