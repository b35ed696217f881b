"""Many runs: launch, resume, divide, watch and export them."""
