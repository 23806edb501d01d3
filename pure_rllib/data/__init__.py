"""Problems, their order, and prompt templates."""
