"""What stands for functions of torch while second derivatives are taken."""
