"""The daemon: the HTTP contract over one store, and nothing that the library could do itself."""
