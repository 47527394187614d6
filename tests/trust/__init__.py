"""What keeps the host trustworthy: faults, hostile input, and who is let in."""
