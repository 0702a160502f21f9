"""The contents of the official package's top level: `import sam2`."""
