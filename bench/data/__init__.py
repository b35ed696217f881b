"""Corpora, tokenizer and prepared batches: documents or image-caption pairs -> tokens -> batches."""
