"""Several runs that differ in what is studied: their directory, their tables."""
