"""`bench speed` and `bench scale`: training steps beside other implementations; costs on paper."""
