"""The async part: who runs when. The only one that imports anyio."""
