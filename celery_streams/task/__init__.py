"""Inside a task: ``self.streams``, and the hooks that make it end well."""
