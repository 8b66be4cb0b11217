"""Small SAEs of other libraries, saved as the libraries do; one module for each library."""
