"""The critical batch size: runs to goals at tuned rates, fits, and the noise scale beside them."""
