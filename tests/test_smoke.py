async def test_smoke(store):
    image = await store.create(names=["a"], big_data={"manifest": b"{}"})
    assert await store.get("a") == image
