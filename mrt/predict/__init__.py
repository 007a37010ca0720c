"""Using a detector: from photos, folders and videos to boxes, pictures and label files."""
