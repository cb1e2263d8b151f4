"""Which learning rates are stable: what is predicted of them, and what runs say of the edge."""
