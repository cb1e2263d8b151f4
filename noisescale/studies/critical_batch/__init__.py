"""The critical batch size, measured: runs to goals at tuned rates, fits, and the noise scale beside."""
