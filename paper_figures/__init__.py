"""One script per figure: tables in data/ -> a PNG and a PDF."""
