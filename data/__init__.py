"""Text and preferences: tokenizers, chat formats, pairs and how they are packed."""
