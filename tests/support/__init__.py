"""What several tests build on. Nothing in here is a test."""
