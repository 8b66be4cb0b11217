"""Small SAEs of other libraries as those libraries save them, a module for each library."""
