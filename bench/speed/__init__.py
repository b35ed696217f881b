"""`bench speed` times training steps against other implementations; `bench scale` plans costs on paper."""
