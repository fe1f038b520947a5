"""What a sweep came to, in words and tables: report, model card, exported trials."""
