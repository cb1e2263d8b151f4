"""One module for each command: it parses, calls one library function, and prints."""
