"""What a user types: commands and executors."""
