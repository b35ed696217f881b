"""The Transformer that all strategies share, its heads and cost, and Hugging Face models in its place."""
