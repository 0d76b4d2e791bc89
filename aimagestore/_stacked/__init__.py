"""A store with additional stores, which are only read: an engine that is made of other engines.

Lookups ask the writable store first, then each additional one in order. An ID that one store has
hides the same ID in later stores, and a name is found in the first store that has it. Changes go to
the writable store: an image that only an additional store has is copied into it first, in the same
commit.
"""
