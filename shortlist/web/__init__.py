"""What do people see? The pages at `/` and `/docs`: one self-contained file each, nothing fetched from elsewhere."""
