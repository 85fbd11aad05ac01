"""Memory before paging, and paging behind the same interface, to compare them (chapter 02)."""
