"""What a store tells of what it holds, and of what was done to it: values, and nothing of how they are found."""
