"""Step time and peak memory of every strategy, side by side with other libraries and the limit."""
