"""One file per downstream task; `bench.protocols` holds the protocols, the same for all strategies."""
