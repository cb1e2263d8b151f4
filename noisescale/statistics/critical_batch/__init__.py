"""From steps to goals, or from losses of branches, to the critical batch size and what follows from it."""
