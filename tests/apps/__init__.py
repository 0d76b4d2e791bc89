"""Programs that use the library, as its users would write them."""
