"""Code that travels inside logged models: it imports nothing of ours."""
