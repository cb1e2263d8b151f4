"""What the commands leave on disk: recognised, drawn again, and put together on one page."""
