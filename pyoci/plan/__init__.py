"""What a container needs, as ordered kernel calls."""
