"""What ``Store`` is put together from: a part for each thing that a program does with images, and what they share."""
