"""From steps to goals, or losses of branches, to the critical batch size and what follows."""
