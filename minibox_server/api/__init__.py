"""The daemon's own endpoints: what the command-line client, programs and the page ask for."""
