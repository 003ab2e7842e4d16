"""How long a test waits for what comes at once, or not before the test lets it."""

# Longer than a busy machine stands still, and shorter than what is held in a test is held for: who has come by then has
# waited for nothing of that.
SOON_SECONDS = 20.0
