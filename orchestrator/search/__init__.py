"""What to run next, what need not run again, and when to stop."""
