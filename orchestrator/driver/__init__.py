"""What runs next and when a trial ends; the life of a sweep."""
