"""One file per verb; each has one function named like the file, and its --help is that function's docstring."""
