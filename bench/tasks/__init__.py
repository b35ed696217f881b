"""One file per downstream task; `bench.evaluate` holds the protocols, the same for all strategies."""
