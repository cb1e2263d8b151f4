"""What the commands print: tables and sentences on stdout, and the entries of their JSON."""
