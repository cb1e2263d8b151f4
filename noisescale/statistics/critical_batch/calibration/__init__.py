"""How far a run's noise scale lies from the critical batch size, where both were measured."""
