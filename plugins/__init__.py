"""Built-in plugins, one folder each. They import `latentwire` and nothing beneath it, as any plugin may."""
