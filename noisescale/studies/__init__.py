"""Many runs: the stability map and the critical batch size."""
