"""Zero-shot evaluation of image-text models: `python -m eval SUITE.yaml model=...`."""
