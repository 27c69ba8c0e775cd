import time


def test_a(visit):
    for k in range(3):
        t = time.time()
        at = visit()
        print("visit", time.time() - t)
        print(at.exception, [c.value for c in at.caption][:3], at.title[0].value, dict(at.query_params))
    t = time.time()
    at.sidebar.selectbox(key="method").select("occlusion").run()
    print("occ", time.time() - t)
    print(
        [c.value for c in at.caption][:3],
        at.title[0].value,
        [b.label for b in at.button],
        [b.value for b in at.markdown],
    )
    import cProfile, pstats

    t = time.time()
    at.run()
    print("rerun", time.time() - t)
