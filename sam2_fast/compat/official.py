"""The top of the official package: `import sam2`."""
