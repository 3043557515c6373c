"""What a run came to: the table at its end, and the page that it is read from."""
