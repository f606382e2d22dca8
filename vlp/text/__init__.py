"""Text for language-model pretraining: documents, cleaning, vocabularies, token caches, masks."""
