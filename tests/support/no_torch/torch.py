"""Hides the real torch in `make test-fast`, whose tests must not need it."""

raise ImportError("this test needs torch: mark it with @pytest.mark.train")
