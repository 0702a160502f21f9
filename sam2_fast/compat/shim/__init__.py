"""How `import sam2` imports this package: finder, aliases, child processes, the runner."""
