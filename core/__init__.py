"""What a latentwire host is, with no network in it."""
