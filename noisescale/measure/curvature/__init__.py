"""Products with the Hessian and the GGN, and what is read off them."""
