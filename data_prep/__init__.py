"""Articles and tables to WebDataset shards: `python -m data_prep STAGE`."""
